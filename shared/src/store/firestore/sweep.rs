//! One bounded pass of repair. Level-triggered, and safe in any number of workers at once: each repair is a
//! compare-and-set, and who comes second finds nothing to do.

use std::sync::PoisonError;
use std::time::Duration;

use firestore::gcloud_sdk::google::firestore::v1::Write;
use futures::future::try_join_all;
use serde::de::DeserializeOwned;

use super::FirestoreStore;
use super::client::{Committed, Found, Version};
use super::codec;
use super::line::Line;
use super::queries;
use super::records::{ConversationRecord, RunRecord, SHARDS, Stored, TrashRecord, alarm_time, conversation_path, trash_path};
use crate::clock::Timestamp;
use crate::error::{Result, chain};
use crate::ids::RunId;
use crate::run::Status;
use crate::store::{Changed, Sweep};

/// Alarms of one shard in one pass.
const BATCH: usize = 100;
/// How far ahead a pass looks, to say when the next one is worth while.
const AHEAD: Duration = Duration::from_secs(10);
/// Deleted conversations in one pass.
const TRASH: usize = 5;
/// Documents removed in one commit.
const REMOVALS: usize = 200;

impl FirestoreStore {
    pub(super) async fn sweep_once(&self, now: Timestamp) -> Result<Sweep> {
        let (runs, lines) = tokio::join!(self.due("runs", now), self.due("lines", now));
        let mut sweep = Sweep::default();
        let (runs, next_at) = split(runs?, now);
        sweep.next_at = next_at;
        for found in runs {
            if let Some(stored) = self.readable(found) {
                self.sweep_run(stored, now, &mut sweep).await?;
            }
        }
        // Announcing again is a precaution: with many users there is always one to come, and none is worth a pass of its own.
        for found in split(lines?, now).0 {
            if let Some(stored) = self.readable(found) {
                sweep.wake.extend(self.announce(stored, now).await?);
            }
        }
        for found in self.client.query("", queries::trash(TRASH)).await? {
            let trash: Stored<TrashRecord> = Stored::decode(found)?;
            sweep.removed += self.empty_trash(&trash.record.key).await?;
        }
        sweep.wake.sort();
        sweep.wake.dedup();
        Ok(sweep)
    }

    /// A record that is due. One that somebody else wrote must not keep the others from being repaired: it is told once and
    /// left alone.
    fn readable<T: DeserializeOwned>(&self, found: Found) -> Option<Stored<T>> {
        let path = found.path.clone();
        match Stored::decode(found) {
            Ok(stored) => Some(stored),
            Err(error) => {
                if self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).insert(path) {
                    tracing::error!(error = %chain(&error), "the sweeper leaves a document alone that it cannot read; mend or delete it");
                }
                None
            }
        }
    }

    async fn due(&self, collection: &str, now: Timestamp) -> Result<Vec<Found>> {
        let shards = (0..SHARDS).map(|shard| self.client.query("", queries::due(collection, shard, now + AHEAD, BATCH)));
        Ok(try_join_all(shards).await?.into_iter().flatten().collect())
    }

    async fn sweep_run(&self, stored: Stored<RunRecord>, now: Timestamp, sweep: &mut Sweep) -> Result<()> {
        let run = &stored.record.run;
        match run.status {
            Status::InProgress | Status::Cancelling => {
                if let Some(Changed { wake, .. }) = self.take_back(&run.id, now).await? {
                    sweep.lost += 1;
                    sweep.wake.extend(wake);
                }
            }
            Status::Queued if run.started_at.is_none() && run.start_by.is_some_and(|by| by <= now) => {
                if let Some(Changed { wake, .. }) = self.expire_run(&run.id).await? {
                    sweep.expired += 1;
                    sweep.wake.extend(wake);
                }
            }
            Status::Queued => sweep.wake.extend(self.retry_due(&run.id).await?),
            _ => {
                self.remove(&stored).await?;
                sweep.removed += 1;
            }
        }
        Ok(())
    }

    /// Runs of a user that could start and that nobody has been told of for a while: their message may be lost.
    async fn announce(&self, mut line: Stored<Line>, now: Timestamp) -> Result<Vec<RunId>> {
        let wake = line.record.startable(&self.options, now);
        line.record.sweep_at = None;
        line.record.settle(now, &self.options);
        // Whoever was faster announces them.
        let done = self.client.commit(vec![self.line_write(&line)?]).await? == Committed::Done;
        Ok(if done { wake } else { Vec::new() })
    }

    /// Removes what can be removed of a deleted conversation now. Returns how many records went.
    pub(super) async fn empty_trash(&self, key: &str) -> Result<u64> {
        let mut removed = 0;
        loop {
            let found = self.client.query("", queries::runs_of(key, BATCH)).await?;
            let (all, mut kept) = (found.len() < BATCH, 0);
            for found in found {
                let stored: Stored<RunRecord> = Stored::decode(found)?;
                if stored.record.run.status.is_terminal() {
                    self.remove(&stored).await?;
                    removed += 1;
                } else {
                    kept += 1;
                }
            }
            if all && kept == 0 {
                self.client.commit(vec![self.client.delete(&trash_path(key), Version::Any)]).await?;
                return Ok(removed + 1);
            }
            if all || kept == BATCH {
                return Ok(removed);
            }
        }
    }

    /// Removes a run with all of its reply and its files: the run last, so that a removal that broke off is found again.
    async fn remove(&self, stored: &Stored<RunRecord>) -> Result<()> {
        for collection in ["deltas", "final", "fileParts", "files"] {
            loop {
                let pieces = self.client.query(&stored.path, queries::piece_names(collection, REMOVALS)).await?;
                if pieces.is_empty() {
                    break;
                }
                let writes: Vec<Write> = pieces.iter().map(|piece| self.client.delete(&piece.path, Version::Any)).collect();
                self.client.commit(writes).await?;
                if pieces.len() < REMOVALS {
                    break;
                }
            }
        }
        let run = &stored.record.run;
        let path = conversation_path(&run.user_id, &run.conversation_id);
        let mut tries = self.tries();
        loop {
            let mut found = self.client.get_all(&[&stored.path, &path]).await?;
            let conversation = found.pop().flatten();
            // Another sweeper was faster: it has counted the run off, too.
            let Some(Found { version, .. }) = found.pop().flatten() else { return Ok(()) };
            let mut writes = vec![self.client.delete(&stored.path, version), self.obituary(&run.id, self.now())?];
            if !run.rolled_back
                && let Some(conversation) = conversation
            {
                let mut conversation: Stored<ConversationRecord> = Stored::decode(conversation)?;
                if conversation.record.key == stored.record.conversation_key {
                    conversation.record.run_count = conversation.record.run_count.saturating_sub(1);
                    // One that has lost all of its runs to their age has nothing left to show.
                    let over = conversation.record.run_count == 0 && conversation.record.updated_at + self.options.retention <= self.now();
                    writes.push(if over {
                        self.client.delete(&path, conversation.version)
                    } else {
                        self.client.write(&path, codec::encode(&conversation.record)?, conversation.version)
                    });
                }
            }
            if self.client.commit(writes).await? == Committed::Done {
                return Ok(());
            }
            tries.again().await?;
        }
    }
}

/// What is due now, and when the first of the others is that somebody waits for: the removal of a run that has ended is not.
fn split(found: Vec<Found>, now: Timestamp) -> (Vec<Found>, Option<Timestamp>) {
    let (due, ahead): (Vec<Found>, Vec<Found>) = found.into_iter().partition(|found| at(found).is_some_and(|at| at <= now));
    let next_at = ahead.iter().filter(|found| !has_ended(found)).filter_map(at).min();
    (due, next_at)
}

fn has_ended(found: &Found) -> bool {
    codec::time_in(&found.fields, "finishedAt").is_some()
}

fn at(found: &Found) -> Option<Timestamp> {
    codec::integer_in(&found.fields, "sweepAt").map(alarm_time)
}
