//! A process that stood still for longer than its leases, and whose sweeper wakes up together with its attempts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quayside_shared::run::{AttemptOutcome, Status};
use quayside_shared::store::Store;
use quayside_worker::lease::LeaseTimes;
use quayside_worker::runner::scripted::ScriptedRunner;
use quayside_worker::runner::{ContainerKey, EngineInfo, Exit, Fault, LaunchSpec, OutputChunk, Runner, Sandbox};

use super::attempts::{Worker, agent};
use crate::support::eventually;

const LEASE: Duration = Duration::from_secs(1);
/// What a real engine needs on a busy machine.
const KILL: Duration = Duration::from_millis(700);

/// A runner whose kills take a while, and how many of its programs live.
struct Slow(Arc<ScriptedRunner>, Alive);

#[derive(Debug)]
struct SlowSandbox(Box<dyn Sandbox>, Alive);

type Alive = Arc<AtomicUsize>;

#[async_trait]
impl Runner for Slow {
    async fn launch(&self, spec: &LaunchSpec) -> Result<Box<dyn Sandbox>, Fault> {
        let sandbox = self.0.launch(spec).await?;
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(SlowSandbox(sandbox, self.1.clone())))
    }

    async fn sweep(&self, live: &(dyn for<'a> Fn(&'a ContainerKey) -> bool + Send + Sync)) -> Result<usize, Fault> {
        self.0.sweep(live).await
    }

    async fn ping(&self) -> Result<EngineInfo, Fault> {
        self.0.ping().await
    }

    async fn image_digest(&self, image: &str) -> Result<Option<String>, Fault> {
        self.0.image_digest(image).await
    }
}

#[async_trait]
impl Sandbox for SlowSandbox {
    fn send(&mut self, request: Bytes) -> Result<(), Fault> {
        self.0.send(request)
    }

    async fn next_output(&mut self) -> Option<Result<OutputChunk, Fault>> {
        self.0.next_output().await
    }

    async fn kill(&mut self) -> Result<(), Fault> {
        tokio::time::sleep(KILL).await;
        self.0.kill().await?;
        self.1.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    async fn wait(&mut self) -> Result<Exit, Fault> {
        self.0.wait().await
    }

    async fn remove(self: Box<Self>) -> Result<(), Fault> {
        self.0.remove().await
    }
}

async fn worker() -> (Worker, Alive) {
    let (alive, times) = (Alive::default(), LeaseTimes { duration: LEASE, heartbeat: LEASE / 4 });
    let counted = alive.clone();
    // It never ends by itself: what lives has not been killed.
    let agents = vec![agent("long", &["stdout:begun", "hang"])];
    (Worker::start_on(agents, times, |scripted| Arc::new(Slow(scripted, counted))).await, alive)
}

/// Everything in this process, as SIGSTOP does: the test's runtime has one thread.
fn freeze() {
    std::thread::sleep(LEASE * 2);
}

#[tokio::test]
async fn a_frozen_run_is_cancelled_when_its_container_is_gone() {
    let (worker, alive) = worker().await;
    let id = worker.submit("long").await;
    worker.until(&id, "the beginning", |run| run.text == "begun").await;
    worker.store.cancel(&id).await.unwrap().unwrap();
    freeze();
    let run = eventually("the end", || async {
        let run = worker.run(&id).await;
        assert!(run.status != Status::Cancelled || alive.load(Ordering::SeqCst) == 0, "told while the container lives");
        run.status.is_terminal().then_some(run)
    })
    .await;
    assert_eq!(run.status, Status::Cancelled);
}

#[tokio::test]
async fn a_frozen_run_does_not_run_beside_itself() {
    let (worker, alive) = worker().await;
    let id = worker.submit("long").await;
    worker.until(&id, "the beginning", |run| run.text == "begun").await;
    freeze();
    let run = eventually("the next attempt", || async {
        assert!(alive.load(Ordering::SeqCst) < 2, "two containers of one run");
        let run = worker.run(&id).await;
        (run.attempts.len() == 2 && run.text == "begun").then_some(run)
    })
    .await;
    assert_eq!(run.attempts[0].outcome, Some(AttemptOutcome::WorkerLost));
}
