//! One bounded pass of repair. Level-triggered: it looks at what is, not at what happened, so that a pass that was
//! missed costs time and nothing else.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, params};

use super::change::changed;
use super::rows::{RUN_COLUMNS, Stored, drop_reply, run_id, stored};
use super::{Context, operations};
use crate::clock::Timestamp;
use crate::ids::RunId;
use crate::run::{Run, Status};
use crate::state;
use crate::store::{MESSAGES_LIVE, Sweep};

/// Rows of each kind in one pass, so that a pass never holds the writer for long.
const BATCH: u32 = 500;

/// Bytes of files that a pass removes, and the files of one run more.
const FILE_BYTES: u64 = 64 << 20;

/// What was done, and the runs whose watchers must hear of it.
pub(super) fn sweep(db: &Connection, context: &Context) -> rusqlite::Result<(Sweep, Vec<Run>)> {
    let mut sweep = Sweep::default();
    let mut runs = Vec::new();
    for mut found in due(db, "runs_leased", "lease_expires_at <= ?1", "lease_expires_at", context)? {
        if state::lose_lease(&mut found.run, &context.options.retry, context.jitter, context.now).is_ok() {
            if found.run.status == Status::Queued {
                drop_reply(db, found.pk)?;
            }
            sweep.lost += 1;
            record(changed(db, found, context)?, &mut sweep, &mut runs);
        }
    }
    for mut found in due(db, "runs_start_by", "start_by <= ?1 AND start_by IS NOT NULL AND status = 'queued'", "start_by", context)? {
        if state::expire(&mut found.run, context.now).is_ok() {
            sweep.expired += 1;
            record(changed(db, found, context)?, &mut sweep, &mut runs);
        }
    }
    sweep.wake.extend(retries_due(db, context)?);
    sweep.wake.extend(unpublished(db, context)?);
    // Each once, and those first that have been due for longest.
    let mut known = HashSet::new();
    sweep.wake.retain(|id| known.insert(id.clone()));
    sweep.removed = remove_expired(db, context)?;
    sweep.next_at = next_at(db)?;
    Ok((sweep, runs))
}

fn record(changed: crate::store::Changed, sweep: &mut Sweep, runs: &mut Vec<Run>) {
    sweep.wake.extend(changed.wake);
    runs.push(changed.run);
}

fn due(db: &Connection, index: &str, condition: &str, order: &str, context: &Context) -> rusqlite::Result<Vec<Stored>> {
    db.prepare_cached(&format!("SELECT {RUN_COLUMNS} FROM runs INDEXED BY {index} WHERE {condition} ORDER BY {order} LIMIT {BATCH}"))?
        .query_map([context.now.as_millis()], stored)?
        .collect()
}

/// Lost attempts whose delay has passed. The mark is taken off, so that the same run is not woken by every pass.
fn retries_due(db: &Connection, context: &Context) -> rusqlite::Result<Vec<RunId>> {
    db.prepare_cached(&format!(
        "UPDATE runs SET not_before = NULL, published_at = ?1 WHERE pk IN
            (SELECT pk FROM runs INDEXED BY runs_not_before WHERE not_before <= ?1 AND not_before IS NOT NULL AND status = 'queued' ORDER BY not_before LIMIT {BATCH})
         RETURNING id"
    ))?
    .query_map([context.now.as_millis()], run_id)?
    .collect()
}

/// Queued runs that could start and that nobody has been told of for a while: their message may be lost.
fn unpublished(db: &Connection, context: &Context) -> rusqlite::Result<Vec<RunId>> {
    let before = context.now - context.options.republish_after;
    let silent: Vec<(i64, RunId)> = db
        .prepare_cached(&format!(
            "SELECT r.id, r.pk FROM runs r INDEXED BY runs_published WHERE r.status = 'queued' AND r.published_at <= ?1 AND r.not_before IS NULL
                AND NOT EXISTS (SELECT 1 FROM runs p INDEXED BY runs_active_of_conversation WHERE p.conversation = r.conversation AND p.ordinal < r.ordinal
                                   AND p.status IN ('queued', 'in_progress', 'cancelling'))
              ORDER BY r.published_at LIMIT {BATCH}"
        ))?
        .query_map([before.as_millis()], |row| Ok((row.get(1)?, run_id(row)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (pk, _) in &silent {
        db.prepare_cached("UPDATE runs SET published_at = ?2 WHERE pk = ?1")?.execute([*pk, context.now.as_millis()])?;
    }
    Ok(silent.into_iter().map(|(_, id)| id).collect())
}

fn remove_expired(db: &Connection, context: &Context) -> rusqlite::Result<u64> {
    let now = context.now.as_millis();
    let mut removed = remove_runs(db, "runs_expire", "expire_at <= ?1 AND expire_at IS NOT NULL ORDER BY expire_at", now, context)?;
    removed += db
        .prepare_cached(&format!(
            "DELETE FROM idempotency_keys WHERE (user_id, key) IN (SELECT user_id, key FROM idempotency_keys WHERE expires_at <= ?1 LIMIT {BATCH})"
        ))?
        .execute([now])?;
    // Deleted conversations go run by run, as soon as their last container is gone.
    let deleted: Option<i64> = db
        .prepare_cached(
            "SELECT c.pk FROM conversations c WHERE c.deleted = 1 AND NOT EXISTS
                (SELECT 1 FROM runs r INDEXED BY runs_active_of_conversation WHERE r.conversation = c.pk AND r.status IN ('queued', 'in_progress', 'cancelling')) LIMIT 1",
        )?
        .query_row([], |row| row.get(0))
        .optional()?;
    if let Some(conversation) = deleted {
        let runs = remove_runs(db, "runs_of_conversation", "conversation = ?1", conversation, context)?;
        let empty: bool = db
            .prepare_cached("SELECT NOT EXISTS (SELECT 1 FROM runs INDEXED BY runs_of_conversation WHERE conversation = ?1)")?
            .query_row([conversation], |row| row.get(0))?;
        if empty {
            db.prepare_cached("DELETE FROM conversations WHERE pk = ?1")?.execute([conversation])?;
        }
        removed += runs + 1;
    }
    // One that has lost all of its runs to their age has nothing left to show.
    removed += db
        .prepare_cached(&format!(
            "DELETE FROM conversations WHERE pk IN (SELECT c.pk FROM conversations c INDEXED BY conversations_updated WHERE c.updated_at <= ?1
                AND NOT EXISTS (SELECT 1 FROM runs r INDEXED BY runs_of_conversation WHERE r.conversation = c.pk) LIMIT {BATCH})"
        ))?
        .execute([(context.now - context.options.retention).as_millis()])?;
    removed += operations::remove_expired(db, context.now)?;
    Ok(removed as u64)
}

/// Removes runs with their replies and files, and remembers for as long as a message may live that they were here.
fn remove_runs(db: &Connection, index: &str, condition: &str, parameter: i64, context: &Context) -> rusqlite::Result<usize> {
    let removed: Vec<(i64, String)> = db
        .prepare_cached(&format!("SELECT pk, id FROM runs INDEXED BY {index} WHERE {condition} LIMIT {BATCH}"))?
        .query_map([parameter], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let forget_at = (context.now + MESSAGES_LIVE).as_millis();
    let (mut count, mut bytes) = (0, 0);
    for (pk, id) in &removed {
        bytes += super::files::bytes_of(db, *pk)?;
        db.prepare_cached("DELETE FROM runs WHERE pk = ?1")?.execute([pk])?;
        db.prepare_cached("INSERT OR REPLACE INTO removed_runs (id, expire_at) VALUES (?1, ?2)")?.execute(params![id, forget_at])?;
        count += 1;
        if bytes > FILE_BYTES {
            break;
        }
    }
    Ok(count)
}

fn next_at(db: &Connection) -> rusqlite::Result<Option<Timestamp>> {
    let next: Option<i64> = db
        .prepare_cached(
            "SELECT min(at) FROM (
                SELECT min(lease_expires_at) AS at FROM runs INDEXED BY runs_leased WHERE lease_expires_at IS NOT NULL
                UNION ALL SELECT min(not_before) FROM runs INDEXED BY runs_not_before WHERE not_before IS NOT NULL AND status = 'queued'
                UNION ALL SELECT min(start_by) FROM runs INDEXED BY runs_start_by WHERE start_by IS NOT NULL AND status = 'queued')",
        )?
        .query_row(params![], |row| row.get(0))?;
    Ok(next.map(Timestamp::from_millis))
}
