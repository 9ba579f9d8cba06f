//! Images, unpacked once for all containers of this machine.
//!
//! Below the images folder each image has a folder under its digest: the file system that containers share, read-only, and
//! the part of its configuration that matters. It appears whole, by a rename, so whoever finds it may use it.

mod reference;
mod unpack;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::errors::Error as DockerError;
use quayside_shared::agent::Agent;
use serde::{Deserialize, Serialize};

use super::super::{Fault, FaultKind};
pub(super) use reference::Reference;

/// A launch believes for so long what a name stood for.
const BELIEVED: Duration = Duration::from_secs(5);
/// An engine that only has to look something up in its tables.
const LOOK_UP: Duration = Duration::from_secs(10);

/// What of an image's configuration a container gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageConfig {
    #[serde(default, rename = "Env")]
    pub env: Option<Vec<String>>,
    #[serde(default, rename = "Entrypoint")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(default, rename = "Cmd")]
    pub cmd: Option<Vec<String>>,
    /// Each would be a writable disk without a limit.
    #[serde(default, rename = "Volumes")]
    pub volumes: Option<HashMap<String, serde_json::Value>>,
}

/// An unpacked image.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// Tells it from every other.
    pub digest: String,
    /// Its file system, which nobody writes to.
    pub rootfs: PathBuf,
    pub config: ImageConfig,
}

/// What a name stands for.
#[derive(Debug, Clone)]
struct Named {
    /// The folder's name, and what `quayside doctor` shows where there is nothing better.
    digest: String,
    /// The digest under which a registry knows it.
    pushed: Option<String>,
    /// Where it is copied from when it is not unpacked yet, as arguments of `skopeo copy`.
    source: Vec<String>,
}

/// The images of this machine.
#[derive(Debug)]
pub(super) struct Images {
    folder: PathBuf,
    docker_host: String,
    docker: Mutex<Option<Docker>>,
    known: Mutex<HashMap<String, (Instant, Arc<Image>)>>,
}

impl Images {
    /// Unpacks into `folder`; bare names are looked up in the Docker engine at `docker_host`, which need not be there.
    pub(super) fn new(folder: PathBuf, docker_host: String) -> Self {
        Self { folder, docker_host, docker: Mutex::default(), known: Mutex::default() }
    }

    /// The image of an agent, unpacked if it was not yet.
    pub(super) async fn of(&self, agent: &Agent) -> Result<Arc<Image>, Fault> {
        if let Some((at, image)) = self.known().get(&agent.image)
            && at.elapsed() < BELIEVED
        {
            return Ok(Arc::clone(image));
        }
        let missing = |why: &str| {
            let sentence = format!("the image `{}` of agent `{}` is not on this machine{why}", agent.image, agent.name);
            Fault::new(FaultKind::ImageUnavailable, sentence)
        };
        let reference = Reference::read(&agent.image);
        let named = match self.look_up(&reference).await? {
            Some(named) => named,
            None if matches!(reference, Reference::Registry(_)) => {
                tracing::info!(image = agent.image, agent = %agent.name, "fetching an image");
                let fetched = unpack::fetch(&self.folder, &reference).await;
                fetched.map_err(|error| missing(" and could not be fetched").with_source(error))?
            }
            None => return Err(missing("")),
        };
        let unpacked = unpack::unpacked(&self.folder, &named.digest, &named.source).await;
        let image = Arc::new(unpacked.map_err(|error| missing(" in a form that can be unpacked").with_source(error))?);
        self.known().insert(agent.image.clone(), (Instant::now(), Arc::clone(&image)));
        Ok(image)
    }

    /// The digest of an image as `GET /api/agents` shows it; `None` when it is not on this machine.
    pub(super) async fn digest(&self, image: &str) -> Result<Option<String>, Fault> {
        let Some(named) = self.look_up(&Reference::read(image)).await? else { return Ok(None) };
        // Whoever asks is a worker whose agent uses it: it is not old.
        unpack::note_use(&self.folder, &named.digest);
        Ok(Some(named.pushed.unwrap_or(named.digest)))
    }

    /// What a name stands for on this machine.
    async fn look_up(&self, reference: &Reference) -> Result<Option<Named>, Fault> {
        let read = |error: std::io::Error| Fault::new(FaultKind::Engine, "an image on this machine cannot be read").with_source(error);
        match reference {
            Reference::Layout { .. } | Reference::Archive(_) => {
                let digest = reference.digest_of_file().map_err(read)?;
                Ok(digest.map(|digest| Named { digest, pushed: None, source: vec![reference.source()] }))
            }
            Reference::Local(name) | Reference::Registry(name) => {
                if let Some(found) = self.in_docker(name).await? {
                    return Ok(Some(found));
                }
                let fetched = unpack::fetched(&self.folder, reference).map_err(read)?;
                Ok(fetched.map(|digest| Named { pushed: Some(digest.clone()), digest, source: vec![reference.source()] }))
            }
        }
    }

    async fn in_docker(&self, name: &str) -> Result<Option<Named>, Fault> {
        let Some(docker) = self.docker() else { return Ok(None) };
        let answer = tokio::time::timeout(LOOK_UP, docker.inspect_image(name)).await.unwrap_or(Err(DockerError::RequestTimeoutError));
        let found = match answer {
            Ok(found) => found,
            Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => return Ok(None),
            Err(error) => {
                // Containers here need no engine; an image that was fetched before is as good without one.
                tracing::debug!(%error, "the Docker engine does not answer; images are looked for elsewhere");
                return Ok(None);
            }
        };
        let Some(id) = found.id else { return Ok(None) };
        let pushed = found.repo_digests.unwrap_or_default().into_iter().next();
        let pushed = pushed.and_then(|name| name.split_once('@').map(|(_, digest)| digest.to_owned()));
        let source = ["--src-daemon-host".to_owned(), self.docker_host.clone(), format!("docker-daemon:{id}")];
        Ok(Some(Named { source: source.to_vec(), digest: id, pushed }))
    }

    fn docker(&self) -> Option<Docker> {
        let mut docker = self.docker.lock().unwrap_or_else(PoisonError::into_inner);
        if docker.is_none() {
            let seconds = LOOK_UP.as_secs();
            let connected = if self.docker_host.starts_with("unix://") {
                Docker::connect_with_unix(&self.docker_host, seconds, &bollard::ClientVersion { major_version: 1, minor_version: 41 })
            } else {
                Docker::connect_with_http(&self.docker_host, seconds, &bollard::ClientVersion { major_version: 1, minor_version: 41 })
            };
            *docker = connected.ok();
        }
        docker.clone()
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, Arc<Image>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Image {
    /// The program that a container runs and its arguments: the agent's command, else what the image says.
    pub(super) fn command(&self, agent: &Agent) -> Vec<String> {
        if !agent.command.is_empty() {
            return agent.command.clone();
        }
        let parts = [&self.config.entrypoint, &self.config.cmd];
        parts.into_iter().flatten().flatten().cloned().collect()
    }
}

/// Whether `path` is a regular file that may be executed, in the file system below `rootfs` and nowhere else.
pub(super) fn is_program(rootfs: &Path, path: &str) -> bool {
    use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

    let Ok(root) = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else { return false };
    let found = rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS);
    let Ok(stat) = found.and_then(rustix::fs::fstat) else { return false };
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && Mode::from_raw_mode(stat.st_mode).intersects(Mode::XUSR | Mode::XGRP | Mode::XOTH)
}
