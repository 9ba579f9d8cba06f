//! Submit, read, cancel: what the contract promises about a run.

use std::collections::BTreeSet;

use quayside_shared::run::AttemptOutcome;
use serde_json::{Value, json};

use crate::support::{answer, server, server_with};

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_run_from_its_submission_to_its_end() {
    let server = server().await;
    let accepted = server.submit("ann", &json!({"message": "print(1)", "metadata": {"ticket": "42"}})).await;
    assert_eq!(accepted.status, 202, "{}", accepted.text);
    let run = accepted.json();
    let id = run["id"].as_str().unwrap();
    assert_eq!(accepted.header("location"), format!("/api/runs/{id}"));
    assert_eq!(accepted.header("idempotency-replayed"), "");
    let wanted = BTreeSet::from([
        "id",
        "conversationId",
        "batchId",
        "customId",
        "userId",
        "agent",
        "status",
        "waiting",
        "message",
        "text",
        "truncated",
        "exitCode",
        "error",
        "attempts",
        "usage",
        "createdAt",
        "startedAt",
        "finishedAt",
        "expireAt",
        "metadata",
        "sequenceNumber",
    ]);
    assert_eq!(keys(&run), wanted);
    assert!(run["conversationId"].as_str().unwrap().starts_with("conv_"));
    assert_eq!((&run["status"], &run["agent"], &run["userId"]), (&json!("queued"), &json!("python"), &json!("ann")));
    assert_eq!(run["waiting"], json!({"reason": "no_capacity", "position": 1}));
    assert_eq!((&run["message"], &run["text"], &run["metadata"]), (&json!("print(1)"), &json!(""), &json!({"ticket": "42"})));
    assert_eq!(
        run["usage"],
        json!({"queueMillis": null, "startMillis": null, "wallMillis": null, "cpuMillis": null, "maxMemoryBytes": null,
        "outputBytes": null, "inputTokens": null, "outputTokens": null})
    );

    // The message that tells a worker of it is there without anybody asking again.
    assert_eq!(server.announced().await.as_str(), id);

    let lease = server.claim(&id.parse().unwrap()).await;
    server.append(&lease, "o").await;
    let running = server.get("ann", &format!("/api/runs/{id}")).await.json();
    assert_eq!((&running["status"], &running["waiting"], &running["text"]), (&json!("in_progress"), &Value::Null, &json!("o")));
    assert_eq!(keys(&running["attempts"][0]), BTreeSet::from(["number", "worker", "startedAt", "endedAt", "outcome", "counted", "sandbox"]));

    server.append(&lease, "ne").await;
    server.finish(&lease).await;
    let ended = server.get("ann", &format!("/api/runs/{id}")).await;
    assert_eq!((ended.status, ended.header("cache-control")), (200, "no-store"));
    let ended = ended.json();
    assert_eq!((&ended["status"], &ended["text"], &ended["exitCode"]), (&json!("completed"), &json!("one"), &json!(0)));
    assert_eq!((&ended["attempts"][0]["outcome"], &ended["usage"]["wallMillis"]), (&json!("finished"), &json!(12)));
    for time in ["createdAt", "startedAt", "finishedAt", "expireAt"] {
        let text = ended[time].as_str().unwrap();
        assert!(text.len() == 24 && text.ends_with('Z'), "{time}: {text}");
    }
    assert_eq!(keys(&ended), wanted);
}

#[tokio::test]
async fn every_field_of_a_submission_is_heeded() {
    let server = server().await;
    let body = json!({"message": "x", "conversationId": "my_Chat-1", "agent": "echo", "multitaskStrategy": "enqueue", "timeoutSeconds": 30,
        "queueTtlSeconds": 604_800, "metadata": {"k": "v"}});
    let run = server.submit("ann", &body).await.json();
    assert_eq!((&run["conversationId"], &run["agent"], &run["metadata"]), (&json!("my_Chat-1"), &json!("echo"), &json!({"k": "v"})));
    let stored = server.store.run(&run["id"].as_str().unwrap().parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(stored.timeout().as_secs(), 30);
    assert_eq!(stored.start_by.unwrap().since(stored.created_at).as_secs(), 604_800);
    // Null is absent.
    let nulls = json!({"message": "x", "conversationId": null, "agent": null, "multitaskStrategy": null, "timeoutSeconds": null,
        "queueTtlSeconds": null, "metadata": null});
    let run = server.submit("ann", &nulls).await;
    assert_eq!((run.status, &run.json()["agent"]), (202, &json!("python")));
}

#[tokio::test]
async fn a_busy_conversation_waits_refuses_or_gives_way() {
    let server = server().await;
    let first = server.accepted_in("ann", Some("c")).await;
    let lease = server.claim(&first).await;
    let in_c = |strategy: &str| json!({"message": "x", "conversationId": "c", "multitaskStrategy": strategy});

    let second = server.submit("ann", &in_c("enqueue")).await.json();
    assert_eq!(second["waiting"]["reason"], "conversation_busy");
    server.submit("ann", &in_c("reject")).await.refused(409, "conversation_busy", None);
    // Another user's conversation of the same name is another conversation.
    assert_eq!(server.submit("bob", &in_c("reject")).await.status, 202);

    let third = server.submit("ann", &in_c("interrupt")).await;
    assert_eq!(third.status, 202);
    let status = async |id: &Value| server.get("ann", &format!("/api/runs/{}", id.as_str().unwrap())).await.json()["status"].clone();
    assert_eq!(status(&second["id"]).await, "cancelled");
    assert_eq!(status(&json!(first.as_str())).await, "cancelling");
    server.end(&lease, AttemptOutcome::Cancelled).await;
    assert_eq!(status(&json!(first.as_str())).await, "cancelled");

    let fourth = server.submit("ann", &in_c("rollback")).await.json();
    let runs = server.get("ann", "/api/conversations/c/runs").await.json();
    let ids: Vec<&Value> = runs["data"].as_array().unwrap().iter().map(|run| &run["id"]).collect();
    assert!(!ids.contains(&&third.json()["id"]) && ids.contains(&&fourth["id"]), "{ids:?}");
}

#[tokio::test]
async fn over_the_quota_a_submission_is_refused_and_nothing_stored() {
    let server = server_with(|setup| setup.config.limits.queued_per_user = 2).await;
    for _ in 0..2 {
        server.accepted("ann").await;
    }
    let refused = server.submit("ann", &json!({"message": "x"})).await;
    refused.refused(429, "rate_limited", None);
    assert!(refused.header("retry-after").parse::<u64>().unwrap() > 0);
    assert_eq!(server.stored().await, 2);
    // The neighbour is none the worse.
    server.accepted("bob").await;
}

#[tokio::test]
async fn a_full_service_refuses_and_answers_who_was_accepted() {
    let server = server_with(|setup| setup.config.limits.queued = 2).await;
    let keyed = || server.submission("ann", &json!({"message": "x"})).header("idempotency-key", "k");
    let first = answer(keyed()).await;
    server.accepted("bob").await;
    let refused = server.submit("eve", &json!({"message": "x"})).await;
    refused.refused(503, "overloaded", None);
    assert!(refused.header("retry-after").parse::<u64>().unwrap() > 0);
    assert!(refused.json()["detail"].as_str().unwrap().contains("more runs are waiting"));
    assert_eq!(server.stored().await, 2);
    let again = answer(keyed()).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (202, "true"));
    assert_eq!(again.json()["id"], first.json()["id"]);
    server.claim(&first.json()["id"].as_str().unwrap().parse().unwrap()).await;
    assert_eq!(server.submit("eve", &json!({"message": "x"})).await.status, 202);
}

#[tokio::test]
async fn cancelling_is_believed_only_when_it_has_happened() {
    let server = server().await;
    let cancel = async |id: &str| server.post("ann", &format!("/api/runs/{id}/cancel")).await;
    let queued = server.accepted("ann").await;
    let answered = cancel(queued.as_str()).await;
    assert_eq!((answered.status, &answered.json()["status"]), (202, &json!("cancelled")));

    let running = server.accepted("ann").await;
    let lease = server.claim(&running).await;
    server.append(&lease, "partial").await;
    for _ in 0..2 {
        assert_eq!(cancel(running.as_str()).await.json()["status"], "cancelling");
    }
    server.end(&lease, AttemptOutcome::Cancelled).await;
    let cancelled = cancel(running.as_str()).await.json();
    assert_eq!((&cancelled["status"], &cancelled["text"]), (&json!("cancelled"), &json!("partial")));

    let ended = server.accepted("ann").await;
    let lease = server.claim(&ended).await;
    server.finish(&lease).await;
    let stays = cancel(ended.as_str()).await;
    assert_eq!((stays.status, &stays.json()["status"]), (202, &json!("completed")));
}

#[tokio::test]
async fn freeing_the_way_wakes_the_next_run() {
    let server = server().await;
    let first = server.accepted_in("ann", Some("c")).await;
    assert_eq!(server.announced().await, first);
    let second = server.accepted_in("ann", Some("c")).await;
    server.post("ann", &format!("/api/runs/{first}/cancel")).await;
    assert_eq!(server.announced().await, second);
}

#[tokio::test]
async fn agents_are_shown_without_their_secrets() {
    let server = server().await;
    let answered = server.get("ann", "/api/agents").await;
    assert!(!answered.text.contains(crate::support::SECRET) && !answered.text.contains("/bin/echo"), "{}", answered.text);
    let agents = answered.json();
    assert_eq!(agents["nextAfter"], Value::Null);
    assert_eq!(
        agents["data"][0],
        json!({"name": "echo", "description": "says it again", "image": "echo", "imageDigest": "sha256:abc", "default": false, "network": "bridge",
            "limits": {"memoryBytes": 1 << 30, "cpus": 1.0, "pids": 128, "timeoutSeconds": 30, "outputLimitBytes": 1 << 20, "messageBytes": 64 << 10}})
    );
    assert_eq!((&agents["data"][1]["default"], &agents["data"][1]["imageDigest"]), (&json!(true), &Value::Null));
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_come_between_storing_and_publishing() {
    let server = server().await;
    for _ in 0..20 {
        // Closed at once, without waiting for the answer.
        let body = "{\"message\":\"x\"}";
        let request = format!(
            "POST /api/conversation HTTP/1.1\r\nhost: localhost\r\nx-user-id: ann\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
    }
    let marker = answer(server.submission("bob", &json!({"message": "last"}))).await.json();
    // Whatever was stored is announced: the store's count and the queue's agree.
    let stored = server.stored().await;
    let mut announced = std::collections::HashSet::new();
    while announced.len() < usize::try_from(stored).unwrap() {
        announced.insert(server.announced().await);
    }
    assert!(announced.contains(&marker["id"].as_str().unwrap().parse().unwrap()));
}

#[tokio::test]
async fn the_callers_trace_goes_with_the_message() {
    let server = server().await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let submission = server.submission("ann", &json!({"message": "hello"})).header("traceparent", parent).header("tracestate", "vendor=1");
    assert_eq!(answer(submission).await.status, 202);
    let delivery = server.queue.receive().await.unwrap();
    let trace: Vec<_> = delivery.message().unwrap().trace.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(trace, [("traceparent", parent), ("tracestate", "vendor=1")]);
}
