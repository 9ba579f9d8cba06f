//! What the pool knows of one agent: its idle containers, who asks for it, and its troubles.

use std::collections::VecDeque;
use std::time::Duration;

use quayside_shared::agent::Agent;
use tokio::time::Instant;

use super::demand::Demand;
use crate::reaper::Container;

/// Counted for an idle container whose memory cannot be read: what an idle Python takes, and as much again.
const ESTIMATE: u64 = 16 << 20;
/// How long the first start of an agent is thought to take.
const FIRST_GUESS: Duration = Duration::from_millis(500);
/// A container that did not live for this long did not wait for a request: its program ends by itself.
const PROVED: Duration = Duration::from_secs(10);
/// An idle container is done with its imports after this long, and its memory is read.
const SETTLED: Duration = Duration::from_secs(1);
/// More idle ones than wanted are kept for so long: the traffic may come back.
const SURPLUS: Duration = Duration::from_secs(10);
/// The first pause after a failure, doubled with each further one.
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_DOUBLINGS: u32 = 8;

/// An idle container.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) container: Container,
    pub(super) since: Instant,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Stock {
    pub(super) agent: Agent,
    /// The oldest first.
    pub(super) idle: VecDeque<Idle>,
    pub(super) starting: u32,
    pub(super) demand: Demand,
    /// Counts the images that its name has led to. A container of an older one serves nobody.
    pub(super) generation: u64,
    pub(super) digest: Option<String>,
    took: Duration,
    memory: Option<u64>,
    failures: u32,
    not_before: Option<Instant>,
    surplus_since: Option<Instant>,
}

impl Stock {
    pub(super) fn new(agent: Agent) -> Self {
        Self {
            agent,
            idle: VecDeque::new(),
            starting: 0,
            demand: Demand::default(),
            generation: 0,
            digest: None,
            took: FIRST_GUESS,
            memory: None,
            failures: 0,
            not_before: None,
            surplus_since: None,
        }
    }

    /// How many there should be: what is configured at least, and without a number at most `most`.
    pub(super) fn wanted(&self, now: Instant, most: u32) -> u32 {
        match self.agent.warm {
            Some(0) => 0,
            Some(least) => self.demand.wanted(now, self.took).min(most).max(least),
            None => self.demand.wanted(now, self.took).min(most),
        }
    }

    /// How many are there, or on their way.
    pub(super) fn there(&self) -> u32 {
        u32::try_from(self.idle.len()).unwrap_or(u32::MAX).saturating_add(self.starting)
    }

    /// Whether another may be started now: one in trouble is tried alone, and after a pause.
    pub(super) fn may_start(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now) && (self.failures == 0 || self.starting == 0)
    }

    /// When that changes by itself.
    pub(super) fn next_try(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|at| *at > now)
    }

    /// Bytes for one of its idle containers.
    pub(super) fn weight(&self) -> u64 {
        self.memory.unwrap_or(ESTIMATE).min(self.agent.memory)
    }

    /// Bytes for all of them, with those that are on their way.
    pub(super) fn memory(&self) -> u64 {
        self.weight().saturating_mul(self.there().into())
    }

    /// A start came to a container.
    pub(super) fn started(&mut self, container: Container, took: Duration, now: Instant) {
        self.took = (self.took * 3 + took) / 4;
        self.idle.push_back(Idle { container, since: now });
    }

    /// A start came to nothing, or to a container that did not wait: pauses, longer each time.
    pub(super) fn failed(&mut self, now: Instant) {
        let pause = BACK_OFF * (1 << self.failures.min(BACK_OFF_DOUBLINGS));
        self.failures += 1;
        self.not_before = Some(now + pause);
    }

    /// The oldest idle one that lives, and those that were found dead on the way.
    pub(super) fn take(&mut self, now: Instant) -> (Option<Container>, Vec<Container>) {
        let mut dead = Vec::new();
        while let Some(mut oldest) = self.idle.pop_front() {
            if !oldest.container.sandbox.is_over() {
                self.recovered();
                return (Some(oldest.container), dead);
            }
            self.note_death(oldest.since, now);
            dead.push(oldest.container);
        }
        (None, dead)
    }

    /// Takes out those that died, and reads the memory of those that live.
    pub(super) fn look(&mut self, now: Instant) -> Vec<Container> {
        let mut dead = Vec::new();
        let mut living = VecDeque::with_capacity(self.idle.len());
        for mut idle in std::mem::take(&mut self.idle) {
            if idle.container.sandbox.is_over() {
                self.note_death(idle.since, now);
                dead.push(idle.container);
                continue;
            }
            if now - idle.since >= PROVED {
                self.recovered();
            }
            if now - idle.since >= SETTLED
                && let Some(read) = idle.container.sandbox.measure().max_memory
            {
                self.memory = Some(read);
            }
            living.push_back(idle);
        }
        self.idle = living;
        dead
    }

    /// Takes out one of those that have been too many for a while, the oldest.
    pub(super) fn surplus(&mut self, now: Instant, wanted: u32) -> Option<Container> {
        if self.there() <= wanted || self.idle.is_empty() {
            self.surplus_since = None;
            return None;
        }
        let since = *self.surplus_since.get_or_insert(now);
        if now - since < SURPLUS && wanted > 0 {
            return None;
        }
        self.idle.pop_front().map(|idle| idle.container)
    }

    /// Its name leads to another image now: what was made of the one before.
    pub(super) fn image_changed(&mut self, digest: Option<String>) -> Vec<Container> {
        if self.digest.is_none() || digest.is_none() || self.digest == digest {
            self.digest = digest.or(self.digest.take());
            return Vec::new();
        }
        self.digest = digest;
        self.generation += 1;
        self.recovered();
        self.idle.drain(..).map(|idle| idle.container).collect()
    }

    fn note_death(&mut self, since: Instant, now: Instant) {
        if now - since < PROVED {
            self.failed(now);
        }
    }

    fn recovered(&mut self) {
        (self.failures, self.not_before) = (0, None);
    }
}
