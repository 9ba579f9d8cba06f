//! Everything that changes an accepted run: claim, heartbeat, append, finish, release, cancel, delete.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::rows::{RUN_COLUMNS, Stored, drop_reply, has_active_predecessor, load, running_of_user, save, startable, stored};
use super::{Context, operations};
use crate::clock::Timestamp;
use crate::ids::{ConversationId, RunId, UserId, WorkerId};
use crate::run::{AttemptOutcome, Run, Status, WaitingReason};
use crate::state::{self, Finished, Refused};
use crate::store::{Changed, Claim, Fenced, Lease, LeaseLost, Standing};

pub(super) fn end_all_leases(db: &Connection, now: Timestamp) -> rusqlite::Result<usize> {
    db.execute("UPDATE runs SET lease_expires_at = ?1 WHERE lease_expires_at > ?1", [now.as_millis()])
}

pub(super) fn claim(db: &Connection, id: &RunId, worker: &WorkerId, duration: Duration, context: &Context) -> rusqlite::Result<Claim> {
    let Some(mut found) = load(db, id)? else {
        return Ok(if operations::was_removed(db, id)? { Claim::Nothing } else { Claim::Unknown });
    };
    if found.run.status != Status::Queued {
        return Ok(Claim::Nothing);
    }
    if state::expire(&mut found.run, context.now).is_ok() {
        return changed(db, found, context).map(|changed| Claim::Expired(changed.wake));
    }
    let blocked = if has_active_predecessor(db, found.conversation, found.ordinal)? {
        Some(WaitingReason::ConversationBusy)
    } else if running_of_user(db, &found.run.user_id)? >= context.options.running_per_user {
        Some(WaitingReason::UserQuota)
    } else {
        None
    };
    if let Some(reason) = blocked {
        if state::wait(&mut found.run, reason).is_ok() {
            save(db, &mut found, context)?;
        }
        return Ok(Claim::Waiting(reason));
    }
    match state::claim(&mut found.run, worker, duration, context.now) {
        Ok(record) => {
            save(db, &mut found, context)?;
            let lease = Lease { run_id: id.clone(), worker: record.worker, epoch: record.epoch };
            Ok(Claim::Claimed(lease, Box::new(found.run)))
        }
        Err(Refused::NotDue) => Ok(Claim::Waiting(WaitingReason::Retrying)),
        Err(Refused::LeaseLost | Refused::Status(_)) => Ok(Claim::Nothing),
    }
}

pub(super) fn defer(db: &Connection, id: &RunId, reason: WaitingReason, delay: Duration, context: &Context) -> rusqlite::Result<Option<Run>> {
    let Some(mut found) = load(db, id)? else { return Ok(None) };
    if state::defer(&mut found.run, reason, context.now + delay).is_err() {
        return Ok(None);
    }
    save(db, &mut found, context)?;
    Ok(Some(found.run))
}

pub(super) fn heartbeat(db: &Connection, lease: &Lease, duration: Duration, context: &Context) -> rusqlite::Result<Fenced<Standing>> {
    let Some(mut found) = load(db, &lease.run_id)? else { return Ok(Err(LeaseLost)) };
    let Ok(record) = state::heartbeat(&mut found.run, lease.epoch, duration, context.now) else { return Ok(Err(LeaseLost)) };
    db.prepare_cached("UPDATE runs SET lease_expires_at = ?2 WHERE pk = ?1")?.execute(params![found.pk, record.expires_at.as_millis()])?;
    Ok(Ok(standing(&found.run)))
}

pub(super) fn append(db: &Connection, lease: &Lease, offset: u64, text: &str) -> rusqlite::Result<Fenced<Standing>> {
    let Some(mut found) = load(db, &lease.run_id)? else { return Ok(Err(LeaseLost)) };
    let sequence_number = match state::append(&mut found.run, lease.epoch, offset, text.len() as u64) {
        Ok(Some(sequence_number)) => sequence_number,
        Ok(None) => return Ok(Ok(standing(&found.run))),
        Err(_) => return Ok(Err(LeaseLost)),
    };
    db.prepare_cached("INSERT INTO deltas (run, sequence_number, text) VALUES (?1, ?2, ?3)")?.execute(params![
        found.pk,
        sequence_number,
        text.as_bytes()
    ])?;
    db.prepare_cached("UPDATE runs SET sequence_number = ?2, reply_bytes = ?3 WHERE pk = ?1")?.execute(params![
        found.pk,
        sequence_number,
        found.run.reply_bytes
    ])?;
    Ok(Ok(standing(&found.run)))
}

pub(super) fn finish(
    db: &Connection,
    lease: &Lease,
    finished: &Finished,
    text: Option<&str>,
    context: &Context,
) -> rusqlite::Result<Fenced<Changed>> {
    let Some(mut found) = load(db, &lease.run_id)? else { return Ok(Err(LeaseLost)) };
    if state::finish(&mut found.run, lease.epoch, finished.clone(), context.now).is_err() {
        return Ok(Err(LeaseLost));
    }
    if let Some(text) = text {
        db.prepare_cached("UPDATE runs SET final_text = ?2 WHERE pk = ?1")?.execute(params![found.pk, text.as_bytes()])?;
    }
    changed(db, found, context).map(Ok)
}

pub(super) fn release(db: &Connection, lease: &Lease, outcome: AttemptOutcome, context: &Context) -> rusqlite::Result<Fenced<Changed>> {
    let Some(mut found) = load(db, &lease.run_id)? else { return Ok(Err(LeaseLost)) };
    if state::release(&mut found.run, lease.epoch, outcome, &context.options.retry, context.jitter, context.now).is_err() {
        return Ok(Err(LeaseLost));
    }
    if found.run.status == Status::Queued {
        drop_reply(db, found.pk)?;
    }
    changed(db, found, context).map(Ok)
}

pub(super) fn cancel(db: &Connection, id: &RunId, context: &Context) -> rusqlite::Result<Option<Changed>> {
    let Some(mut found) = load(db, id)? else { return Ok(None) };
    cancel_stored(db, &mut found, context)?;
    let wake = startable(db, &found.run.user_id, context)?;
    Ok(super::read::run(db, id)?.map(|run| Changed { run, wake }))
}

/// Cancels and writes. A run that has ended keeps its end.
pub(super) fn cancel_stored(db: &Connection, found: &mut Stored, context: &Context) -> rusqlite::Result<()> {
    // Refused when it has ended or is being cancelled already; it may still have been marked as rolled back.
    let _unchanged = state::cancel(&mut found.run, context.now);
    save(db, found, context)
}

/// The runs it cancelled, and those that may start now.
pub(super) type Deleted = (Vec<Run>, Vec<RunId>);

pub(super) fn delete_conversation(db: &Connection, user: &UserId, id: &ConversationId, context: &Context) -> rusqlite::Result<Option<Deleted>> {
    let pk: Option<i64> = db
        .prepare_cached("UPDATE conversations SET deleted = 1 WHERE user_id = ?1 AND id = ?2 AND deleted = 0 RETURNING pk")?
        .query_row([user.as_str(), id.as_str()], |row| row.get(0))
        .optional()?;
    let Some(pk) = pk else { return Ok(None) };
    let active: Vec<Stored> = db
        .prepare_cached(&format!("SELECT {RUN_COLUMNS} FROM runs INDEXED BY runs_active_of_conversation WHERE conversation = ?1 AND status IN ('queued', 'in_progress', 'cancelling')"))?
        .query_map([pk], stored)?
        .collect::<rusqlite::Result<_>>()?;
    let mut cancelled = Vec::with_capacity(active.len());
    for mut found in active {
        cancel_stored(db, &mut found, context)?;
        cancelled.push(found.run);
    }
    Ok(Some((cancelled, startable(db, user, context)?)))
}

/// Writes a changed run and finds out whom it set free.
pub(super) fn changed(db: &Connection, mut found: Stored, context: &Context) -> rusqlite::Result<Changed> {
    save(db, &mut found, context)?;
    let wake = startable(db, &found.run.user_id, context)?;
    Ok(Changed { run: found.run, wake })
}

fn standing(run: &Run) -> Standing {
    Standing { cancelling: run.status == Status::Cancelling }
}
