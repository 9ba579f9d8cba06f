//! Submit, poll, wait, stream, resume; and what reaches the agent.

use serde_json::{Value, json};

use crate::support::server::{Backend, Event, Server, id};

async fn a_message_is_answered(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let answer = user.post("/api/conversation?wait=60").json(&json!({"message": "print(6 * 7)"})).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let run: Value = answer.json().await.unwrap();
    assert_eq!(run["status"], "completed", "{run}");
    assert_eq!((&run["text"], &run["exitCode"], &run["agent"]), (&json!("42\n"), &json!(0), &json!("python")));
    assert_eq!(run["attempts"][0]["outcome"], "finished");
    assert!(run["usage"]["wallMillis"].as_u64().unwrap() > 0 && run["usage"]["outputBytes"].as_u64().unwrap() > 0);
    assert_eq!(user.run(run["id"].as_str().unwrap()).await, run, "polling tells the same");
}

async fn the_message_reaches_the_agent_byte_for_byte(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let messages =
        ["'; rm -rf / #", "$(id) `id` ${IFS} \\ \" '", "nul \0 inside", "line\nline\r\n\ttab", "-e", "é漢字🦀", " ", &"x".repeat(64 << 10)];
    for message in messages {
        let run = user.finished(&user.say("cat", message).await).await;
        assert_eq!(run["text"].as_str().unwrap(), message);
    }
}

async fn the_request_holds_history_and_ids(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("someone@example.org");
    let first = user.say_in("talk", "cat", "first").await;
    user.finished(&first).await;
    let second = user.say_in("talk", "request", "second \0").await;
    let run = user.finished(&second).await;
    let request: Value = serde_json::from_str(run["text"].as_str().unwrap()).unwrap();
    assert_eq!(request["protocol"], 1);
    assert_eq!((&request["runId"], &request["conversationId"]), (&json!(second), &json!("talk")));
    assert_eq!((&request["userId"], &request["message"]), (&json!("someone@example.org"), &json!("second \0")));
    assert_eq!(request["attempt"], 1);
    assert_eq!(request["history"], json!([{"role": "user", "content": "first"}, {"role": "assistant", "content": "first"}]));
    assert!(request["deadlineAt"].as_str().unwrap().ends_with('Z'));
}

fn text(events: &[Event]) -> String {
    events.iter().filter(|event| event.kind == "delta").map(|event| event.data["text"].as_str().unwrap()).collect()
}

async fn a_stream_has_every_event_once_and_resumes_anywhere(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let run = user.say("sh", "for i in 1 2 3 4 5; do echo line $i; sleep 0.7; done").await;
    let live = user.events(&run, None).await;
    assert_eq!(text(&live), "line 1\nline 2\nline 3\nline 4\nline 5\n");
    assert!(live.iter().filter(|event| event.kind == "delta").count() >= 3, "it streams: {live:?}");
    let statuses: Vec<_> = live.iter().filter(|event| event.kind == "status").map(|event| event.data["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["queued", "in_progress"]);
    assert!(live.windows(2).all(|pair| pair[0].id < pair[1].id));
    let result = live.last().unwrap();
    assert_eq!((result.kind.as_str(), &result.data["status"]), ("result", &json!("completed")));
    assert_eq!(result.data["sequenceNumber"], json!(result.id));
    for after in 0..=result.id {
        let expected: Vec<_> = live.iter().filter(|event| event.id > after).cloned().collect();
        assert_eq!(user.events(&run, Some(after)).await, expected, "after {after}");
    }
}

async fn text_arrives_while_the_agent_still_works(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let run = user.say("python", "import time\nprint('early', flush=True)\ntime.sleep(30)\n").await;
    let seen = user.says(&run, "early").await;
    assert_eq!(seen["status"], "in_progress");
    user.cancel(&run).await;
    assert_eq!(user.finished(&run).await["status"], "cancelled");
}

async fn a_wait_that_is_too_short_gives_the_run_so_far(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let answer = user.post("/api/conversation").header("Prefer", "wait=1").json(&json!({"agent": "sh", "message": "sleep 20"})).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let run: Value = answer.json().await.unwrap();
    assert_eq!(run["finishedAt"], Value::Null);
    user.cancel(&id(&run)).await;
}

async fn a_hundred_repeats_of_one_submission_are_one_run(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let repeats: Vec<_> = (0..100)
        .map(|_| {
            let user = user.clone();
            tokio::spawn(async move {
                let answer = user
                    .post("/api/conversation")
                    .header("Idempotency-Key", "once")
                    .json(&json!({"agent": "cat", "message": "x"}))
                    .send()
                    .await
                    .unwrap();
                assert_eq!(answer.status(), 202);
                let replayed = answer.headers().contains_key("Idempotency-Replayed");
                (id(&answer.json().await.unwrap()), replayed)
            })
        })
        .collect();
    let mut ids = std::collections::BTreeSet::new();
    let mut replays = 0;
    for repeat in repeats {
        let (id, replayed) = repeat.await.unwrap();
        ids.insert(id);
        replays += usize::from(replayed);
    }
    assert_eq!((ids.len(), replays), (1, 99));
    let run = user.finished(ids.first().unwrap()).await;
    assert_eq!(run["attempts"].as_array().unwrap().len(), 1);
}

async fn users_do_not_see_each_other(on: Backend) {
    let server = Server::start(on).await;
    let (mine, yours) = (server.user("me"), server.user("you"));
    let run = mine.say_in("same-name", "cat", "secret").await;
    mine.finished(&run).await;
    let other = yours.say_in("same-name", "request", "hello").await;
    let answer = yours.finished(&other).await;
    assert!(!answer["text"].as_str().unwrap().contains("secret"), "no history of another user");
    for path in [format!("/api/runs/{run}"), format!("/api/runs/{run}/events")] {
        assert_eq!(yours.get(&path).send().await.unwrap().status(), 404);
    }
    assert_eq!(yours.post(&format!("/api/runs/{run}/cancel")).send().await.unwrap().status(), 404);
}

async fn nothing_is_left_on_the_host(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    for message in ["echo fine", "exit 3", "kill -9 $$"] {
        user.finished(&user.say("sh", message).await).await;
    }
    crate::support::eventually("an empty host", || async { server.containers().is_empty().then_some(()) }).await;
}

super::on_both! {
    a_message_is_answered,
    the_message_reaches_the_agent_byte_for_byte,
    the_request_holds_history_and_ids,
    a_stream_has_every_event_once_and_resumes_anywhere,
    text_arrives_while_the_agent_still_works,
    a_wait_that_is_too_short_gives_the_run_so_far,
    a_hundred_repeats_of_one_submission_are_one_run,
    users_do_not_see_each_other,
    nothing_is_left_on_the_host,
}
