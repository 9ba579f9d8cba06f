//! How runs look from outside. What is not named here is not shown.

mod sandbox;

use std::collections::BTreeMap;

use quayside_shared::clock::Timestamp;
use quayside_shared::error::Result;
use quayside_shared::run::{Attempt, AttemptOutcome, ErrorCode, Run, RunError, Status, Usage, Waiting, WaitingReason};
use quayside_shared::store::Store;
use serde::Serialize;
use utoipa::ToSchema;

/// A word of the domain with its schema. The exhaustive match keeps the two lists the same.
macro_rules! words {
    ($(#[$doc:meta])* $view:ident as $name:ident of $domain:ident { $($(#[$word_doc:meta])* $word:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Serialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        #[schema(as = $name)]
        pub(crate) enum $view { $($(#[$word_doc])* $word),* }

        impl From<$domain> for $view {
            fn from(word: $domain) -> Self {
                match word { $($domain::$word => Self::$word),* }
            }
        }
    };
}

pub(crate) use words;

pub(crate) use sandbox::SandboxView;

words! {
    /// Where a run stands.
    StatusView as Status of Status { Queued, InProgress, Cancelling, Completed, Failed, TimedOut, Cancelled, Expired }
}
words! {
    /// Why a queued run does not start yet.
    ReasonView as WaitingReason of WaitingReason { ConversationBusy, UserQuota, NoCapacity, Retrying, Scheduled, SandboxNotEnforced }
}
words! {
    /// Why a run failed.
    ErrorCodeView as RunErrorCode of ErrorCode {
        ExitNonzero, Oom, OutputInvalid, ImageUnavailable, SandboxError, AttemptsExhausted, Poison,
    }
}
words! {
    /// How an attempt ended.
    OutcomeView as AttemptOutcome of AttemptOutcome {
        Finished, ExitNonzero, Oom, TimedOut, Cancelled, OutputInvalid, Refused, WorkerLost, Preempted, Drained, EngineFault,
    }
}

/// What a queued run waits for.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[schema(as = Waiting)]
pub(crate) struct WaitingView {
    /// Why it waits.
    reason: ReasonView,
    /// 1 is next: its place among the runs that wait for the same thing, counted up to 10,000. Null in events: they stay as they are.
    #[schema(required, minimum = 1)]
    position: Option<u64>,
}

impl WaitingView {
    /// A reason without a place in the line.
    pub(crate) fn uncounted(reason: WaitingReason) -> Self {
        Self { reason: reason.into(), position: None }
    }
}

impl From<Waiting> for WaitingView {
    fn from(waiting: Waiting) -> Self {
        Self { reason: waiting.reason.into(), position: Some(waiting.position) }
    }
}

/// Why a run failed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RunError)]
pub(crate) struct RunErrorView {
    /// The machine word.
    code: ErrorCodeView,
    /// For people.
    message: String,
}

impl From<RunError> for RunErrorView {
    fn from(error: RunError) -> Self {
        Self { code: error.code.into(), message: error.message }
    }
}

/// One execution of a run.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Attempt)]
pub(crate) struct AttemptView {
    /// 1, 2, 3 …
    #[schema(minimum = 1)]
    number: u32,
    /// Who ran it.
    worker: String,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    ended_at: Option<Timestamp>,
    /// How it ended.
    #[schema(required)]
    outcome: Option<OutcomeView>,
    /// Whether it used up an attempt.
    counted: bool,
    /// What its container was held in by; null until it has ended, and when there was none.
    #[schema(required)]
    sandbox: Option<SandboxView>,
}

impl From<Attempt> for AttemptView {
    fn from(attempt: Attempt) -> Self {
        let Attempt { number, worker, started_at, ended_at, outcome, counted, sandbox } = attempt;
        let (outcome, sandbox) = (outcome.map(Into::into), sandbox.map(Into::into));
        Self { number, worker: worker.into(), started_at, ended_at, outcome, counted, sandbox }
    }
}

/// What a run cost. A figure that could not be measured is null.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Usage)]
pub(crate) struct UsageView {
    /// From acceptance to the start of the last attempt.
    #[schema(required)]
    queue_millis: Option<u64>,
    /// From the start of the attempt to the start of the program.
    #[schema(required)]
    start_millis: Option<u64>,
    /// From the start of the program to its end.
    #[schema(required)]
    wall_millis: Option<u64>,
    /// CPU time of the container.
    #[schema(required)]
    cpu_millis: Option<u64>,
    /// Peak memory of the container.
    #[schema(required)]
    max_memory_bytes: Option<u64>,
    /// Bytes the agent wrote, the dropped ones included.
    #[schema(required)]
    output_bytes: Option<u64>,
    /// As the agent reports it.
    #[schema(required)]
    input_tokens: Option<u64>,
    /// As the agent reports it.
    #[schema(required)]
    output_tokens: Option<u64>,
}

impl From<Usage> for UsageView {
    fn from(usage: Usage) -> Self {
        let Usage { queue_millis, start_millis, wall_millis, cpu_millis, max_memory_bytes, output_bytes, input_tokens, output_tokens } = usage;
        Self { queue_millis, start_millis, wall_millis, cpu_millis, max_memory_bytes, output_bytes, input_tokens, output_tokens }
    }
}

/// One message of a user and its reply.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Run)]
pub(crate) struct RunView {
    #[schema(pattern = "^run_[A-Za-z0-9]{22}$", example = "run_4fXkQ0bVZ8a1LwTnE2sRyc")]
    id: String,
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$", example = "conv_7Nw1yQkX5cB2mZs8RtLd0a")]
    conversation_id: String,
    /// The batch it came with.
    #[schema(required)]
    batch_id: Option<String>,
    /// Its name in that batch.
    #[schema(required)]
    custom_id: Option<String>,
    /// Its owner.
    user_id: String,
    /// Who answers.
    agent: String,
    status: StatusView,
    /// Why it waits; null unless it is queued.
    #[schema(required)]
    waiting: Option<WaitingView>,
    /// The message, byte for byte.
    message: String,
    /// The reply so far, or all of it.
    text: String,
    /// Whether output over the agent's limit was dropped.
    truncated: bool,
    /// The agent's exit code, when it exited.
    #[schema(required)]
    exit_code: Option<i64>,
    /// Why it failed; null unless it did.
    #[schema(required)]
    error: Option<RunErrorView>,
    /// Every execution, oldest first.
    attempts: Vec<AttemptView>,
    usage: UsageView,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When its first attempt began.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    started_at: Option<Timestamp>,
    /// When its terminal state was written.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    finished_at: Option<Timestamp>,
    /// When it will be deleted.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    expire_at: Option<Timestamp>,
    /// The client's own words.
    metadata: BTreeMap<String, String>,
    /// Grows with every visible change.
    sequence_number: u64,
}

impl RunView {
    /// `run` with what it waits for, counted now.
    pub(crate) async fn counted(store: &dyn Store, run: Run) -> Result<Self> {
        let counted = if run.status == Status::Queued { store.waiting(&run).await? } else { None };
        Ok(Self::new(run, counted))
    }

    /// `run` without a place in the line.
    pub(crate) fn uncounted(run: Run) -> Self {
        Self::new(run, None)
    }

    /// `run` with what it waits for, when that is known.
    pub(crate) fn new(run: Run, counted: Option<Waiting>) -> Self {
        let reason = run.waiting_reason.filter(|_| run.status == Status::Queued);
        Self {
            id: run.id.into(),
            conversation_id: run.conversation_id.into(),
            batch_id: None,
            custom_id: None,
            user_id: run.user_id.into(),
            agent: run.agent.into(),
            status: run.status.into(),
            waiting: counted.map(Into::into).or_else(|| reason.map(WaitingView::uncounted)),
            message: run.message,
            text: run.text,
            truncated: run.truncated,
            exit_code: run.exit_code,
            error: run.error.map(Into::into),
            attempts: run.attempts.into_iter().map(Into::into).collect(),
            usage: run.usage.into(),
            created_at: run.created_at,
            started_at: run.started_at,
            finished_at: run.finished_at,
            expire_at: run.expire_at,
            metadata: run.metadata,
            sequence_number: run.sequence_number,
        }
    }
}
