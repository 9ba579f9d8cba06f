//! The store port: the truth about every run.
//!
//! All writes go through [`crate::state`] and are compare-and-set on what was read; a writer that holds a lease is
//! fenced by its epoch. Whatever a call changed is visible to every later read, and is durable when the call returns.
//!
//! A call that frees the way for other runs returns them in `wake`: the caller publishes a message for each. When that
//! publish is lost, the sweeper repairs it.

mod draft;
pub mod files;
pub mod firestore;
pub(crate) mod hub;
mod operations;
pub mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::ids::{AgentName, ConversationId, DeadLetterId, RunId, UserId, WorkerId};
use crate::retry::RetryPolicy;
use crate::run::{AttemptOutcome, Run, RunEvent, Waiting, WaitingReason};
use crate::state::Finished;

use files::{Collected, FileList, FilePath, RunFile};

pub use operations::{DeadLetter, DeadLetterReason, Stray, WorkerReport};

/// How long a worker that says nothing any more is shown.
pub const WORKERS_SHOWN: Duration = Duration::from_secs(3600);

/// No message lives longer: Pub/Sub keeps one for seven days.
pub(crate) const MESSAGES_LIVE: Duration = Duration::from_secs(8 * 24 * 3600);

/// Places in the line are counted this far: nobody waits differently at a later one, and counting costs its length.
pub const POSITION_MAX: u64 = 10_000;

/// What every store decides by.
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions {
    /// Runs of one user that may wait.
    pub queued_per_user: u32,
    /// Runs of one user in progress at once.
    pub running_per_user: u32,
    /// Runs of all users that may wait. On Firestore the others' are counted every few seconds: see there.
    pub queued: u64,
    /// How long a finished run is kept.
    pub retention: Duration,
    /// When a queued run that nobody picked up is published again.
    pub republish_after: Duration,
    /// When a lost attempt is tried again.
    pub retry: RetryPolicy,
    /// Numbers from 0 to 1 that spread retries.
    pub jitter: fn() -> f64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            queued_per_user: 100,
            running_per_user: 2,
            queued: 100_000,
            retention: Duration::from_secs(30 * 24 * 3600),
            republish_after: Duration::from_secs(30),
            retry: RetryPolicy::default(),
            jitter: rand::random,
        }
    }
}

/// What happens when the conversation is busy. The words are LangGraph's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MultitaskStrategy {
    /// Wait for its turn.
    #[default]
    Enqueue,
    /// Refuse the new run.
    Reject,
    /// Cancel the unfinished ones and keep them.
    Interrupt,
    /// Cancel the unfinished ones and drop them from the history.
    Rollback,
}

/// A checked request for a run. Whatever can be wrong with it by itself has been refused before.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// The id it will have.
    pub id: RunId,
    /// Its owner.
    pub user_id: UserId,
    /// The conversation it joins, or opens.
    pub conversation_id: ConversationId,
    /// Who answers.
    pub agent: AgentName,
    /// The message, byte for byte.
    pub message: String,
    /// What to do when the conversation is busy.
    pub multitask: MultitaskStrategy,
    /// Wall-clock limit of one attempt.
    pub timeout: Duration,
    /// Expire it when it has not started within this time.
    pub queue_ttl: Option<Duration>,
    /// The client's own words.
    pub metadata: std::collections::BTreeMap<String, String>,
    /// What shall be in its workspace before it starts, in the order of the paths: at most [`files::INPUTS_MAX`], and
    /// [`files::INPUT_BYTES_MAX`] bytes.
    pub files: Vec<RunFile>,
    /// The same key and body within 24 h is the same run.
    pub idempotency: Option<Idempotency>,
}

/// What makes a repeated submission recognisable.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The client's key; scoped to the user.
    pub key: String,
    /// SHA-256 over what was asked.
    pub body_hash: [u8; 32],
}

/// An accepted submission.
#[derive(Debug, Clone)]
pub struct Submitted {
    /// The run as stored.
    pub run: Run,
    /// Whether an earlier submission with the same key made it.
    pub replayed: bool,
    /// What it waits for, while it is queued.
    pub waiting: Option<Waiting>,
    /// Runs that may start now.
    pub wake: Vec<RunId>,
}

/// Why a submission was not accepted. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The key was used with another body.
    #[error("the idempotency key was used with another body")]
    KeyReused,
    /// `reject` was asked for and the conversation has an unfinished run.
    #[error("the conversation is busy")]
    ConversationBusy,
    /// The user has this many unfinished runs waiting already.
    #[error("{limit} runs are queued already")]
    QueueFull {
        /// The limit that was met.
        limit: u32,
    },
    /// As many runs of all users wait as are taken.
    #[error("{limit} runs of all users are queued already")]
    Overloaded {
        /// The limit that was met.
        limit: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}

/// A worker's right to write to one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The run.
    pub run_id: RunId,
    /// The holder.
    pub worker: WorkerId,
    /// Fences every earlier holder.
    pub epoch: u64,
}

/// What a claim came to. In every case but `Claimed` the message is acknowledged: the store will cause the next one.
#[derive(Debug)]
pub enum Claim {
    /// The run is yours until the lease ends.
    Claimed(Lease, Box<Run>),
    /// It may not start yet; whoever frees the way publishes it again.
    Waiting(WaitingReason),
    /// There is nothing to do: finished, held by another worker, or removed.
    Nothing,
    /// No such run was ever accepted here, or it was removed long ago: the message belongs to the dead letters.
    Unknown,
    /// Its queue time-to-live had passed; it is expired now, and these may start instead.
    Expired(Vec<RunId>),
}

/// The answer to a write under a lease.
pub type Fenced<T> = std::result::Result<T, LeaseLost>;

/// The lease is another's, or nobody's: write nothing more, kill the container, stay silent (invariant 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease is lost")]
pub struct LeaseLost;

/// How a run stands, told to the holder of its lease with every write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether a cancellation was accepted: kill the container, prove it gone, then finish.
    pub cancelling: bool,
}

/// What a change of a run did.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The run after it.
    pub run: Run,
    /// Runs that may start now because of it.
    pub wake: Vec<RunId>,
}

/// Events of a run after some sequence number.
#[derive(Debug, Clone, Default)]
pub struct Events {
    /// In order.
    pub events: Vec<RunEvent>,
    /// Whether the run has ended and these are all: nothing will follow but its result, under `last`.
    pub ended: bool,
    /// The run's sequence number now.
    pub last: u64,
}

/// One message and its reply, for the history an agent is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// The user's message.
    pub message: String,
    /// The reply, as far as it came; empty when there was none.
    pub text: String,
}

/// A conversation as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// Its id, unique for its user.
    pub id: ConversationId,
    /// The beginning of its first message.
    pub title: String,
    /// When its first run was accepted.
    pub created_at: Timestamp,
    /// When its last run was accepted.
    pub updated_at: Timestamp,
    /// Runs in it, the rolled-back ones excluded.
    pub run_count: u64,
    /// Runs in it that are not finished.
    pub active_runs: u64,
}

/// A page of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The rows.
    pub data: Vec<T>,
    /// Where the next page begins; `None` on the last.
    pub next_after: Option<String>,
}

/// A cursor that this store did not make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this list")]
pub struct BadCursor;

/// What one pass of the sweeper did.
#[derive(Debug, Clone, Default)]
pub struct Sweep {
    /// Runs that may start: lost attempts, delays that passed, publishes that never happened.
    pub wake: Vec<RunId>,
    /// Attempts taken from workers whose lease ran out.
    pub lost: u64,
    /// Runs whose queue time-to-live passed.
    pub expired: u64,
    /// Records deleted because their time was over.
    pub removed: u64,
    /// When the next pass has something to do, as far as is known now.
    pub next_at: Option<Timestamp>,
}

/// How many runs are where, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Waiting.
    pub queued: u64,
    /// Held by a worker.
    pub leased: u64,
    /// When the oldest waiting run was accepted.
    pub oldest_queued_at: Option<Timestamp>,
}

/// What a watcher learns: that there is something new to read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signal {
    /// Counts changes; not the run's sequence number.
    pub changes: u64,
    /// Whether a cancellation was accepted and its container may still live.
    pub cancelling: bool,
    /// Whether the run has ended.
    pub ended: bool,
}

/// Wakes whoever waits for a run to change. Level-triggered: read the store, then wait, then read again.
#[derive(Debug)]
pub struct Watch {
    receiver: watch::Receiver<Signal>,
}

impl Watch {
    /// A watch on `receiver`. What was signalled before does not count.
    #[must_use]
    pub fn new(receiver: watch::Receiver<Signal>) -> Self {
        Self { receiver }
    }

    /// Waits for the next change since the last call. Cancel-safe. When the store is gone it never returns.
    pub async fn changed(&mut self) -> Signal {
        match self.receiver.changed().await {
            Ok(()) => *self.receiver.borrow_and_update(),
            Err(_closed) => std::future::pending().await,
        }
    }
}

/// The truth about runs, conversations and leases. See the module's words on durability and fencing.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Accepts a run, all or nothing: idempotency, the user's quota, the conversation's strategy and the run itself in
    /// one step. Durable when it returns (invariant 2).
    async fn submit(&self, new: NewRun) -> Result<Submitted, SubmitError>;

    /// The run with its reply so far. `None` too when its conversation was deleted.
    async fn run(&self, id: &RunId) -> Result<Option<Run>>;

    /// What a queued run waits for, computed now; `None` when it does not wait. Places beyond [`POSITION_MAX`] are told
    /// as that.
    async fn waiting(&self, run: &Run) -> Result<Option<Waiting>>;

    /// The run's events after `after`, or the first of them when they are many: ask again from the last one. Empty when
    /// there are none yet. `None` when there is no such run.
    async fn events(&self, id: &RunId, after: u64) -> Result<Option<Events>>;

    /// Signals changes of a run from now on.
    fn watch(&self, id: &RunId) -> Watch;

    /// Asks for a cancellation. A run that has ended stays as it is. `None` when there is no such run.
    async fn cancel(&self, id: &RunId) -> Result<Option<Changed>>;

    /// Tries to take a run whose message arrived.
    async fn claim(&self, id: &RunId, worker: &WorkerId, lease: Duration) -> Result<Claim>;

    /// Puts a queued run off: no claim of it succeeds for `delay`, then it is announced again. Its user is told `reason`. What
    /// is not queued is left alone.
    async fn defer(&self, id: &RunId, reason: WaitingReason, delay: Duration) -> Result<()>;

    /// Prolongs the lease by `lease` from now.
    async fn heartbeat(&self, lease: &Lease, duration: Duration) -> Result<Fenced<Standing>>;

    /// Adds `text` to the reply of this attempt, behind the first `offset` bytes of it. What is there already is not added a
    /// second time: a caller that heard nothing asks again with the same words.
    async fn append(&self, lease: &Lease, offset: u64, text: &str) -> Result<Fenced<Standing>>;

    /// Records the end of the attempt and of the run. `text`, when given, replaces the reply as it was streamed.
    ///
    /// The end of a run that is being cancelled is refused as if the lease were lost while its container
    /// [lives](Finished::lives): kill it, and ask again.
    async fn finish(&self, lease: &Lease, finished: Finished, text: Option<String>) -> Result<Fenced<Changed>>;

    /// Keeps what this attempt left in its workspace, in place of what it kept before. It is seen when the run has ended by
    /// [`Store::finish`] under the same lease, and never otherwise.
    async fn put_files(&self, lease: &Lease, files: Arc<Collected>) -> Result<Fenced<()>>;

    /// What the run left in its workspace; an empty list until it has ended. `None` when there is no such run.
    async fn files(&self, id: &RunId) -> Result<Option<FileList>>;

    /// One of them with its content. `None` when there is no such run, or no such file.
    async fn file(&self, id: &RunId, path: &FilePath) -> Result<Option<RunFile>>;

    /// The files that came with the run's message.
    async fn inputs(&self, id: &RunId) -> Result<Vec<RunFile>>;

    /// Hands the run back: `outcome` is one that does not count. The reply so far is dropped; the next attempt begins
    /// it again.
    async fn release(&self, lease: &Lease, outcome: AttemptOutcome) -> Result<Fenced<Changed>>;

    /// The finished, not rolled-back runs of the conversation before `run`, oldest first: the newest that fit into
    /// `max_bytes` of text.
    async fn history(&self, run: &Run, max_bytes: usize) -> Result<Vec<Turn>>;

    /// The user's conversations, the most recently used first.
    async fn conversations(&self, user: &UserId, after: Option<&str>, limit: u32) -> Result<Result<Page<Conversation>, BadCursor>>;

    /// One conversation of the user.
    async fn conversation(&self, user: &UserId, id: &ConversationId) -> Result<Option<Conversation>>;

    /// The runs of a conversation in their order, the rolled-back ones excluded; `None` when there is no such
    /// conversation of this user.
    async fn conversation_runs(
        &self,
        user: &UserId,
        id: &ConversationId,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Option<Result<Page<Run>, BadCursor>>>;

    /// Cancels what runs in the conversation and makes all of it invisible at once; it is removed when the last
    /// container is gone. `None` when there is no such conversation of this user. The runs returned may start now.
    async fn delete_conversation(&self, user: &UserId, id: &ConversationId) -> Result<Option<Vec<RunId>>>;

    /// One bounded pass of repair: lost leases, passed time-to-lives, due retries, lost publishes, expired records.
    async fn sweep(&self) -> Result<Sweep>;

    /// The same as of `now`, which is a little while ago: what becomes due later is left alone, however late this call
    /// takes effect.
    async fn sweep_as_of(&self, now: Timestamp) -> Result<Sweep>;

    /// Puts a message aside that leads nowhere. The same one again changes nothing.
    async fn quarantine(&self, stray: Stray) -> Result<()>;

    /// What was put aside and is not redriven yet, the newest first: messages by [`Store::quarantine`], and the runs that
    /// were given up.
    async fn dead_letters(&self, after: Option<&str>, limit: u32) -> Result<Result<Page<DeadLetter>, BadCursor>>;

    /// One dead letter, redriven or not.
    async fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<DeadLetter>>;

    /// Notes that `run` was made of a dead letter. The first one stays. `None` when there is no such letter.
    async fn redriven(&self, id: &DeadLetterId, run: &RunId) -> Result<Option<DeadLetter>>;

    /// Keeps what a worker says of itself.
    async fn report_worker(&self, report: WorkerReport) -> Result<()>;

    /// Forgets a worker that has ended.
    async fn forget_worker(&self, id: &WorkerId) -> Result<()>;

    /// The workers that were heard of within [`WORKERS_SHOWN`], the oldest first.
    async fn workers(&self) -> Result<Vec<WorkerReport>>;

    /// How many runs are where.
    async fn depth(&self) -> Result<Depth>;

    /// Whether the store answers and accepts writes.
    async fn ping(&self) -> Result<()>;

    /// How often a streaming writer should append at most.
    fn append_interval(&self) -> Duration;
}
