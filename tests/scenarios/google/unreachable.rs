//! A service that does not answer: at the start, and when a run is submitted.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::emulators::{self, Emulator, Kind};
use crate::support::eventually;
use crate::support::server::{Options, Server};

use super::assert_completed_once;

/// The time in which an accepted run is answered, whatever Pub/Sub does.
const AT_ONCE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_pubsub_runs_are_accepted_and_go_on_later() {
    let pubsub = Emulator::start_own(Kind::Pubsub, &[]).await;
    let hosts = (pubsub.host(), emulators::firestore().await.host());
    let server = Server::start_on_emulators(hosts, &emulators::project(), Options::default()).await;
    let user = server.user("u");
    assert_completed_once(&user.finished(&user.say("cat", "before").await).await, "before");
    pubsub.freeze();
    let mut accepted = Vec::new();
    for number in 0..4 {
        let begun = Instant::now();
        accepted.push(user.say("cat", &number.to_string()).await);
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    }
    eventually("a readiness that names the queue", || async {
        let ready = user.get("/readyz").send().await.unwrap();
        (ready.status() == 503 && ready.text().await.unwrap().contains("\"name\":\"queue\",\"ok\":false")).then_some(())
    })
    .await;
    for id in &accepted {
        assert_eq!(user.run(id).await["status"], "queued", "the store answers all the same");
    }
    pubsub.thaw();
    for (number, id) in accepted.iter().enumerate() {
        assert_completed_once(&user.finished(id).await, &number.to_string());
    }
    eventually("a green readiness", || async { Some(user.get("/readyz").send().await.unwrap()).filter(|answer| answer.status() == 200) }).await;
}

/// Nothing listens there.
const NOBODY: &str = "127.0.0.1:1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_its_services_waits_then_says_what_is_missing() {
    let (pubsub, firestore) = (emulators::pubsub().await.host(), emulators::firestore().await.host());
    let mut starts = Vec::new();
    for command in ["api", "worker"] {
        for (variable, hosts) in [("FIRESTORE_EMULATOR_HOST", (pubsub, NOBODY)), ("PUBSUB_EMULATOR_HOST", (NOBODY, firestore))] {
            let folder = tempfile::tempdir().unwrap();
            let mut start = Command::new(env!("CARGO_BIN_EXE_quayside"));
            start.arg(command).current_dir(folder.path()).env("QUAYSIDE_LOG", "warn,firestore=off,gcloud_sdk=off");
            start.env("QUAYSIDE__BACKEND__KIND", "google").env("QUAYSIDE__API__BIND", "127.0.0.1:0");
            start.env("QUAYSIDE__GOOGLE__PROJECT_ID", emulators::project());
            start.env("PUBSUB_EMULATOR_HOST", hosts.0).env("FIRESTORE_EMULATOR_HOST", hosts.1);
            let child = start.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            starts.push((command, variable, child, folder, Instant::now()));
        }
    }
    // All at once: each waits for as long as a service may need to start.
    for (command, variable, child, _folder, begun) in starts {
        let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command} without {variable}: {words}");
        let last = words.lines().last().unwrap();
        assert!(last.starts_with("quayside: ") && last.contains(NOBODY) && last.contains(variable), "{command} without {variable}: {last}");
        assert!(words.contains("does not answer yet"), "{command} without {variable} says that it waits: {words}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{command} without {variable}");
    }
}
