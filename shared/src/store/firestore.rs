//! The store in Firestore.
//!
//! Every change reads the documents it decides on, applies [`crate::state`], and commits all of its writes or none,
//! each naming the version that was read: when another writer came first, it reads again and decides anew. No locks, no
//! transactions that wait. Times are this machine's; workers and API instances need clocks that agree to about a second.

mod backlog;
mod change;
mod client;
mod codec;
mod contention;
mod files;
mod line;
mod listen;
mod operations;
mod queries;
mod read;
mod records;
mod submit;
mod sweep;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use self::backlog::Backlog;
use self::client::{Client, Committed};
use self::contention::{Alone, Doubts, Locks, Tries};
use self::line::Line;
use self::listen::Listening;
use self::records::{RunRecord, Stored, line_path, run_path};
use crate::clock::{Clock, Timestamp};
use crate::config::Google;
use crate::error::Result;
use crate::ids::{ConversationId, DeadLetterId, RunId, UserId, WorkerId};
use crate::run::{AttemptOutcome, Run, Status, Waiting, WaitingReason};
use crate::state::Finished;
use crate::store::files::{Collected, FileList, FilePath, RunFile};
use crate::store::hub::Hub;
use crate::store::{
    BadCursor, Changed, Claim, Conversation, DeadLetter, Depth, Events, Fenced, Lease, NewRun, Page, Standing, Store, StoreOptions, Stray,
    SubmitError, Submitted, Sweep, Turn, Watch, WorkerReport,
};

/// The [`Store`] on Google Cloud.
pub struct FirestoreStore {
    client: Client,
    clock: Arc<dyn Clock>,
    hub: Arc<Hub>,
    options: StoreOptions,
    locks: Locks,
    doubts: Doubts,
    backlog: Backlog,
    listening: Listening,
    /// Paths of documents that could not be read: each is told once.
    unreadable: Mutex<HashSet<String>>,
}

impl FirestoreStore {
    /// A store in the database that `google` names. Nothing is read yet: whether Firestore answers is what
    /// [`Store::ping`] tells.
    ///
    /// # Errors
    /// When there are no credentials, or the address is not one.
    pub async fn connect(google: &Google, clock: Arc<dyn Clock>, options: StoreOptions) -> Result<Self> {
        let client = Client::connect(google).await?;
        let hub = Arc::new(Hub::default());
        let listening = Listening::start(client.clone(), Arc::clone(&hub));
        Ok(Self {
            client,
            clock,
            hub,
            options,
            locks: Locks::default(),
            doubts: Doubts::default(),
            backlog: Backlog::default(),
            listening,
            unreadable: Mutex::default(),
        })
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Wakes this process's watchers at once; those of others hear it from Firestore.
    fn signal(&self, run: &Run) {
        self.hub.signal(&run.id, run.status == Status::Cancelling, run.status.is_terminal());
    }

    async fn load(&self, id: &RunId) -> Result<Option<Stored<RunRecord>>> {
        self.client.get(&run_path(id)).await?.map(Stored::decode).transpose()
    }

    async fn line(&self, user: &UserId) -> Result<Stored<Line>> {
        let path = line_path(user);
        let found = self.client.get(&path).await?;
        Stored::or_new(found, path, || Line::new(user.clone()))
    }

    /// Writes a run that was in `before`, its user's line to match, and a dead letter when it has been given up.
    async fn save(&self, before: Status, run: &mut Stored<RunRecord>, line: &mut Stored<Line>) -> Result<Committed> {
        let now = self.now();
        run.record.settle(now, &self.options);
        line.record.follow(&run.record.run);
        line.record.settle(now, &self.options);
        let mut writes = vec![self.run_write(run)?, self.line_write(line)?];
        if !before.is_terminal() {
            writes.extend(self.burial(&run.record.run, now)?);
        }
        self.client.commit(writes).await
    }

    /// The whole run but its message, which never changes.
    fn run_write(&self, run: &Stored<RunRecord>) -> Result<firestore::gcloud_sdk::google::firestore::v1::Write> {
        let mut fields = codec::encode(&run.record)?;
        fields.remove("message");
        Ok(self.client.patch(&run.path, fields, run.version))
    }

    fn line_write(&self, line: &Stored<Line>) -> Result<firestore::gcloud_sdk::google::firestore::v1::Write> {
        Ok(self.client.write(&line.path, codec::encode(&line.record)?, line.version))
    }

    /// Waits for the turn to write to the document at `path` and to what goes with it.
    async fn turn(&self, path: &str, tries: &Tries) -> Result<Alone> {
        tries.within(async { Ok(self.locks.take(path).await) }).await
    }

    fn tries(&self) -> Tries {
        Tries::begin()
    }
}

#[async_trait]
impl Store for FirestoreStore {
    async fn submit(&self, new: NewRun) -> Result<Submitted, SubmitError> {
        self.submit_run(new).await
    }

    async fn run(&self, id: &RunId) -> Result<Option<Run>> {
        self.read_run(id).await
    }

    async fn waiting(&self, run: &Run) -> Result<Option<Waiting>> {
        self.read_waiting(&run.id).await
    }

    async fn events(&self, id: &RunId, after: u64) -> Result<Option<Events>> {
        self.read_events(id, after).await
    }

    fn watch(&self, id: &RunId) -> Watch {
        let watch = self.hub.watch(id);
        self.listening.look();
        watch
    }

    async fn cancel(&self, id: &RunId) -> Result<Option<Changed>> {
        self.cancel_run(id).await
    }

    async fn claim(&self, id: &RunId, worker: &WorkerId, lease: Duration) -> Result<Claim> {
        self.claim_run(id, worker, lease).await
    }

    async fn defer(&self, id: &RunId, reason: WaitingReason, delay: Duration) -> Result<()> {
        self.defer_run(id, reason, delay).await
    }

    async fn heartbeat(&self, lease: &Lease, duration: Duration) -> Result<Fenced<Standing>> {
        self.prolong(lease, duration).await
    }

    async fn append(&self, lease: &Lease, offset: u64, text: &str) -> Result<Fenced<Standing>> {
        self.append_text(lease, offset, text).await
    }

    async fn finish(&self, lease: &Lease, finished: Finished, text: Option<String>) -> Result<Fenced<Changed>> {
        self.finish_run(lease, finished, text).await
    }

    async fn put_files(&self, lease: &Lease, files: Arc<Collected>) -> Result<Fenced<()>> {
        self.store_files(lease, &files).await
    }

    async fn files(&self, id: &RunId) -> Result<Option<FileList>> {
        self.read_files(id).await
    }

    async fn file(&self, id: &RunId, path: &FilePath) -> Result<Option<RunFile>> {
        self.read_file(id, path).await
    }

    async fn inputs(&self, id: &RunId) -> Result<Vec<RunFile>> {
        self.read_inputs(id).await
    }

    async fn release(&self, lease: &Lease, outcome: AttemptOutcome) -> Result<Fenced<Changed>> {
        self.release_run(lease, outcome).await
    }

    async fn history(&self, run: &Run, max_bytes: usize) -> Result<Vec<Turn>> {
        self.read_history(&run.id, max_bytes).await
    }

    async fn conversations(&self, user: &UserId, after: Option<&str>, limit: u32) -> Result<Result<Page<Conversation>, BadCursor>> {
        self.read_conversations(user, after, limit).await
    }

    async fn conversation(&self, user: &UserId, id: &ConversationId) -> Result<Option<Conversation>> {
        self.read_conversation(user, id).await
    }

    async fn conversation_runs(
        &self,
        user: &UserId,
        id: &ConversationId,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Option<Result<Page<Run>, BadCursor>>> {
        self.read_conversation_runs(user, id, after, limit).await
    }

    async fn delete_conversation(&self, user: &UserId, id: &ConversationId) -> Result<Option<Vec<RunId>>> {
        self.delete_whole_conversation(user, id).await
    }

    async fn sweep(&self) -> Result<Sweep> {
        self.sweep_once(self.now()).await
    }

    async fn sweep_as_of(&self, now: Timestamp) -> Result<Sweep> {
        self.sweep_once(now).await
    }

    async fn quarantine(&self, stray: Stray) -> Result<()> {
        self.put_aside(&stray).await
    }

    async fn dead_letters(&self, after: Option<&str>, limit: u32) -> Result<Result<Page<DeadLetter>, BadCursor>> {
        self.read_dead_letters(after, limit).await
    }

    async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>> {
        self.read_dead_letter(id).await
    }

    async fn redriven(&self, id: &DeadLetterId, run: &RunId) -> Result<Option<DeadLetter>> {
        self.note_redriven(id, run).await
    }

    async fn report_worker(&self, report: WorkerReport) -> Result<()> {
        self.keep_report(report).await
    }

    async fn forget_worker(&self, id: &WorkerId) -> Result<()> {
        self.drop_report(id).await
    }

    async fn workers(&self) -> Result<Vec<WorkerReport>> {
        self.read_workers().await
    }

    async fn depth(&self) -> Result<Depth> {
        self.read_depth().await
    }

    async fn ping(&self) -> Result<()> {
        // Reads a document that is not there: what is asked is whether the database answers.
        self.client.get("lines/ping").await.map(drop)
    }

    /// A document takes about one write a second for long.
    fn append_interval(&self) -> Duration {
        Duration::from_secs(1)
    }
}
