//! What the documents hold, and where they are.
//!
//! ```text
//! runs/{run id}                         a run, small: its reply too while that is short
//! runs/{run id}/deltas/{epoch}-{number} the reply as it came; of a lost attempt under an older epoch, ignored
//! runs/{run id}/final/{epoch}-{part}    a stated reply that differs from the streamed one and is long
//! runs/{run id}/files/{epoch}           the list of an attempt's files, or of the message's (epoch 0)
//! runs/{run id}/fileParts/{epoch}-{hash}-{part}   what is in them; the path is hashed
//! conversations/{hash}                  one of a user's conversations
//! lines/{hash}                          a user's unfinished runs in order: who may start is decided on it alone
//! idempotency/{hash}                    which run a key made
//! trash/{key}                           a deleted conversation whose runs are still to be removed
//! removed/{run id}                      a run that is gone, as long as a message of it may live
//! deadLetters/{run id, msg_…}           what was put aside for people
//! workers/{worker id}                   what a worker says of itself
//! ```
//!
//! Names are random or hashed, because neighbouring names make hot spots. No index is on a time: what has to be found
//! by time carries an [`alarm`], which is spread over [`SHARDS`] ranges.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::client::{Found, Version};
use super::codec;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::ids::{ConversationId, RunId, UserId};
use crate::run::{Run, Status};
use crate::store::StoreOptions;
use crate::store::files::FilePath;

/// A reply up to this many bytes is in its run's document, where a listener sees it without reading anything else.
pub(super) const TEXT_MAX: usize = 64 << 10;
/// Ranges of alarms. Firestore takes about 500 writes a second into one range of rising values.
pub(super) const SHARDS: i64 = 4;
/// Alarms of one shard are below the next one's: milliseconds fit until the year 2248.
const SHARD_SPAN: i64 = 1 << 43;
const MINUTE: i64 = 60_000;

/// A record with the version it was read in.
#[derive(Debug, Clone)]
pub(super) struct Stored<T> {
    pub(super) path: String,
    pub(super) version: Version,
    pub(super) record: T,
}

impl<T: DeserializeOwned> Stored<T> {
    pub(super) fn decode(found: Found) -> Result<Self> {
        Ok(Self { record: codec::decode(&found.path, found.fields)?, path: found.path, version: found.version })
    }

    /// The record at `path`, or the one that `absent` makes.
    pub(super) fn or_new(found: Option<Found>, path: String, absent: impl FnOnce() -> T) -> Result<Self> {
        match found {
            Some(found) => Self::decode(found),
            None => Ok(Self { path, version: Version::Absent, record: absent() }),
        }
    }
}

/// A run's document.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RunRecord {
    #[serde(flatten)]
    pub(super) run: Run,
    /// The reply so far; null when it has become too long for this document.
    pub(super) text: Option<String>,
    /// The attempt's epoch whose deltas make the reply; 0 when there is none.
    pub(super) reply: u64,
    /// Parts of a long stated reply; 0 when the deltas are the reply.
    pub(super) final_parts: u64,
    /// The life of the conversation it belongs to: a deleted one and its successor of the same id differ.
    pub(super) conversation_key: String,
    /// Its place in the conversation.
    pub(super) ordinal: u64,
    /// When the sweeper must look at it.
    pub(super) sweep_at: Option<i64>,
    /// The minute it was accepted in, while it is queued: its place in the line is counted by it.
    pub(super) queued_minute: Option<i64>,
    pub(super) batch_id: Option<String>,
    pub(super) custom_id: Option<String>,
}

impl RunRecord {
    /// Sets what follows from the run's state. Called before every write of the whole record.
    pub(super) fn settle(&mut self, now: Timestamp, options: &StoreOptions) {
        let run = &mut self.run;
        if run.status.is_terminal() && run.expire_at.is_none() {
            run.expire_at = Some(now + options.retention);
        }
        let due = match run.status {
            Status::Queued => {
                let start_by = run.start_by.filter(|_| run.started_at.is_none());
                run.not_before.into_iter().chain(start_by).min()
            }
            Status::InProgress | Status::Cancelling => run.lease.as_ref().map(|lease| lease.expires_at),
            _ => run.expire_at,
        };
        self.sweep_at = due.map(|at| alarm(run.id.as_str(), at));
        self.queued_minute = (run.status == Status::Queued).then(|| run.created_at.as_millis().div_euclid(MINUTE));
        if run.status == Status::Queued && !run.attempts.is_empty() {
            // The next attempt begins the reply again.
            (self.text, self.reply, self.final_parts) = (Some(String::new()), 0, 0);
        } else if run.status.is_leased() {
            self.reply = run.epoch;
        }
    }
}

/// A conversation's document.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConversationRecord {
    pub(super) id: ConversationId,
    pub(super) user_id: UserId,
    pub(super) title: String,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
    pub(super) run_count: u64,
    pub(super) key: String,
    pub(super) next_ordinal: u64,
}

/// Which run an idempotency key made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KeyRecord {
    pub(super) user_id: UserId,
    pub(super) run_id: RunId,
    pub(super) body_hash: String,
    /// Firestore's TTL policy removes it some time after; from this moment on it counts as gone.
    pub(super) expire_at: Timestamp,
}

/// A deleted conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TrashRecord {
    pub(super) user_id: UserId,
    pub(super) key: String,
}

/// A piece of a reply.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeltaRecord {
    pub(super) sequence_number: u64,
    pub(super) epoch: u64,
    pub(super) text: String,
    pub(super) user_id: UserId,
    pub(super) expire_at: Timestamp,
}

pub(super) fn run_path(id: &RunId) -> String {
    format!("runs/{id}")
}

pub(super) fn line_path(user: &UserId) -> String {
    format!("lines/{}", hash(&[user.as_str()]))
}

pub(super) fn conversation_path(user: &UserId, id: &ConversationId) -> String {
    format!("conversations/{}", hash(&[user.as_str(), id.as_str()]))
}

pub(super) fn key_path(user: &UserId, key: &str) -> String {
    format!("idempotency/{}", hash(&[user.as_str(), key]))
}

pub(super) fn trash_path(key: &str) -> String {
    format!("trash/{key}")
}

/// The name of a delta or a part: names sort as their numbers do.
pub(super) fn piece_name(epoch: u64, number: u64) -> String {
    format!("{epoch:06}-{number:012}")
}

pub(super) fn file_list_path(run: &RunId, epoch: u64) -> String {
    format!("{}/files/{epoch:06}", run_path(run))
}

pub(super) fn file_part_path(run: &RunId, epoch: u64, path: &FilePath, number: usize) -> String {
    format!("{}/fileParts/{epoch:06}-{}-{number:04}", run_path(run), hash(&[path.as_str()]))
}

fn hash(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        // No part holds a NUL, so two lists never read the same.
        digest.update(part.as_bytes());
        digest.update([0]);
    }
    hex(&digest.finalize())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A moment that the sweeper finds: `at`, in the range of the document's shard.
pub(super) fn alarm(name: &str, at: Timestamp) -> i64 {
    let shard = i64::from(Sha256::digest(name.as_bytes())[0]) % SHARDS;
    shard * SHARD_SPAN + at.as_millis().clamp(0, SHARD_SPAN - 1)
}

/// The alarms of `shard` up to `until`.
pub(super) fn alarms(shard: i64, until: Timestamp) -> (i64, i64) {
    (shard * SHARD_SPAN, shard * SHARD_SPAN + until.as_millis().clamp(0, SHARD_SPAN - 1))
}

/// The moment of an alarm.
pub(super) fn alarm_time(alarm: i64) -> Timestamp {
    Timestamp::from_millis(alarm % SHARD_SPAN)
}
