//! What dies, freezes, drains or comes twice.

use std::process::Command;
use std::time::{Duration, Instant};

use quayside_shared::clock::{Clock, SystemClock};
use quayside_shared::queue::{Message, Queue};
use serde_json::json;

use crate::support::eventually;
use crate::support::server::{Backend, Options, Server, docker, is_terminal};

async fn nothing_accepted_is_lost_by_kill_9(on: Backend) {
    // One run may be hit by all four kills; what three do to it is another test's business.
    let mut server = Server::start_with(on, Options { max_attempts: 10, ..Options::default() }).await;
    let mut accepted = Vec::new();
    for round in 0..4_u64 {
        let user = server.user("u");
        for number in 0..5 {
            accepted.push(user.say("sh", &format!("echo {round}.{number}")).await);
        }
        // At another moment of the runs' life each time: queued, starting, running, finishing.
        tokio::time::sleep(Duration::from_millis(round * 170)).await;
        server.kill();
        server.restart().await;
    }
    let user = server.user("u");
    for (index, id) in accepted.iter().enumerate() {
        let run = user.finished(id).await;
        assert_eq!(run["status"], "completed", "{run}");
        assert_eq!(run["text"], format!("{}.{}\n", index / 5, index % 5));
        let finished = run["attempts"].as_array().unwrap().iter().filter(|attempt| attempt["outcome"] == "finished").count();
        assert_eq!(finished, 1, "one visible end: {run}");
    }
    eventually("an empty host", || async { server.containers().is_empty().then_some(()) }).await;
}

async fn a_killed_attempt_is_redone_and_its_container_removed(on: Backend) {
    let mut server = Server::start(on).await;
    let run = server.user("u").say("sh", "echo begun; sleep 3; echo ended").await;
    server.user("u").says(&run, "begun").await;
    let old = server.containers();
    assert_eq!(old.len(), 1);
    server.kill();
    assert_eq!(docker(&["ps", "-q", "--no-trunc"]).lines().filter(|line| line.starts_with(&old[0])).count(), 1, "it outlives the process");
    server.restart().await;
    let user = server.user("u");
    let ended = user.finished(&run).await;
    assert_eq!((&ended["status"], &ended["text"]), (&json!("completed"), &json!("begun\nended\n")), "the reply starts over: {ended}");
    let outcomes: Vec<_> = ended["attempts"].as_array().unwrap().iter().map(|attempt| attempt["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["worker_lost", "finished"]);
    assert!(!docker(&["ps", "-aq", "--no-trunc"]).contains(&old[0]), "the old container is gone");
}

async fn a_cancellation_survives_kill_9(on: Backend) {
    let mut server = Server::start(on).await;
    let user = server.user("u");
    let run = user.say("sh", "echo here; sleep 600").await;
    user.says(&run, "here").await;
    // Stopped, so that it cannot act on the cancellation before it is killed.
    let pid = server.pid().to_string();
    let cancelled = tokio::spawn({
        let user = user.clone();
        let run = run.clone();
        async move { user.cancel(&run).await }
    });
    assert_eq!(cancelled.await.unwrap()["status"], "cancelling");
    Command::new("kill").args(["-STOP", &pid]).status().unwrap();
    server.kill();
    server.restart().await;
    let ended = server.user("u").finished(&run).await;
    assert_eq!(ended["status"], "cancelled", "{ended}");
    assert_eq!(docker(&["ps", "-q", "--filter", &format!("label=dev.quayside.run={run}")]).trim(), "");
}

async fn a_frozen_worker_loses_its_lease_and_stays_silent(on: Backend) {
    let lease = Duration::from_secs(7);
    let server = Server::start_with(on, Options { lease: "7s", heartbeat: "1s", ..Options::default() }).await;
    let user = server.user("u");
    // The first attempt goes on for longer than the second, which begins when a lease has run out, takes for all.
    let later = SystemClock.now() + lease;
    let run = user.say("sh", &format!("if [ $(date +%s) -lt {} ]; then echo begun; sleep 60; fi; echo ended", later.as_millis() / 1000)).await;
    user.says(&run, "begun").await;
    let (place, container) = server.place_of(&run).expect("its container");
    server.signal(place, "STOP");
    let elsewhere = match on {
        // Nobody else is there: it sleeps for longer than its lease.
        Backend::Embedded => {
            tokio::time::sleep(lease + Duration::from_secs(1)).await;
            None
        }
        // Another worker takes the run over and ends it.
        Backend::Google => Some(user.finished(&run).await),
    };
    let lives = || docker(&["ps", "-aq", "--no-trunc"]).lines().any(|id| id == container);
    assert!(docker(&["ps", "-q", "--no-trunc"]).contains(&container), "it runs, and who could kill it is frozen");
    server.signal(place, "CONT");
    let woken = Instant::now();
    eventually("the end of the container", || async { (!lives()).then_some(()) }).await;
    assert!(woken.elapsed() < Duration::from_secs(5), "{:?}", woken.elapsed());
    let ended = user.finished(&run).await;
    assert_eq!((&ended["status"], &ended["text"]), (&json!("completed"), &json!("ended\n")), "{ended}");
    let outcomes: Vec<_> = ended["attempts"].as_array().unwrap().iter().map(|attempt| attempt["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["worker_lost", "finished"]);
    eventually("an empty host", || async { server.containers().is_empty().then_some(()) }).await;
    eventually("its word", || async { (server.logged("the lease was lost") > 0).then_some(()) }).await;
    if let Some(elsewhere) = elsewhere {
        assert_eq!(user.run(&run).await, elsewhere, "the woken worker wrote nothing");
    }
    // It works on, and has said it once.
    assert_eq!(user.finished(&user.say("cat", "x").await).await["text"], "x");
    assert_eq!(server.logged("the lease was lost"), 1, "{}", server.log_text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doubled_message_runs_once() {
    let mut server = Server::start(Backend::Embedded).await;
    let run = server.user("u").say("sh", "echo once; sleep 1").await;
    let done = server.user("u").finished(&server.user("u").say("cat", "x").await).await;
    server.user("u").reaches_or_ends(&run, "in_progress").await;
    server.kill();
    // Doubles of a finished run, of a running one, and one of a run that nobody knows, put in behind the process's back.
    {
        let database = eventually("the database", || async { quayside_shared::sqlite::Database::open(server.data_dir()).ok() }).await;
        let queue = quayside_shared::queue::sqlite::SqliteQueue::open(database.clone()).await.unwrap();
        let unknown = quayside_shared::ids::RunId::random();
        let mut held = Vec::new();
        for id in [run.parse().unwrap(), done["id"].as_str().unwrap().parse().unwrap(), unknown] {
            let message = Message::new(id);
            for _ in 0..5 {
                queue.publish(std::slice::from_ref(&message)).await.unwrap();
                // Delivered and not acknowledged: the next publish is a row of its own, and all of them stay.
                held.push(queue.receive().await.unwrap());
            }
        }
    }
    server.restart_when_free().await;
    let user = server.user("u");
    let ended = user.finished(&run).await;
    assert_eq!((&ended["status"], &ended["text"]), (&json!("completed"), &json!("once\n")));
    assert!(ended["attempts"].as_array().unwrap().len() <= 2, "the killed attempt and one more: {ended}");
    assert_eq!(user.run(done["id"].as_str().unwrap()).await, done, "a finished run is not touched");
    let listed = user.get("/api/admin/dead-letters").bearer_auth(server.admin_key()).send().await.unwrap().json::<serde_json::Value>().await.unwrap();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1, "the unknown one is put aside once: {listed}");
    assert_eq!(listed["data"][0]["reason"], "unknown_run");
}

async fn sigterm_finishes_or_hands_back(on: Backend) {
    let mut server = Server::start_with(on, Options { drain: "6s", ..Options::default() }).await;
    let user = server.user("u");
    let short = user.say("sh", "echo short; sleep 1").await;
    let long = user.say("sh", "echo long; sleep 600").await;
    let queued = user.say("cat", "queued").await;
    user.says(&short, "short").await;
    user.says(&long, "long").await;
    assert_eq!(server.terminate().await, 0, "drained");
    assert!(server.containers().is_empty(), "nothing is left running");
    server.restart().await;
    let user = server.user("u");
    assert_eq!(user.run(&short).await["attempts"].as_array().unwrap().len(), 1, "what could finish did");
    assert_eq!(user.finished(&queued).await["status"], "completed");
    let run = user.reaches(&long, "in_progress").await;
    assert_eq!((&run["attempts"][0]["outcome"], &run["attempts"][0]["counted"]), (&json!("drained"), &json!(false)));
    user.cancel(&long).await;
    assert!(is_terminal(&user.finished(&long).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_others_are_left_alone() {
    let name = format!("quayside-test-foreign-{}", std::process::id());
    docker(&[
        "run",
        "-d",
        "--rm",
        "--network=none",
        "--name",
        &name,
        "--label",
        "dev.quayside.instance=somebody-else",
        "quayside/agent-python",
        "sleep",
        "300",
    ]);
    let server = Server::start(Backend::Embedded).await;
    let user = server.user("u");
    user.finished(&user.say("cat", "x").await).await;
    let alive = docker(&["ps", "-q", "--filter", &format!("name={name}")]);
    docker(&["rm", "-f", &name]);
    assert_ne!(alive.trim(), "", "only our own containers are touched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_engine_runs_wait_and_readiness_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let extra = format!("[runner]\ndocker_host = \"unix://{}/no.sock\"\n", folder.path().display());
    let server = Server::start_unready(Backend::Embedded, Options { extra, ..Options::default() }).await;
    let user = server.user("u");
    let run = user.say("cat", "x").await;
    let ready = eventually("a red readiness", || async {
        let answer = user.get("/readyz").send().await.ok()?;
        (answer.status() == 503).then_some(answer)
    })
    .await;
    assert!(ready.text().await.unwrap().contains("engine"));
    let waiting = user.run(&run).await;
    assert_eq!(waiting["status"], "queued", "{waiting}");
    assert_eq!(user.cancel(&run).await["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_data_is_refused() {
    let server = Server::start(Backend::Embedded).await;
    let output = Command::new(env!("CARGO_BIN_EXE_quayside"))
        .args(["up"])
        .env("QUAYSIDE__API__BIND", "127.0.0.1:0")
        .env("QUAYSIDE__BACKEND__DATA_DIR", server.data_dir())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("another Quayside process") && words.contains("data_dir"), "{words}");
}

super::on_both! {
    nothing_accepted_is_lost_by_kill_9,
    a_killed_attempt_is_redone_and_its_container_removed,
    a_cancellation_survives_kill_9,
    a_frozen_worker_loses_its_lease_and_stays_silent,
    sigterm_finishes_or_hands_back,
}
