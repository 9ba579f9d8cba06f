//! What a run is: the record that both stores keep, and that the API shows.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ids::{AgentName, ConversationId, RunId, UserId, WorkerId};
use crate::sandbox::SandboxRecord;

/// Where a run stands. The arrows between them are in [`crate::state`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Accepted, waiting. The API and the sweeper put it here.
    Queued,
    /// A worker holds the lease and a container runs.
    InProgress,
    /// Cancel was asked for; the container is not yet proven gone.
    Cancelling,
    /// The agent exited 0.
    Completed,
    /// See the run's `error`.
    Failed,
    /// The wall-clock limit passed.
    TimedOut,
    /// The container is gone, confirmed by the engine.
    Cancelled,
    /// The queue time-to-live passed before it started.
    Expired,
}

impl Status {
    /// All of them, in the order of a run's life.
    pub const ALL: [Self; 8] =
        [Self::Queued, Self::InProgress, Self::Cancelling, Self::Completed, Self::Failed, Self::TimedOut, Self::Cancelled, Self::Expired];

    /// Whether nothing can happen any more.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Queued | Self::InProgress | Self::Cancelling => false,
            Self::Completed | Self::Failed | Self::TimedOut | Self::Cancelled | Self::Expired => true,
        }
    }

    /// Whether a worker holds a lease on it.
    #[must_use]
    pub const fn is_leased(self) -> bool {
        matches!(self, Self::InProgress | Self::Cancelling)
    }

    /// The word of the contract.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

/// Why a queued run does not start yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitingReason {
    /// An earlier run of the conversation is not finished.
    ConversationBusy,
    /// The user has as many runs in progress as they may.
    UserQuota,
    /// Every worker is busy.
    NoCapacity,
    /// An attempt was lost; the next one comes after a delay.
    Retrying,
    /// It is to start later.
    Scheduled,
    /// The worker that looked at it cannot enforce what its agent is promised. It is looked at again.
    SandboxNotEnforced,
}

/// What a waiting run tells its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Why.
    pub reason: WaitingReason,
    /// 1 is next: its place among the runs that wait for the same thing.
    pub position: u64,
}

/// Machine word for why a run failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The agent exited with another code than 0.
    ExitNonzero,
    /// The memory limit killed it.
    Oom,
    /// It exited 0 but its reply is not what its `output` promises.
    OutputInvalid,
    /// The image is not there and cannot be had.
    ImageUnavailable,
    /// The engine refused the container.
    SandboxError,
    /// Given up after too many attempts that did not count.
    AttemptsExhausted,
    /// It took its workers with it, several times in a row.
    Poison,
}

/// Why a run failed, for machines and for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    /// The machine word.
    pub code: ErrorCode,
    /// A sentence for the user. Never a secret, never another user's.
    pub message: String,
}

impl RunError {
    /// An error of `code`, told in `message`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// The agent exited 0 and its reply was taken.
    Finished,
    /// The agent exited with another code.
    ExitNonzero,
    /// The memory limit killed it.
    Oom,
    /// The wall-clock limit killed it.
    TimedOut,
    /// The user cancelled it.
    Cancelled,
    /// Exit 0, but no readable reply.
    OutputInvalid,
    /// The engine refused the container for good: no such image, no such program.
    Refused,
    /// The worker's lease ran out: it died, froze or was cut off.
    WorkerLost,
    /// The machine under the worker was taken away.
    Preempted,
    /// The worker was asked to stop and handed the run back.
    Drained,
    /// The container engine failed, not the agent.
    EngineFault,
}

impl AttemptOutcome {
    /// The word of the contract.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::ExitNonzero => "exit_nonzero",
            Self::Oom => "oom",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::OutputInvalid => "output_invalid",
            Self::Refused => "refused",
            Self::WorkerLost => "worker_lost",
            Self::Preempted => "preempted",
            Self::Drained => "drained",
            Self::EngineFault => "engine_fault",
        }
    }

    /// Whether this outcome uses up an attempt. What is nobody's fault does not.
    #[must_use]
    pub const fn counted(self) -> bool {
        match self {
            Self::Preempted | Self::Drained | Self::EngineFault => false,
            Self::Finished
            | Self::ExitNonzero
            | Self::Oom
            | Self::TimedOut
            | Self::Cancelled
            | Self::OutputInvalid
            | Self::Refused
            | Self::WorkerLost => true,
        }
    }
}

/// One execution of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// 1, 2, 3 …
    pub number: u32,
    /// Who ran it.
    pub worker: WorkerId,
    /// When its worker took the lease.
    pub started_at: Timestamp,
    /// When its end was recorded.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Option<AttemptOutcome>,
    /// Whether it used up an attempt; true until something says otherwise.
    pub counted: bool,
    /// What its container was held in by, once it has ended with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxRecord>,
}

/// What a run cost. A figure that could not be measured is absent, never invented.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// From acceptance to the start of the last attempt.
    pub queue_millis: Option<u64>,
    /// From the start of the attempt to the start of the program.
    pub start_millis: Option<u64>,
    /// From the start of the program to its end.
    pub wall_millis: Option<u64>,
    /// CPU time of the container.
    pub cpu_millis: Option<u64>,
    /// Peak memory of the container, as its control group counts it.
    pub max_memory_bytes: Option<u64>,
    /// Bytes the agent wrote on standard output, the dropped ones included.
    pub output_bytes: Option<u64>,
    /// As the agent reports it.
    pub input_tokens: Option<u64>,
    /// As the agent reports it.
    pub output_tokens: Option<u64>,
}

/// Who may write, and until when, by the store's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseRecord {
    /// The holder.
    pub worker: WorkerId,
    /// Grows with each claim; a writer with an older one is fenced.
    pub epoch: u64,
    /// From here on the sweeper may take the run away.
    pub expires_at: Timestamp,
}

/// A visible change of status, kept so that an event stream can be resumed without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusChange {
    /// The run's `sequence_number` at that change.
    pub sequence_number: u64,
    /// The new status.
    pub status: Status,
    /// Why it waits, when it does.
    pub waiting_reason: Option<WaitingReason>,
}

/// A run as the store keeps it. Everything but `text` changes only through [`crate::state`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// The conversation it belongs to.
    pub conversation_id: ConversationId,
    /// Its owner.
    pub user_id: UserId,
    /// Who answers.
    pub agent: AgentName,
    /// Where it stands.
    pub status: Status,
    /// Why it waits, while it is queued.
    pub waiting_reason: Option<WaitingReason>,
    /// The user's message, byte for byte.
    pub message: String,
    /// The reply so far, or all of it. The store assembles it from the deltas; it is not part of the record.
    #[serde(skip)]
    pub text: String,
    /// Whether output over the agent's limit was dropped.
    pub truncated: bool,
    /// The agent's exit code, when it exited.
    pub exit_code: Option<i64>,
    /// Why it failed.
    pub error: Option<RunError>,
    /// Every execution, oldest first.
    pub attempts: Vec<Attempt>,
    /// What it cost.
    pub usage: Usage,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
    /// When its terminal state was written.
    pub finished_at: Option<Timestamp>,
    /// When it will be deleted.
    pub expire_at: Option<Timestamp>,
    /// The client's own words.
    pub metadata: BTreeMap<String, String>,
    /// Grows with every visible change.
    pub sequence_number: u64,
    /// Bytes of the reply that the current attempt has written: where its next delta belongs.
    #[serde(default)]
    pub reply_bytes: u64,
    /// Every visible change of status.
    pub status_log: Vec<StatusChange>,
    /// Who may write, while a worker holds it.
    pub lease: Option<LeaseRecord>,
    /// The epoch of the last claim; 0 before the first.
    pub epoch: u64,
    /// Not to be started before.
    pub not_before: Option<Timestamp>,
    /// To be expired if it has not started by then.
    pub start_by: Option<Timestamp>,
    /// Wall-clock limit of one attempt, milliseconds.
    pub timeout_millis: u64,
    /// Dropped from the conversation's history by a later run with `rollback`.
    pub rolled_back: bool,
    /// How many files came with the message.
    #[serde(default)]
    pub inputs: u32,
}

impl Run {
    /// The wall-clock limit of one attempt.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_millis)
    }

    /// The attempt under way, if there is one.
    #[must_use]
    pub fn current_attempt(&self) -> Option<&Attempt> {
        self.attempts.last().filter(|attempt| attempt.ended_at.is_none())
    }
}

/// What happened to a run, in the order a stream shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEvent {
    /// The run's `sequence_number` at that moment.
    pub sequence_number: u64,
    /// What happened.
    pub kind: RunEventKind,
}

/// The two kinds of event before the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunEventKind {
    /// A new status that is not terminal. `queued` after `in_progress`: the attempt was lost, the reply starts over.
    Status {
        /// The new status.
        status: Status,
        /// Why it waits.
        waiting: Option<WaitingReason>,
    },
    /// More reply text.
    Delta {
        /// To be appended.
        text: String,
    },
}
