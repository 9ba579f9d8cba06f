//! The container's part of an attempt: obtain, listen, and the verdict.

use std::time::Duration;

use quayside_shared::agent::{Agent, Input};
use quayside_shared::clock::{Clock, SystemClock};
use quayside_shared::error::chain;
use quayside_shared::run::{AttemptOutcome, ErrorCode, Run, RunError, Usage};
use quayside_shared::state::Finished;
use quayside_shared::store::Lease;
use quayside_shared::telemetry::names;
use tokio::time::Instant;

use super::container::Rest;
use super::{Attempts, Ending, Leftover};
use crate::lease::LeaseKeeper;
use crate::protocol::{self, ReplyReader};
use crate::reply::ReplyWriter;
use crate::runner::{Exit, Fault, FaultKind, Measured, OutputChunk, Sandbox};

/// The conversation's past that an agent is given, at most.
const HISTORY_BYTES: usize = 256 << 10;
/// The end of standard error that a failed run tells its user.
const LOG_TAIL: usize = 2 << 10;

/// Why a conversation with a container was broken off.
pub(super) enum Interrupt {
    LeaseLost,
    Cancelled,
    TimedOut,
    HandBack(AttemptOutcome),
}

/// What was seen of the container's output.
struct Heard {
    reader: ReplyReader,
    log: LogTail,
}

impl Heard {
    fn take(&mut self, chunk: OutputChunk, writer: &ReplyWriter) {
        match chunk {
            OutputChunk::Stdout(bytes) => writer.push(self.reader.read(&bytes)),
            OutputChunk::Stderr(bytes) => self.log.push(&bytes),
        }
    }
}

impl Attempts {
    pub(super) async fn execute(&self, run: &Run, lease: &Lease, keeper: &LeaseKeeper, claimed: Instant) -> (Ending, Option<Leftover>) {
        let Some(agent) = self.agents.get(&run.agent) else {
            let error = RunError::new(ErrorCode::SandboxError, format!("the agent `{}` is not configured on this worker any more", run.agent));
            return (Ending::Finished(finished(AttemptOutcome::Refused, Some(error)), None), None);
        };
        let request = match self.request(agent, run).await {
            Ok(request) => request,
            Err(outcome) => return (Ending::Released(outcome), None),
        };
        let mut obtained = match self.obtain(agent, run, lease, request, keeper).await {
            Ok(obtained) => obtained,
            Err(ending) => return (ending, None),
        };
        let started = Instant::now();
        metrics::histogram!(names::START_SECONDS).record((started - claimed).as_secs_f64());
        let mut heard = Heard { reader: ReplyReader::new(agent), log: LogTail::default() };
        let writer = ReplyWriter::start(self.store.clone(), lease.clone(), keeper.lost.clone());
        let told = tokio::select! {
            biased;
            interrupt = self.interrupted(keeper, Some(started + run.timeout())) => Err(interrupt),
            told = listen(&mut *obtained.container.sandbox, &mut heard, &writer) => Ok(told),
        };
        let mut usage = Usage { start_millis: Some(millis(started - claimed)), wall_millis: Some(millis(started.elapsed())), ..Usage::default() };
        let before = obtained.before;
        let sandbox = &mut *obtained.container.sandbox;
        // Whether its program may still do something: then nobody looks into its workspace.
        let mut rest = Rest::Gone;
        let ending = match told {
            Ok(Ok(Told::Ended(exit))) => {
                measured(&mut usage, &before, exit.cpu, exit.max_memory);
                exited(agent, &exit, heard, writer, usage, false).await
            }
            Ok(Ok(Told::Complete)) => {
                let so_far = sandbox.measure();
                measured(&mut usage, &before, so_far.cpu, so_far.max_memory);
                match self.before_the_end(run, &mut obtained, keeper).await {
                    Some(now) => {
                        rest = now;
                        // What its program does from here on does not count, and so neither does its exit.
                        let exit = Exit { code: 0, oom: false, cpu: so_far.cpu, max_memory: so_far.max_memory };
                        exited(agent, &exit, heard, writer, usage, rest != Rest::Gone).await
                    }
                    None => Ending::LeaseLost,
                }
            }
            Ok(Err(fault)) => {
                tracing::warn!(run_id = %run.id, error = %chain(&fault), "the engine failed under a running container");
                drop(writer);
                self.kill(sandbox, run, keeper).await;
                Ending::Released(AttemptOutcome::EngineFault)
            }
            // Should it not be possible, it may go on talking for ever: nobody listens to it any more.
            Err(_) if !self.kill(sandbox, run, keeper).await => Ending::LeaseLost,
            Err(interrupt) => {
                // What had arrived when it was killed was said.
                while let Some(Ok(chunk)) = sandbox.next_output().await {
                    heard.take(chunk, &writer);
                }
                if let Ok(exit) = sandbox.wait().await {
                    measured(&mut usage, &before, exit.cpu, exit.max_memory);
                }
                interrupted(agent, interrupt, run, heard, writer, usage).await
            }
        };
        let ending = match rest {
            Rest::AtWork => ending,
            Rest::Still | Rest::Gone => self.keep_files(agent, lease, keeper, &mut obtained, ending).await,
        };
        (ending, Some(Leftover { obtained, lives: rest != Rest::Gone }))
    }

    /// The bytes for standard input.
    async fn request(&self, agent: &Agent, run: &Run) -> Result<bytes::Bytes, AttemptOutcome> {
        let history = match agent.input {
            Input::Text => Vec::new(),
            Input::Json => self.store.history(run, HISTORY_BYTES).await.map_err(|error| {
                tracing::warn!(run_id = %run.id, error = %chain(&error), "the history cannot be read, the run goes back");
                AttemptOutcome::EngineFault
            })?,
        };
        protocol::request(agent, run, &history, SystemClock.now() + run.timeout()).map(Into::into).map_err(|error| {
            tracing::error!(run_id = %run.id, %error, "a request could not be written as JSON");
            AttemptOutcome::EngineFault
        })
    }

    pub(super) async fn interrupted(&self, keeper: &LeaseKeeper, deadline: Option<Instant>) -> Interrupt {
        let timed_out = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = keeper.lost.cancelled() => Interrupt::LeaseLost,
            () = keeper.cancelling.cancelled() => Interrupt::Cancelled,
            () = timed_out => Interrupt::TimedOut,
            () = self.hand_back.cancelled() => Interrupt::HandBack(self.handed_back()),
        }
    }

    /// Why runs are handed back. The notice and the signal of a machine that goes away come in any order.
    fn handed_back(&self) -> AttemptOutcome {
        if self.preempted.is_cancelled() { AttemptOutcome::Preempted } else { AttemptOutcome::Drained }
    }
}

/// What ended the listening.
enum Told {
    /// The agent said that its reply is complete; its program may go on.
    Complete,
    /// The program ended.
    Ended(Exit),
}

/// Listens until the reply is complete or the program has ended.
async fn listen(sandbox: &mut dyn Sandbox, heard: &mut Heard, writer: &ReplyWriter) -> Result<Told, Fault> {
    while let Some(chunk) = sandbox.next_output().await.transpose()? {
        heard.take(chunk, writer);
        if heard.reader.is_complete() {
            return Ok(Told::Complete);
        }
    }
    sandbox.wait().await.map(Told::Ended)
}

async fn exited(agent: &Agent, exit: &Exit, heard: Heard, writer: ReplyWriter, mut usage: Usage, lives: bool) -> Ending {
    let Heard { reader, log } = heard;
    let ended = reader.end();
    let (outcome, error) = match (&ended, exit) {
        (_, Exit { oom: true, .. }) => {
            let what = format!("the agent used more memory than its limit of {} bytes", agent.memory);
            (AttemptOutcome::Oom, Some(RunError::new(ErrorCode::Oom, what)))
        }
        (_, Exit { code, .. }) if *code != 0 => {
            (AttemptOutcome::ExitNonzero, Some(RunError::new(ErrorCode::ExitNonzero, log.explain(&format!("the agent exited with code {code}")))))
        }
        (Err(invalid), _) => (AttemptOutcome::OutputInvalid, Some(RunError::new(ErrorCode::OutputInvalid, invalid.to_string()))),
        (Ok(_), _) => (AttemptOutcome::Finished, None),
    };
    let ended = ended.unwrap_or_default();
    writer.push(ended.rest);
    usage.output_bytes = Some(ended.bytes);
    usage.input_tokens = ended.tokens.input_tokens;
    usage.output_tokens = ended.tokens.output_tokens;
    if writer.close().await.is_err() {
        return Ending::LeaseLost;
    }
    let finished = Finished { outcome, error, exit_code: Some(exit.code), truncated: ended.truncated, usage, lives, sandbox: None };
    Ending::Finished(Box::new(finished), ended.stated)
}

async fn interrupted(agent: &Agent, interrupt: Interrupt, run: &Run, heard: Heard, writer: ReplyWriter, mut usage: Usage) -> Ending {
    let outcome = match interrupt {
        Interrupt::LeaseLost => return Ending::LeaseLost,
        Interrupt::HandBack(outcome) => return Ending::Released(outcome),
        Interrupt::Cancelled => AttemptOutcome::Cancelled,
        Interrupt::TimedOut => AttemptOutcome::TimedOut,
    };
    // What came before the end is kept, whatever its form promised.
    let ended = if agent.output == quayside_shared::agent::Output::Json { None } else { heard.reader.end().ok() }.unwrap_or_default();
    writer.push(ended.rest);
    usage.output_bytes = Some(ended.bytes);
    if writer.close().await.is_err() {
        return Ending::LeaseLost;
    }
    tracing::debug!(run_id = %run.id, ?outcome, "broken off");
    Ending::Finished(Box::new(Finished { truncated: ended.truncated, usage, ..*finished(outcome, None) }), None)
}

pub(super) fn launch_failed(run: &Run, fault: &Fault) -> Ending {
    let refused = |code| {
        tracing::warn!(run_id = %run.id, error = %chain(fault), "the container was refused");
        Ending::Finished(finished(AttemptOutcome::Refused, Some(RunError::new(code, fault.to_string()))), None)
    };
    match fault.kind() {
        FaultKind::ImageUnavailable => refused(ErrorCode::ImageUnavailable),
        FaultKind::Refused => refused(ErrorCode::SandboxError),
        FaultKind::Engine | FaultKind::Misuse => {
            tracing::warn!(run_id = %run.id, error = %chain(fault), "the engine failed, the run goes back");
            Ending::Released(AttemptOutcome::EngineFault)
        }
    }
}

pub(super) fn finished(outcome: AttemptOutcome, error: Option<RunError>) -> Box<Finished> {
    Box::new(Finished { outcome, error, exit_code: None, truncated: false, usage: Usage::default(), lives: false, sandbox: None })
}

/// `before` is what runs that came before had used.
fn measured(usage: &mut Usage, before: &Measured, cpu: Option<Duration>, max_memory: Option<u64>) {
    usage.cpu_millis = cpu.map(|cpu| millis(cpu.saturating_sub(before.cpu.unwrap_or_default())));
    usage.max_memory_bytes = max_memory;
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The last words on standard error: what a failed run tells its user.
#[derive(Debug, Default)]
struct LogTail(Vec<u8>);

impl LogTail {
    fn push(&mut self, bytes: &[u8]) {
        let keep = &bytes[bytes.len().saturating_sub(LOG_TAIL)..];
        let excess = (self.0.len() + keep.len()).saturating_sub(LOG_TAIL);
        self.0.drain(..excess.min(self.0.len()));
        self.0.extend_from_slice(keep);
    }

    fn explain(&self, what: &str) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let words: String = text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
        let words = words.trim();
        if words.is_empty() { what.to_owned() } else { format!("{what}; its last words on standard error:\n{words}") }
    }
}
