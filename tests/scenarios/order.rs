//! Who starts when: order in a conversation, quotas, strategies, time-to-live.

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::server::{Backend, Options, Server, id};

async fn a_conversation_is_answered_in_order(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(user.say_in("talk", "sh", &format!("sleep 0.{}; echo {number}", 5 - number)).await);
    }
    let second = user.run(&ids[1]).await;
    assert_eq!((&second["status"], &second["waiting"]["reason"]), (&json!("queued"), &json!("conversation_busy")));
    let mut ended = Vec::new();
    for id in &ids {
        let run = user.finished(id).await;
        assert_eq!(run["status"], "completed");
        ended.push((run["startedAt"].as_str().unwrap().to_owned(), run["finishedAt"].as_str().unwrap().to_owned()));
    }
    for pair in ended.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{ended:?}");
    }
    let listed: Value = user.get("/api/conversations/talk/runs").send().await.unwrap().json().await.unwrap();
    let listed: Vec<_> = listed["data"].as_array().unwrap().iter().map(id).collect();
    assert_eq!(listed, ids);
}

async fn one_user_does_not_take_all_places(on: Backend) {
    let server = Server::start(on).await;
    let (greedy, modest) = (server.user("greedy"), server.user("modest"));
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(greedy.say("sh", "sleep 60").await);
    }
    // Any two of them: messages may come in another order.
    let held_up = eventually("two that run", || async {
        let mut runs = Vec::new();
        for id in &ids {
            runs.push(greedy.run(id).await);
        }
        runs.retain(|run| run["status"] == "queued");
        (runs.len() == ids.len() - 2).then(|| runs[0]["id"].as_str().unwrap().to_owned())
    })
    .await;
    let run = modest.finished(&modest.say("cat", "me too").await).await;
    assert_eq!(run["status"], "completed", "two places are free for others");
    let waiting = eventually("the reason", || async {
        let run = greedy.run(&held_up).await;
        (run["waiting"]["reason"] == "user_quota").then_some(run)
    })
    .await;
    assert_eq!(waiting["status"], "queued");
    for id in &ids {
        greedy.cancel(id).await;
    }
    for id in &ids {
        assert_eq!(greedy.finished(id).await["status"], "cancelled");
    }
}

async fn the_four_strategies(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let say = |conversation: &'static str, strategy: &'static str, message: &'static str| {
        let body = json!({"agent": "sh", "message": message, "conversationId": conversation, "multitaskStrategy": strategy});
        user.post("/api/conversation").json(&body).send()
    };
    let first = user.say_in("reject", "sh", "sleep 60").await;
    let refused = say("reject", "reject", "echo x").await.unwrap();
    assert_eq!(refused.status(), 409);
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "conversation_busy");
    user.cancel(&first).await;
    user.finished(&first).await;

    for (strategy, kept) in [("interrupt", 2), ("rollback", 1)] {
        let running = user.say_in(strategy, "sh", "echo half; sleep 60").await;
        user.says(&running, "half").await;
        let next = id(&say(strategy, strategy, "echo next").await.unwrap().json().await.unwrap());
        let next = user.finished(&next).await;
        assert_eq!((&next["status"], &next["text"]), (&json!("completed"), &json!("next\n")));
        let running = user.run(&running).await;
        assert_eq!((&running["status"], &running["text"]), (&json!("cancelled"), &json!("half\n")), "{strategy}");
        assert!(running["finishedAt"].as_str() <= next["startedAt"].as_str());
        let runs: Value = user.get(&format!("/api/conversations/{strategy}/runs")).send().await.unwrap().json().await.unwrap();
        assert_eq!(runs["data"].as_array().unwrap().len(), kept, "{strategy}");
    }
}

async fn a_run_that_waits_too_long_expires(on: Backend) {
    let server = Server::start_with(on, Options { slots: 1, ..Options::default() }).await;
    let (busy, user) = (server.user("busy"), server.user("u"));
    let blocker = busy.say("sh", "sleep 60").await;
    busy.reaches(&blocker, "in_progress").await;
    let run = user.submit(json!({"agent": "cat", "message": "x", "queueTtlSeconds": 1})).await;
    assert_eq!(run["waiting"], json!({"reason": "no_capacity", "position": 1}));
    let run = user.finished(&id(&run)).await;
    assert_eq!((&run["status"], run["attempts"].as_array().unwrap().len()), (&json!("expired"), 0));
    busy.cancel(&blocker).await;
}

async fn a_full_queue_says_so(on: Backend) {
    let options = Options { slots: 1, extra: "[limits]\nqueued_per_user = 3\n".into(), ..Options::default() };
    let server = Server::start_with(on, options).await;
    let user = server.user("u");
    let running = user.say("sh", "sleep 60").await;
    user.reaches(&running, "in_progress").await;
    for _ in 0..3 {
        user.say("cat", "x").await;
    }
    let refused = user.post("/api/conversation").json(&json!({"agent": "cat", "message": "x"})).send().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(refused.headers()["Retry-After"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "rate_limited");
    server.user("other").say("cat", "x").await;
    user.cancel(&running).await;
}

super::on_both! {
    a_conversation_is_answered_in_order,
    one_user_does_not_take_all_places,
    the_four_strategies,
    a_run_that_waits_too_long_expires,
    a_full_queue_says_so,
}
