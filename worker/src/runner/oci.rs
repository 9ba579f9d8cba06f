//! The runner that calls a container runtime itself: no daemon, nothing between the worker and the kernel but one process
//! for each container, which waits for it.
//!
//! A launch is: the image, unpacked once for everybody; a folder and a control group with its limits; the runtime, started
//! inside that group with three pipes; a look at what the kernel holds. What a crash leaves behind is found by its folder or
//! its group, whose names are the container's, and the sweeper removes both.

mod container;
mod groups;
mod images;
mod launch;
mod launcher;
mod proof;
mod runtime;
mod sandbox;
mod seccomp;
mod spec;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::OnceLock;

use async_trait::async_trait;
use futures::{StreamExt, stream};

use super::workspace::Workspaces;
use super::{Component, ContainerKey, EngineInfo, Fault, FaultKind, LaunchSpec, Runner, Sandbox};
use container::{Container, fault};
use groups::{Groups, Hierarchies};
use images::Images;
use launcher::Launcher;
use runtime::Runtime;

/// The lowest base of container uids: below it are the uids of the host's own accounts.
const LOWEST_UID_BASE: u32 = 1000;
/// Removals at once.
const AT_ONCE: usize = 4;

/// Which runtime, and how containers are told from anybody else's.
#[derive(Debug, Clone)]
pub struct OciOptions {
    /// Part of the path of every folder and control group. One installation has one; nothing with another is ever touched.
    pub instance: String,
    /// The container runtime by name or path: `crun`, `runc`, `runsc`. Without: `crun`, else `runc`.
    pub runtime: Option<String>,
    /// A container runs as the uid and gid `uid_base` + place, so that the kernel's quotas per uid are never shared.
    pub uid_base: u32,
    /// Where images are unpacked, shared by all workers of the machine.
    pub images: PathBuf,
    /// Where containers have their folders while they live; best in memory.
    pub state: PathBuf,
    /// The Docker engine in which bare image names are looked up. It need not be there.
    pub docker_host: String,
}

/// Starts containers with a runtime of this machine.
#[derive(Debug)]
pub struct OciRunner {
    options: OciOptions,
    runtime: Runtime,
    groups: Groups,
    images: Images,
    launcher: Launcher,
    seccomp: serde_json::Value,
    /// The same as the kernel takes it, once the runtime has compiled it: that takes longer than the rest of a start.
    compiled: OnceLock<String>,
    workspaces: Option<Workspaces>,
}

impl OciRunner {
    /// A runner on this machine. Makes nothing yet.
    ///
    /// # Errors
    /// [`FaultKind::Refused`] when an option cannot be right, or something is missing that containers need: a sentence that
    /// says what.
    pub fn connect(options: OciOptions) -> Result<Self, Fault> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if options.instance.is_empty() || !options.instance.chars().all(plain) {
            let sentence = "the instance must be letters, digits, hyphens and underscores: it is a part of paths";
            return Err(Fault::new(FaultKind::Refused, sentence));
        }
        if options.uid_base < LOWEST_UID_BASE {
            let sentence = format!("containers must not run as uids of the host: the uid base is at least {LOWEST_UID_BASE}");
            return Err(Fault::new(FaultKind::Refused, sentence));
        }
        let hierarchies = Hierarchies::find()?;
        writable(&hierarchies)?;
        let runtime = Runtime::find(options.runtime.as_deref())?;
        Ok(Self {
            launcher: Launcher::new(runtime.hidden(&hierarchies)),
            groups: Groups::new(hierarchies, options.instance.clone()),
            images: Images::new(options.images.clone(), options.docker_host.clone()),
            seccomp: seccomp::profile()?,
            compiled: OnceLock::new(),
            workspaces: None,
            runtime,
            options,
        })
    }

    /// The same with `/workspace` on a file system that the worker mounts: what a run left there can be read then.
    #[must_use]
    pub fn with_workspaces(mut self, workspaces: Workspaces) -> Self {
        self.workspaces = Some(workspaces);
        self
    }

    /// The folder of this instance's containers.
    fn state(&self) -> PathBuf {
        self.options.state.join(&self.options.instance)
    }

    /// Names of everything of this instance that is on this machine.
    fn names(&self) -> std::io::Result<BTreeSet<String>> {
        let mut names: BTreeSet<String> = self.groups.names()?.into_iter().collect();
        match std::fs::read_dir(self.state()) {
            Ok(entries) => names.extend(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(names)
    }

    /// Leaves no trace of an instance that has nothing left.
    fn remove_empty(&self) {
        self.groups.remove_empty();
        // It fails while a container has a folder in it.
        let _not_empty = std::fs::remove_dir(self.state());
    }
}

impl Drop for OciRunner {
    fn drop(&mut self) {
        self.remove_empty();
    }
}

#[async_trait]
impl Runner for OciRunner {
    async fn launch(&self, spec: &LaunchSpec) -> Result<Box<dyn Sandbox>, Fault> {
        self.launch_container(spec).await.map(|sandbox| Box::new(sandbox) as Box<dyn Sandbox>)
    }

    async fn sweep(&self, live: &(dyn for<'a> Fn(&'a ContainerKey) -> bool + Send + Sync)) -> Result<usize, Fault> {
        let names = self.names().map_err(|error| fault("listing containers", error))?;
        // A name that cannot be read names no run that could be alive.
        let left = names.into_iter().filter(|name| name.parse().map_or(true, |key| !live(&key)));
        let removals = left.map(|name| {
            let container = Container::new(&self.groups, &self.state(), &name);
            async move { container.remove().await }
        });
        let removals: Vec<_> = stream::iter(removals).buffer_unordered(AT_ONCE).collect().await;
        let mut removed = 0;
        for removal in removals {
            removal?;
            removed += 1;
        }
        if let Some(workspaces) = &self.workspaces {
            // Their containers are gone by now. They do not count: each has had one.
            workspaces.sweep(&|key| live(key)).map_err(|error| fault("unmounting workspaces that are left", error))?;
        }
        self.remove_empty();
        Ok(removed)
    }

    async fn ping(&self) -> Result<EngineInfo, Fault> {
        writable(self.groups.hierarchies())?;
        let description = format!("{}, {}, no engine", self.runtime.version, self.groups.hierarchies().describe());
        Ok(EngineInfo { description })
    }

    async fn components(&self) -> Result<Vec<Component>, Fault> {
        Ok(self.runtime.components())
    }

    async fn image_digest(&self, image: &str) -> Result<Option<String>, Fault> {
        self.images.digest(image).await
    }
}

/// Whether this process may make control groups and mounts.
fn writable(hierarchies: &Hierarchies) -> Result<(), Fault> {
    if !rustix::process::geteuid().is_root() {
        return Err(Fault::new(FaultKind::Refused, "only root may start containers without an engine: run the worker as root, or use Docker"));
    }
    match hierarchies.roots().find(|root| rustix::fs::access(*root, rustix::fs::Access::WRITE_OK).is_err()) {
        None => Ok(()),
        Some(root) => {
            let sentence = "the control groups of this machine may not be changed from here (a container without its own?)";
            Err(Fault::new(FaultKind::Refused, sentence).with_source(format!("{} is read-only", root.display())))
        }
    }
}
