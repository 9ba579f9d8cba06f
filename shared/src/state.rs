//! The state machine of a run. Pure: `now` is an argument, nothing is read or written.
//!
//! ```text
//!                 claim                    finish
//!   ┌────────┐ ──────────▶ ┌─────────────┐ ──────────▶ completed · failed · timed_out
//!   │ queued │             │ in_progress │
//!   └────────┘ ◀────────── └─────────────┘
//!     │    │   release, lose_lease  │ cancel
//!     │    │                        ▼
//!     │    │ cancel          ┌────────────┐  finish, release, lose_lease
//!     │    └───────────▶ ┐   │ cancelling │ ───────────▶ cancelled
//!     ▼ queue TTL     cancelled └─────────┘
//!  expired
//! ```
//!
//! Every function takes the run as it is stored and changes it, or refuses and leaves it untouched. Both stores write
//! what comes out by compare-and-set, so a refusal here is the fence of invariants 4 to 6.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::ids::WorkerId;
use crate::retry::RetryPolicy;
use crate::run::{Attempt, AttemptOutcome, ErrorCode, LeaseRecord, Run, RunError, Status, StatusChange, Usage, WaitingReason};
use crate::sandbox::SandboxRecord;

/// Status changes kept for resumed streams. A run that is drained for ever must not grow without bound.
const STATUS_LOG_MAX: usize = 128;

/// Why a change may not happen. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The writer's epoch is not the run's, or nobody holds a lease: it has been fenced and must stay silent.
    #[error("the lease is lost")]
    LeaseLost,
    /// The run is in `0`, from where this change does not lead anywhere.
    #[error("not possible while the run is {}", .0.as_str())]
    Status(Status),
    /// It waits for a moment that has not come.
    #[error("not due yet")]
    NotDue,
}

/// How an attempt ended, as its worker saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// The cause, for the attempt's record; the run's status follows from it.
    pub outcome: AttemptOutcome,
    /// For the user, when the run failed.
    pub error: Option<RunError>,
    /// The agent's exit code, when it exited.
    pub exit_code: Option<i64>,
    /// Whether output was dropped.
    pub truncated: bool,
    /// What it cost.
    pub usage: Usage,
    /// The reply is complete, and its container still runs. Of a run that is being cancelled this is no end: its container
    /// must be gone first.
    pub lives: bool,
    /// What its container was held in by, when there was one.
    pub sandbox: Option<SandboxRecord>,
}

impl Finished {
    /// The status this end leads to. `None`: it is no end, the run must be released instead.
    #[must_use]
    pub const fn status(&self) -> Option<Status> {
        match self.outcome {
            AttemptOutcome::Finished => Some(Status::Completed),
            AttemptOutcome::ExitNonzero | AttemptOutcome::Oom | AttemptOutcome::OutputInvalid | AttemptOutcome::Refused => Some(Status::Failed),
            AttemptOutcome::TimedOut => Some(Status::TimedOut),
            AttemptOutcome::Cancelled => Some(Status::Cancelled),
            AttemptOutcome::WorkerLost | AttemptOutcome::Preempted | AttemptOutcome::Drained | AttemptOutcome::EngineFault => None,
        }
    }
}

/// Whether the arrow `from` → `to` is in the picture above.
#[must_use]
pub const fn may_become(from: Status, to: Status) -> bool {
    match from {
        Status::Queued => matches!(to, Status::InProgress | Status::Cancelled | Status::Expired),
        Status::InProgress => {
            matches!(to, Status::Queued | Status::Cancelling | Status::Completed | Status::Failed | Status::TimedOut)
        }
        Status::Cancelling => matches!(to, Status::Cancelled),
        Status::Completed | Status::Failed | Status::TimedOut | Status::Cancelled | Status::Expired => false,
    }
}

/// A worker takes a queued run. The new epoch fences every earlier holder.
pub fn claim(run: &mut Run, worker: &WorkerId, lease: Duration, now: Timestamp) -> Result<LeaseRecord, Refused> {
    if run.status != Status::Queued {
        return Err(Refused::Status(run.status));
    }
    if run.not_before.is_some_and(|at| at > now) {
        return Err(Refused::NotDue);
    }
    if run.started_at.is_none() && run.start_by.is_some_and(|by| by <= now) {
        return Err(Refused::Status(Status::Expired));
    }
    run.epoch += 1;
    let record = LeaseRecord { worker: worker.clone(), epoch: run.epoch, expires_at: now + lease };
    run.lease = Some(record.clone());
    run.reply_bytes = 0;
    run.not_before = None;
    run.started_at.get_or_insert(now);
    run.usage = Usage { queue_millis: Some(millis(now.since(run.created_at))), ..Usage::default() };
    run.attempts.push(Attempt {
        number: u32::try_from(run.attempts.len()).unwrap_or(u32::MAX - 1) + 1,
        worker: worker.clone(),
        started_at: now,
        ended_at: None,
        outcome: None,
        counted: true,
        sandbox: None,
    });
    become_status(run, Status::InProgress, None)?;
    Ok(record)
}

/// A queued run may not start yet: its user is told why. No change when the reason is the same.
pub fn wait(run: &mut Run, reason: WaitingReason) -> Result<(), Refused> {
    if run.status != Status::Queued {
        return Err(Refused::Status(run.status));
    }
    if run.waiting_reason != Some(reason) {
        run.waiting_reason = Some(reason);
        log_status(run);
    }
    Ok(())
}

/// A queued run is put off: no claim succeeds before `until`. Its user is told why.
pub fn defer(run: &mut Run, reason: WaitingReason, until: Timestamp) -> Result<(), Refused> {
    wait(run, reason)?;
    run.not_before = Some(until);
    Ok(())
}

/// The holder of the lease asks for more time.
pub fn heartbeat(run: &mut Run, epoch: u64, lease: Duration, now: Timestamp) -> Result<LeaseRecord, Refused> {
    let record = held(run, epoch)?;
    record.expires_at = now + lease;
    Ok(record.clone())
}

/// The holder of the lease adds `bytes` to the reply, behind its first `offset` bytes: a new sequence number for the delta.
/// `None`: they are there already, and the answer to the first asking was lost.
pub fn append(run: &mut Run, epoch: u64, offset: u64, bytes: u64) -> Result<Option<u64>, Refused> {
    held(run, epoch)?;
    if offset + bytes <= run.reply_bytes {
        return Ok(None);
    }
    // A gap: the writer and the store do not speak of the same reply, so it cannot be the holder's.
    if offset != run.reply_bytes {
        return Err(Refused::LeaseLost);
    }
    run.reply_bytes += bytes;
    run.sequence_number += 1;
    Ok(Some(run.sequence_number))
}

/// The attempt ended and the run with it. A run whose cancellation was accepted first becomes `cancelled`, whatever
/// the attempt says: its container is gone, which is what `cancelled` promises.
pub fn finish(run: &mut Run, epoch: u64, finished: Finished, now: Timestamp) -> Result<(), Refused> {
    held(run, epoch)?;
    let Some(status) = finished.status() else { return Err(Refused::Status(run.status)) };
    let cancelled = run.status == Status::Cancelling;
    if cancelled && finished.lives {
        return Err(Refused::Status(run.status));
    }
    // Nobody asked for a cancellation, so nobody may report one.
    if status == Status::Cancelled && !cancelled {
        return Err(Refused::Status(run.status));
    }
    end_attempt(run, if cancelled { AttemptOutcome::Cancelled } else { finished.outcome }, now);
    if let Some(attempt) = run.attempts.last_mut() {
        attempt.sandbox = finished.sandbox;
    }
    run.exit_code = finished.exit_code;
    run.truncated = finished.truncated;
    run.usage = Usage { queue_millis: run.usage.queue_millis, ..finished.usage };
    run.error = if cancelled { None } else { finished.error };
    end_run(run, if cancelled { Status::Cancelled } else { status }, now)
}

/// The holder hands the run back: the attempt was no fault of the agent. Only for outcomes that are no end.
pub fn release(run: &mut Run, epoch: u64, outcome: AttemptOutcome, policy: &RetryPolicy, jitter: f64, now: Timestamp) -> Result<(), Refused> {
    held(run, epoch)?;
    if outcome.counted() {
        return Err(Refused::Status(run.status));
    }
    lose_attempt(run, outcome, policy, jitter, now)
}

/// The sweeper takes a run away from a worker whose lease ran out.
pub fn lose_lease(run: &mut Run, policy: &RetryPolicy, jitter: f64, now: Timestamp) -> Result<(), Refused> {
    match &run.lease {
        Some(lease) if lease.expires_at <= now => lose_attempt(run, AttemptOutcome::WorkerLost, policy, jitter, now),
        _ => Err(Refused::Status(run.status)),
    }
}

/// The user asks to cancel. Queued: cancelled at once. Running: its worker must prove the container gone first.
/// Asked again, or too late: no change, and the run as it is stands.
pub fn cancel(run: &mut Run, now: Timestamp) -> Result<(), Refused> {
    match run.status {
        Status::Queued => end_run(run, Status::Cancelled, now),
        Status::InProgress => become_status(run, Status::Cancelling, None),
        status => Err(Refused::Status(status)),
    }
}

/// The queue time-to-live passed before the run started.
pub fn expire(run: &mut Run, now: Timestamp) -> Result<(), Refused> {
    match run.start_by {
        Some(by) if by <= now && run.status == Status::Queued && run.started_at.is_none() => end_run(run, Status::Expired, now),
        _ => Err(Refused::Status(run.status)),
    }
}

/// Whether the holder of `epoch` may write.
#[must_use]
pub fn holds(run: &Run, epoch: u64) -> bool {
    run.lease.as_ref().is_some_and(|lease| lease.epoch == epoch)
}

fn held(run: &mut Run, epoch: u64) -> Result<&mut LeaseRecord, Refused> {
    run.lease.as_mut().filter(|lease| lease.epoch == epoch).ok_or(Refused::LeaseLost)
}

fn lose_attempt(run: &mut Run, outcome: AttemptOutcome, policy: &RetryPolicy, jitter: f64, now: Timestamp) -> Result<(), Refused> {
    end_attempt(run, outcome, now);
    if run.status == Status::Cancelling {
        return end_run(run, Status::Cancelled, now);
    }
    let in_a_row =
        |wanted: fn(&Attempt) -> bool| u32::try_from(run.attempts.iter().rev().take_while(|attempt| wanted(attempt)).count()).unwrap_or(u32::MAX);
    // Attempts that were nobody's fault neither use up the three nor forgive them.
    let lost = u32::try_from(run.attempts.iter().filter(|attempt| attempt.outcome == Some(AttemptOutcome::WorkerLost)).count()).unwrap_or(u32::MAX);
    let faults = in_a_row(|attempt| attempt.outcome == Some(AttemptOutcome::EngineFault));
    let gave_up = if outcome == AttemptOutcome::WorkerLost && lost >= policy.max_attempts {
        Some(RunError::new(ErrorCode::Poison, format!("{lost} workers were lost while running it; it will not be tried again")))
    } else if faults >= policy.max_uncounted {
        Some(RunError::new(ErrorCode::AttemptsExhausted, format!("the container engine failed {faults} times in a row; submit it again later")))
    } else {
        None
    };
    if let Some(error) = gave_up {
        run.error = Some(error);
        return end_run(run, Status::Failed, now);
    }
    let delay = policy.delay(outcome, lost.max(faults), jitter);
    run.not_before = (!delay.is_zero()).then(|| now + delay);
    let reason = if delay.is_zero() { WaitingReason::NoCapacity } else { WaitingReason::Retrying };
    become_status(run, Status::Queued, Some(reason))
}

fn end_attempt(run: &mut Run, outcome: AttemptOutcome, now: Timestamp) {
    run.lease = None;
    if let Some(attempt) = run.attempts.last_mut().filter(|attempt| attempt.ended_at.is_none()) {
        attempt.ended_at = Some(now);
        attempt.outcome = Some(outcome);
        attempt.counted = outcome.counted();
    }
}

fn end_run(run: &mut Run, status: Status, now: Timestamp) -> Result<(), Refused> {
    become_status(run, status, None)?;
    run.finished_at = Some(now);
    run.not_before = None;
    Ok(())
}

fn become_status(run: &mut Run, status: Status, waiting: Option<WaitingReason>) -> Result<(), Refused> {
    if !may_become(run.status, status) {
        return Err(Refused::Status(run.status));
    }
    run.status = status;
    run.waiting_reason = waiting;
    log_status(run);
    Ok(())
}

fn log_status(run: &mut Run) {
    run.sequence_number += 1;
    if run.status_log.len() >= STATUS_LOG_MAX {
        run.status_log.remove(0);
    }
    run.status_log.push(StatusChange { sequence_number: run.sequence_number, status: run.status, waiting_reason: run.waiting_reason });
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
