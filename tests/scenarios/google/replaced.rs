//! One API and one worker die under load; nobody but their own clients notices.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::server::{Backend, Event, Options, Server, User, parse_events};

use super::{assert_completed_once, outcomes};

/// Slow, so that it is under way when the processes die, on a busy machine too.
const SPEECH: &str = "for word in 1 2 3 4 5 6 7 8 9 10 11 12; do echo $word; sleep 1.5; done";
const SPOKEN: &str = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n";
const GONE: usize = 0;
const STAYS: usize = 1;

/// A stream as far as it came, and whether it came to its end.
async fn follow(user: User, run: String) -> Vec<Event> {
    let mut answer = user.get(&format!("/api/runs/{run}/events")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut text = String::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    // What broke off in the middle of an event does not count, for any client.
    parse_events(&text[..text.rfind("\n\n").map_or(0, |end| end + 2)])
}

fn ended(events: &[Event]) -> bool {
    events.last().is_some_and(|event| event.kind == "result")
}

/// Everything that is still there to be read was told, once and in order; besides it only what a lost attempt had said.
fn assert_no_gap_and_no_repeat(told: &[Event], whole: &[Event]) {
    assert!(told.windows(2).all(|pair| pair[0].id < pair[1].id), "in order and once: {told:?}");
    let by_id: BTreeMap<u64, &Event> = told.iter().map(|event| (event.id, event)).collect();
    for event in whole {
        assert_eq!(by_id.get(&event.id), Some(&event), "a gap");
    }
    let whole: BTreeMap<u64, &Event> = whole.iter().map(|event| (event.id, event)).collect();
    assert!(told.iter().all(|event| whole.contains_key(&event.id) || event.kind == "delta"), "invented: {told:?}");
    let start = told.iter().rposition(|event| event.data["status"] == "in_progress" && event.kind == "status").unwrap();
    let said: String = told[start..].iter().filter(|event| event.kind == "delta").map(|event| event.data["text"].as_str().unwrap()).collect();
    assert_eq!(said, SPOKEN);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_api_and_one_worker_may_die() {
    let mut server = Server::start_with(Backend::Google, Options { slots: 6, ..Options::default() }).await;
    // Two speeches for each of two users: with three slots on each worker, both have at least one.
    let (mut speeches, mut streams) = (Vec::new(), Vec::new());
    for name in ["ann", "bob"] {
        for _ in 0..2 {
            let run = server.user_at(STAYS, name).say("sh", SPEECH).await;
            server.user_at(STAYS, name).says(&run, "1").await;
            let follow = |api| tokio::spawn(follow(server.user_at(api, name), run.clone()));
            streams.push((follow(GONE), follow(STAYS)));
            speeches.push((name, run));
        }
    }
    let waited = tokio::spawn({
        let user = server.user_at(STAYS, "patient");
        async move {
            let body = json!({"agent": "sh", "message": "sleep 6; echo waited"});
            let answer = user.post("/api/conversation").header("Prefer", "wait=60").json(&body).send().await.unwrap();
            (answer.status(), answer.headers()["Preference-Applied"].clone(), answer.json::<Value>().await.unwrap())
        }
    });
    let load = tokio::spawn({
        let users: Vec<User> = (0..5).map(|number| server.user_at(STAYS, &format!("load-{number}"))).collect();
        async move {
            let mut accepted = Vec::new();
            for number in 0..30 {
                let user = users[number % users.len()].clone();
                let message = format!("load {number}");
                accepted.push((user.clone(), user.say("cat", &message).await, message));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            accepted
        }
    });
    let user = server.user_at(STAYS, "ann");
    eventually("some words", || async { user.run(&speeches[0].1).await["text"].as_str().unwrap().contains("3\n").then_some(()) }).await;

    server.replace_one_of_each().await;

    let (status, applied, run) = waited.await.unwrap();
    assert_eq!((status.as_u16(), applied.to_str().unwrap()), (200, "wait=60"));
    assert_completed_once(&run, "waited\n");
    for (user, run, message) in load.await.unwrap() {
        assert_completed_once(&user.finished(&run).await, &message);
    }
    let mut redone = 0;
    for ((name, run), (broken, kept)) in speeches.into_iter().zip(streams) {
        let user = server.user_at(STAYS, name);
        let ended_run = user.finished(&run).await;
        assert_completed_once(&ended_run, SPOKEN);
        redone += outcomes(&ended_run).len() - 1;
        let whole = user.events(&run, None).await;
        let kept = kept.await.unwrap();
        assert!(ended(&kept), "the stream of the API that stayed went on: {kept:?}");
        assert_no_gap_and_no_repeat(&kept, &whole);
        let mut told = broken.await.unwrap();
        assert!(!ended(&told) && !told.is_empty(), "it was under way: {told:?}");
        // Taken up on the other API where it broke off.
        told.extend(user.events(&run, Some(told[told.len() - 1].id)).await);
        assert!(ended(&told));
        assert_no_gap_and_no_repeat(&told, &whole);
    }
    assert!(redone > 0, "the worker that died spoke none of them");
    // The new API is as good as any.
    let user = server.user_at(GONE, "ann");
    assert_completed_once(&user.finished(&user.say("cat", "again").await).await, "again");
}
