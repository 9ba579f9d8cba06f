//! Repairs what was lost: containers without an attempt, attempts without a worker, runs without a message.
//!
//! Level-triggered, by timer and by signal: it looks at what is, so a pass that was missed costs time and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quayside_shared::clock::Clock;
use quayside_shared::error::chain;
use quayside_shared::queue::Queue;
use quayside_shared::store::Store;
use quayside_shared::telemetry::names;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::attempt::publish;
use crate::runner::Runner;
use crate::slots::LiveContainers;

/// The longest pause between two passes.
const INTERVAL: Duration = Duration::from_secs(5);
/// The shortest: a pass that finds work due at once must not spin.
const SHORTEST: Duration = Duration::from_millis(50);
/// Containers are listed less often than rows: it costs the engine more.
const CONTAINERS: Duration = Duration::from_secs(20);

/// A lease that ends within this may end during the pass.
const NEARLY: Duration = Duration::from_millis(100);
/// Runs of other workers do not wait longer for an attempt of ours. A kill takes less, unless the engine is away.
const PATIENCE: Duration = Duration::from_secs(12);

/// What the sweeper works on.
pub struct Sweeper {
    /// The truth.
    pub store: Arc<dyn Store>,
    /// Where repaired runs are announced.
    pub queue: Arc<dyn Queue>,
    /// Whose leftovers are removed.
    pub runner: Arc<dyn Runner>,
    /// Containers in use.
    pub live: LiveContainers,
    /// The store's: what is due is told in its time.
    pub clock: Arc<dyn Clock>,
    /// Notified when something became due earlier than the last pass could know.
    pub due_earlier: Arc<Notify>,
}

impl Sweeper {
    /// Removes what an earlier life of this worker left behind. Called before the first attempt, and before the first
    /// pass over the store: a run whose old container may still live must not be called cancelled or be started again.
    pub async fn remove_leftovers(&self) -> Result<usize, crate::runner::Fault> {
        let removed = self.runner.sweep(&|key| self.live.contains(key)).await?;
        if removed > 0 {
            metrics::counter!(names::LEFTOVERS_REMOVED).increment(removed as u64);
            tracing::info!(removed, "removed containers that no attempt uses");
        }
        Ok(removed)
    }

    /// Sweeps until `drain` is set.
    pub async fn run(self, drain: CancellationToken) {
        let mut containers_at = Instant::now();
        let mut clean = false;
        loop {
            if Instant::now() >= containers_at {
                match self.remove_leftovers().await {
                    Ok(_) => clean = true,
                    Err(fault) => tracing::warn!(error = %chain(&fault), "leftover containers cannot be looked for, trying again"),
                }
                containers_at = Instant::now() + if clean { CONTAINERS } else { INTERVAL };
            }
            let pause = if clean { self.pass().await } else { INTERVAL };
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                () = self.due_earlier.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Waits while an attempt of this very process is at work under a lease that is over: it was frozen, or its heartbeats
    /// did not get through. Taken back now, the run could be called cancelled, or run again, beside its container.
    async fn until_our_own_are_over(&self) {
        let begun = Instant::now();
        while self.live.leases.is_any_over(Instant::now() + NEARLY) && begun.elapsed() < PATIENCE {
            tokio::time::sleep(SHORTEST).await;
        }
    }

    /// One pass over the store; returns when the next is worth while.
    async fn pass(&self) -> Duration {
        self.until_our_own_are_over().await;
        match self.store.sweep().await {
            Ok(sweep) => {
                if sweep.lost + sweep.expired > 0 {
                    tracing::info!(lost = sweep.lost, expired = sweep.expired, wake = sweep.wake.len(), "took back runs of lost workers");
                }
                publish(&*self.queue, sweep.wake, &BTreeMap::new()).await;
                self.observe_depth().await;
                let now = self.clock.now();
                sweep.next_at.map_or(INTERVAL, |at| at.since(now)).clamp(SHORTEST, INTERVAL)
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "a sweep failed, trying again");
                INTERVAL
            }
        }
    }

    async fn observe_depth(&self) {
        if let Ok(depth) = self.store.depth().await {
            metrics::gauge!(names::QUEUE_DEPTH).set(depth.queued as f64);
            let age = depth.oldest_queued_at.map_or(Duration::ZERO, |at| self.clock.now().since(at));
            metrics::gauge!(names::QUEUE_AGE_SECONDS).set(age.as_secs_f64());
        }
    }
}
