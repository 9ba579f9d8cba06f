//! The service's own routes, its files and its document.

use std::sync::Arc;

use futures::FutureExt;
use quayside_api::Check;
use serde_json::{Value, json};

use crate::support::{Answer, Server, answer, server, server_with};

async fn open(server: &Server, path: &str, accept: &str) -> Answer {
    answer(server.client.get(server.url(path)).header("accept", accept)).await
}

#[tokio::test]
async fn the_root_is_json_for_programs_and_the_page_for_browsers() {
    let server = server().await;
    let root = open(&server, "/", "*/*").await;
    assert_eq!((root.status, root.json()), (200, json!({"status": "ok", "service": "api-server"})));
    assert_eq!(root.header("content-security-policy"), "default-src 'none'; frame-ancestors 'none'");
    assert_eq!((root.header("vary"), root.header("x-content-type-options")), ("Accept", "nosniff"));

    let page = open(&server, "/", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    assert!(page.text.starts_with("<!doctype html>") || page.text.starts_with("<!DOCTYPE html>"));
    let policy = page.header("content-security-policy");
    for part in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"] {
        assert!(policy.split("; ").any(|found| found == part), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'));
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("x-frame-options", "DENY"),
        ("vary", "Accept"),
        ("cache-control", "no-cache"),
    ] {
        assert_eq!(page.header(name), value);
    }
    let again = answer(server.client.get(server.url("/")).header("accept", "text/html").header("if-none-match", page.header("etag"))).await;
    assert_eq!((again.status, again.text.as_str()), (304, ""));
}

#[tokio::test]
async fn the_pages_files_have_their_types_and_nothing_comes_from_elsewhere() {
    let server = server().await;
    let page = open(&server, "/", "text/html").await.text;
    let files: Vec<&str> = page.split('"').filter(|text| text.starts_with("/web/")).collect();
    assert!(files.len() >= 3);
    for path in files {
        let file = open(&server, path, "*/*").await;
        let expected = match path.rsplit('.').next().unwrap() {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            other => panic!("{other}"),
        };
        assert_eq!((file.status, file.header("content-type"), file.header("x-content-type-options")), (200, expected, "nosniff"), "{path}");
        assert!(file.header("content-security-policy").starts_with("default-src 'none'"));
    }
    for elsewhere in ["src=\"http", "href=\"http", "src=\"//", "<style", "onclick="] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
}

#[tokio::test]
async fn health_names_what_fails() {
    let healthy = server().await;
    assert_eq!(open(&healthy, "/livez", "*/*").await.status, 200);
    let ready = open(&healthy, "/readyz", "*/*").await;
    assert_eq!((ready.status, &ready.json()["status"]), (200, &json!("ok")));
    assert_eq!(ready.json()["checks"][0], json!({"name": "store", "ok": true, "detail": null}));
    healthy.drain.cancel();
    let draining = open(&healthy, "/readyz", "*/*").await;
    assert_eq!(draining.status, 503);
    assert!(draining.json()["checks"].as_array().unwrap().iter().any(|check| check["name"] == "drain" && check["ok"] == false));
    assert_eq!(open(&healthy, "/livez", "*/*").await.status, 200);

    let sick = server_with(|setup| {
        setup.checks.push(Check { name: "engine", check: Arc::new(|| async { Err("no engine answers".to_owned()) }.boxed()) });
        setup.checks.push(Check { name: "stuck", check: Arc::new(|| std::future::pending().boxed()) });
    })
    .await;
    let ready = open(&sick, "/readyz", "*/*").await;
    assert_eq!(ready.status, 503);
    let failing: Vec<Value> =
        ready.json()["checks"].as_array().unwrap().iter().filter(|check| check["ok"] == false).map(|check| check["name"].clone()).collect();
    assert_eq!(failing, ["engine", "stuck"]);
    assert!(ready.text.contains("no engine answers"));
}

#[tokio::test]
async fn a_panic_is_one_answer_and_no_more() {
    let server = server_with(|setup| setup.checks.push(Check { name: "boom", check: Arc::new(|| panic!("the secret is 42")) })).await;
    let answered = open(&server, "/readyz", "*/*").await;
    answered.refused(500, "internal", None);
    assert!(!answered.text.contains("42"));
    assert_eq!(open(&server, "/livez", "*/*").await.status, 200);
}

#[tokio::test]
async fn metrics_are_text() {
    let server = server().await;
    let metrics = open(&server, "/metrics", "*/*").await;
    assert_eq!((metrics.status, metrics.text.as_str()), (200, "quayside_up 1\n"));
    assert!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"));
}

#[tokio::test]
async fn the_documentation_works_without_the_internet() {
    let server = server().await;
    let moved = open(&server, "/docs", "text/html").await;
    assert_eq!((moved.status, moved.header("location")), (308, "/docs/"));
    let docs = open(&server, "/docs/", "text/html").await;
    assert_eq!((docs.status, docs.header("content-type")), (200, "text/html"));
    assert!(docs.header("content-security-policy").contains("script-src 'self';"));
    // Every file it names is here; a script in the page itself would be stopped by its policy.
    let named: Vec<&str> = docs.text.split('"').filter(|text| text.starts_with("./") || text.ends_with(".js") || text.ends_with(".css")).collect();
    assert!(named.len() >= 4, "{named:?}");
    for name in named {
        assert!(!name.contains("//"), "{name}");
        assert_eq!(open(&server, &format!("/docs/{}", name.trim_start_matches("./")), "*/*").await.status, 200, "{name}");
    }
    assert!(!docs.text.contains("<script>"));
    let start = open(&server, "/docs/swagger-initializer.js", "*/*").await;
    assert!(start.text.contains("/openapi.json") && start.text.contains("\"validatorUrl\": \"none\""), "{}", start.text);
    assert!(!start.text.contains("petstore"));
}

#[tokio::test]
async fn the_document_has_every_route_with_its_refusals() {
    let server = server().await;
    let answered = open(&server, "/openapi.json", "*/*").await;
    let document = answered.json();
    assert_eq!((answered.header("content-type"), &document["openapi"]), ("application/json", &json!("3.1.0")));
    let mut routes: Vec<String> = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            routes.push(format!("{method} {path}"));
            for (status, response) in operation["responses"].as_object().unwrap() {
                if status.starts_with(['4', '5']) && path != "/readyz" {
                    let schema = &response["content"]["application/problem+json"]["schema"]["$ref"];
                    assert_eq!(schema, "#/components/schemas/Problem", "{method} {path} {status}");
                }
                if ["429", "503"].contains(&status.as_str()) && path != "/readyz" {
                    assert!(response["headers"]["Retry-After"].is_object(), "{method} {path} {status}");
                }
            }
            let secured = operation.get("security").is_some();
            assert_eq!(secured, path.starts_with("/api/"), "{path}");
            assert_eq!(operation["responses"].get("401").is_some(), secured, "{path}");
        }
    }
    routes.sort();
    assert_eq!(
        routes,
        [
            "delete /api/conversations/{id}",
            "get /",
            "get /api/admin/dead-letters",
            "get /api/admin/dead-letters/{id}",
            "get /api/admin/workers",
            "get /api/agents",
            "get /api/conversations",
            "get /api/conversations/{id}",
            "get /api/conversations/{id}/runs",
            "get /api/runs/{id}",
            "get /api/runs/{id}/events",
            "get /api/runs/{id}/files",
            "get /api/runs/{id}/files/{path}",
            "get /livez",
            "get /metrics",
            "get /readyz",
            "post /api/admin/dead-letters/{id}/redrive",
            "post /api/conversation",
            "post /api/runs/{id}/cancel",
        ]
    );
    let request = &document["components"]["schemas"]["SubmitRequest"];
    assert_eq!((&request["additionalProperties"], &request["required"]), (&json!(false), &json!(["message"])));
    assert_eq!(request["properties"]["message"]["maxLength"], 64 << 10);
    assert_eq!(request["properties"]["timeoutSeconds"]["maximum"], 120);
    assert_eq!(request["properties"]["agent"]["enum"], json!(["echo", "python", null]));
    assert_eq!(document["components"]["securitySchemes"]["user"]["name"], "X-User-Id");
    // Its example works.
    let example = &request["example"];
    assert_eq!(server.submit("ann", example).await.status, 202);
    // Every status of the domain is in the schema.
    for status in quayside_shared::run::Status::ALL {
        assert!(document["components"]["schemas"]["Status"]["enum"].as_array().unwrap().contains(&json!(status.as_str())));
    }
}
