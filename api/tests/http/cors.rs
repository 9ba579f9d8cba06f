//! Pages of other origins: the exact allow-list, and nobody else.

use crate::support::{answer, server, server_with};

const GOOD: &str = "https://app.example.org";

#[tokio::test]
async fn without_a_list_no_origin_is_allowed() {
    let server = server().await;
    for origin in [GOOD, "null", "http://localhost:3000"] {
        let answered = answer(server.request("GET", "ann", "/api/agents").header("origin", origin)).await;
        assert_eq!((answered.status, answered.header("access-control-allow-origin")), (200, ""));
        let preflight = server.client.request("OPTIONS".parse().unwrap(), server.url("/api/agents")).header("origin", origin);
        let preflight = answer(preflight.header("access-control-request-method", "POST").header("access-control-request-headers", "x-user-id")).await;
        assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (405, ""));
    }
}

#[tokio::test]
async fn the_listed_origin_is_allowed_and_its_look_alikes_are_not() {
    let server = server_with(|setup| setup.config.api.cors_origins = vec![GOOD.to_owned()]).await;
    let ask = async |origin: &str| answer(server.request("GET", "ann", "/api/agents").header("origin", origin)).await;
    let good = ask(GOOD).await;
    assert_eq!(good.header("access-control-allow-origin"), GOOD);
    assert!(good.header("vary").to_lowercase().contains("origin"));
    assert_eq!(good.header("access-control-allow-credentials"), "");
    let exposed = good.header("access-control-expose-headers").to_lowercase();
    for header in ["location", "retry-after", "idempotency-replayed", "preference-applied"] {
        assert!(exposed.contains(header), "{exposed}");
    }
    for evil in [
        "null",
        "https://evil.example",
        "https://app.example.org.evil.example",
        "https://evilapp.example.org",
        "http://app.example.org",
        "https://app.example.org:8443",
        "https://app.example.org/",
        "https://APP.example.org",
        "*",
        "",
    ] {
        let answered = ask(evil).await;
        assert_eq!((answered.status, answered.header("access-control-allow-origin")), (200, ""), "{evil}");
        assert!(answered.header("vary").to_lowercase().contains("origin"));
    }
    // A refusal can be read by the page as well.
    let refused = answer(server.client.get(server.url("/api/agents")).header("origin", GOOD)).await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, GOOD));
}

#[tokio::test]
async fn a_preflight_says_what_may_be_sent() {
    let server = server_with(|setup| setup.config.api.cors_origins = vec![GOOD.to_owned()]).await;
    let preflight = async |origin: &str| {
        let request = server.client.request("OPTIONS".parse().unwrap(), server.url("/api/conversation")).header("origin", origin);
        answer(request.header("access-control-request-method", "POST").header("access-control-request-headers", "x-user-id,content-type")).await
    };
    let good = preflight(GOOD).await;
    assert_eq!((good.status, good.header("access-control-allow-origin")), (200, GOOD));
    assert!(good.header("access-control-allow-headers").contains("x-user-id"));
    assert_eq!(good.header("access-control-allow-methods"), "GET,POST,DELETE");
    assert_eq!(good.header("access-control-allow-credentials"), "");
    assert_eq!(preflight("https://evil.example").await.header("access-control-allow-origin"), "");
}
