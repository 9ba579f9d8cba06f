//! Pub/Sub goes away with everything in it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::emulators::{self, Emulator, Kind};
use crate::support::eventually;
use crate::support::server::{Options, Server};

use super::assert_completed_once;

const WAITING: usize = 4;
/// Several times what it takes: what is in the store is announced again after half a minute.
const FAR_TOO_LATE: Duration = Duration::from_secs(150);

/// Messages of the workers' subscription, taken from it behind its back.
async fn pull(host: &str, project: &str) -> Option<Vec<String>> {
    let url = format!("http://{host}/v1/projects/{project}/subscriptions/runs-worker:pull");
    let body = json!({"maxMessages": 10, "returnImmediately": true});
    let pulled: Value = reqwest::Client::new().post(url).json(&body).send().await.unwrap().json().await.unwrap();
    let received = pulled.get("receivedMessages")?.as_array()?;
    Some(received.iter().map(|one| one["message"]["messageId"].as_str().unwrap().to_owned()).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emulator_restart_loses_no_run() {
    let mut pubsub = Emulator::start_own(Kind::Pubsub, &[]).await;
    let hosts = (pubsub.host(), emulators::firestore().await.host());
    let project = emulators::project();
    let server = Server::start_on_emulators(hosts, &project, Options { slots: 2, ..Options::default() }).await;
    let (busy, user) = (server.user("busy"), server.user("u"));
    let mut accepted = Vec::new();
    // Both workers are busy, so that the messages of the others go back and wait in the emulator.
    for number in 0..2 {
        let run = busy.say("sh", &format!("echo begun; sleep 30; echo {number}")).await;
        busy.says(&run, "begun").await;
        accepted.push((run, format!("begun\n{number}\n")));
    }
    for number in 0..WAITING {
        accepted.push((user.say("cat", &format!("waits {number}")).await, format!("waits {number}")));
    }
    // In the hands of this test they are in no worker's, and are lost with the emulator.
    let mut taken = BTreeSet::new();
    while taken.len() < WAITING {
        taken.extend(eventually("the waiting messages", || pull(pubsub.host(), &project)).await);
    }
    pubsub.stop();
    for number in 0..4 {
        accepted.push((user.say_in("talk", "cat", &format!("meanwhile {number}")).await, format!("meanwhile {number}")));
    }
    let ready = eventually("a red readiness", || async { Some(user.get("/readyz").send().await.unwrap()).filter(|answer| answer.status() == 503) });
    assert!(ready.await.text().await.unwrap().contains("Pub/Sub"));
    pubsub.restart().await;
    let back = Instant::now();
    for (run, text) in &accepted {
        let owner = if text.starts_with("begun") { &busy } else { &user };
        let run = owner.finished(run).await;
        assert_completed_once(&run, text);
        assert_eq!(run["attempts"].as_array().unwrap().len(), 1, "no container was harmed: {run}");
    }
    println!("all had ended {:.1?} after the restart", back.elapsed());
    assert!(back.elapsed() < FAR_TOO_LATE);
    for url in ["/readyz", "/livez"] {
        assert_eq!(user.get(url).send().await.unwrap().status(), 200);
    }
}
