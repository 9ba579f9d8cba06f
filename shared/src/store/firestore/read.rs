//! Reads: runs with their replies, events, lists.

use firestore::gcloud_sdk::google::firestore::v1::StructuredQuery;

use super::FirestoreStore;
use super::client::Found;
use super::codec;
use super::queries;
use super::records::{ConversationRecord, DeltaRecord, RunRecord, Stored, conversation_path, piece_name, run_path};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::ids::{ConversationId, RunId, UserId};
use crate::run::{Run, RunEvent, RunEventKind, Status, Waiting, WaitingReason};
use crate::store::{BadCursor, Conversation, Depth, Events, POSITION_MAX, Page, Turn};

/// A page of runs ends early when it holds this many bytes of replies.
const PAGE_BYTES: usize = 4 << 20;
/// Deltas in one read of events; each has up to 256 KiB.
const EVENTS: usize = 32;
/// Pieces of a reply in one query.
const PIECES: usize = 64;
/// Runs of a history in one query.
const TURNS: usize = 20;
/// Queued runs of the same minute that are compared one by one.
const SAME_MINUTE: usize = 100;

impl FirestoreStore {
    pub(super) async fn read_run(&self, id: &RunId) -> Result<Option<Run>> {
        match self.load(id).await? {
            Some(stored) => self.seen(stored.record).await,
            None => Ok(None),
        }
    }

    /// The run with its reply, unless its conversation was deleted.
    pub(super) async fn seen(&self, record: RunRecord) -> Result<Option<Run>> {
        if !self.is_visible(&record).await? {
            return Ok(None);
        }
        self.with_reply(record).await.map(Some)
    }

    pub(super) async fn is_visible(&self, record: &RunRecord) -> Result<bool> {
        let path = conversation_path(&record.run.user_id, &record.run.conversation_id);
        let found = self.client.get(&path).await?;
        Ok(found.is_some_and(|found| codec::text_in(&found.fields, "key") == Some(&record.conversation_key)))
    }

    async fn with_reply(&self, record: RunRecord) -> Result<Run> {
        let text = match &record.text {
            Some(text) => text.clone(),
            None => self.long_reply(&record).await?,
        };
        let mut run = record.run;
        run.text = text;
        Ok(run)
    }

    async fn long_reply(&self, record: &RunRecord) -> Result<String> {
        let collection = if record.final_parts > 0 { "final" } else { "deltas" };
        let (mut reply, mut after) = (String::new(), 0);
        loop {
            let pieces = self.pieces(record, collection, after, PIECES).await?;
            let Some(last) = pieces.last() else { return Ok(reply) };
            after = last.sequence_number;
            for piece in &pieces {
                reply.push_str(&piece.text);
            }
            if pieces.len() < PIECES {
                return Ok(reply);
            }
        }
    }

    async fn pieces(&self, record: &RunRecord, collection: &str, after: u64, limit: usize) -> Result<Vec<DeltaRecord>> {
        let parent = run_path(&record.run.id);
        let name = |number| self.client.name(&format!("{parent}/{collection}/{}", piece_name(record.reply, number)));
        // Names of an epoch end before this one; twelve digits are more than any run has events.
        let query = queries::pieces(collection, name(after.min(LAST)), name(LAST), limit);
        self.client.query(&parent, query).await?.into_iter().map(|found| codec::decode(&found.path, found.fields)).collect()
    }

    pub(super) async fn read_waiting(&self, id: &RunId) -> Result<Option<Waiting>> {
        let Some(Stored { record: RunRecord { run, .. }, .. }) = self.load(id).await? else { return Ok(None) };
        if run.status != Status::Queued {
            return Ok(None);
        }
        // Until somebody has looked at it again.
        if run.waiting_reason == Some(WaitingReason::SandboxNotEnforced) {
            return Ok(Some(Waiting { reason: WaitingReason::SandboxNotEnforced, position: 1 }));
        }
        if run.not_before.is_some_and(|at| at > self.now()) {
            let reason = if run.attempts.is_empty() { WaitingReason::Scheduled } else { WaitingReason::Retrying };
            return Ok(Some(Waiting { reason, position: 1 }));
        }
        let line = self.line(&run.user_id).await?.record;
        let (reason, before) = match line.blocked(id, &self.options) {
            Some((reason, before)) => (reason, before as u64),
            None => (WaitingReason::NoCapacity, self.queued_before(run.created_at).await?),
        };
        Ok(Some(Waiting { reason, position: (before + 1).min(POSITION_MAX) }))
    }

    /// How many runs of all users wait longer. Exact unless more than [`SAME_MINUTE`] came in its own minute.
    async fn queued_before(&self, at: Timestamp) -> Result<u64> {
        let minute = at.as_millis().div_euclid(60_000);
        let (earlier, same) = tokio::join!(
            self.client.count(queries::queued_before(minute), POSITION_MAX),
            self.client.query("", queries::queued_in(minute, SAME_MINUTE)),
        );
        Ok(earlier? + same?.iter().filter(|found| created_at(found).is_some_and(|created| created < at)).count() as u64)
    }

    pub(super) async fn read_events(&self, id: &RunId, after: u64) -> Result<Option<Events>> {
        let Some(Stored { record, .. }) = self.load(id).await? else { return Ok(None) };
        if !self.is_visible(&record).await? {
            return Ok(None);
        }
        let run = &record.run;
        let mut events: Vec<RunEvent> = run
            .status_log
            .iter()
            .filter(|change| change.sequence_number > after && !change.status.is_terminal())
            .map(|change| RunEvent {
                sequence_number: change.sequence_number,
                kind: RunEventKind::Status { status: change.status, waiting: change.waiting_reason },
            })
            .collect();
        let deltas = if record.reply > 0 && after < run.sequence_number { self.pieces(&record, "deltas", after, EVENTS).await? } else { Vec::new() };
        let read = deltas.last().filter(|_| deltas.len() == EVENTS).map(|last| last.sequence_number);
        let newest = run.sequence_number;
        // Deltas that came after the run was read are told with the next reading, in their order.
        events.extend(
            deltas
                .into_iter()
                .filter(|delta| delta.sequence_number <= newest)
                .map(|delta| RunEvent { sequence_number: delta.sequence_number, kind: RunEventKind::Delta { text: delta.text } }),
        );
        events.sort_by_key(|event| event.sequence_number);
        if let Some(read) = read {
            events.retain(|event| event.sequence_number <= read);
        }
        Ok(Some(Events { events, ended: run.status.is_terminal() && read.is_none(), last: newest }))
    }

    pub(super) async fn read_history(&self, id: &RunId, max_bytes: usize) -> Result<Vec<Turn>> {
        let Some(Stored { record, .. }) = self.load(id).await? else { return Ok(Vec::new()) };
        let (mut turns, mut bytes, mut before) = (Vec::new(), 0, signed(record.ordinal));
        'reading: loop {
            let found = self.runs(queries::runs_before(&record.conversation_key, before, TURNS)).await?;
            let all = found.len() < TURNS;
            for earlier in found {
                before = signed(earlier.ordinal);
                // What was withdrawn before anybody saw it was never said.
                if !earlier.run.status.is_terminal() || earlier.run.attempts.is_empty() {
                    continue;
                }
                let run = self.with_reply(earlier).await?;
                bytes += run.message.len() + run.text.len();
                if bytes > max_bytes {
                    break 'reading;
                }
                turns.push(Turn { message: run.message, text: run.text });
            }
            if all {
                break;
            }
        }
        turns.reverse();
        Ok(turns)
    }

    async fn runs(&self, query: StructuredQuery) -> Result<Vec<RunRecord>> {
        self.client.query("", query).await?.into_iter().map(|found| codec::decode(&found.path, found.fields)).collect()
    }

    pub(super) async fn read_conversation(&self, user: &UserId, id: &ConversationId) -> Result<Option<Conversation>> {
        let path = conversation_path(user, id);
        let line = super::records::line_path(user);
        let mut found = self.client.get_all(&[&path, &line]).await?;
        let line = found.pop().flatten();
        let Some(conversation) = found.pop().flatten() else { return Ok(None) };
        let line = Stored::or_new(line, String::new(), || super::line::Line::new(user.clone()))?.record;
        Ok(Some(shown(Stored::<ConversationRecord>::decode(conversation)?.record, &line)))
    }

    /// The cursor is `<updated_at>_<document>` of the last row shown.
    pub(super) async fn read_conversations(&self, user: &UserId, after: Option<&str>, limit: u32) -> Result<Result<Page<Conversation>, BadCursor>> {
        let cursor = match after.map(cursor) {
            None => None,
            Some(Some((time, document))) => Some((time, self.client.name(&format!("conversations/{document}")))),
            Some(None) => return Ok(Err(BadCursor)),
        };
        let limit = limit as usize;
        let (found, line) = tokio::join!(self.client.query("", queries::conversations(user, cursor, limit + 1)), self.line(user));
        let (mut found, line) = (found?, line?.record);
        let more = found.len() > limit;
        found.truncate(limit);
        let rows: Vec<Stored<ConversationRecord>> = found.into_iter().map(Stored::decode).collect::<Result<_>>()?;
        let next_after = rows.last().filter(|_| more).map(|last| {
            let document = last.path.rsplit('/').next().unwrap_or_default();
            format!("{}_{document}", last.record.updated_at.as_millis())
        });
        Ok(Ok(Page { data: rows.into_iter().map(|row| shown(row.record, &line)).collect(), next_after }))
    }

    /// The cursor is the ordinal of the last run shown.
    pub(super) async fn read_conversation_runs(
        &self,
        user: &UserId,
        id: &ConversationId,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Option<Result<Page<Run>, BadCursor>>> {
        let Some(found) = self.client.get(&conversation_path(user, id)).await? else { return Ok(None) };
        let conversation: Stored<ConversationRecord> = Stored::decode(found)?;
        let after = match after.map(str::parse::<i64>) {
            None => -1,
            Some(Ok(ordinal)) if ordinal >= 0 => ordinal,
            Some(_) => return Ok(Some(Err(BadCursor))),
        };
        let limit = limit as usize;
        let found = self.runs(queries::runs_after(&conversation.record.key, after, limit + 1)).await?;
        let (mut data, mut bytes, mut last, mut more) = (Vec::new(), 0, after, false);
        for record in found {
            if data.len() >= limit || bytes > PAGE_BYTES {
                more = true;
                break;
            }
            last = signed(record.ordinal);
            let run = self.with_reply(record).await?;
            bytes += run.text.len() + run.message.len();
            data.push(run);
        }
        Ok(Some(Ok(Page { data, next_after: more.then(|| last.to_string()) })))
    }

    pub(super) async fn read_depth(&self) -> Result<Depth> {
        let (queued, leased, oldest) = tokio::join!(
            self.client.count(queries::queued(), u64::MAX),
            self.client.count(queries::leased(), u64::MAX),
            self.client.query("", queries::oldest_queued(SAME_MINUTE)),
        );
        Ok(Depth { queued: queued?, leased: leased?, oldest_queued_at: oldest?.iter().filter_map(created_at).min() })
    }
}

/// The largest number a piece may have.
const LAST: u64 = 999_999_999_999;

fn signed(ordinal: u64) -> i64 {
    i64::try_from(ordinal).unwrap_or(i64::MAX)
}

fn created_at(found: &Found) -> Option<Timestamp> {
    codec::time_in(&found.fields, "createdAt")
}

fn cursor(text: &str) -> Option<(Timestamp, &str)> {
    let (time, document) = text.split_once('_')?;
    let named = document.len() == 64 && document.bytes().all(|b| b.is_ascii_hexdigit());
    named.then_some((Timestamp::from_millis(time.parse().ok().filter(|time| (0..1 << 45).contains(time))?), document))
}

fn shown(record: ConversationRecord, line: &super::line::Line) -> Conversation {
    Conversation {
        active_runs: line.of_conversation(&record.key).count() as u64,
        id: record.id,
        title: record.title,
        created_at: record.created_at,
        updated_at: record.updated_at,
        run_count: record.run_count,
    }
}
