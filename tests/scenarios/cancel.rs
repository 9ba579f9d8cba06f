//! Cancelling: the container is dead before the run says so, and a result that came first stands.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::server::{Backend, Options, Server, docker};

async fn a_cancelled_run_has_no_container_left(on: Backend) {
    // A heartbeat would tell the worker of the cancellation too; it must not have to wait for one.
    let server = Server::start_with(on, Options { lease: "60s", heartbeat: "30s", ..Options::default() }).await;
    let user = server.user("u");
    let run = user.say("sh", "trap '' TERM INT; echo here; while :; do sleep 1; done").await;
    user.says(&run, "here").await;
    assert_eq!(server.containers().len(), 1);
    let asked = Instant::now();
    assert_eq!(user.cancel(&run).await["status"], "cancelling");
    let ended = user.finished(&run).await;
    let took = asked.elapsed();
    assert_eq!((&ended["status"], &ended["text"]), (&json!("cancelled"), &json!("here\n")));
    assert!(took < Duration::from_secs(5), "{took:?}");
    let running = docker(&["ps", "-q", "--filter", &format!("label=dev.quayside.run={run}")]);
    assert_eq!(running.trim(), "", "cancelled means gone");
    assert_eq!(user.cancel(&run).await["status"], "cancelled", "asking again changes nothing");
}

async fn a_queued_run_is_cancelled_at_once(on: Backend) {
    let server = Server::start_with(on, Options { slots: 1, ..Options::default() }).await;
    let user = server.user("u");
    let running = user.say("sh", "sleep 60").await;
    user.reaches(&running, "in_progress").await;
    let queued = user.say("cat", "x").await;
    let cancelled = user.cancel(&queued).await;
    assert_eq!((&cancelled["status"], cancelled["attempts"].as_array().unwrap().len()), (&json!("cancelled"), 0));
    user.cancel(&running).await;
    user.finished(&running).await;
}

async fn cancel_against_completion_has_one_winner(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let (mut completed, mut cancelled) = (0, 0);
    for round in 0..24_u64 {
        let run = user.say("cat", "done").await;
        user.reaches_or_ends(&run, "in_progress").await;
        tokio::time::sleep(Duration::from_millis(round * 25)).await;
        let answer = user.cancel(&run).await;
        let ended = user.finished(&run).await;
        match ended["status"].as_str().unwrap() {
            "completed" => {
                assert_eq!(answer["status"], "completed", "a run that said `cancelling` may not complete: {ended}");
                assert_eq!(ended["text"], "done");
                completed += 1;
            }
            "cancelled" => cancelled += 1,
            other => panic!("{other}: {ended}"),
        }
        assert_eq!(user.run(&run).await, ended, "the end does not change any more");
    }
    assert!(completed > 0 && cancelled > 0, "both happen: {completed} completed, {cancelled} cancelled");
}

async fn deleting_a_conversation_stops_what_runs_in_it(on: Backend) {
    let server = Server::start(on).await;
    let user = server.user("u");
    let running = user.say_in("gone", "sh", "echo here; sleep 600").await;
    user.says(&running, "here").await;
    let queued = user.say_in("gone", "cat", "x").await;
    assert_eq!(user.request(reqwest::Method::DELETE, "/api/conversations/gone").send().await.unwrap().status(), 204);
    for run in [&running, &queued] {
        assert_eq!(user.get(&format!("/api/runs/{run}")).send().await.unwrap().status(), 404);
    }
    assert_eq!(user.get("/api/conversations/gone").send().await.unwrap().status(), 404);
    crate::support::eventually("an empty host", || async { server.containers().is_empty().then_some(()) }).await;
}

super::on_both! {
    a_cancelled_run_has_no_container_left,
    a_queued_run_is_cancelled_at_once,
    cancel_against_completion_has_one_winner,
    deleting_a_conversation_stops_what_runs_in_it,
}
