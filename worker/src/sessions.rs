//! Containers that are kept for the next run of their conversation, frozen until it comes.
//!
//! A session belongs to one user, one conversation and one agent, and at most one run of it is at work: its *turn*. The next
//! run waits until the one before has given its turn back, so that it finds the container frozen, or gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use quayside_shared::error::chain;
use quayside_shared::ids::{AgentName, ConversationId, UserId};
use quayside_shared::run::Run;
use quayside_shared::telemetry::names;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::reaper::{Container, Reaper};
use crate::runner::{Measured, OutputChunk};

/// Counted for a container whose memory cannot be read.
const ESTIMATE: u64 = 32 << 20;
/// A program that wrote more than this after its reply was complete does not keep to the protocol, and is not kept.
const CHATTER: usize = 1 << 20;

/// Whose container it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey {
    user: UserId,
    conversation: ConversationId,
    agent: AgentName,
}

impl SessionKey {
    pub(crate) fn of(run: &Run) -> Self {
        Self { user: run.user_id.clone(), conversation: run.conversation_id.clone(), agent: run.agent.clone() }
    }
}

/// A container between two runs.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) container: Container,
    /// What it had used when its last run ended: not the next run's.
    pub(crate) used: Measured,
    /// Of its image; see the pool.
    pub(crate) generation: u64,
    /// How long it waits for the next run.
    pub(crate) idle: Duration,
}

#[derive(Debug)]
enum State {
    /// A run has its turn.
    Busy,
    Frozen {
        kept: Box<Kept>,
        since: Instant,
    },
}

/// The sessions of a worker. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Sessions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    memory: u64,
    reaper: Reaper,
    all: Mutex<All>,
    given_back: Notify,
}

#[derive(Debug, Default)]
struct All {
    states: HashMap<SessionKey, State>,
    closed: bool,
}

/// The right to use a session, for one run. Dropping it ends the session.
#[derive(Debug)]
pub(crate) struct Turn {
    sessions: Sessions,
    key: Option<SessionKey>,
}

impl Sessions {
    /// None yet; frozen containers may hold `memory` bytes in all.
    pub(crate) fn new(memory: u64, reaper: Reaper) -> Self {
        Self(Arc::new(Inner { memory, reaper, all: Mutex::default(), given_back: Notify::new() }))
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn, and takes the container that the run before left. Cancel-safe.
    pub(crate) async fn turn(&self, key: SessionKey) -> (Turn, Option<Kept>) {
        loop {
            let given_back = self.0.given_back.notified();
            tokio::pin!(given_back);
            given_back.as_mut().enable();
            if let Some(found) = self.try_turn(&key) {
                return (Turn { sessions: self.clone(), key: Some(key) }, found);
            }
            given_back.await;
        }
    }

    #[expect(clippy::option_option, reason = "the turn, and the container that may come with it")]
    fn try_turn(&self, key: &SessionKey) -> Option<Option<Kept>> {
        let mut all = self.all();
        let found = match all.states.entry(key.clone()) {
            Entry::Occupied(entry) if matches!(entry.get(), State::Busy) => None,
            Entry::Occupied(mut entry) => match entry.insert(State::Busy) {
                State::Frozen { kept, .. } => Some(Some(*kept)),
                State::Busy => None,
            },
            Entry::Vacant(entry) => {
                entry.insert(State::Busy);
                Some(None)
            }
        };
        observe(&all);
        found
    }

    /// Ends what has waited too long or died, and the longest idle ones while all of them hold too much memory. Returns
    /// when to look again.
    pub(crate) fn look(&self, now: Instant) -> Option<Instant> {
        let mut all = self.all();
        let mut ended = Vec::new();
        let over: Vec<SessionKey> = all
            .states
            .iter_mut()
            .filter_map(|(key, state)| match state {
                State::Frozen { kept, since } => (now - *since >= kept.idle || kept.container.sandbox.is_over()).then(|| key.clone()),
                State::Busy => None,
            })
            .collect();
        ended.extend(over.into_iter().filter_map(|key| all.take(&key)));
        while all.memory() > self.0.memory {
            let Some(longest) = all.frozen().min_by_key(|(_, _, since)| *since).map(|(key, ..)| key.clone()) else { break };
            ended.extend(all.take(&longest));
        }
        observe(&all);
        // Soon, because one may die at any time.
        let again = all.frozen().map(|(_, kept, since)| since + kept.idle).min().map(|at| at.min(now + Duration::from_secs(1)));
        drop(all);
        self.end(ended);
        again
    }

    /// Ends the sessions of `agent` whose image is older than `generation`.
    pub(crate) fn end_older(&self, agent: &AgentName, generation: u64) {
        let mut all = self.all();
        let old = |(key, kept, _): &(&SessionKey, &Kept, Instant)| key.agent == *agent && kept.generation < generation;
        let old: Vec<SessionKey> = all.frozen().filter(old).map(|(key, ..)| key.clone()).collect();
        let ended = old.into_iter().filter_map(|key| all.take(&key)).collect();
        observe(&all);
        drop(all);
        self.end(ended);
    }

    /// Ends all of them, and keeps none from now on.
    pub(crate) fn close(&self) {
        let mut all = self.all();
        all.closed = true;
        let frozen: Vec<SessionKey> = all.frozen().map(|(key, ..)| key.clone()).collect();
        let ended = frozen.into_iter().filter_map(|key| all.take(&key)).collect();
        observe(&all);
        drop(all);
        self.end(ended);
    }

    fn end(&self, ended: Vec<Container>) {
        for container in ended {
            self.0.reaper.reap_idle(container);
        }
    }
}

impl All {
    fn frozen(&self) -> impl Iterator<Item = (&SessionKey, &Kept, Instant)> {
        self.states.iter().filter_map(|(key, state)| match state {
            State::Frozen { kept, since } => Some((key, &**kept, *since)),
            State::Busy => None,
        })
    }

    /// Takes the container out of a session that no run has the turn of.
    fn take(&mut self, key: &SessionKey) -> Option<Container> {
        match self.states.remove(key)? {
            State::Frozen { kept, .. } => Some(kept.container),
            State::Busy => None,
        }
    }

    fn memory(&self) -> u64 {
        self.frozen().map(|(_, kept, _)| kept.used.max_memory.unwrap_or(ESTIMATE)).sum()
    }
}

impl Turn {
    /// Freezes the container and gives the turn back with it. What cannot be frozen, or goes on talking, is not kept.
    pub(crate) async fn keep(self, mut kept: Kept) {
        match kept.container.sandbox.freeze().await {
            Ok(()) if is_quiet(&mut kept.container).await => self.give_back(kept),
            Ok(()) => self.end(kept.container),
            Err(fault) => {
                tracing::debug!(error = %chain(&fault), "a container cannot be kept for its conversation");
                self.end(kept.container);
            }
        }
    }

    fn give_back(mut self, kept: Kept) {
        let sessions = self.sessions.clone();
        let mut all = sessions.all();
        match self.key.take() {
            Some(key) if !all.closed => {
                all.states.insert(key, State::Frozen { kept: Box::new(kept), since: Instant::now() });
                observe(&all);
                drop(all);
                sessions.0.given_back.notify_waiters();
                sessions.look(Instant::now());
            }
            key => {
                drop(all);
                self.key = key;
                self.end(kept.container);
            }
        }
    }

    fn end(self, container: Container) {
        self.sessions.0.reaper.reap_idle(container);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.sessions.all().states.remove(&key);
            self.sessions.0.given_back.notify_waiters();
        }
    }
}

/// Whether the frozen program's output can be told to be at its end: all that came after its reply is thrown away.
async fn is_quiet(container: &mut Container) -> bool {
    let (mut dropped, quiet) = (0, container.sandbox.lag());
    while dropped <= CHATTER {
        match tokio::time::timeout(quiet, container.sandbox.next_output()).await {
            Ok(Some(Ok(OutputChunk::Stdout(bytes) | OutputChunk::Stderr(bytes)))) => dropped += bytes.len(),
            Ok(Some(Err(_)) | None) => return false,
            Err(_elapsed) => return true,
        }
    }
    false
}

impl Kept {
    /// Lets the container go on with the next request. It is spoken to while it is frozen: what it writes from here on
    /// comes after the request.
    pub(crate) async fn resume(&mut self, request: bytes::Bytes) -> Result<(), crate::runner::Fault> {
        let sandbox = &mut self.container.sandbox;
        while let Some(left) = sandbox.next_output().now_or_never() {
            if let Some(Ok(_)) = left {
                continue;
            }
            return Err(crate::runner::Fault::new(crate::runner::FaultKind::Engine, "the kept container has ended"));
        }
        sandbox.say(request)?;
        sandbox.thaw().await
    }
}

fn observe(all: &All) {
    metrics::gauge!(names::SESSIONS_FROZEN).set(all.frozen().count() as f64);
}
