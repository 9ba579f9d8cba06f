//! Bodies that are wrong in every way: a clear refusal that names the field, and nothing stored.

use serde_json::{Value, json};

use crate::support::{Answer, Server, answer, server, server_with};

async fn post(server: &Server, body: impl Into<Vec<u8>>) -> Answer {
    answer(server.request("POST", "ann", "/api/conversation").header("content-type", "application/json").body(body.into())).await
}

#[tokio::test]
async fn broken_json_is_400() {
    let server = server().await;
    let deep = |open: &str, close: &str| format!("{{\"message\":\"x\",\"metadata\":{}{}}}", open.repeat(10_000), close.repeat(10_000)).into_bytes();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", b"".to_vec()),
        ("white space", b" \n ".to_vec()),
        ("a word", b"hello".to_vec()),
        ("cut off", b"{\"message\":\"x".to_vec()),
        ("trailing garbage", b"{\"message\":\"x\"} x".to_vec()),
        ("two objects", b"{\"message\":\"x\"}{\"message\":\"y\"}".to_vec()),
        ("trailing comma", b"{\"message\":\"x\",}".to_vec()),
        ("single quotes", b"{'message':'x'}".to_vec()),
        ("a comment", b"{\"message\":\"x\"/**/}".to_vec()),
        ("byte order mark", b"\xef\xbb\xbf{\"message\":\"x\"}".to_vec()),
        ("UTF-16", "{\"message\":\"x\"}".encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("invalid UTF-8 in a text", b"{\"message\":\"\xff\xfe\"}".to_vec()),
        ("overlong UTF-8", b"{\"message\":\"\xc0\xaf\"}".to_vec()),
        ("a surrogate in UTF-8", b"{\"message\":\"\xed\xa0\x80\"}".to_vec()),
        ("a lone surrogate", br#"{"message":"\ud800"}"#.to_vec()),
        ("surrogates the wrong way round", br#"{"message":"\udc00\ud800"}"#.to_vec()),
        ("a raw control character", b"{\"message\":\"a\x00b\"}".to_vec()),
        ("a number too large", b"{\"message\":\"x\",\"timeoutSeconds\":1e400}".to_vec()),
        ("not a number", b"{\"message\":\"x\",\"timeoutSeconds\":NaN}".to_vec()),
        ("a leading zero", b"{\"message\":\"x\",\"timeoutSeconds\":01}".to_vec()),
        ("deep arrays", deep("[", "]")),
        ("deep objects", deep("{\"a\":", "}")),
        ("deep from the root", "[".repeat(10_000).into_bytes()),
        ("wrong and broken", b"{\"message\":5,\"x\"".to_vec()),
    ];
    for (what, body) in cases {
        let refused = post(&server, body).await;
        assert_eq!(refused.status, 400, "{what}: {}", refused.text);
        refused.refused(400, "invalid_json", None);
    }
    assert_eq!(server.stored().await, 0);
}

#[tokio::test]
async fn json_that_says_the_wrong_thing_is_422_and_names_the_field() {
    let server = server().await;
    let long = |count: usize| "x".repeat(count);
    let pairs = |count: usize| Value::Object((0..count).map(|n| (format!("k{n}"), json!("v"))).collect());
    let mut cases: Vec<(Value, &str)> = vec![
        (json!([]), "body"),
        (json!(["x"]), "body"),
        (json!("x"), "body"),
        (json!(null), "body"),
        (json!(7), "body"),
        (json!({}), "message"),
        (json!({"Message": "x"}), "Message"),
        (json!({"message": null}), "message"),
        (json!({"message": 5}), "message"),
        (json!({"message": ["x"]}), "message"),
        (json!({"message": {"text": "x"}}), "message"),
        (json!({"message": ""}), "message"),
        (json!({"message": long((64 << 10) + 1)}), "message"),
        (json!({"message": "€".repeat((64 << 10) / 3 + 1)}), "message"),
        (json!({"message": "x", "metadata": []}), "metadata"),
        (json!({"message": "x", "metadata": "k=v"}), "metadata"),
        (json!({"message": "x", "metadata": {"k": 1}}), "metadata.k"),
        (json!({"message": "x", "metadata": {"k": null}}), "metadata.k"),
        (json!({"message": "x", "metadata": {"k": {"k": "v"}}}), "metadata.k"),
        (json!({"message": "x", "metadata": {"": "v"}}), "metadata"),
        (json!({"message": "x", "metadata": {"a\u{0}b": "v"}}), "metadata"),
        (json!({"message": "x", "metadata": {(long(65)): "v"}}), "metadata"),
        (json!({"message": "x", "metadata": {"k": long(513)}}), "metadata.k"),
        (json!({"message": "x", "metadata": {"k": "a\nb"}}), "metadata.k"),
        (json!({"message": "x", "metadata": {"k": "\u{85}"}}), "metadata.k"),
        (json!({"message": "x", "metadata": pairs(17)}), "metadata"),
        (json!({"message": "x", "timeoutSeconds": 121}), "timeoutSeconds"),
        (json!({"message": "x", "timeoutSeconds": 31, "agent": "echo"}), "timeoutSeconds"),
        (json!({"message": "x", "queueTtlSeconds": 604_801}), "queueTtlSeconds"),
        (json!({"message": "x", "agent": "nobody"}), "agent"),
        (json!({"message": "x", "agent": "../../etc/passwd"}), "agent"),
        (json!({"message": "x", "agent": "echo\u{0}"}), "agent"),
        (json!({"message": "x", "agent": ""}), "agent"),
        (json!({"message": "x", "agent": ["echo"]}), "agent"),
        (json!({"message": "x", "multitaskStrategy": "Enqueue"}), "multitaskStrategy"),
        (json!({"message": "x", "multitaskStrategy": ""}), "multitaskStrategy"),
        (json!({"message": "x", "multitaskStrategy": 1}), "multitaskStrategy"),
    ];
    for id in ["", " ", "a b", "a/b", "..", "ä", "a\u{0}b", "a\nb", "conv%5F1", "ｃonv", &long(65)] {
        cases.push((json!({"message": "x", "conversationId": id}), "conversationId"));
    }
    for field in ["timeoutSeconds", "queueTtlSeconds"] {
        for value in [json!(0), json!(-1), json!(1.5), json!("5"), json!(true), json!([1]), json!(1e9), json!(u64::MAX), json!(1e300)] {
            cases.push((json!({"message": "x", field: value}), field));
        }
    }
    // What only we decide, or what the replaced system let its callers say.
    for field in [
        "is_admin",
        "userId",
        "user_id",
        "id",
        "status",
        "state",
        "epoch",
        "image",
        "command",
        "cpus",
        "memory",
        "env",
        "network",
        "customId",
        "Message",
        "__proto__",
    ] {
        cases.push((json!({"message": "x", field: "y"}), field));
    }
    for (body, field) in &cases {
        let refused = post(&server, body.to_string()).await;
        assert_eq!(refused.status, 422, "{body:.100}: {}", refused.text);
        refused.refused(422, "invalid_request", Some(field));
    }
    assert_eq!(server.stored().await, 0);
}

#[tokio::test]
async fn a_key_that_is_there_twice_is_refused() {
    let server = server().await;
    for (body, field) in [
        (r#"{"message":"a","message":"b"}"#, "message"),
        (r#"{"message":"a","conversationId":"a","conversationId":"b"}"#, "conversationId"),
        (r#"{"message":"a","agent":null,"agent":"echo"}"#, "agent"),
        (r#"{"message":"a","timeoutSeconds":1,"timeoutSeconds":1}"#, "timeoutSeconds"),
        (r#"{"message":"a","\u006dessage":"b"}"#, "message"),
        (r#"{"message":"a","metadata":{"k":"1","k":"2"}}"#, "metadata"),
    ] {
        let refused = post(&server, body).await;
        assert_eq!(refused.status, 422, "{body}: {}", refused.text);
        refused.refused(422, "invalid_request", Some(field));
    }
    assert_eq!(server.stored().await, 0);
}

#[tokio::test]
async fn a_message_is_kept_byte_for_byte() {
    let server = server_with(|setup| setup.config.limits.queued_per_user = 1000).await;
    let largest = "x".repeat(64 << 10);
    for message in [
        "\u{0}",
        "a\u{0}b",
        "\r\n\t",
        "\u{2028}\u{2029}\u{85}",
        "\u{feff}x",
        "👩‍👩‍👧 한국어 \u{202e}",
        "</script>{{7*7}}${x}",
        " ",
        "\\u0000 \"",
        &largest,
    ] {
        // Written in both ways that JSON knows: as it is, and every character escaped.
        let escaped: String = message.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        for body in [json!({"message": message}).to_string(), format!("{{\"message\":\"{escaped}\"}}")] {
            let answered = post(&server, body).await;
            assert_eq!(answered.status, 202, "{}", answered.text);
            let id = answered.json()["id"].as_str().unwrap().parse().unwrap();
            assert_eq!(server.store.run(&id).await.unwrap().unwrap().message, message);
            assert_eq!(server.get("ann", &format!("/api/runs/{id}")).await.json()["message"], message);
        }
    }
}

#[tokio::test]
async fn limits_are_met_exactly() {
    let server = server_with(|setup| setup.config.limits.message = quayside_shared::config::HumanSize(10)).await;
    let metadata: Value = Value::Object((0..16).map(|n| (format!("{n:0>64}"), json!("ü".repeat(512)))).collect());
    assert_eq!(server.submit("ann", &json!({"message": "0123456789", "metadata": metadata, "timeoutSeconds": 120})).await.status, 202);
    server.submit("ann", &json!({"message": "0123456789a"})).await.refused(422, "invalid_request", Some("message"));
}

#[tokio::test]
async fn other_content_types_are_415() {
    let server = server().await;
    let send = async |headers: &[(&str, &str)]| {
        let mut request = server.request("POST", "ann", "/api/conversation").body(r#"{"message":"x"}"#);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request).await
    };
    for headers in [
        &[][..],
        &[("content-type", "")],
        &[("content-type", "text/plain")],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[("content-type", "multipart/form-data; boundary=x")],
        &[("content-type", "application/json; charset=utf-16")],
        &[("content-type", "application/json, text/plain")],
        &[("content-type", "application/json"), ("content-type", "text/plain")],
        &[("content-type", "application/json"), ("content-encoding", "gzip")],
        &[("content-type", "application/json"), ("content-encoding", "br")],
        &[("content-type", "application/json"), ("content-encoding", "identity"), ("content-encoding", "gzip")],
    ] {
        send(headers).await.refused(415, "unsupported_media_type", Some("Content-Type"));
    }
    assert_eq!(server.stored().await, 0);
    assert_eq!(send(&[("content-type", "application/JSON; charset=UTF-8"), ("content-encoding", "identity")]).await.status, 202);
}

#[tokio::test]
async fn what_is_repeated_to_the_client_is_short() {
    let server = server().await;
    let refused = post(&server, json!({"message": "x", "agent": {"x".repeat(60_000): 1}}).to_string()).await;
    assert!(refused.status == 422 && refused.text.len() < 2000, "{}", refused.text.len());
    let refused = post(&server, json!({"message": "x", "y".repeat(60_000): 1}).to_string()).await;
    assert!(refused.status == 422 && refused.text.len() < 2000, "{}", refused.text.len());
}

#[tokio::test]
async fn bodies_over_the_limit_are_413() {
    let server = server().await;
    let limit = 6 * (64 << 10) + (64 << 10);
    let padded = |length: usize| format!("{{\"message\":\"x\"{}}}", " ".repeat(length - 15));
    assert_eq!(post(&server, padded(limit)).await.status, 202);
    post(&server, padded(limit + 1)).await.refused(413, "body_too_large", None);
}
