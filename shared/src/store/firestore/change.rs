//! Everything that changes an accepted run: claim, heartbeat, append, finish, release, cancel, delete.

use std::time::Duration;

use firestore::gcloud_sdk::google::firestore::v1::Write;

use super::FirestoreStore;
use super::client::{Committed, Version};
use super::codec;
use super::line::Line;
use super::records::{
    ConversationRecord, DeltaRecord, RunRecord, Stored, TEXT_MAX, TrashRecord, conversation_path, line_path, piece_name, run_path, trash_path,
};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::ids::{ConversationId, RunId, UserId, WorkerId};
use crate::run::{AttemptOutcome, Run, Status, WaitingReason};
use crate::state::{self, Finished, Refused};
use crate::store::{Changed, Claim, Fenced, Lease, LeaseLost, Standing};

/// One piece of a reply. A document holds 1 MiB with everything else in it.
const PIECE_MAX: usize = 256 << 10;
/// Pieces in one commit, which may have 10 MiB.
const PIECES: usize = 16;
/// A reply's pieces outlive their run at most by this: the longest attempt there can be.
pub(super) const PIECE_MARGIN: Duration = Duration::from_secs(8 * 24 * 3600);

/// What a change of a run with its line decided.
enum Decision<T> {
    /// Write both and answer.
    Write(T),
    /// Answer without writing.
    Leave(T),
}

impl FirestoreStore {
    /// Reads a run and its line, decides, writes both; again while others come first. `None`: there is no such run.
    async fn change<T>(
        &self,
        id: &RunId,
        mut decide: impl FnMut(&mut RunRecord, &Line, Timestamp) -> Decision<T>,
    ) -> Result<Option<(T, RunRecord, Line)>> {
        let mut turn = None;
        let mut tries = self.tries();
        loop {
            let Some(mut run) = tries.within(self.load(id)).await? else { return Ok(None) };
            let path = line_path(&run.record.run.user_id);
            // From here to the write; a version that was read before and is old by now costs one more try.
            if turn.is_none() {
                turn = Some(self.turn(&path, &tries).await?);
            }
            let mut line = tries.within(self.line(&run.record.run.user_id)).await?;
            let before = run.record.run.status;
            match decide(&mut run.record, &line.record, self.now()) {
                Decision::Leave(answer) => return Ok(Some((answer, run.record, line.record))),
                Decision::Write(answer) => {
                    if self.save(before, &mut run, &mut line).await? == Committed::Done {
                        self.signal(&run.record.run);
                        return Ok(Some((answer, run.record, line.record)));
                    }
                }
            }
            tries.again().await?;
        }
    }

    fn changed(&self, record: RunRecord, line: &Line) -> Changed {
        Changed { wake: line.startable(&self.options, self.now()), run: record.run }
    }

    pub(super) async fn claim_run(&self, id: &RunId, worker: &WorkerId, duration: Duration) -> Result<Claim> {
        enum Came {
            Claimed(Lease),
            Waiting(WaitingReason),
            Nothing,
            Expired,
        }
        let decided = self.change(id, |record, line, now| {
            let run = &mut record.run;
            if run.status != Status::Queued {
                return Decision::Leave(Came::Nothing);
            }
            if state::expire(run, now).is_ok() {
                return Decision::Write(Came::Expired);
            }
            if let Some((reason, _)) = line.blocked(id, &self.options) {
                return match state::wait(run, reason) {
                    Ok(()) => Decision::Write(Came::Waiting(reason)),
                    Err(_unchanged) => Decision::Leave(Came::Waiting(reason)),
                };
            }
            match state::claim(run, worker, duration, now) {
                Ok(lease) => Decision::Write(Came::Claimed(Lease { run_id: id.clone(), worker: lease.worker, epoch: lease.epoch })),
                Err(Refused::NotDue) => Decision::Leave(Came::Waiting(WaitingReason::Retrying)),
                Err(Refused::LeaseLost | Refused::Status(_)) => Decision::Leave(Came::Nothing),
            }
        });
        Ok(match decided.await? {
            None if !self.was_removed(id).await? => Claim::Unknown,
            None | Some((Came::Nothing, ..)) => Claim::Nothing,
            Some((Came::Waiting(reason), ..)) => Claim::Waiting(reason),
            Some((Came::Expired, _, line)) => Claim::Expired(line.startable(&self.options, self.now())),
            Some((Came::Claimed(lease), record, _)) => Claim::Claimed(lease, Box::new(record.run)),
        })
    }

    pub(super) async fn defer_run(&self, id: &RunId, reason: WaitingReason, delay: Duration) -> Result<()> {
        let decided = self.change(id, |record, _, now| match state::defer(&mut record.run, reason, now + delay) {
            Ok(()) => Decision::Write(()),
            Err(_not_queued) => Decision::Leave(()),
        });
        decided.await.map(drop)
    }

    /// Reads a run under `lease`, decides, writes what changed of it; its line is not touched.
    async fn under_lease(
        &self,
        lease: &Lease,
        mut write: impl FnMut(&mut Stored<RunRecord>, Timestamp) -> Result<Option<Vec<Write>>>,
    ) -> Result<Fenced<Standing>> {
        let mut tries = self.tries();
        loop {
            let Some(mut run) = self.load(&lease.run_id).await? else { return Ok(Err(LeaseLost)) };
            let Some(writes) = write(&mut run, self.now())? else { return Ok(Err(LeaseLost)) };
            if writes.is_empty() || self.client.commit(writes).await? == Committed::Done {
                return Ok(Ok(Standing { cancelling: run.record.run.status == Status::Cancelling }));
            }
            tries.again().await?;
        }
    }

    pub(super) async fn prolong(&self, lease: &Lease, duration: Duration) -> Result<Fenced<Standing>> {
        self.under_lease(lease, |run, now| {
            if state::heartbeat(&mut run.record.run, lease.epoch, duration, now).is_err() {
                return Ok(None);
            }
            run.record.settle(now, &self.options);
            self.some_of(run, &["lease", "sweepAt"]).map(|write| Some(vec![write]))
        })
        .await
    }

    pub(super) async fn append_text(&self, lease: &Lease, mut offset: u64, text: &str) -> Result<Fenced<Standing>> {
        let mut standing = Standing { cancelling: false };
        for group in split(text, PIECE_MAX).chunks(PIECES) {
            let appended = self.under_lease(lease, |run, now| {
                let (mut writes, mut offset) = (Vec::with_capacity(group.len() + 1), offset);
                for piece in group {
                    let bytes = piece.len() as u64;
                    let Ok(added) = state::append(&mut run.record.run, lease.epoch, offset, bytes) else { return Ok(None) };
                    offset += bytes;
                    let Some(sequence_number) = added else { continue };
                    writes.push(self.piece(&run.record, "deltas", sequence_number, piece, now)?);
                    run.record.text = run.record.text.take().filter(|so_far| so_far.len() + piece.len() <= TEXT_MAX).map(|so_far| so_far + piece);
                }
                if !writes.is_empty() {
                    writes.push(self.some_of(run, &["sequenceNumber", "replyBytes", "text"])?);
                }
                Ok(Some(writes))
            });
            match appended.await? {
                Ok(now) => standing = now,
                Err(LeaseLost) => return Ok(Err(LeaseLost)),
            }
            offset += group.iter().map(|piece| piece.len() as u64).sum::<u64>();
            self.hub.signal(&lease.run_id, standing.cancelling, false);
        }
        Ok(Ok(standing))
    }

    fn piece(&self, record: &RunRecord, collection: &str, number: u64, text: &str, now: Timestamp) -> Result<Write> {
        let run = &record.run;
        let path = format!("{}/{collection}/{}", run_path(&run.id), piece_name(run.epoch, number));
        let expire_at = now + self.options.retention + PIECE_MARGIN;
        let piece = DeltaRecord { sequence_number: number, epoch: run.epoch, text: text.to_owned(), user_id: run.user_id.clone(), expire_at };
        Ok(self.client.write(&path, codec::encode(&piece)?, Version::Any))
    }

    fn some_of(&self, run: &Stored<RunRecord>, names: &[&str]) -> Result<Write> {
        let mut fields = codec::encode(&run.record)?;
        fields.retain(|name, _| names.contains(&name.as_str()));
        Ok(self.client.patch(&run.path, fields, run.version))
    }

    pub(super) async fn finish_run(&self, lease: &Lease, finished: Finished, text: Option<String>) -> Result<Fenced<Changed>> {
        let parts = match &text {
            Some(text) if text.len() > TEXT_MAX => match self.write_parts(lease, text).await? {
                Some(parts) => parts,
                None => return Ok(Err(LeaseLost)),
            },
            _ => 0,
        };
        let asked_before = self.doubts.is_open(lease);
        let decided = self.change(&lease.run_id, |record, _, now| {
            if asked_before && ended_by(&record.run, lease) {
                return Decision::Leave(Ok(()));
            }
            if state::finish(&mut record.run, lease.epoch, finished.clone(), now).is_err() {
                return Decision::Leave(Err(LeaseLost));
            }
            if let Some(text) = &text {
                record.text = (parts == 0).then(|| text.clone());
                record.final_parts = parts;
            }
            Decision::Write(Ok(()))
        });
        match decided.await {
            Ok(decided) => {
                self.doubts.settled(lease);
                self.fenced(decided)
            }
            Err(error) => {
                self.doubts.note(lease);
                Err(error)
            }
        }
    }

    /// A long stated reply, before the write that makes it count. `None`: the lease is lost.
    async fn write_parts(&self, lease: &Lease, text: &str) -> Result<Option<u64>> {
        let Some(run) = self.load(&lease.run_id).await? else { return Ok(None) };
        if !holds(&run.record.run, lease) {
            return Ok(None);
        }
        let mut number = 0;
        for group in split(text, PIECE_MAX).chunks(PIECES) {
            let mut writes = Vec::with_capacity(group.len());
            for piece in group {
                number += 1;
                writes.push(self.piece(&run.record, "final", number, piece, self.now())?);
            }
            self.client.commit(writes).await?;
        }
        Ok(Some(number))
    }

    pub(super) async fn release_run(&self, lease: &Lease, outcome: AttemptOutcome) -> Result<Fenced<Changed>> {
        let jitter = (self.options.jitter)();
        let decided = self.change(&lease.run_id, |record, _, now| {
            match state::release(&mut record.run, lease.epoch, outcome, &self.options.retry, jitter, now) {
                Ok(()) => Decision::Write(Ok(())),
                Err(_) => Decision::Leave(Err(LeaseLost)),
            }
        });
        self.fenced(decided.await?)
    }

    fn fenced(&self, decided: Option<(Fenced<()>, RunRecord, Line)>) -> Result<Fenced<Changed>> {
        Ok(match decided {
            Some((Ok(()), record, line)) => Ok(self.changed(record, &line)),
            Some((Err(LeaseLost), ..)) | None => Err(LeaseLost),
        })
    }

    /// Takes a run away from a worker whose lease ran out. `None`: it was not so, or another sweeper did it.
    pub(super) async fn take_back(&self, id: &RunId, as_of: Timestamp) -> Result<Option<Changed>> {
        let jitter = (self.options.jitter)();
        let decided = self.change(id, |record, _, _| match state::lose_lease(&mut record.run, &self.options.retry, jitter, as_of) {
            Ok(()) => Decision::Write(true),
            Err(_) => Decision::Leave(false),
        });
        Ok(decided.await?.filter(|(done, ..)| *done).map(|(_, record, line)| self.changed(record, &line)))
    }

    /// Expires a run that did not start in time.
    pub(super) async fn expire_run(&self, id: &RunId) -> Result<Option<Changed>> {
        let decided = self.change(id, |record, _, now| match state::expire(&mut record.run, now) {
            Ok(()) => Decision::Write(true),
            Err(_) => Decision::Leave(false),
        });
        Ok(decided.await?.filter(|(done, ..)| *done).map(|(_, record, line)| self.changed(record, &line)))
    }

    /// Takes the mark off a run whose delay has passed, so that it is announced once.
    pub(super) async fn retry_due(&self, id: &RunId) -> Result<Vec<RunId>> {
        let decided = self.change(id, |record, line, now| {
            let run = &mut record.run;
            let due = run.status == Status::Queued && run.not_before.is_some_and(|at| at <= now);
            if !due {
                return Decision::Leave(false);
            }
            run.not_before = None;
            Decision::Write(line.blocked(id, &self.options).is_none())
        });
        Ok(decided.await?.filter(|(free, ..)| *free).map(|_| id.clone()).into_iter().collect())
    }

    pub(super) async fn cancel_run(&self, id: &RunId) -> Result<Option<Changed>> {
        let decided = self.change(id, |record, _, now| match state::cancel(&mut record.run, now) {
            Ok(()) => Decision::Write(()),
            Err(_too_late) => Decision::Leave(()),
        });
        let Some(((), record, line)) = decided.await? else { return Ok(None) };
        let wake = line.startable(&self.options, self.now());
        Ok(self.seen(record).await?.map(|run| Changed { run, wake }))
    }

    pub(super) async fn delete_whole_conversation(&self, user: &UserId, id: &ConversationId) -> Result<Option<Vec<RunId>>> {
        let mut tries = self.tries();
        let turn = self.turn(&line_path(user), &tries).await?;
        let (key, wake) = loop {
            let path = conversation_path(user, id);
            let Some(found) = tries.within(self.client.get(&path)).await? else { return Ok(None) };
            let conversation: Stored<ConversationRecord> = Stored::decode(found)?;
            let mut line = tries.within(self.line(user)).await?;
            if let Some(wake) = self.try_delete(&conversation, &mut line).await? {
                break (conversation.record.key, wake);
            }
            tries.again().await?;
        };
        drop(turn);
        // What is left, now or when the last container is gone, is the sweeper's.
        if let Err(error) = self.empty_trash(&key).await {
            tracing::warn!(error = %crate::error::chain(&error), "a deleted conversation's runs stay until the sweeper removes them");
        }
        Ok(Some(wake))
    }

    async fn try_delete(&self, conversation: &Stored<ConversationRecord>, line: &mut Stored<Line>) -> Result<Option<Vec<RunId>>> {
        let (key, user) = (&conversation.record.key, &conversation.record.user_id);
        let active: Vec<String> = line.record.of_conversation(key).map(|entry| run_path(&entry.run)).collect();
        let trash = TrashRecord { user_id: user.clone(), key: key.clone() };
        let mut writes = vec![
            self.client.delete(&conversation.path, conversation.version),
            self.client.write(&trash_path(key), codec::encode(&trash)?, Version::Absent),
        ];
        let mut cancelled: Vec<Run> = Vec::with_capacity(active.len());
        if !active.is_empty() {
            let paths: Vec<&str> = active.iter().map(String::as_str).collect();
            for found in self.client.get_all(&paths).await? {
                let Some(found) = found else { return Ok(None) };
                let mut stored: Stored<RunRecord> = Stored::decode(found)?;
                // Refused when it is being cancelled already.
                let _unchanged = state::cancel(&mut stored.record.run, self.now());
                stored.record.settle(self.now(), &self.options);
                line.record.follow(&stored.record.run);
                writes.push(self.run_write(&stored)?);
                cancelled.push(stored.record.run);
            }
            line.record.settle(self.now(), &self.options);
            writes.push(self.line_write(line)?);
        }
        if self.client.commit(writes).await? == Committed::Conflict {
            return Ok(None);
        }
        for run in &cancelled {
            self.signal(run);
        }
        Ok(Some(line.record.startable(&self.options, self.now())))
    }
}

fn holds(run: &Run, lease: &Lease) -> bool {
    run.lease.as_ref().is_some_and(|held| held.epoch == lease.epoch)
}

/// Whether the run ended by a word of `lease`'s holder, not by the sweeper's.
fn ended_by(run: &Run, lease: &Lease) -> bool {
    let last = run.attempts.last().filter(|attempt| attempt.worker == lease.worker && attempt.outcome != Some(AttemptOutcome::WorkerLost));
    run.status.is_terminal() && run.epoch == lease.epoch && last.is_some()
}

/// `text` in pieces of at most `max` bytes, cut between characters.
fn split(text: &str, max: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while rest.len() > max {
        let (piece, more) = rest.split_at(rest.floor_char_boundary(max));
        pieces.push(piece);
        rest = more;
    }
    pieces.push(rest);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_between_characters_and_lose_nothing() {
        let text = "한글 text".repeat(100);
        let pieces = split(&text, 16);
        assert!(pieces.iter().all(|piece| piece.len() <= 16 && !piece.is_empty()));
        assert_eq!(pieces.concat(), text);
        assert_eq!(split("", 16), [""]);
    }
}
