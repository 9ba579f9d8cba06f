//! A runner without an engine: the agent's command is the script of what its program does. For tests, and as the no-op
//! runner of benchmarks.
//!
//! It keeps the contract to the letter: a call in the wrong order is [`FaultKind::Misuse`], and [`ScriptedRunner::containers`]
//! shows what was not removed. Time is tokio's, so a test with a paused clock runs at once.
//!
//! | word | what the program does |
//! | --- | --- |
//! | `echo` | reads the request to its end and writes it to standard output |
//! | `echo-lines` | writes each request back, until standard input ends |
//! | `answers` | answers each request with a result event, `1: …`, `2: …`, until standard input ends |
//! | `ticks:10ms` | writes a `.` each time, for ever |
//! | `stdout:TEXT`, `stderr:TEXT` | writes `TEXT` |
//! | `stdout-hex:FF00` | writes these bytes |
//! | `stdout-bytes:N` | writes `N` times an `x` |
//! | `sleep:200ms`, `sleep:3s` | sleeps |
//! | `close` | closes both streams and goes on |
//! | `exit:N`, `signal:N`, `oom` | ends; without any of them it ends with exit code 0 |
//! | `hang` | does nothing until it is killed |
//! | `ignore-stdin` | nothing: it never reads unless it says `echo` |
//! | `launch-sleep:200ms` | is started after this time |
//! | `launch-fault:engine`, `launch-fault:image`, `launch-fault:refused` | is never started |

mod script;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::order::Order;
use super::{ContainerKey, EngineInfo, Exit, Fault, FaultKind, LaunchSpec, Measured, OutputChunk, Runner, Sandbox};
use script::{Program, Step};

/// See the module's description.
#[derive(Debug, Default)]
pub struct ScriptedRunner {
    containers: Containers,
    launched: AtomicUsize,
    engine_down: AtomicBool,
    /// What a container is said to have used.
    memory: Option<u64>,
    /// How often the images were built anew.
    images: AtomicUsize,
}

/// Everything that was launched and not removed.
#[derive(Debug, Clone, Default)]
struct Containers(Arc<Mutex<HashMap<ContainerKey, Arc<Seen>>>>);

/// What is seen of a container from outside.
#[derive(Debug, Default)]
struct Seen {
    place: u32,
    frozen: AtomicBool,
    /// Ended by somebody else.
    ended: AtomicBool,
}

impl Containers {
    fn all(&self) -> MutexGuard<'_, HashMap<ContainerKey, Arc<Seen>>> {
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
        self.containers.all().keys().cloned().collect()
    }

    /// Their places.
    #[must_use]
    pub fn places(&self) -> Vec<u32> {
        self.containers.all().values().map(|seen| seen.place).collect()
    }

    /// Those that are frozen.
    #[must_use]
    pub fn frozen(&self) -> HashSet<ContainerKey> {
        self.containers.all().iter().filter(|(_, seen)| seen.frozen.load(Ordering::SeqCst)).map(|(key, _)| key.clone()).collect()
    }

    /// Ends a container behind the worker's back.
    pub fn end(&self, key: &ContainerKey) {
        if let Some(seen) = self.containers.all().get(key) {
            seen.ended.store(true, Ordering::SeqCst);
        }
    }

    /// From now on every image's name leads to another image.
    pub fn rebuild_images(&self) {
        self.images.fetch_add(1, Ordering::SeqCst);
    }

    /// The same runner, whose containers are said to have used so many bytes of memory.
    #[must_use]
    pub fn using(self, memory: u64) -> Self {
        Self { memory: Some(memory), ..self }
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
        let time = script::launch_time(&spec.agent);
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        let key = spec.key.clone();
        let seen = Arc::new(Seen { place: spec.place, ..Seen::default() });
        self.containers.all().insert(key.clone(), Arc::clone(&seen));
        self.launched.fetch_add(1, Ordering::SeqCst);
        if spec.agent.command.iter().any(|word| word == script::LAUNCH_HANG) {
            std::future::pending::<()>().await;
        }
        Ok(Box::new(ScriptedSandbox {
            containers: self.containers.clone(),
            key,
            seen,
            order: Order::default(),
            program,
            at: Instant::now(),
            requests: VecDeque::new(),
            input_ended: false,
            answered: 0,
            frozen: None,
            memory: self.memory,
            exit: None,
        }))
    }

    async fn sweep(&self, live: &(dyn for<'a> Fn(&'a ContainerKey) -> bool + Send + Sync)) -> Result<usize, Fault> {
        self.engine()?;
        let mut containers = self.containers.all();
        let before = containers.len();
        containers.retain(|key, _| live(key));
        Ok(before - containers.len())
    }

    async fn ping(&self) -> Result<EngineInfo, Fault> {
        self.engine()?;
        Ok(EngineInfo { description: "scripted, no engine".to_owned() })
    }

    async fn image_digest(&self, image: &str) -> Result<Option<String>, Fault> {
        self.engine()?;
        Ok((image != Program::MISSING_IMAGE).then(|| format!("sha256:{image}-{}", self.images.load(Ordering::SeqCst))))
    }
}

/// A program that is played while its output is read.
#[derive(Debug)]
struct ScriptedSandbox {
    containers: Containers,
    key: ContainerKey,
    seen: Arc<Seen>,
    order: Order,
    program: Program,
    /// When the program's next step begins.
    at: Instant,
    requests: VecDeque<Bytes>,
    input_ended: bool,
    /// Requests that were answered with a result.
    answered: u32,
    /// Since when.
    frozen: Option<Instant>,
    memory: Option<u64>,
    exit: Option<Exit>,
}

impl ScriptedSandbox {
    fn engine_has_it(&self) -> Result<(), Fault> {
        if self.seen.ended.load(Ordering::SeqCst) {
            return Err(Fault::new(FaultKind::Engine, "the program was ended by somebody else"));
        }
        Ok(())
    }

    /// Plays the next step. Cancel-safe: a step is taken off the script when it is over.
    async fn step(&mut self) -> Option<OutputChunk> {
        if self.frozen.is_some() {
            std::future::pending::<()>().await;
        }
        match self.program.next() {
            Step::Write(chunk) => {
                self.program.done();
                return Some(chunk);
            }
            Step::Echo => {
                let request: Vec<u8> = self.requests.drain(..).flatten().collect();
                self.at = self.at.max(Instant::now());
                self.program.replace(Step::Write(OutputChunk::Stdout(request.into())));
                return None;
            }
            Step::EchoLines | Step::Answers if self.requests.is_empty() && !self.input_ended => std::future::pending().await,
            step @ (Step::EchoLines | Step::Answers) => {
                self.at = self.at.max(Instant::now());
                let Some(request) = self.requests.pop_front() else {
                    self.program.done();
                    return None;
                };
                if matches!(step, Step::EchoLines) {
                    return Some(OutputChunk::Stdout(request));
                }
                self.answered += 1;
                let text = format!("{}: {}", self.answered, String::from_utf8_lossy(&request));
                let event = serde_json::json!({ "type": "result", "text": text });
                return Some(OutputChunk::Stdout(format!("{event}\n").into()));
            }
            Step::Ticks(every) => {
                self.at = self.at.max(Instant::now());
                tokio::time::sleep_until(self.at + every).await;
                return Some(OutputChunk::Stdout(Bytes::from_static(b".")));
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
        self.requests.push_back(request);
        self.input_ended = true;
        Ok(())
    }

    fn say(&mut self, request: Bytes) -> Result<(), Fault> {
        self.order.say()?;
        self.requests.push_back(request);
        Ok(())
    }

    fn is_over(&mut self) -> bool {
        let ended = self.exit.is_some() || matches!(self.program.next(), Step::End { .. });
        ended || self.seen.ended.load(Ordering::SeqCst)
    }

    fn measure(&mut self) -> Measured {
        Measured { cpu: Some(Duration::from_millis(10) * self.answered), max_memory: self.memory }
    }

    async fn freeze(&mut self) -> Result<(), Fault> {
        self.order.freeze()?;
        self.engine_has_it()?;
        self.frozen.get_or_insert_with(Instant::now);
        self.seen.frozen.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn thaw(&mut self) -> Result<(), Fault> {
        self.order.freeze()?;
        self.engine_has_it()?;
        if let Some(since) = self.frozen.take() {
            self.at += since.elapsed();
        }
        self.seen.frozen.store(false, Ordering::SeqCst);
        Ok(())
    }

    async fn next_output(&mut self) -> Option<Result<OutputChunk, Fault>> {
        if let Err(misuse) = self.order.next_output() {
            return Some(Err(misuse));
        }
        while self.order.wait().is_err() {
            if self.seen.ended.load(Ordering::SeqCst) {
                self.order.note_output_ended();
                break;
            }
            if let Some(chunk) = self.step().await {
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
            self.engine_has_it()?;
            // Written after the streams were closed: nobody gets it.
            self.step().await;
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
