//! The database of a running server, and of one that shall start: locked by others, damaged, gone.

use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::server::{Backend, Options, Server, User};

async fn say(user: &User) -> (u16, Option<String>, Value) {
    let answer = user.post("/api/conversation").json(&json!({"agent": "cat", "message": "x"})).send().await.unwrap();
    let retry = answer.headers().get("Retry-After").map(|value| value.to_str().unwrap().to_owned());
    (answer.status().as_u16(), retry, answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_of_three_seconds_costs_nobody_anything() {
    let server = Server::start_with(Backend::Embedded, Options { lease: "6s", heartbeat: "500ms", ..Options::default() }).await;
    let user = server.user("u");
    let running = user.say("sh", "echo begun; sleep 4; echo ended").await;
    user.says(&running, "begun").await;
    let other = Connection::open(server.data_dir().join("quayside.db")).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let begun = Instant::now();
    let waiting = tokio::spawn({
        let user = user.clone();
        async move { say(&user).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!waiting.is_finished(), "nothing can be accepted meanwhile");
    assert_eq!(user.run(&running).await["status"], "in_progress", "reading goes on");
    other.execute_batch("ROLLBACK").unwrap();
    let (status, _, run) = waiting.await.unwrap();
    assert_eq!(status, 202, "{run}");
    assert!(begun.elapsed() >= Duration::from_secs(3));
    let run = user.finished(&running).await;
    assert_eq!(run["text"], "begun\nended\n");
    assert_eq!(run["attempts"].as_array().unwrap().len(), 1, "no lease was lost: {run}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_longer_lock_is_told_and_passes() {
    let server = Server::start_with(Backend::Embedded, Options { lease: "30s", heartbeat: "1s", ..Options::default() }).await;
    let user = server.user("u");
    let running = user.say("sh", "echo begun; sleep 4; echo ended").await;
    user.says(&running, "begun").await;
    let other = Connection::open(server.data_dir().join("quayside.db")).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    for (status, retry, problem) in <[_; 3]>::from(tokio::join!(say(&user), say(&user), say(&user))) {
        assert_eq!((status, problem["code"].as_str()), (503, Some("overloaded")), "{problem}");
        assert!(retry.unwrap().parse::<u64>().unwrap() >= 1);
    }
    let ready = user.get("/readyz").send().await.unwrap();
    assert!(ready.status() == 503 && ready.text().await.unwrap().contains("store"));
    assert_eq!(user.get("/livez").send().await.unwrap().status(), 200);
    other.execute_batch("ROLLBACK").unwrap();
    let run = user.finished(&running).await;
    assert_eq!((&run["text"], run["attempts"].as_array().unwrap().len()), (&json!("begun\nended\n"), 1), "{run}");
    assert_eq!(user.finished(&user.say("cat", "after").await).await["text"], "after");
    eventually("a green readiness", || async { Some(user.get("/readyz").send().await.unwrap()).filter(|answer| answer.status() == 200) }).await;
    assert!(server.log_text().contains("database is locked"), "in the log, in SQLite's words");
}

/// Refused writes, a readiness that names the store, one line in the log; reading and the process go on.
async fn assert_closed(server: &Server, known: &Value) {
    let user = server.user("u");
    let refused = eventually("a refusal", || async { Some(say(&user).await).filter(|(status, ..)| *status != 202) }).await;
    let (status, retry, problem) = refused;
    assert_eq!((status, problem["code"].as_str()), (503, Some("overloaded")), "{problem}");
    assert!(retry.is_some() && problem["detail"].as_str().unwrap().contains("damaged"), "{problem}");
    let ready = user.get("/readyz").send().await.unwrap();
    assert_eq!(ready.status(), 503);
    let ready: Value = ready.json().await.unwrap();
    let store = ready["checks"].as_array().unwrap().iter().find(|check| check["name"] == "store").unwrap();
    assert!(store["detail"].as_str().unwrap().contains("damaged"), "{ready}");
    for _ in 0..5 {
        assert_eq!(say(&user).await.0, 503, "it stays closed");
    }
    let said = server.log_text().lines().filter(|line| line.contains("nothing more is written to it")).count();
    assert_eq!(said, 1, "once, at error");
    assert!(server.log_text().contains("quayside restore FILE"));
    assert_eq!(user.get("/livez").send().await.unwrap().status(), 200);
    assert_eq!(&user.run(known["id"].as_str().unwrap()).await["id"], &known["id"], "reading goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_taken_away_ends_the_writing() {
    let server = Server::start(Backend::Embedded).await;
    let user = server.user("u");
    let known = user.finished(&user.say("cat", "x").await).await;
    let path = server.data_dir().join("quayside.db");
    std::fs::rename(&path, path.with_extension("gone")).unwrap();
    assert_closed(&server, &known).await;
    assert!(!path.exists(), "no new one was begun");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_is_met_ends_the_writing_and_the_next_start() {
    let mut server = Server::start(Backend::Embedded).await;
    let user = server.user("u");
    let known = user.finished(&user.say("cat", "x").await).await;
    server.kill();
    // All into the database: what a page holds is on disk, and a new process has it in no cache.
    let path = server.data_dir().join("quayside.db");
    let emptied = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
    assert_eq!(Connection::open(&path).unwrap().query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], emptied).unwrap(), 0);
    server.restart().await;
    let root: u64 = Connection::open(&path)
        .unwrap()
        .query_row("SELECT rootpage FROM sqlite_master WHERE name = 'conversations_of_user'", [], |row| row.get(0))
        .unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0xa5; 4096], (root - 1) * 4096).unwrap();
    // The first submission of the new process is the first that needs the page.
    assert_closed(&server, &known).await;
    assert_eq!(server.terminate().await, 0, "it ends in order");

    let before = std::fs::read(&path).unwrap();
    let output = server.command().arg("up").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in ["quayside.db is damaged", "quayside doctor", "quayside restore FILE", "docs/operations.md"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    assert!(std::fs::read(&path).unwrap() == before, "nothing was changed");
}
