//! Lists, history, and what one user sees of another: nothing.

use std::time::Duration;

use quayside_shared::run::Status;
use quayside_shared::store::{BadCursor, Turn};

use super::{Fixture, alone, append, claim, finish, get, new_run, submit, user};

pub(crate) async fn history_is_what_was_said_before<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    for (message, reply) in [("one", "eins"), ("two", "")] {
        let mut new = new_run("u", "c");
        new.message = message.into();
        let id = submit(&*store, new).await;
        let lease = claim(&*store, &id).await;
        if !reply.is_empty() {
            append(&*store, &lease, reply).await.unwrap();
        }
        finish(&*store, &lease).await;
    }
    let withdrawn = submit(&*store, new_run("u", "c")).await;
    store.cancel(&withdrawn).await.unwrap().unwrap();
    submit(&*store, new_run("u", "elsewhere")).await;
    let id = submit(&*store, new_run("u", "c")).await;
    let history = store.history(&get(&*store, &id).await, 1 << 20).await.unwrap();
    let turn = |message: &str, text: &str| Turn { message: message.into(), text: text.into() };
    assert_eq!(history, [turn("one", "eins"), turn("two", "")]);
}

pub(crate) async fn history_is_bounded_from_the_new_end<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    for number in 0..5 {
        let mut new = new_run("u", "c");
        new.message = format!("{number}").repeat(100);
        let id = submit(&*store, new).await;
        finish(&*store, &claim(&*store, &id).await).await;
    }
    let id = submit(&*store, new_run("u", "c")).await;
    let history = store.history(&get(&*store, &id).await, 250).await.unwrap();
    let first: Vec<_> = history.iter().map(|turn| &turn.message[..1]).collect();
    assert_eq!(first, ["3", "4"]);
}

pub(crate) async fn conversations_are_listed_by_use_in_pages<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    for name in ["a", "b", "c", "d", "e"] {
        let mut new = new_run("u", name);
        new.message = format!("  about\n{name} {}", "x".repeat(200));
        submit(&*store, new).await;
        fixture.advance(Duration::from_secs(1));
    }
    submit(&*store, new_run("u", "b")).await;
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = store.conversations(&user("u"), after.as_deref(), 2).await.unwrap().unwrap();
        assert!(page.data.len() <= 2);
        seen.extend(page.data);
        after = page.next_after;
        if after.is_none() {
            break;
        }
    }
    let ids: Vec<_> = seen.iter().map(|conversation| conversation.id.as_str()).collect();
    assert_eq!(ids, ["b", "e", "d", "c", "a"]);
    assert!(seen[0].title.starts_with("about b") && seen[0].title.chars().count() == 80);
    assert_eq!((seen[0].run_count, seen[0].active_runs), (2, 2));
}

pub(crate) async fn runs_of_a_conversation_are_listed_in_order_in_pages<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(submit(&*store, new_run("u", "c")).await);
    }
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = store.conversation_runs(&user("u"), &"c".parse().unwrap(), after.as_deref(), 2).await.unwrap().unwrap().unwrap();
        seen.extend(page.data.into_iter().map(|run| run.id));
        after = page.next_after;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen, ids);
}

pub(crate) async fn nothing_is_seen_of_another_user<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let mine = submit(&*store, new_run("me", "c")).await;
    let yours = submit(&*store, new_run("you", "c")).await;
    assert_eq!(store.conversations(&user("me"), None, 10).await.unwrap().unwrap().data.len(), 1);
    let runs = store.conversation_runs(&user("me"), &"c".parse().unwrap(), None, 10).await.unwrap().unwrap().unwrap();
    let seen: Vec<_> = runs.data.iter().map(|run| &run.id).collect();
    assert_eq!(seen, [&mine], "the same name is another conversation");
    assert!(store.conversation(&user("third"), &"c".parse().unwrap()).await.unwrap().is_none());
    assert!(store.delete_conversation(&user("third"), &"c".parse().unwrap()).await.unwrap().is_none());
    claim(&*store, &mine).await;
    // One user's busy conversation does not hold up another's of the same name.
    claim(&*store, &yours).await;
}

pub(crate) async fn a_deleted_conversation_is_gone_at_once<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let (me, c) = (user("u"), "c".parse().unwrap());
    let finished = submit(&*store, new_run("u", "c")).await;
    finish(&*store, &claim(&*store, &finished).await).await;
    let running = submit(&*store, new_run("u", "c")).await;
    let lease = claim(&*store, &running).await;
    let queued = submit(&*store, new_run("u", "c")).await;
    let mut watch = store.watch(&running);
    store.delete_conversation(&me, &c).await.unwrap().unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap().cancelling, "its worker hears of it");
    for id in [&finished, &running, &queued] {
        assert!(store.run(id).await.unwrap().is_none());
        assert!(store.events(id, 0).await.unwrap().is_none());
    }
    assert!(store.conversation(&me, &c).await.unwrap().is_none());
    assert!(store.conversation_runs(&me, &c, None, 10).await.unwrap().is_none());
    assert!(store.delete_conversation(&me, &c).await.unwrap().is_none());
    // The name is free again, and does not bring anything back.
    let fresh = submit(&*store, new_run("u", "c")).await;
    assert!(store.history(&get(&*store, &fresh).await, 1 << 20).await.unwrap().is_empty());
    store.sweep().await.unwrap();
    assert!(store.heartbeat(&lease, super::LEASE).await.unwrap().unwrap().cancelling, "still fenced and known until its container is gone");
    let changed = finish(&*store, &lease).await;
    assert_eq!(changed.run.status, Status::Cancelled);
    assert!(store.sweep().await.unwrap().removed >= 1, "what could not go before goes now");
    assert_eq!(store.sweep().await.unwrap().removed, 0, "and nothing is left");
    assert_eq!(get(&*store, &fresh).await.status, Status::Queued);
}

pub(crate) async fn a_cursor_of_another_hand_is_refused<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    submit(&*store, new_run("u", "c")).await;
    for bad in ["", "x", "1", "_", "1_x", "-1", "\0", "9999999999999999999999_1"] {
        if bad != "1" {
            let runs = store.conversation_runs(&user("u"), &"c".parse().unwrap(), Some(bad), 10).await.unwrap().unwrap();
            assert_eq!(runs.err(), Some(BadCursor), "{bad:?}");
        }
        assert_eq!(store.conversations(&user("u"), Some(bad), 10).await.unwrap().err(), Some(BadCursor), "{bad:?}");
    }
}

pub(crate) async fn depth_counts_what_waits_and_what_runs<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    assert_eq!(store.depth().await.unwrap(), quayside_shared::store::Depth::default());
    let first = submit(&*store, alone("u")).await;
    let oldest = get(&*store, &first).await.created_at;
    fixture.advance(Duration::from_secs(5));
    let second = submit(&*store, alone("u")).await;
    let depth = store.depth().await.unwrap();
    assert_eq!((depth.queued, depth.leased, depth.oldest_queued_at), (2, 0, Some(oldest)));
    claim(&*store, &second).await;
    let depth = store.depth().await.unwrap();
    assert_eq!((depth.queued, depth.leased), (1, 1));
    store.ping().await.unwrap();
}
