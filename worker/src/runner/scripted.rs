//! A runner without an engine: the agent's command is the script of what its program does. For tests, and as the no-op
//! runner of benchmarks.
//!
//! It keeps the contract to the letter: a call in the wrong order is [`FaultKind::Misuse`], and [`ScriptedRunner::containers`]
//! shows what was not removed. Time is tokio's, so a test with a paused clock runs at once.
//!
//! | word | what the program does |
//! | --- | --- |
//! | `echo` | reads the request to its end and writes it to standard output |
//! | `stdout:TEXT`, `stderr:TEXT` | writes `TEXT` |
//! | `stdout-hex:FF00` | writes these bytes |
//! | `stdout-bytes:N` | writes `N` times an `x` |
//! | `sleep:200ms`, `sleep:3s` | sleeps |
//! | `close` | closes both streams and goes on |
//! | `exit:N`, `signal:N`, `oom` | ends; without any of them it ends with exit code 0 |
//! | `hang` | does nothing until it is killed |
//! | `ignore-stdin` | nothing: it never reads unless it says `echo` |
//! | `launch-fault:engine`, `launch-fault:image`, `launch-fault:refused` | is never started |

mod script;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::order::Order;
use super::{ContainerKey, EngineInfo, Exit, Fault, FaultKind, LaunchSpec, OutputChunk, Runner, Sandbox};
use script::{Program, Step};

/// See the module's description.
#[derive(Debug, Default)]
pub struct ScriptedRunner {
    containers: Containers,
    launched: AtomicUsize,
    engine_down: AtomicBool,
}

/// Everything that was launched and not removed.
#[derive(Debug, Clone, Default)]
struct Containers(Arc<Mutex<HashSet<ContainerKey>>>);

impl Containers {
    fn all(&self) -> MutexGuard<'_, HashSet<ContainerKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ScriptedRunner {
    /// A runner without containers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What was launched and is not removed, dead or alive.
    #[must_use]
    pub fn containers(&self) -> HashSet<ContainerKey> {
        self.containers.all().clone()
    }

    /// How many containers were launched so far.
    #[must_use]
    pub fn launched(&self) -> usize {
        self.launched.load(Ordering::SeqCst)
    }

    /// From now on every call on the runner fails as if the engine did not answer, or not any more.
    pub fn set_engine_down(&self, down: bool) {
        self.engine_down.store(down, Ordering::SeqCst);
    }

    fn engine(&self) -> Result<(), Fault> {
        if self.engine_down.load(Ordering::SeqCst) {
            return Err(Fault::new(FaultKind::Engine, "the container engine does not answer"));
        }
        Ok(())
    }
}

#[async_trait]
impl Runner for ScriptedRunner {
    async fn launch(&self, spec: &LaunchSpec) -> Result<Box<dyn Sandbox>, Fault> {
        self.engine()?;
        let program = Program::parse(&spec.agent)?;
        let key = spec.key.clone();
        self.containers.all().insert(key.clone());
        self.launched.fetch_add(1, Ordering::SeqCst);
        if spec.agent.command.iter().any(|word| word == script::LAUNCH_HANG) {
            std::future::pending::<()>().await;
        }
        Ok(Box::new(ScriptedSandbox {
            containers: self.containers.clone(),
            key,
            order: Order::default(),
            program,
            at: Instant::now(),
            request: Bytes::new(),
            exit: None,
        }))
    }

    async fn sweep(&self, live: &(dyn for<'a> Fn(&'a ContainerKey) -> bool + Send + Sync)) -> Result<usize, Fault> {
        self.engine()?;
        let mut containers = self.containers.all();
        let before = containers.len();
        containers.retain(|key| live(key));
        Ok(before - containers.len())
    }

    async fn ping(&self) -> Result<EngineInfo, Fault> {
        self.engine()?;
        Ok(EngineInfo { description: "scripted, no engine".to_owned() })
    }

    async fn image_digest(&self, image: &str) -> Result<Option<String>, Fault> {
        self.engine()?;
        Ok((image != Program::MISSING_IMAGE).then(|| format!("sha256:{image}")))
    }
}

/// A program that is played while its output is read.
#[derive(Debug)]
struct ScriptedSandbox {
    containers: Containers,
    key: ContainerKey,
    order: Order,
    program: Program,
    /// When the program's next step begins.
    at: Instant,
    request: Bytes,
    exit: Option<Exit>,
}

impl ScriptedSandbox {
    /// Plays the next step. Cancel-safe: a step is taken off the script when it is over.
    async fn step(&mut self) -> Option<OutputChunk> {
        match self.program.next() {
            Step::Write(chunk) => return Some(chunk),
            Step::Echo => {
                let request = std::mem::take(&mut self.request);
                self.at = self.at.max(Instant::now());
                self.program.replace(Step::Write(OutputChunk::Stdout(request)));
                return None;
            }
            Step::Sleep(time) => {
                tokio::time::sleep_until(self.at + time).await;
                self.at += time;
            }
            Step::Close => self.order.note_output_ended(),
            Step::End { code, oom } => {
                let measured = Some(Duration::ZERO);
                self.exit = Some(Exit { code, oom, cpu: measured, max_memory: None });
                self.order.note_output_ended();
            }
            Step::Hang => std::future::pending().await,
        }
        self.program.done();
        None
    }
}

#[async_trait]
impl Sandbox for ScriptedSandbox {
    fn send(&mut self, request: Bytes) -> Result<(), Fault> {
        self.order.send()?;
        self.request = request;
        Ok(())
    }

    async fn next_output(&mut self) -> Option<Result<OutputChunk, Fault>> {
        if let Err(misuse) = self.order.next_output() {
            return Some(Err(misuse));
        }
        while self.order.wait().is_err() {
            if let Some(chunk) = self.step().await {
                self.program.done();
                return Some(Ok(chunk));
            }
        }
        None
    }

    async fn kill(&mut self) -> Result<(), Fault> {
        if self.exit.is_none() {
            self.exit = Some(Exit { code: 128 + 9, oom: false, cpu: Some(Duration::ZERO), max_memory: None });
        }
        self.order.note_killed();
        Ok(())
    }

    async fn wait(&mut self) -> Result<Exit, Fault> {
        self.order.wait()?;
        loop {
            if let Some(exit) = self.exit {
                self.order.note_exited();
                return Ok(exit);
            }
            // Written after the streams were closed: nobody gets it.
            if self.step().await.is_some() {
                self.program.done();
            }
        }
    }

    async fn remove(self: Box<Self>) -> Result<(), Fault> {
        self.order.remove()?;
        self.containers.all().remove(&self.key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quayside_shared::agent::{Agent, Input, Output};
    use quayside_shared::ids::RunId;

    #[tokio::test(start_paused = true)]
    async fn a_script_sleeps_by_tokios_clock() {
        let agent = Agent {
            input: Input::Text,
            output: Output::Text,
            memory: 1 << 20,
            pids: 1,
            timeout: Duration::from_secs(1),
            ..Agent::new(
                "script".parse().unwrap(),
                "any".to_owned(),
                ["sleep:1s", "echo", "sleep:3600s", "stdout:late", "exit:3"].map(str::to_owned).to_vec(),
            )
        };
        let runner = ScriptedRunner::new();
        let begin = Instant::now();
        let mut sandbox = runner.launch(&LaunchSpec { agent, key: ContainerKey::Run { run_id: RunId::random(), epoch: 1 }, place: 0 }).await.unwrap();
        // The first second passes while the container waits for its request; what follows counts from the request.
        tokio::time::sleep(Duration::from_secs(10)).await;
        sandbox.send(Bytes::from_static(b"now")).unwrap();
        assert_eq!(sandbox.next_output().await.unwrap().unwrap(), OutputChunk::Stdout(Bytes::from_static(b"now")));
        assert_eq!(begin.elapsed(), Duration::from_secs(10));
        assert_eq!(sandbox.next_output().await.unwrap().unwrap(), OutputChunk::Stdout(Bytes::from_static(b"late")));
        assert_eq!(begin.elapsed(), Duration::from_secs(3610));
        assert!(sandbox.next_output().await.is_none());
        assert_eq!(sandbox.wait().await.unwrap().code, 3);
        assert_eq!(runner.containers().len(), 1);
        sandbox.remove().await.unwrap();
        assert_eq!(runner.containers().len(), 0);
    }
}
