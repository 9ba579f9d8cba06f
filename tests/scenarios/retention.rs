//! What is over is removed, and what is deleted leaves nothing behind.

use serde_json::{Value, json};

use crate::support::server::{Backend, Options, Server, id};
use crate::support::{emulators, eventually};

/// Everything that the store still holds of runs, replies, files and conversations, counted by table or collection.
async fn held(on: Backend, server: &Server, project: &str) -> Vec<(&'static str, usize)> {
    match on {
        Backend::Embedded => {
            let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
            let file = rusqlite::Connection::open_with_flags(server.data_dir().join("quayside.db"), flags).unwrap();
            let count = |table| file.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
            ["runs", "deltas", "conversations", "file_lists", "file_parts"].map(|table| (table, count(table))).to_vec()
        }
        Backend::Google => {
            let mut held = Vec::new();
            for collection in ["runs", "deltas", "final", "files", "fileParts", "conversations", "trash"] {
                let host = emulators::firestore().await.host();
                let url = format!("http://{host}/v1/projects/{project}/databases/(default)/documents:runQuery");
                let query = json!({"structuredQuery": {"from": [{"collectionId": collection, "allDescendants": true}]}});
                let found: Value = reqwest::Client::new().post(url).bearer_auth("owner").json(&query).send().await.unwrap().json().await.unwrap();
                held.push((collection, found.as_array().unwrap().iter().filter(|row| row.get("document").is_some()).count()));
            }
            held
        }
    }
}

async fn start(on: Backend, options: Options) -> (Server, String) {
    let project = emulators::project();
    let server = match on {
        Backend::Embedded => Server::start_with(on, options).await,
        Backend::Google => {
            let hosts = (emulators::pubsub().await.host(), emulators::firestore().await.host());
            Server::start_on_emulators(hosts, &project, options).await
        }
    };
    (server, project)
}

async fn until_nothing_is_held(on: Backend, server: &Server, project: &str) {
    eventually("an empty store", async || held(on, server, project).await.iter().all(|(_, count)| *count == 0).then_some(())).await;
}

async fn a_deleted_conversation_leaves_nothing(on: Backend) {
    let extra = "[agents.stating]\nimage = \"quayside/agent-python\"\ncommand = [\"sh\", \"-s\"]\ninput = \"text\"\noutput = \"events\"\n".to_owned();
    let (server, project) = start(on, Options { extra, ..Options::default() }).await;
    let user = server.user("u");
    let body = json!({"agent": "sh", "conversationId": "c", "message": "for word in 1 2 3; do echo $word; sleep 1; done; echo left > left",
        "files": [{"path": "came", "content": "YQ=="}]});
    let done = id(&user.submit(body).await);
    user.finished(&done).await;
    let of_files = |held: Vec<(&'static str, usize)>| held.into_iter().filter(|(what, _)| what.starts_with("file")).map(|(_, count)| count).collect();
    let counts: Vec<usize> = of_files(held(on, &server, &project).await);
    assert_eq!(counts, [2, 2], "a list and a part of what came, and of what was left");
    // A stated reply that differs from the streamed one and is long: on Google it has a place of its own.
    let stated = user.say_in(
        "c",
        "stating",
        "echo '{\"type\":\"delta\",\"text\":\"x\"}'; printf '{\"type\":\"result\",\"text\":\"'; head -c 100000 /dev/zero | tr '\\0' y; echo '\"}'",
    );
    let stated = stated.await;
    assert_eq!(user.finished(&stated).await["text"].as_str().unwrap().len(), 100_000);
    let running = user.say_in("c", "sh", "echo here; sleep 600").await;
    user.says(&running, "here").await;
    let waiting = user.say_in("c", "cat", "waits").await;
    assert!(held(on, &server, &project).await.iter().map(|(_, count)| count).sum::<usize>() > 8, "there is something to remove");
    let answer = user.request(reqwest::Method::DELETE, "/api/conversations/c").send().await.unwrap();
    assert_eq!(answer.status(), 204);
    for id in [&done, &stated, &running, &waiting] {
        assert_eq!(user.get(&format!("/api/runs/{id}")).send().await.unwrap().status(), 404, "at once");
    }
    until_nothing_is_held(on, &server, &project).await;
    eventually("no container", async || server.containers().is_empty().then_some(())).await;
}

async fn what_has_ended_is_removed_after_its_time(on: Backend) {
    let extra = "[limits]\nretention = \"4s\"\n".to_owned();
    let (server, project) = start(on, Options { extra, ..Options::default() }).await;
    let user = server.user("u");
    let answer = user.post("/api/conversation").header("Idempotency-Key", "k").json(&json!({"agent": "cat", "message": "x"}));
    let first = answer.send().await.unwrap().json::<Value>().await.unwrap();
    let ended = user.finished(first["id"].as_str().unwrap()).await;
    assert!(ended["expireAt"].as_str().unwrap() > ended["finishedAt"].as_str().unwrap(), "{ended}");
    let running = user.say("sh", "echo here; sleep 12; echo there").await;
    until_gone(&user, first["id"].as_str().unwrap()).await;
    let run = user.finished(&running).await;
    assert_eq!(run["text"], "here\nthere\n", "what runs stays, however long");
    until_gone(&user, &running).await;
    until_nothing_is_held(on, &server, &project).await;
    assert_eq!(user.get("/api/conversations").send().await.unwrap().json::<Value>().await.unwrap()["data"], json!([]));
}

async fn until_gone(user: &crate::support::server::User, id: &str) {
    eventually("the removal", async || (user.get(&format!("/api/runs/{id}")).send().await.unwrap().status() == 404).then_some(())).await;
}

super::on_both! {
    a_deleted_conversation_leaves_nothing,
    what_has_ended_is_removed_after_its_time,
}
