use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ids::{ConversationId, RunId};

const LEASE: Duration = Duration::from_secs(30);

fn run() -> Run {
    Run {
        id: RunId::random(),
        conversation_id: ConversationId::random(),
        user_id: "u".parse().unwrap(),
        agent: "python".parse().unwrap(),
        status: Status::Queued,
        waiting_reason: Some(WaitingReason::NoCapacity),
        message: "m".into(),
        text: String::new(),
        truncated: false,
        exit_code: None,
        error: None,
        attempts: Vec::new(),
        usage: Usage::default(),
        created_at: Timestamp::from_millis(0),
        started_at: None,
        finished_at: None,
        expire_at: None,
        metadata: BTreeMap::new(),
        reply_bytes: 0,
        sequence_number: 1,
        status_log: Vec::new(),
        lease: None,
        epoch: 0,
        not_before: None,
        start_by: Some(Timestamp::from_millis(600_000)),
        timeout_millis: 1000,
        rolled_back: false,
        inputs: 0,
    }
}

fn finished(outcome: AttemptOutcome) -> Finished {
    Finished { outcome, error: None, exit_code: None, truncated: false, usage: Usage::default(), lives: false, sandbox: None }
}

/// Everything that anybody may try, in any state, with any epoch.
#[derive(Debug, Clone)]
enum Act {
    Claim,
    Wait,
    Heartbeat(u64),
    Append(u64),
    Finish(u64, AttemptOutcome),
    Release(u64, AttemptOutcome),
    LoseLease,
    Cancel,
    Expire,
    Time(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let outcome = prop::sample::select(vec![
        AttemptOutcome::Finished,
        AttemptOutcome::ExitNonzero,
        AttemptOutcome::Oom,
        AttemptOutcome::TimedOut,
        AttemptOutcome::Cancelled,
        AttemptOutcome::OutputInvalid,
        AttemptOutcome::Refused,
        AttemptOutcome::WorkerLost,
        AttemptOutcome::Preempted,
        AttemptOutcome::Drained,
        AttemptOutcome::EngineFault,
    ]);
    prop_oneof![
        3 => Just(Act::Claim),
        1 => Just(Act::Wait),
        1 => (0..4u64).prop_map(Act::Heartbeat),
        1 => (0..4u64).prop_map(Act::Append),
        1 => (0..4u64, outcome.clone()).prop_map(|(epoch, outcome)| Act::Finish(epoch, outcome)),
        2 => (0..4u64, outcome).prop_map(|(epoch, outcome)| Act::Release(epoch, outcome)),
        2 => Just(Act::LoseLease),
        1 => Just(Act::Cancel),
        1 => Just(Act::Expire),
        3 => (1..60_000u64).prop_map(Act::Time),
    ]
}

fn apply(run: &mut Run, act: &Act, now: Timestamp) -> Result<(), Refused> {
    let policy = RetryPolicy::default();
    // Epochs count back from the newest: 0 is the holder's own.
    let epoch = |back: u64, run: &Run| run.epoch.wrapping_sub(back);
    match act {
        Act::Claim => claim(run, &WorkerId::random(), LEASE, now).map(drop),
        Act::Wait => wait(run, WaitingReason::UserQuota),
        Act::Heartbeat(back) => heartbeat(run, epoch(*back, run), LEASE, now).map(drop),
        Act::Append(back) => append(run, epoch(*back, run), run.reply_bytes, 1).map(drop),
        Act::Finish(back, outcome) => finish(run, epoch(*back, run), finished(*outcome), now),
        Act::Release(back, outcome) => release(run, epoch(*back, run), *outcome, &policy, 0.5, now),
        Act::LoseLease => lose_lease(run, &policy, 0.5, now),
        Act::Cancel => cancel(run, now),
        Act::Expire => expire(run, now),
        Act::Time(_) => Ok(()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn whatever_is_tried_the_run_stays_sound(acts in prop::collection::vec(act(), 1..60)) {
        let mut run = run();
        let mut now = Timestamp::from_millis(0);
        for act in &acts {
            if let Act::Time(millis) = act {
                now = now + Duration::from_millis(*millis);
            }
            let before = run.clone();
            let outcome = apply(&mut run, act, now);
            // A refusal changes nothing.
            if outcome.is_err() {
                prop_assert_eq!(&run, &before);
            }
            // Only the arrows of the picture, and a terminal state is for ever.
            if run.status != before.status {
                prop_assert!(may_become(before.status, run.status), "{:?} -> {:?}", before.status, run.status);
            }
            if before.status.is_terminal() && !matches!(act, Act::Time(_)) {
                prop_assert!(outcome.is_err());
            }
            // A stale epoch never writes.
            if let Act::Heartbeat(back) | Act::Append(back) | Act::Finish(back, _) | Act::Release(back, _) = act
                && (*back > 0 || before.lease.is_none())
            {
                prop_assert_eq!(outcome, Err(Refused::LeaseLost));
            }
            // Lease and status say the same; a finished run has its time and no open attempt.
            prop_assert_eq!(run.lease.is_some(), run.status.is_leased());
            prop_assert_eq!(run.current_attempt().is_some(), run.status.is_leased());
            prop_assert_eq!(run.finished_at.is_some(), run.status.is_terminal());
            prop_assert_eq!(run.waiting_reason.is_some(), run.status == Status::Queued);
            prop_assert!(run.sequence_number >= before.sequence_number);
            prop_assert!(run.epoch >= before.epoch && run.epoch == run.attempts.len() as u64);
            if run.status != before.status {
                prop_assert!(run.sequence_number > before.sequence_number);
                prop_assert_eq!(run.status_log.last().map(|change| change.status), Some(run.status));
            }
            // Poison after exactly three lost workers, never before, and never because of a drain.
            let lost = run.attempts.iter().filter(|attempt| attempt.outcome == Some(AttemptOutcome::WorkerLost)).count();
            prop_assert!(lost <= 3);
            if run.error.as_ref().is_some_and(|error| error.code == ErrorCode::Poison) {
                prop_assert_eq!(lost, 3);
            }
        }
    }
}

#[test]
fn a_result_that_came_first_stands() {
    let mut run = run();
    let now = Timestamp::from_millis(1);
    claim(&mut run, &WorkerId::random(), LEASE, now).unwrap();
    finish(&mut run, 1, finished(AttemptOutcome::Finished), now).unwrap();
    assert_eq!(cancel(&mut run, now), Err(Refused::Status(Status::Completed)));
    assert_eq!(run.status, Status::Completed);
}

#[test]
fn a_cancellation_that_came_first_stands() {
    let mut run = run();
    let now = Timestamp::from_millis(1);
    claim(&mut run, &WorkerId::random(), LEASE, now).unwrap();
    cancel(&mut run, now).unwrap();
    assert_eq!(run.status, Status::Cancelling);
    finish(&mut run, 1, finished(AttemptOutcome::Finished), now).unwrap();
    assert_eq!(run.status, Status::Cancelled);
    assert_eq!(run.attempts[0].outcome, Some(AttemptOutcome::Cancelled));
}

#[test]
fn three_lost_workers_are_poison_and_drains_in_between_do_not_count() {
    let mut run = run();
    let mut now = Timestamp::from_millis(0);
    for lost in 1..=3 {
        claim(&mut run, &WorkerId::random(), LEASE, now).unwrap();
        let epoch = run.epoch;
        release(&mut run, epoch, AttemptOutcome::Drained, &RetryPolicy::default(), 0.0, now).unwrap();
        assert_eq!(run.not_before, None, "a drained run goes on at once");
        claim(&mut run, &WorkerId::random(), LEASE, now).unwrap();
        assert!(lose_lease(&mut run, &RetryPolicy::default(), 0.0, now).is_err(), "the lease is not over");
        now = now + LEASE;
        lose_lease(&mut run, &RetryPolicy::default(), 0.0, now).unwrap();
        now = now + Duration::from_secs(60);
        assert_eq!(run.status.is_terminal(), lost == 3);
    }
    assert_eq!(run.error.unwrap().code, ErrorCode::Poison);
    assert_eq!(run.attempts.iter().filter(|attempt| attempt.counted).count(), 3);
}

#[test]
fn a_run_that_never_started_expires_and_one_that_did_does_not() {
    let late = Timestamp::from_millis(700_000);
    let mut waiting = run();
    assert!(expire(&mut waiting, Timestamp::from_millis(1)).is_err());
    expire(&mut waiting, late).unwrap();
    assert_eq!(waiting.status, Status::Expired);
    let mut retried = run();
    claim(&mut retried, &WorkerId::random(), LEASE, Timestamp::from_millis(1)).unwrap();
    lose_lease(&mut retried, &RetryPolicy::default(), 0.0, late).unwrap();
    assert!(expire(&mut retried, late).is_err());
}
