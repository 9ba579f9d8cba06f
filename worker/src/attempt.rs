//! One delivery, top to bottom: claim, run, record, wake, acknowledge, clean up.
//!
//! An attempt does not retry itself (invariant 7). Whatever happens, exactly one of these is true at the end: the run's
//! end is stored; the run was handed back; or the lease was lost and nothing more was written.

mod container;
mod execute;
mod files;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quayside_shared::agent::Agent;
use quayside_shared::error::chain;
use quayside_shared::ids::{AgentName, RunId, WorkerId};
use quayside_shared::queue::{Delivery, Message, Queue};
use quayside_shared::run::{AttemptOutcome, Run, Status, WaitingReason};
use quayside_shared::state::Finished;
use quayside_shared::store::{Changed, Claim, Fenced, Lease, LeaseLost, Store, Stray};
use quayside_shared::telemetry::names;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lease::{LeaseKeeper, LeaseTimes};
use crate::pool::Pool;
use crate::proof::gate::Gate;
use crate::runner::Runner;
use crate::slots::LiveContainers;
use container::Obtained;

/// The delay before a write that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// What every attempt of a worker shares.
pub struct Attempts {
    /// The truth.
    pub store: Arc<dyn Store>,
    /// Where runs that may start now are announced.
    pub queue: Arc<dyn Queue>,
    /// Makes containers.
    pub runner: Arc<dyn Runner>,
    /// Who can answer.
    pub agents: BTreeMap<AgentName, Agent>,
    /// This life of this worker.
    pub worker: WorkerId,
    /// How long leases last.
    pub times: LeaseTimes,
    /// Containers in use.
    pub live: LiveContainers,
    /// Containers that wait for a run, that are kept for the next one, or that are being removed.
    pub pool: Pool,
    /// Set when running attempts must be handed back.
    pub hand_back: CancellationToken,
    /// Set when the machine is being taken away: what is handed back is `preempted` then, otherwise `drained`.
    pub preempted: CancellationToken,
    /// Who may run here, and what holds them in.
    pub gate: Arc<Gate>,
    /// Told when a run is to be tried again later: the sweeper must know of that moment.
    pub retry_later: Arc<Notify>,
}

/// What a delivery came to, for the consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// Nothing special.
    Done,
    /// The store did not answer: wait before the next delivery.
    StoreFault,
    /// The engine failed: wait until it answers.
    EngineFault,
}

/// How an execution ended.
enum Ending {
    /// With the run; the text, when given, is the reply as a whole.
    Finished(Box<Finished>, Option<String>),
    /// The run goes back: drain, preemption or engine fault.
    Released(AttemptOutcome),
    /// Somebody else may hold the run by now.
    LeaseLost,
}

/// A container whose run is at its end.
struct Leftover {
    obtained: Obtained,
    /// Its program may still run: the reply was complete before.
    lives: bool,
}

impl Attempts {
    /// Handles one delivery. Its end is stored when this returns; its container is dead, or about to be removed, or kept
    /// for the next run of its conversation.
    pub async fn deliver(&self, delivery: Box<dyn Delivery>) -> Delivered {
        let (run_id, trace) = match delivery.message() {
            Ok(message) => (message.run_id.clone(), message.trace.clone()),
            Err(undecodable) => {
                let stray = Stray::Undecodable(undecodable.clone());
                return self.put_aside(stray, delivery).await;
            }
        };
        if let Some(delivered) = self.put_off(&run_id).await {
            match delivered {
                Delivered::StoreFault => delivery.nack().await,
                Delivered::Done | Delivered::EngineFault => delivery.ack().await,
            }
            return delivered;
        }
        // Before the claim, so that no cancellation slips through in between.
        let watch = self.store.watch(&run_id);
        let claimed = Instant::now();
        let (lease, run) = match self.store.claim(&run_id, &self.worker, self.times.duration).await {
            Ok(Claim::Claimed(lease, run)) => (lease, run),
            Ok(Claim::Waiting(reason)) => {
                tracing::debug!(%run_id, ?reason, "not yet");
                delivery.ack().await;
                return Delivered::Done;
            }
            Ok(Claim::Nothing) => {
                delivery.ack().await;
                return Delivered::Done;
            }
            Ok(Claim::Unknown) => return self.put_aside(Stray::UnknownRun(run_id), delivery).await,
            Ok(Claim::Expired(wake)) => {
                tracing::info!(%run_id, "expired before it started");
                self.publish(wake, &trace).await;
                delivery.ack().await;
                return Delivered::Done;
            }
            Err(error) => {
                tracing::warn!(%run_id, error = %chain(&error), "a claim failed, the message goes back");
                delivery.nack().await;
                return Delivered::StoreFault;
            }
        };
        metrics::histogram!(names::PICKUP_SECONDS).record(Duration::from_millis(run.usage.queue_millis.unwrap_or(0)).as_secs_f64());
        let keeper = LeaseKeeper::start(Arc::clone(&self.store), lease.clone(), watch, self.times, claimed, &self.live.leases);
        let (mut ending, mut leftover) = self.execute(&run, &lease, &keeper, claimed).await;
        if let (Ending::Finished(finished, _), Some(_), Some(agent)) = (&mut ending, &leftover, self.agents.get(&run.agent)) {
            finished.sandbox = Some(self.gate.record(agent));
        }
        let engine_fault = matches!(ending, Ending::Released(AttemptOutcome::EngineFault));
        match self.record(&run, &lease, ending, leftover.as_mut(), &keeper).await {
            Ok(changed) => {
                drop(keeper);
                log_end(&changed.run, claimed);
                if changed.run.not_before.is_some() {
                    self.retry_later.notify_one();
                }
                self.publish(changed.wake, &trace).await;
                delivery.ack().await;
                if let Some(leftover) = leftover {
                    self.let_go(leftover, &changed.run).await;
                }
            }
            Err(LeaseLost) => {
                metrics::counter!(names::LEASES_LOST).increment(1);
                tracing::warn!(%run_id, epoch = lease.epoch, "the lease was lost; the container is killed and nothing more is written");
                // Before the lease is let go of: the run may be another's by now, and must not run beside itself.
                if let Some(Leftover { mut obtained, lives }) = leftover {
                    if lives {
                        self.kill(&mut *obtained.container.sandbox, &run, &keeper).await;
                    }
                    self.pool.reaper().reap(obtained.container).await;
                }
                // The store has moved on without us and causes the next message itself.
                delivery.ack().await;
            }
        }
        if engine_fault { Delivered::EngineFault } else { Delivered::Done }
    }

    /// A run of an agent that is refused here is neither claimed nor failed: it waits, and is looked at again, by this worker
    /// or another. `None`: it may run.
    async fn put_off(&self, run_id: &RunId) -> Option<Delivered> {
        if !self.gate.refuses_any() {
            return None;
        }
        let found = match self.store.run(run_id).await {
            Ok(found) => found.filter(|run| run.status == Status::Queued)?,
            Err(error) => {
                tracing::warn!(%run_id, error = %chain(&error), "a run cannot be read, the message goes back");
                return Some(Delivered::StoreFault);
            }
        };
        let why = self.gate.refusal(&found.agent)?;
        match self.store.defer(run_id, WaitingReason::SandboxNotEnforced, Gate::look_again_after(found.created_at)).await {
            Ok(()) => {
                tracing::info!(%run_id, agent = %found.agent, why, "its agent is refused here, the run waits");
                self.retry_later.notify_one();
                Some(Delivered::Done)
            }
            Err(error) => {
                tracing::warn!(%run_id, error = %chain(&error), "a run cannot be put off, the message goes back");
                Some(Delivered::StoreFault)
            }
        }
    }

    /// Stores the end, as often as it takes while the lease lasts: what is lost here would be run again.
    async fn record(
        &self,
        run: &Run,
        lease: &Lease,
        mut ending: Ending,
        mut leftover: Option<&mut Leftover>,
        keeper: &LeaseKeeper,
    ) -> Fenced<Changed> {
        loop {
            if keeper.lost.is_cancelled() {
                return Err(LeaseLost);
            }
            let written = match &ending {
                Ending::Finished(finished, text) => self.store.finish(lease, finished.as_ref().clone(), text.clone()).await,
                Ending::Released(outcome) => self.store.release(lease, *outcome).await,
                Ending::LeaseLost => return Err(LeaseLost),
            };
            match written {
                // Lost, or the run is being cancelled: then its container must be gone before that is said.
                Ok(Err(LeaseLost)) if self.kill_the_living(run, leftover.as_deref_mut(), &mut ending, keeper).await => {}
                Ok(fenced) => return fenced,
                Err(error) => {
                    tracing::warn!(run_id = %lease.run_id, error = %chain(&error), "the end of an attempt cannot be written, trying again");
                    tokio::select! {
                        biased;
                        () = keeper.lost.cancelled() => {}
                        () = tokio::time::sleep(RETRY) => {}
                    }
                }
            }
        }
    }

    /// Kills the container if it may still run, and says whether that was so: then the end can be told once more.
    async fn kill_the_living(&self, run: &Run, leftover: Option<&mut Leftover>, ending: &mut Ending, keeper: &LeaseKeeper) -> bool {
        let (Some(leftover), Ending::Finished(finished, _)) = (leftover.filter(|leftover| leftover.lives), ending) else { return false };
        let dead = self.kill(&mut *leftover.obtained.container.sandbox, run, keeper).await;
        if dead {
            (leftover.lives, finished.lives) = (false, false);
        }
        dead
    }

    /// Acknowledges a message that leads nowhere once it is among the dead letters.
    async fn put_aside(&self, stray: Stray, delivery: Box<dyn Delivery>) -> Delivered {
        match &stray {
            Stray::UnknownRun(run_id) => tracing::warn!(%run_id, "a message names a run that is not here; it goes to the dead letters"),
            Stray::Undecodable(message) => {
                tracing::warn!(message_id = message.message_id, reason = message.reason, "a message names no run; it goes to the dead letters");
            }
        }
        match self.store.quarantine(stray).await {
            Ok(()) => {
                metrics::counter!(names::STRAY_MESSAGES).increment(1);
                delivery.ack().await;
                Delivered::Done
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "a dead letter could not be put aside, the message goes back");
                delivery.nack().await;
                Delivered::StoreFault
            }
        }
    }

    async fn publish(&self, wake: Vec<RunId>, trace: &BTreeMap<String, String>) {
        publish(&*self.queue, wake, trace).await;
    }
}

/// Announces runs that may start. A failed publish costs time, not the run: the sweeper repairs it.
pub(crate) async fn publish(queue: &dyn Queue, wake: Vec<RunId>, trace: &BTreeMap<String, String>) {
    if wake.is_empty() {
        return;
    }
    let messages: Vec<Message> = wake.into_iter().map(|run_id| Message { run_id, trace: trace.clone() }).collect();
    if let Err(error) = queue.publish(&messages).await {
        tracing::warn!(messages = messages.len(), error = %chain(&error), "a publish failed; the sweeper will repair it");
    }
}

fn log_end(run: &Run, claimed: Instant) {
    let outcome = run.attempts.last().and_then(|attempt| attempt.outcome).map(AttemptOutcome::as_str);
    let agent = run.agent.as_str().to_owned();
    if let Some(outcome) = outcome {
        metrics::counter!(names::ATTEMPTS_ENDED, "agent" => agent.clone(), "outcome" => outcome).increment(1);
    }
    if run.status.is_terminal() {
        metrics::counter!(names::RUNS_ENDED, "agent" => agent, "status" => run.status.as_str()).increment(1);
        if let Some(finished_at) = run.finished_at {
            metrics::histogram!(names::RUN_SECONDS).record(finished_at.since(run.created_at).as_secs_f64());
        }
    }
    let duration_ms = u64::try_from(claimed.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(run_id = %run.id, attempt = run.attempts.len(), status = run.status.as_str(), outcome, duration_ms, "attempt ended");
}
