//! The container's part of an attempt: launch, converse, and the verdict.

use std::path::Path;
use std::time::Duration;

use quayside_shared::agent::{Agent, Input};
use quayside_shared::clock::{Clock, SystemClock};
use quayside_shared::error::chain;
use quayside_shared::run::{AttemptOutcome, ErrorCode, Run, RunError, Usage};
use quayside_shared::state::Finished;
use quayside_shared::store::Lease;
use quayside_shared::telemetry::names;
use tokio::time::Instant;

use super::{Attempts, Ending, Leftover, RETRY};
use crate::lease::LeaseKeeper;
use crate::protocol::{self, ReplyReader};
use crate::reply::ReplyWriter;
use crate::runner::{ContainerKey, Exit, Fault, FaultKind, LaunchSpec, OutputChunk, Sandbox};
use crate::slots::{Announced, Slot};

/// The conversation's past that an agent is given, at most.
const HISTORY_BYTES: usize = 256 << 10;
/// The end of standard error that a failed run tells its user.
const LOG_TAIL: usize = 2 << 10;
/// After its result an agent may take this long to exit by itself.
const EXIT_GRACE: Duration = Duration::from_secs(2);

/// A cancellation waits this long for a launch that is under way; an ordinary one takes a few hundred milliseconds.
const LAUNCH_GRACE: Duration = Duration::from_secs(5);

/// What a failed launch may have left behind is looked for this long, before the run goes to another attempt.
const CLEAN_UP: Duration = Duration::from_secs(5);

/// Why a conversation with a container was broken off.
enum Interrupt {
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
    pub(super) async fn execute(&self, run: &Run, lease: &Lease, keeper: &LeaseKeeper, slot: &Slot, claimed: Instant) -> (Ending, Option<Leftover>) {
        let Some(agent) = self.agents.get(&run.agent) else {
            let error = RunError::new(ErrorCode::SandboxError, format!("the agent `{}` is not configured on this worker any more", run.agent));
            return (Ending::Finished(finished(AttemptOutcome::Refused, Some(error)), None), None);
        };
        let request = match self.request(agent, run).await {
            Ok(request) => request,
            Err(outcome) => return (Ending::Released(outcome), None),
        };
        let announced = self.live.announce(ContainerKey::Run { run_id: run.id.clone(), epoch: lease.epoch });
        let spec = LaunchSpec { agent: agent.clone(), key: announced.key().clone(), place: slot.number() };
        let mut sandbox = match self.launch(&spec, keeper).await {
            Ok(Ok(sandbox)) => sandbox,
            Ok(Err(fault)) => {
                if matches!(fault.kind(), FaultKind::Engine | FaultKind::Misuse) {
                    self.clean_up(run, announced, keeper, Some(Instant::now() + CLEAN_UP)).await;
                }
                return (launch_failed(run, &fault), None);
            }
            Err(interrupt) => return (self.abandon(interrupt, run, announced, keeper).await, None),
        };
        let workspace = sandbox.workspace().map(Path::to_path_buf);
        let inputs = match self.place_inputs(run, workspace.clone()).await {
            Ok(inputs) => inputs,
            Err(ending) => {
                self.kill(&mut *sandbox, run, keeper).await;
                return (ending, Some(Leftover { sandbox, _announced: announced }));
            }
        };
        let started = Instant::now();
        metrics::histogram!(names::START_SECONDS).record((started - claimed).as_secs_f64());
        let mut heard = Heard { reader: ReplyReader::new(agent), log: LogTail::default() };
        let writer = ReplyWriter::start(self.store.clone(), lease.clone(), keeper.lost.clone());
        let told = tokio::select! {
            biased;
            interrupt = self.interrupted(keeper, Some(started + run.timeout())) => Err(interrupt),
            told = converse(&mut *sandbox, request, &mut heard, &writer) => Ok(told),
        };
        let mut usage = Usage { start_millis: Some(millis(started - claimed)), wall_millis: Some(millis(started.elapsed())), ..Usage::default() };
        let ending = match told {
            Ok(Ok(exit)) => {
                measured(&mut usage, &exit);
                exited(agent, &exit, heard, writer, usage).await
            }
            Ok(Err(fault)) => {
                tracing::warn!(run_id = %run.id, error = %chain(&fault), "the engine failed under a running container");
                drop(writer);
                self.kill(&mut *sandbox, run, keeper).await;
                Ending::Released(AttemptOutcome::EngineFault)
            }
            Err(interrupt) => {
                if !self.kill(&mut *sandbox, run, keeper).await {
                    // It may go on talking for ever: nobody listens to it any more, and the sweeper takes it.
                    return (Ending::LeaseLost, None);
                }
                // What had arrived when it was killed was said.
                while let Some(Ok(chunk)) = sandbox.next_output().await {
                    heard.take(chunk, &writer);
                }
                if let Ok(exit) = sandbox.wait().await {
                    measured(&mut usage, &exit);
                }
                interrupted(agent, interrupt, run, heard, writer, usage).await
            }
        };
        let ending = self.keep_files(agent, lease, keeper, workspace, inputs, ending).await;
        (ending, Some(Leftover { sandbox, _announced: announced }))
    }

    /// Launches; a launch that is still under way some time after an interrupt (an image that is being fetched) is
    /// abandoned.
    async fn launch(&self, spec: &LaunchSpec, keeper: &LeaseKeeper) -> Result<Result<Box<dyn Sandbox>, Fault>, Interrupt> {
        let launch = self.runner.launch(spec);
        tokio::pin!(launch);
        tokio::select! {
            biased;
            launched = &mut launch => Ok(launched),
            interrupt = self.interrupted(keeper, None) => tokio::time::timeout(LAUNCH_GRACE, launch).await.map_err(|_elapsed| interrupt),
        }
    }

    /// Ends an attempt whose launch was abandoned: what it may have made is removed before anything is said.
    async fn abandon(&self, interrupt: Interrupt, run: &Run, announced: Announced, keeper: &LeaseKeeper) -> Ending {
        self.clean_up(run, announced, keeper, None).await;
        match interrupt {
            Interrupt::LeaseLost => Ending::LeaseLost,
            Interrupt::HandBack(outcome) => Ending::Released(outcome),
            Interrupt::Cancelled => Ending::Finished(finished(AttemptOutcome::Cancelled, None), None),
            Interrupt::TimedOut => Ending::Finished(finished(AttemptOutcome::TimedOut, None), None),
        }
    }

    /// Removes what a launch that came to nothing may have made all the same, so that nobody calls the run cancelled while
    /// it lives. Tries until it is done, the lease is lost, or `until`: an engine that stays away must not keep the run.
    async fn clean_up(&self, run: &Run, announced: Announced, keeper: &LeaseKeeper, until: Option<Instant>) {
        drop(announced);
        while let Err(fault) = self.runner.sweep(&|key| self.live.contains(key)).await {
            tracing::warn!(run_id = %run.id, error = %chain(&fault), "a launch that came to nothing cannot be cleaned up");
            if keeper.lost.is_cancelled() || until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
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

    async fn interrupted(&self, keeper: &LeaseKeeper, deadline: Option<Instant>) -> Interrupt {
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

    /// Kills until the engine confirms it. Only a lost lease ends the trying: `cancelled` must not be said before. Says
    /// whether it is dead.
    async fn kill(&self, sandbox: &mut dyn Sandbox, run: &Run, keeper: &LeaseKeeper) -> bool {
        while let Err(fault) = sandbox.kill().await {
            tracing::warn!(run_id = %run.id, error = %chain(&fault), "a container could not be killed, trying again");
            if keeper.lost.is_cancelled() {
                return false;
            }
            tokio::time::sleep(RETRY).await;
        }
        true
    }
}

/// Sends the request and listens until the program has ended.
async fn converse(sandbox: &mut dyn Sandbox, request: bytes::Bytes, heard: &mut Heard, writer: &ReplyWriter) -> Result<Exit, Fault> {
    sandbox.send(request)?;
    let mut complete_since = None;
    loop {
        let chunk = match complete_since {
            None => sandbox.next_output().await,
            // It has said its last word; a program that lingers is not waited for.
            Some(since) => match tokio::time::timeout_at(since + EXIT_GRACE, sandbox.next_output()).await {
                Ok(chunk) => chunk,
                Err(_elapsed) => return end_lingering(sandbox).await,
            },
        };
        match chunk.transpose()? {
            Some(chunk) => heard.take(chunk, writer),
            None => break,
        }
        if heard.reader.is_complete() {
            complete_since.get_or_insert_with(Instant::now);
        }
    }
    match complete_since {
        None => sandbox.wait().await,
        Some(since) => match tokio::time::timeout_at(since + EXIT_GRACE, sandbox.wait()).await {
            Ok(exit) => exit,
            Err(_elapsed) => end_lingering(sandbox).await,
        },
    }
}

/// The reply is complete and the program does not go: it is killed, and that is no failure of the run.
async fn end_lingering(sandbox: &mut dyn Sandbox) -> Result<Exit, Fault> {
    sandbox.kill().await?;
    let exit = sandbox.wait().await?;
    Ok(Exit { code: 0, oom: false, ..exit })
}

async fn exited(agent: &Agent, exit: &Exit, heard: Heard, writer: ReplyWriter, mut usage: Usage) -> Ending {
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
    let finished = Finished { outcome, error, exit_code: Some(exit.code), truncated: ended.truncated, usage };
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

fn launch_failed(run: &Run, fault: &Fault) -> Ending {
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
    Box::new(Finished { outcome, error, exit_code: None, truncated: false, usage: Usage::default() })
}

fn measured(usage: &mut Usage, exit: &Exit) {
    usage.cpu_millis = exit.cpu.map(millis);
    usage.max_memory_bytes = exit.max_memory;
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
