//! One started container: its streams, its end, its removal.

use std::collections::VecDeque;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use rustix::fd::OwnedFd;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::super::order::Order;
use super::super::workspace::Workspace;
use super::super::{Exit, Fault, FaultKind, Measured, OutputChunk, Sandbox};
use super::container::{Container, KILL_LIMIT, fault};
use super::groups::OomWatch;

/// As much as one read takes from a pipe.
const READ: usize = 64 << 10;
/// Pieces of output that are kept for reading after a kill.
const CHUNKS_KEPT_AT_KILL: usize = 4;
/// What a first process that a signal ended adds to its number.
const SIGNALLED: i32 = 128;
const KILLED: i64 = 128 + 9;

/// A container of ours with its program started.
pub(super) struct OciSandbox {
    container: Container,
    /// The runtime, which waits for the container and exits as it did.
    runtime: Child,
    /// The first process: when it dies, so does everything in its name space. `None` when it had ended by the time it was
    /// looked at.
    init: Option<OwnedFd>,
    order: Order,
    input: Input,
    stdout: Stream<ChildStdout>,
    stderr: Stream<ChildStderr>,
    /// Bytes, the limit of the group.
    memory: u64,
    /// Hears of the memory limit where the count would be gone with a group of the runtime's.
    oom: Option<OomWatch>,
    /// Written before a kill, not read yet.
    received: VecDeque<OutputChunk>,
    /// How the runtime ended.
    status: Option<ExitStatus>,
    /// By us; what it ends with says nothing about the program then.
    killed: bool,
    exit: Option<Exit>,
    workspace: Option<Workspace>,
}

/// Standard input, before and after the first request.
enum Input {
    Untouched(ChildStdin),
    /// Written beside the reading; the end of the requests is the end of the file.
    Open(mpsc::UnboundedSender<Bytes>, AbortOnDropHandle<()>),
    Ending {
        _writer: AbortOnDropHandle<()>,
    },
    Closed,
}

/// One of the output streams, until it ends.
struct Stream<S> {
    pipe: Option<S>,
    buffer: BytesMut,
}

impl<S: AsyncRead + Unpin> Stream<S> {
    fn new(pipe: Option<S>) -> Self {
        Self { pipe, buffer: BytesMut::new() }
    }

    /// The next piece; `None` at the end, and never again after it. Cancel-safe.
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        let Some(pipe) = &mut self.pipe else { return Ok(None) };
        self.buffer.reserve(READ);
        let read = pipe.read_buf(&mut self.buffer).await;
        if !matches!(read, Ok(1..)) {
            self.pipe = None;
        }
        Ok(if read? == 0 { None } else { Some(self.buffer.split().freeze()) })
    }
}

impl fmt::Debug for OciSandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OciSandbox").field("state", &self.container.state).field("order", &self.order).finish_non_exhaustive()
    }
}

impl OciSandbox {
    /// Takes over a started container: its runtime with three pipes, and a hold on its first process.
    pub(super) fn new(container: Container, mut runtime: Child, init: Option<OwnedFd>, memory: u64, oom: Option<OomWatch>) -> Self {
        Self {
            input: runtime.stdin.take().map_or(Input::Closed, Input::Untouched),
            stdout: Stream::new(runtime.stdout.take()),
            stderr: Stream::new(runtime.stderr.take()),
            container,
            runtime,
            init,
            order: Order::default(),
            memory,
            oom,
            received: VecDeque::new(),
            status: None,
            killed: false,
            exit: None,
            workspace: None,
        }
    }

    /// The same with its workspace, which goes with it.
    pub(super) fn with_workspace(mut self, workspace: Option<Workspace>) -> Self {
        self.workspace = workspace;
        self
    }

    /// Hands a request to the task that writes: a program may write more than fits before it reads, or never read.
    fn write(&mut self, request: Bytes) {
        self.input = match std::mem::replace(&mut self.input, Input::Closed) {
            Input::Untouched(pipe) => {
                let (requests, receiver) = mpsc::unbounded_channel();
                Input::Open(requests, AbortOnDropHandle::new(tokio::spawn(write_all(pipe, receiver))))
            }
            other => other,
        };
        if let Input::Open(requests, _) = &self.input {
            // It has stopped listening when the program has ended.
            let _ended = requests.send(request);
        }
    }

    fn end_input(&mut self) {
        self.input = match std::mem::replace(&mut self.input, Input::Closed) {
            Input::Open(_, writer) => Input::Ending { _writer: writer },
            other => other,
        };
    }

    /// Ends the first process, and with it all of them.
    async fn end(&mut self) -> Result<ExitStatus, Fault> {
        if let Some(init) = &self.init {
            // One that is dead already is what is wanted.
            let _dead = pidfd_send_signal(init, Signal::KILL);
            // A frozen process dies when it goes on.
            let _never_frozen = self.container.group.set_frozen(false);
        } else {
            self.container.kill().await?;
        }
        if let Ok(status) = tokio::time::timeout(KILL_LIMIT / 2, self.ended()).await {
            return status;
        }
        self.container.kill().await?;
        tokio::time::timeout(KILL_LIMIT / 2, self.ended()).await.unwrap_or_else(|_| {
            Err(Fault::new(FaultKind::Engine, format!("the container runtime did not end within {} s after a kill", KILL_LIMIT.as_secs())))
        })
    }

    /// Waits for the end of the runtime. Reads on meanwhile, for one that passes the output on ends when it could; keeps a
    /// bounded amount.
    async fn ended(&mut self) -> Result<ExitStatus, Fault> {
        loop {
            let read = tokio::select! {
                status = self.runtime.wait() => return status.map_err(|error| fault("waiting for the container runtime", error)),
                chunk = self.stdout.next(), if self.stdout.pipe.is_some() => chunk.map(|bytes| bytes.map(OutputChunk::Stdout)),
                chunk = self.stderr.next(), if self.stderr.pipe.is_some() => chunk.map(|bytes| bytes.map(OutputChunk::Stderr)),
            };
            // An error would come again at the next read.
            if let Ok(Some(chunk)) = read
                && self.received.len() < CHUNKS_KEPT_AT_KILL
            {
                self.received.push_back(chunk);
            }
        }
    }

    /// The verdict when the runtime has ended with `status`.
    async fn verdict(&mut self, status: ExitStatus) -> Result<Exit, Fault> {
        let group = &self.container.group;
        let ran_out = group.oom_kills() > 0 || self.oom.as_ref().is_some_and(OomWatch::happened);
        let code = match (status.code(), status.signal()) {
            (Some(code), _) => code,
            // The runtime itself was ended, and may have left its container behind.
            (None, signal) => {
                self.container.kill().await?;
                if !self.killed && !ran_out {
                    return Err(Fault::new(FaultKind::Engine, "somebody ended the container runtime under a running container"));
                }
                SIGNALLED + signal.unwrap_or(Signal::KILL.as_raw())
            }
        };
        let code = i64::from(code);
        // 137 alone may be a signal that somebody sent; with the kernel's count it is the limit.
        let oom = code == KILLED && ran_out && !self.killed;
        Ok(Exit { code, oom, cpu: group.cpu(), max_memory: if oom { Some(self.memory) } else { group.max_memory() } })
    }
}

#[async_trait]
impl Sandbox for OciSandbox {
    fn send(&mut self, request: Bytes) -> Result<(), Fault> {
        self.order.send()?;
        self.write(request);
        self.end_input();
        Ok(())
    }

    fn say(&mut self, request: Bytes) -> Result<(), Fault> {
        self.order.say()?;
        self.write(request);
        Ok(())
    }

    fn lag(&self) -> Duration {
        // It is in the pipe. The runtime looks at its pipes again whenever a timer has run out.
        Duration::from_millis(1)
    }

    fn is_over(&mut self) -> bool {
        self.exit.is_some() || self.killed || self.status.is_some() || !matches!(self.runtime.try_wait(), Ok(None))
    }

    fn workspace(&self) -> Option<&Path> {
        self.workspace.as_ref().map(Workspace::path)
    }

    fn measure(&mut self) -> Measured {
        Measured { cpu: self.container.group.cpu(), max_memory: self.container.group.max_memory() }
    }

    async fn freeze(&mut self) -> Result<(), Fault> {
        self.order.freeze()?;
        self.container.set_frozen(true).await
    }

    async fn thaw(&mut self) -> Result<(), Fault> {
        self.order.freeze()?;
        self.container.set_frozen(false).await
    }

    async fn next_output(&mut self) -> Option<Result<OutputChunk, Fault>> {
        if let Err(misuse) = self.order.next_output() {
            return Some(Err(misuse));
        }
        if let Some(chunk) = self.received.pop_front() {
            return Some(Ok(chunk));
        }
        loop {
            if self.status.is_some_and(|status| status.code().is_none()) {
                // The runtime was ended, and a program that it left behind would never let go of its output.
                if let Err(fault) = self.container.kill().await {
                    return Some(Err(fault));
                }
            }
            let read = tokio::select! {
                chunk = self.stdout.next(), if self.stdout.pipe.is_some() => chunk.map(|bytes| bytes.map(OutputChunk::Stdout)),
                chunk = self.stderr.next(), if self.stderr.pipe.is_some() => chunk.map(|bytes| bytes.map(OutputChunk::Stderr)),
                ended = self.runtime.wait(), if self.status.is_none() && (self.stdout.pipe.is_some() || self.stderr.pipe.is_some()) => {
                    match ended {
                        Ok(status) => {
                            self.status = Some(status);
                            continue;
                        }
                        Err(error) => return Some(Err(fault("waiting for the container runtime", error))),
                    }
                }
                else => {
                    self.order.note_output_ended();
                    return None;
                }
            };
            match read {
                Ok(Some(chunk)) => return Some(Ok(chunk)),
                Ok(None) => {}
                Err(error) => return Some(Err(fault("reading the output of a container", error))),
            }
        }
    }

    async fn kill(&mut self) -> Result<(), Fault> {
        if self.exit.is_none() {
            let ended = self.runtime.try_wait().map_err(|error| fault("waiting for the container runtime", error))?;
            let status = match ended.or(self.status) {
                Some(status) => {
                    // Nobody asked for an exit code of a container whose runtime was ended, and nobody gets one.
                    self.killed |= status.code().is_none();
                    status
                }
                None => {
                    self.killed = true;
                    self.input = Input::Closed;
                    self.end().await?
                }
            };
            self.exit = Some(self.verdict(status).await?);
            self.order.note_exited();
        }
        self.order.note_killed();
        Ok(())
    }

    async fn wait(&mut self) -> Result<Exit, Fault> {
        self.order.wait()?;
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        let status = self.runtime.wait().await.map_err(|error| fault("waiting for the container runtime", error))?;
        let exit = self.verdict(status).await?;
        self.exit = Some(exit);
        self.order.note_exited();
        Ok(exit)
    }

    async fn remove(mut self: Box<Self>) -> Result<(), Fault> {
        self.order.remove()?;
        self.input = Input::Closed;
        self.container.remove().await?;
        if let Some(workspace) = self.workspace.take() {
            // The kernel takes its time to forget a mount.
            let removed = tokio::task::spawn_blocking(|| workspace.remove()).await.map_err(std::io::Error::other).flatten();
            removed.map_err(|error| fault("unmounting a workspace", error))?;
        }
        Ok(())
    }
}

/// Writes every request, then the end of the file.
async fn write_all(mut pipe: ChildStdin, mut requests: mpsc::UnboundedReceiver<Bytes>) {
    while let Some(request) = requests.recv().await {
        if let Err(error) = pipe.write_all(&request).await {
            tracing::debug!(%error, "a program ended before it had read its request");
            return;
        }
    }
}
