//! The checker checked: a good history breaks nothing, and each small lie breaks exactly its promise.

use std::collections::BTreeSet;

use quayside_shared::run::{AttemptOutcome, Status};

use super::{
    Cancel, Execution, FinalAttempt, FinalRun, Hand, Handled, History, Limits, Observation, Outcome, Promise, Seen, Strategy, Submission, check,
    promises,
};

const LIMITS: Limits = Limits { max_attempts: 3, engines_apart: false };

fn submission(message: &str, asked: u64, outcome: Outcome) -> Submission {
    Submission {
        user: "ann".into(),
        conversation: "talk".into(),
        key: None,
        message: message.into(),
        reply: format!("re: {message}"),
        strategy: Strategy::Enqueue,
        asked,
        answered: asked + 5,
        outcome,
    }
}

fn seen(run: &str, status: Status, sequence_number: u64, at: u64) -> Observation {
    Observation { user: "ann".into(), run: run.into(), status, sequence_number, text: None, how: Seen::Asked(at - 2), at }
}

fn attempt(number: u64, outcome: AttemptOutcome, started: u64) -> FinalAttempt {
    FinalAttempt { number, outcome: Some(outcome), counted: outcome.counted(), started, ended: Some(started + 20) }
}

fn execution(run: &str, message: &str, epoch: u64, start: u64) -> Execution {
    Execution {
        run: run.into(),
        epoch,
        message: Some(message.into()),
        user: Some("ann".into()),
        start,
        ended: Some(start + 10),
        gone: Some(start + 12),
        orphaned: false,
    }
}

fn handled(epoch: u64, what: Hand) -> Handled {
    Handled { worker: "w".into(), run: "r1".into(), epoch, what }
}

fn ended(id: &str, message: &str, created: u64, attempts: Vec<FinalAttempt>) -> FinalRun {
    FinalRun {
        id: id.into(),
        user: "ann".into(),
        conversation: "talk".into(),
        message: message.into(),
        text: format!("re: {message}"),
        status: Status::Completed,
        error: None,
        created,
        started: attempts.first().map(|attempt| attempt.started),
        finished: attempts.last().and_then(|attempt| attempt.ended),
        attempts,
        sequence_number: 9,
    }
}

/// Two runs of a conversation, the second of which lost a worker, and a third that was cancelled under way.
fn good() -> History {
    let accepted = |id: &str| Outcome::Accepted(id.into());
    let mut repeated = submission("two", 20, Outcome::Unknown);
    repeated.key = Some("k".into());
    let again = Submission { asked: 40, answered: 45, outcome: accepted("r2"), ..repeated.clone() };
    let mut lost = execution("r2", "two", 1, 130);
    (lost.ended, lost.orphaned) = (None, true);
    let mut killed = execution("r3", "three", 1, 330);
    killed.ended = None;
    let streamed = |status, number| Observation { how: Seen::Streamed(1), ..seen("r2", status, number, 230) };
    let cancelled =
        FinalRun { status: Status::Cancelled, text: "re:".into(), ..ended("r3", "three", 300, vec![attempt(1, AttemptOutcome::Cancelled, 325)]) };
    History {
        submissions: vec![
            submission("one", 0, accepted("r1")),
            repeated,
            again,
            submission("three", 300, accepted("r3")),
            submission("never", 50, Outcome::Unknown),
            submission("refused", 60, Outcome::Refused),
        ],
        cancels: vec![Cancel { run: "r3".into(), answer: Some(Status::Cancelling) }, Cancel { run: "r1".into(), answer: Some(Status::Completed) }],
        observations: vec![
            seen("r1", Status::Queued, 1, 10),
            seen("r1", Status::InProgress, 2, 105),
            seen("r1", Status::Completed, 9, 125),
            streamed(Status::Queued, 1),
            streamed(Status::InProgress, 2),
            streamed(Status::Queued, 5),
            streamed(Status::InProgress, 6),
            Observation { text: Some("re: two".into()), ..streamed(Status::Completed, 9) },
            seen("r3", Status::Cancelling, 3, 340),
            seen("r3", Status::Cancelled, 9, 350),
        ],
        handled: vec![
            handled(0, Hand::Received),
            handled(1, Hand::Claimed),
            handled(0, Hand::Received),
            handled(0, Hand::LetGo),
            handled(1, Hand::Written),
            handled(0, Hand::LetGo),
        ],
        executions: vec![execution("r1", "one", 1, 102), lost, execution("r2", "two", 2, 202), killed],
        finals: vec![
            ended("r1", "one", 5, vec![attempt(1, AttemptOutcome::Finished, 100)]),
            ended("r2", "two", 25, vec![attempt(1, AttemptOutcome::WorkerLost, 129), attempt(2, AttemptOutcome::Finished, 201)]),
            cancelled,
        ],
    }
}

/// Changes the good history, and sees which promises that breaks.
fn broken_by(lie: impl FnOnce(&mut History)) -> BTreeSet<Promise> {
    let mut history = good();
    lie(&mut history);
    promises(&check(&history, &LIMITS))
}

/// The lie breaks `promise` and no other.
#[track_caller]
fn breaks(promise: Promise, lie: impl FnOnce(&mut History)) {
    assert_eq!(broken_by(lie), BTreeSet::from([promise]));
}

#[test]
fn a_good_history_breaks_nothing() {
    assert_eq!(check(&good(), &LIMITS), []);
    assert_eq!(check(&History::default(), &LIMITS), []);
}

#[test]
fn an_accepted_run_that_is_not_there_is_lost() {
    breaks(Promise::NothingLost, |history| history.submissions.push(submission("four", 400, Outcome::Accepted("r4".into()))));
}

#[test]
fn a_run_that_never_ends_is_lost() {
    breaks(Promise::NothingLost, |history| {
        history.submissions.push(submission("four", 400, Outcome::Accepted("r4".into())));
        history.finals.push(FinalRun { status: Status::Queued, text: String::new(), ..ended("r4", "four", 400, Vec::new()) });
    });
}

#[test]
fn a_run_that_was_seen_and_is_gone_is_lost() {
    breaks(Promise::NothingLost, |history| history.observations.push(seen("r4", Status::Queued, 1, 400)));
}

#[test]
fn two_ends_are_a_double() {
    breaks(Promise::NothingDoubled, |history| history.observations.push(seen("r1", Status::Failed, 9, 500)));
}

#[test]
fn an_end_that_is_taken_back_is_a_double() {
    breaks(Promise::NothingDoubled, |history| {
        let stream = |status, number| Observation { how: Seen::Streamed(7), ..seen("r1", status, number, 500) };
        history.observations.push(stream(Status::InProgress, 12));
        history.finals[0].sequence_number = 13;
    });
}

#[test]
fn one_key_that_made_two_runs_is_a_double() {
    breaks(Promise::NothingDoubled, |history| {
        let run = ended("r5", "two", 25, vec![attempt(1, AttemptOutcome::Finished, 225)]);
        history.executions.push(execution("r5", "two", 1, 230));
        history.finals.push(run);
    });
}

#[test]
fn one_submission_without_a_key_is_one_run() {
    breaks(Promise::NothingDoubled, |history| {
        history.executions.push(execution("r6", "one", 1, 230));
        history.finals.push(ended("r6", "one", 25, vec![attempt(1, AttemptOutcome::Finished, 225)]));
    });
}

#[test]
fn a_run_that_is_there_twice_and_an_attempt_with_two_containers_are_doubles() {
    breaks(Promise::NothingDoubled, |history| history.finals.push(history.finals[0].clone()));
    breaks(Promise::NothingDoubled, |history| history.executions.push(history.executions[0].clone()));
}

#[test]
fn attempts_that_overlap_are_a_double() {
    breaks(Promise::NothingDoubled, |history| history.finals[1].attempts[0].ended = Some(210));
}

#[test]
fn what_nobody_submitted_is_unexpected() {
    breaks(Promise::NothingUnexpected, |history| history.executions.push(execution("r7", "none", 1, 230)));
    breaks(Promise::NothingUnexpected, |history| history.finals.push(FinalRun { status: Status::Failed, ..ended("r7", "none", 25, Vec::new()) }));
    breaks(Promise::NothingUnexpected, |history| {
        history.finals.push(FinalRun { status: Status::Failed, ..ended("r7", "refused", 25, Vec::new()) });
    });
}

#[test]
fn an_unknown_outcome_may_be_either() {
    let happened = broken_by(|history| history.finals.push(FinalRun { status: Status::Failed, ..ended("r8", "never", 55, Vec::new()) }));
    assert_eq!(happened, BTreeSet::new());
}

#[test]
fn a_container_without_an_attempt_is_unexpected() {
    breaks(Promise::NothingUnexpected, |history| history.executions.push(execution("r1", "one", 2, 103)));
}

#[test]
fn a_cancellation_that_nobody_asked_for_is_unexpected() {
    breaks(Promise::NothingUnexpected, |history| drop(history.cancels.remove(0)));
}

#[test]
fn what_is_anothers_is_told() {
    breaks(Promise::BelongsTogether, |history| history.finals[0].user = "bob".into());
    breaks(Promise::BelongsTogether, |history| history.finals[0].text = "re: two".into());
    breaks(Promise::BelongsTogether, |history| history.finals[2].text = "re: one".into());
    breaks(Promise::BelongsTogether, |history| history.executions[0].message = Some("two".into()));
    breaks(Promise::BelongsTogether, |history| history.executions[0].user = Some("bob".into()));
    breaks(Promise::BelongsTogether, |history| history.observations[0].user = "bob".into());
    breaks(Promise::BelongsTogether, |history| history.observations[1].text = Some("re: two".into()));
    let mixed_up = broken_by(|history| history.submissions[3].outcome = Outcome::Accepted("r1".into()));
    assert!(mixed_up.contains(&Promise::BelongsTogether));
}

#[test]
fn arrows_that_are_not_there_are_told() {
    breaks(Promise::LegalTransitions, |history| {
        history.observations[0].status = Status::Cancelling;
        history.observations[1].status = Status::InProgress;
    });
    breaks(Promise::LegalTransitions, |history| drop(history.observations.remove(6)));
    breaks(Promise::LegalTransitions, |history| history.observations[1].sequence_number = 1);
}

#[test]
fn an_answer_from_the_past_is_told() {
    breaks(Promise::LegalTransitions, |history| history.observations.push(seen("r1", Status::InProgress, 2, 130)));
}

#[test]
fn order_in_a_conversation_is_told() {
    breaks(Promise::OrderInConversations, |history| history.finals[1].started = Some(110));
    breaks(Promise::OrderInConversations, |history| {
        // Still seen in progress when the container of the second one ran already.
        history.observations[1] = seen("r1", Status::InProgress, 2, 140);
        history.observations[2] = seen("r1", Status::Completed, 9, 145);
    });
}

#[test]
fn runs_that_were_asked_for_at_once_have_no_order() {
    let together = broken_by(|history| {
        history.finals[1].started = Some(110);
        history.submissions[1].asked = 3;
    });
    assert_eq!(together, BTreeSet::new());
}

#[test]
fn completed_without_an_end_is_told() {
    breaks(Promise::CompletedRan, |history| history.executions[2].ended = None);
    breaks(Promise::CompletedRan, |history| history.executions[2].ended = Some(222));
    breaks(Promise::CompletedRan, |history| drop(history.executions.remove(0)));
}

#[test]
fn cancelled_before_the_container_is_gone_is_told() {
    breaks(Promise::CancelledIsGone, |history| history.executions[3].gone = Some(360));
}

#[test]
fn a_lost_workers_container_may_be_out_of_reach() {
    let mut history = good();
    history.executions[3].gone = Some(360);
    history.finals[2].attempts[0] = attempt(1, AttemptOutcome::WorkerLost, 325);
    history.executions[3].orphaned = true;
    let apart = Limits { engines_apart: true, ..LIMITS };
    assert_eq!(check(&history, &apart), []);
    assert_eq!(promises(&check(&history, &LIMITS)), BTreeSet::from([Promise::CancelledIsGone]));
}

#[test]
fn a_forgotten_cancellation_is_told() {
    breaks(Promise::CancelStands, |history| history.cancels.push(Cancel { run: "r2".into(), answer: Some(Status::Cancelling) }));
}

#[test]
fn attempts_that_are_not_what_they_were_are_told() {
    breaks(Promise::AttemptsCounted, |history| history.finals[1].attempts[0] = attempt(1, AttemptOutcome::Drained, 129));
    breaks(Promise::AttemptsCounted, |history| history.finals[1].attempts[0].counted = false);
    breaks(Promise::AttemptsCounted, |history| {
        history.finals[2] = FinalRun { status: Status::Failed, error: Some("poison".into()), ..history.finals[2].clone() };
        history.cancels.remove(0);
        history.observations.truncate(8);
    });
}

#[test]
fn a_message_that_is_let_go_too_early_is_told() {
    breaks(Promise::AcknowledgedLast, |history| history.handled.swap(4, 5));
    breaks(Promise::AcknowledgedLast, |history| drop(history.handled.remove(2)));
    // Whoever has to take the lease for lost lets go.
    let lost = broken_by(|history| {
        history.handled.iter_mut().for_each(|one| one.run = "r2".into());
        history.handled.swap(4, 5);
    });
    assert_eq!(lost, BTreeSet::new());
}

#[test]
fn more_lost_workers_than_allowed_are_told() {
    breaks(Promise::AttemptsCounted, |history| {
        let run = &mut history.finals[1];
        run.attempts = (1..=4).map(|number| attempt(number, AttemptOutcome::WorkerLost, 125 + number * 20)).collect();
        (run.status, run.error, run.sequence_number) = (Status::Failed, Some("poison".into()), 9);
        let lost = (2..=4).map(|epoch| Execution { orphaned: true, ended: None, ..execution("r2", "two", epoch, 130 + epoch * 20) });
        history.executions.remove(2);
        history.executions.extend(lost);
        history.observations.retain(|seen| seen.status != Status::Completed || seen.run != "r2");
    });
}

#[test]
fn a_container_that_stays_is_told() {
    breaks(Promise::NothingLeft, |history| history.executions[1].gone = None);
}

#[test]
fn a_run_is_read_from_the_contracts_json() {
    let json = serde_json::json!({
        "id": "run_1", "userId": "ann", "conversationId": "talk", "message": "one", "text": "re: one", "status": "timed_out",
        "error": { "code": "poison", "message": "" }, "sequenceNumber": 4, "createdAt": "2026-01-01T00:00:00.001Z", "startedAt": null,
        "finishedAt": "2026-01-01T00:00:01.000Z",
        "attempts": [{ "number": 1, "worker": "w", "startedAt": "2026-01-01T00:00:00.002Z", "endedAt": null, "outcome": "worker_lost", "counted": true }],
    });
    let run = FinalRun::from_json(&json).unwrap();
    assert_eq!((run.status, run.error.as_deref(), run.finished.unwrap() - run.created), (Status::TimedOut, Some("poison"), 999));
    assert_eq!((run.attempts[0].outcome, run.attempts[0].ended), (Some(AttemptOutcome::WorkerLost), None));
    assert_eq!(FinalRun::from_json(&serde_json::json!({ "id": 1 })).unwrap_err(), "attempts");
}
