//! Dead letters and workers.

use rusqlite::{Connection, OptionalExtension, params};

use super::Context;
use super::rows::conversion;
use crate::clock::Timestamp;
use crate::ids::{DeadLetterId, RunId, WorkerId};
use crate::run::Run;
use crate::store::{BadCursor, DeadLetter, Page, Stray, WORKERS_SHOWN, WorkerReport};

fn decoded<T: serde::de::DeserializeOwned>(doc: &str, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(doc).map_err(|error| conversion(column, error))
}

fn encoded(record: &impl serde::Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(record).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn put_aside(db: &Connection, letter: &DeadLetter) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO dead_letters (id, open, expire_at, doc) VALUES (?1, 1, ?2, ?3) ON CONFLICT (id) DO NOTHING")?
        .execute(params![letter.id.as_str(), letter.expire_at.as_millis(), encoded(letter)?])
        .map(drop)
}

/// Puts a run aside that was given up; every other run is left alone.
pub(super) fn bury(db: &Connection, run: &Run, context: &Context) -> rusqlite::Result<()> {
    match DeadLetter::of_run(run, context.now, context.now + context.options.retention) {
        Some(letter) => put_aside(db, &letter),
        None => Ok(()),
    }
}

pub(super) fn quarantine(db: &Connection, stray: &Stray, context: &Context) -> rusqlite::Result<()> {
    put_aside(db, &DeadLetter::of_stray(stray, context.now, context.now + context.options.retention))
}

/// The cursor is the key of the last row shown.
pub(super) fn dead_letters(db: &Connection, after: Option<&str>, limit: u32) -> rusqlite::Result<Result<Page<DeadLetter>, BadCursor>> {
    let before = match after.map(str::parse::<i64>) {
        None => i64::MAX,
        Some(Ok(pk)) => pk,
        Some(Err(_)) => return Ok(Err(BadCursor)),
    };
    let mut rows: Vec<(i64, DeadLetter)> = db
        .prepare_cached("SELECT pk, doc FROM dead_letters INDEXED BY dead_letters_open WHERE open = 1 AND pk < ?1 ORDER BY pk DESC LIMIT ?2")?
        .query_map(params![before, u64::from(limit) + 1], |row| Ok((row.get(0)?, decoded(row.get_ref(1)?.as_str()?, 1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_after = rows.last().filter(|_| more).map(|(pk, _)| pk.to_string());
    Ok(Ok(Page { data: rows.into_iter().map(|(_, letter)| letter).collect(), next_after }))
}

pub(super) fn dead_letter(db: &Connection, id: &DeadLetterId) -> rusqlite::Result<Option<DeadLetter>> {
    db.prepare_cached("SELECT doc FROM dead_letters WHERE id = ?1")?.query_row([id.as_str()], |row| decoded(row.get_ref(0)?.as_str()?, 0)).optional()
}

pub(super) fn redriven(db: &Connection, id: &DeadLetterId, run: &RunId, now: Timestamp) -> rusqlite::Result<Option<DeadLetter>> {
    let Some(mut letter) = dead_letter(db, id)? else { return Ok(None) };
    if letter.redriven_as.is_none() {
        (letter.redriven_as, letter.redriven_at) = (Some(run.clone()), Some(now));
        db.prepare_cached("UPDATE dead_letters SET open = 0, doc = ?2 WHERE id = ?1")?.execute([id.as_str(), &encoded(&letter)?])?;
    }
    Ok(Some(letter))
}

pub(super) fn report_worker(db: &Connection, report: &WorkerReport) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO workers (id, seen_at, doc) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE SET seen_at = ?2, doc = ?3")?
        .execute(params![report.id.as_str(), report.seen_at.as_millis(), encoded(report)?])
        .map(drop)
}

pub(super) fn forget_worker(db: &Connection, id: &WorkerId) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM workers WHERE id = ?1")?.execute([id.as_str()]).map(drop)
}

pub(super) fn workers(db: &Connection, now: Timestamp) -> rusqlite::Result<Vec<WorkerReport>> {
    let mut workers: Vec<WorkerReport> = db
        .prepare_cached("SELECT doc FROM workers WHERE seen_at > ?1")?
        .query_map([(now - WORKERS_SHOWN).as_millis()], |row| decoded(row.get_ref(0)?.as_str()?, 0))?
        .collect::<rusqlite::Result<_>>()?;
    workers.sort_by_key(|worker| worker.started_at);
    Ok(workers)
}

/// Whether a run was here and was removed.
pub(super) fn was_removed(db: &Connection, id: &RunId) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM removed_runs WHERE id = ?1)")?.query_row([id.as_str()], |row| row.get(0))
}

/// Removes what is over. Returns how many records went.
pub(super) fn remove_expired(db: &Connection, now: Timestamp) -> rusqlite::Result<usize> {
    let mut removed = db.prepare_cached("DELETE FROM dead_letters WHERE expire_at <= ?1")?.execute([now.as_millis()])?;
    removed += db.prepare_cached("DELETE FROM workers WHERE seen_at <= ?1")?.execute([(now - WORKERS_SHOWN).as_millis()])?;
    db.prepare_cached("DELETE FROM removed_runs WHERE expire_at <= ?1")?.execute([now.as_millis()])?;
    Ok(removed)
}
