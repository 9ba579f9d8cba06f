//! From a spec to a started container.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use bollard::Docker;
use bollard::container::AttachContainerResults;
use bollard::errors::Error as DockerError;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, ContainerArchiveInfoOptionsBuilder, CreateContainerOptionsBuilder, StartContainerOptions,
};

use super::super::workspace::Workspace;
use super::super::{Fault, FaultKind, LaunchSpec};
use super::container::Container;
use super::engine::{self, QUICK, SLOW};
use super::sandbox::DockerSandbox;
use super::usage::Meter;
use super::{DockerRunner, image, labels, settings};

/// Programs that were seen in an image, as (image id, program). An image never changes under its id.
pub(super) type KnownPrograms = Mutex<HashSet<(String, String)>>;

const ANY_EXECUTE_BIT: u32 = 0o111;
/// The engine speaks of modes as Go's standard library does.
const DIRECTORY: u32 = 1 << 31;

impl DockerRunner {
    /// Create, inspect, attach, start; a container that did not get that far is removed again.
    pub(super) async fn launch_container(&self, spec: &LaunchSpec) -> Result<DockerSandbox, Fault> {
        let uid = self.options.uid_base.checked_add(spec.place);
        let uid = uid.ok_or_else(|| Fault::new(FaultKind::Refused, "there is no uid left for this place"))?;
        let workspace = self.workspace(spec, uid).await?;
        match self.launch_in(spec, uid, workspace.as_ref()).await {
            Ok(launched) => Ok(launched.with_workspace(workspace)),
            Err(fault) => {
                if let Some(Err(error)) = workspace.map(Workspace::remove) {
                    tracing::warn!(%error, "the workspace of a container that did not start is left to the sweeper");
                }
                Err(fault)
            }
        }
    }

    async fn workspace(&self, spec: &LaunchSpec, uid: u32) -> Result<Option<Workspace>, Fault> {
        let Some(workspaces) = &self.workspaces else { return Ok(None) };
        let Some(workspaces) = workspaces.ready(&self.engine).await else { return Ok(None) };
        let made = workspaces.make(&spec.key, spec.agent.workspace, uid);
        made.map(Some).map_err(|error| Fault::new(FaultKind::Engine, "a workspace cannot be mounted").with_source(error))
    }

    async fn launch_in(&self, spec: &LaunchSpec, uid: u32, workspace: Option<&Workspace>) -> Result<DockerSandbox, Fault> {
        let (instance, runtime) = (&self.options.instance, self.options.runtime.as_deref());
        let wanted = settings::create_body(spec, uid, instance, runtime, workspace.map(Workspace::path))?;
        let docker = self.engine.client().await?;
        let mark = self.watch.ensure(&docker, &self.options.instance);
        let container = Container::new(self.engine.clone(), self.create(&docker, spec, &wanted).await?);
        let watched = self.watch.on(container.id(), mark);
        match self.bring_up(&docker, spec, &wanted, container.id()).await {
            Ok(attached) => {
                let meter = Meter::start(self.engine.is_local(), container.id(), spec.agent.memory);
                Ok(DockerSandbox::new(container, watched, attached, meter))
            }
            Err(fault) => {
                if let Err(error) = container.remove().await {
                    tracing::warn!(%error, "a container that did not start is left to the sweeper");
                }
                Err(fault)
            }
        }
    }

    /// Creates the container. Fetches the image if it is missing, and makes room if an earlier try of ours has the name.
    async fn create(&self, docker: &Docker, spec: &LaunchSpec, wanted: &ContainerCreateBody) -> Result<String, Fault> {
        let name = format!("quayside-{}", spec.key);
        let create = || {
            let options = CreateContainerOptionsBuilder::default().name(&name).build();
            self.engine.call(SLOW, docker.create_container(Some(options), wanted.clone()))
        };
        let mut created = create().await;
        if status_of(&created) == Some(404) {
            image::pull(&self.engine, docker, &spec.agent).await?;
            created = create().await;
        }
        if status_of(&created) == Some(409) {
            self.remove_earlier(docker, &name).await?;
            created = create().await;
        }
        let created = created.map_err(|error| match engine::status(&error) {
            Some(404) => {
                let sentence = format!("the image `{}` of agent `{}` is not on this machine", spec.agent.image, spec.agent.name);
                Fault::new(FaultKind::ImageUnavailable, sentence).with_source(error)
            }
            _ => engine::fault("creating it", error),
        })?;
        for warning in &created.warnings {
            tracing::debug!(warning, agent = %spec.agent.name, "the engine warns about a container");
        }
        Ok(created.id)
    }

    async fn remove_earlier(&self, docker: &Docker, name: &str) -> Result<(), Fault> {
        let found = match self.engine.call(QUICK, docker.inspect_container(name, None)).await {
            Ok(found) => found,
            Err(error) if engine::status(&error) == Some(404) => return Ok(()),
            Err(error) => return Err(engine::fault("inspecting a container", error)),
        };
        if !labels::are_of(&found.config.and_then(|config| config.labels), &self.options.instance) {
            return Err(Fault::new(FaultKind::Refused, "a container that is not ours has the name of this run"));
        }
        Container::new(self.engine.clone(), name.to_owned()).remove().await
    }

    async fn bring_up(&self, docker: &Docker, spec: &LaunchSpec, wanted: &ContainerCreateBody, id: &str) -> Result<AttachContainerResults, Fault> {
        let found = self.engine.call(QUICK, docker.inspect_container(id, None)).await;
        let found = found.map_err(|error| engine::fault("inspecting it", error))?;
        if let Some(setting) = settings::difference(wanted, &found) {
            let sentence = format!("the container engine does not enforce `{setting}` as asked for, so the container was not started");
            return Err(Fault::new(FaultKind::Refused, sentence).with_setting(setting));
        }
        self.find_program(docker, spec, id, &found).await?;
        let options = AttachContainerOptionsBuilder::default().stdin(true).stdout(true).stderr(true).stream(true).build();
        let attached = self.engine.call(QUICK, docker.attach_container(id, Some(options))).await;
        let attached = attached.map_err(|error| engine::fault("attaching to it", error))?;
        let started = self.engine.call(SLOW, docker.start_container(id, None::<StartContainerOptions>)).await;
        started.map_err(|error| start_fault(spec, error))?;
        Ok(attached)
    }

    /// Refuses a program that is not in the image. Left to itself, the container's first process would exit with 127 for
    /// it, which nobody could tell from a program that exits with 127.
    async fn find_program(&self, docker: &Docker, spec: &LaunchSpec, id: &str, found: &ContainerInspectResponse) -> Result<(), Fault> {
        let (Some(image), Some(program)) = (&found.image, &found.path) else { return Ok(()) };
        let known = (image.clone(), program.clone());
        if self.programs.lock().unwrap_or_else(PoisonError::into_inner).contains(&known) {
            return Ok(());
        }
        let env = found.config.as_ref().and_then(|config| config.env.as_ref());
        for path in candidates(program, env.into_iter().flatten().map(String::as_str)) {
            let options = ContainerArchiveInfoOptionsBuilder::default().path(&path).build();
            match self.engine.call(QUICK, docker.get_container_archive_info(id, Some(options))).await {
                Ok(stat) if stat.file_mode & ANY_EXECUTE_BIT != 0 && stat.file_mode & DIRECTORY == 0 => {
                    self.programs.lock().unwrap_or_else(PoisonError::into_inner).insert(known);
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) if engine::status(&error) == Some(404) => {}
                Err(error) => return Err(engine::fault("looking for its program", error)),
            }
        }
        let sentence = format!("the program `{program}` of agent `{}` is not in its image, or cannot be executed", spec.agent.name);
        Err(Fault::new(FaultKind::Refused, sentence))
    }
}

/// Where `program` may be: itself when it is a path, else in the folders of `PATH`.
fn candidates<'a>(program: &str, env: impl Iterator<Item = &'a str>) -> Vec<String> {
    if program.starts_with('/') {
        return vec![program.to_owned()];
    }
    if program.contains('/') {
        // From the working directory, which is empty at the start; the engine would look from the root.
        return Vec::new();
    }
    let path = env.filter_map(|entry| entry.strip_prefix("PATH=")).last().unwrap_or("/usr/local/bin:/usr/bin:/bin");
    path.split(':').filter(|folder| folder.starts_with('/')).map(|folder| format!("{folder}/{program}")).collect()
}

fn status_of<T>(answer: &Result<T, DockerError>) -> Option<u16> {
    answer.as_ref().err().and_then(engine::status)
}

fn start_fault(spec: &LaunchSpec, error: DockerError) -> Fault {
    // The engine answers 500 here, though no other engine would do better.
    let too_small = matches!(&error, DockerError::DockerResponseServerError { message, .. } if message.contains("memory limit too low"));
    if too_small {
        let sentence = format!("the memory limit of agent `{}` is too small for a container to start", spec.agent.name);
        return Fault::new(FaultKind::Refused, sentence).with_source(error);
    }
    engine::fault("starting it", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_program_is_looked_up_in_the_containers_path() {
        let env = ["PATH=/ignored", "LANG=C", "PATH=/usr/bin:relative:/bin"];
        assert_eq!(candidates("python3", env.into_iter()), ["/usr/bin/python3", "/bin/python3"]);
        assert_eq!(candidates("/x.py", env.into_iter()), ["/x.py"]);
        assert!(candidates("./x.py", env.into_iter()).is_empty());
    }
}
