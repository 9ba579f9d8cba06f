//! A run as the model keeps it: what decides anything, and nothing else. Every change goes through `shared::state`, so
//! that the model checks that code and not a drawing of it.

use std::sync::OnceLock;
use std::time::Duration;

use quayside_shared::clock::Timestamp;
use quayside_shared::ids::{ConversationId, RunId, WorkerId};
use quayside_shared::retry::RetryPolicy;
use quayside_shared::run::{Attempt, AttemptOutcome, ErrorCode, LeaseRecord, Run, RunError, Status, Usage, WaitingReason};
use quayside_shared::state::{self, Finished, Refused};

/// Lost workers after which a run is poison: one less than the default, for fewer states.
pub(super) const MAX_ATTEMPTS: u32 = 2;
const LEASE: Duration = Duration::from_secs(30);
/// It is always now: a lease that runs out moves into the past instead.
const NOW: Timestamp = Timestamp::from_millis(1_000_000);
/// A retry comes at once: waiting longer gives nobody another choice.
const POLICY: RetryPolicy = RetryPolicy { max_attempts: MAX_ATTEMPTS, max_uncounted: 20, base: Duration::ZERO, cap: Duration::ZERO };

/// Who may write, and whether the sweeper may take that away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub(super) epoch: u64,
    pub(super) over: bool,
}

/// A run in the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub(super) status: Status,
    /// How each attempt ended, and whether it counts.
    pub(super) attempts: Vec<(Option<AttemptOutcome>, bool)>,
    pub(super) epoch: u64,
    pub(super) lease: Option<Lease>,
    pub(super) error: Option<ErrorCode>,
}

impl Record {
    pub(super) const fn accepted() -> Self {
        Self { status: Status::Queued, attempts: Vec::new(), epoch: 0, lease: None, error: None }
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.status.is_terminal()
    }

    /// Whether `epoch` is the one that may write.
    pub(super) fn is_held_by(&self, epoch: u64) -> bool {
        self.lease.is_some_and(|lease| lease.epoch == epoch)
    }

    pub(super) fn counted(&self) -> u32 {
        self.attempts.iter().map(|(_, counted)| u32::from(*counted)).sum()
    }

    pub(super) fn claim(&self) -> Option<Self> {
        self.change(|run| state::claim(run, worker(), LEASE, NOW).map(drop))
    }

    pub(super) fn heartbeat(&self, epoch: u64) -> Option<Self> {
        self.change(|run| state::heartbeat(run, epoch, LEASE, NOW).map(drop))
    }

    /// Whether a delta would be taken.
    pub(super) fn takes_delta(&self, epoch: u64) -> bool {
        let mut run = self.run();
        let offset = run.reply_bytes;
        state::append(&mut run, epoch, offset, 1).is_ok()
    }

    pub(super) fn finish(&self, epoch: u64, outcome: AttemptOutcome) -> Option<Self> {
        let error = (outcome == AttemptOutcome::ExitNonzero).then(|| RunError::new(ErrorCode::ExitNonzero, ""));
        let finished = Finished { outcome, error, exit_code: None, truncated: false, usage: Usage::default(), lives: false, sandbox: None };
        self.change(|run| state::finish(run, epoch, finished, NOW))
    }

    pub(super) fn release(&self, epoch: u64, outcome: AttemptOutcome) -> Option<Self> {
        self.change(|run| state::release(run, epoch, outcome, &POLICY, 0.0, NOW))
    }

    pub(super) fn lose_lease(&self) -> Option<Self> {
        self.change(|run| state::lose_lease(run, &POLICY, 0.0, NOW))
    }

    pub(super) fn cancel(&self) -> Option<Self> {
        self.change(|run| state::cancel(run, NOW))
    }

    /// When its lease has run out.
    pub(super) fn after_its_lease(&self) -> Self {
        Self { lease: self.lease.map(|lease| Lease { over: true, ..lease }), ..self.clone() }
    }

    /// What `change` makes of it; `None` when it is refused. A refusal that changes something is a bug of its own.
    fn change(&self, change: impl FnOnce(&mut Run) -> Result<(), Refused>) -> Option<Self> {
        let mut run = self.run();
        let outcome = change(&mut run);
        let changed = Self::of(&run);
        if outcome.is_err() {
            assert_eq!(&changed, self, "refused, and changed all the same");
        }
        outcome.is_ok().then_some(changed)
    }

    fn run(&self) -> Run {
        let mut run = blank().clone();
        run.status = self.status;
        run.waiting_reason = (self.status == Status::Queued).then_some(WaitingReason::NoCapacity);
        run.epoch = self.epoch;
        run.attempts = self.attempts.iter().zip(1..).map(|(&(outcome, counted), number)| attempt(number, outcome, counted)).collect();
        run.started_at = (!self.attempts.is_empty()).then_some(NOW);
        run.finished_at = self.is_terminal().then_some(NOW);
        run.error = self.error.map(|code| RunError::new(code, ""));
        run.lease = self.lease.map(|lease| LeaseRecord {
            worker: worker().clone(),
            epoch: lease.epoch,
            expires_at: if lease.over { NOW } else { NOW + LEASE },
        });
        run
    }

    fn of(run: &Run) -> Self {
        Self {
            status: run.status,
            attempts: run.attempts.iter().map(|attempt| (attempt.outcome, attempt.counted)).collect(),
            epoch: run.epoch,
            lease: run.lease.as_ref().map(|lease| Lease { epoch: lease.epoch, over: lease.expires_at <= NOW }),
            error: run.error.as_ref().map(|error| error.code),
        }
    }
}

fn attempt(number: u32, outcome: Option<AttemptOutcome>, counted: bool) -> Attempt {
    Attempt { number, worker: worker().clone(), started_at: NOW, ended_at: outcome.map(|_| NOW), outcome, counted, sandbox: None }
}

/// Decisions ask for the epoch and never for the name, so one name does for all.
fn worker() -> &'static WorkerId {
    static WORKER: OnceLock<WorkerId> = OnceLock::new();
    WORKER.get_or_init(WorkerId::random)
}

fn blank() -> &'static Run {
    static BLANK: OnceLock<Run> = OnceLock::new();
    BLANK.get_or_init(|| Run {
        id: RunId::random(),
        conversation_id: ConversationId::random(),
        user_id: "u".parse().unwrap(),
        agent: "python".parse().unwrap(),
        status: Status::Queued,
        waiting_reason: None,
        message: String::new(),
        text: String::new(),
        truncated: false,
        exit_code: None,
        error: None,
        attempts: Vec::new(),
        usage: Usage::default(),
        created_at: NOW,
        started_at: None,
        finished_at: None,
        expire_at: None,
        metadata: std::collections::BTreeMap::new(),
        reply_bytes: 0,
        sequence_number: 1,
        status_log: Vec::new(),
        lease: None,
        epoch: 0,
        not_before: None,
        start_by: None,
        timeout_millis: 1000,
        rolled_back: false,
        inputs: 0,
    })
}
