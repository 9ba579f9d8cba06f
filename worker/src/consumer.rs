//! The worker's loop: a free slot, a message, an attempt. And how it ends.

use std::sync::Arc;
use std::time::Duration;

use quayside_shared::error::chain;
use quayside_shared::telemetry::names;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attempt::{Attempts, Delivered};
use crate::runner::Runner;
use crate::slots::Slots;

/// The pause after the queue or the store failed.
const PAUSE: Duration = Duration::from_secs(1);
/// Handing back (kill, write, publish) needs this much of the drain time.
const HAND_BACK: Duration = Duration::from_secs(5);
/// What is removed when nothing runs any more may take this long.
const REMOVAL: Duration = Duration::from_secs(5);

/// Consumes until `drain` is set, then lets running attempts go on for most of `grace` and hands the others back.
/// Returns when no attempt is left, and no container that it knows of; within about `grace`.
pub async fn consume(attempts: Arc<Attempts>, slots: Slots, drain: CancellationToken, grace: Duration) {
    let tracker = TaskTracker::new();
    // Whether the engine is known to work: a probe says yes, an attempt that saw it fail says no.
    let (engine, mut engine_ok) = watch::channel(false);
    let engine = Arc::new(engine);
    let tending = tokio::spawn({
        let (pool, gate, drain) = (attempts.pool.clone(), Arc::clone(&attempts.gate), drain.clone());
        async move {
            // No container waits for a run before it is known who may run here.
            tokio::select! {
                biased;
                () = drain.cancelled() => {}
                () = gate.settled() => {}
            }
            pool.tend(drain).await;
        }
    });
    metrics::gauge!(names::SLOTS).set(f64::from(slots.total()));
    loop {
        // Biased throughout: once the drain has begun, not one message more is taken, however many lie ready.
        let slot = tokio::select! {
            biased;
            () = drain.cancelled() => break,
            slot = slots.take() => slot,
        };
        let Some(slot) = slot else { break };
        // A worker without an engine takes no message: it would only give it back.
        if !*engine_ok.borrow_and_update() {
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                () = prepared(&attempts) => engine.send_replace(true),
            };
        }
        let delivery = tokio::select! {
            biased;
            () = drain.cancelled() => break,
            delivery = attempts.queue.receive() => delivery,
        };
        let delivery = match delivery {
            Ok(delivery) => delivery,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the queue does not deliver, trying again");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let slot = slot.begin();
        let (attempts, engine, slots) = (Arc::clone(&attempts), Arc::clone(&engine), slots.clone());
        tracker.spawn(async move {
            metrics::gauge!(names::SLOTS_BUSY).set(f64::from(slots.busy()));
            match attempts.deliver(delivery).await {
                Delivered::Done => {}
                // With the slot in hand: the message went back and would be here again at once.
                Delivered::StoreFault => tokio::time::sleep(PAUSE).await,
                Delivered::EngineFault => {
                    engine.send_replace(false);
                }
            }
            drop(slot);
            metrics::gauge!(names::SLOTS_BUSY).set(f64::from(slots.busy()));
        });
    }
    tracker.close();
    // What was delivered and has no slot goes to other workers now, not at the end of the drain.
    attempts.queue.stop_receiving().await;
    tracing::info!(running = tracker.len(), "draining: no new attempts");
    let patience = grace.saturating_sub(HAND_BACK).max(grace / 2);
    if tokio::time::timeout(patience, tracker.wait()).await.is_err() {
        tracing::info!(running = tracker.len(), "handing running attempts back");
        attempts.hand_back.cancel();
        if tokio::time::timeout(HAND_BACK, tracker.wait()).await.is_err() {
            tracing::warn!(running = tracker.len(), "gave up waiting; the sweeper will take these runs back");
        }
    }
    // The containers of the last runs, and those that had waited, are gone before the process is.
    let _ended = tending.await;
    if tokio::time::timeout(REMOVAL, attempts.pool.gone()).await.is_err() {
        tracing::warn!("gave up waiting for containers to be removed; the next start, or another worker, removes them");
    }
    // The last acknowledgements leave before the process does.
    attempts.queue.stop_receiving().await;
}

/// Returns when the engine answers and it is known who may run on it.
async fn prepared(attempts: &Attempts) {
    if let Some(engine) = until_it_answers(&*attempts.runner).await {
        attempts.gate.admit(&engine).await;
    }
}

/// Probes the engine with growing pauses until it answers. `backoff` gives the pauses; there is no end to them, because
/// without an engine there is nothing else to do. No jitter: an engine has one worker.
pub(crate) async fn until_it_answers(runner: &dyn Runner) -> Option<crate::runner::EngineInfo> {
    let pauses = backoff::ExponentialBackoffBuilder::new()
        .with_initial_interval(Duration::from_millis(250))
        .with_max_interval(Duration::from_secs(10))
        .with_randomization_factor(0.0)
        .with_max_elapsed_time(None)
        .build();
    let probe = || async { runner.ping().await.map_err(backoff::Error::transient) };
    let answered = backoff::future::retry_notify(pauses, probe, |fault: crate::runner::Fault, pause: Duration| {
        let retry_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(error = %chain(&fault), retry_ms, "the container engine does not answer");
    });
    let engine = answered.await.ok()?;
    tracing::info!(engine = engine.description, "the container engine answers");
    Some(engine)
}
