//! A container engine: what it runs goes on whatever becomes of the worker, and it is the witness of it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quayside_worker::runner::{ContainerKey, EngineInfo, Exit, Fault, FaultKind, LaunchSpec, OutputChunk, Runner, Sandbox};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::process::Life;
use super::world::World;
use crate::checker::Execution;

/// The engine of one machine.
pub struct Engine {
    world: Arc<World>,
    containers: Mutex<Vec<Arc<Container>>>,
}

/// What there is to know of one container.
struct Container {
    key: ContainerKey,
    agent: String,
    /// The life that launched it.
    owner: String,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    started: u64,
    /// When it was sent its request, and what.
    sent: Option<(Instant, String)>,
    killed: Option<Instant>,
    removed: bool,
    /// Its worker knows of it.
    handed_over: bool,
    orphaned: bool,
}

/// What an agent does with a message: pieces of reply, each some time after it was asked, and its end.
struct Program {
    pieces: Vec<(Duration, String)>,
    end: Option<(Duration, i64)>,
}

/// The whole reply to a message, whichever agent completes it.
pub fn reply_to(message: &str) -> String {
    format!("re: {message}, and that is all")
}

fn program(agent: &str, message: &str) -> Program {
    let reply = reply_to(message);
    let piece = |from: usize, to: usize| reply[reply.len() * from / 4..reply.len() * to / 4].to_owned();
    let millis = Duration::from_millis;
    match agent {
        "quick" => Program { pieces: vec![(millis(120), piece(0, 4))], end: Some((millis(200), 0)) },
        "slow" => Program {
            pieces: vec![(millis(500), piece(0, 1)), (millis(2_500), piece(1, 3)), (millis(7_000), piece(3, 4))],
            end: Some((millis(7_500), 0)),
        },
        "fails" => Program { pieces: vec![(millis(300), piece(0, 2))], end: Some((millis(900), 3)) },
        _ => Program { pieces: vec![(millis(100), piece(0, 1))], end: None },
    }
}

impl Container {
    /// When it came to its end by itself, if it has, and with which code.
    fn ended(&self, state: &State) -> Option<(Instant, i64)> {
        let (sent, message) = state.sent.as_ref()?;
        let (after, code) = program(&self.agent, message).end?;
        let at = *sent + after;
        (at <= Instant::now() && state.killed.is_none_or(|killed| killed >= at)).then_some((at, code))
    }

    fn is_alive(&self, state: &State) -> bool {
        state.killed.is_none() && self.ended(state).is_none()
    }

    fn kill(&self) {
        let mut state = self.state.lock().unwrap();
        if self.is_alive(&state) {
            state.killed = Some(Instant::now());
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl Engine {
    pub fn new(world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self { world: Arc::clone(world), containers: Mutex::default() })
    }

    /// The worker of these containers died: those that run and that it knew of are an attempt that is lost.
    pub fn orphan(&self, owner: &str) {
        for container in self.containers.lock().unwrap().iter().filter(|container| container.owner == owner) {
            let mut state = container.state.lock().unwrap();
            state.orphaned |= state.handed_over && !state.removed && container.is_alive(&state);
        }
    }

    /// Containers that nobody has removed.
    pub fn leftovers(&self) -> usize {
        self.containers.lock().unwrap().iter().filter(|container| !container.state.lock().unwrap().removed).count()
    }

    /// What it witnessed.
    pub fn executions(&self) -> Vec<Execution> {
        let containers = self.containers.lock().unwrap();
        let told = containers.iter().map(|container| {
            let state = container.state.lock().unwrap();
            let ended = container.ended(&state);
            let gone = ended.map(|(at, _)| at).or(state.killed).filter(|_| state.removed);
            Execution {
                run: run_of(&container.key).0,
                epoch: run_of(&container.key).1,
                message: state.sent.as_ref().map(|(_, message)| message.clone()),
                user: None,
                start: state.started,
                ended: ended.filter(|(_, code)| *code == 0).map(|(at, _)| self.world.micros(at)),
                gone: gone.map(|at| self.world.micros(at)),
                orphaned: state.orphaned,
            }
        });
        told.collect()
    }
}

/// The engine as one life of a worker sees it.
pub struct EngineRunner {
    engine: Arc<Engine>,
    life: Arc<Life>,
}

impl EngineRunner {
    pub fn new(engine: Arc<Engine>, life: Arc<Life>) -> Self {
        Self { engine, life }
    }
}

/// The run and the epoch that a container was made for. No pool makes any here.
fn run_of(key: &ContainerKey) -> (String, u64) {
    match key {
        ContainerKey::Run { run_id, epoch } => (run_id.to_string(), *epoch),
        ContainerKey::Warm(_) => unreachable!("a simulated worker has no pool"),
    }
}

/// One call on the engine: it takes a while, may fail before or after its effect, and dies with the worker.
async fn call<T>(life: &Life, what: &str, key: &ContainerKey, effect: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    let world = &life.world;
    let failed = || Fault::new(FaultKind::Engine, "the dice say no");
    life.awake().await;
    let (before, after) = (world.strikes(world.plan.engine_faults), world.strikes(world.plan.engine_faults));
    tokio::time::sleep(Duration::from_millis(5 + world.roll(40))).await;
    life.awake().await;
    if before {
        world.note(|| format!("{}: {what} {} FAILS", life.name, world.name(&run_of(key).0)));
        return Err(failed());
    }
    let result = effect();
    world.note(|| format!("{}: {what} {} attempt {}{}", life.name, world.name(&run_of(key).0), run_of(key).1, if after { ", UNHEARD" } else { "" }));
    if world.strikes(world.plan.crashes) {
        life.crash();
    }
    if world.strikes(world.plan.slow) {
        tokio::time::sleep(world.some_millis(world.plan.slowest)).await;
    }
    life.awake().await;
    if after { Err(failed()) } else { result }
}

#[async_trait]
impl Runner for EngineRunner {
    async fn launch(&self, spec: &LaunchSpec) -> Result<Box<dyn Sandbox>, Fault> {
        let key = spec.key.clone();
        let state = State { started: 0, sent: None, killed: None, removed: false, handed_over: false, orphaned: false };
        let container = Arc::new(Container {
            key: key.clone(),
            agent: spec.agent.name.to_string(),
            owner: self.life.name.clone(),
            state: Mutex::new(state),
            changed: Notify::new(),
        });
        let made = || {
            container.state.lock().unwrap().started = self.engine.world.tick();
            self.engine.containers.lock().unwrap().push(Arc::clone(&container));
            Ok(())
        };
        call(&self.life, "launch", &key, made).await?;
        container.state.lock().unwrap().handed_over = true;
        Ok(Box::new(EngineSandbox { life: Arc::clone(&self.life), container, heard: 0 }))
    }

    async fn sweep(&self, live: &(dyn for<'a> Fn(&'a ContainerKey) -> bool + Send + Sync)) -> Result<usize, Fault> {
        self.life.awake().await;
        let listed: Vec<_> =
            self.engine.containers.lock().unwrap().iter().filter(|container| !container.state.lock().unwrap().removed).cloned().collect();
        let mut removed = 0;
        for container in listed {
            if live(&container.key) {
                continue;
            }
            let effect = || {
                container.kill();
                container.state.lock().unwrap().removed = true;
                Ok(())
            };
            call(&self.life, "sweep away", &container.key, effect).await?;
            removed += 1;
        }
        Ok(removed)
    }

    async fn ping(&self) -> Result<EngineInfo, Fault> {
        self.life.awake().await;
        if self.life.world.strikes(self.life.world.plan.engine_faults) {
            return Err(Fault::new(FaultKind::Engine, "the dice say no"));
        }
        Ok(EngineInfo { description: "simulated".to_owned() })
    }

    async fn image_digest(&self, _image: &str) -> Result<Option<String>, Fault> {
        Ok(None)
    }
}

/// A container in the hands of its worker.
struct EngineSandbox {
    life: Arc<Life>,
    container: Arc<Container>,
    /// Pieces of output that were read.
    heard: usize,
}

impl std::fmt::Debug for EngineSandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.container.key)
    }
}

impl EngineSandbox {
    /// Waits for the container to change, at the latest until `at`.
    async fn until(&self, at: Option<Instant>) {
        let changed = self.container.changed.notified();
        match at {
            Some(at) => drop(tokio::time::timeout_at(at, changed).await),
            None => changed.await,
        }
    }
}

#[async_trait]
impl Sandbox for EngineSandbox {
    fn send(&mut self, request: Bytes) -> Result<(), Fault> {
        if !self.life.is_dead() {
            let message = String::from_utf8_lossy(&request).into_owned();
            self.container.state.lock().unwrap().sent = Some((Instant::now(), message));
        }
        Ok(())
    }

    async fn next_output(&mut self) -> Option<Result<OutputChunk, Fault>> {
        let world = Arc::clone(&self.life.world);
        loop {
            self.life.awake().await;
            let next = {
                let state = self.container.state.lock().unwrap();
                let (sent, message) = state.sent.clone()?;
                let program = program(&self.container.agent, &message);
                let until = state.killed.unwrap_or_else(Instant::now);
                match program.pieces.get(self.heard) {
                    Some((after, piece)) if sent + *after <= until => Ok(Some(piece.clone())),
                    _ if !self.container.is_alive(&state) => Ok(None),
                    Some((after, _)) => Err(Some(sent + *after)),
                    None => Err(program.end.map(|(after, _)| sent + after)),
                }
            };
            match next {
                Ok(None) => return None,
                Ok(Some(piece)) => {
                    self.heard += 1;
                    if world.strikes(world.plan.engine_faults / 4) {
                        return Some(Err(Fault::new(FaultKind::Engine, "the dice say no")));
                    }
                    return Some(Ok(OutputChunk::Stdout(piece.into())));
                }
                Err(at) => self.until(at).await,
            }
        }
    }

    async fn kill(&mut self) -> Result<(), Fault> {
        let container = Arc::clone(&self.container);
        call(&self.life, "kill", &self.container.key, || {
            container.kill();
            Ok(())
        })
        .await
    }

    async fn wait(&mut self) -> Result<Exit, Fault> {
        self.life.awake().await;
        let state = self.container.state.lock().unwrap();
        let exit = |code| Exit { code, oom: false, cpu: None, max_memory: None };
        match self.container.ended(&state) {
            _ if state.removed => Err(Fault::new(FaultKind::Engine, "there is no such container")),
            Some((_, code)) => Ok(exit(code)),
            None => Ok(exit(137)),
        }
    }

    async fn remove(self: Box<Self>) -> Result<(), Fault> {
        let container = Arc::clone(&self.container);
        call(&self.life, "remove", &self.container.key, || {
            container.state.lock().unwrap().removed = true;
            Ok(())
        })
        .await
    }
}
