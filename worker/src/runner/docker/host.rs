//! Whether this process and the engine see the same mounts, so that a workspace that is mounted here can be bound into a
//! container there.

use std::fs;
use std::path::PathBuf;

use tokio::net::UnixStream;
use tokio::sync::OnceCell;

use super::super::workspace::Workspaces;
use super::engine::{Engine, QUICK};

/// Words of the engine that mean that its containers' uids are not the host's.
const OTHER_UIDS: [&str; 2] = ["name=userns", "name=rootless"];

/// Workspaces, once it is known whether they can be had.
#[derive(Debug)]
pub(super) struct HostWorkspaces {
    workspaces: Workspaces,
    can_be_had: OnceCell<bool>,
}

impl HostWorkspaces {
    pub(super) fn new(workspaces: Workspaces) -> Self {
        Self { workspaces, can_be_had: OnceCell::new() }
    }

    /// For sweeping: what an earlier life mounted is unmounted, whatever is possible now.
    pub(super) const fn all(&self) -> &Workspaces {
        &self.workspaces
    }

    /// For making new ones; `None` where they cannot be had, or the engine does not answer now.
    pub(super) async fn ready(&self, engine: &Engine) -> Option<&Workspaces> {
        let can_be_had = self.can_be_had.get_or_try_init(async || self.find_out(engine).await).await;
        can_be_had.is_ok_and(|can_be_had| *can_be_had).then_some(&self.workspaces)
    }

    /// `Err` when it cannot be said now.
    async fn find_out(&self, engine: &Engine) -> Result<bool, ()> {
        let Some(socket) = engine.socket() else { return Ok(false) };
        let without = match self.hindrance(&socket, engine).await? {
            Some(hindrance) => hindrance,
            None => match self.workspaces.prove() {
                Ok(()) => {
                    tracing::debug!("workspaces are mounted by this worker; what runs leave in them can be fetched");
                    return Ok(true);
                }
                Err(error) => format!("this process may not mount: {error}"),
            },
        };
        tracing::info!(reason = without, "files of runs are not kept, and messages cannot bring any");
        Ok(false)
    }

    async fn hindrance(&self, socket: &PathBuf, engine: &Engine) -> Result<Option<String>, ()> {
        let peer = UnixStream::connect(socket).await.and_then(|stream| stream.peer_cred()).map_err(drop)?;
        let mounts_of = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
        let theirs = peer.pid().and_then(|pid| mounts_of(&pid.to_string()));
        if theirs.is_none() || theirs != mounts_of("self") {
            return Ok(Some("the container engine does not see the mounts of this process".to_owned()));
        }
        let docker = engine.client().await.map_err(drop)?;
        let info = engine.call(QUICK, docker.info()).await.map_err(drop)?;
        let options = info.security_options.unwrap_or_default();
        let other_uids = options.iter().any(|option| OTHER_UIDS.iter().any(|word| option.starts_with(word)));
        Ok(other_uids.then(|| "the container engine maps uids".to_owned()))
    }
}
