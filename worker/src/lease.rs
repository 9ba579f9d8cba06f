//! Keeps a lease alive, and says at once when it is lost or when the run is to be cancelled.

use std::sync::Arc;
use std::time::Duration;

use quayside_shared::error::chain;
use quayside_shared::store::{Lease, Store, Watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Owns the heartbeat of one lease. Dropping it ends the heartbeat.
#[derive(Debug)]
pub struct LeaseKeeper {
    /// Set once the lease may be another's: write nothing more.
    pub lost: CancellationToken,
    /// Set once a cancellation was accepted.
    pub cancelling: CancellationToken,
    task: JoinHandle<()>,
}

/// How long a lease lasts and how often it is prolonged.
#[derive(Debug, Clone, Copy)]
pub struct LeaseTimes {
    /// Without a heartbeat it ends after this.
    pub duration: Duration,
    /// Prolonged this often.
    pub heartbeat: Duration,
}

impl LeaseKeeper {
    /// Keeps `lease`, which was claimed at `claimed` by this machine's monotonic clock. `watch` must have been taken
    /// before the claim, so that no cancellation slips through in between.
    pub fn start(store: Arc<dyn Store>, lease: Lease, watch: Watch, times: LeaseTimes, claimed: Instant) -> Self {
        let (lost, cancelling) = (CancellationToken::new(), CancellationToken::new());
        let task = tokio::spawn(keep(store, lease, watch, times, claimed, lost.clone(), cancelling.clone()));
        Self { lost, cancelling, task }
    }
}

impl Drop for LeaseKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(
    store: Arc<dyn Store>,
    lease: Lease,
    mut watch: Watch,
    times: LeaseTimes,
    claimed: Instant,
    lost: CancellationToken,
    cancelling: CancellationToken,
) {
    // The store counts from when it handled the heartbeat; counting from when it was sent is earlier, and safe.
    let mut sure_until = claimed + times.duration;
    let mut next = claimed + times.heartbeat;
    loop {
        tokio::select! {
            biased;
            signal = watch.changed() => {
                if signal.cancelling {
                    cancelling.cancel();
                }
                continue;
            }
            () = tokio::time::sleep_until(next) => {}
        }
        let sent = Instant::now();
        // Frozen for longer than the lease (SIGSTOP, a suspended machine): it may be another's by now.
        if sent >= sure_until {
            break;
        }
        match tokio::time::timeout_at(sure_until, store.heartbeat(&lease, times.duration)).await {
            Ok(Ok(Ok(standing))) => {
                if standing.cancelling {
                    cancelling.cancel();
                }
                sure_until = sent + times.duration;
                next = sent + times.heartbeat;
            }
            Ok(Ok(Err(_lost))) => break,
            Ok(Err(error)) => {
                tracing::warn!(run_id = %lease.run_id, error = %chain(&error), "a heartbeat failed, trying again");
                next = (sent + Duration::from_secs(1)).min(sure_until);
            }
            Err(_elapsed) => break,
        }
    }
    lost.cancel();
}
