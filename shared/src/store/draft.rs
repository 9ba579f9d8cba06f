//! What both stores make of a submission before they look at anything else.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::run::{Run, Status, StatusChange, Usage, WaitingReason};
use crate::store::NewRun;

/// How long a key stands for its run: 24 hours, by the contract.
pub(crate) const IDEMPOTENCY_TTL: Duration = Duration::from_secs(24 * 3600);
const TITLE_MAX_CHARS: usize = 80;

/// The beginning of the first message, on one line.
pub(crate) fn title(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().take(TITLE_MAX_CHARS).collect();
    words.join(" ").chars().filter(|c| !c.is_control()).take(TITLE_MAX_CHARS).collect()
}

/// The run as it will be when nothing holds it up.
pub(crate) fn first_version(new: &NewRun, now: Timestamp) -> Run {
    let reason = Some(WaitingReason::NoCapacity);
    Run {
        id: new.id.clone(),
        conversation_id: new.conversation_id.clone(),
        user_id: new.user_id.clone(),
        agent: new.agent.clone(),
        status: Status::Queued,
        waiting_reason: reason,
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
        status_log: vec![StatusChange { sequence_number: 1, status: Status::Queued, waiting_reason: reason }],
        lease: None,
        epoch: 0,
        not_before: None,
        start_by: new.queue_ttl.map(|ttl| now + ttl),
        timeout_millis: u64::try_from(new.timeout.as_millis()).unwrap_or(u64::MAX),
        rolled_back: false,
        inputs: u32::try_from(new.files.len()).unwrap_or(u32::MAX),
    }
}

/// The same run when something holds it up.
pub(crate) fn held_up_by(run: &mut Run, reason: WaitingReason) {
    run.waiting_reason = Some(reason);
    for change in &mut run.status_log {
        change.waiting_reason = Some(reason);
    }
}
