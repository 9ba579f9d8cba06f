//! Reads: runs with their replies, events, lists. Each runs on one snapshot.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Context;
use super::rows::{Stored, has_active_predecessor, load, queue_length, running_of_user, text};
use crate::clock::Timestamp;
use crate::ids::{ConversationId, RunId, UserId};
use crate::run::{Run, RunEvent, RunEventKind, Status, Waiting, WaitingReason};
use crate::store::{BadCursor, Conversation, Depth, Events, POSITION_MAX, Page, Turn};

/// A page of runs ends early when it holds this many bytes of replies.
const PAGE_BYTES: usize = 4 << 20;
/// Events are read in pieces of about this many bytes: a client that reads slowly must not hold a whole reply in memory.
const EVENTS_BYTES: usize = 256 << 10;

pub(super) fn run(db: &Connection, id: &RunId) -> rusqlite::Result<Option<Run>> {
    visible(db, id)?.map(|stored| with_reply(db, stored)).transpose()
}

/// A run whose conversation was not deleted.
pub(super) fn visible(db: &Connection, id: &RunId) -> rusqlite::Result<Option<Stored>> {
    let Some(stored) = load(db, id)? else { return Ok(None) };
    let deleted: bool = db.prepare_cached("SELECT deleted FROM conversations WHERE pk = ?1")?.query_row([stored.conversation], |row| row.get(0))?;
    Ok((!deleted).then_some(stored))
}

fn with_reply(db: &Connection, mut stored: Stored) -> rusqlite::Result<Run> {
    stored.run.text = reply(db, stored.pk)?;
    Ok(stored.run)
}

fn reply(db: &Connection, pk: i64) -> rusqlite::Result<String> {
    let stated: Option<Vec<u8>> = db.prepare_cached("SELECT final_text FROM runs WHERE pk = ?1")?.query_row([pk], |row| row.get(0))?;
    if let Some(stated) = stated {
        return String::from_utf8(stated).map_err(|error| super::rows::conversion(0, error));
    }
    let mut reply = String::new();
    let mut statement = db.prepare_cached("SELECT text FROM deltas WHERE run = ?1 ORDER BY sequence_number")?;
    let mut rows = statement.query([pk])?;
    while let Some(row) = rows.next()? {
        reply.push_str(&text(row, 0)?);
    }
    Ok(reply)
}

pub(super) fn waiting(db: &Connection, id: &RunId, context: &Context) -> rusqlite::Result<Option<Waiting>> {
    let Some(Stored { pk, conversation, ordinal, run, .. }) = load(db, id)? else { return Ok(None) };
    if run.status != Status::Queued {
        return Ok(None);
    }
    let count = |index: &str, condition: &str, params: &[&dyn rusqlite::ToSql]| -> rusqlite::Result<u64> {
        let query = format!(
            "SELECT count(*) FROM (SELECT 1 FROM runs INDEXED BY {index} WHERE status = 'queued' AND {condition} LIMIT {})",
            POSITION_MAX - 1
        );
        db.prepare_cached(&query)?.query_row(params, |row| row.get(0))
    };
    let (reason, before) = if run.waiting_reason == Some(WaitingReason::SandboxNotEnforced) {
        // Until somebody has looked at it again.
        (WaitingReason::SandboxNotEnforced, 0)
    } else if run.not_before.is_some_and(|at| at > context.now) {
        (if run.attempts.is_empty() { WaitingReason::Scheduled } else { WaitingReason::Retrying }, 0)
    } else if has_active_predecessor(db, conversation, ordinal)? {
        let earlier = "conversation = ?1 AND ordinal < ?2 AND status IN ('queued', 'in_progress', 'cancelling')";
        (WaitingReason::ConversationBusy, count("runs_active_of_conversation", earlier, &[&conversation, &ordinal])?)
    } else if running_of_user(db, &run.user_id)? >= context.options.running_per_user {
        let earlier = "user_id = ?1 AND pk < ?2 AND status IN ('queued', 'in_progress', 'cancelling')";
        (WaitingReason::UserQuota, count("runs_active_of_user", earlier, &[&run.user_id.as_str(), &pk])?)
    } else {
        (WaitingReason::NoCapacity, count("runs_queued", "pk < ?1", &[&pk])?)
    };
    Ok(Some(Waiting { reason, position: before + 1 }))
}

pub(super) fn events(db: &Connection, id: &RunId, after: u64) -> rusqlite::Result<Option<Events>> {
    let Some(Stored { pk, run, .. }) = visible(db, id)? else { return Ok(None) };
    let after_signed = i64::try_from(after).unwrap_or(i64::MAX);
    let mut events: Vec<RunEvent> = run
        .status_log
        .iter()
        .filter(|change| change.sequence_number > after && !change.status.is_terminal())
        .map(|change| RunEvent {
            sequence_number: change.sequence_number,
            kind: RunEventKind::Status { status: change.status, waiting: change.waiting_reason },
        })
        .collect();
    let mut statement =
        db.prepare_cached("SELECT sequence_number, text FROM deltas WHERE run = ?1 AND sequence_number > ?2 ORDER BY sequence_number")?;
    let mut rows = statement.query([pk, after_signed])?;
    let (mut bytes, mut read, mut more) = (0, after, false);
    while let Some(row) = rows.next()? {
        if bytes > EVENTS_BYTES {
            more = true;
            break;
        }
        let text = text(row, 1)?;
        bytes += text.len();
        read = row.get(0)?;
        events.push(RunEvent { sequence_number: read, kind: RunEventKind::Delta { text } });
    }
    events.sort_by_key(|event| event.sequence_number);
    if more {
        events.retain(|event| event.sequence_number <= read);
    }
    Ok(Some(Events { events, ended: run.status.is_terminal() && !more, last: run.sequence_number }))
}

pub(super) fn history(db: &Connection, id: &RunId, max_bytes: usize) -> rusqlite::Result<Vec<Turn>> {
    let Some(Stored { conversation, ordinal, .. }) = load(db, id)? else { return Ok(Vec::new()) };
    let mut statement = db.prepare_cached(
        "SELECT pk, message, doc FROM runs INDEXED BY runs_of_conversation WHERE conversation = ?1 AND ordinal < ?2 AND rolled_back = 0
            AND status NOT IN ('queued', 'in_progress', 'cancelling') ORDER BY ordinal DESC",
    )?;
    let mut rows = statement.query([conversation, ordinal])?;
    let (mut turns, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let earlier: Run = serde_json::from_str(row.get_ref(2)?.as_str()?).map_err(|error| super::rows::conversion(2, error))?;
        // What was withdrawn before anybody saw it was never said.
        if earlier.attempts.is_empty() {
            continue;
        }
        let turn = Turn { message: text(row, 1)?, text: reply(db, row.get(0)?)? };
        bytes += turn.message.len() + turn.text.len();
        if bytes > max_bytes {
            break;
        }
        turns.push(turn);
    }
    turns.reverse();
    Ok(turns)
}

const CONVERSATION_COLUMNS: &str = "c.pk, c.id, c.title, c.created_at, c.updated_at,
    (SELECT count(*) FROM runs r INDEXED BY runs_of_conversation WHERE r.conversation = c.pk AND r.rolled_back = 0),
    (SELECT count(*) FROM runs r INDEXED BY runs_active_of_conversation WHERE r.conversation = c.pk AND r.status IN ('queued', 'in_progress', 'cancelling'))";

fn conversation_row(row: &Row<'_>) -> rusqlite::Result<(i64, Conversation)> {
    let id = row.get_ref(1)?.as_str()?.parse().map_err(|error| super::rows::conversion(1, error))?;
    let conversation = Conversation {
        id,
        title: row.get(2)?,
        created_at: Timestamp::from_millis(row.get(3)?),
        updated_at: Timestamp::from_millis(row.get(4)?),
        run_count: row.get(5)?,
        active_runs: row.get(6)?,
    };
    Ok((row.get(0)?, conversation))
}

pub(super) fn conversation(db: &Connection, user: &UserId, id: &ConversationId) -> rusqlite::Result<Option<Conversation>> {
    db.prepare_cached(&format!("SELECT {CONVERSATION_COLUMNS} FROM conversations c WHERE c.user_id = ?1 AND c.id = ?2 AND c.deleted = 0"))?
        .query_row([user.as_str(), id.as_str()], |row| conversation_row(row).map(|(_, conversation)| conversation))
        .optional()
}

/// The cursor is `<updated_at>_<pk>` of the last row shown.
pub(super) fn conversations(
    db: &Connection,
    user: &UserId,
    after: Option<&str>,
    limit: u32,
) -> rusqlite::Result<Result<Page<Conversation>, BadCursor>> {
    let (updated_at, pk) =
        match after.map(|after| after.split_once('_').and_then(|(time, pk)| Some((time.parse::<i64>().ok()?, pk.parse::<i64>().ok()?)))) {
            None => (i64::MAX, i64::MAX),
            Some(Some(cursor)) => cursor,
            Some(None) => return Ok(Err(BadCursor)),
        };
    let mut rows: Vec<(i64, Conversation)> = db
        .prepare_cached(&format!(
            "SELECT {CONVERSATION_COLUMNS} FROM conversations c
              WHERE c.user_id = ?1 AND c.deleted = 0 AND (c.updated_at, c.pk) < (?2, ?3) ORDER BY c.updated_at DESC, c.pk DESC LIMIT ?4"
        ))?
        .query_map(params![user.as_str(), updated_at, pk, u64::from(limit) + 1], conversation_row)?
        .collect::<rusqlite::Result<_>>()?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_after = rows.last().filter(|_| more).map(|(pk, last)| format!("{}_{pk}", last.updated_at.as_millis()));
    Ok(Ok(Page { data: rows.into_iter().map(|(_, conversation)| conversation).collect(), next_after }))
}

/// The cursor is the ordinal of the last run shown.
pub(super) fn conversation_runs(
    db: &Connection,
    user: &UserId,
    id: &ConversationId,
    after: Option<&str>,
    limit: u32,
) -> rusqlite::Result<Option<Result<Page<Run>, BadCursor>>> {
    let found: Option<i64> = db
        .prepare_cached("SELECT pk FROM conversations WHERE user_id = ?1 AND id = ?2 AND deleted = 0")?
        .query_row([user.as_str(), id.as_str()], |row| row.get(0))
        .optional()?;
    let Some(conversation) = found else { return Ok(None) };
    let after = match after.map(str::parse::<i64>) {
        None => -1,
        Some(Ok(ordinal)) if ordinal >= 0 => ordinal,
        Some(_) => return Ok(Some(Err(BadCursor))),
    };
    let mut statement = db.prepare_cached(&format!(
        "SELECT {} FROM runs INDEXED BY runs_of_conversation WHERE conversation = ?1 AND ordinal > ?2 AND rolled_back = 0 ORDER BY ordinal LIMIT ?3",
        super::rows::RUN_COLUMNS
    ))?;
    let mut rows = statement.query(params![conversation, after, u64::from(limit) + 1])?;
    let (mut data, mut bytes, mut last, mut more) = (Vec::new(), 0, after, false);
    while let Some(row) = rows.next()? {
        if data.len() >= limit as usize || bytes > PAGE_BYTES {
            more = true;
            break;
        }
        let stored = super::rows::stored(row)?;
        last = stored.ordinal;
        let run = with_reply(db, stored)?;
        bytes += run.text.len() + run.message.len();
        data.push(run);
    }
    Ok(Some(Ok(Page { data, next_after: more.then(|| last.to_string()) })))
}

pub(super) fn depth(db: &Connection) -> rusqlite::Result<Depth> {
    let queued = queue_length(db)?;
    let leased =
        db.prepare_cached("SELECT count(*) FROM runs INDEXED BY runs_leased WHERE lease_expires_at IS NOT NULL")?.query_row([], |row| row.get(0))?;
    let oldest: Option<String> = db
        .prepare_cached("SELECT doc FROM runs INDEXED BY runs_queued WHERE status = 'queued' ORDER BY pk LIMIT 1")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let oldest_queued_at = oldest.and_then(|doc| serde_json::from_str::<Run>(&doc).ok()).map(|run| run.created_at);
    Ok(Depth { queued, leased, oldest_queued_at })
}
