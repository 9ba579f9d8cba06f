//! What the simulator found, each as a scenario of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quayside_shared::agent::{Agent, Input, Output};
use quayside_shared::clock::{ManualClock, Timestamp};
use quayside_shared::ids::{ConversationId, RunId, WorkerId};
use quayside_shared::queue::sqlite::SqliteQueue;
use quayside_shared::queue::{Message, Queue};
use quayside_shared::run::{AttemptOutcome, Run};
use quayside_shared::sqlite::Database;
use quayside_shared::store::sqlite::SqliteStore;
use quayside_shared::store::{MultitaskStrategy, NewRun, Store, StoreOptions};
use quayside_worker::attempt::{Attempts, Delivered};
use quayside_worker::lease::LeaseTimes;
use quayside_worker::pool::{Pool, PoolOptions};
use quayside_worker::proof::gate::Gate;
use quayside_worker::runner::scripted::ScriptedRunner;
use quayside_worker::runner::{ContainerKey, EngineInfo, Exit, Fault, FaultKind, LaunchSpec, OutputChunk, Runner, Sandbox};
use quayside_worker::slots::LiveContainers;
use tokio_util::sync::CancellationToken;

/// An engine that does what it is asked and says that it did not, or does not do it.
#[derive(Default)]
struct Unwilling {
    inner: ScriptedRunner,
    launches_unheard: AtomicBool,
    kills_fail: Arc<AtomicBool>,
}

fn refusal() -> Fault {
    Fault::new(FaultKind::Engine, "the engine does not answer")
}

#[async_trait]
impl Runner for Unwilling {
    async fn launch(&self, spec: &LaunchSpec) -> Result<Box<dyn Sandbox>, Fault> {
        let inner = self.inner.launch(spec).await?;
        if self.launches_unheard.load(Ordering::SeqCst) {
            return Err(refusal());
        }
        Ok(Box::new(UnwillingSandbox { inner, kills_fail: Arc::clone(&self.kills_fail) }))
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

#[derive(Debug)]
struct UnwillingSandbox {
    inner: Box<dyn Sandbox>,
    kills_fail: Arc<AtomicBool>,
}

#[async_trait]
impl Sandbox for UnwillingSandbox {
    fn send(&mut self, request: Bytes) -> Result<(), Fault> {
        self.inner.send(request)
    }

    async fn next_output(&mut self) -> Option<Result<OutputChunk, Fault>> {
        self.inner.next_output().await
    }

    async fn kill(&mut self) -> Result<(), Fault> {
        if self.kills_fail.load(Ordering::SeqCst) { Err(refusal()) } else { self.inner.kill().await }
    }

    async fn wait(&mut self) -> Result<Exit, Fault> {
        self.inner.wait().await
    }

    async fn remove(self: Box<Self>) -> Result<(), Fault> {
        self.inner.remove().await
    }
}

/// One attempt at a run of an agent that never ends.
struct Stage {
    attempts: Attempts,
    runner: Arc<Unwilling>,
    clock: Arc<ManualClock>,
    id: RunId,
}

impl Stage {
    async fn set() -> Self {
        let database = Database::in_memory().unwrap();
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
        let store = Arc::new(SqliteStore::open(database.clone(), clock.clone(), StoreOptions::default()).await.unwrap());
        let queue = Arc::new(SqliteQueue::open(database).await.unwrap());
        let runner = Arc::new(Unwilling::default());
        let agent = Agent {
            input: Input::Text,
            output: Output::Text,
            pids: 64,
            timeout: Duration::from_secs(600),
            ..Agent::new("hangs".parse().unwrap(), "scripted".into(), vec!["hang".into()])
        };
        let new = NewRun {
            id: RunId::random(),
            user_id: "ann".parse().unwrap(),
            conversation_id: ConversationId::random(),
            agent: agent.name.clone(),
            message: "hello".into(),
            multitask: MultitaskStrategy::Enqueue,
            timeout: agent.timeout,
            queue_ttl: None,
            metadata: BTreeMap::new(),
            files: Vec::new(),
            idempotency: None,
        };
        let id = store.submit(new).await.unwrap().run.id;
        queue.publish(&[Message::new(id.clone())]).await.unwrap();
        let live = LiveContainers::default();
        let attempts = Attempts {
            pool: Pool::new(runner.clone(), live.clone(), [&agent], PoolOptions::off()),
            store,
            queue,
            runner: runner.clone(),
            gate: Arc::new(Gate::trusting(runner.clone())),
            agents: BTreeMap::from([(agent.name.clone(), agent)]),
            worker: WorkerId::random(),
            times: LeaseTimes { duration: Duration::from_secs(6), heartbeat: Duration::from_secs(2) },
            live,
            hand_back: CancellationToken::new(),
            preempted: CancellationToken::new(),
            retry_later: Arc::default(),
        };
        Self { attempts, runner, clock, id }
    }

    /// Plays the attempt to its end, which must come.
    async fn deliver(&self) -> Delivered {
        let delivery = self.attempts.queue.receive().await.unwrap();
        tokio::time::timeout(Duration::from_secs(60), self.attempts.deliver(delivery)).await.expect("the attempt comes to its end")
    }

    async fn run(&self) -> Run {
        self.attempts.store.run(&self.id).await.unwrap().unwrap()
    }
}

/// Else a run could be told as cancelled, or run elsewhere, while a container of it is there.
#[tokio::test(start_paused = true)]
async fn a_container_whose_launch_was_not_heard_of_is_gone_before_the_run_goes_back() {
    let stage = Stage::set().await;
    stage.runner.launches_unheard.store(true, Ordering::SeqCst);
    assert_eq!(stage.deliver().await, Delivered::EngineFault);
    assert_eq!(stage.runner.inner.launched(), 1);
    assert!(stage.runner.inner.containers().is_empty());
    assert_eq!(stage.run().await.attempts[0].outcome, Some(AttemptOutcome::EngineFault));
}

/// Else its slot is never free again, and its container never swept.
#[tokio::test(start_paused = true)]
async fn an_attempt_without_a_lease_ends_although_its_container_cannot_be_killed() {
    let stage = Stage::set().await;
    stage.runner.kills_fail.store(true, Ordering::SeqCst);
    let losing_the_lease = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        stage.clock.advance(Duration::from_secs(7));
        stage.attempts.store.sweep().await.unwrap();
    };
    tokio::join!(stage.deliver(), losing_the_lease);
    assert_eq!(stage.run().await.attempts[0].outcome, Some(AttemptOutcome::WorkerLost));
    assert_eq!(stage.runner.inner.containers().len(), 1);
    // The attempt has left it to the reaper, which cannot kill it either.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let removed = stage.runner.sweep(&|key| stage.attempts.live.contains(key)).await.unwrap();
    assert_eq!(removed, 1, "the sweeper may have it");
}
