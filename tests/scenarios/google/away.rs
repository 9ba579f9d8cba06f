//! Firestore stands still for a while.

use std::time::{Duration, Instant};

use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::support::emulators::{self, Emulator, Kind};
use crate::support::eventually;
use crate::support::server::{Options, Server};

use super::{assert_completed_once, outcomes};

/// Longer than the store waits for an answer, shorter than the lease.
const AWAY: Duration = Duration::from_secs(15);
/// The store's own limit of ten seconds and some more.
const PATIENCE: Duration = Duration::from_secs(14);

/// A clear refusal in time.
async fn assert_refused(what: &str, request: RequestBuilder) {
    let answer = tokio::time::timeout(PATIENCE, request.send()).await.unwrap_or_else(|_| panic!("{what} hangs")).unwrap();
    assert_eq!(answer.status(), 503, "{what}");
    assert_eq!(answer.headers()["Content-Type"], "application/problem+json", "{what}");
    assert!(answer.headers()["Retry-After"].to_str().unwrap().parse::<u64>().unwrap() >= 1, "{what}");
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["code"], "overloaded", "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_firestore_stands_still() {
    let firestore = Emulator::start_own(Kind::Firestore, &[]).await;
    let hosts = (emulators::pubsub().await.host(), firestore.host());
    let options = Options { lease: "25s", heartbeat: "2s", ..Options::default() };
    let server = Server::start_on_emulators(hosts, &emulators::project(), options).await;
    let user = server.user("u");
    let speech = user.say("sh", "for word in 1 2 3 4 5 6 7 8 9 10; do echo $word; sleep 2; done").await;
    let ends_meanwhile = user.say("sh", "echo begun; sleep 4; echo ended").await;
    user.says(&speech, "1").await;
    user.says(&ends_meanwhile, "begun").await;
    let talk = user.say_in("talk", "cat", "x").await;

    firestore.freeze();
    let frozen = Instant::now();
    let ready = user.get("/readyz").send().await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains("store"));
    assert_eq!(user.get("/livez").send().await.unwrap().status(), 200, "to be killed would help nobody");
    let say = |message: &str| user.post("/api/conversation").json(&json!({"agent": "cat", "message": message}));
    tokio::join!(
        assert_refused("reading a run", user.get(&format!("/api/runs/{speech}"))),
        assert_refused("waiting for a run", user.get(&format!("/api/runs/{speech}?wait=30"))),
        assert_refused("following a run", user.get(&format!("/api/runs/{speech}/events"))),
        assert_refused("cancelling", user.post(&format!("/api/runs/{speech}/cancel"))),
        assert_refused("listing", user.get("/api/conversations")),
        // Of the same user, on the same APIs: none waits until the one before has given up.
        assert_refused("submitting", say("a")),
        assert_refused("submitting", say("b")),
        assert_refused("submitting", say("c")),
        assert_refused("submitting", say("d")),
    );
    tokio::time::sleep(AWAY.saturating_sub(frozen.elapsed())).await;
    firestore.thaw();

    eventually("a green readiness", || async { Some(user.get("/readyz").send().await.unwrap()).filter(|answer| answer.status() == 200) }).await;
    for (run, text) in [(&speech, "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n"), (&ends_meanwhile, "begun\nended\n"), (&talk, "x")] {
        let run = user.finished(run).await;
        assert_completed_once(&run, text);
        assert_eq!(outcomes(&run), ["finished"], "its container was kept: {run}");
    }
    assert_completed_once(&user.finished(&user.say("cat", "again").await).await, "again");
}
