//! Keeps a lease alive, and says at once when it is lost or when the run is to be cancelled.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
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
    _held: Until,
}

/// Until when a lease is surely ours.
type Until = Arc<Mutex<Instant>>;

/// The leases that attempts of this process hold, until their containers are gone. A lease that is over is not yet an
/// attempt that is over: its container has to be killed first.
#[derive(Debug, Clone, Default)]
pub(crate) struct HeldLeases(Arc<Mutex<Vec<Weak<Mutex<Instant>>>>>);

impl HeldLeases {
    fn hold(&self, until: Instant) -> Until {
        let until = Arc::new(Mutex::new(until));
        lock(&self.0).push(Arc::downgrade(&until));
        until
    }

    /// Whether an attempt is still at work under a lease that is over at `at`.
    pub(crate) fn is_any_over(&self, at: Instant) -> bool {
        let mut any = false;
        lock(&self.0).retain(|held| held.upgrade().inspect(|until| any |= *lock(until) <= at).is_some());
        any
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub(crate) fn start(store: Arc<dyn Store>, lease: Lease, watch: Watch, times: LeaseTimes, claimed: Instant, held: &HeldLeases) -> Self {
        let (lost, cancelling) = (CancellationToken::new(), CancellationToken::new());
        // The store counts from when it handled the call; counting from when it was sent is earlier, and safe.
        let until = held.hold(claimed + times.duration);
        let task = tokio::spawn(keep(store, lease, watch, times, (claimed, Arc::clone(&until)), lost.clone(), cancelling.clone()));
        Self { lost, cancelling, task, _held: until }
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
    (claimed, until): (Instant, Until),
    lost: CancellationToken,
    cancelling: CancellationToken,
) {
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
                *lock(&until) = sure_until;
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
