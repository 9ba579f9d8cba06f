//! Accepting: all of it or nothing, once, durably.

use std::sync::Arc;
use std::time::Duration;

use quayside_shared::run::{RunEventKind, Status};
use quayside_shared::store::{MultitaskStrategy, SubmitError};

use super::{Fixture, alone, append, claim, finish, get, new_run, submit, user, with_key};

pub(crate) async fn an_accepted_run_reads_back_as_it_was_sent<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let mut new = alone("u");
    new.message = format!("nul \0, quotes ' \" \\, newline \n, {}", "ä€𝄞".repeat(1000));
    new.metadata.insert("k".into(), "v".into());
    let sent = new.clone();
    let submitted = store.submit(new).await.unwrap();
    assert!(!submitted.replayed);
    assert_eq!(submitted.wake, std::slice::from_ref(&sent.id));
    let run = get(&*store, &sent.id).await;
    assert_eq!(run, submitted.run);
    assert_eq!((run.status, run.sequence_number, run.text.as_str()), (Status::Queued, 1, ""));
    assert_eq!((run.message, run.metadata), (sent.message, sent.metadata));
    let events = store.events(&sent.id, 0).await.unwrap().unwrap();
    assert!(matches!(events.events[..], [ref event] if matches!(event.kind, RunEventKind::Status { status: Status::Queued, .. })));
}

pub(crate) async fn a_key_stands_for_its_run<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let first = submit(&*store, with_key(alone("u"), "k", 1)).await;
    let again = store.submit(with_key(alone("u"), "k", 1)).await.unwrap();
    assert!(again.replayed && again.wake.is_empty());
    assert_eq!(again.run.id, first);
    assert!(matches!(store.submit(with_key(alone("u"), "k", 2)).await, Err(SubmitError::KeyReused)));
    assert_ne!(submit(&*store, with_key(alone("other"), "k", 1)).await, first, "keys are the user's own");
    // The answer stays the same when the run has moved on.
    finish(&*store, &claim(&*store, &first).await).await;
    assert_eq!(store.submit(with_key(alone("u"), "k", 1)).await.unwrap().run.status, Status::Completed);
}

pub(crate) async fn a_hundred_repeats_at_once_are_one_run<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let repeats: Vec<_> = (0..100)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.submit(with_key(alone("u"), "k", 1)).await.unwrap() })
        })
        .collect();
    let mut made = 0;
    let mut ids = std::collections::BTreeSet::new();
    for repeat in repeats {
        let submitted = repeat.await.unwrap();
        made += usize::from(!submitted.replayed);
        ids.insert(submitted.run.id);
    }
    assert_eq!((made, ids.len()), (1, 1));
    assert_eq!(store.depth().await.unwrap().queued, 1);
}

pub(crate) async fn a_key_is_free_again_after_a_day<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let first = submit(&*store, with_key(alone("u"), "k", 1)).await;
    fixture.advance(Duration::from_secs(24 * 3600 - 1));
    assert_eq!(submit(&*store, with_key(alone("u"), "k", 1)).await, first);
    fixture.advance(Duration::from_secs(2));
    assert_ne!(submit(&*store, with_key(alone("u"), "k", 2)).await, first);
}

pub(crate) async fn the_queue_of_a_user_is_bounded<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let mut first = None;
    for _ in 0..10 {
        first.get_or_insert(submit(&*store, alone("u")).await);
    }
    let refused = alone("u");
    let (id, conversation) = (refused.id.clone(), refused.conversation_id.clone());
    assert!(matches!(store.submit(refused).await, Err(SubmitError::QueueFull { limit: 10 })));
    assert!(store.run(&id).await.unwrap().is_none(), "nothing half-accepted");
    assert!(store.conversation(&user("u"), &conversation).await.unwrap().is_none(), "nothing half-accepted");
    submit(&*store, alone("other")).await;
    claim(&*store, &first.unwrap()).await;
    submit(&*store, alone("u")).await;
}

pub(crate) async fn the_queue_of_all_is_bounded<F: Fixture>() {
    let fixture = F::open_bounded(6).await;
    let store = fixture.store();
    let mut accepted = Vec::new();
    for number in 0..6 {
        accepted.push(submit(&*store, with_key(alone(&format!("user-{}", number % 3)), &number.to_string(), 1)).await);
    }
    for name in ["user-0", "somebody-new"] {
        let refused = alone(name);
        let (id, conversation) = (refused.id.clone(), refused.conversation_id.clone());
        assert!(matches!(store.submit(refused).await, Err(SubmitError::Overloaded { limit: 6 })));
        assert!(store.run(&id).await.unwrap().is_none(), "nothing half-accepted");
        assert!(store.conversation(&user(name), &conversation).await.unwrap().is_none(), "nothing half-accepted");
    }
    // Who was accepted hears so again, however full it is.
    let again = store.submit(with_key(alone("user-0"), "0", 1)).await.unwrap();
    assert!(again.replayed && again.run.id == accepted[0]);
    assert_eq!(store.depth().await.unwrap().queued, 6);
    claim(&*store, &accepted[0]).await;
    submit(&*store, alone("somebody-new")).await;
    assert!(matches!(store.submit(alone("user-1")).await, Err(SubmitError::Overloaded { .. })), "full again");
    store.cancel(&accepted[1]).await.unwrap();
    submit(&*store, alone("user-1")).await;
}

pub(crate) async fn reject_refuses_a_busy_conversation<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let reject = || {
        let mut new = new_run("u", "c");
        new.multitask = MultitaskStrategy::Reject;
        new
    };
    let first = submit(&*store, reject()).await;
    assert!(matches!(store.submit(reject()).await, Err(SubmitError::ConversationBusy)));
    finish(&*store, &claim(&*store, &first).await).await;
    submit(&*store, reject()).await;
}

pub(crate) async fn interrupt_cancels_and_keeps<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let running = submit(&*store, new_run("u", "c")).await;
    let lease = claim(&*store, &running).await;
    let waiting = submit(&*store, new_run("u", "c")).await;
    let mut new = new_run("u", "c");
    new.multitask = MultitaskStrategy::Interrupt;
    let submitted = store.submit(new).await.unwrap();
    assert_eq!(get(&*store, &running).await.status, Status::Cancelling);
    assert_eq!(get(&*store, &waiting).await.status, Status::Cancelled);
    assert!(submitted.wake.is_empty(), "its predecessor's container still lives");
    assert_eq!(finish(&*store, &lease).await.wake, std::slice::from_ref(&submitted.run.id));
    assert_eq!(get(&*store, &running).await.status, Status::Cancelled);
    let runs = store.conversation_runs(&user("u"), &"c".parse().unwrap(), None, 10).await.unwrap().unwrap().unwrap();
    assert_eq!(runs.data.len(), 3, "interrupted runs are kept");
}

pub(crate) async fn rollback_cancels_and_forgets<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let kept = submit(&*store, new_run("u", "c")).await;
    finish(&*store, &claim(&*store, &kept).await).await;
    let running = submit(&*store, new_run("u", "c")).await;
    let lease = claim(&*store, &running).await;
    append(&*store, &lease, "half a reply").await.unwrap();
    let mut new = new_run("u", "c");
    new.multitask = MultitaskStrategy::Rollback;
    let newest = store.submit(new).await.unwrap().run;
    finish(&*store, &lease).await;
    assert_eq!(get(&*store, &running).await.status, Status::Cancelled, "it can still be looked at by its id");
    let runs = store.conversation_runs(&user("u"), &"c".parse().unwrap(), None, 10).await.unwrap().unwrap().unwrap();
    let ids: Vec<_> = runs.data.iter().map(|run| run.id.clone()).collect();
    assert_eq!(ids, [kept, newest.id.clone()]);
    assert_eq!(store.history(&newest, 1 << 20).await.unwrap().len(), 1, "a rolled-back run was never said");
    assert_eq!(store.conversation(&user("u"), &"c".parse().unwrap()).await.unwrap().unwrap().run_count, 2);
}

pub(crate) async fn what_was_accepted_survives_a_restart<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let (queued, running, finished) = (submit(&*store, alone("u")).await, submit(&*store, alone("u")).await, submit(&*store, alone("u")).await);
    finish(&*store, &claim(&*store, &finished).await).await;
    let lease = claim(&*store, &running).await;
    append(&*store, &lease, "so far").await.unwrap();
    let before = [get(&*store, &queued).await, get(&*store, &finished).await];
    drop(store);
    let fixture = fixture.restart().await;
    let store = fixture.store();
    assert_eq!([get(&*store, &queued).await, get(&*store, &finished).await], before);
    assert_eq!(get(&*store, &running).await.text, "so far");
}
