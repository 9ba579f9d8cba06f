//! S7: what queue, store and worker do with a run whose program costs nothing, and what a long line changes.
//!
//! The embedded backend on a real disk, the real consumer and its attempts, the scripted runner. Each round fills two
//! databases, one with the runs that are timed and nothing else, one with a long line behind them; the clock runs from the
//! worker's start until the last timed run has ended durably and its message is acknowledged. One line of JSON a round.
//! `run.sh` builds and calls it: `claims DATA_FOLDER RUNS LINE ROUNDS`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "it stops at the first surprise")]
#![allow(clippy::print_stdout, reason = "its figures are what it is for")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use quayside_shared::agent::{Agent, Input, Output};
use quayside_shared::clock::SystemClock;
use quayside_shared::error::Result;
use quayside_shared::ids::{AgentName, ConversationId, RunId, WorkerId};
use quayside_shared::queue::sqlite::SqliteQueue;
use quayside_shared::queue::{Delivery, Message, Queue, Undecodable};
use quayside_shared::sqlite::Database;
use quayside_shared::store::sqlite::SqliteStore;
use quayside_shared::store::{MultitaskStrategy, NewRun, Store, StoreOptions};
use quayside_worker::attempt::Attempts;
use quayside_worker::consumer::consume;
use quayside_worker::lease::LeaseTimes;
use quayside_worker::pool::{Pool, PoolOptions};
use quayside_worker::proof::gate::Gate;
use quayside_worker::runner::scripted::ScriptedRunner;
use quayside_worker::slots::{LiveContainers, Slots};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

/// Attempts at once. A no-op run waits for nothing but commits, and those come in groups.
const SLOTS: u32 = 32;
/// Enough that nobody comes near the default of 100 queued runs for one user.
const USERS: usize = 2000;
/// Submissions at once while a line is made.
const SUBMITTERS: usize = 64;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(folder), [Some(runs), Some(line), Some(rounds)]) =
        (arguments.first(), [1, 2, 3].map(|index| arguments.get(index)?.parse::<usize>().ok()))
    else {
        eprintln!("usage: claims DATA_FOLDER RUNS LINE ROUNDS");
        return ExitCode::from(2);
    };
    for round in 0..rounds {
        let rates = [0, line].map(|behind| {
            let folder = Path::new(folder).join(format!("{round}-{behind}"));
            std::fs::create_dir_all(&folder).unwrap();
            let rate = timed(&folder, runs, behind);
            std::fs::remove_dir_all(&folder).unwrap();
            rate
        });
        println!(r#"{{"runs":{runs},"line":{line},"empty":{:.1},"long":{:.1}}}"#, rates[0], rates[1]);
    }
    ExitCode::SUCCESS
}

/// Runs a second, with `behind` more in the line than are timed.
fn timed(folder: &Path, runs: usize, behind: usize) -> f64 {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let rate = runtime.block_on(async {
        let database = Database::open(folder).unwrap();
        let options = StoreOptions { queued: u64::MAX, ..StoreOptions::default() };
        let store = Arc::new(SqliteStore::open(database.clone(), Arc::new(SystemClock), options).await.unwrap());
        let acknowledged = Arc::new(Acknowledged { wanted: runs, ..Acknowledged::default() });
        let queue = Arc::new(Counting { queue: SqliteQueue::open(database).await.unwrap(), acknowledged: Arc::clone(&acknowledged) });
        fill(&store, &queue, runs + behind).await;
        let started = Instant::now();
        let worker = tokio::spawn(work(store, queue));
        acknowledged.reached.notified().await;
        let rate = runs as f64 / started.elapsed().as_secs_f64();
        worker.abort();
        rate
    });
    // Attempts in the middle of the line end where they stand: they are no part of the figure.
    runtime.shutdown_timeout(Duration::from_secs(10));
    rate
}

async fn fill(store: &Arc<SqliteStore>, queue: &Arc<Counting>, runs: usize) {
    let room = Arc::new(Semaphore::new(SUBMITTERS));
    let mut submissions = tokio::task::JoinSet::new();
    for index in 0..runs {
        let permit = Arc::clone(&room).acquire_owned().await.unwrap();
        let (store, queue) = (Arc::clone(store), Arc::clone(queue));
        submissions.spawn(async move {
            let submitted = store.submit(new_run(index)).await.unwrap();
            queue.publish(&[Message::new(submitted.run.id)]).await.unwrap();
            drop(permit);
        });
    }
    while let Some(done) = submissions.join_next().await {
        done.unwrap();
    }
}

fn new_run(index: usize) -> NewRun {
    NewRun {
        id: RunId::random(),
        user_id: format!("u{}", index % USERS).parse().unwrap(),
        conversation_id: ConversationId::random(),
        agent: "noop".parse().unwrap(),
        message: "measure twice, cut once".to_owned(),
        multitask: MultitaskStrategy::Enqueue,
        timeout: Duration::from_secs(60),
        queue_ttl: None,
        metadata: BTreeMap::new(),
        idempotency: None,
        files: Vec::new(),
    }
}

async fn work(store: Arc<SqliteStore>, queue: Arc<Counting>) {
    let script = vec!["echo".to_owned()];
    let agent = Agent { input: Input::Text, output: Output::Text, ..Agent::new("noop".parse().unwrap(), "scripted".to_owned(), script) };
    let agents: BTreeMap<AgentName, Agent> = std::iter::once((agent.name.clone(), agent)).collect();
    let (runner, live) = (Arc::new(ScriptedRunner::new()), LiveContainers::default());
    let attempts = Attempts {
        pool: Pool::new(runner.clone(), live.clone(), agents.values(), PoolOptions::off()),
        gate: Arc::new(Gate::trusting(runner.clone())),
        store,
        queue,
        runner,
        agents,
        worker: WorkerId::random(),
        times: LeaseTimes { duration: Duration::from_secs(30), heartbeat: Duration::from_secs(10) },
        live,
        hand_back: CancellationToken::new(),
        preempted: CancellationToken::new(),
        retry_later: Arc::new(Notify::new()),
    };
    consume(Arc::new(attempts), Slots::new(SLOTS), CancellationToken::new(), Duration::from_secs(5)).await;
}

/// The queue, and how many of its messages were acknowledged: an attempt does that last.
struct Counting {
    queue: SqliteQueue,
    acknowledged: Arc<Acknowledged>,
}

#[derive(Default)]
struct Acknowledged {
    so_far: AtomicUsize,
    wanted: usize,
    reached: Notify,
}

struct Counted {
    delivery: Box<dyn Delivery>,
    acknowledged: Arc<Acknowledged>,
}

// Written out because the program that this is built with has no other need of `async_trait`.
impl Delivery for Counted {
    fn message(&self) -> Result<&Message, &Undecodable> {
        self.delivery.message()
    }

    fn ack<'c>(self: Box<Self>) -> BoxFuture<'c, ()>
    where
        Self: 'c,
    {
        Box::pin(async move {
            self.delivery.ack().await;
            if self.acknowledged.so_far.fetch_add(1, Ordering::SeqCst) + 1 == self.acknowledged.wanted {
                self.acknowledged.reached.notify_one();
            }
        })
    }

    fn nack<'c>(self: Box<Self>) -> BoxFuture<'c, ()>
    where
        Self: 'c,
    {
        self.delivery.nack()
    }
}

impl Queue for Counting {
    fn publish<'a, 'b, 'c>(&'a self, messages: &'b [Message]) -> BoxFuture<'c, Result<()>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.queue.publish(messages)
    }

    fn receive<'a, 'c>(&'a self) -> BoxFuture<'c, Result<Box<dyn Delivery>>>
    where
        'a: 'c,
    {
        Box::pin(async move {
            let delivery = self.queue.receive().await?;
            Ok(Box::new(Counted { delivery, acknowledged: Arc::clone(&self.acknowledged) }) as Box<dyn Delivery>)
        })
    }

    fn stop_receiving<'a, 'c>(&'a self) -> BoxFuture<'c, ()>
    where
        'a: 'c,
    {
        self.queue.stop_receiving()
    }

    fn ping<'a, 'c>(&'a self) -> BoxFuture<'c, Result<()>>
    where
        'a: 'c,
    {
        self.queue.ping()
    }
}
