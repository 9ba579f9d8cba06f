//! One container by its id, without its streams: asked about, killed, waited for, removed.

use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error as DockerError;
use bollard::models::ContainerState;
use bollard::query_parameters::{KillContainerOptionsBuilder, RemoveContainerOptionsBuilder, WaitContainerOptionsBuilder};
use futures::StreamExt;

use super::super::{Fault, FaultKind};
use super::engine::{self, Engine, QUICK, SLOW};

/// How long a kill may take until the engine confirms it.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A container on an engine.
#[derive(Debug, Clone)]
pub(super) struct Container {
    engine: Arc<Engine>,
    id: String,
}

impl Container {
    /// The container `id`, which may also be a name.
    pub(super) fn new(engine: Arc<Engine>, id: String) -> Self {
        Self { engine, id }
    }

    /// Its id.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Waits until it is not running and returns its exit code.
    ///
    /// To be asked after the start returned: no exit can slip through then, for a container that ended already answers at
    /// once. Before the start it would answer 0 at once.
    pub(super) async fn stopped(&self) -> Result<i64, Fault> {
        let docker = self.engine.client().await?;
        let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
        let mut waiting = Box::pin(docker.wait_container(&self.id, Some(options)));
        match waiting.next().await {
            Some(Ok(answer)) => Ok(answer.status_code),
            // The client turns every exit code but 0 into this.
            Some(Err(DockerError::DockerContainerWaitError { code, .. })) => Ok(code),
            Some(Err(error)) => {
                self.engine.note_failure(&error);
                Err(engine::fault("waiting for the end of a container", error))
            }
            None => Err(Fault::new(FaultKind::Engine, "the container engine hung up while a container was waited for")),
        }
    }

    /// What the engine knows about its state.
    pub(super) async fn state(&self) -> Result<ContainerState, Fault> {
        let docker = self.engine.client().await?;
        let found = self.engine.call(QUICK, docker.inspect_container(&self.id, None)).await;
        Ok(found.map_err(|error| engine::fault("inspecting a container", error))?.state.unwrap_or_default())
    }

    /// Freezes all of its processes; returns when they are.
    pub(super) async fn pause(&self) -> Result<(), Fault> {
        let docker = self.engine.client().await?;
        self.engine.call(QUICK, docker.pause_container(&self.id)).await.map_err(|error| engine::fault("freezing a container", error))
    }

    /// Lets them go on.
    pub(super) async fn unpause(&self) -> Result<(), Fault> {
        let docker = self.engine.client().await?;
        self.engine.call(QUICK, docker.unpause_container(&self.id)).await.map_err(|error| engine::fault("thawing a container", error))
    }

    /// Kills it and returns when the engine confirms that it does not run. One that is dead or gone is fine.
    pub(super) async fn kill(&self) -> Result<(), Fault> {
        tokio::time::timeout(KILL_LIMIT, self.kill_unlimited()).await.unwrap_or_else(|_| {
            let sentence = format!("the container engine did not confirm a kill within {} s", KILL_LIMIT.as_secs());
            Err(Fault::new(FaultKind::Engine, sentence))
        })
    }

    async fn kill_unlimited(&self) -> Result<(), Fault> {
        let docker = self.engine.client().await?;
        let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
        match self.engine.call(KILL_LIMIT, docker.kill_container(&self.id, Some(options))).await {
            Ok(()) => {}
            Err(error) if engine::status(&error) == Some(404) => return Ok(()),
            // Not running; what follows makes sure of it.
            Err(error) if engine::status(&error) == Some(409) => {}
            Err(error) => return Err(engine::fault("killing a container", error)),
        }
        self.stopped().await.map(|_code| ())
    }

    /// Kills and removes it with everything it wrote. One that is gone, or on its way, is fine.
    pub(super) async fn remove(&self) -> Result<(), Fault> {
        let docker = self.engine.client().await?;
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.engine.call(SLOW, docker.remove_container(&self.id, Some(options))).await {
            Ok(()) => Ok(()),
            Err(error) if engine::status(&error) == Some(404) => Ok(()),
            // Somebody is removing it already; what matters to callers is that it is dead by now.
            Err(error) if engine::status(&error) == Some(409) => self.kill().await,
            Err(error) => Err(engine::fault("removing a container", error)),
        }
    }
}
