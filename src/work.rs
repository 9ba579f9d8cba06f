//! The worker of a process: sweeper and consumer, until the drain is over.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures::FutureExt;
use quayside_api::Check;
use quayside_shared::clock::SystemClock;
use quayside_shared::config::{Config, HumanSize, KnownEscapes};
use quayside_shared::connect::Connected;
use quayside_shared::error::chain;
use quayside_shared::ids::{AgentName, WorkerId};
use quayside_shared::shutdown::Shutdown;
use quayside_worker::attempt::Attempts;
use quayside_worker::consumer::consume;
use quayside_worker::lease::LeaseTimes;
use quayside_worker::pool::{Pool, PoolOptions};
use quayside_worker::preemption::Notice;
use quayside_worker::proof::container::Probe;
use quayside_worker::proof::gate::{Gate, Policy};
use quayside_worker::report::Reporter;
use quayside_worker::runner::Runner;
use quayside_worker::slots::{LiveContainers, Slots, slots_for};
use quayside_worker::sweeper::Sweeper;
use tokio_util::sync::CancellationToken;

use crate::instance::{self, Instance};

/// How often image digests are looked up again.
const DIGESTS: Duration = Duration::from_secs(60);
/// How often containers of dead workers are looked for.
const DEAD: Duration = Duration::from_secs(30);

/// Takes this process's identity and works until `shutdown` says no more and everything is finished or handed back.
pub(crate) async fn work(connected: Connected, sandboxes: Sandboxes, config: Arc<Config>, shutdown: Shutdown) {
    let Connected { store, queue } = connected;
    let Sandboxes { runner, gate, live } = sandboxes;
    let retry_later = Arc::new(tokio::sync::Notify::new());
    let sweeper = Sweeper {
        store: Arc::clone(&store),
        queue: Arc::clone(&queue),
        runner: Arc::clone(&runner),
        live: live.clone(),
        clock: Arc::new(SystemClock),
        due_earlier: Arc::clone(&retry_later),
    };
    // Before the first attempt, so that no uid is shared with a container of an earlier life.
    if let Err(fault) = sweeper.remove_leftovers().await {
        tracing::warn!(error = %chain(&fault), "the container engine does not answer yet; `quayside doctor` says what to do");
    }
    let total = slots(&config);
    let options = PoolOptions {
        memory: share(config.worker.warm_memory),
        session_memory: share(config.worker.session_memory),
        starters: machine_cpus(),
        slots: total,
    };
    let attempts = Attempts {
        pool: Pool::new(Arc::clone(&runner), live.clone(), config.agents.values(), options),
        store,
        queue,
        runner,
        gate: Arc::clone(&gate),
        agents: config.agents.clone(),
        worker: WorkerId::random(),
        times: LeaseTimes { duration: config.worker.lease.get(), heartbeat: config.worker.heartbeat.get() },
        live,
        hand_back: CancellationToken::new(),
        preempted: CancellationToken::new(),
        retry_later,
    };
    tracing::info!(worker = %attempts.worker, slots = total, "worker started");
    let slots = Slots::new(total);
    let worker = attempts.worker.clone();
    let reporter = Reporter {
        store: Arc::clone(&attempts.store),
        worker: worker.clone(),
        host: host_name(),
        version: env!("CARGO_PKG_VERSION"),
        slots: slots.clone(),
        every: config.worker.heartbeat.get(),
    };
    let store = Arc::clone(&attempts.store);
    let reporting = tokio::spawn(reporter.run(shutdown.drain.clone()));
    let sweeping = tokio::spawn(sweeper.run(shutdown.drain.clone()));
    let bereaved = tokio::spawn(remove_containers_of_the_dead(Arc::clone(&config)));
    let proving = {
        let (gate, drain) = (Arc::clone(&gate), shutdown.drain.clone());
        tokio::spawn(async move { gate.keep_trying(drain).await })
    };
    let noticing = tokio::spawn(drain_when_preempted(Arc::clone(&config), attempts.preempted.clone(), shutdown.drain.clone()));
    consume(Arc::new(attempts), slots, shutdown.drain, config.worker.drain.get()).await;
    gate.finish().await;
    for background in [reporting, sweeping, bereaved, proving, noticing] {
        background.abort();
    }
    // A worker that drained is not one that is missing.
    if let Err(error) = store.forget_worker(&worker).await {
        tracing::debug!(error = %chain(&error), "the worker is listed until it is forgotten");
    }
    tracing::info!("drained");
}

/// Drains when the machine is about to be taken away. Goes on during a drain: the notice may come after the signal, and
/// then too it is the reason why runs are handed back.
async fn drain_when_preempted(config: Arc<Config>, preempted: CancellationToken, drain: CancellationToken) {
    let Some(url) = &config.worker.preemption_notice else { return };
    match Notice::at(url) {
        Ok(notice) => notice.given().await,
        Err(error) => {
            tracing::error!(error = %chain(&error), "the preemption notice cannot be asked for; only signals drain this worker");
            return;
        }
    }
    tracing::warn!("this machine is being taken away: draining");
    preempted.cancel();
    drain.cancel();
}

/// Bytes for what idles: as configured, or a quarter of this machine's memory; nothing where that cannot be told.
fn share(configured: Option<HumanSize>) -> u64 {
    configured.map_or_else(|| machine_memory().unwrap_or(0) / 4, HumanSize::bytes)
}

/// How many containers at once.
pub(crate) fn slots(config: &Config) -> u32 {
    match config.worker.slots {
        0 => slots_for(machine_cpus(), machine_memory()),
        slots => slots,
    }
}

/// What makes containers on this machine, and says who may run in them.
#[derive(Clone)]
pub(crate) struct Sandboxes {
    pub(crate) runner: Arc<dyn Runner>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) live: LiveContainers,
}

impl Sandboxes {
    /// Those of the worker `instance`.
    pub(crate) fn of(config: &Config, instance: &Instance) -> anyhow::Result<Self> {
        let chosen = crate::runners::choose(config);
        tracing::info!(runner = chosen.kind.name(), why = chosen.why, "this runner makes the containers");
        let (runner, live) = (runner(config, &instance.name, instance.uid_base)?, LiveContainers::default());
        let policy = Policy {
            probe: config.worker.prove_limits.then(|| probe(config, instance.uid_base, live.clone())),
            refuse_known_escapes: config.worker.known_escapes == KnownEscapes::Refuse,
            runner: runner_name(config),
            machine_cpus: machine_cpus(),
        };
        let gate = Arc::new(Gate::new(Arc::clone(&runner), config.agents.clone(), policy));
        Ok(Self { runner, gate, live })
    }

    /// What `/readyz` asks of them.
    pub(crate) fn checks(&self) -> Vec<Check> {
        let gate = Arc::clone(&self.gate);
        let sandbox = Arc::new(move || futures::future::ready(gate.readiness()).boxed());
        vec![engine_check(&self.runner), Check { name: "sandbox", check: sandbox }]
    }
}

/// How limits are proven here: with the image of the agent `python`, which is always configured.
pub(crate) fn probe(config: &Config, uid_base: u32, live: LiveContainers) -> Probe {
    let python = config.agents.values().find(|agent| agent.name.as_str() == "python");
    let image = python.or_else(|| config.agents.values().next()).map(|agent| agent.image.clone()).unwrap_or_default();
    Probe { image, uid_base: Some(uid_base), local: config.runner.docker_host.starts_with("unix://"), live }
}

/// How the record of an attempt names the runner.
fn runner_name(config: &Config) -> &'static str {
    crate::runners::choose(config).kind.name()
}

pub(crate) fn machine_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A runner that only looks: it starts nothing, so it needs no identity.
pub(crate) fn looking_runner(config: &Config) -> anyhow::Result<Arc<dyn Runner>> {
    runner(config, "quayside-nobody", config.runner.uid_base)
}

/// The runner of the instance of this name.
pub(crate) fn runner(config: &Config, instance: &str, uid_base: u32) -> anyhow::Result<Arc<dyn Runner>> {
    crate::runners::connect(config, instance, uid_base)
}

/// A worker that was killed for good cannot remove its containers: the living ones on its machine do.
async fn remove_containers_of_the_dead(config: Arc<Config>) {
    loop {
        tokio::time::sleep(DEAD).await;
        for (name, _held) in dead(&config.backend.data_dir).await {
            let Ok(runner) = runner(&config, &name, config.runner.uid_base) else { continue };
            match runner.sweep(&|_| false).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, instance = name, "removed the containers of a dead worker"),
                Err(fault) => tracing::warn!(error = %chain(&fault), instance = name, "the containers of a dead worker stay for now"),
            }
        }
    }
}

async fn dead(data_dir: &Path) -> Vec<(String, std::fs::File)> {
    let data_dir = data_dir.to_owned();
    tokio::task::spawn_blocking(move || instance::dead(&data_dir)).await.unwrap_or_default()
}

/// Ready only while the engine answers.
fn engine_check(runner: &Arc<dyn Runner>) -> Check {
    let runner = Arc::clone(runner);
    Check {
        name: "engine",
        check: Arc::new(move || {
            let runner = Arc::clone(&runner);
            async move { runner.ping().await.map(|_| None).map_err(|fault| chain(&fault)) }.boxed()
        }),
    }
}

/// Keeps the digests that `GET /api/agents` shows.
pub(crate) async fn follow_digests(runner: Arc<dyn Runner>, config: Arc<Config>, digests: Arc<RwLock<HashMap<AgentName, Option<String>>>>) {
    loop {
        for (name, agent) in &config.agents {
            if let Ok(digest) = runner.image_digest(&agent.image).await
                && let Ok(mut digests) = digests.write()
            {
                digests.insert(name.clone(), digest);
            }
        }
        tokio::time::sleep(DIGESTS).await;
    }
}

/// The name of this machine, for operators.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// Bytes of memory of this machine, where the kernel tells.
fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib << 10)
}
