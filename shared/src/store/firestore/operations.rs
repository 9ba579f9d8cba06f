//! Dead letters, workers, and the names of removed runs.

use firestore::gcloud_sdk::google::firestore::v1::Write;
use serde::{Deserialize, Serialize};

use super::FirestoreStore;
use super::client::{Committed, Version};
use super::codec;
use super::queries;
use super::records::Stored;
use crate::clock::Timestamp;
use crate::error::Result;
use crate::ids::{DeadLetterId, RunId, WorkerId};
use crate::run::Run;
use crate::store::{BadCursor, DeadLetter, MESSAGES_LIVE, Page, Stray, WORKERS_SHOWN, WorkerReport};

/// A dead letter's document.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LetterRecord {
    #[serde(flatten)]
    letter: DeadLetter,
    /// Whether nobody has redriven it yet.
    open: bool,
}

/// A worker's document.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WorkerRecord {
    #[serde(flatten)]
    report: WorkerReport,
    expire_at: Timestamp,
}

/// A run that is gone: a late message for it is no stray.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RemovedRecord {
    expire_at: Timestamp,
}

fn letter_path(id: &DeadLetterId) -> String {
    format!("deadLetters/{id}")
}

fn worker_path(id: &WorkerId) -> String {
    format!("workers/{id}")
}

fn removed_path(id: &RunId) -> String {
    format!("removed/{id}")
}

impl FirestoreStore {
    /// The write that puts a run aside that was given up; none for every other run.
    pub(super) fn burial(&self, run: &Run, now: Timestamp) -> Result<Option<Write>> {
        let Some(letter) = DeadLetter::of_run(run, now, now + self.options.retention) else { return Ok(None) };
        let path = letter_path(&letter.id);
        Ok(Some(self.client.write(&path, codec::encode(&LetterRecord { letter, open: true })?, Version::Any)))
    }

    /// The write that remembers a removed run for as long as a message of it may live.
    pub(super) fn obituary(&self, id: &RunId, now: Timestamp) -> Result<Write> {
        Ok(self.client.write(&removed_path(id), codec::encode(&RemovedRecord { expire_at: now + MESSAGES_LIVE })?, Version::Any))
    }

    pub(super) async fn was_removed(&self, id: &RunId) -> Result<bool> {
        Ok(self.client.get(&removed_path(id)).await?.is_some())
    }

    pub(super) async fn put_aside(&self, stray: &Stray) -> Result<()> {
        let now = self.now();
        let letter = DeadLetter::of_stray(stray, now, now + self.options.retention);
        let path = letter_path(&letter.id);
        // A conflict is the same letter, put aside before.
        let record = codec::encode(&LetterRecord { letter, open: true })?;
        self.client.commit(vec![self.client.write(&path, record, Version::Absent)]).await.map(drop)
    }

    /// The cursor is `<created_at>_<id>` of the last row shown.
    pub(super) async fn read_dead_letters(&self, after: Option<&str>, limit: u32) -> Result<Result<Page<DeadLetter>, BadCursor>> {
        let cursor = match after.map(cursor) {
            None => None,
            Some(Some((time, id))) => Some((time, self.client.name(&letter_path(&id)))),
            Some(None) => return Ok(Err(BadCursor)),
        };
        let limit = limit as usize;
        let mut found = self.client.query("", queries::dead_letters(cursor, limit + 1)).await?;
        let more = found.len() > limit;
        found.truncate(limit);
        let mut data: Vec<DeadLetter> = found
            .into_iter()
            .map(|found| codec::decode::<LetterRecord>(&found.path, found.fields).map(|record| record.letter))
            .collect::<Result<_>>()?;
        let next_after = data.last().filter(|_| more).map(|last| format!("{}_{}", last.created_at.as_millis(), last.id));
        // Firestore takes about a day to delete what is over.
        let now = self.now();
        data.retain(|letter| letter.expire_at > now);
        Ok(Ok(Page { data, next_after }))
    }

    pub(super) async fn read_dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>> {
        let Some(found) = self.client.get(&letter_path(id)).await? else { return Ok(None) };
        Ok(Some(codec::decode::<LetterRecord>(&found.path, found.fields)?.letter))
    }

    pub(super) async fn note_redriven(&self, id: &DeadLetterId, run: &RunId) -> Result<Option<DeadLetter>> {
        let mut tries = self.tries();
        loop {
            let Some(found) = tries.within(self.client.get(&letter_path(id))).await? else { return Ok(None) };
            let mut stored: Stored<LetterRecord> = Stored::decode(found)?;
            let record = &mut stored.record;
            if record.letter.redriven_as.is_some() {
                return Ok(Some(stored.record.letter));
            }
            (record.open, record.letter.redriven_as, record.letter.redriven_at) = (false, Some(run.clone()), Some(self.now()));
            let write = self.client.write(&stored.path, codec::encode(&stored.record)?, stored.version);
            if self.client.commit(vec![write]).await? == Committed::Done {
                return Ok(Some(stored.record.letter));
            }
            tries.again().await?;
        }
    }

    pub(super) async fn keep_report(&self, report: WorkerReport) -> Result<()> {
        let now = self.now();
        let record = WorkerRecord { report: WorkerReport { seen_at: now, ..report }, expire_at: now + WORKERS_SHOWN };
        let path = worker_path(&record.report.id);
        self.client.commit(vec![self.client.write(&path, codec::encode(&record)?, Version::Any)]).await.map(drop)
    }

    pub(super) async fn drop_report(&self, id: &WorkerId) -> Result<()> {
        self.client.commit(vec![self.client.delete(&worker_path(id), Version::Any)]).await.map(drop)
    }

    /// What Firestore has not deleted yet although its time is over is left out.
    pub(super) async fn read_workers(&self) -> Result<Vec<WorkerReport>> {
        let now = self.now();
        let mut workers = Vec::new();
        for found in self.client.query("", queries::workers()).await? {
            let record: WorkerRecord = codec::decode(&found.path, found.fields)?;
            if record.expire_at > now {
                workers.push(record.report);
            }
        }
        workers.sort_by_key(|worker| worker.started_at);
        Ok(workers)
    }
}

fn cursor(text: &str) -> Option<(Timestamp, DeadLetterId)> {
    let (time, id) = text.split_once('_')?;
    Some((Timestamp::from_millis(time.parse().ok().filter(|time| (0..1 << 45).contains(time))?), id.parse().ok()?))
}
