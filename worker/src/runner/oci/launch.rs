//! From a spec to a started container.

use std::io;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quayside_shared::agent::{Agent, Network};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::AsyncReadExt;
use tokio::process::Child;
use tokio::time::Instant;

use super::super::workspace::Workspace;
use super::super::{Fault, FaultKind, LaunchSpec};
use super::OciRunner;
use super::container::{Container, fault};
use super::groups::{Limits, OomWatch, Version};
use super::images::{Image, is_program};
use super::launcher::{Start, detached};
use super::proof::{Seen, Wanted};
use super::runtime::Kind;
use super::sandbox::OciSandbox;
use super::spec::{self, INIT, Parts, WORKSPACE_MOUNT};

/// Between two looks at how far a start is: the runtime has no event for it.
const LOOK: Duration = Duration::from_millis(1);
/// A start takes some ten milliseconds; a machine that takes longer than this is out of order.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A program that is ending when it is looked at has ended by then.
const ENDING: Duration = Duration::from_millis(200);
/// Where programs are looked for when an image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// As much as an error of the runtime may tell the log.
const ERROR_LENGTH: u64 = 4 << 10;
/// Nothing is ended for want of memory before everything else is.
const NEVER: &str = "-1000";

impl OciRunner {
    /// Prepares, starts, proves; a container that did not get that far is removed again.
    pub(super) async fn launch_container(&self, spec: &LaunchSpec) -> Result<OciSandbox, Fault> {
        let agent = &spec.agent;
        let uid = self.options.uid_base.checked_add(spec.place);
        let uid = uid.ok_or_else(|| Fault::new(FaultKind::Refused, "there is no uid left for this place"))?;
        let limits = limits(agent, self.runtime.processes_inside())?;
        if agent.network != Network::None {
            let sentence = format!("agent `{}` asks for a network, which this runner does not give: `[runner] kind = \"docker\"` does", agent.name);
            return Err(Fault::new(FaultKind::Refused, sentence));
        }
        let image = self.images.of(agent).await?;
        let workspace = self.workspace(spec, uid)?;
        match self.launch_in(spec, &image, uid, &limits, workspace.as_ref()).await {
            Ok(launched) => Ok(launched.with_workspace(workspace)),
            Err(fault) => {
                if let Some(Err(error)) = workspace.map(Workspace::remove) {
                    tracing::warn!(%error, "the workspace of a container that did not start is left to the sweeper");
                }
                Err(fault)
            }
        }
    }

    fn workspace(&self, spec: &LaunchSpec, uid: u32) -> Result<Option<Workspace>, Fault> {
        let Some(workspaces) = &self.workspaces else { return Ok(None) };
        let made = workspaces.make(&spec.key, spec.agent.workspace, uid);
        made.map(Some).map_err(|error| fault("mounting a workspace", error))
    }

    async fn launch_in(
        &self,
        spec: &LaunchSpec,
        image: &Image,
        uid: u32,
        limits: &Limits,
        workspace: Option<&Workspace>,
    ) -> Result<OciSandbox, Fault> {
        let agent = &spec.agent;
        let name = spec.key.name();
        let container = Container::new(&self.groups, &self.state(), &name);
        let command = image.command(agent);
        let env = environment(image, agent);
        refuse_image(image, agent, &command, &env)?;
        let handed_over = container.state.join(WORKSPACE_MOUNT);
        let bound = workspace.map(|workspace| if self.launcher.is_apart() { handed_over.as_path() } else { workspace.path() });
        let parts = Parts {
            rootfs: &image.rootfs,
            init: &self.runtime.init,
            uid,
            env,
            command: &command,
            workspace: bound,
            workspace_bytes: agent.workspace,
            cgroup: self.runtime.own_group(&container.group),
            seccomp: &self.seccomp,
            compiled: self.compiled.get().map(String::as_str),
        };
        let config = spec::config(&parts).to_string();
        if let Err(error) = self.prepare(&container, &name, limits, &config) {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(fault("preparing a container", error));
            }
            // An earlier try of ours.
            container.remove().await?;
            self.prepare(&container, &name, limits, &config).map_err(|error| fault("preparing a container", error))?;
        }
        let mount = match workspace.filter(|_| self.launcher.is_apart()) {
            Some(workspace) => Some(detached(workspace.path()).map_err(|error| fault("handing a workspace over", error))?),
            None => None,
        };
        let is_handed_over = mount.is_some();
        let launched = self.bring_up(&container, &name, spec, uid, limits, mount.map(|mount| (mount, handed_over.clone()))).await;
        if is_handed_over && let Err(error) = self.launcher.take_back(handed_over) {
            tracing::warn!(%error, "a workspace that was handed over cannot be taken back");
        }
        match launched {
            Ok(sandbox) => {
                self.note_compiled(&container, &name);
                Ok(sandbox)
            }
            Err(fault) => {
                if let Err(error) = container.remove().await {
                    tracing::warn!(%error, "a container that did not start is left to the sweeper");
                }
                Err(fault)
            }
        }
    }

    /// Keeps what the runtime compiled for this container, for those that follow.
    fn note_compiled(&self, container: &Container, name: &str) {
        if self.runtime.kind == Kind::Crun
            && self.compiled.get().is_none()
            && let Ok(filter) = std::fs::read(container.state.join("runtime").join(name).join("seccomp.bpf"))
            && !filter.is_empty()
        {
            // Of two that come at once, either will do.
            let _known = self.compiled.set(STANDARD.encode(filter));
        }
    }

    /// Makes the folder and the group of a container. All of it in memory: it takes a fraction of a millisecond.
    fn prepare(&self, container: &Container, name: &str, limits: &Limits, config: &str) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(self.state())?;
        std::fs::DirBuilder::new().mode(0o700).create(&container.state)?;
        std::fs::DirBuilder::new().mode(0o700).create(container.state.join(WORKSPACE_MOUNT))?;
        // An agent's keys are among its variables.
        let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(container.state.join("config.json"));
        file?.write_all(config.as_bytes())?;
        self.groups.create(name, limits).map(drop)
    }

    async fn bring_up(
        &self,
        container: &Container,
        name: &str,
        spec: &LaunchSpec,
        uid: u32,
        limits: &Limits,
        mount: Option<(OwnedFd, PathBuf)>,
    ) -> Result<OciSandbox, Fault> {
        let makes_a_group = self.runtime.own_group(&container.group).is_some() && self.groups.hierarchies().version() == Version::One;
        let oom = if makes_a_group { Some(OomWatch::of(&container.group).map_err(|error| fault("watching the memory limit", error))?) } else { None };
        let start = Start {
            entries: self.runtime.entries(&container.group, self.groups.devices_entry()),
            command: self.runtime.command(&container.state, name),
            mount,
        };
        let started = self.launcher.start(start).await;
        let mut child = started.map_err(|error| fault("starting the container runtime", error))?;
        let init = match self.begun(&mut child, container).await? {
            Begun::Running(pid) => Some(pid),
            Begun::Ended => None,
            Begun::Failed => return Err(failed(&mut child, container, &spec.agent).await),
        };
        let process = match init.map(|pid| self.prove(pid, &child, container, uid, limits)) {
            Some(Ok(process)) => Some(process),
            // It ended while it was looked at: there is nothing to send a request to.
            Some(Err(Unproven::Ended)) | None => None,
            // One that is ending has left its groups already.
            Some(Err(Unproven::Different(_))) if tokio::time::timeout(ENDING, child.wait()).await.is_ok() => None,
            Some(Err(Unproven::Different(what))) => {
                let sentence = format!("the container runtime does not enforce `{what}` as asked for, so the container was ended before its request");
                return Err(Fault::new(FaultKind::Refused, sentence));
            }
        };
        Ok(OciSandbox::new(container.clone(), child, process, limits.memory, oom))
    }

    /// Waits until the first process runs our init, or the runtime has ended.
    async fn begun(&self, child: &mut Child, container: &Container) -> Result<Begun, Fault> {
        let deadline = Instant::now() + START_LIMIT;
        let pid_file = container.state.join("pid");
        // Where gVisor keeps the program, the process is its kernel.
        let program = if self.runtime.kind == Kind::Runsc { None } else { INIT.rsplit('/').next() };
        loop {
            let ended = child.try_wait().map_err(|error| fault("waiting for the container runtime", error))?.is_some();
            let pid = std::fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse::<i32>().ok());
            match pid {
                Some(_) if ended => return Ok(if log(&container.state).is_empty() { Begun::Ended } else { Begun::Failed }),
                None if ended => return Ok(Begun::Failed),
                Some(pid) => {
                    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                    if program.is_none_or(|program| Seen::program(&status) == program) {
                        return Ok(Begun::Running(pid));
                    }
                }
                None => {}
            }
            if Instant::now() > deadline {
                return Err(Fault::new(
                    FaultKind::Engine,
                    format!("the container runtime did not start a container within {} s", START_LIMIT.as_secs()),
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Reads back what the kernel holds, and takes hold of the first process.
    fn prove(&self, pid: i32, child: &Child, container: &Container, uid: u32, limits: &Limits) -> Result<OwnedFd, Unproven> {
        let process = Pid::from_raw(pid).ok_or(Unproven::Ended)?;
        let held = pidfd_open(process, PidfdFlags::empty()).map_err(|_| Unproven::Ended)?;
        // After it is held: now the number cannot come to mean another process.
        let seen = Seen::read(pid).map_err(|_| Unproven::Ended)?;
        let wanted = Wanted { uid, group: container.group.path(), kernel: self.runtime.kind != Kind::Runsc };
        if let Some(what) = seen.difference(&wanted).or_else(|| container.group.difference(limits)) {
            return Err(Unproven::Different(what));
        }
        // The runtime waits inside, and must not be what is ended when the memory runs out.
        if self.runtime.kind == Kind::Crun
            && let Some(id) = child.id()
        {
            std::fs::write(format!("/proc/{id}/oom_score_adj"), NEVER).map_err(|_| Unproven::Ended)?;
        }
        Ok(held)
    }
}

/// How a start came out.
enum Begun {
    /// The process with this id is the container's first.
    Running(i32),
    /// The program has ended already.
    Ended,
    /// There was no program.
    Failed,
}

/// Why there is no proof.
enum Unproven {
    Ended,
    Different(&'static str),
}

fn limits(agent: &Agent, of_the_runtime: u32) -> Result<Limits, Fault> {
    let refused = |what: &str| Fault::new(FaultKind::Refused, format!("the {what} of agent `{}` is out of range", agent.name));
    if !(1e-9..1e6).contains(&agent.cpus) {
        return Err(refused("cpus"));
    }
    if agent.memory == 0 || i64::try_from(agent.memory).is_err() {
        return Err(refused("memory"));
    }
    let pids = agent.pids.checked_add(of_the_runtime).filter(|_| agent.pids > 0).ok_or_else(|| refused("pids"))?;
    Ok(Limits { memory: agent.memory, cpus: agent.cpus, pids })
}

/// The image's variables, then ours, then the agent's: the last of a name counts.
fn environment(image: &Image, agent: &Agent) -> Vec<String> {
    let mut env = vec![PATH.to_owned()];
    env.extend(image.config.env.iter().flatten().cloned());
    env.extend(["HOME=/workspace", "HOSTNAME=sandbox", "LANG=C.UTF-8"].map(str::to_owned));
    env.extend(agent.env.iter().map(|(name, value)| format!("{name}={value}")));
    env
}

/// Refuses what would not run as asked for. A program that is not there would make the first process exit with 127, which
/// nobody could tell from a program that exits with 127.
fn refuse_image(image: &Image, agent: &Agent, command: &[String], env: &[String]) -> Result<(), Fault> {
    if image.config.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty()) {
        let sentence = format!("the image of agent `{}` declares volumes (`Mounts`), which would be disks without a limit", agent.name);
        return Err(Fault::new(FaultKind::Refused, sentence));
    }
    let Some(program) = command.first() else {
        return Err(Fault::new(FaultKind::Refused, format!("agent `{}` has no command, and neither has its image", agent.name)));
    };
    if candidates(program, env).iter().any(|path| is_program(&image.rootfs, path)) {
        return Ok(());
    }
    let sentence = format!("the program `{program}` of agent `{}` is not in its image, or cannot be executed", agent.name);
    Err(Fault::new(FaultKind::Refused, sentence))
}

/// Where `program` may be: itself when it is a path, else in the folders of `PATH`.
fn candidates(program: &str, env: &[String]) -> Vec<String> {
    if program.starts_with('/') {
        return vec![program.to_owned()];
    }
    if program.contains('/') {
        // From the working directory, which is empty at the start.
        return Vec::new();
    }
    let path = env.iter().filter_map(|entry| entry.strip_prefix("PATH=")).next_back().unwrap_or_default();
    path.split(':').filter(|folder| folder.starts_with('/')).map(|folder| format!("{folder}/{program}")).collect()
}

/// What a runtime that started nothing had to say.
async fn failed(child: &mut Child, container: &Container, agent: &Agent) -> Fault {
    let mut said = log(&container.state);
    if let Some(stderr) = child.stderr.take() {
        let mut text = Vec::new();
        // It has ended, so there is an end to what it said.
        let _as_much_as_can_be_read = stderr.take(ERROR_LENGTH).read_to_end(&mut text).await;
        said.push_str(&String::from_utf8_lossy(&text));
    }
    if container.group.oom_kills() > 0 {
        return Fault::new(FaultKind::Refused, format!("the memory limit of agent `{}` is too small for a container to start", agent.name));
    }
    fault("starting a container", io::Error::other(said.trim().to_owned()))
}

fn log(state: &Path) -> String {
    std::fs::read_to_string(state.join("log")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_program_is_looked_up_in_the_containers_path() {
        let env = ["PATH=/ignored", "LANG=C", "PATH=/usr/bin:relative:/bin"].map(str::to_owned);
        assert_eq!(candidates("python3", &env), ["/usr/bin/python3", "/bin/python3"]);
        assert_eq!(candidates("/x.py", &env), ["/x.py"]);
        assert!(candidates("./x.py", &env).is_empty());
    }

    #[test]
    fn an_agent_that_cannot_be_limited_is_refused() {
        let agent = Agent::new("python".parse().unwrap(), "x".to_owned(), Vec::new());
        assert_eq!(limits(&agent, 1).unwrap(), Limits { memory: 1 << 30, cpus: 1.0, pids: 129 });
        for cpus in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(limits(&Agent { cpus, ..agent.clone() }, 1).unwrap_err().kind(), FaultKind::Refused, "{cpus}");
        }
        for agent in [Agent { memory: 0, ..agent.clone() }, Agent { memory: u64::MAX, ..agent.clone() }, Agent { pids: 0, ..agent.clone() }] {
            assert_eq!(limits(&agent, 1).unwrap_err().kind(), FaultKind::Refused);
        }
    }
}
