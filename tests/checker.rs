//! A history checker in Jepsen's manner: what the clients saw and what the containers witnessed go in, the broken promises
//! come out. Pure: it knows no server, no store and no clock, so the simulator and the nemesis over real processes judge
//! by the same rules.
//!
//! All times are milliseconds on one clock of the caller's choice. Each rule is told in [`Promise`].

mod calls;
mod finals;
mod observed;
#[cfg(test)]
mod tests;
mod witnessed;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quayside_shared::clock::Timestamp;
use quayside_shared::run::{AttemptOutcome, Status};
use serde_json::Value;

/// Everything that anybody saw.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Every request for a run, each repetition by itself.
    pub submissions: Vec<Submission>,
    /// Every request to cancel one.
    pub cancels: Vec<Cancel>,
    /// Every status that anybody saw of a run. The events of one stream are in their order; otherwise order is no matter.
    pub observations: Vec<Observation>,
    /// What the containers witnessed, outside the store.
    pub executions: Vec<Execution>,
    /// What workers did with messages and leases, in that order, where it can be watched; empty where it cannot.
    pub handled: Vec<Handled>,
    /// All runs as they are read after everything was healed and drained: also those that no client knows of.
    pub finals: Vec<FinalRun>,
}

/// A request for a run.
#[derive(Debug, Clone)]
pub struct Submission {
    pub user: String,
    pub conversation: String,
    pub key: Option<String>,
    /// Differs from every other message of the history, unless it is repeated under the same key.
    pub message: String,
    /// The reply of an agent that completes; every reply so far is a beginning of it.
    pub reply: String,
    pub strategy: Strategy,
    pub asked: u64,
    /// When the answer, or its absence, was known.
    pub answered: u64,
    pub outcome: Outcome,
}

/// What happens to the conversation's unfinished runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// They come first.
    Enqueue,
    /// They may be cancelled for it.
    Interrupt,
}

/// What a client heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// 202 or 200, and the run's id.
    Accepted(String),
    /// An answer that says that nothing was done: 4xx, or 503 before anything was tried.
    Refused,
    /// No answer, or one that leaves it open: it may have been done or not.
    Unknown,
}

/// A request to cancel a run.
#[derive(Debug, Clone)]
pub struct Cancel {
    pub run: String,
    /// The status that was answered; `None` when it is unknown whether anything was done.
    pub answer: Option<Status>,
}

/// A status that somebody saw.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Who asked, in whose name.
    pub user: String,
    pub run: String,
    pub status: Status,
    pub sequence_number: u64,
    /// The reply as far as it was seen.
    pub text: Option<String>,
    pub how: Seen,
    /// When it arrived.
    pub at: u64,
}

/// How a status was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It was read between then and the arrival.
    Asked(u64),
    /// It came in this stream, which tells every change there was: it may be long past.
    Streamed(u64),
}

/// One container, as witnessed by itself or its engine.
#[derive(Debug, Clone)]
pub struct Execution {
    pub run: String,
    /// The number of the attempt, which is also the epoch of its lease.
    pub epoch: u64,
    /// What the program was told, when the witness could hear it.
    pub message: Option<String>,
    /// On whose behalf, when the witness could know.
    pub user: Option<String>,
    pub start: u64,
    /// When the program came to its end by itself, with exit code 0.
    pub ended: Option<u64>,
    /// When the last process of the container was gone.
    pub gone: Option<u64>,
    /// The worker died while the program ran: the attempt is lost, and counts.
    pub orphaned: bool,
}

/// Something that a worker did with a message or the lease of its run.
#[derive(Debug, Clone)]
pub struct Handled {
    /// One life of a worker.
    pub worker: String,
    pub run: String,
    /// Of the lease; 0 for messages.
    pub epoch: u64,
    pub what: Hand,
}

/// What a worker did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hand {
    /// It took a message.
    Received,
    /// It acknowledged a message or gave it back.
    LetGo,
    /// It was given the lease.
    Claimed,
    /// It wrote the end of the attempt.
    Written,
}

/// A run as the API tells it.
#[derive(Debug, Clone)]
pub struct FinalRun {
    pub id: String,
    pub user: String,
    pub conversation: String,
    pub message: String,
    pub text: String,
    pub status: Status,
    /// `error.code`.
    pub error: Option<String>,
    pub attempts: Vec<FinalAttempt>,
    /// By the store's clock.
    pub created: u64,
    pub started: Option<u64>,
    pub finished: Option<u64>,
    pub sequence_number: u64,
}

/// One attempt as the API tells it.
#[derive(Debug, Clone)]
pub struct FinalAttempt {
    pub number: u64,
    pub outcome: Option<AttemptOutcome>,
    pub counted: bool,
    pub started: u64,
    pub ended: Option<u64>,
}

impl FinalRun {
    /// From the JSON of `GET /api/runs/{id}`; `Err` says which field is not as the contract says.
    pub fn from_json(run: &Value) -> Result<Self, String> {
        let attempts = run["attempts"].as_array().ok_or("attempts")?;
        let attempts = attempts.iter().map(|attempt| {
            Ok(FinalAttempt {
                number: attempt["number"].as_u64().ok_or("number")?,
                outcome: word(attempt, "outcome")?,
                counted: attempt["counted"].as_bool().ok_or("counted")?,
                started: time(attempt, "startedAt")?.ok_or("startedAt")?,
                ended: time(attempt, "endedAt")?,
            })
        });
        Ok(Self {
            id: text(run, "id")?,
            user: text(run, "userId")?,
            conversation: text(run, "conversationId")?,
            message: text(run, "message")?,
            text: text(run, "text")?,
            status: word(run, "status")?.ok_or("status")?,
            error: run["error"]["code"].as_str().map(str::to_owned),
            attempts: attempts.collect::<Result<_, String>>()?,
            created: time(run, "createdAt")?.ok_or("createdAt")?,
            started: time(run, "startedAt")?,
            finished: time(run, "finishedAt")?,
            sequence_number: run["sequenceNumber"].as_u64().ok_or("sequenceNumber")?,
        })
    }
}

fn text(of: &Value, field: &str) -> Result<String, String> {
    of[field].as_str().map(str::to_owned).ok_or_else(|| format!("{field} in {of}"))
}

fn word<T: serde::de::DeserializeOwned>(of: &Value, field: &str) -> Result<Option<T>, String> {
    serde_json::from_value(of[field].clone()).map_err(|error| format!("{field}: {error}"))
}

fn time(of: &Value, field: &str) -> Result<Option<u64>, String> {
    let at: Option<Timestamp> = word(of, field)?;
    Ok(at.map(|at| u64::try_from(at.as_millis()).unwrap_or(0)))
}

/// What the rules go by.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Lost workers after which a run is `poison`.
    pub max_attempts: usize,
    /// Whether a worker that is lost may leave its container running beyond its lease, because nobody else can reach its
    /// engine: then `cancelled` says nothing of a container whose worker died.
    pub engines_apart: bool,
}

/// What is promised. A violation names the promise that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Promise {
    /// What was accepted is there in the end, and has ended.
    NothingLost,
    /// One submission is one run, one attempt is one container at most, a run ends once.
    NothingDoubled,
    /// Nothing runs and nothing is stored that nobody submitted; nothing is cancelled that nobody cancelled.
    NothingUnexpected,
    /// User, conversation, message and reply of a run belong together, and nobody else sees them.
    BelongsTogether,
    /// A status changes along the arrows of the contract, and no answer is older than the one before.
    LegalTransitions,
    /// A run of a conversation starts when its predecessors have ended.
    OrderInConversations,
    /// `completed` says that a container ran to its end.
    CompletedRan,
    /// `cancelled` says that the container is gone.
    CancelledIsGone,
    /// A cancellation that was accepted is not forgotten.
    CancelStands,
    /// A worker lets a message go when the end of the attempt is written, and not before.
    AcknowledgedLast,
    /// Attempts are recorded as what they were, and lost workers count up to the limit.
    AttemptsCounted,
    /// Every container is gone in the end.
    NothingLeft,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub promise: Promise,
    /// The run, or what there is of one.
    pub run: String,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}: {}", self.promise, self.run, self.what)
    }
}

/// What is judged, with what is looked up often.
struct Case<'a> {
    history: &'a History,
    limits: &'a Limits,
    finals: BTreeMap<&'a str, &'a FinalRun>,
    /// The submissions by the messages, which are unique.
    asked: BTreeMap<&'a str, Vec<&'a Submission>>,
    executions: BTreeMap<&'a str, Vec<&'a Execution>>,
    observations: BTreeMap<&'a str, Vec<&'a Observation>>,
    violations: Vec<Violation>,
}

/// Every promise that `history` breaks, in no particular order; empty when it breaks none.
pub fn check(history: &History, limits: &Limits) -> Vec<Violation> {
    let mut case = Case {
        history,
        limits,
        finals: history.finals.iter().map(|run| (run.id.as_str(), run)).collect(),
        asked: grouped(&history.submissions, |submission| &submission.message),
        executions: grouped(&history.executions, |execution| &execution.run),
        observations: grouped(&history.observations, |observation| &observation.run),
        violations: Vec::new(),
    };
    case.submissions();
    case.cancels();
    case.observed();
    case.witnessed();
    case.handled();
    case.finals();
    case.violations
}

impl Case<'_> {
    fn broken(&mut self, promise: Promise, run: &str, what: String) {
        self.violations.push(Violation { promise, run: run.to_owned(), what });
    }

    /// The submission that made a run; with a key there may be several, and they are the same.
    fn cause(&self, run: &FinalRun) -> Option<&Submission> {
        self.asked.get(run.message.as_str()).and_then(|asked| asked.first().copied())
    }
}

fn grouped<T>(all: &[T], by: impl Fn(&T) -> &String) -> BTreeMap<&str, Vec<&T>> {
    let mut groups = BTreeMap::<&str, Vec<&T>>::new();
    for one in all {
        groups.entry(by(one)).or_default().push(one);
    }
    groups
}

/// Which promises are broken, for tests that expect some.
pub fn promises(violations: &[Violation]) -> BTreeSet<Promise> {
    violations.iter().map(|violation| violation.promise).collect()
}
