//! What an operator looks at: messages and runs that were put aside, and the workers.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::ids::{AgentName, DeadLetterId, RunId, UserId, WorkerId};
use crate::queue::Undecodable;
use crate::run::{ErrorCode, Run};

/// So much of an undecodable message is kept, in bytes.
const DATA_MAX: usize = 4096;

/// Why something is a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadLetterReason {
    /// The message names no run.
    Undecodable,
    /// The message names a run that was never accepted here.
    UnknownRun,
    /// The run took its workers with it.
    Poison,
    /// The run was given up after too many attempts that did not count.
    AttemptsExhausted,
}

/// Something that no worker will try again by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// The id of its run, or one made from the message.
    pub id: DeadLetterId,
    /// The run, when it names one.
    pub run_id: Option<RunId>,
    /// Why it was put aside.
    pub reason: DeadLetterReason,
    /// The same in words.
    pub detail: String,
    /// Whose run it is.
    pub user_id: Option<UserId>,
    /// Who was to answer.
    pub agent: Option<AgentName>,
    /// How often the run was tried.
    pub attempts: u32,
    /// The beginning of an undecodable message, with what is not printable escaped.
    pub data: Option<String>,
    /// When it was put aside.
    pub created_at: Timestamp,
    /// When it will be deleted.
    pub expire_at: Timestamp,
    /// The run that a redrive made of it.
    pub redriven_as: Option<RunId>,
    /// When that was.
    pub redriven_at: Option<Timestamp>,
}

/// A message that leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stray {
    /// It names a run that is not here.
    UnknownRun(RunId),
    /// It names no run.
    Undecodable(Undecodable),
}

impl DeadLetter {
    /// The letter of a run that has been given up; `None` for every other run.
    pub(super) fn of_run(run: &Run, now: Timestamp, expire_at: Timestamp) -> Option<Self> {
        let error = run.error.as_ref().filter(|_| run.status.is_terminal())?;
        let reason = match error.code {
            ErrorCode::Poison => DeadLetterReason::Poison,
            ErrorCode::AttemptsExhausted => DeadLetterReason::AttemptsExhausted,
            _ => return None,
        };
        Some(Self {
            run_id: Some(run.id.clone()),
            user_id: Some(run.user_id.clone()),
            agent: Some(run.agent.clone()),
            attempts: u32::try_from(run.attempts.len()).unwrap_or(u32::MAX),
            ..Self::new((&run.id).into(), reason, error.message.clone(), now, expire_at)
        })
    }

    pub(super) fn of_stray(stray: &Stray, now: Timestamp, expire_at: Timestamp) -> Self {
        match stray {
            Stray::UnknownRun(id) => {
                let detail = "a message names a run that was never accepted here, or was removed long ago".to_owned();
                Self { run_id: Some(id.clone()), ..Self::new(id.into(), DeadLetterReason::UnknownRun, detail, now, expire_at) }
            }
            Stray::Undecodable(message) => {
                let data = &message.data[..message.data.len().min(DATA_MAX)];
                // The same message, delivered again, is the same letter.
                let digest = Sha256::digest(message.message_id.as_bytes());
                let id = DeadLetterId::of_message(&digest);
                Self {
                    data: Some(data.escape_ascii().to_string()),
                    ..Self::new(id, DeadLetterReason::Undecodable, message.reason.clone(), now, expire_at)
                }
            }
        }
    }

    const fn new(id: DeadLetterId, reason: DeadLetterReason, detail: String, created_at: Timestamp, expire_at: Timestamp) -> Self {
        Self {
            id,
            run_id: None,
            reason,
            detail,
            user_id: None,
            agent: None,
            attempts: 0,
            data: None,
            created_at,
            expire_at,
            redriven_as: None,
            redriven_at: None,
        }
    }
}

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerReport {
    /// This life of it.
    pub id: WorkerId,
    /// The machine it is on.
    pub host: String,
    /// The version of Quayside.
    pub version: String,
    /// Containers at once.
    pub slots: u32,
    /// How many of them are in use.
    pub busy: u32,
    /// Whether it takes no more runs.
    pub draining: bool,
    /// When it began, by its own clock.
    pub started_at: Timestamp,
    /// When it said so, by the store's clock; set by the store.
    pub seen_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_undecodable_message_is_kept_readable_and_short() {
        let now = Timestamp::from_millis(0);
        let stray = |id: &str| {
            Stray::Undecodable(Undecodable {
                message_id: id.into(),
                reason: "because".into(),
                data: [b"\xff{\"a\":1}".to_vec(), vec![b'x'; 10_000]].concat(),
            })
        };
        let letter = DeadLetter::of_stray(&stray("1"), now, now);
        assert!(letter.data.as_ref().unwrap().starts_with(r#"\xff{\"a\":1}xxx"#), "{letter:?}");
        assert!(letter.data.as_ref().unwrap().len() < 2 * DATA_MAX);
        assert_eq!(letter.id, DeadLetter::of_stray(&stray("1"), now, now).id);
        assert_ne!(letter.id, DeadLetter::of_stray(&stray("2"), now, now).id);
        assert_eq!(letter.id.as_str().parse::<DeadLetterId>().unwrap(), letter.id);
    }
}
