//! Workers with the scripted runner over the emulators, each in a runtime of its own: dropping it is what `kill -9` is to
//! a process. And a queue that doubles and shuffles.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use quayside_shared::agent::{Agent, Input, Output};
use quayside_shared::clock::SystemClock;
use quayside_shared::config::Google;
use quayside_shared::error::Result;
use quayside_shared::ids::{ConversationId, RunId, WorkerId};
use quayside_shared::queue::pubsub::PubSubQueue;
use quayside_shared::queue::{Delivery, Message, Queue};
use quayside_shared::retry::RetryPolicy;
use quayside_shared::store::firestore::FirestoreStore;
use quayside_shared::store::{MultitaskStrategy, NewRun, Store, StoreOptions};
use quayside_worker::attempt::Attempts;
use quayside_worker::consumer::consume;
use quayside_worker::lease::LeaseTimes;
use quayside_worker::pool::{Pool, PoolOptions};
use quayside_worker::proof::gate::Gate;
use quayside_worker::runner::scripted::ScriptedRunner;
use quayside_worker::slots::{LiveContainers, Slots};
use quayside_worker::sweeper::Sweeper;
use tokio_util::sync::CancellationToken;

use crate::support::emulators;

/// Short, so that a killed worker's runs go on soon; several times what an attempt takes.
pub(super) const LEASE: Duration = Duration::from_secs(3);
const HEARTBEAT: Duration = Duration::from_millis(750);
const SLOTS: u32 = 12;
/// Deliveries among which the next is drawn.
const DECK: usize = 24;

/// A project of its own on the emulators that all tests share.
pub(super) async fn google() -> Google {
    Google {
        project_id: emulators::project(),
        pubsub_emulator: Some(emulators::pubsub().await.host().to_owned()),
        firestore_emulator: Some(emulators::firestore().await.host().to_owned()),
        dead_letter_topic: "runs-dead-letters".to_owned(),
        ..Google::default()
    }
}

/// A store as a process of its own would open it.
pub(super) async fn store(google: &Google) -> FirestoreStore {
    let options = StoreOptions {
        queued_per_user: 10_000,
        running_per_user: 100,
        republish_after: Duration::from_secs(3),
        // A run may be hit by every kill.
        retry: RetryPolicy { max_attempts: 100, base: Duration::from_millis(50), ..RetryPolicy::default() },
        ..StoreOptions::default()
    };
    FirestoreStore::connect(google, Arc::new(SystemClock), options).await.unwrap()
}

/// Numbers that look random and are the same in every test run.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From 0 to `below`, exclusive. SplitMix64.
    pub(super) fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % below as u64).unwrap()
    }
}

/// Publishes each message one to five times and delivers in another order than they came.
pub(super) struct Shuffled {
    inner: PubSubQueue,
    dice: Mutex<Dice>,
    deck: Mutex<Vec<Box<dyn Delivery>>>,
}

impl Shuffled {
    pub(super) async fn connect(google: &Google, seed: u64) -> Self {
        let inner = PubSubQueue::connect(google).await.unwrap().with_room(SLOTS + DECK as u32);
        Self { inner, dice: Mutex::new(Dice::new(seed)), deck: Mutex::default() }
    }

    fn roll(&self, below: usize) -> usize {
        self.dice.lock().unwrap().roll(below)
    }

    fn draw(&self) -> Option<Box<dyn Delivery>> {
        let mut deck = self.deck.lock().unwrap();
        let place = (!deck.is_empty()).then(|| self.roll(deck.len()))?;
        Some(deck.swap_remove(place))
    }
}

#[async_trait]
impl Queue for Shuffled {
    async fn publish(&self, messages: &[Message]) -> Result<()> {
        let mut copies: Vec<Message> = messages.iter().flat_map(|message| vec![message.clone(); self.roll(5) + 1]).collect();
        for place in (1..copies.len()).rev() {
            copies.swap(place, self.roll(place + 1));
        }
        self.inner.publish(&copies).await
    }

    async fn receive(&self) -> Result<Box<dyn Delivery>> {
        loop {
            let full = self.deck.lock().unwrap().len() >= DECK;
            if !full {
                let more = if self.deck.lock().unwrap().is_empty() {
                    Some(self.inner.receive().await?)
                } else {
                    // What is there now; a deck that stays small is drawn from as it is.
                    tokio::time::timeout(Duration::from_millis(2), self.inner.receive()).await.ok().transpose()?
                };
                if let Some(delivery) = more {
                    self.deck.lock().unwrap().push(delivery);
                    continue;
                }
            }
            if let Some(delivery) = self.draw() {
                return Ok(delivery);
            }
        }
    }

    async fn stop_receiving(&self) {
        self.inner.stop_receiving().await;
    }

    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }
}

/// One life of a worker.
pub(super) struct Worker {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Worker {
    pub(super) fn start(google: &Google, agents: &[Agent], seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let agents = agents.iter().map(|agent| (agent.name.clone(), agent.clone())).collect();
        runtime.spawn(work(google.clone(), agents, seed));
        Self { runtime: Some(runtime) }
    }

    /// `kill -9`: every task ends where it stands, and nothing is handed back.
    pub(super) fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// `kill -STOP`, and `kill -CONT` after `time`: nothing happens meanwhile, and then everything goes on where it stood.
    pub(super) fn freeze(&self, time: Duration) {
        let (frozen, begun) = mpsc::channel();
        self.runtime.as_ref().unwrap().spawn(async move {
            frozen.send(()).unwrap();
            // The runtime has one thread.
            std::thread::sleep(time);
        });
        begun.recv().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn work(google: Google, agents: BTreeMap<quayside_shared::ids::AgentName, Agent>, seed: u64) {
    let store: Arc<dyn Store> = Arc::new(store(&google).await);
    let queue: Arc<dyn Queue> = Arc::new(Shuffled::connect(&google, seed).await);
    let runner = Arc::new(ScriptedRunner::new());
    let live = LiveContainers::default();
    let retry_later = Arc::new(tokio::sync::Notify::new());
    let sweeper = Sweeper {
        store: Arc::clone(&store),
        queue: Arc::clone(&queue),
        runner: runner.clone(),
        live: live.clone(),
        clock: Arc::new(SystemClock),
        due_earlier: Arc::clone(&retry_later),
    };
    let never = CancellationToken::new();
    tokio::spawn(sweeper.run(never.clone()));
    let attempts = Attempts {
        pool: Pool::new(runner.clone(), live.clone(), agents.values(), PoolOptions::off()),
        store,
        queue,
        gate: Arc::new(Gate::trusting(runner.clone())),
        runner,
        agents,
        worker: WorkerId::random(),
        times: LeaseTimes { duration: LEASE, heartbeat: HEARTBEAT },
        live,
        hand_back: CancellationToken::new(),
        preempted: CancellationToken::new(),
        retry_later,
    };
    consume(Arc::new(attempts), Slots::new(SLOTS), never, Duration::from_secs(5)).await;
}

/// A run in a conversation of its own.
pub(super) fn new_run() -> NewRun {
    NewRun {
        id: RunId::random(),
        user_id: "u".parse().unwrap(),
        conversation_id: ConversationId::random(),
        agent: "echo".parse().unwrap(),
        message: "hello".into(),
        multitask: MultitaskStrategy::Enqueue,
        timeout: Duration::from_secs(60),
        queue_ttl: None,
        metadata: BTreeMap::new(),
        files: Vec::new(),
        idempotency: None,
    }
}

/// An agent whose program is `script`.
pub(super) fn agent(name: &str, script: &[&str]) -> Agent {
    Agent {
        input: Input::Text,
        output: Output::Text,
        pids: 64,
        timeout: Duration::from_secs(60),
        ..Agent::new(name.parse().unwrap(), "scripted".into(), script.iter().map(|word| (*word).to_owned()).collect())
    }
}
