//! The runner over a Docker engine.
//!
//! A launch is: create, inspect what the engine made of it, attach, start. Whatever of it fails removes the container
//! again; what a crash leaves behind carries our labels, and the sweeper finds it. The end of a container is asked for
//! after its start returned, so that no exit is missed; the engine's own removal at exit is never used, because it loses
//! the exit code and the reason of fast ones. Whether it was the program's own end is told by the engine's events.

mod container;
mod engine;
mod host;
mod image;
mod labels;
mod launch;
mod sandbox;
mod settings;
mod sweep;
mod usage;
mod versions;
mod watch;

use std::sync::Arc;

use async_trait::async_trait;

use super::workspace::Workspaces;
use super::{Component, ContainerKey, EngineInfo, Fault, FaultKind, LaunchSpec, Runner, Sandbox};
use engine::{Engine, QUICK};

/// The lowest base of container uids: below it are the uids of the host's own accounts.
const LOWEST_UID_BASE: u32 = 1000;

/// Which engine, and how containers are told from anybody else's.
#[derive(Debug, Clone)]
pub struct DockerOptions {
    /// `unix:///var/run/docker.sock`, `tcp://host:port` or `http://host:port`.
    pub host: String,
    /// The value of the owner label. One installation has one; no container with another is ever touched.
    pub instance: String,
    /// The container runtime by the engine's name for it, for example `runsc`; the engine's default without.
    pub runtime: Option<String>,
    /// A container runs as the uid and gid `uid_base` + place, so that the kernel's quotas per uid are never shared.
    pub uid_base: u32,
}

/// Starts containers on a Docker engine.
#[derive(Debug)]
pub struct DockerRunner {
    options: DockerOptions,
    engine: Arc<Engine>,
    programs: launch::KnownPrograms,
    watch: Arc<watch::EngineWatch>,
    workspaces: Option<host::HostWorkspaces>,
}

impl DockerRunner {
    /// A runner over the engine at `options.host`, which need not be up: the first call connects, and every call after a
    /// failed one connects anew.
    ///
    /// # Errors
    /// [`FaultKind::Refused`] when an option cannot be right.
    pub fn connect(options: DockerOptions) -> Result<Self, Fault> {
        if options.instance.is_empty() {
            return Err(Fault::new(FaultKind::Refused, "the instance label must not be empty: it tells our containers from others"));
        }
        if options.uid_base < LOWEST_UID_BASE {
            let sentence = format!("containers must not run as uids of the host: the uid base is at least {LOWEST_UID_BASE}");
            return Err(Fault::new(FaultKind::Refused, sentence));
        }
        let engine = Arc::new(Engine::new(options.host.clone())?);
        Ok(Self { options, engine, programs: launch::KnownPrograms::default(), watch: Arc::default(), workspaces: None })
    }

    /// The same with `/workspace` on a file system that the worker mounts, where it and the engine can: what a run left there
    /// can be read then. Elsewhere it is the engine's own, and nobody sees it.
    #[must_use]
    pub fn with_workspaces(mut self, workspaces: Workspaces) -> Self {
        self.workspaces = Some(host::HostWorkspaces::new(workspaces));
        self
    }
}

#[async_trait]
impl Runner for DockerRunner {
    async fn launch(&self, spec: &LaunchSpec) -> Result<Box<dyn Sandbox>, Fault> {
        self.launch_container(spec).await.map(|sandbox| Box::new(sandbox) as Box<dyn Sandbox>)
    }

    async fn sweep(&self, live: &(dyn for<'a> Fn(&'a ContainerKey) -> bool + Send + Sync)) -> Result<usize, Fault> {
        let swept = sweep::sweep(&self.engine, &self.options.instance, live).await?;
        if let Some(workspaces) = &self.workspaces {
            // Their containers are gone by now. They do not count: each has had one.
            let swept = workspaces.all().sweep(&|key| live(key));
            swept.map_err(|error| Fault::new(FaultKind::Engine, "workspaces that are left cannot be unmounted").with_source(error))?;
        }
        Ok(swept)
    }

    async fn ping(&self) -> Result<EngineInfo, Fault> {
        let docker = self.engine.client().await?;
        self.watch.ensure(&docker, &self.options.instance);
        let version = self.engine.call(QUICK, docker.version()).await;
        let version = version.map_err(|error| engine::fault("asking for its version", error))?;
        let mut description =
            format!("Docker {}, API {}", version.version.unwrap_or_else(|| "of unknown version".to_owned()), docker.client_version());
        if let Some(runc) = version.components.iter().flatten().find(|component| component.name == "runc") {
            description.push_str(&format!(", runc {}", runc.version));
        }
        Ok(EngineInfo { description })
    }

    async fn components(&self) -> Result<Vec<Component>, Fault> {
        let docker = self.engine.client().await?;
        let version = self.engine.call(QUICK, docker.version()).await;
        let version = version.map_err(|error| engine::fault("asking for its version", error))?;
        Ok(versions::of(&version, self.options.runtime.as_deref()))
    }

    async fn image_digest(&self, image: &str) -> Result<Option<String>, Fault> {
        image::digest(&self.engine, image).await
    }
}
