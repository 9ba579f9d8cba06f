//! Lists, pages, and deletion.

use serde_json::{Value, json};

use crate::support::{answer, server};

#[tokio::test]
async fn a_conversation_is_an_ordered_list_of_runs() {
    let server = server().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let run = server.submit("ann", &json!({"message": format!("message {n}"), "conversationId": "c"})).await.json();
        ids.push(run["id"].clone());
    }
    let conversation = server.get("ann", "/api/conversations/c").await.json();
    assert_eq!((&conversation["id"], &conversation["title"]), (&json!("c"), &json!("message 0")));
    assert_eq!((&conversation["runCount"], &conversation["activeRuns"]), (&json!(5), &json!(5)));
    assert_eq!(conversation.as_object().unwrap().len(), 6);

    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = server.get("ann", &format!("/api/conversations/c/runs?limit=2{after}")).await.json();
        seen.extend(page["data"].as_array().unwrap().iter().map(|run| run["id"].clone()));
        match page["nextAfter"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ids);
}

#[tokio::test]
async fn the_list_has_the_most_recent_first_in_pages() {
    let server = server().await;
    for n in 0..5 {
        server.accepted_in("ann", Some(&format!("c{n}"))).await;
        server.clock.advance(std::time::Duration::from_secs(1));
    }
    server.accepted_in("bob", Some("bobs")).await;
    let page = server.get("ann", "/api/conversations?limit=3").await.json();
    let names = |page: &Value| page["data"].as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&page), ["c4", "c3", "c2"]);
    let next = server.get("ann", &format!("/api/conversations?limit=3&after={}", page["nextAfter"].as_str().unwrap())).await.json();
    assert_eq!((names(&next), &next["nextAfter"]), (vec!["c1".to_owned(), "c0".to_owned()], &Value::Null));
    assert_eq!(names(&server.get("carol", "/api/conversations").await.json()), Vec::<String>::new());
}

#[tokio::test]
async fn wrong_pages_are_refused_by_name() {
    let server = server().await;
    server.accepted_in("ann", Some("c")).await;
    for list in ["/api/conversations", "/api/conversations/c/runs"] {
        for limit in ["0", "101", "-1", "1.5", "ten", "", "99999999999999999999", "+5"] {
            server.get("ann", &format!("{list}?limit={}", limit.replace('+', "%2B"))).await.refused(422, "invalid_request", Some("limit"));
        }
        server.get("ann", &format!("{list}?limit=1&limit=2")).await.refused(422, "invalid_request", Some("limit"));
        for after in ["x", "-1", "%00", "1%20OR%201=1", "'", &"9".repeat(3000)] {
            server.get("ann", &format!("{list}?after={after}")).await.refused(422, "invalid_request", Some("after"));
        }
        server.get("ann", &format!("{list}?after=1&after=2")).await.refused(422, "invalid_request", Some("after"));
        assert_eq!(server.get("ann", &format!("{list}?unknown=1&limit=100")).await.status, 200);
    }
}

#[tokio::test]
async fn deleting_cancels_and_hides_everything() {
    let server = server().await;
    let run = server.accepted_in("ann", Some("c")).await;
    let other = server.accepted_in("ann", Some("d")).await;
    let delete = async |path: &str| answer(server.request("DELETE", "ann", path)).await;
    let gone = delete("/api/conversations/c").await;
    assert_eq!((gone.status, gone.text.as_str()), (204, ""));
    for path in ["/api/conversations/c", "/api/conversations/c/runs", &format!("/api/runs/{run}"), &format!("/api/runs/{run}/events")] {
        server.get("ann", path).await.refused(404, "not_found", None);
    }
    delete("/api/conversations/c").await.refused(404, "not_found", None);
    assert_eq!(server.get("ann", &format!("/api/runs/{other}")).await.status, 200);
    // The name is free again.
    server.accepted_in("ann", Some("c")).await;
    assert_eq!(server.get("ann", "/api/conversations/c").await.json()["runCount"], 1);
}
