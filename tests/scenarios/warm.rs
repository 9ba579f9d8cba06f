//! Containers that were made before their run, and replies that are told before their container is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quayside_shared::ids::RunId;
use quayside_shared::run::Status;
use quayside_shared::store::Store;
use quayside_worker::lease::LeaseTimes;
use quayside_worker::runner::scripted::ScriptedRunner;
use quayside_worker::runner::{ContainerKey, EngineInfo, Exit, Fault, LaunchSpec, Measured, OutputChunk, Runner, Sandbox};
use serde_json::json;

use super::attempts::{Worker, agent};
use crate::support::eventually;
use crate::support::server::{Backend, Options, Server};

fn warm(number: u32) -> Options {
    Options { extra: format!("[agents.python]\nwarm = {number}\n"), worker: "warm_memory = \"512MiB\"\n".to_owned(), ..Options::default() }
}

/// A figure of `/metrics`, by its name and its agent; 0 when it is not there.
async fn figure(server: &Server, name: &str) -> f64 {
    let text = reqwest::get(format!("{}/metrics", server.url)).await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}{{agent=\"python\"}} ")));
    line.map_or(0.0, |value| value.parse().unwrap())
}

async fn until_idle(server: &Server, number: f64) {
    eventually("idle containers", || async { (figure(server, "quayside_warm_idle").await == number).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_container_serves_one_run_and_is_replaced() {
    let server = Server::start_with(Backend::Embedded, warm(1)).await;
    let user = server.user("u");
    let mut served = Vec::new();
    for number in 1..=3_u32 {
        until_idle(&server, 1.0).await;
        let before = eventually("one container", || async { Some(server.containers()).filter(|all| all.len() == 1) }).await;
        let leave = "import os\nprint(sorted(os.listdir('/workspace')))\nopen('/workspace/mine', 'w').write('x')";
        let ended = user.finished(&user.say("python", leave).await).await;
        assert_eq!((&ended["status"], &ended["text"], &ended["exitCode"]), (&json!("completed"), &json!("[]\n"), &json!(0)), "{ended}");
        assert!(ended["usage"]["startMillis"].as_u64().unwrap() < 100, "nothing was started: {ended}");
        assert!(ended["usage"]["maxMemoryBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{ended}");
        assert_eq!(figure(&server, "quayside_warm_taken_total").await, f64::from(number));
        assert!(!served.contains(&before[0]), "it served a second run");
        eventually("its removal", || async { (!server.containers().contains(&before[0])).then_some(()) }).await;
        served.extend(before);
    }
    assert_eq!(figure(&server, "quayside_warm_missed_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_containers_go_with_their_worker_whichever_way_it_ends() {
    let mut server = Server::start_with(Backend::Embedded, warm(2)).await;
    until_idle(&server, 2.0).await;
    assert_eq!(server.terminate().await, 0);
    assert!(server.containers().is_empty(), "a drain leaves nothing");
    server.restart().await;
    until_idle(&server, 2.0).await;
    let left = server.containers();
    server.kill();
    assert_eq!(server.containers().len(), 2, "nobody could remove them");
    server.restart().await;
    until_idle(&server, 2.0).await;
    let now = eventually("two containers", || async { Some(server.containers()).filter(|all| all.len() == 2) }).await;
    assert!(left.iter().all(|old| !now.contains(old)), "the next life removes them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_die_while_they_wait_fail_no_run() {
    let server = Server::start_with(Backend::Embedded, warm(2)).await;
    let user = server.user("u");
    until_idle(&server, 2.0).await;
    for container in server.containers() {
        crate::support::server::docker(&["rm", "-f", &container]);
    }
    let ended = user.finished(&user.say("python", "print('fine')").await).await;
    assert_eq!((&ended["status"], &ended["text"]), (&json!("completed"), &json!("fine\n")), "{ended}");
    eventually("the count of the dead", || async { (figure(&server, "quayside_warm_died_total").await == 2.0).then_some(()) }).await;
    until_idle(&server, 2.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_is_told_when_it_is_complete() {
    let program = "import sys, time; sys.stdin.read(); print('{\\\"type\\\":\\\"result\\\",\\\"text\\\":\\\"said\\\"}', flush=True); time.sleep(600)";
    let extra = format!("[agents.lingers]\nimage = \"quayside/agent-python\"\ncommand = [\"python3\", \"-c\", \"{program}\"]\noutput = \"events\"\n");
    let server = Server::start_with(Backend::Embedded, Options { extra, slots: 1, ..Options::default() }).await;
    let user = server.user("u");
    for _ in 0..3 {
        let ended = user.finished(&user.say("lingers", "x").await).await;
        assert_eq!((&ended["status"], &ended["text"], &ended["exitCode"]), (&json!("completed"), &json!("said"), &json!(0)), "{ended}");
        assert!(ended["usage"]["cpuMillis"].as_u64().is_some(), "{ended}");
    }
    eventually("an empty host", || async { server.containers().is_empty().then_some(()) }).await;
}

/// The store, which is there after the runner.
type Later = Arc<std::sync::OnceLock<Arc<dyn Store>>>;

/// A runner whose containers are asked what they used right after their reply was complete: then the run is cancelled.
struct Cancels {
    inner: Arc<ScriptedRunner>,
    store: Later,
    killed: Arc<AtomicBool>,
}

struct CancelledSandbox {
    inner: Box<dyn Sandbox>,
    run: RunId,
    store: Later,
    killed: Arc<AtomicBool>,
}

impl std::fmt::Debug for CancelledSandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl Runner for Cancels {
    async fn launch(&self, spec: &LaunchSpec) -> Result<Box<dyn Sandbox>, Fault> {
        let ContainerKey::Run { run_id, .. } = &spec.key else { panic!("there is no pool") };
        let (run, inner) = (run_id.clone(), self.inner.launch(spec).await?);
        Ok(Box::new(CancelledSandbox { inner, run, store: self.store.clone(), killed: self.killed.clone() }))
    }

    async fn sweep(&self, live: &(dyn for<'a> Fn(&'a ContainerKey) -> bool + Send + Sync)) -> Result<usize, Fault> {
        self.inner.sweep(live).await
    }

    async fn ping(&self) -> Result<EngineInfo, Fault> {
        self.inner.ping().await
    }

    async fn image_digest(&self, image: &str) -> Result<Option<String>, Fault> {
        self.inner.image_digest(image).await
    }
}

#[async_trait]
impl Sandbox for CancelledSandbox {
    fn send(&mut self, request: Bytes) -> Result<(), Fault> {
        self.inner.send(request)
    }

    fn measure(&mut self) -> Measured {
        let (store, run) = (self.store.get().unwrap().clone(), self.run.clone());
        let handle = tokio::runtime::Handle::current();
        std::thread::spawn(move || handle.block_on(store.cancel(&run)).unwrap().unwrap()).join().unwrap();
        Measured::default()
    }

    async fn next_output(&mut self) -> Option<Result<OutputChunk, Fault>> {
        self.inner.next_output().await
    }

    async fn kill(&mut self) -> Result<(), Fault> {
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.inner.kill().await?;
        self.killed.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn wait(&mut self) -> Result<Exit, Fault> {
        self.inner.wait().await
    }

    async fn remove(self: Box<Self>) -> Result<(), Fault> {
        self.inner.remove().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_after_the_reply_waits_for_the_container() {
    let mut lingering = agent("lingering", &["stdout:{\"type\":\"result\",\"text\":\"done\"}\n", "hang"]);
    lingering.output = quayside_shared::agent::Output::Events;
    let times = LeaseTimes { duration: Duration::from_secs(60), heartbeat: Duration::from_secs(20) };
    let (store, killed) = (Arc::new(std::sync::OnceLock::new()), Arc::new(AtomicBool::new(false)));
    let (known, told) = (store.clone(), killed.clone());
    let worker = Worker::start_on(vec![lingering], times, move |inner| Arc::new(Cancels { inner, store: known, killed: told })).await;
    let shared: Arc<dyn Store> = worker.store.clone();
    assert!(store.set(shared).is_ok());
    let id = worker.submit("lingering").await;
    let run = eventually("the end", || async {
        let (gone, run) = (killed.load(Ordering::SeqCst), worker.run(&id).await);
        assert!(run.status != Status::Completed, "a cancellation that was accepted came to nothing");
        assert!(run.status != Status::Cancelled || killed.load(Ordering::SeqCst), "told while the container lives");
        (gone && run.status.is_terminal()).then_some(run)
    })
    .await;
    assert_eq!(run.status, Status::Cancelled);
}
