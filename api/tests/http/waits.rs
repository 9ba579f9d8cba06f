//! `Prefer: wait` and `?wait`.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{PATIENCE, answer, server, until};

#[tokio::test]
async fn a_wait_ends_with_the_run() {
    let server = server().await;
    for path in ["/api/conversation", "/api/conversation?wait=30"] {
        let mut request = server.request("POST", "ann", path).header("content-type", "application/json").body(r#"{"message":"x"}"#);
        if !path.contains('?') {
            request = request.header("prefer", "respond-async").header("prefer", "foo; bar=\"a,b\", wait=30");
        }
        let waiting = tokio::spawn(answer(request));
        let id = server.announced().await;
        let lease = server.claim(&id).await;
        server.append(&lease, "reply").await;
        assert!(!waiting.is_finished());
        let ended = Instant::now();
        server.finish(&lease).await;
        let answered = waiting.await.unwrap();
        assert!(ended.elapsed() < Duration::from_secs(5), "{:?}", ended.elapsed());
        assert_eq!((answered.status, answered.header("preference-applied")), (200, "wait=30"));
        assert_eq!(answered.header("location"), format!("/api/runs/{id}"));
        let run = answered.json();
        assert_eq!((&run["status"], &run["text"]), (&json!("completed"), &json!("reply")));
    }
}

#[tokio::test]
async fn a_wait_that_is_over_answers_with_the_run_so_far() {
    let server = server().await;
    let posted = answer(server.submission("ann", &json!({"message": "x"})).header("prefer", "wait=1")).await;
    assert_eq!((posted.status, posted.header("preference-applied")), (202, "wait=1"));
    assert_eq!(posted.json()["status"], "queued");
    let id = posted.json()["id"].as_str().unwrap().to_owned();
    let got = answer(server.request("GET", "ann", &format!("/api/runs/{id}")).header("prefer", "wait=0")).await;
    assert_eq!((got.status, got.header("preference-applied"), &got.json()["status"]), (200, "wait=0", &json!("queued")));
    let asked = Instant::now();
    let got = server.get("ann", &format!("/api/runs/{id}?wait=1")).await;
    assert!(asked.elapsed() >= Duration::from_secs(1));
    assert_eq!((got.status, &got.json()["status"]), (200, &json!("queued")));
}

#[tokio::test]
async fn reading_waits_too_and_not_for_what_is_over() {
    let server = server().await;
    let id = server.accepted("ann").await;
    let lease = server.claim(&id).await;
    let waiting = tokio::spawn(answer(server.request("GET", "ann", &format!("/api/runs/{id}")).header("prefer", "wait=60")));
    // A second one, that sees the run end before it begins.
    server.finish(&lease).await;
    assert_eq!(tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().json()["status"], "completed");
    let again = server.get("ann", &format!("/api/runs/{id}?wait=60")).await;
    assert_eq!((again.status, again.header("preference-applied")), (200, "wait=60"));
}

#[tokio::test]
async fn a_preference_may_be_ignored_but_a_parameter_is_checked() {
    let server = server().await;
    for odd in ["wait=x", "wait=-1", "wait", "wait=1.5", ",,;;==", "\"", "return=minimal"] {
        let answered = answer(server.submission("ann", &json!({"message": "x"})).header("prefer", odd)).await;
        assert_eq!((answered.status, answered.header("preference-applied")), (202, ""), "{odd}");
    }
    let stored = server.stored().await;
    let id = server.accepted("ann").await;
    for odd in ["61", "-1", "1.5", "x", "", "1s", "%2B1", "99999999999999999999999", "1&wait=2"] {
        let body = json!({"message": "x"}).to_string();
        let post = server.request("POST", "ann", &format!("/api/conversation?wait={odd}")).header("content-type", "application/json").body(body);
        answer(post).await.refused(422, "invalid_request", Some("wait"));
        server.get("ann", &format!("/api/runs/{id}?wait={odd}")).await.refused(422, "invalid_request", Some("wait"));
    }
    assert_eq!(server.stored().await, stored + 1);
}

#[tokio::test]
async fn draining_ends_waits_and_streams_and_then_the_server() {
    let mut server = server().await;
    let address = server.address;
    let id = server.accepted("ann").await;
    let path = format!("/api/runs/{id}");
    let wait = tokio::spawn(answer(server.request("GET", "ann", &path).header("prefer", "wait=60")));
    let mut stream = server.request("GET", "ann", &format!("{path}/events")).send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    server.drain.cancel();
    server.closing.cancel();
    let answered = tokio::time::timeout(Duration::from_secs(5), wait).await.expect("the wait ends at once").unwrap();
    assert_eq!((answered.status, &answered.json()["status"]), (200, &json!("queued")));
    let rest = tokio::time::timeout(Duration::from_secs(5), stream.text()).await.expect("the stream ends at once").unwrap();
    assert!(!rest.contains("event: result"), "{rest}");
    let serving = server.serving.take().unwrap();
    tokio::time::timeout(Duration::from_secs(5), serving).await.expect("the server ends").unwrap().unwrap();
    until("the port is closed", || async { tokio::net::TcpStream::connect(address).await.is_err() }).await;
}

#[tokio::test]
async fn a_draining_server_says_when_to_come_again() {
    let server = server().await;
    let id = server.accepted("ann").await;
    // The listener still answers, as it does for connections that were open before.
    server.drain.cancel();
    for (path, method) in [("/api/conversation".to_owned(), "POST"), (format!("/api/runs/{id}/events"), "GET")] {
        let request = server.request(method, "ann", &path).header("content-type", "application/json").body(r#"{"message":"x"}"#);
        let refused = answer(request).await;
        refused.refused(503, "overloaded", None);
        assert!(refused.header("retry-after").parse::<u64>().unwrap() > 0);
    }
    assert_eq!(server.stored().await, 1);
    // What is there can still be read and cancelled.
    assert_eq!(server.get("ann", &format!("/api/runs/{id}?wait=60")).await.json()["status"], "queued");
    assert_eq!(server.post("ann", &format!("/api/runs/{id}/cancel")).await.json()["status"], "cancelled");
}
