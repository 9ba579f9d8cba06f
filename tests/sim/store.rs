//! The store as a process sees it that may die in any call, or hear nothing of it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use quayside_shared::clock::Timestamp;
use quayside_shared::error::Result;
use quayside_shared::ids::{ConversationId, DeadLetterId, RunId, UserId, WorkerId};
use quayside_shared::run::{AttemptOutcome, Run, Waiting, WaitingReason};
use quayside_shared::state::Finished;
use quayside_shared::store::files::{Collected, FileList, FilePath, RunFile};
use quayside_shared::store::{
    BadCursor, Changed, Claim, Conversation, DeadLetter, Depth, Events, Fenced, Lease, NewRun, Page, Standing, Store, Stray, SubmitError, Submitted,
    Sweep, Turn, Watch, WorkerReport,
};

use super::process::Life;
use super::signals::Signals;
use crate::checker::{Hand, Handled};

/// See the module's description.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    signals: Arc<Signals>,
    life: Arc<Life>,
}

impl FaultyStore {
    pub fn new(inner: Arc<dyn Store>, signals: Arc<Signals>, life: Arc<Life>) -> Self {
        Self { inner, signals, life }
    }

    fn told(&self, what: &'static str, run: &RunId) -> impl Fn() -> String + Send + 'static {
        let (life, run) = (Arc::clone(&self.life), run.clone());
        move || format!("{what} {}", life.world.name(run.as_str()))
    }

    /// Notes, when it has happened, what a worker did to a run in its hands.
    fn handled(life: &Life, run: &RunId, epoch: u64, what: Hand) {
        life.world.history().handled.push(Handled { worker: life.name.clone(), run: run.to_string(), epoch, what });
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn submit(&self, new: NewRun) -> Result<Submitted, SubmitError> {
        let (store, message) = (Arc::clone(&self.inner), new.message.clone());
        self.life.call(move || format!("submit `{message}`"), async move { store.submit(new).await }).await
    }

    async fn run(&self, id: &RunId) -> Result<Option<Run>> {
        let (store, told, id) = (Arc::clone(&self.inner), self.told("run", id), id.clone());
        self.life.call(told, async move { store.run(&id).await }).await
    }

    async fn waiting(&self, run: &Run) -> Result<Option<Waiting>> {
        let (store, told, run) = (Arc::clone(&self.inner), self.told("waiting", &run.id), run.clone());
        self.life.call(told, async move { store.waiting(&run).await }).await
    }

    async fn events(&self, id: &RunId, after: u64) -> Result<Option<Events>> {
        let (store, told, id) = (Arc::clone(&self.inner), self.told("events", id), id.clone());
        self.life.call(told, async move { store.events(&id, after).await }).await
    }

    fn watch(&self, id: &RunId) -> Watch {
        self.signals.watch(id, &self.life)
    }

    async fn cancel(&self, id: &RunId) -> Result<Option<Changed>> {
        let (store, told, id) = (Arc::clone(&self.inner), self.told("cancel", id), id.clone());
        self.life.call(told, async move { store.cancel(&id).await }).await
    }

    async fn claim(&self, id: &RunId, worker: &WorkerId, lease: Duration) -> Result<Claim> {
        let (store, told, id, worker, life) = (Arc::clone(&self.inner), self.told("claim", id), id.clone(), worker.clone(), Arc::clone(&self.life));
        let claim = async move {
            let claim = store.claim(&id, &worker, lease).await;
            if let Ok(Claim::Claimed(lease, _)) = &claim {
                Self::handled(&life, &id, lease.epoch, Hand::Claimed);
            }
            claim
        };
        self.life.call(told, claim).await
    }

    async fn defer(&self, id: &RunId, reason: WaitingReason, delay: Duration) -> Result<()> {
        let (store, told, id) = (Arc::clone(&self.inner), self.told("defer", id), id.clone());
        self.life.call(told, async move { store.defer(&id, reason, delay).await }).await
    }

    async fn heartbeat(&self, lease: &Lease, duration: Duration) -> Result<Fenced<Standing>> {
        let (store, told, lease) = (Arc::clone(&self.inner), self.told("heartbeat", &lease.run_id), lease.clone());
        self.life.call(told, async move { store.heartbeat(&lease, duration).await }).await
    }

    async fn append(&self, lease: &Lease, offset: u64, text: &str) -> Result<Fenced<Standing>> {
        let (store, told, lease, text) = (Arc::clone(&self.inner), self.told("append", &lease.run_id), lease.clone(), text.to_owned());
        self.life.call(told, async move { store.append(&lease, offset, &text).await }).await
    }

    async fn finish(&self, lease: &Lease, finished: Finished, text: Option<String>) -> Result<Fenced<Changed>> {
        let (store, told, lease, life) = (Arc::clone(&self.inner), self.told("finish", &lease.run_id), lease.clone(), Arc::clone(&self.life));
        let finish = async move {
            let changed = store.finish(&lease, finished, text).await;
            if let Ok(Ok(_)) = &changed {
                Self::handled(&life, &lease.run_id, lease.epoch, Hand::Written);
            }
            changed
        };
        self.life.call(told, finish).await
    }

    async fn put_files(&self, lease: &Lease, files: Arc<Collected>) -> Result<Fenced<()>> {
        let (store, told, lease) = (Arc::clone(&self.inner), self.told("put_files", &lease.run_id), lease.clone());
        self.life.call(told, async move { store.put_files(&lease, files).await }).await
    }

    async fn files(&self, id: &RunId) -> Result<Option<FileList>> {
        let (store, told, id) = (Arc::clone(&self.inner), self.told("files", id), id.clone());
        self.life.call(told, async move { store.files(&id).await }).await
    }

    async fn file(&self, id: &RunId, path: &FilePath) -> Result<Option<RunFile>> {
        let (store, told, id, path) = (Arc::clone(&self.inner), self.told("file", id), id.clone(), path.clone());
        self.life.call(told, async move { store.file(&id, &path).await }).await
    }

    async fn inputs(&self, id: &RunId) -> Result<Vec<RunFile>> {
        let (store, told, id) = (Arc::clone(&self.inner), self.told("inputs", id), id.clone());
        self.life.call(told, async move { store.inputs(&id).await }).await
    }

    async fn release(&self, lease: &Lease, outcome: AttemptOutcome) -> Result<Fenced<Changed>> {
        let (store, told, lease, life) = (Arc::clone(&self.inner), self.told("release", &lease.run_id), lease.clone(), Arc::clone(&self.life));
        let release = async move {
            let changed = store.release(&lease, outcome).await;
            if let Ok(Ok(_)) = &changed {
                Self::handled(&life, &lease.run_id, lease.epoch, Hand::Written);
            }
            changed
        };
        self.life.call(told, release).await
    }

    async fn history(&self, run: &Run, max_bytes: usize) -> Result<Vec<Turn>> {
        let (store, told, run) = (Arc::clone(&self.inner), self.told("history", &run.id), run.clone());
        self.life.call(told, async move { store.history(&run, max_bytes).await }).await
    }

    async fn conversations(&self, user: &UserId, after: Option<&str>, limit: u32) -> Result<Result<Page<Conversation>, BadCursor>> {
        let (store, user, after) = (Arc::clone(&self.inner), user.clone(), after.map(str::to_owned));
        self.life.call(|| "conversations".to_owned(), async move { store.conversations(&user, after.as_deref(), limit).await }).await
    }

    async fn conversation(&self, user: &UserId, id: &ConversationId) -> Result<Option<Conversation>> {
        let (store, user, id) = (Arc::clone(&self.inner), user.clone(), id.clone());
        self.life.call(|| "conversation".to_owned(), async move { store.conversation(&user, &id).await }).await
    }

    async fn conversation_runs(
        &self,
        user: &UserId,
        id: &ConversationId,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Option<Result<Page<Run>, BadCursor>>> {
        let (store, user, id, after) = (Arc::clone(&self.inner), user.clone(), id.clone(), after.map(str::to_owned));
        self.life.call(|| "conversation_runs".to_owned(), async move { store.conversation_runs(&user, &id, after.as_deref(), limit).await }).await
    }

    async fn delete_conversation(&self, user: &UserId, id: &ConversationId) -> Result<Option<Vec<RunId>>> {
        let (store, user, id) = (Arc::clone(&self.inner), user.clone(), id.clone());
        self.life.call(|| "delete_conversation".to_owned(), async move { store.delete_conversation(&user, &id).await }).await
    }

    async fn sweep(&self) -> Result<Sweep> {
        let store = Arc::clone(&self.inner);
        self.life.call(|| "sweep".to_owned(), async move { store.sweep().await }).await
    }

    async fn sweep_as_of(&self, now: Timestamp) -> Result<Sweep> {
        let store = Arc::clone(&self.inner);
        self.life.call(|| "sweep".to_owned(), async move { store.sweep_as_of(now).await }).await
    }

    async fn quarantine(&self, stray: Stray) -> Result<()> {
        let store = Arc::clone(&self.inner);
        self.life.call(|| "quarantine".to_owned(), async move { store.quarantine(stray).await }).await
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
        self.life.awake().await;
        self.inner.depth().await
    }

    async fn ping(&self) -> Result<()> {
        self.life.awake().await;
        self.inner.ping().await
    }

    fn append_interval(&self) -> Duration {
        self.inner.append_interval()
    }
}
