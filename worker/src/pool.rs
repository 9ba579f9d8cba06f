//! Containers that are made before there is a run for them: hardened as any other, because they come from the same
//! `launch`; their program started, its imports done, waiting on standard input. A run takes the oldest, and no other
//! run ever gets that one.
//!
//! One task looks after them ([`Pool::tend`]): it counts what each agent's traffic asks for, starts a few at a time within
//! the memory that the pool may use, and throws away what died, what is of an old image, and what nobody asks for any more.
//! Containers of kept sessions, and those that are being removed, are looked after here too.

mod demand;
mod starter;
mod stock;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quayside_shared::agent::{Agent, Session};
use quayside_shared::error::chain;
use quayside_shared::ids::AgentName;
use quayside_shared::telemetry::names;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::consumer::until_it_answers;
use crate::places::{Place, Places};
use crate::reaper::{Container, Reaper};
use crate::runner::{ContainerKey, LaunchSpec, Runner};
use crate::sessions::Sessions;
use crate::slots::{Announced, LiveContainers};
use stock::Stock;

/// How often idle containers are looked at: whether they live, how much memory they hold, whether they are still wanted.
const LOOK: Duration = Duration::from_secs(1);
/// How often images are looked up: what a name leads to may change.
const IMAGES: Duration = Duration::from_secs(15);
/// A launch for a run that waits goes before all refilling, but one that hangs (an image that is being fetched) must not
/// keep the pool of other agents empty.
const PRIORITY: Duration = Duration::from_secs(2);

/// How large the pool may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolOptions {
    /// Bytes that idle containers may hold in all. 0: none are made.
    pub memory: u64,
    /// Bytes that frozen containers of kept sessions may hold in all. 0: none are kept.
    pub session_memory: u64,
    /// Containers started at once.
    pub starters: usize,
    /// Runs at once: more containers than that are made of an agent only where its configuration says so.
    pub slots: u32,
}

impl PoolOptions {
    /// No pool and no sessions.
    #[must_use]
    pub const fn off() -> Self {
        Self { memory: 0, session_memory: 0, starters: 1, slots: 0 }
    }
}

/// Every container of a worker that no run is using. Cheap to clone.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    runner: Arc<dyn Runner>,
    live: LiveContainers,
    places: Places,
    options: PoolOptions,
    reaper: Reaper,
    sessions: Sessions,
    state: Mutex<State>,
    starters: Arc<Semaphore>,
    /// Something happened that the plan may depend on.
    changed: Notify,
}

#[derive(Default)]
struct State {
    stocks: BTreeMap<AgentName, Stock>,
    /// When the launches began that runs are waiting for.
    cold: Vec<Instant>,
    /// Nothing is made or kept any more.
    closed: bool,
    /// What a failing engine may have made: its places stay taken until it was swept.
    doubtful: Vec<Place>,
    engine_failed: bool,
}

/// A launch that a run is waiting for, while it lasts.
#[derive(Debug)]
pub(crate) struct Cold {
    pool: Pool,
    since: Instant,
}

impl State {
    /// Bytes that all idle containers hold, with those that are on their way.
    fn memory(&self) -> u64 {
        self.stocks.values().map(Stock::memory).fold(0, u64::saturating_add)
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("options", &self.0.options).finish_non_exhaustive()
    }
}

impl Pool {
    /// An empty pool for `agents`. `live` is what the sweeper asks.
    #[must_use]
    pub fn new<'a>(runner: Arc<dyn Runner>, live: LiveContainers, agents: impl IntoIterator<Item = &'a Agent>, options: PoolOptions) -> Self {
        let reaper = Reaper::default();
        let stocks = agents.into_iter().map(|agent| (agent.name.clone(), Stock::new(agent.clone()))).collect();
        Self(Arc::new(Inner {
            runner,
            live,
            places: Places::default(),
            options,
            sessions: Sessions::new(options.session_memory, reaper.clone()),
            reaper,
            state: Mutex::new(State { stocks, ..State::default() }),
            starters: Arc::new(Semaphore::new(options.starters.max(1))),
            changed: Notify::new(),
        }))
    }

    /// Looks after what is idle until `drain`; then nothing is made any more, and what is idle goes at once.
    pub async fn tend(&self, drain: CancellationToken) {
        let following = async {
            loop {
                self.follow_images().await;
                tokio::time::sleep(IMAGES).await;
            }
        };
        let planning = async {
            loop {
                self.after_a_fault().await;
                let again = self.plan();
                tokio::select! {
                    () = self.0.changed.notified() => {}
                    () = sleep_until(again) => {}
                }
            }
        };
        tokio::select! {
            biased;
            () = drain.cancelled() => {}
            ((), ()) = async { tokio::join!(following, planning) } => {}
        }
        self.close();
    }

    /// Waits until everything is gone that was handed over to be removed.
    pub async fn gone(&self) {
        self.0.reaper.done().await;
    }

    pub(crate) fn reaper(&self) -> &Reaper {
        &self.0.reaper
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    /// A warm container of `agent`, if there is one. It is the caller's alone.
    pub(crate) fn take(&self, agent: &AgentName) -> Option<Container> {
        if self.0.options.memory == 0 {
            return None;
        }
        let now = Instant::now();
        let (taken, dead) = {
            let mut state = self.state();
            let stock = state.stocks.get_mut(agent).filter(|stock| stock.agent.warm != Some(0))?;
            stock.demand.asked(now);
            let found = stock.take(now);
            observe(stock);
            found
        };
        self.bury(agent, dead);
        let counter = if taken.is_some() { names::WARM_TAKEN } else { names::WARM_MISSED };
        metrics::counter!(counter, "agent" => agent.to_string()).increment(1);
        self.0.changed.notify_one();
        taken
    }

    /// Says that a run waits for a launch, until the answer is dropped: nothing is refilled meanwhile.
    pub(crate) fn cold(&self) -> Cold {
        let since = Instant::now();
        self.state().cold.push(since);
        Cold { pool: self.clone(), since }
    }

    /// Counts the images that the agent's name has led to; see [`Stock::generation`].
    pub(crate) fn generation(&self, agent: &AgentName) -> u64 {
        self.state().stocks.get(agent).map_or(0, |stock| stock.generation)
    }

    /// Something changed that the next look depends on.
    pub(crate) fn look_again(&self) {
        self.0.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One look at everything: throws away, and starts what is missing. Returns when the next is due by itself.
    fn plan(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut gone = Vec::new();
        let next = {
            let mut state = self.state();
            let most = self.0.options.slots;
            for (name, stock) in &mut state.stocks {
                for dead in stock.look(now) {
                    died(name);
                    gone.push(dead);
                }
                let wanted = stock.wanted(now, most);
                gone.extend(stock.surplus(now, wanted));
                observe(stock);
            }
            while state.memory() > self.0.options.memory {
                // They turned out to be larger than they were thought to be.
                let Some(stock) = state.stocks.values_mut().filter(|stock| !stock.idle.is_empty()).max_by_key(|stock| stock.memory()) else { break };
                gone.extend(stock.idle.pop_back().map(|idle| idle.container));
            }
            if self.0.options.memory > 0 && !state.closed && !state.engine_failed {
                state.cold.retain(|since| now - *since < PRIORITY);
                if state.cold.is_empty() {
                    self.refill(&mut state, now, &mut gone);
                }
            }
            let waiting = state.cold.iter().map(|since| *since + PRIORITY).min();
            let tries = state.stocks.values().filter(|stock| stock.there() < stock.wanted(now, most)).filter_map(|stock| stock.next_try(now)).min();
            let look = state.stocks.values().any(|stock| !stock.idle.is_empty()).then(|| now + LOOK);
            [waiting, tries, look].into_iter().flatten().min()
        };
        for container in gone {
            self.0.reaper.reap_idle(container);
        }
        let sessions = self.0.sessions.look(now);
        next.into_iter().chain(sessions).min()
    }

    /// Starts what is missing, what lacks most first, as long as there are starters and memory.
    fn refill(&self, state: &mut State, now: Instant, gone: &mut Vec<Container>) {
        let most = self.0.options.slots;
        loop {
            let lacking = |stock: &Stock| (f64::from(stock.there()) / f64::from(stock.wanted(now, most).max(1)), u32::MAX - stock.wanted(now, most));
            let startable = state.stocks.values().filter(|stock| stock.there() < stock.wanted(now, most) && stock.may_start(now));
            let Some(name) = startable.min_by(|a, b| lacking(a).partial_cmp(&lacking(b)).unwrap_or(std::cmp::Ordering::Equal)) else { return };
            let (name, weight, promised) = (name.agent.name.clone(), name.weight(), name.there() < name.agent.warm.unwrap_or(0));
            let Ok(permit) = Arc::clone(&self.0.starters).try_acquire_owned() else { return };
            if state.memory().saturating_add(weight) > self.0.options.memory {
                // What is configured goes before what traffic alone asks for.
                let beyond = state.stocks.values_mut().filter(|stock| !stock.idle.is_empty() && stock.there() > stock.agent.warm.unwrap_or(0));
                if let Some(other) = beyond.max_by_key(|stock| stock.there()).filter(|_| promised) {
                    gone.extend(other.idle.pop_front().map(|idle| idle.container));
                    continue;
                }
                return;
            }
            if let Some(stock) = state.stocks.get_mut(&name) {
                stock.starting += 1;
                starter::start(self.clone(), stock.agent.clone(), stock.generation, permit);
            }
        }
    }

    /// Waits until the engine answers, as the consumer does, and removes what a failed launch may have left.
    async fn after_a_fault(&self) {
        if !self.state().engine_failed {
            return;
        }
        until_it_answers(&*self.0.runner).await;
        let doubtful = std::mem::take(&mut self.state().doubtful);
        if let Err(fault) = self.0.runner.sweep(&|key| self.0.live.contains(key)).await {
            tracing::warn!(error = %chain(&fault), "what the engine left behind when it failed cannot be removed yet");
            self.state().doubtful.extend(doubtful);
            return;
        }
        self.state().engine_failed = false;
    }

    /// Looks up what the agents' images are now. Idle containers of another one go, those of kept sessions too.
    async fn follow_images(&self) {
        let followed: Vec<_> = {
            let state = self.state();
            let known = state.stocks.values().filter(|stock| stock.digest.is_some());
            known.map(|stock| (stock.agent.name.clone(), stock.agent.image.clone())).collect()
        };
        for (name, image) in followed {
            if let Ok(digest) = self.0.runner.image_digest(&image).await {
                self.note_image(&name, digest);
            }
        }
    }

    /// Looks up the agent's image unless that was done before: a later change is seen only against what was.
    pub(crate) async fn know_image(&self, agent: &Agent) {
        let followed = self.state().stocks.get(&agent.name).is_some_and(|stock| stock.digest.is_none());
        let warm = self.0.options.memory > 0 && agent.warm != Some(0);
        if followed
            && (warm || agent.session == Session::Conversation)
            && let Ok(digest) = self.0.runner.image_digest(&agent.image).await
        {
            self.note_image(&agent.name, digest);
        }
    }

    fn note_image(&self, name: &AgentName, digest: Option<String>) {
        let (old, generation) = {
            let mut state = self.state();
            let Some(stock) = state.stocks.get_mut(name) else { return };
            let old = stock.image_changed(digest);
            observe(stock);
            (old, stock.generation)
        };
        for container in old {
            self.0.reaper.reap_idle(container);
        }
        self.0.sessions.end_older(name, generation);
        self.0.changed.notify_one();
    }

    /// No more from now on: what is idle goes.
    fn close(&self) {
        let idle: Vec<Container> = {
            let mut state = self.state();
            state.closed = true;
            let idle = state.stocks.values_mut().flat_map(|stock| std::mem::take(&mut stock.idle)).map(|idle| idle.container).collect();
            state.stocks.values().for_each(observe);
            idle
        };
        for container in idle {
            self.0.reaper.reap_idle(container);
        }
        self.0.sessions.close();
    }

    fn bury(&self, agent: &AgentName, dead: Vec<Container>) {
        for container in dead {
            died(agent);
            self.0.reaper.reap_idle(container);
        }
    }

    /// Everything that a launch of `key` needs: the container is announced, and has its place.
    pub(crate) fn prepare(&self, agent: Agent, key: ContainerKey) -> (LaunchSpec, Place, Announced) {
        let (place, announced) = (self.0.places.take(), self.0.live.announce(key.clone()));
        (LaunchSpec { agent, key, place: place.number() }, place, announced)
    }
}

impl Drop for Cold {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        if let Some(at) = state.cold.iter().position(|since| *since == self.since) {
            state.cold.swap_remove(at);
        }
        drop(state);
        self.pool.0.changed.notify_one();
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn observe(stock: &Stock) {
    metrics::gauge!(names::WARM_IDLE, "agent" => stock.agent.name.to_string()).set(stock.idle.len() as f64);
}

fn died(agent: &AgentName) {
    metrics::counter!(names::WARM_DIED, "agent" => agent.to_string()).increment(1);
    tracing::debug!(%agent, "a container died while it waited for a request");
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
