//! Kills and removes containers off the path of the runs that they served.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quayside_shared::error::chain;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::places::Place;
use crate::runner::{ContainerKey, Sandbox};
use crate::slots::Announced;

/// Containers that are removed at once: an engine does not get faster with more.
const AT_ONCE: usize = 4;
/// Containers that an attempt may leave behind before the next ones wait for their removal: their programs still run.
const LINE: usize = 16;
/// The pause before a kill that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// A started container with what it holds on to: both are given back when it is gone.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) sandbox: Box<dyn Sandbox>,
    pub(crate) key: ContainerKey,
    place: Place,
    announced: Option<Announced>,
}

impl Container {
    pub(crate) fn new(sandbox: Box<dyn Sandbox>, place: Place, announced: Announced) -> Self {
        Self { sandbox, key: announced.key().clone(), place, announced: Some(announced) }
    }

    /// The host's view of its workspace, see [`Sandbox::workspace`].
    pub(crate) fn workspace(&self) -> Option<PathBuf> {
        self.sandbox.workspace().map(Path::to_path_buf)
    }

    /// Removes it; it is dead by now.
    pub(crate) async fn remove(self) {
        let Self { sandbox, key, place, announced } = self;
        // Without an answer here it stays announced no longer, and the sweeper takes it. Nothing of its uid runs.
        if let Err(fault) = sandbox.remove().await {
            tracing::warn!(container = %key, error = %chain(&fault), "a container could not be removed; the sweeper will");
        }
        drop((place, announced));
    }
}

/// Removes what is handed to it, a few at a time.
#[derive(Debug, Clone)]
pub(crate) struct Reaper {
    tracker: TaskTracker,
    line: Arc<Semaphore>,
    at_work: Arc<Semaphore>,
}

impl Default for Reaper {
    fn default() -> Self {
        Self { tracker: TaskTracker::new(), line: Arc::new(Semaphore::new(LINE)), at_work: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Reaper {
    /// Takes a container over; waits while too many wait already, so that they do not pile up.
    pub(crate) async fn reap(&self, container: Container) {
        let place = Arc::clone(&self.line).acquire_owned().await.ok();
        self.begin(container, place);
    }

    /// The same without waiting: for containers that do nothing.
    pub(crate) fn reap_idle(&self, container: Container) {
        self.begin(container, None);
    }

    fn begin(&self, mut container: Container, place_in_line: Option<OwnedSemaphorePermit>) {
        let at_work = Arc::clone(&self.at_work);
        self.tracker.spawn(async move {
            loop {
                let turn = at_work.acquire().await;
                match container.sandbox.kill().await {
                    Ok(()) => break container.remove().await,
                    Err(fault) => {
                        // The sweeper may have it from now on; its place stays taken until it is known to be dead.
                        if let Some(announced) = container.announced.take() {
                            tracing::warn!(container = %announced.key(), error = %chain(&fault), "a container could not be killed, trying again until it is");
                        }
                    }
                }
                drop(turn);
                tokio::time::sleep(RETRY).await;
            }
            drop(place_in_line);
        });
    }

    /// Does something else with a container that a drain must wait for.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(work);
    }

    /// Waits until everything is gone that was handed over.
    pub(crate) async fn done(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
