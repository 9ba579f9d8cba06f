//! Replies, and the one end of a run.

use std::time::Duration;

use quayside_shared::ids::WorkerId;
use quayside_shared::run::{AttemptOutcome, ErrorCode, RunError, RunEventKind, Status, Usage};
use quayside_shared::state::Finished;
use quayside_shared::store::{Claim, Signal, Watch};

use super::{Fixture, LEASE, alone, append, claim, ended, finish, get, new_run, submit};

pub(crate) async fn a_reply_is_assembled_from_its_deltas<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &id).await;
    let pieces = ["a", "\0", "ä\r\n", "data: x\n\n", "\u{1b}[31m", &"z".repeat(100_000)];
    for piece in pieces {
        append(&*store, &lease, piece).await.unwrap();
    }
    assert_eq!(get(&*store, &id).await.text, pieces.concat());
    finish(&*store, &lease).await;
    assert_eq!(get(&*store, &id).await.text, pieces.concat());
}

pub(crate) async fn a_delta_is_added_once_however_often_it_is_sent<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &id).await;
    for (offset, text) in [(0, "one "), (0, "one "), (4, "two"), (0, "one "), (4, "two"), (7, "!")] {
        store.append(&lease, offset, text).await.unwrap().unwrap();
    }
    assert!(store.append(&lease, 20, "a gap").await.unwrap().is_err());
    assert_eq!(get(&*store, &id).await.text, "one two!");
    let deltas = store.events(&id, 0).await.unwrap().unwrap().events;
    assert_eq!(deltas.len(), 2 + 3, "{deltas:?}");
    // Longer than one document may be: it comes in pieces, and again only those that are missing.
    let long = "x".repeat(3 << 20);
    for _ in 0..2 {
        store.append(&lease, 8, &long).await.unwrap().unwrap();
    }
    assert_eq!(get(&*store, &id).await.text.len(), 8 + long.len());
    finish(&*store, &lease).await;
    assert_eq!(get(&*store, &id).await.text.len(), 8 + long.len());
}

pub(crate) async fn events_resume_after_any_number<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &id).await;
    for piece in ["a", "b", "c"] {
        append(&*store, &lease, piece).await.unwrap();
    }
    store.cancel(&id).await.unwrap().unwrap();
    append(&*store, &lease, "d").await.unwrap();
    let open = store.events(&id, 0).await.unwrap().unwrap();
    assert!(!open.ended);
    finish(&*store, &lease).await;
    let all = store.events(&id, 0).await.unwrap().unwrap();
    assert!(all.ended);
    assert_eq!(all.last, get(&*store, &id).await.sequence_number);
    assert_eq!(all.events, open.events, "the end is no event of its own: it is the result");
    assert!(all.events.windows(2).all(|pair| pair[0].sequence_number < pair[1].sequence_number));
    let text: String =
        all.events.iter().filter_map(|event| if let RunEventKind::Delta { text } = &event.kind { Some(text.as_str()) } else { None }).collect();
    assert_eq!(text, "abcd");
    for after in 0..=all.last {
        let expected: Vec<_> = all.events.iter().filter(|event| event.sequence_number > after).cloned().collect();
        assert_eq!(store.events(&id, after).await.unwrap().unwrap().events, expected, "after {after}");
    }
    assert!(store.events(&id, u64::MAX).await.unwrap().unwrap().events.is_empty());
}

pub(crate) async fn a_stated_reply_replaces_the_streamed_one<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &id).await;
    append(&*store, &lease, "draft").await.unwrap();
    store.finish(&lease, ended(AttemptOutcome::Finished), Some("final \0".into())).await.unwrap().unwrap();
    assert_eq!(get(&*store, &id).await.text, "final \0");
}

pub(crate) async fn a_run_is_not_cancelled_beside_its_container<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &id).await;
    store.cancel(&id).await.unwrap().unwrap();
    let alive = Finished { lives: true, ..ended(AttemptOutcome::Finished) };
    assert!(store.finish(&lease, alive, None).await.unwrap().is_err());
    assert_eq!(get(&*store, &id).await.status, Status::Cancelling);
    let killed = store.finish(&lease, ended(AttemptOutcome::Finished), None).await.unwrap().unwrap();
    assert_eq!(killed.run.status, Status::Cancelled);
}

pub(crate) async fn a_run_ends_once<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &id).await;
    let finished = Finished {
        outcome: AttemptOutcome::ExitNonzero,
        error: Some(RunError::new(ErrorCode::ExitNonzero, "it said no")),
        exit_code: Some(3),
        truncated: true,
        usage: Usage { wall_millis: Some(5), ..Usage::default() },
        lives: false,
        sandbox: None,
    };
    store.finish(&lease, finished, None).await.unwrap().unwrap();
    let run = get(&*store, &id).await;
    assert_eq!((run.status, run.exit_code, run.truncated, run.usage.wall_millis), (Status::Failed, Some(3), true, Some(5)));
    assert!(run.finished_at.is_some() && run.expire_at.is_some() && run.lease.is_none());
    for outcome in [AttemptOutcome::Finished, AttemptOutcome::TimedOut, AttemptOutcome::Cancelled] {
        assert!(store.finish(&lease, ended(outcome), None).await.unwrap().is_err());
    }
    assert!(append(&*store, &lease, "more").await.is_err());
    assert_eq!(store.cancel(&id).await.unwrap().unwrap().run, run);
    assert_eq!(get(&*store, &id).await, run);
}

pub(crate) async fn cancelling_a_queued_run_is_immediate<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, new_run("u", "c")).await;
    let next = submit(&*store, new_run("u", "c")).await;
    let changed = store.cancel(&id).await.unwrap().unwrap();
    assert_eq!(changed.run.status, Status::Cancelled);
    assert_eq!(changed.wake, std::slice::from_ref(&next));
    assert!(matches!(store.claim(&id, &WorkerId::random(), LEASE).await.unwrap(), Claim::Nothing));
    claim(&*store, &next).await;
}

pub(crate) async fn cancelling_a_running_run_waits_for_its_worker<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &id).await;
    append(&*store, &lease, "partial").await.unwrap();
    assert_eq!(store.cancel(&id).await.unwrap().unwrap().run.status, Status::Cancelling);
    assert_eq!(store.cancel(&id).await.unwrap().unwrap().run.status, Status::Cancelling, "asking twice is no error");
    assert!(store.heartbeat(&lease, LEASE).await.unwrap().unwrap().cancelling);
    assert!(append(&*store, &lease, "!").await.unwrap().cancelling);
    let changed = store.finish(&lease, ended(AttemptOutcome::Cancelled), None).await.unwrap().unwrap();
    assert_eq!(changed.run.status, Status::Cancelled);
    assert_eq!(get(&*store, &id).await.text, "partial!");
}

pub(crate) async fn a_result_that_came_first_stands<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &id).await;
    finish(&*store, &lease).await;
    assert_eq!(store.cancel(&id).await.unwrap().unwrap().run.status, Status::Completed);
    assert!(store.cancel(&quayside_shared::ids::RunId::random()).await.unwrap().is_none());
}

async fn heard(watch: &mut Watch) -> Signal {
    tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.expect("a signal")
}

pub(crate) async fn watchers_hear_of_every_change<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let (mut one, mut two) = (store.watch(&id), store.watch(&id));
    let lease = claim(&*store, &id).await;
    assert!(!heard(&mut one).await.ended);
    heard(&mut two).await;
    append(&*store, &lease, "x").await.unwrap();
    heard(&mut one).await;
    store.cancel(&id).await.unwrap();
    assert!(heard(&mut one).await.cancelling);
    finish(&*store, &lease).await;
    assert!(heard(&mut one).await.ended);
    assert!(heard(&mut two).await.ended, "a slow watcher hears the newest");
    // Also what the sweeper does, and what another run's strategy does.
    let lost = submit(&*store, alone("u")).await;
    claim(&*store, &lost).await;
    let mut watch = store.watch(&lost);
    fixture.advance(LEASE * 2);
    store.sweep().await.unwrap();
    heard(&mut watch).await;
}

pub(crate) async fn a_run_that_waits_too_long_expires<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let with_ttl = || {
        let mut new = new_run("u", "c");
        new.queue_ttl = Some(Duration::from_secs(10));
        new
    };
    let (swept, claimed) = (submit(&*store, with_ttl()).await, submit(&*store, with_ttl()).await);
    let behind = submit(&*store, new_run("u", "c")).await;
    assert_eq!(store.sweep().await.unwrap().expired, 0);
    fixture.advance(Duration::from_secs(11));
    assert!(matches!(store.claim(&swept, &WorkerId::random(), LEASE).await.unwrap(), Claim::Expired(_)));
    let sweep = store.sweep().await.unwrap();
    assert_eq!(sweep.expired, 1);
    assert!(sweep.wake.contains(&behind));
    for id in [swept, claimed] {
        let run = get(&*store, &id).await;
        assert_eq!((run.status, run.attempts.len()), (Status::Expired, 0));
    }
}

pub(crate) async fn finished_runs_are_removed_after_their_time<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &id).await;
    append(&*store, &lease, "x").await.unwrap();
    finish(&*store, &lease).await;
    let unfinished = submit(&*store, alone("u")).await;
    fixture.advance(Duration::from_secs(29 * 24 * 3600));
    store.sweep().await.unwrap();
    get(&*store, &id).await;
    fixture.advance(Duration::from_secs(2 * 24 * 3600));
    assert!(store.sweep().await.unwrap().removed >= 1);
    assert!(store.run(&id).await.unwrap().is_none());
    assert!(store.events(&id, 0).await.unwrap().is_none());
    get(&*store, &unfinished).await;
}
