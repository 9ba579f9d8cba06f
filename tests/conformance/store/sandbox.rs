//! Runs that may not start where they were looked at, and what held an attempt in.

use std::time::Duration;

use quayside_shared::agent::Network;
use quayside_shared::clock::Timestamp;
use quayside_shared::ids::{RunId, WorkerId};
use quayside_shared::run::{AttemptOutcome, Status, Waiting, WaitingReason};
use quayside_shared::sandbox::{SandboxLimits, SandboxRecord};
use quayside_shared::state::Finished;
use quayside_shared::store::Claim;

use super::{Fixture, LEASE, alone, claim, ended, finish, get, new_run, submit};

const REASON: WaitingReason = WaitingReason::SandboxNotEnforced;
const DELAY: Duration = Duration::from_secs(5);

pub(crate) async fn a_run_that_is_put_off_waits_and_is_announced_again<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, new_run("u", "c")).await;
    let behind = submit(&*store, new_run("u", "c")).await;
    let other = submit(&*store, alone("u")).await;
    for round in 0..3 {
        store.defer(&id, REASON, DELAY).await.unwrap();
        let run = get(&*store, &id).await;
        assert_eq!((run.status, run.waiting_reason, run.attempts.len(), run.error.as_ref()), (Status::Queued, Some(REASON), 0, None));
        assert_eq!(store.waiting(&run).await.unwrap(), Some(Waiting { reason: REASON, position: 1 }));
        assert_eq!(run.sequence_number, 2, "the same reason is told once, not in round {round} again");
        // Neither by message nor by sweep before it is due.
        assert!(matches!(store.claim(&id, &WorkerId::random(), LEASE).await.unwrap(), Claim::Waiting(_)));
        fixture.advance(DELAY - Duration::from_millis(1));
        assert!(!store.sweep().await.unwrap().wake.contains(&id), "round {round}");
        fixture.advance(Duration::from_millis(2));
        assert!(store.sweep().await.unwrap().wake.contains(&id), "round {round}");
        assert_eq!(store.waiting(&get(&*store, &id).await).await.unwrap().unwrap().reason, REASON, "until somebody has looked at it");
    }
    assert!(matches!(store.claim(&behind, &WorkerId::random(), LEASE).await.unwrap(), Claim::Waiting(WaitingReason::ConversationBusy)));
    claim(&*store, &other).await;
    // Another worker takes it.
    let lease = claim(&*store, &id).await;
    let run = get(&*store, &id).await;
    assert_eq!((run.waiting_reason, run.attempts.len()), (None, 1));
    assert_eq!(finish(&*store, &lease).await.wake, std::slice::from_ref(&behind));
}

pub(crate) async fn only_what_is_queued_is_put_off<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let (running, over, deferred) = (submit(&*store, alone("u")).await, submit(&*store, alone("u")).await, submit(&*store, alone("v")).await);
    let lease = claim(&*store, &running).await;
    store.cancel(&over).await.unwrap().unwrap();
    for id in [&running, &over] {
        let before = get(&*store, id).await;
        store.defer(id, REASON, DELAY).await.unwrap();
        assert_eq!(get(&*store, id).await, before);
    }
    store.defer(&RunId::random(), REASON, DELAY).await.unwrap();
    finish(&*store, &lease).await;
    // It can be cancelled while it waits.
    store.defer(&deferred, REASON, DELAY).await.unwrap();
    assert_eq!(store.cancel(&deferred).await.unwrap().unwrap().run.status, Status::Cancelled);
    assert_eq!(get(&*store, &deferred).await.waiting_reason, None);
}

pub(crate) async fn what_held_an_attempt_in_is_kept<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lost = claim(&*store, &id).await;
    store.release(&lost, AttemptOutcome::Drained).await.unwrap().unwrap();
    let lease = claim(&*store, &id).await;
    let record = SandboxRecord {
        runner: "docker".to_owned(),
        runtime: Some("runc 1.1.5+ds1-1+deb12u1".to_owned()),
        kernel: None,
        limits: SandboxLimits { memory: 1 << 30, cpus: 0.5, pids: 128, network: Network::None },
        proven: true,
        proven_at: Some(Timestamp::from_millis(1_700_000_000_123)),
    };
    let finished = Finished { sandbox: Some(record.clone()), ..ended(AttemptOutcome::Finished) };
    store.finish(&lease, finished, None).await.unwrap().unwrap();
    let attempts = get(&*store, &id).await.attempts;
    assert_eq!(attempts.iter().map(|attempt| attempt.sandbox.clone()).collect::<Vec<_>>(), [None, Some(record)]);
}
