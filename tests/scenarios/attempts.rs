//! Attempts over the real store and queue with the scripted runner: faults that a real engine does not give on demand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quayside_shared::agent::{Agent, Input, Output};
use quayside_shared::clock::SystemClock;
use quayside_shared::ids::{ConversationId, RunId, WorkerId};
use quayside_shared::queue::sqlite::SqliteQueue;
use quayside_shared::queue::{Message, Queue};
use quayside_shared::run::{AttemptOutcome, ErrorCode, Run, Status};
use quayside_shared::sqlite::Database;
use quayside_shared::store::StoreOptions;
use quayside_shared::store::sqlite::SqliteStore;
use quayside_shared::store::{MultitaskStrategy, NewRun, Store};
use quayside_worker::attempt::Attempts;
use quayside_worker::consumer::consume;
use quayside_worker::lease::LeaseTimes;
use quayside_worker::pool::{Pool, PoolOptions};
use quayside_worker::proof::gate::Gate;
use quayside_worker::runner::Runner;
use quayside_worker::runner::scripted::ScriptedRunner;
use quayside_worker::slots::{LiveContainers, Slots};
use quayside_worker::sweeper::Sweeper;
use tokio_util::sync::CancellationToken;

use crate::support::eventually;

/// A worker in this process.
pub(super) struct Worker {
    pub(super) store: Arc<SqliteStore>,
    queue: Arc<SqliteQueue>,
    runner: Arc<ScriptedRunner>,
    drain: CancellationToken,
    consuming: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Worker {
    async fn start(agents: &[(&str, &[&str])]) -> Self {
        Self::start_with(agents.iter().map(|(name, script)| agent(name, script)).collect()).await
    }

    async fn start_with(agents: Vec<Agent>) -> Self {
        let times = LeaseTimes { duration: Duration::from_secs(10), heartbeat: Duration::from_millis(200) };
        Self::start_on(agents, times, |scripted| scripted).await
    }

    /// On a runner made from a scripted one.
    pub(super) async fn start_on(agents: Vec<Agent>, times: LeaseTimes, runner_of: impl FnOnce(Arc<ScriptedRunner>) -> Arc<dyn Runner>) -> Self {
        Self::start_pooled(agents, times, PoolOptions::off(), runner_of).await
    }

    /// With a pool and kept sessions.
    pub(super) async fn start_pooled(
        agents: Vec<Agent>,
        times: LeaseTimes,
        options: PoolOptions,
        runner_of: impl FnOnce(Arc<ScriptedRunner>) -> Arc<dyn Runner>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        let store = Arc::new(SqliteStore::open(database.clone(), Arc::new(SystemClock), StoreOptions::default()).await.unwrap());
        let queue = Arc::new(SqliteQueue::open(database).await.unwrap());
        let scripted = Arc::new(ScriptedRunner::new());
        let runner = runner_of(scripted.clone());
        let (drain, live) = (CancellationToken::new(), LiveContainers::default());
        let retry_later = Arc::new(tokio::sync::Notify::new());
        let attempts = Attempts {
            pool: Pool::new(runner.clone(), live.clone(), &agents, options),
            store: store.clone(),
            queue: queue.clone(),
            runner: runner.clone(),
            gate: Arc::new(Gate::trusting(runner.clone())),
            agents: agents.into_iter().map(|agent| (agent.name.clone(), agent)).collect(),
            worker: WorkerId::random(),
            times,
            live: live.clone(),
            hand_back: CancellationToken::new(),
            preempted: CancellationToken::new(),
            retry_later: retry_later.clone(),
        };
        let sweeper = Sweeper {
            store: store.clone(),
            queue: queue.clone(),
            runner: runner.clone(),
            live,
            clock: Arc::new(SystemClock),
            due_earlier: retry_later,
        };
        tokio::spawn(sweeper.run(drain.clone()));
        let consuming = tokio::spawn(consume(Arc::new(attempts), Slots::new(2), drain.clone(), Duration::from_secs(2)));
        Self { store, queue, runner: scripted, drain, consuming, _folder: folder }
    }

    pub(super) async fn submit(&self, agent: &str) -> RunId {
        let new = NewRun {
            id: RunId::random(),
            user_id: "u".parse().unwrap(),
            conversation_id: ConversationId::random(),
            agent: agent.parse().unwrap(),
            message: "hello".into(),
            multitask: MultitaskStrategy::Enqueue,
            timeout: Duration::from_secs(60),
            queue_ttl: None,
            metadata: BTreeMap::new(),
            files: Vec::new(),
            idempotency: None,
        };
        let submitted = self.store.submit(new).await.unwrap();
        self.queue.publish(&[Message::new(submitted.run.id.clone())]).await.unwrap();
        submitted.run.id
    }

    pub(super) async fn run(&self, id: &RunId) -> Run {
        self.store.run(id).await.unwrap().unwrap()
    }

    pub(super) async fn until(&self, id: &RunId, what: &str, holds: impl Fn(&Run) -> bool) -> Run {
        eventually(what, || async { Some(self.run(id).await).filter(&holds) }).await
    }
}

pub(super) fn agent(name: &str, script: &[&str]) -> Agent {
    Agent {
        input: Input::Text,
        output: Output::Text,
        pids: 64,
        timeout: Duration::from_secs(60),
        ..Agent::new(name.parse().unwrap(), "scripted".into(), script.iter().map(|word| (*word).to_owned()).collect())
    }
}

fn outcomes(run: &Run) -> Vec<(AttemptOutcome, bool)> {
    run.attempts.iter().filter_map(|attempt| Some((attempt.outcome?, attempt.counted))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_does_not_wait_for_a_launch_that_hangs() {
    let worker = Worker::start(&[("slow", &["launch-hang"])]).await;
    let id = worker.submit("slow").await;
    eventually("the launch", || async { (worker.runner.launched() == 1).then_some(()) }).await;
    let asked = Instant::now();
    worker.store.cancel(&id).await.unwrap().unwrap();
    let run = worker.until(&id, "the end", |run| run.status.is_terminal()).await;
    assert_eq!(run.status, Status::Cancelled);
    assert!(worker.runner.containers().is_empty(), "cancelled means gone");
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_fails_uses_up_no_attempt_and_stops_the_worker() {
    let worker = Worker::start(&[("cat", &["echo"])]).await;
    let first = worker.submit("cat").await;
    worker.until(&first, "the first answer", |run| run.status == Status::Completed).await;
    worker.runner.set_engine_down(true);
    let runs = [worker.submit("cat").await, worker.submit("cat").await, worker.submit("cat").await];
    worker.until(&runs[0], "a failed launch", |run| !run.attempts.is_empty() && run.status == Status::Queued).await;
    // The attempts that were under way saw the fault; then no message was taken any more, though retries are due within
    // half a second.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut attempts = 0;
    for id in &runs {
        attempts += worker.run(id).await.attempts.len();
    }
    assert!(attempts <= 3, "{attempts} attempts against a dead engine");
    worker.runner.set_engine_down(false);
    for id in &runs {
        let run = worker.until(id, "the answer", |run| run.status.is_terminal()).await;
        assert_eq!((run.status, run.text.as_str()), (Status::Completed, "hello"));
        let told = outcomes(&run);
        assert!(told[..told.len() - 1].iter().all(|told| *told == (AttemptOutcome::EngineFault, false)), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_hands_back_what_does_not_finish() {
    let worker = Worker::start(&[("long", &["stdout:begun", "hang"])]).await;
    let id = worker.submit("long").await;
    worker.until(&id, "the beginning", |run| run.text == "begun").await;
    let later = {
        worker.drain.cancel();
        worker.submit("long").await
    };
    let begun = Instant::now();
    worker.consuming.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8));
    let run = worker.store.run(&id).await.unwrap().unwrap();
    assert_eq!((run.status, outcomes(&run)), (Status::Queued, vec![(AttemptOutcome::Drained, false)]));
    assert_eq!(run.text, "", "the next attempt begins the reply again");
    assert!(worker.runner.containers().is_empty());
    assert!(worker.store.run(&later).await.unwrap().unwrap().attempts.is_empty(), "nothing new was taken");
    // Its message is there for the next worker.
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let delivery = tokio::time::timeout(Duration::from_secs(5), worker.queue.receive()).await.unwrap().unwrap();
        waiting.push(delivery.message().unwrap().run_id.clone());
        delivery.ack().await;
    }
    assert!(waiting.contains(&id) && waiting.contains(&later));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_lingers_after_its_result_is_ended() {
    let mut lingering = agent("lingering", &["stdout:{\"type\":\"result\",\"text\":\"done\"}\n", "hang"]);
    lingering.output = Output::Events;
    let worker = Worker::start_with(vec![lingering]).await;
    let id = worker.submit("lingering").await;
    let run = worker.until(&id, "the end", |run| run.status.is_terminal()).await;
    assert_eq!((run.status, run.text.as_str()), (Status::Completed, "done"));
    eventually("its container to go", || async { worker.runner.containers().is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_not_configured_any_more_fails_with_words() {
    let worker = Worker::start(&[("cat", &["echo"])]).await;
    let id = worker.submit("gone").await;
    let run = worker.until(&id, "the end", |run| run.status.is_terminal()).await;
    let error = run.error.unwrap();
    assert_eq!((run.status, error.code), (Status::Failed, ErrorCode::SandboxError));
    assert!(error.message.contains("gone"), "{}", error.message);
}
