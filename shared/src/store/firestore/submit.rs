//! Accepting a run: all of it or nothing, in one commit.

use std::collections::BTreeMap;

use super::FirestoreStore;
use super::client::{Committed, Found};
use super::codec;
use super::line::Line;
use super::queries;
use super::records::{ConversationRecord, KeyRecord, RunRecord, Stored, conversation_path, hex, key_path, line_path, run_path};
use crate::error::Result;
use crate::ids::{ConversationId, RunId};
use crate::run::{Run, Status, Waiting, WaitingReason};
use crate::state;
use crate::store::{Idempotency, MultitaskStrategy, NewRun, POSITION_MAX, SubmitError, Submitted, draft};

/// One try: what it came to, or `None` when another writer came first.
type Tried = Result<Option<Submitted>, SubmitError>;

/// The documents that a submission is decided on.
struct Read {
    line: Stored<Line>,
    conversation: Stored<ConversationRecord>,
    key: Option<(Stored<KeyRecord>, bool)>,
    queued: u64,
    /// Whether as many runs of all users wait as are taken.
    full: bool,
}

impl FirestoreStore {
    pub(super) async fn submit_run(&self, new: NewRun) -> Result<Submitted, SubmitError> {
        let mut tries = self.tries();
        let _turn = self.turn(&line_path(&new.user_id), &tries).await?;
        loop {
            let read = tries.within(self.read_for_submit(&new)).await?;
            if let Some(submitted) = self.try_submit(&new, read).await? {
                return Ok(submitted);
            }
            tries.again().await?;
        }
    }

    async fn read_for_submit(&self, new: &NewRun) -> Result<Read> {
        let line = line_path(&new.user_id);
        let conversation = conversation_path(&new.user_id, &new.conversation_id);
        let key = new.idempotency.as_ref().map(|idempotency| key_path(&new.user_id, &idempotency.key));
        let paths: Vec<&str> = [Some(&line), Some(&conversation), key.as_ref()].into_iter().flatten().map(String::as_str).collect();
        let (found, queued) = tokio::join!(self.client.get_all(&paths), self.client.count(queries::queued(), POSITION_MAX));
        let mut found = found?.into_iter();
        let mut next = || found.next().flatten();
        let line = Stored::or_new(next(), line, || Line::new(new.user_id.clone()))?;
        let conversation = Stored::or_new(next(), conversation, || self.conversation_of(new))?;
        let key = new.idempotency.as_ref().zip(key).map(|(idempotency, path)| self.key_of(new, idempotency, path, next())).transpose()?;
        let queued = queued?;
        let full = self.backlog.is_full(&self.client, queued, self.options.queued).await?;
        Ok(Read { line, conversation, key, queued, full })
    }

    fn conversation_of(&self, new: &NewRun) -> ConversationRecord {
        ConversationRecord {
            id: new.conversation_id.clone(),
            user_id: new.user_id.clone(),
            title: draft::title(&new.message),
            created_at: self.now(),
            updated_at: self.now(),
            run_count: 0,
            key: ConversationId::random().as_str().to_owned(),
            next_ordinal: 0,
        }
    }

    /// The key's record, and whether it was there.
    fn key_of(&self, new: &NewRun, idempotency: &Idempotency, path: String, found: Option<Found>) -> Result<(Stored<KeyRecord>, bool)> {
        let known = found.is_some();
        let stored = Stored::or_new(found, path, || KeyRecord {
            user_id: new.user_id.clone(),
            run_id: new.id.clone(),
            body_hash: hex(&idempotency.body_hash),
            expire_at: self.now() + draft::IDEMPOTENCY_TTL,
        })?;
        Ok((stored, known))
    }

    async fn try_submit(&self, new: &NewRun, read: Read) -> Tried {
        let now = self.now();
        let Read { mut line, mut conversation, mut key, queued, full } = read;
        if let Some(((stored, known), idempotency)) = key.as_mut().zip(new.idempotency.as_ref()) {
            if *known && stored.record.expire_at > now {
                // A key whose run was deleted since is free again.
                if let Some(run) = self.read_run(&stored.record.run_id).await? {
                    if stored.record.body_hash != hex(&idempotency.body_hash) {
                        return Err(SubmitError::KeyReused);
                    }
                    let waiting = self.read_waiting(&run.id).await?;
                    return Ok(Some(Submitted { run, replayed: true, waiting, wake: Vec::new() }));
                }
            }
            stored.record = KeyRecord {
                user_id: new.user_id.clone(),
                run_id: new.id.clone(),
                body_hash: hex(&idempotency.body_hash),
                expire_at: now + draft::IDEMPOTENCY_TTL,
            };
        }
        let limit = self.options.queued_per_user;
        if line.record.queued() >= limit as usize {
            return Err(SubmitError::QueueFull { limit });
        }
        if full {
            return Err(SubmitError::Overloaded { limit: self.options.queued });
        }
        let active: Vec<RunId> = line.record.of_conversation(&conversation.record.key).map(|entry| entry.run.clone()).collect();
        if new.multitask == MultitaskStrategy::Reject && !active.is_empty() {
            return Err(SubmitError::ConversationBusy);
        }
        let mut cancelled = BTreeMap::new();
        if matches!(new.multitask, MultitaskStrategy::Interrupt | MultitaskStrategy::Rollback) {
            let Some(runs) = self.cancelled_for(new, &active, &mut line.record, &mut conversation.record).await? else { return Ok(None) };
            cancelled = runs;
        }
        let key_of_life = conversation.record.key.clone();
        let busy = line.record.of_conversation(&key_of_life).next().is_some();
        let before = line.record.of_conversation(&key_of_life).filter(|entry| !entry.running).count();
        let (reason, before) = match (busy, line.record.at_quota(&self.options)) {
            (true, _) => (WaitingReason::ConversationBusy, before as u64),
            (false, true) => (WaitingReason::UserQuota, line.record.queued() as u64),
            (false, false) => (WaitingReason::NoCapacity, queued),
        };
        let mut run = draft::first_version(new, now);
        draft::held_up_by(&mut run, reason);
        let mut record = RunRecord {
            run,
            text: Some(String::new()),
            reply: 0,
            final_parts: 0,
            conversation_key: key_of_life,
            ordinal: conversation.record.next_ordinal,
            sweep_at: None,
            queued_minute: None,
            batch_id: None,
            custom_id: None,
        };
        record.settle(now, &self.options);
        line.record.join(&new.id, &record.conversation_key);
        line.record.settle(now, &self.options);
        conversation.record.next_ordinal += 1;
        conversation.record.run_count += 1;
        conversation.record.updated_at = now;

        let path = run_path(&new.id);
        let mut writes = vec![
            self.client.write(&path, codec::encode(&record)?, super::client::Version::Absent),
            self.line_write(&line)?,
            self.client.write(&conversation.path, codec::encode(&conversation.record)?, conversation.version),
        ];
        if let Some((key, _)) = &key {
            writes.push(self.client.write(&key.path, codec::encode(&key.record)?, key.version));
        }
        for stored in cancelled.values() {
            writes.push(self.run_write(stored)?);
        }
        writes.extend(self.input_writes(&record, &new.files)?);
        match self.client.commit(writes).await {
            Ok(Committed::Done) => {}
            Ok(Committed::Conflict) => return Ok(None),
            // It may have been stored all the same. A client that is told no must not find its run running.
            Err(error) => {
                if !matches!(self.client.get(&path).await, Ok(Some(_))) {
                    return Err(error.into());
                }
            }
        }
        for stored in cancelled.values() {
            self.signal(&stored.record.run);
        }
        let wake = if !cancelled.is_empty() {
            line.record.startable(&self.options, now)
        } else if reason == WaitingReason::NoCapacity {
            vec![new.id.clone()]
        } else {
            Vec::new()
        };
        let waiting = Some(Waiting { reason, position: (before + 1).min(POSITION_MAX) });
        Ok(Some(Submitted { run: visible(record), replayed: false, waiting, wake }))
    }

    /// The conversation's unfinished runs with their cancellation; `None` when one changed under our hands.
    async fn cancelled_for(
        &self,
        new: &NewRun,
        active: &[RunId],
        line: &mut Line,
        conversation: &mut ConversationRecord,
    ) -> Result<Option<BTreeMap<RunId, Stored<RunRecord>>>> {
        let paths: Vec<String> = active.iter().map(run_path).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let mut cancelled = BTreeMap::new();
        if paths.is_empty() {
            return Ok(Some(cancelled));
        }
        for found in self.client.get_all(&paths).await? {
            let Some(found) = found else { return Ok(None) };
            let mut stored: Stored<RunRecord> = Stored::decode(found)?;
            let run = &mut stored.record.run;
            if run.status.is_terminal() {
                return Ok(None);
            }
            if new.multitask == MultitaskStrategy::Rollback && !run.rolled_back {
                run.rolled_back = true;
                conversation.run_count = conversation.run_count.saturating_sub(1);
            }
            // Refused when it is being cancelled already; it may still have been marked as rolled back.
            let _unchanged = state::cancel(run, self.now());
            line.follow(run);
            stored.record.settle(self.now(), &self.options);
            cancelled.insert(stored.record.run.id.clone(), stored);
        }
        Ok(Some(cancelled))
    }
}

/// A run as it is told: with the reply that is in its document.
pub(super) fn visible(record: RunRecord) -> Run {
    debug_assert!(record.text.is_some() || record.run.status != Status::Queued);
    let mut run = record.run;
    run.text = record.text.unwrap_or_default();
    run
}
