//! Wrong products, each by one lie between the store and the rest: the checker must see every one of them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use quayside_shared::clock::Timestamp;
use quayside_shared::error::Result;
use quayside_shared::ids::{ConversationId, DeadLetterId, RunId, UserId, WorkerId};
use quayside_shared::run::{AttemptOutcome, Run, Status, Usage, Waiting, WaitingReason};
use quayside_shared::state::Finished;
use quayside_shared::store::files::{Collected, FileList, FilePath, RunFile};
use quayside_shared::store::{
    BadCursor, Changed, Claim, Conversation, DeadLetter, Depth, Events, Fenced, Lease, NewRun, Page, Standing, Store, Stray, SubmitError, Submitted,
    Sweep, Turn, Watch, WorkerReport,
};

use super::process::Life;
use super::world::{Plan, Shape};
use crate::checker::Promise;

/// What is wrong with the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A message is acknowledged when it comes; the queue's wrapper does that.
    AcknowledgesFirst,
    /// Whoever writes, writes under the lease that is in force.
    FencesNobody,
    /// The client hears 202, and the run is stored some time later.
    AcceptsBeforeItStores,
    /// Nothing is repaired.
    NeverSweeps,
    /// A lost worker is recorded as one that handed its run back.
    CountsNoLostWorker,
    /// `cancelled` is told when the cancellation is accepted.
    CancelsTooEarly,
    /// The key of a submission is not kept.
    ForgetsKeys,
    /// A run ends with the reply of the one that ended before it.
    MixesReplies,
    /// A run that has ended is read as running now and then.
    ForgetsEnds,
    /// A cancellation is answered, and not noted.
    ForgetsCancellations,
}

impl Mutant {
    pub const ALL: [Self; 10] = [
        Self::AcknowledgesFirst,
        Self::FencesNobody,
        Self::AcceptsBeforeItStores,
        Self::NeverSweeps,
        Self::CountsNoLostWorker,
        Self::CancelsTooEarly,
        Self::ForgetsKeys,
        Self::MixesReplies,
        Self::ForgetsEnds,
        Self::ForgetsCancellations,
    ];

    /// The promise that it breaks before all others.
    pub fn breaks(self) -> &'static [Promise] {
        match self {
            Self::AcknowledgesFirst => &[Promise::AcknowledgedLast],
            Self::FencesNobody => &[Promise::BelongsTogether, Promise::CompletedRan],
            Self::AcceptsBeforeItStores | Self::NeverSweeps => &[Promise::NothingLost],
            Self::CountsNoLostWorker => &[Promise::AttemptsCounted],
            Self::CancelsTooEarly => &[Promise::CancelledIsGone],
            Self::ForgetsKeys | Self::ForgetsEnds => &[Promise::NothingDoubled],
            Self::MixesReplies => &[Promise::BelongsTogether],
            Self::ForgetsCancellations => &[Promise::CancelStands],
        }
    }

    /// Brings about what it takes for it to do harm.
    pub fn sharpen(self, plan: &mut Plan) {
        if self == Self::FencesNobody {
            // Somebody else must be at the run by the time of the late write.
            (plan.shape, plan.runs, plan.crashes) = (Shape::Fleet, 4, 0);
        }
    }
}

/// The store as one life of the wrong product knows it.
pub struct Mutated {
    inner: Arc<dyn Store>,
    mutant: Mutant,
    life: Arc<Life>,
    last_reply: Mutex<Option<String>>,
}

impl Mutated {
    pub fn new(inner: Arc<dyn Store>, mutant: Mutant, life: Arc<Life>) -> Self {
        Self { inner, mutant, life, last_reply: Mutex::default() }
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == mutant
    }

    async fn lease(&self, lease: &Lease) -> Result<Lease> {
        if self.is(Mutant::FencesNobody)
            && let Some(held) = self.inner.run(&lease.run_id).await?.and_then(|run| run.lease)
        {
            return Ok(Lease { epoch: held.epoch, worker: held.worker, ..lease.clone() });
        }
        Ok(lease.clone())
    }

    fn as_told(&self, mut run: Run) -> Run {
        if self.is(Mutant::CancelsTooEarly) && run.status == Status::Cancelling {
            run.status = Status::Cancelled;
        }
        if self.is(Mutant::ForgetsEnds) && run.status.is_terminal() && self.life.world.strikes(100) {
            run.status = Status::InProgress;
        }
        run
    }

    /// Leases that have run out, of workers that are lost: handed back as if those had done it.
    async fn hand_back(&self) -> Result<()> {
        let now = self.life.world.timestamp();
        let known = self.life.world.leases.lock().unwrap().clone();
        for (lease, _) in known {
            let held = self.inner.run(&lease.run_id).await?.and_then(|run| run.lease);
            if held.is_some_and(|held| held.epoch == lease.epoch && held.expires_at <= now) {
                let _ = self.inner.release(&lease, AttemptOutcome::Drained).await?;
            }
        }
        Ok(())
    }
}

/// The run as it will be stored.
fn promised(new: &NewRun, now: quayside_shared::clock::Timestamp) -> Run {
    Run {
        id: new.id.clone(),
        conversation_id: new.conversation_id.clone(),
        user_id: new.user_id.clone(),
        agent: new.agent.clone(),
        status: Status::Queued,
        waiting_reason: None,
        message: new.message.clone(),
        text: String::new(),
        truncated: false,
        exit_code: None,
        error: None,
        attempts: Vec::new(),
        usage: Usage::default(),
        created_at: now,
        started_at: None,
        finished_at: None,
        expire_at: None,
        metadata: new.metadata.clone(),
        sequence_number: 1,
        reply_bytes: 0,
        status_log: Vec::new(),
        lease: None,
        epoch: 0,
        not_before: None,
        start_by: None,
        timeout_millis: 1_000,
        rolled_back: false,
        inputs: 0,
    }
}

#[async_trait]
impl Store for Mutated {
    async fn submit(&self, mut new: NewRun) -> Result<Submitted, SubmitError> {
        if self.is(Mutant::ForgetsKeys) {
            new.idempotency = None;
        }
        if self.is(Mutant::AcceptsBeforeItStores) {
            let run = promised(&new, self.life.world.timestamp());
            let (store, life) = (Arc::clone(&self.inner), Arc::clone(&self.life));
            tokio::spawn(async move {
                tokio::time::sleep(life.world.some_millis(400)).await;
                life.awake().await;
                store.submit(new).await
            });
            return Ok(Submitted { run, replayed: false, waiting: None, wake: Vec::new() });
        }
        self.inner.submit(new).await
    }

    async fn run(&self, id: &RunId) -> Result<Option<Run>> {
        Ok(self.inner.run(id).await?.map(|run| self.as_told(run)))
    }

    async fn waiting(&self, run: &Run) -> Result<Option<Waiting>> {
        self.inner.waiting(run).await
    }

    async fn events(&self, id: &RunId, after: u64) -> Result<Option<Events>> {
        self.inner.events(id, after).await
    }

    fn watch(&self, id: &RunId) -> Watch {
        self.inner.watch(id)
    }

    async fn cancel(&self, id: &RunId) -> Result<Option<Changed>> {
        if self.is(Mutant::ForgetsCancellations)
            && let Some(mut run) = self.inner.run(id).await?.filter(|run| run.status == Status::InProgress)
        {
            run.status = Status::Cancelling;
            return Ok(Some(Changed { run, wake: Vec::new() }));
        }
        Ok(self.inner.cancel(id).await?.map(|changed| Changed { run: self.as_told(changed.run), ..changed }))
    }

    async fn claim(&self, id: &RunId, worker: &WorkerId, duration: Duration) -> Result<Claim> {
        let claim = self.inner.claim(id, worker, duration).await?;
        if let (Claim::Claimed(lease, _), true) = (&claim, self.is(Mutant::CountsNoLostWorker)) {
            let now = self.life.world.timestamp();
            self.life.world.leases.lock().unwrap().push((lease.clone(), now));
        }
        Ok(claim)
    }

    async fn defer(&self, id: &RunId, reason: WaitingReason, delay: Duration) -> Result<()> {
        self.inner.defer(id, reason, delay).await
    }

    async fn heartbeat(&self, lease: &Lease, duration: Duration) -> Result<Fenced<Standing>> {
        self.inner.heartbeat(&self.lease(lease).await?, duration).await
    }

    async fn append(&self, lease: &Lease, offset: u64, text: &str) -> Result<Fenced<Standing>> {
        self.inner.append(&self.lease(lease).await?, offset, text).await
    }

    async fn finish(&self, lease: &Lease, finished: Finished, mut text: Option<String>) -> Result<Fenced<Changed>> {
        if self.is(Mutant::MixesReplies) {
            let own = self.inner.run(&lease.run_id).await?.map(|run| run.text);
            text = std::mem::replace(&mut *self.last_reply.lock().unwrap(), own);
        }
        if self.is(Mutant::FencesNobody) && self.life.world.strikes(500) {
            // What it takes for this one to do harm: its process stops just before it writes.
            self.life.freeze_for_a_while();
            self.life.awake().await;
        }
        self.inner.finish(&self.lease(lease).await?, finished, text).await
    }

    async fn put_files(&self, lease: &Lease, files: Arc<Collected>) -> Result<Fenced<()>> {
        self.inner.put_files(&self.lease(lease).await?, files).await
    }

    async fn files(&self, id: &RunId) -> Result<Option<FileList>> {
        self.inner.files(id).await
    }

    async fn file(&self, id: &RunId, path: &FilePath) -> Result<Option<RunFile>> {
        self.inner.file(id, path).await
    }

    async fn inputs(&self, id: &RunId) -> Result<Vec<RunFile>> {
        self.inner.inputs(id).await
    }

    async fn release(&self, lease: &Lease, outcome: AttemptOutcome) -> Result<Fenced<Changed>> {
        self.inner.release(&self.lease(lease).await?, outcome).await
    }

    async fn history(&self, run: &Run, max_bytes: usize) -> Result<Vec<Turn>> {
        self.inner.history(run, max_bytes).await
    }

    async fn conversations(&self, user: &UserId, after: Option<&str>, limit: u32) -> Result<Result<Page<Conversation>, BadCursor>> {
        self.inner.conversations(user, after, limit).await
    }

    async fn conversation(&self, user: &UserId, id: &ConversationId) -> Result<Option<Conversation>> {
        self.inner.conversation(user, id).await
    }

    async fn conversation_runs(
        &self,
        user: &UserId,
        id: &ConversationId,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Option<Result<Page<Run>, BadCursor>>> {
        self.inner.conversation_runs(user, id, after, limit).await
    }

    async fn delete_conversation(&self, user: &UserId, id: &ConversationId) -> Result<Option<Vec<RunId>>> {
        self.inner.delete_conversation(user, id).await
    }

    async fn sweep(&self) -> Result<Sweep> {
        self.inner.sweep().await
    }

    async fn sweep_as_of(&self, now: Timestamp) -> Result<Sweep> {
        match self.mutant {
            Mutant::NeverSweeps => return Ok(Sweep::default()),
            Mutant::CountsNoLostWorker => self.hand_back().await?,
            _ => {}
        }
        self.inner.sweep_as_of(now).await
    }

    async fn quarantine(&self, stray: Stray) -> Result<()> {
        self.inner.quarantine(stray).await
    }

    async fn dead_letters(&self, after: Option<&str>, limit: u32) -> Result<Result<Page<DeadLetter>, BadCursor>> {
        self.inner.dead_letters(after, limit).await
    }

    async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>> {
        self.inner.dead_letter(id).await
    }

    async fn redriven(&self, id: &DeadLetterId, run: &RunId) -> Result<Option<DeadLetter>> {
        self.inner.redriven(id, run).await
    }

    async fn report_worker(&self, report: WorkerReport) -> Result<()> {
        self.inner.report_worker(report).await
    }

    async fn forget_worker(&self, id: &WorkerId) -> Result<()> {
        self.inner.forget_worker(id).await
    }

    async fn workers(&self) -> Result<Vec<WorkerReport>> {
        self.inner.workers().await
    }

    async fn depth(&self) -> Result<Depth> {
        self.inner.depth().await
    }

    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }

    fn append_interval(&self) -> Duration {
        self.inner.append_interval()
    }
}
