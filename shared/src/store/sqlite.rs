//! The store in the SQLite file.
//!
//! There is one writer, so each write reads, applies [`crate::state`] and writes back inside one savepoint: nothing can
//! come between. The epoch of a lease still fences, because a worker may act on what it read long ago.

mod change;
mod files;
mod operations;
mod read;
mod rows;
mod submit;
mod sweep;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::{Clock, Timestamp};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{ConversationId, DeadLetterId, RunId, UserId, WorkerId};
use crate::run::{AttemptOutcome, Run, Status, Waiting, WaitingReason};
use crate::sqlite::Database;
use crate::state::Finished;
use crate::store::files::{Collected, FileList, FilePath, RunFile};
use crate::store::hub::Hub;
use crate::store::{
    BadCursor, Changed, Claim, Conversation, DeadLetter, Depth, Events, Fenced, Lease, LeaseLost, NewRun, Page, Standing, Store, StoreOptions, Stray,
    SubmitError, Submitted, Sweep, Turn, Watch, WorkerReport,
};

/// The embedded [`Store`].
pub struct SqliteStore {
    database: Database,
    clock: Arc<dyn Clock>,
    hub: Arc<Hub>,
    options: StoreOptions,
}

/// The clock's time and the options, for the closures that run on the writer thread.
#[derive(Clone, Copy)]
struct Context {
    now: crate::clock::Timestamp,
    options: StoreOptions,
    jitter: f64,
}

impl SqliteStore {
    /// A store in `database`. Nobody else can hold the file, so every lease in it belongs to a process that is dead:
    /// they end now, and the first pass of the sweeper starts those runs again.
    pub async fn open(database: Database, clock: Arc<dyn Clock>, options: StoreOptions) -> Result<Self> {
        let store = Self { database, clock, hub: Arc::new(Hub::default()), options };
        let now = store.clock.now();
        store.database.write(move |db| change::end_all_leases(db, now), |_| {}).await?;
        Ok(store)
    }

    fn context(&self) -> Context {
        Context { now: self.clock.now(), options: self.options, jitter: (self.options.jitter)() }
    }

    /// In writes of bounded size, the list last: without it there is nothing to see.
    async fn store_files(&self, lease: &Lease, files: Arc<Collected>) -> Result<Fenced<()>> {
        let groups = files::groups(&files);
        if groups.len() <= 1 {
            let lease = lease.clone();
            return self.database.write(move |db| files::put(db, &lease, &files, &groups), |_| {}).await;
        }
        let begun = lease.clone();
        if self.database.write(move |db| files::begin(db, &begun), |_| {}).await?.is_err() {
            return Ok(Err(LeaseLost));
        }
        for group in groups {
            let (lease, files) = (lease.clone(), Arc::clone(&files));
            if self.database.write(move |db| files::add(db, &lease, &files, &group), |_| {}).await?.is_err() {
                return Ok(Err(LeaseLost));
            }
        }
        let (lease, list) = (lease.clone(), files.list());
        self.database.write(move |db| files::complete(db, &lease, &list), |_| {}).await
    }

    /// Signals, after the commit, what a write did to runs.
    fn signal<'a>(hub: &Hub, runs: impl IntoIterator<Item = &'a Run>) {
        for run in runs {
            hub.signal(&run.id, run.status == Status::Cancelling, run.status.is_terminal());
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn submit(&self, new: NewRun) -> Result<Submitted, SubmitError> {
        let (context, hub) = (self.context(), Arc::clone(&self.hub));
        let prepared = submit::prepare(new, &context).map_err(|error| Error::new(ErrorKind::Internal, "preparing a run").with_source(error))?;
        let database = self.database.clone();
        let written = self.database.write(
            move |db| submit::submit(db, &prepared, &context, &database),
            move |outcome| {
                if let Ok(accepted) = outcome {
                    Self::signal(&hub, &accepted.cancelled);
                }
            },
        );
        written.await?.map(|accepted| accepted.submitted)
    }

    async fn run(&self, id: &RunId) -> Result<Option<Run>> {
        let id = id.clone();
        self.database.read(move |db| read::run(db, &id)).await
    }

    async fn waiting(&self, run: &Run) -> Result<Option<Waiting>> {
        if run.status != Status::Queued {
            return Ok(None);
        }
        let (id, context) = (run.id.clone(), self.context());
        self.database.read(move |db| read::waiting(db, &id, &context)).await
    }

    async fn events(&self, id: &RunId, after: u64) -> Result<Option<Events>> {
        let id = id.clone();
        self.database.read(move |db| read::events(db, &id, after)).await
    }

    fn watch(&self, id: &RunId) -> Watch {
        self.hub.watch(id)
    }

    async fn cancel(&self, id: &RunId) -> Result<Option<Changed>> {
        let (id, context, hub) = (id.clone(), self.context(), Arc::clone(&self.hub));
        let written = self
            .database
            .write(move |db| change::cancel(db, &id, &context), move |changed| Self::signal(&hub, changed.iter().map(|changed| &changed.run)));
        written.await
    }

    async fn claim(&self, id: &RunId, worker: &WorkerId, duration: Duration) -> Result<Claim> {
        self.database.refuse_starting()?;
        let (id, worker, context, hub) = (id.clone(), worker.clone(), self.context(), Arc::clone(&self.hub));
        let signalled = id.clone();
        let written = self.database.write(
            move |db| change::claim(db, &id, &worker, duration, &context),
            move |claim| match claim {
                Claim::Claimed(..) | Claim::Waiting(_) => hub.signal(&signalled, false, false),
                Claim::Expired(_) => hub.signal(&signalled, false, true),
                Claim::Nothing | Claim::Unknown => {}
            },
        );
        written.await
    }

    async fn defer(&self, id: &RunId, reason: WaitingReason, delay: Duration) -> Result<()> {
        let (id, context, hub) = (id.clone(), self.context(), Arc::clone(&self.hub));
        let written =
            self.database.write(move |db| change::defer(db, &id, reason, delay, &context), move |deferred| Self::signal(&hub, deferred.as_ref()));
        written.await.map(drop)
    }

    async fn heartbeat(&self, lease: &Lease, duration: Duration) -> Result<Fenced<Standing>> {
        let (lease, context) = (lease.clone(), self.context());
        self.database.write(move |db| change::heartbeat(db, &lease, duration, &context), |_| {}).await
    }

    async fn append(&self, lease: &Lease, offset: u64, text: &str) -> Result<Fenced<Standing>> {
        let (lease, text, hub) = (lease.clone(), text.to_owned(), Arc::clone(&self.hub));
        let id = lease.run_id.clone();
        let written = self.database.write(
            move |db| change::append(db, &lease, offset, &text),
            move |appended| {
                if let Ok(standing) = appended {
                    hub.signal(&id, standing.cancelling, false);
                }
            },
        );
        written.await
    }

    async fn finish(&self, lease: &Lease, finished: Finished, text: Option<String>) -> Result<Fenced<Changed>> {
        let (lease, context, hub) = (lease.clone(), self.context(), Arc::clone(&self.hub));
        let written = self.database.write(
            move |db| change::finish(db, &lease, &finished, text.as_deref(), &context),
            move |changed| Self::signal(&hub, changed.iter().map(|changed| &changed.run)),
        );
        written.await
    }

    async fn put_files(&self, lease: &Lease, files: Arc<Collected>) -> Result<Fenced<()>> {
        // What was accepted needs the reserve to end.
        self.database.refuse_new()?;
        self.store_files(lease, files).await
    }

    async fn files(&self, id: &RunId) -> Result<Option<FileList>> {
        let id = id.clone();
        self.database.read(move |db| files::list(db, &id)).await
    }

    async fn file(&self, id: &RunId, path: &FilePath) -> Result<Option<RunFile>> {
        let (id, path) = (id.clone(), path.clone());
        self.database.read(move |db| files::file(db, &id, &path)).await
    }

    async fn inputs(&self, id: &RunId) -> Result<Vec<RunFile>> {
        let id = id.clone();
        self.database.read(move |db| files::inputs(db, &id)).await
    }

    async fn release(&self, lease: &Lease, outcome: AttemptOutcome) -> Result<Fenced<Changed>> {
        let (lease, context, hub) = (lease.clone(), self.context(), Arc::clone(&self.hub));
        let written = self.database.write(
            move |db| change::release(db, &lease, outcome, &context),
            move |changed| Self::signal(&hub, changed.iter().map(|changed| &changed.run)),
        );
        written.await
    }

    async fn history(&self, run: &Run, max_bytes: usize) -> Result<Vec<Turn>> {
        let id = run.id.clone();
        self.database.read(move |db| read::history(db, &id, max_bytes)).await
    }

    async fn conversations(&self, user: &UserId, after: Option<&str>, limit: u32) -> Result<Result<Page<Conversation>, BadCursor>> {
        let (user, after) = (user.clone(), after.map(str::to_owned));
        self.database.read(move |db| read::conversations(db, &user, after.as_deref(), limit)).await
    }

    async fn conversation(&self, user: &UserId, id: &ConversationId) -> Result<Option<Conversation>> {
        let (user, id) = (user.clone(), id.clone());
        self.database.read(move |db| read::conversation(db, &user, &id)).await
    }

    async fn conversation_runs(
        &self,
        user: &UserId,
        id: &ConversationId,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Option<Result<Page<Run>, BadCursor>>> {
        let (user, id, after) = (user.clone(), id.clone(), after.map(str::to_owned));
        self.database.read(move |db| read::conversation_runs(db, &user, &id, after.as_deref(), limit)).await
    }

    async fn delete_conversation(&self, user: &UserId, id: &ConversationId) -> Result<Option<Vec<RunId>>> {
        let (user, id, context, hub) = (user.clone(), id.clone(), self.context(), Arc::clone(&self.hub));
        let written = self.database.write(
            move |db| change::delete_conversation(db, &user, &id, &context),
            move |deleted| {
                if let Some((cancelled, _)) = deleted {
                    Self::signal(&hub, cancelled);
                }
            },
        );
        Ok(written.await?.map(|(_, wake)| wake))
    }

    async fn sweep(&self) -> Result<Sweep> {
        self.sweep_as_of(self.clock.now()).await
    }

    async fn sweep_as_of(&self, now: Timestamp) -> Result<Sweep> {
        let (context, hub) = (Context { now, ..self.context() }, Arc::clone(&self.hub));
        let written = self.database.write(move |db| sweep::sweep(db, &context), move |(_, changed)| Self::signal(&hub, changed));
        written.await.map(|(sweep, _)| sweep)
    }

    async fn quarantine(&self, stray: Stray) -> Result<()> {
        let context = self.context();
        self.database.write(move |db| operations::quarantine(db, &stray, &context), |()| {}).await
    }

    async fn dead_letters(&self, after: Option<&str>, limit: u32) -> Result<Result<Page<DeadLetter>, BadCursor>> {
        let after = after.map(str::to_owned);
        self.database.read(move |db| operations::dead_letters(db, after.as_deref(), limit)).await
    }

    async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>> {
        let id = id.clone();
        self.database.read(move |db| operations::dead_letter(db, &id)).await
    }

    async fn redriven(&self, id: &DeadLetterId, run: &RunId) -> Result<Option<DeadLetter>> {
        let (id, run, now) = (id.clone(), run.clone(), self.clock.now());
        self.database.write(move |db| operations::redriven(db, &id, &run, now), |_| {}).await
    }

    async fn report_worker(&self, report: WorkerReport) -> Result<()> {
        let report = WorkerReport { seen_at: self.clock.now(), ..report };
        self.database.write(move |db| operations::report_worker(db, &report), |()| {}).await
    }

    async fn forget_worker(&self, id: &WorkerId) -> Result<()> {
        let id = id.clone();
        self.database.write(move |db| operations::forget_worker(db, &id), |()| {}).await
    }

    async fn workers(&self) -> Result<Vec<WorkerReport>> {
        let now = self.clock.now();
        self.database.read(move |db| operations::workers(db, now)).await
    }

    async fn depth(&self) -> Result<Depth> {
        self.database.read(read::depth).await
    }

    async fn ping(&self) -> Result<()> {
        self.database.ping().await
    }

    fn append_interval(&self) -> Duration {
        Duration::from_millis(20)
    }
}
