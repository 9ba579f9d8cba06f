//! What operators look at, and what is remembered of the removed.

use std::time::Duration;

use quayside_shared::clock::Timestamp;
use quayside_shared::ids::{RunId, WorkerId};
use quayside_shared::queue::Undecodable;
use quayside_shared::run::{AttemptOutcome, Status};
use quayside_shared::store::{Claim, DeadLetter, DeadLetterReason, Store, Stray, WORKERS_SHOWN, WorkerReport};

use super::{Fixture, LEASE, alone, claim, finish, get, new_run, submit, user};

const DAY: Duration = Duration::from_secs(24 * 3600);

async fn letters(store: &dyn Store) -> Vec<DeadLetter> {
    let page = store.dead_letters(None, 100).await.unwrap().unwrap();
    assert!(page.next_after.is_none());
    page.data
}

/// A run that took three workers with it.
async fn poisoned<F: Fixture>(fixture: &F, name: &str) -> RunId {
    let store = fixture.store();
    let id = submit(&*store, alone(name)).await;
    for _ in 0..3 {
        claim(&*store, &id).await;
        fixture.advance(LEASE * 2);
        store.sweep().await.unwrap();
        fixture.advance(Duration::from_secs(120));
    }
    assert_eq!(get(&*store, &id).await.status, Status::Failed);
    id
}

pub(crate) async fn a_run_that_was_given_up_is_a_dead_letter<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let fine = submit(&*store, alone("u")).await;
    finish(&*store, &claim(&*store, &fine).await).await;
    let id = poisoned(&fixture, "u").await;
    let found = letters(&*store).await;
    assert_eq!(found.len(), 1, "{found:?}");
    let letter = &found[0];
    assert_eq!((letter.id.as_str(), letter.run_id.as_ref(), letter.reason), (id.as_str(), Some(&id), DeadLetterReason::Poison));
    assert_eq!((letter.user_id.as_ref(), letter.agent.as_ref().unwrap().as_str(), letter.attempts), (Some(&user("u")), "python", 3));
    assert_eq!(letter.detail, get(&*store, &id).await.error.unwrap().message);
    assert_eq!(store.dead_letter(&letter.id).await.unwrap().as_ref(), Some(letter));

    let (first, second) = (RunId::random(), RunId::random());
    let redriven = store.redriven(&letter.id, &first).await.unwrap().unwrap();
    assert_eq!(redriven.redriven_as.as_ref(), Some(&first));
    assert!(redriven.redriven_at.is_some());
    assert_eq!(store.redriven(&letter.id, &second).await.unwrap().as_ref(), Some(&redriven), "the first one stays");
    assert!(letters(&*store).await.is_empty(), "it is done with");
    assert_eq!(store.dead_letter(&letter.id).await.unwrap(), Some(redriven), "and can still be looked at");
    assert!(store.redriven(&(&second).into(), &first).await.unwrap().is_none());
    // A later change of the run does not bring it back.
    store.cancel(&id).await.unwrap().unwrap();
    store.delete_conversation(&user("u"), &get(&*store, &id).await.conversation_id).await.unwrap().unwrap();
    assert!(letters(&*store).await.is_empty());
}

pub(crate) async fn a_stray_message_is_put_aside_once<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let unknown = RunId::random();
    let torn = |id: &str| Stray::Undecodable(Undecodable { message_id: id.into(), reason: "not a run id".into(), data: b"\xff{}\0".to_vec() });
    for stray in [Stray::UnknownRun(unknown.clone()), torn("1"), torn("2"), torn("2"), Stray::UnknownRun(unknown.clone())] {
        store.quarantine(stray).await.unwrap();
        fixture.advance(Duration::from_secs(1));
    }
    let found = letters(&*store).await;
    let reasons: Vec<_> = found.iter().map(|letter| letter.reason).collect();
    assert_eq!(reasons, [DeadLetterReason::Undecodable, DeadLetterReason::Undecodable, DeadLetterReason::UnknownRun], "the newest first");
    assert_eq!(found[0].data.as_deref(), Some(r"\xff{}\x00"));
    assert_eq!((found[0].detail.as_str(), found[0].run_id.as_ref()), ("not a run id", None));
    assert_eq!(found[2].run_id.as_ref(), Some(&unknown));
    // In pages, and no cursor but its own.
    let first = store.dead_letters(None, 2).await.unwrap().unwrap();
    let rest = store.dead_letters(first.next_after.as_deref(), 2).await.unwrap().unwrap();
    assert_eq!([first.data, rest.data].concat(), found);
    assert!(rest.next_after.is_none());
    for foreign in ["", "x", "1_", "é"] {
        assert!(store.dead_letters(Some(foreign), 2).await.unwrap().is_err(), "{foreign}");
    }
    fixture.advance(DAY * 31);
    store.sweep().await.unwrap();
    assert!(letters(&*store).await.is_empty(), "their time is over");
}

pub(crate) async fn a_late_message_of_a_removed_run_is_no_stray<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let take = async |id: &RunId| store.claim(id, &WorkerId::random(), LEASE).await.unwrap();
    assert!(matches!(take(&RunId::random()).await, Claim::Unknown), "never accepted here");
    let old = submit(&*store, alone("u")).await;
    finish(&*store, &claim(&*store, &old).await).await;
    fixture.advance(DAY * 31);
    store.sweep().await.unwrap();
    assert!(store.run(&old).await.unwrap().is_none());
    let deleted = submit(&*store, new_run("u", "c")).await;
    store.delete_conversation(&user("u"), &"c".parse().unwrap()).await.unwrap().unwrap();
    assert!(matches!(take(&deleted).await, Claim::Nothing));
    store.sweep().await.unwrap();
    for id in [&old, &deleted] {
        assert!(matches!(take(id).await, Claim::Nothing), "{id} was here");
    }
}

pub(crate) async fn a_conversation_goes_with_the_last_of_its_runs<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let me = user("u");
    for conversation in ["old", "used"] {
        let id = submit(&*store, new_run("u", conversation)).await;
        finish(&*store, &claim(&*store, &id).await).await;
    }
    fixture.advance(DAY * 20);
    let id = submit(&*store, new_run("u", "used")).await;
    finish(&*store, &claim(&*store, &id).await).await;
    fixture.advance(DAY * 11);
    store.sweep().await.unwrap();
    assert!(store.conversation(&me, &"old".parse().unwrap()).await.unwrap().is_none());
    assert_eq!(store.conversation(&me, &"used".parse().unwrap()).await.unwrap().unwrap().run_count, 1);
    let named: Vec<_> = store.conversations(&me, None, 10).await.unwrap().unwrap().data.into_iter().map(|found| found.id.to_string()).collect();
    assert_eq!(named, ["used"]);
    // The name is free again.
    submit(&*store, new_run("u", "old")).await;
}

pub(crate) async fn workers_are_listed_while_they_are_heard_of<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let report = |started: i64| WorkerReport {
        id: WorkerId::random(),
        host: "here".into(),
        version: "1".into(),
        slots: 4,
        busy: 1,
        draining: false,
        started_at: Timestamp::from_millis(started),
        seen_at: Timestamp::from_millis(0),
    };
    let (young, old) = (report(2000), report(1000));
    store.report_worker(young.clone()).await.unwrap();
    store.report_worker(old.clone()).await.unwrap();
    let found = store.workers().await.unwrap();
    assert_eq!(found.iter().map(|worker| &worker.id).collect::<Vec<_>>(), [&old.id, &young.id], "the oldest first");
    let first_seen = found[1].seen_at;
    assert!(first_seen > young.seen_at, "by the store's clock");
    fixture.advance(WORKERS_SHOWN - Duration::from_secs(10));
    store.report_worker(WorkerReport { busy: 3, draining: true, ..young.clone() }).await.unwrap();
    fixture.advance(Duration::from_secs(20));
    let found = store.workers().await.unwrap();
    assert_eq!(found.len(), 1, "the other has been silent for long: {found:?}");
    assert_eq!((&found[0].id, found[0].busy, found[0].draining), (&young.id, 3, true));
    assert!(found[0].seen_at > first_seen);
    store.forget_worker(&young.id).await.unwrap();
    store.forget_worker(&young.id).await.unwrap();
    assert!(store.workers().await.unwrap().is_empty());
}

pub(crate) async fn engine_faults_in_a_row_are_given_up<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    for _ in 0..20 {
        let lease = claim(&*store, &id).await;
        store.release(&lease, AttemptOutcome::EngineFault).await.unwrap().unwrap();
        fixture.advance(Duration::from_secs(120));
        store.sweep().await.unwrap();
    }
    let run = get(&*store, &id).await;
    assert_eq!(run.status, Status::Failed);
    assert!(run.attempts.iter().all(|attempt| !attempt.counted), "none of them used up an attempt");
    assert_eq!(letters(&*store).await[0].reason, DeadLetterReason::AttemptsExhausted);
}
