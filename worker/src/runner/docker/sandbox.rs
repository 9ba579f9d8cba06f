//! One started container: its streams, its end, its removal.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bollard::container::{AttachContainerResults, LogOutput};
use bollard::errors::Error as DockerError;
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::super::order::Order;
use super::super::workspace::Workspace;
use super::super::{Exit, Fault, FaultKind, Measured, OutputChunk, Sandbox};
use super::container::Container;
use super::engine;
use super::usage::Meter;
use super::watch::Watched;

/// Received output that is kept for reading after a kill.
const KEPT_AT_KILL: usize = 256 * 1024;
/// How often the meter is read while a program is silent. Its control group is gone when its end is known.
const METER_EVERY: Duration = Duration::from_millis(250);
/// What the engine adds up 128 and the number of the signal to.
const KILLED: i64 = 128 + 9;

type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, DockerError>> + Send>>;
type Input = Pin<Box<dyn AsyncWrite + Send>>;

/// A container of ours with its program started.
pub(super) struct DockerSandbox {
    container: Container,
    watched: Watched,
    order: Order,
    /// Dropped at the end of the output and before a kill: an attached stream that nobody reads blocks the engine's
    /// kill, wait and remove (moby#41827).
    output: Option<Output>,
    /// Received before a kill, not read yet.
    received: VecDeque<OutputChunk>,
    input: Option<Input>,
    writer: Option<AbortOnDropHandle<()>>,
    /// What a kept session is still to be told; standard input stays open as long as this is.
    requests: Option<mpsc::UnboundedSender<Bytes>>,
    meter: Meter,
    workspace: Option<Workspace>,
    frozen: bool,
    /// By us; what it ends with says nothing about the program then.
    killed: bool,
    exit: Option<Exit>,
}

impl fmt::Debug for DockerSandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerSandbox").field("id", &self.container.id()).field("order", &self.order).finish_non_exhaustive()
    }
}

impl DockerSandbox {
    /// Takes over a started container and the streams that were attached before its start.
    pub(super) fn new(container: Container, watched: Watched, attached: AttachContainerResults, meter: Meter) -> Self {
        Self {
            container,
            watched,
            order: Order::default(),
            output: Some(attached.output),
            received: VecDeque::new(),
            input: Some(attached.input),
            writer: None,
            requests: None,
            meter,
            workspace: None,
            frozen: false,
            killed: false,
            exit: None,
        }
    }

    /// The same with its workspace, which goes with it.
    pub(super) fn with_workspace(mut self, workspace: Option<Workspace>) -> Self {
        self.workspace = workspace;
        self
    }

    /// Lets go of the output; the end of a normal run.
    fn end_output(&mut self) {
        self.meter.sample();
        self.output = None;
        self.order.note_output_ended();
    }

    /// Closes the attached connection, keeping a bounded amount of what was received on it.
    async fn detach(&mut self) {
        if let Some(mut output) = self.output.take() {
            let mut kept = 0;
            while kept < KEPT_AT_KILL
                && let Some(Some(Ok(frame))) = output.next().now_or_never()
            {
                if let Ok(chunk) = chunk(frame) {
                    kept += size(&chunk);
                    self.received.push_back(chunk);
                }
            }
        }
        self.order.note_output_ended();
        // Both halves hold the connection open: it closes when the writer is gone, too.
        self.input = None;
        self.requests = None;
        if let Some(writer) = self.writer.take() {
            writer.abort();
            let _ended_or_aborted = writer.await;
        }
    }
}

#[async_trait]
impl Sandbox for DockerSandbox {
    fn send(&mut self, request: Bytes) -> Result<(), Fault> {
        self.order.send()?;
        if let Some(mut input) = self.input.take() {
            // Beside the reading: a program may write more than fits before it reads its request, or never read it.
            self.writer = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                let written = async {
                    input.write_all(&request).await?;
                    input.flush().await?;
                    input.shutdown().await
                };
                if let Err(error) = written.await {
                    tracing::debug!(%error, "a program ended before it had read its request");
                }
            })));
        }
        Ok(())
    }

    fn workspace(&self) -> Option<&Path> {
        self.workspace.as_ref().map(Workspace::path)
    }

    fn say(&mut self, request: Bytes) -> Result<(), Fault> {
        self.order.say()?;
        if let Some(mut input) = self.input.take() {
            let (sender, mut requests) = mpsc::unbounded_channel::<Bytes>();
            self.requests = Some(sender);
            self.writer = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                while let Some(request) = requests.recv().await {
                    let written = async {
                        input.write_all(&request).await?;
                        input.flush().await
                    };
                    if let Err(error) = written.await {
                        tracing::debug!(%error, "a program ended before it had read its request");
                        break;
                    }
                }
            })));
        }
        if let Some(requests) = &self.requests {
            // A writer that is gone met a program that is gone, which the output tells.
            let _ = requests.send(request);
        }
        Ok(())
    }

    fn is_over(&mut self) -> bool {
        self.exit.is_some() || self.killed || self.watched.is_over()
    }

    fn measure(&mut self) -> Measured {
        self.meter.sample();
        Measured { cpu: self.meter.cpu(), max_memory: self.meter.max_memory(false) }
    }

    async fn freeze(&mut self) -> Result<(), Fault> {
        self.order.freeze()?;
        if !self.frozen {
            self.container.pause().await?;
            self.frozen = true;
        }
        Ok(())
    }

    async fn thaw(&mut self) -> Result<(), Fault> {
        self.order.freeze()?;
        if self.frozen {
            self.container.unpause().await?;
            self.frozen = false;
        }
        Ok(())
    }

    async fn next_output(&mut self) -> Option<Result<OutputChunk, Fault>> {
        if let Err(misuse) = self.order.next_output() {
            return Some(Err(misuse));
        }
        if let Some(chunk) = self.received.pop_front() {
            return Some(Ok(chunk));
        }
        let output = self.output.as_mut()?;
        let next = loop {
            match tokio::time::timeout(METER_EVERY, output.next()).await {
                Ok(next) => break next,
                Err(_silent) => self.meter.sample(),
            }
        };
        let received = match next {
            Some(Ok(frame)) => chunk(frame),
            Some(Err(error)) => Err(engine::fault("reading the output of a container", error)),
            None => {
                self.end_output();
                return None;
            }
        };
        if received.is_ok() {
            self.meter.sample_if_due();
        } else {
            self.end_output();
        }
        Some(received)
    }

    async fn kill(&mut self) -> Result<(), Fault> {
        if self.exit.is_none() {
            self.meter.sample();
            self.detach().await;
            self.killed = true;
            self.container.kill().await?;
        }
        self.order.note_killed();
        Ok(())
    }

    async fn wait(&mut self) -> Result<Exit, Fault> {
        self.order.wait()?;
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        let container = self.container.clone();
        let mut stopped = Box::pin(container.stopped());
        let mut ticks = tokio::time::interval(METER_EVERY);
        let code = loop {
            tokio::select! {
                code = &mut stopped => break code?,
                // One that comes back may have kept its containers, and what they wrote meanwhile is lost.
                gone = self.watched.engine_gone(), if !self.killed => return Err(gone),
                _ = ticks.tick() => self.meter.sample(),
            }
        };
        let state = container.state().await?;
        if state.running == Some(true) {
            return Err(Fault::new(FaultKind::Engine, "the container engine contradicts itself about the end of a container"));
        }
        if !self.killed {
            self.watched.ended_by_itself().await?;
        }
        let code = state.exit_code.unwrap_or(code);
        // 137 alone may be a signal that somebody sent; with the engine's word that memory ran out it is the limit.
        let oom = code == KILLED && state.oom_killed == Some(true);
        let exit = Exit { code, oom, cpu: self.meter.cpu(), max_memory: self.meter.max_memory(oom) };
        self.exit = Some(exit);
        self.order.note_exited();
        Ok(exit)
    }

    async fn remove(mut self: Box<Self>) -> Result<(), Fault> {
        self.order.remove()?;
        self.detach().await;
        self.container.remove().await?;
        if let Some(workspace) = self.workspace.take() {
            // The kernel takes its time to forget a mount.
            let removed = tokio::task::spawn_blocking(|| workspace.remove()).await.map_err(io::Error::other).flatten();
            removed.map_err(|error| Fault::new(FaultKind::Engine, "a workspace cannot be unmounted").with_source(error))?;
        }
        Ok(())
    }
}

/// A frame of the attached stream. Anything but the two streams means that the connection broke inside a frame.
fn chunk(frame: LogOutput) -> Result<OutputChunk, Fault> {
    match frame {
        LogOutput::StdOut { message } => Ok(OutputChunk::Stdout(message)),
        LogOutput::StdErr { message } => Ok(OutputChunk::Stderr(message)),
        LogOutput::StdIn { .. } | LogOutput::Console { .. } => {
            Err(Fault::new(FaultKind::Engine, "the container engine broke off the output of a container"))
        }
    }
}

fn size(chunk: &OutputChunk) -> usize {
    match chunk {
        OutputChunk::Stdout(bytes) | OutputChunk::Stderr(bytes) => bytes.len(),
    }
}
