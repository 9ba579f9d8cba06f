//! Accepting a run: all of it or nothing.

use rusqlite::{Connection, OptionalExtension, params};

use super::Context;
use super::change::cancel_stored;
use super::rows::{RUN_COLUMNS, Stored, active_of_user, document, lengthen_queue, queue_length, startable, stored};
use crate::clock::Timestamp;
use crate::run::{Run, Status, Waiting, WaitingReason};
use crate::sqlite::Database;
use crate::store::draft;
use crate::store::{Idempotency, MultitaskStrategy, NewRun, POSITION_MAX, SubmitError, Submitted};

/// What was accepted, and the runs that were cancelled for it.
pub(super) struct Accepted {
    pub(super) submitted: Submitted,
    pub(super) cancelled: Vec<Run>,
}

/// A submission with all that can be made of it before it is the writer's turn.
pub(super) struct Prepared {
    new: NewRun,
    /// The run as it will be when nothing holds it up, and its document.
    run: Run,
    doc: String,
    title: String,
}

/// Runs on the caller's thread: the writer's time is everybody's.
pub(super) fn prepare(new: NewRun, context: &Context) -> rusqlite::Result<Prepared> {
    let mut run = draft::first_version(&new, context.now);
    let doc = document(&mut run)?;
    let title = draft::title(&new.message);
    Ok(Prepared { new, run, doc, title })
}

/// The outer result is the database's; the inner one says why nothing was accepted.
pub(super) fn submit(
    db: &Connection,
    prepared: &Prepared,
    context: &Context,
    database: &Database,
) -> rusqlite::Result<Result<Accepted, SubmitError>> {
    let new = &prepared.new;
    if let Some(idempotency) = &new.idempotency {
        match earlier(db, new, idempotency, context)? {
            Some(Ok(run)) => {
                let waiting = super::read::waiting(db, &run.id, context)?;
                let submitted = Submitted { run, replayed: true, waiting, wake: Vec::new() };
                return Ok(Ok(Accepted { submitted, cancelled: Vec::new() }));
            }
            Some(Err(error)) => return Ok(Err(error)),
            None => {}
        }
    }
    if let Err(full) = database.refuse_new() {
        return Ok(Err(full.into()));
    }
    let limit = context.options.queued_per_user;
    let mut of_user = active_of_user(db, &new.user_id)?;
    if of_user.queued >= limit {
        return Ok(Err(SubmitError::QueueFull { limit }));
    }
    let limit = context.options.queued;
    if queue_length(db)? >= limit {
        return Ok(Err(SubmitError::Overloaded { limit }));
    }
    let conversation = conversation(db, new)?;
    let active = match conversation {
        Some((pk, _)) => active_runs(db, pk)?,
        None => Vec::new(),
    };
    if new.multitask == MultitaskStrategy::Reject && !active.is_empty() {
        return Ok(Err(SubmitError::ConversationBusy));
    }
    // From here on nothing refuses the run any more: a refusal must not leave half of it behind.
    let mut busy = !active.is_empty();
    let mut queued_before = active.iter().filter(|earlier| earlier.run.status == Status::Queued).count();
    let mut cancelled = Vec::new();
    if matches!(new.multitask, MultitaskStrategy::Interrupt | MultitaskStrategy::Rollback) {
        (busy, queued_before) = (false, 0);
        for mut earlier in active {
            earlier.run.rolled_back |= new.multitask == MultitaskStrategy::Rollback;
            cancel_stored(db, &mut earlier, context)?;
            busy |= !earlier.run.status.is_terminal();
            cancelled.push(earlier.run);
        }
        of_user = active_of_user(db, &new.user_id)?;
    }
    let (conversation, ordinal) = match conversation {
        Some((pk, ordinal)) => {
            db.prepare_cached("UPDATE conversations SET updated_at = ?2, next_ordinal = ?3 WHERE pk = ?1")?.execute(params![
                pk,
                context.now.as_millis(),
                ordinal + 1
            ])?;
            (pk, ordinal)
        }
        None => (create_conversation(db, prepared, context)?, 0),
    };
    let at_quota = of_user.running >= context.options.running_per_user;
    let reason = match (busy, at_quota) {
        (true, _) => WaitingReason::ConversationBusy,
        (false, true) => WaitingReason::UserQuota,
        (false, false) => WaitingReason::NoCapacity,
    };
    let run = insert(db, prepared, conversation, ordinal, reason)?;
    if let Some(Idempotency { key, body_hash }) = &new.idempotency {
        db.prepare_cached("INSERT OR REPLACE INTO idempotency_keys (user_id, key, body_hash, run_id, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![run.user_id.as_str(), key, body_hash, run.id.as_str(), (context.now + draft::IDEMPOTENCY_TTL).as_millis()])?;
    }
    let queued = lengthen_queue(db, 1)?;
    let position = match reason {
        WaitingReason::ConversationBusy => queued_before as u64 + 1,
        WaitingReason::UserQuota => u64::from(of_user.queued) + 1,
        _ => queued,
    };
    let waiting = Some(Waiting { reason, position: position.min(POSITION_MAX) });
    let wake = if !cancelled.is_empty() {
        // Cancelled runs may have freed the way for others too.
        startable(db, &run.user_id, context)?
    } else if reason == WaitingReason::NoCapacity {
        vec![run.id.clone()]
    } else {
        Vec::new()
    };
    Ok(Ok(Accepted { submitted: Submitted { run, replayed: false, waiting, wake }, cancelled }))
}

/// The run that the key made before. A key whose run was deleted since, or whose time is over, is free again.
fn earlier(db: &Connection, new: &NewRun, idempotency: &Idempotency, context: &Context) -> rusqlite::Result<Option<Result<Run, SubmitError>>> {
    let found: Option<(Vec<u8>, String)> = db
        .prepare_cached("SELECT body_hash, run_id FROM idempotency_keys WHERE user_id = ?1 AND key = ?2 AND expires_at > ?3")?
        .query_row(params![new.user_id.as_str(), idempotency.key, context.now.as_millis()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((body_hash, run_id)) = found else { return Ok(None) };
    let run = match run_id.parse() {
        Ok(id) => super::read::run(db, &id)?,
        Err(error) => return Err(super::rows::conversion(1, error)),
    };
    Ok(run.map(|run| if body_hash == idempotency.body_hash { Ok(run) } else { Err(SubmitError::KeyReused) }))
}

/// The conversation's key and the place of its next run.
fn conversation(db: &Connection, new: &NewRun) -> rusqlite::Result<Option<(i64, i64)>> {
    db.prepare_cached("SELECT pk, next_ordinal FROM conversations WHERE user_id = ?1 AND id = ?2 AND deleted = 0")?
        .query_row([new.user_id.as_str(), new.conversation_id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

fn create_conversation(db: &Connection, prepared: &Prepared, context: &Context) -> rusqlite::Result<i64> {
    let Prepared { new, title, .. } = prepared;
    db.prepare_cached("INSERT INTO conversations (user_id, id, title, created_at, updated_at, next_ordinal) VALUES (?1, ?2, ?3, ?4, ?4, 1)")?
        .insert(params![new.user_id.as_str(), new.conversation_id.as_str(), title, context.now.as_millis()])
}

fn active_runs(db: &Connection, conversation: i64) -> rusqlite::Result<Vec<Stored>> {
    db.prepare_cached(&format!(
        "SELECT {RUN_COLUMNS} FROM runs INDEXED BY runs_active_of_conversation WHERE conversation = ?1 AND status IN ('queued', 'in_progress', 'cancelling') ORDER BY ordinal"
    ))?
    .query_map([conversation], stored)?
    .collect()
}

fn insert(db: &Connection, prepared: &Prepared, conversation: i64, ordinal: i64, reason: WaitingReason) -> rusqlite::Result<Run> {
    let mut run = prepared.run.clone();
    let held_up = if run.waiting_reason == Some(reason) {
        None
    } else {
        draft::held_up_by(&mut run, reason);
        Some(document(&mut run)?)
    };
    db.prepare_cached(
        "INSERT INTO runs (id, user_id, conversation, ordinal, status, start_by, published_at, sequence_number, doc, message)
         VALUES (?1, ?2, ?3, ?4, 'queued', ?5, ?6, 1, ?7, ?8)",
    )?
    .execute(params![
        run.id.as_str(),
        run.user_id.as_str(),
        conversation,
        ordinal,
        run.start_by.map(Timestamp::as_millis),
        run.created_at.as_millis(),
        held_up.as_ref().unwrap_or(&prepared.doc),
        run.message.as_bytes(),
    ])?;
    super::files::insert_inputs(db, db.last_insert_rowid(), &prepared.new.files)?;
    Ok(run)
}
