//! Who is calling, and what belongs to somebody else.

use serde_json::json;

use crate::support::{answer, server};

const RUN: &str = "run_0000000000000000000000";

#[tokio::test]
async fn a_missing_or_bad_identity_is_401_on_every_route_of_a_user() {
    let server = server().await;
    let run = server.accepted("ann").await;
    let routes = [
        ("POST", "/api/conversation".to_owned()),
        ("GET", format!("/api/runs/{run}")),
        ("GET", format!("/api/runs/{run}/events")),
        ("POST", format!("/api/runs/{run}/cancel")),
        ("GET", "/api/conversations".to_owned()),
        ("GET", "/api/conversations/c".to_owned()),
        ("GET", "/api/conversations/c/runs".to_owned()),
        ("DELETE", "/api/conversations/c".to_owned()),
        ("GET", "/api/agents".to_owned()),
    ];
    let long = "x".repeat(129);
    let huge = "x".repeat(10 << 10);
    let bad: [&[&str]; 11] = [&[], &[""], &[" "], &["ann", "ann"], &["ann", "bob"], &["a b"], &[&long], &[&huge], &["ünn"], &["аnn"], &["ann\t1"]];
    for (method, path) in &routes {
        for users in bad {
            let mut request = server.client.request(method.parse().unwrap(), server.url(path));
            for user in users {
                request = request.header("x-user-id", reqwest::header::HeaderValue::from_bytes(user.as_bytes()).unwrap());
            }
            let request = request.header("content-type", "application/json").body(r#"{"message":"x"}"#);
            answer(request).await.refused(401, "unauthenticated", Some("X-User-Id"));
        }
    }
    assert_eq!(server.stored().await, 1);
    // Odd, but visible ASCII: these are names like any other, and reach no file and no query.
    for user in ["../ann", "%2e%2e", "a,b", "'; DROP TABLE runs;--", "__x__"].map(|user| user.replace(' ', "_")) {
        let run = server.submit(&user, &json!({"message": "x"})).await.json();
        assert_eq!(run["userId"], user.as_str());
    }
}

#[tokio::test]
async fn what_belongs_to_another_answers_as_if_it_were_not_there() {
    let server = server().await;
    let run = server.accepted_in("ann", Some("secret")).await;
    let routes = |run: &str, conversation: &str| {
        [
            ("GET", format!("/api/runs/{run}")),
            ("GET", format!("/api/runs/{run}?wait=5")),
            ("GET", format!("/api/runs/{run}/events")),
            ("GET", format!("/api/runs/{run}/events?after=99")),
            ("POST", format!("/api/runs/{run}/cancel")),
            ("GET", format!("/api/conversations/{conversation}")),
            ("GET", format!("/api/conversations/{conversation}/runs")),
            ("DELETE", format!("/api/conversations/{conversation}")),
        ]
    };
    for ((method, theirs), (_, nobodys)) in routes(run.as_str(), "secret").into_iter().zip(routes(RUN, "nothing")) {
        let theirs = answer(server.request(method, "mallory", &theirs)).await;
        theirs.refused(404, "not_found", None);
        let nobodys = answer(server.request(method, "mallory", &nobodys)).await;
        let names = |answer: &crate::support::Answer| answer.headers.keys().map(|name| name.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!((theirs.status, &theirs.text, names(&theirs)), (nobodys.status, &nobodys.text, names(&nobodys)));
    }
    let list = server.get("mallory", "/api/conversations").await.json();
    assert_eq!(list["data"], json!([]));
    // A cursor of Ann's opens nothing of hers.
    let list = server.get("mallory", "/api/conversations?after=9999999999999_9999").await.json();
    assert_eq!(list["data"], json!([]));
    // The same conversation id is Mallory's own conversation.
    let own = server.submit("mallory", &json!({"message": "mine", "conversationId": "secret"})).await;
    assert_eq!((own.status, &server.get("mallory", "/api/conversations/secret").await.json()["runCount"]), (202, &json!(1)));
    let untouched = server.get("ann", &format!("/api/runs/{run}")).await.json();
    assert_eq!((&untouched["status"], &untouched["message"]), (&json!("queued"), &json!("hello")));
}

#[tokio::test]
async fn what_is_no_id_is_not_there() {
    let server = server().await;
    let run = server.accepted_in("ann", Some("Chat")).await;
    let other_case: String =
        run.as_str().chars().map(|c| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }).collect();
    let long = "x".repeat(5000);
    for id in [
        "..",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "%00",
        "%ff%fe",
        "run_%00",
        "run_",
        "*",
        "'%20OR%201=1",
        "__x__",
        "%F0%9F%98%80",
        &long,
        &other_case,
        &format!("{run}%20"),
    ] {
        for path in [format!("/api/runs/{id}"), format!("/api/runs/{id}/events"), format!("/api/conversations/{id}/runs")] {
            let answered = server.get("ann", &path).await;
            assert_eq!(answered.status, 404, "{path:.80}: {}", answered.text);
            answered.refused(404, "not_found", None);
        }
        let cancelled = server.post("ann", &format!("/api/runs/{id}/cancel")).await;
        assert_eq!(cancelled.status, 404, "{id:.80}");
    }
    server.get("ann", "/api/conversations/chat").await.refused(404, "not_found", None);
}

#[tokio::test]
async fn routes_that_are_not_there_say_so_in_the_same_shape() {
    let server = server().await;
    for path in [
        "/api",
        "/api/",
        "/api/runs",
        "/api/conversation/",
        "/admin",
        "/debug/pprof",
        "/.env",
        "/api/batches",
        "/api/admin",
        "/api/admin/keys",
        "/web/",
        "/web/../Cargo.toml",
        "/web/%2e%2e/Cargo.toml",
        "/web/package.json",
        "/docs/%2e%2e/x",
        "//",
        "/API/agents",
    ] {
        let answered = server.get("ann", path).await;
        assert_eq!(answered.status, 404, "{path}: {}", answered.text);
        answered.refused(404, "not_found", None);
    }
    for (method, path, allow) in [
        ("GET", "/api/conversation", "POST"),
        ("PUT", "/api/conversation", "POST"),
        ("DELETE", "/api/agents", "GET,HEAD"),
        ("PATCH", "/api/conversations/c", "GET,HEAD,DELETE"),
        ("TRACE", "/api/agents", "GET,HEAD"),
        ("OPTIONS", "/api/agents", "GET,HEAD"),
        ("BREW", "/", "GET,HEAD"),
    ] {
        let answered = answer(server.request(method, "ann", path)).await;
        answered.refused(405, "method_not_allowed", None);
        assert_eq!(answered.header("allow"), allow, "{method} {path}");
    }
    // Nobody can smuggle another method past it.
    let overridden = server.request("GET", "ann", "/api/conversation").header("x-http-method-override", "POST").header("x-method-override", "POST");
    answer(overridden).await.refused(405, "method_not_allowed", None);
    let run = server.accepted_in("ann", Some("c")).await;
    let overridden = server.request("GET", "ann", "/api/conversations/c?_method=DELETE").header("x-http-method-override", "DELETE");
    assert_eq!(answer(overridden).await.status, 200);
    assert_eq!(server.get("ann", &format!("/api/runs/{run}")).await.status, 200);
}
