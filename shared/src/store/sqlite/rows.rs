//! A run's row: reading it, writing it, and what its neighbours allow.
//!
//! Every statement over more than one run names its index (`INDEXED BY`): without statistics the planner takes any index
//! with an equality, and one wrong choice makes a call cost the length of the line. A statement that could not use the
//! index it names fails at once, in every test.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Context;
use crate::clock::Timestamp;
use crate::ids::{RunId, UserId};
use crate::run::{Run, Status};

/// A run with its place in the file.
pub(super) struct Stored {
    pub(super) pk: i64,
    pub(super) conversation: i64,
    pub(super) ordinal: i64,
    /// The status in the file, which `run` may have left since.
    pub(super) status: Status,
    pub(super) run: Run,
}

pub(super) const RUN_COLUMNS: &str = "pk, conversation, ordinal, sequence_number, lease_expires_at, doc, message, reply_bytes";

pub(super) fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let doc = row.get_ref(5)?.as_str()?;
    let mut run: Run = serde_json::from_str(doc).map_err(|error| conversion(5, error))?;
    run.sequence_number = row.get(3)?;
    run.reply_bytes = row.get(7)?;
    if let (Some(lease), Some(expires_at)) = (&mut run.lease, row.get::<_, Option<i64>>(4)?) {
        lease.expires_at = Timestamp::from_millis(expires_at);
    }
    run.message = text(row, 6)?;
    Ok(Stored { pk: row.get(0)?, conversation: row.get(1)?, ordinal: row.get(2)?, status: run.status, run })
}

/// Text that may hold NUL is kept as a blob: SQLite's own text functions stop at NUL.
pub(super) fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    String::from_utf8(row.get(column)?).map_err(|error| conversion(column, error))
}

/// A stored value that is not what this program writes: corruption, never a panic.
pub(super) fn conversion(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

pub(super) fn load(db: &Connection, id: &RunId) -> rusqlite::Result<Option<Stored>> {
    db.prepare_cached(&format!("SELECT {RUN_COLUMNS} FROM runs WHERE id = ?1"))?.query_row([id.as_str()], stored).optional()
}

/// Writes back what [`crate::state`] made of a run. Its message never changes and is not touched.
pub(super) fn save(db: &Connection, stored: &mut Stored, context: &Context) -> rusqlite::Result<()> {
    let run = &mut stored.run;
    if run.status.is_terminal() && run.expire_at.is_none() {
        run.expire_at = Some(context.now + context.options.retention);
    }
    let doc = document(run)?;
    match (stored.status == Status::Queued, run.status == Status::Queued) {
        (true, false) => drop(lengthen_queue(db, -1)?),
        (false, true) => drop(lengthen_queue(db, 1)?),
        _ => {}
    }
    if run.status.is_terminal() && !stored.status.is_terminal() {
        super::operations::bury(db, run, context)?;
    }
    stored.status = run.status;
    db.prepare_cached(
        "UPDATE runs SET status = ?2, rolled_back = ?3, not_before = ?4, lease_expires_at = ?5, expire_at = ?6,
                sequence_number = ?7, doc = ?8, reply_bytes = ?9 WHERE pk = ?1",
    )?
    .execute(params![
        stored.pk,
        run.status.as_str(),
        run.rolled_back,
        run.not_before.map(Timestamp::as_millis),
        run.lease.as_ref().map(|lease| lease.expires_at.as_millis()),
        run.expire_at.map(Timestamp::as_millis),
        run.sequence_number,
        doc,
        run.reply_bytes,
    ])?;
    Ok(())
}

/// The run as JSON without its message, which has a column of its own.
pub(super) fn document(run: &mut Run) -> rusqlite::Result<String> {
    let message = std::mem::take(&mut run.message);
    let doc = serde_json::to_string(run);
    run.message = message;
    doc.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// Whether an earlier run of the conversation is unfinished.
pub(super) fn has_active_predecessor(db: &Connection, conversation: i64, ordinal: i64) -> rusqlite::Result<bool> {
    db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM runs INDEXED BY runs_active_of_conversation WHERE conversation = ?1 AND ordinal < ?2 AND status IN ('queued', 'in_progress', 'cancelling'))",
    )?
    .query_row([conversation, ordinal], |row| row.get(0))
}

/// How many unfinished runs a user has.
pub(super) struct Active {
    pub(super) queued: u32,
    pub(super) running: u32,
}

/// A range of one user and not `user_id = ?1`: with that the planner looks for each of the list's words behind it, and makes
/// a table of them each time. The list only says that the index will do.
const ACTIVE_OF_USER: &str = "SELECT count(*) FILTER (WHERE status = 'queued'), count(*) FILTER (WHERE status <> 'queued')
   FROM runs INDEXED BY runs_active_of_user
  WHERE user_id BETWEEN ?1 AND ?1 AND status IN ('queued', 'in_progress', 'cancelling')";

/// The statuses are literals on purpose, here and everywhere: a bound one that decides whether a partial index applies
/// makes SQLite plan the statement anew each time.
pub(super) fn active_of_user(db: &Connection, user: &UserId) -> rusqlite::Result<Active> {
    db.prepare_cached(ACTIVE_OF_USER)?.query_row([user.as_str()], |row| Ok(Active { queued: row.get(0)?, running: row.get(1)? }))
}

pub(super) fn running_of_user(db: &Connection, user: &UserId) -> rusqlite::Result<u32> {
    active_of_user(db, user).map(|active| active.running)
}

/// Returns the new length. Two statements: one with `RETURNING` makes two tables for its single row.
pub(super) fn lengthen_queue(db: &Connection, by: i64) -> rusqlite::Result<u64> {
    db.prepare_cached("UPDATE queue_length SET queued = queued + ?1")?.execute([by])?;
    queue_length(db)
}

/// How many runs wait, of all users.
pub(super) fn queue_length(db: &Connection) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT queued FROM queue_length")?.query_row([], |row| row.get(0))
}

/// The oldest runs of the user that may start now, as many as they have places free.
pub(super) fn startable(db: &Connection, user: &UserId, context: &Context) -> rusqlite::Result<Vec<RunId>> {
    let free = context.options.running_per_user.saturating_sub(running_of_user(db, user)?);
    if free == 0 {
        return Ok(Vec::new());
    }
    db.prepare_cached(
        "SELECT r.id FROM runs r INDEXED BY runs_active_of_user
          WHERE r.user_id = ?1 AND r.status = 'queued' AND r.status IN ('queued', 'in_progress', 'cancelling')
            AND (r.not_before IS NULL OR r.not_before <= ?2)
            AND NOT EXISTS (SELECT 1 FROM runs p INDEXED BY runs_active_of_conversation WHERE p.conversation = r.conversation AND p.ordinal < r.ordinal
                               AND p.status IN ('queued', 'in_progress', 'cancelling'))
          ORDER BY r.pk LIMIT ?3",
    )?
    .query_map(params![user.as_str(), context.now.as_millis(), free], run_id)?
    .collect()
}

/// The first column as a run id.
pub(super) fn run_id(row: &Row<'_>) -> rusqlite::Result<RunId> {
    row.get_ref(0)?.as_str()?.parse().map_err(|error| conversion(0, error))
}

/// Drops the reply so far, and the files: the next attempt begins them again.
pub(super) fn drop_reply(db: &Connection, pk: i64) -> rusqlite::Result<()> {
    super::files::drop_left(db, pk)?;
    db.prepare_cached("DELETE FROM deltas WHERE run = ?1")?.execute([pk]).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::Database;

    /// A table that a statement makes for itself costs more than all it reads here.
    #[tokio::test]
    async fn counting_a_users_runs_makes_no_table() {
        let database = Database::in_memory().unwrap();
        let steps: Vec<String> = database
            .read(|db| {
                let mut explained = db.prepare(&format!("EXPLAIN {ACTIVE_OF_USER}"))?;
                explained.query_map(["u"], |row| row.get("opcode"))?.collect()
            })
            .await
            .unwrap();
        assert!(steps.iter().any(|step| step.starts_with("Seek")), "{steps:?}");
        assert!(!steps.iter().any(|step| step == "OpenEphemeral"), "{steps:?}");
    }
}
