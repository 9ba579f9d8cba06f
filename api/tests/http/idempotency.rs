//! The same key and body is the same run.

use std::collections::HashSet;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::support::{Answer, Server, answer, server, server_with};

async fn keyed(server: &Server, user: &str, key: &str, body: &str) -> Answer {
    let request = server.request("POST", user, "/api/conversation").header("content-type", "application/json").header("idempotency-key", key);
    answer(request.body(body.to_owned())).await
}

#[tokio::test]
async fn a_repeat_is_answered_with_the_first_run() {
    let server = server().await;
    let first = keyed(&server, "ann", "k", r#"{"message":"x","agent":"echo","metadata":{"a":"1","b":"2"}}"#).await;
    assert_eq!((first.status, first.header("idempotency-replayed")), (202, ""));
    // The same request, written differently.
    for body in [
        r#"{"message":"x","agent":"echo","metadata":{"a":"1","b":"2"}}"#,
        "{ \"metadata\":{\"b\":\"2\", \"\\u0061\":\"1\"},\n\"agent\":\"echo\",\"message\":\"x\",\"timeoutSeconds\":null}",
    ] {
        let again = keyed(&server, "ann", "k", body).await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (202, "true"), "{}", again.text);
        assert_eq!(again.header("location"), first.header("location"));
        assert_eq!(again.json()["id"], first.json()["id"]);
    }
    assert_eq!(server.stored().await, 1);
    // It shows the run as it is now, and waits for it like for any other.
    let id = first.json()["id"].as_str().unwrap().parse().unwrap();
    let lease = server.claim(&id).await;
    server.finish(&lease).await;
    let request =
        server.request("POST", "ann", "/api/conversation?wait=30").header("content-type", "application/json").header("idempotency-key", "k");
    let ended = answer(request.body(r#"{"message":"x","agent":"echo","metadata":{"a":"1","b":"2"}}"#)).await;
    assert_eq!((ended.status, ended.header("idempotency-replayed"), &ended.json()["status"]), (200, "true", &json!("completed")));
}

#[tokio::test]
async fn another_body_is_refused_and_another_user_is_another_matter() {
    let server = server().await;
    let first = keyed(&server, "ann", "k", r#"{"message":"x"}"#).await.json();
    for body in [
        r#"{"message":"y"}"#,
        r#"{"message":"x "}"#,
        r#"{"message":"x","agent":"echo"}"#,
        r#"{"message":"x","metadata":{"a":"b"}}"#,
        r#"{"message":"x","queueTtlSeconds":5}"#,
    ] {
        keyed(&server, "ann", "k", body).await.refused(422, "idempotency_key_reused", Some("Idempotency-Key"));
    }
    let theirs = keyed(&server, "bob", "k", r#"{"message":"y"}"#).await;
    assert_eq!((theirs.status, theirs.header("idempotency-replayed")), (202, ""));
    assert_ne!(theirs.json()["id"], first["id"]);
    assert_eq!(server.stored().await, 2);
}

#[tokio::test]
async fn a_hundred_at_once_make_one_run() {
    let server = server().await;
    let answers = join_all((0..100).map(|_| keyed(&server, "ann", "k", r#"{"message":"x","conversationId":"c"}"#))).await;
    let ids: HashSet<Value> = answers.iter().map(|answer| answer.json()["id"].clone()).collect();
    assert!(answers.iter().all(|answer| answer.status == 202));
    assert_eq!(answers.iter().filter(|answer| answer.header("idempotency-replayed").is_empty()).count(), 1);
    assert_eq!((ids.len(), server.stored().await), (1, 1));
}

#[tokio::test]
async fn a_key_counts_for_a_day_and_over_the_quota_too() {
    let server = server_with(|setup| setup.config.limits.queued_per_user = 1).await;
    let first = keyed(&server, "ann", "k", r#"{"message":"x"}"#).await.json();
    keyed(&server, "ann", "other", r#"{"message":"x"}"#).await.refused(429, "rate_limited", None);
    server.clock.advance(Duration::from_secs(24 * 3600 - 1));
    assert_eq!(keyed(&server, "ann", "k", r#"{"message":"x"}"#).await.json()["id"], first["id"]);
    let id = first["id"].as_str().unwrap();
    server.post("ann", &format!("/api/runs/{id}/cancel")).await;
    server.clock.advance(Duration::from_secs(2));
    let fresh = keyed(&server, "ann", "k", r#"{"message":"y"}"#).await;
    assert_eq!((fresh.status, fresh.header("idempotency-replayed")), (202, ""));
    assert_ne!(fresh.json()["id"], first["id"]);
}

#[tokio::test]
async fn what_was_refused_does_not_hold_the_key() {
    let server = server().await;
    keyed(&server, "ann", "k", r#"{"message":""}"#).await.refused(422, "invalid_request", Some("message"));
    assert_eq!(keyed(&server, "ann", "k", r#"{"message":"x"}"#).await.status, 202);
}

#[tokio::test]
async fn keys_that_are_no_keys_are_refused_by_name() {
    let server = server().await;
    let (longest, huge) = ("x".repeat(255), "x".repeat(10 << 10));
    for key in ["", " ", "a b", "ü", "a\tb", &format!("{longest}x"), &huge] {
        let request = server
            .submission("ann", &json!({"message": "x"}))
            .header("idempotency-key", reqwest::header::HeaderValue::from_bytes(key.as_bytes()).unwrap());
        answer(request).await.refused(400, "invalid_header", Some("Idempotency-Key"));
    }
    let twice = server.submission("ann", &json!({"message": "x"})).header("idempotency-key", "a").header("idempotency-key", "a");
    answer(twice).await.refused(400, "invalid_header", Some("Idempotency-Key"));
    assert_eq!(server.stored().await, 0);
    assert_eq!(keyed(&server, "ann", &longest, r#"{"message":"x"}"#).await.status, 202);
}
