//! A process: it lives, freezes, dies, and lives again.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use quayside_api::{Deps, ImageDigests, KeySource, Prepared};
use quayside_shared::config::Config;
use quayside_shared::error::{Error, ErrorKind};
use quayside_shared::ids::WorkerId;
use quayside_shared::queue::sqlite::SqliteQueue;
use quayside_shared::queue::{Delivery, Queue};
use quayside_shared::sqlite::Database;
use quayside_shared::store::sqlite::SqliteStore;
use quayside_shared::store::{Store, StoreOptions};
use quayside_worker::attempt::Attempts;
use quayside_worker::consumer::consume;
use quayside_worker::lease::LeaseTimes;
use quayside_worker::pool::{Pool, PoolOptions};
use quayside_worker::proof::gate::Gate;
use quayside_worker::runner::Runner;
use quayside_worker::slots::{LiveContainers, Slots};
use quayside_worker::sweeper::Sweeper;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::engine::{Engine, EngineRunner};
use super::mutant::Mutated;
use super::queue::FaultyQueue;
use super::signals::Signals;
use super::store::FaultyStore;
use super::world::{Fault, Shape, World, WorldClock, jitter};

const SLOTS: u32 = 3;

/// The configuration, and what is made from it once.
pub static CONFIG: LazyLock<(Arc<Config>, Prepared)> = LazyLock::new(|| {
    let agent = |name: &str, timeout: &str| {
        format!("[agents.{name}]\nimage = \"simulated\"\ncommand = [\"{name}\"]\ninput = \"text\"\noutput = \"text\"\ntimeout = \"{timeout}\"\n")
    };
    let text = [
        "[api]\ndefault_agent = \"quick\"\n[limits]\nqueued_per_user = 5\n".to_owned(),
        "[worker]\nlease = \"6s\"\nheartbeat = \"2s\"\ndrain = \"4s\"\n".to_owned(),
        agent("quick", "20s"),
        agent("slow", "30s"),
        agent("fails", "20s"),
        agent("hangs", "3s"),
    ];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text.concat()).unwrap();
    let config = Arc::new(Config::load(Some(file.path()), []).unwrap());
    let prepared = Prepared::new(&config);
    (config, prepared)
});

/// One life of a process.
pub struct Life {
    pub name: String,
    pub world: Arc<World>,
    state: Mutex<State>,
    /// Not a watch channel: that wakes its receivers in an order that cannot be repeated.
    changed: Notify,
    /// Asked to stop, as by SIGTERM.
    pub drain: CancellationToken,
    /// Messages that it has neither acknowledged nor given back; they come back some time after its death.
    pub hands: Mutex<BTreeMap<u64, Box<dyn Delivery>>>,
    engine: Option<Arc<Engine>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Runs,
    Frozen,
    Dead,
}

/// A life that answers HTTP.
#[derive(Clone)]
pub struct Gateway {
    pub life: Arc<Life>,
    pub router: axum::Router,
}

impl Life {
    fn new(world: &Arc<World>, name: String, engine: Option<Arc<Engine>>) -> Arc<Self> {
        world.note(|| format!("{name} starts"));
        Arc::new(Self {
            name,
            world: Arc::clone(world),
            state: Mutex::new(State::Runs),
            changed: Notify::new(),
            drain: CancellationToken::new(),
            hands: Mutex::default(),
            engine,
        })
    }

    fn state(&self) -> State {
        *self.state.lock().unwrap()
    }

    fn become_state(&self, state: State) -> State {
        let before = std::mem::replace(&mut *self.state.lock().unwrap(), state);
        self.changed.notify_waiters();
        before
    }

    async fn until(&self, wanted: State) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.state() == wanted {
                return;
            }
            changed.await;
        }
    }

    /// `kill -9`. Nothing that it does from now on has an effect, and nothing comes back to it.
    pub fn crash(&self) {
        if self.become_state(State::Dead) != State::Dead {
            self.world.note(|| format!("{} DIES", self.name));
            if let Some(engine) = &self.engine {
                engine.orphan(&self.name);
            }
        }
    }

    /// `kill -STOP`, and `kill -CONT` later: shorter than a lease, or longer.
    pub fn freeze_for_a_while(self: &Arc<Self>) {
        if self.state() != State::Runs {
            return;
        }
        let time = self.world.pick(&[500, 3_000, 9_000]);
        self.world.note(|| format!("{} FREEZES for {time} ms", self.name));
        self.become_state(State::Frozen);
        let life = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(time)).await;
            life.thaw();
        });
    }

    /// `kill -CONT`.
    pub fn thaw(&self) {
        if self.state() == State::Frozen {
            self.world.note(|| format!("{} thaws", self.name));
            self.become_state(State::Runs);
        }
    }

    pub fn is_dead(&self) -> bool {
        self.state() == State::Dead
    }

    /// Returns while the process runs, waits while it is frozen, and never returns when it is dead.
    pub async fn awake(&self) {
        if self.state() != State::Runs {
            self.until(State::Runs).await;
        }
    }

    /// Returns when it is dead.
    pub async fn death(&self) {
        self.until(State::Dead).await;
    }

    /// A call of this process on what is outside of it. What happens to it is up to the dice; `told` is for the trace.
    pub async fn call<T, E>(
        self: &Arc<Self>,
        told: impl Fn() -> String + Send + 'static,
        effect: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: std::fmt::Debug + Send + 'static,
        E: From<Error> + std::fmt::Debug + Send + 'static,
    {
        self.awake().await;
        let fate = self.world.fate();
        let failed = || E::from(Error::new(ErrorKind::Unavailable, "the dice say no"));
        if fate.fault == Fault::Before {
            self.world.note(|| format!("{}: {} FAILS", self.name, told()));
            return Err(failed());
        }
        let life = Arc::clone(self);
        let happening = async move {
            if let Some(pause) = fate.before {
                tokio::time::sleep(pause).await;
            }
            // Between machines a request is under way even if its sender dies.
            if life.world.plan.shape == Shape::Embedded {
                life.awake().await;
            }
            if fate.fault == Fault::CrashBefore {
                life.crash();
                life.awake().await;
            }
            if fate.fault == Fault::Freeze {
                life.freeze_for_a_while();
                life.awake().await;
            }
            let result = effect.await;
            life.world.note(|| {
                let unheard = if fate.fault == Fault::After { ", UNHEARD" } else { "" };
                format!("{}: {}{unheard} -> {}", life.name, told(), life.world.brief(&result))
            });
            if fate.fault == Fault::CrashAfter {
                life.crash();
            }
            if let Some(pause) = fate.after {
                tokio::time::sleep(pause).await;
            }
            life.awake().await;
            result
        };
        let result = if fate.before.is_some() {
            // Whoever waits may give up; the request is under way all the same.
            tokio::spawn(happening).await.unwrap()
        } else {
            happening.await
        };
        if fate.fault == Fault::After { Err(failed()) } else { result }
    }
}

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Up,
    Api,
    Worker,
}

/// The store and the queue that several processes share.
#[derive(Clone)]
pub struct Shared {
    pub store: Arc<dyn Store>,
    pub queue: Arc<dyn Queue>,
    pub signals: Arc<Signals>,
}

impl Shared {
    pub async fn open(world: &Arc<World>, database: &Database) -> Self {
        let config = &CONFIG.0;
        let options = StoreOptions {
            queued_per_user: config.limits.queued_per_user,
            running_per_user: config.limits.running_per_user,
            republish_after: Duration::from_secs(6),
            jitter,
            ..StoreOptions::default()
        };
        let clock = Arc::new(WorldClock(Arc::clone(world)));
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(database.clone(), clock, options).await.unwrap());
        let queue = Arc::new(SqliteQueue::open(database.clone()).await.unwrap());
        Self { signals: Arc::new(Signals::new(Arc::clone(&store))), store, queue }
    }
}

/// One life after the other, in `slot`, for as long as the simulation lasts.
pub async fn supervise(world: Arc<World>, slot: usize, kind: Kind, database: Database, shared: Option<Shared>, engine: Option<Arc<Engine>>) {
    for number in 1.. {
        let life = Life::new(&world, format!("{kind:?} {slot}.{number}"), engine.clone());
        world.lives.lock().unwrap()[slot] = Some(Arc::clone(&life));
        let backend = match &shared {
            Some(shared) => shared.clone(),
            None => Shared::open(&world, &database).await,
        };
        start(&life, slot, kind, backend);
        life.death().await;
        world.gateways.lock().unwrap()[slot] = None;
        let pause = if world.is_healed() { 100 } else { world.pick(&[50, 500, 4_000]) };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        // Only now does the queue notice.
        life.hands.lock().unwrap().clear();
    }
}

fn start(life: &Arc<Life>, slot: usize, kind: Kind, backend: Shared) {
    let real: Arc<dyn Store> = match life.world.mutant {
        Some(mutant) => Arc::new(Mutated::new(backend.store, mutant, Arc::clone(life))),
        None => backend.store,
    };
    let store: Arc<dyn Store> = Arc::new(FaultyStore::new(real, backend.signals, Arc::clone(life)));
    let queue: Arc<dyn Queue> = Arc::new(FaultyQueue::new(backend.queue, Arc::clone(life)));
    if kind != Kind::Worker {
        let deps = Deps {
            store: Arc::clone(&store),
            queue: Arc::clone(&queue),
            config: Arc::clone(&CONFIG.0),
            metrics: None,
            image_digests: ImageDigests::default(),
            admin_key: None,
            checks: Vec::new(),
            loopback_hosts_only: false,
            drain: life.drain.clone(),
        };
        let router = CONFIG.1.router(deps, KeySource::default());
        life.world.gateways.lock().unwrap()[slot] = Some(Gateway { life: Arc::clone(life), router });
    }
    if kind == Kind::Api {
        let life = Arc::clone(life);
        tokio::spawn(async move {
            life.drain.cancelled().await;
            life.awake().await;
            life.crash();
        });
        return;
    }
    let runner: Arc<dyn Runner> = Arc::new(EngineRunner::new(life.engine.clone().expect("a worker has an engine"), Arc::clone(life)));
    tokio::spawn(work(Arc::clone(life), store, queue, runner));
}

/// As the binary does it: leftovers first, then the sweeper and the consumer, until the drain is over.
async fn work(life: Arc<Life>, store: Arc<dyn Store>, queue: Arc<dyn Queue>, runner: Arc<dyn Runner>) {
    let config = &CONFIG.0;
    let (live, retry_later) = (LiveContainers::default(), Arc::new(Notify::new()));
    let sweeper = Sweeper {
        store: Arc::clone(&store),
        queue: Arc::clone(&queue),
        runner: Arc::clone(&runner),
        live: live.clone(),
        clock: Arc::new(WorldClock(Arc::clone(&life.world))),
        due_earlier: Arc::clone(&retry_later),
    };
    // The sweeper tries again.
    let _ = sweeper.remove_leftovers().await;
    let attempts = Attempts {
        pool: Pool::new(Arc::clone(&runner), live.clone(), config.agents.values(), PoolOptions::off()),
        store,
        queue,
        gate: Arc::new(Gate::trusting(Arc::clone(&runner))),
        runner,
        agents: config.agents.clone(),
        worker: WorkerId::random(),
        times: LeaseTimes { duration: config.worker.lease.get(), heartbeat: config.worker.heartbeat.get() },
        live,
        hand_back: CancellationToken::new(),
        preempted: CancellationToken::new(),
        retry_later,
    };
    let sweeping = tokio::spawn(sweeper.run(life.drain.clone()));
    consume(Arc::new(attempts), Slots::new(SLOTS), life.drain.clone(), config.worker.drain.get()).await;
    sweeping.abort();
    life.awake().await;
    life.crash();
}
