//! The container engine is restarted under a run, as an upgrade of it does.

use std::time::{Duration, Instant};

use super::client::{Clients, Request};
use super::engine::{Engine, Stop};
use super::installation::{Installation, Settings};
use super::stage::Stage;
use crate::support::eventually;
use crate::support::server::Backend;

const USER: &str = "user";
/// Told to end, it says so in order and with exit code 0, as if its work were done.
const POLITE: &str = "trap 'echo early; exit 0' TERM; echo begun; sleep 4 & wait; echo ended";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_engine_is_nobodys_fault() {
    if !Engine::is_possible() {
        eprintln!("only root may start an engine of its own: nothing was tested here");
        return;
    }
    let mut stage = Stage::set(Backend::Embedded).await;
    let mut installation = Installation::start(&stage, "restarted", Settings::of_a_round(Backend::Embedded)).await;
    let clients = Clients::new(installation.apis.clone(), Instant::now() + Duration::from_secs(120));
    let request = Request {
        user: USER.to_owned(),
        conversation: "talk".to_owned(),
        key: "key".to_owned(),
        agent: "sh",
        message: POLITE.to_owned(),
        reply: "begun\nended\n".to_owned(),
    };
    let id = clients.submit(&request).await;
    let path = format!("/api/runs/{id}");
    eventually("its beginning", || async { clients.read(USER, &path).await.filter(|run| run["text"] == "begun\n") }).await;
    let engine = stage.engine.as_mut().unwrap();
    engine.stop(Stop::Orderly).await;
    engine.go_on().await;
    clients.poll(USER, &id, Duration::from_millis(200), true).await;
    let run = clients.read(USER, &path).await.unwrap();
    assert_eq!((run["status"].as_str(), run["text"].as_str()), (Some("completed"), Some("begun\nended\n")), "{run}");
    let attempts: Vec<_> = run["attempts"].as_array().unwrap().iter().map(|one| (one["outcome"].as_str().unwrap(), one["counted"] == true)).collect();
    let (last, earlier) = attempts.split_last().unwrap();
    assert_eq!(*last, ("finished", true), "{run}");
    // Launches may meet an engine that is not quite back.
    assert!(!earlier.is_empty() && earlier.iter().all(|attempt| *attempt == ("engine_fault", false)), "{run}");
    stage.witness.until_empty(&installation.instances()).await;
    installation.processes[0].terminate().await;
}
