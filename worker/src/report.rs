//! Tells the store, now and then, that this worker lives and what it does.

use std::sync::Arc;
use std::time::Duration;

use quayside_shared::clock::{Clock, SystemClock};
use quayside_shared::error::chain;
use quayside_shared::ids::WorkerId;
use quayside_shared::store::{Store, WorkerReport};
use tokio_util::sync::CancellationToken;

use crate::slots::Slots;

/// Who reports.
pub struct Reporter {
    /// Where to.
    pub store: Arc<dyn Store>,
    /// This life of this worker.
    pub worker: WorkerId,
    /// The machine it is on.
    pub host: String,
    /// The version of Quayside.
    pub version: &'static str,
    /// Its slots.
    pub slots: Slots,
    /// How often it reports.
    pub every: Duration,
}

impl Reporter {
    /// Reports until it is dropped: at once, every interval, and when `drain` begins.
    pub async fn run(self, drain: CancellationToken) {
        let mut report = WorkerReport {
            id: self.worker.clone(),
            host: self.host.clone(),
            version: self.version.to_owned(),
            slots: self.slots.total(),
            busy: 0,
            draining: false,
            started_at: SystemClock.now(),
            seen_at: SystemClock.now(),
        };
        loop {
            (report.busy, report.draining) = (self.slots.busy(), drain.is_cancelled());
            // Nothing depends on it but what an operator sees; the next one is soon.
            if let Err(error) = self.store.report_worker(report.clone()).await {
                tracing::debug!(error = %chain(&error), "a worker's report was not written");
            }
            tokio::select! {
                () = tokio::time::sleep(self.every) => {}
                () = drain.cancelled(), if !report.draining => {}
            }
        }
    }
}
