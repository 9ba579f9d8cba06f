//! Leases: one holder, fenced by its epoch, taken back when it is lost; and who may start when.

use std::sync::Arc;
use std::time::Duration;

use quayside_shared::ids::WorkerId;
use quayside_shared::run::{AttemptOutcome, ErrorCode, Status, Waiting, WaitingReason};
use quayside_shared::store::{Claim, LeaseLost};

use super::{Fixture, LEASE, alone, append, claim, ended, finish, get, new_run, submit};

pub(crate) async fn only_one_of_many_claims_wins<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    for _ in 0..20 {
        let id = submit(&*store, alone("u")).await;
        let claims: Vec<_> = (0..8)
            .map(|_| {
                let (store, id) = (Arc::clone(&store), id.clone());
                tokio::spawn(async move { store.claim(&id, &WorkerId::random(), LEASE).await.unwrap() })
            })
            .collect();
        let mut won = Vec::new();
        for claim in claims {
            match claim.await.unwrap() {
                Claim::Claimed(lease, run) => won.push((lease, run)),
                Claim::Nothing => {}
                other => panic!("{other:?}"),
            }
        }
        let [(lease, run)] = &won[..] else { panic!("{} winners", won.len()) };
        assert_eq!((run.status, run.attempts.len(), lease.epoch), (Status::InProgress, 1, 1));
        finish(&*store, lease).await;
    }
}

pub(crate) async fn a_conversation_keeps_its_order<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(store.submit(new_run("u", "c")).await.unwrap());
    }
    assert!(ids[1].wake.is_empty() && ids[2].wake.is_empty());
    let ids: Vec<_> = ids.into_iter().map(|submitted| submitted.run.id).collect();
    for later in &ids[1..] {
        let waiting = store.claim(later, &WorkerId::random(), LEASE).await.unwrap();
        assert!(matches!(waiting, Claim::Waiting(WaitingReason::ConversationBusy)), "{waiting:?}");
    }
    let lease = claim(&*store, &ids[0]).await;
    assert!(matches!(store.claim(&ids[2], &WorkerId::random(), LEASE).await.unwrap(), Claim::Waiting(_)));
    // The second is withdrawn: the third must still wait for the first.
    store.cancel(&ids[1]).await.unwrap().unwrap();
    assert!(matches!(store.claim(&ids[2], &WorkerId::random(), LEASE).await.unwrap(), Claim::Waiting(_)));
    assert_eq!(finish(&*store, &lease).await.wake, std::slice::from_ref(&ids[2]));
    claim(&*store, &ids[2]).await;
}

pub(crate) async fn a_user_at_the_quota_waits_and_is_woken<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let (a, b, c) = (submit(&*store, alone("u")).await, submit(&*store, alone("u")).await, submit(&*store, alone("u")).await);
    let first = claim(&*store, &a).await;
    claim(&*store, &b).await;
    let waiting = store.claim(&c, &WorkerId::random(), LEASE).await.unwrap();
    assert!(matches!(waiting, Claim::Waiting(WaitingReason::UserQuota)), "{waiting:?}");
    assert_eq!(get(&*store, &c).await.waiting_reason, Some(WaitingReason::UserQuota));
    let other = submit(&*store, alone("other")).await;
    claim(&*store, &other).await;
    assert_eq!(finish(&*store, &first).await.wake, std::slice::from_ref(&c));
    claim(&*store, &c).await;
}

pub(crate) async fn a_heartbeat_keeps_the_lease<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &id).await;
    for _ in 0..5 {
        fixture.advance(LEASE * 2 / 3);
        assert!(!store.heartbeat(&lease, LEASE).await.unwrap().unwrap().cancelling);
        assert_eq!(store.sweep().await.unwrap().lost, 0);
    }
    fixture.advance(LEASE + Duration::from_millis(1));
    assert_eq!(store.sweep().await.unwrap().lost, 1);
}

pub(crate) async fn a_lost_lease_is_fenced_everywhere<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let old = claim(&*store, &id).await;
    append(&*store, &old, "old").await.unwrap();
    fixture.advance(LEASE * 2);
    store.sweep().await.unwrap();
    fixture.advance(Duration::from_secs(120));
    let new = claim(&*store, &id).await;
    assert!(new.epoch > old.epoch);
    append(&*store, &new, "new").await.unwrap();
    let before = get(&*store, &id).await;
    assert_eq!(store.heartbeat(&old, LEASE).await.unwrap().unwrap_err(), LeaseLost);
    assert_eq!(append(&*store, &old, "late").await.unwrap_err(), LeaseLost);
    assert!(store.finish(&old, ended(AttemptOutcome::Finished), Some("late".into())).await.unwrap().is_err());
    assert!(store.release(&old, AttemptOutcome::Drained).await.unwrap().is_err());
    assert_eq!(get(&*store, &id).await, before, "a fenced worker changes nothing");
    assert_eq!(before.text, "new", "the reply of the lost attempt is gone");
    finish(&*store, &new).await;
    assert!(store.finish(&old, ended(AttemptOutcome::Finished), None).await.unwrap().is_err());
}

pub(crate) async fn three_lost_workers_are_poison<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let next = submit(&*store, alone("u")).await;
    for attempt in 1..=3 {
        claim(&*store, &id).await;
        fixture.advance(LEASE * 2);
        let sweep = store.sweep().await.unwrap();
        assert_eq!(sweep.lost, 1);
        fixture.advance(Duration::from_secs(120));
        let run = get(&*store, &id).await;
        assert_eq!(run.attempts.len(), attempt);
        assert!(run.attempts.iter().all(|attempt| attempt.outcome == Some(AttemptOutcome::WorkerLost) && attempt.counted));
    }
    let run = get(&*store, &id).await;
    assert_eq!((run.status, run.error.unwrap().code), (Status::Failed, ErrorCode::Poison));
    assert!(matches!(store.claim(&id, &WorkerId::random(), LEASE).await.unwrap(), Claim::Nothing));
    claim(&*store, &next).await;
}

pub(crate) async fn a_drained_run_goes_on_at_once_and_starts_over<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    for _ in 0..5 {
        let lease = claim(&*store, &id).await;
        append(&*store, &lease, "x").await.unwrap();
        let changed = store.release(&lease, AttemptOutcome::Drained).await.unwrap().unwrap();
        assert_eq!(changed.run.status, Status::Queued);
        assert_eq!(changed.wake, std::slice::from_ref(&id));
    }
    let lease = claim(&*store, &id).await;
    append(&*store, &lease, "y").await.unwrap();
    finish(&*store, &lease).await;
    let run = get(&*store, &id).await;
    assert_eq!((run.text.as_str(), run.attempts.len()), ("y", 6));
    assert_eq!(run.attempts.iter().filter(|attempt| attempt.counted).count(), 1);
    let events = store.events(&id, 0).await.unwrap().unwrap().events;
    assert!(events.windows(2).all(|pair| pair[0].sequence_number < pair[1].sequence_number));
}

pub(crate) async fn a_delayed_retry_is_woken_when_it_is_due<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &id).await;
    let changed = store.release(&lease, AttemptOutcome::EngineFault).await.unwrap().unwrap();
    assert!(changed.wake.is_empty());
    let waiting = store.waiting(&changed.run).await.unwrap().unwrap();
    assert_eq!(waiting.reason, WaitingReason::Retrying);
    assert!(matches!(store.claim(&id, &WorkerId::random(), LEASE).await.unwrap(), Claim::Waiting(WaitingReason::Retrying)));
    let sweep = store.sweep().await.unwrap();
    assert!(sweep.wake.is_empty());
    let due = sweep.next_at.expect("the sweeper knows when it is due");
    fixture.advance(due.since(changed.run.attempts[0].ended_at.unwrap()));
    assert_eq!(store.sweep().await.unwrap().wake, std::slice::from_ref(&id));
    assert!(!get(&*store, &id).await.attempts[0].counted);
    claim(&*store, &id).await;
}

pub(crate) async fn a_lost_publish_is_repaired<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, new_run("u", "c")).await;
    let behind = submit(&*store, new_run("u", "c")).await;
    assert!(store.sweep().await.unwrap().wake.is_empty(), "it was published a moment ago");
    fixture.advance(Duration::from_secs(60));
    let wake = store.sweep().await.unwrap().wake;
    assert_eq!(wake, std::slice::from_ref(&id), "and not {behind}, which may not start");
    assert!(store.sweep().await.unwrap().wake.is_empty(), "not again at once");
}

pub(crate) async fn leases_of_a_dead_process_are_taken_back<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let running = submit(&*store, alone("u")).await;
    let cancelling = submit(&*store, alone("u")).await;
    claim(&*store, &running).await;
    claim(&*store, &cancelling).await;
    store.cancel(&cancelling).await.unwrap().unwrap();
    drop(store);
    let fixture = fixture.restart().await;
    let store = fixture.store();
    fixture.advance(LEASE * 2);
    assert_eq!(store.sweep().await.unwrap().lost, 2);
    assert_eq!(get(&*store, &running).await.status, Status::Queued);
    assert_eq!(get(&*store, &cancelling).await.status, Status::Cancelled);
}

pub(crate) async fn waiting_tells_reason_and_position<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let waiting = |id| {
        let store = Arc::clone(&store);
        async move { store.waiting(&get(&*store, &id).await).await.unwrap() }
    };
    let (a, b, c) = (submit(&*store, new_run("u", "c")).await, submit(&*store, new_run("u", "c")).await, submit(&*store, new_run("u", "c")).await);
    let other = submit(&*store, alone("other")).await;
    assert_eq!(waiting(a.clone()).await, Some(Waiting { reason: WaitingReason::NoCapacity, position: 1 }));
    claim(&*store, &a).await;
    assert_eq!(waiting(b).await, Some(Waiting { reason: WaitingReason::ConversationBusy, position: 1 }));
    assert_eq!(waiting(c).await, Some(Waiting { reason: WaitingReason::ConversationBusy, position: 2 }));
    assert_eq!(waiting(other).await.unwrap().reason, WaitingReason::NoCapacity);
    let d = submit(&*store, alone("u")).await;
    claim(&*store, &d).await;
    let e = submit(&*store, alone("u")).await;
    assert_eq!(waiting(e).await.unwrap().reason, WaitingReason::UserQuota);
    assert_eq!(waiting(d).await, None);
}
