//! What was put aside, as an operator meets it.

use std::process::{Command, Output};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use quayside_shared::ids::RunId;
use serde_json::{Value, json};

use crate::support::server::{Backend, Options, Server};
use crate::support::{emulators, eventually};

/// `quayside dead-letters …`: on the server's own machine it finds the key by itself.
async fn dead_letters(server: &Server, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quayside"));
    command.env("QUAYSIDE_LOG", "warn").args(["dead-letters", "--url", &server.url]).args(arguments);
    if server.data_dir().join("admin.key").exists() {
        command.arg("--config").arg(&server.config);
    } else {
        command.env("QUAYSIDE_ADMIN_KEY", server.admin_key());
    }
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn rows(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn a_poison_run_is_listed_and_redriven(on: Backend) {
    let mut server = Server::start_with(on, Options { max_attempts: 1, lease: "2s", heartbeat: "500ms", ..Options::default() }).await;
    let none = dead_letters(&server, &["list"]).await;
    assert_eq!((none.status.code(), none.stdout.as_slice()), (Some(0), &b""[..]), "{}", String::from_utf8_lossy(&none.stderr));
    let user = server.user("u");
    let run = user.submit(json!({"agent": "sh", "message": "echo here; sleep 3", "conversationId": "c", "metadata": {"k": "v"}})).await;
    let id = run["id"].as_str().unwrap();
    user.says(id, "here").await;
    server.kill();
    server.restart().await;
    let user = server.user("u");
    let ended = user.finished(id).await;
    assert_eq!((&ended["status"], &ended["error"]["code"]), (&json!("failed"), &json!("poison")), "{ended}");

    let listed = rows(&dead_letters(&server, &["list", "--json"]).await);
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((&listed[0]["id"], &listed[0]["reason"]), (&json!(id), &json!("poison")));
    let shown = dead_letters(&server, &["show", id]).await;
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.contains(id) && text.contains("worker") && !text.contains("echo here"), "{text}");
    let redriven = rows(&dead_letters(&server, &["redrive", "--json", id]).await);
    let new = redriven[0]["id"].as_str().unwrap();
    let done = user.finished(new).await;
    assert_eq!((&done["status"], &done["text"], &done["metadata"]), (&json!("completed"), &json!("here\n"), &json!({"k": "v"})), "{done}");
    assert_eq!(rows(&dead_letters(&server, &["list", "--json"]).await), Vec::<Value>::new());
    assert_eq!(user.run(id).await, ended, "its end stays");

    let unknown = dead_letters(&server, &["redrive", RunId::random().as_str()]).await;
    assert_eq!(unknown.status.code(), Some(1));
    let refused = dead_letters(&server, &["list", "--admin-key", "wrong"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("admin key"), "{refused:?}");
    assert_eq!(refused.status.code(), Some(1));
}

async fn workers_are_listed_with_what_they_do(on: Backend) {
    let mut server = Server::start_with(on, Options { lease: "2s", heartbeat: "500ms", ..Options::default() }).await;
    let key = server.admin_key();
    let user = server.user("u");
    let workers = async || {
        let answer = user.get("/api/admin/workers").bearer_auth(&key).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.json::<Value>().await.unwrap()["data"].as_array().unwrap().clone()
    };
    let run = user.say("sh", "echo here; sleep 600").await;
    user.says(&run, "here").await;
    let listed = eventually("a busy worker", async || {
        let listed = workers().await;
        (listed.iter().map(|worker| worker["busy"].as_u64().unwrap()).sum::<u64>() == 1).then_some(listed)
    })
    .await;
    assert_eq!(listed.len(), if on == Backend::Google { 2 } else { 1 });
    assert!(listed.iter().all(|worker| worker["status"] == "active"), "{listed:?}");
    assert_eq!(listed.iter().map(|worker| worker["slots"].as_u64().unwrap()).sum::<u64>(), 4);
    let attempt = &user.run(&run).await["attempts"][0];
    assert!(listed.iter().any(|worker| worker["id"] == attempt["worker"] && worker["busy"] == 1));
    if on == Backend::Google {
        server.kill_worker();
        eventually("a lost one", async || workers().await.iter().any(|worker| worker["status"] == "lost").then_some(())).await;
    }
    user.cancel(&run).await;
    user.finished(&run).await;
}

super::on_both! {
    a_poison_run_is_listed_and_redriven,
    workers_are_listed_with_what_they_do,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_strangers_are_put_aside_and_nothing_stops() {
    let project = emulators::project();
    let pubsub = emulators::pubsub().await.host();
    let server = Server::start_on_emulators((pubsub, emulators::firestore().await.host()), &project, Options::default()).await;
    let unknown = RunId::random();
    let http = reqwest::Client::new();
    for data in [&b"not a run"[..], unknown.as_str().as_bytes(), b"\xff\xfe\0"] {
        let data = BASE64_STANDARD.encode(data);
        let url = format!("http://{pubsub}/v1/projects/{project}/topics/runs:publish");
        let answer = http.post(url).json(&json!({"messages": [{"data": data}]})).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    let listed = eventually("three dead letters", async || {
        let listed = rows(&dead_letters(&server, &["list", "--json"]).await);
        (listed.len() == 3).then_some(listed)
    })
    .await;
    let mut reasons: Vec<_> = listed.iter().map(|letter| letter["reason"].as_str().unwrap()).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["undecodable", "undecodable", "unknown_run"]);
    assert!(listed.iter().any(|letter| letter["runId"] == unknown.as_str()));
    assert!(listed.iter().any(|letter| letter["data"] == "not a run"), "{listed:?}");
    assert!(listed.iter().any(|letter| letter["data"] == r"\xff\xfe\x00"), "{listed:?}");
    // The next run is none the worse for it, and nothing comes again.
    let user = server.user("u");
    assert_eq!(user.finished(&user.say("cat", "x").await).await["text"], "x");
    let redriven = dead_letters(&server, &["redrive", unknown.as_str()]).await;
    assert_eq!(redriven.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&redriven.stderr).contains("no run to try again"), "{redriven:?}");
    let log = std::fs::read_to_string(&server.log).unwrap();
    assert_eq!(log.matches("it goes to the dead letters").count(), 3, "each once");
}
