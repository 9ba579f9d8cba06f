//! What operators may, and that nobody else may it.

use std::time::Duration;

use quayside_shared::ids::RunId;
use quayside_shared::queue::Undecodable;
use quayside_shared::store::Stray;
use serde_json::{Value, json};

use crate::support::{ADMIN_KEY, Answer, Server, answer, server, server_with};
use crate::tokens::mint::{FIRST, stage};

async fn admin(server: &Server, method: &str, path: &str) -> Answer {
    answer(server.request(method, "operator", path).bearer_auth(ADMIN_KEY)).await
}

/// A run of `user` that took three workers with it.
async fn poisoned(server: &Server, user: &str) -> RunId {
    let id = server.accepted_in(user, Some("c")).await;
    for _ in 0..3 {
        server.claim(&id).await;
        server.clock.advance(Duration::from_secs(60));
        server.store.sweep().await.unwrap();
        server.clock.advance(Duration::from_secs(60));
    }
    id
}

#[tokio::test]
async fn only_the_admin_key_opens_the_operators_routes() {
    let server = server().await;
    let id = poisoned(&server, "ann").await;
    let letter = format!("/api/admin/dead-letters/{id}");
    let routes = [
        ("GET", "/api/admin/dead-letters".to_owned()),
        ("GET", letter.clone()),
        ("POST", format!("{letter}/redrive")),
        ("GET", "/api/admin/workers".to_owned()),
    ];
    for (method, path) in &routes {
        let asked = || server.request(method, "ann", path);
        let nobody = server.client.request(method.parse().unwrap(), format!("http://{}{path}", server.address));
        answer(nobody).await.refused(401, "unauthenticated", Some("Authorization"));
        answer(asked()).await.refused(401, "unauthenticated", Some("Authorization"));
        for wrong in ["x", &ADMIN_KEY[1..], &format!("{ADMIN_KEY}x"), &ADMIN_KEY.to_uppercase(), "Bearer"] {
            answer(asked().bearer_auth(wrong)).await.refused(403, "forbidden", Some("Authorization"));
        }
        answer(asked().header("Authorization", ADMIN_KEY)).await.refused(403, "forbidden", Some("Authorization"));
        answer(asked().bearer_auth(ADMIN_KEY).bearer_auth(ADMIN_KEY)).await.refused(403, "forbidden", Some("Authorization"));
    }
    assert_eq!(server.store.dead_letter(&(&id).into()).await.unwrap().unwrap().redriven_as, None, "nothing was done");
    // The key makes nobody a user.
    let only_key = server.client.get(format!("http://{}/api/runs/{id}", server.address)).bearer_auth(ADMIN_KEY);
    answer(only_key).await.refused(401, "unauthenticated", Some("X-User-Id"));
}

#[tokio::test]
async fn without_a_key_the_routes_are_closed() {
    let server = server_with(|setup| setup.admin_key = None).await;
    admin(&server, "GET", "/api/admin/workers").await.refused(403, "forbidden", Some("Authorization"));
}

#[tokio::test]
async fn a_dead_letter_is_listed_shown_and_redriven_once() {
    let server = server().await;
    let id = poisoned(&server, "ann").await;
    let list = admin(&server, "GET", "/api/admin/dead-letters").await.json();
    assert_eq!((list["data"].as_array().unwrap().len(), &list["nextAfter"]), (1, &Value::Null));
    let letter = &list["data"][0];
    assert_eq!(letter["id"], id.as_str());
    assert_eq!((&letter["runId"], &letter["reason"], &letter["userId"]), (&json!(id.as_str()), &json!("poison"), &json!("ann")));
    assert_eq!((&letter["attempts"], &letter["redrivenAs"]), (&json!(3), &Value::Null));
    let path = format!("/api/admin/dead-letters/{id}");
    assert_eq!(admin(&server, "GET", &path).await.json(), *letter);

    let redriven = admin(&server, "POST", &format!("{path}/redrive")).await;
    assert_eq!(redriven.status, 202, "{}", redriven.text);
    let run = redriven.json();
    let new: RunId = run["id"].as_str().unwrap().parse().unwrap();
    assert_ne!(new, id, "a run ends once");
    assert_eq!(redriven.headers["location"], format!("/api/runs/{new}"));
    assert_eq!(
        (&run["status"], &run["message"], &run["userId"], &run["conversationId"]),
        (&json!("queued"), &json!("hello"), &json!("ann"), &json!("c"))
    );
    while server.announced().await != new {}
    assert_eq!(server.get("ann", &format!("/api/runs/{id}")).await.json()["status"], "failed", "its end stays");
    assert_eq!(admin(&server, "POST", &format!("{path}/redrive")).await.json()["id"], new.as_str(), "done twice, it is the same");
    assert_eq!(admin(&server, "GET", "/api/admin/dead-letters").await.json()["data"], json!([]));
    assert_eq!(admin(&server, "GET", &path).await.json()["redrivenAs"], new.as_str());
    server.finish(&server.claim(&new).await).await;
    assert_eq!(server.get("ann", &format!("/api/runs/{new}")).await.json()["status"], "completed");
}

#[tokio::test]
async fn what_has_no_run_cannot_be_redriven() {
    let server = server().await;
    let unknown = RunId::random();
    server.store.quarantine(Stray::UnknownRun(unknown.clone())).await.unwrap();
    let torn = Undecodable { message_id: "1".into(), reason: "because".into(), data: b"<b>".to_vec() };
    server.store.quarantine(Stray::Undecodable(torn)).await.unwrap();
    let list = admin(&server, "GET", "/api/admin/dead-letters").await.json();
    assert_eq!((&list["data"][0]["reason"], &list["data"][0]["data"]), (&json!("undecodable"), &json!("<b>")));
    assert_eq!((&list["data"][1]["reason"], &list["data"][1]["runId"]), (&json!("unknown_run"), &json!(unknown.as_str())));
    for letter in list["data"].as_array().unwrap() {
        let path = format!("/api/admin/dead-letters/{}/redrive", letter["id"].as_str().unwrap());
        admin(&server, "POST", &path).await.refused(409, "nothing_to_redrive", None);
    }
    // Deleted since.
    let id = poisoned(&server, "ann").await;
    answer(server.request("DELETE", "ann", "/api/conversations/c")).await;
    admin(&server, "POST", &format!("/api/admin/dead-letters/{id}/redrive")).await.refused(409, "nothing_to_redrive", None);
    for id in [RunId::random().as_str(), "x", "..", "%00"] {
        admin(&server, "GET", &format!("/api/admin/dead-letters/{id}")).await.refused(404, "not_found", None);
        admin(&server, "POST", &format!("/api/admin/dead-letters/{id}/redrive")).await.refused(404, "not_found", None);
    }
    admin(&server, "GET", "/api/admin/dead-letters?limit=0").await.refused(422, "invalid_request", Some("limit"));
    admin(&server, "GET", "/api/admin/dead-letters?after=x").await.refused(422, "invalid_request", Some("after"));
}

#[tokio::test]
async fn a_users_token_opens_nothing_of_the_operators() {
    let stage = stage().await;
    let asked = |bearer: &str| stage.request("GET", "/api/admin/workers", bearer);
    let ann = FIRST.token(&stage.claims("ann"));
    answer(asked(&ann)).await.refused(403, "forbidden", Some("Authorization"));
    answer(asked("forged")).await.refused(401, "unauthenticated", Some("Authorization"));
    assert_eq!(answer(asked(ADMIN_KEY)).await.status, 200);
    let as_user = answer(stage.request("GET", "/api/conversations", ADMIN_KEY)).await;
    as_user.refused(401, "unauthenticated", Some("Authorization"));
}
