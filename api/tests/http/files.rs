//! Files of runs: how they are asked for, how they are answered, and how wrong ones are refused.

use std::sync::Arc;

use quayside_shared::ids::RunId;
use quayside_shared::run::AttemptOutcome;
use quayside_shared::store::files::{Collected, LeftOut, RunFile};
use serde_json::{Value, json};

use crate::support::{Server, answer, server};

/// A run of ann that has ended and left these files.
async fn run_with(server: &Server, files: &[(&str, &[u8])]) -> RunId {
    let id = server.accepted("ann").await;
    let lease = server.claim(&id).await;
    let files = files.iter().map(|(path, content)| RunFile::new(path.parse().unwrap(), content.to_vec())).collect();
    let collected = Collected { files, skipped: [(LeftOut::Symlink, 2)].into(), truncated: true };
    server.store.put_files(&lease, Arc::new(collected)).await.unwrap().unwrap();
    server.finish(&lease).await;
    id
}

async fn nothing(server: &Server, id: &RunId) {
    let listed = server.get("ann", &format!("/api/runs/{id}/files")).await;
    assert_eq!((listed.status, listed.json()), (200, json!({"files": [], "skipped": {}, "truncated": false})));
}

#[tokio::test]
async fn files_are_listed_and_fetched() {
    let server = server().await;
    let id = run_with(&server, &[("a b/\"c\"\u{e9}.html", b"<script>"), ("empty", b"")]).await;
    let listed = server.get("ann", &format!("/api/runs/{id}/files")).await;
    let hash = |file: &Value| file["sha256"].as_str().unwrap().to_owned();
    let list = listed.json();
    assert_eq!((listed.status, &list["skipped"], &list["truncated"]), (200, &json!({"symlink": 2}), &json!(true)));
    assert_eq!(list["files"][0], json!({"path": "a b/\"c\"\u{e9}.html", "bytes": 8, "sha256": hash(&list["files"][0])}));
    assert_eq!(hash(&list["files"][1]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    for path in ["a%20b/%22c%22%C3%A9.html", "a%20b%2F%22c%22%C3%A9.html"] {
        let fetched = server.get("ann", &format!("/api/runs/{id}/files/{path}")).await;
        assert_eq!((fetched.status, fetched.text.as_str()), (200, "<script>"));
        for (name, value) in [
            ("content-type", "application/octet-stream"),
            ("content-disposition", "attachment; filename*=UTF-8''%22c%22%C3%A9.html"),
            ("x-content-type-options", "nosniff"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ("cache-control", "no-store"),
            ("etag", &format!("\"{}\"", hash(&list["files"][0]))),
        ] {
            assert_eq!(fetched.header(name), value, "{name}");
        }
    }
    let path = format!("/api/runs/{id}/files/empty");
    let known = server.request("GET", "ann", &path).header("if-none-match", format!("\"{}\"", hash(&list["files"][1])));
    let known = answer(known).await;
    assert_eq!((known.status, known.text.as_str()), (304, ""));
    assert_eq!(server.get("ann", &path).await.status, 200);
}

#[tokio::test]
async fn what_is_not_ones_own_is_not_there() {
    let server = server().await;
    let id = run_with(&server, &[("file", b"x")]).await;
    for path in [format!("/api/runs/{id}/files"), format!("/api/runs/{id}/files/file")] {
        server.get("bob", &path).await.refused(404, "not_found", None);
    }
    let unknown = RunId::random();
    let paths = [
        format!("/api/runs/{unknown}/files"),
        format!("/api/runs/{unknown}/files/file"),
        "/api/runs/../files/file".to_owned(),
        "/api/runs/x/files/file".to_owned(),
        format!("/api/runs/{id}/files/"),
        format!("/api/runs/{id}/files/File"),
        format!("/api/runs/{id}/files/file/"),
        format!("/api/runs/{id}/files//file"),
        format!("/api/runs/{id}/files/file/file"),
        format!("/api/runs/{id}/files/%2E%2E%2F%2E%2E%2Fetc%2Fpasswd"),
        format!("/api/runs/{id}/files/..%2f..%2fetc/passwd"),
        format!("/api/runs/{id}/files/%2Fetc%2Fpasswd"),
        format!("/api/runs/{id}/files/file%00"),
        format!("/api/runs/{id}/files/%FF%FE"),
        format!("/api/runs/{id}/files/%0d%0aX-Evil:%201"),
        format!("/api/runs/{id}/files/{}", "a/".repeat(500) + "b"),
        format!("/api/runs/{id}/files/{}", "x".repeat(5000)),
    ];
    for path in paths {
        let raw = server.raw(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nx-user-id: ann\r\nconnection: close\r\n\r\n").as_bytes()).await;
        assert!(raw.starts_with("HTTP/1.1 404"), "{path}: {raw}");
        assert!(!raw.to_lowercase().contains("x-evil"), "{path}: {raw}");
    }
}

#[tokio::test]
async fn a_run_has_no_files_before_its_end() {
    let server = server().await;
    let id = server.accepted("ann").await;
    nothing(&server, &id).await;
    let lease = server.claim(&id).await;
    let left = Collected { files: vec![RunFile::new("file".parse().unwrap(), b"x".to_vec())], ..Collected::default() };
    server.store.put_files(&lease, Arc::new(left)).await.unwrap().unwrap();
    nothing(&server, &id).await;
    server.get("ann", &format!("/api/runs/{id}/files/file")).await.refused(404, "not_found", None);
    server.end(&lease, AttemptOutcome::ExitNonzero).await;
    assert_eq!(server.get("ann", &format!("/api/runs/{id}/files/file")).await.status, 200);
}

#[tokio::test]
async fn a_message_brings_files() {
    let server = server().await;
    let body = json!({"message": "x", "files": [{"path": "b", "content": ""}, {"path": "a/c", "content": "AP8="}]});
    let accepted = answer(server.submission("ann", &body).header("idempotency-key", "k")).await;
    assert_eq!(accepted.status, 202, "{}", accepted.text);
    let id: RunId = accepted.json()["id"].as_str().unwrap().parse().unwrap();
    let stored = server.store.inputs(&id).await.unwrap();
    assert_eq!(stored, [RunFile::new("a/c".parse().unwrap(), vec![0, 255]), RunFile::new("b".parse().unwrap(), Vec::new())]);
    nothing(&server, &id).await;
    let again = answer(server.submission("ann", &body).header("idempotency-key", "k")).await;
    assert_eq!((again.status, again.json()["id"].as_str()), (202, Some(id.as_str())));
    let other = json!({"message": "x", "files": [{"path": "b", "content": ""}, {"path": "a/c", "content": "AP4="}]});
    answer(server.submission("ann", &other).header("idempotency-key", "k")).await.refused(422, "idempotency_key_reused", Some("Idempotency-Key"));
    for none in [json!({"message": "x", "files": []}), json!({"message": "x", "files": null})] {
        assert_eq!(server.submit("ann", &none).await.status, 202);
    }
    // 1 MiB in all, and one byte more.
    let half = "AAAA".repeat((512 << 10) / 3);
    let two = |end: &str| json!({"message": "x", "files": [{"path": "a", "content": format!("{half}AAA=")}, {"path": "b", "content": format!("{half}{end}")}]});
    assert_eq!(server.submit("ann", &two("AAA=")).await.status, 202);
    server.submit("ann", &two("AAAA")).await.refused(422, "invalid_request", Some("files"));
}

#[tokio::test]
async fn files_that_cannot_be_are_refused_by_name() {
    let server = server().await;
    let file = |path: &str| json!({"path": path, "content": "eA=="});
    let many: Vec<Value> = (0..21).map(|number| file(&format!("f{number}"))).collect();
    let half = "AAAA".repeat(200_000);
    let large: Vec<Value> = (0..2).map(|number| json!({"path": format!("f{number}"), "content": half})).collect();
    let long = "x".repeat(256);
    let mut cases = vec![
        (json!("x"), "files"),
        (json!({"path": "a"}), "files"),
        (json!(many), "files"),
        (json!(large), "files"),
        (json!([["a", "eA=="]]), "files[0]"),
        (json!([null]), "files[0]"),
        (json!([{"path": "a"}]), "files[0].content"),
        (json!([{"content": "eA=="}]), "files[0].path"),
        (json!([{"path": 1, "content": "eA=="}]), "files[0].path"),
        (json!([{"path": "a", "content": 1}]), "files[0].content"),
        (json!([{"path": "a", "content": "eA==", "mode": 7}]), "files[0].mode"),
        (json!([file("a"), file("a")]), "files[1].path"),
        (json!([file("a/b"), file("a")]), "files[0].path"),
        (json!([file("ok"), json!({"path": "b", "content": "e A="})]), "files[1].content"),
    ];
    for content in ["eA", "eA=", "!", "eA==\n", "e-_A"] {
        cases.push((json!([{"path": "a", "content": content}]), "files[0].content"));
    }
    for path in ["", "/etc/passwd", "../a", "a/../b", "a//b", "a/", ".", "a\nb", "a\u{0}", "\u{202e}a", "1/2/3/4/5/6/7/8/9", &long] {
        cases.push((json!([file(path)]), "files[0].path"));
    }
    for (files, field) in cases {
        let refused = server.submit("ann", &json!({"message": "x", "files": files})).await;
        assert_eq!(refused.status, 422, "{field}: {}", refused.text);
        refused.refused(422, "invalid_request", Some(field));
    }
    assert_eq!(server.stored().await, 0);
    let twice = br#"{"message":"x","files":[{"path":"a","path":"b","content":""}]}"#.to_vec();
    let sent = server.request("POST", "ann", "/api/conversation").header("content-type", "application/json").body(twice);
    answer(sent).await.refused(422, "invalid_request", Some("files[0].path"));
}
