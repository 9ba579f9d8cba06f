//! The runner port: fresh containers, each for one run, or for the runs of one conversation.
//!
//! The order of calls is part of the contract, and every adapter refuses another one with [`FaultKind::Misuse`]:
//!
//! ```text
//! launch ─▶ send ─▶ next_output … None ─▶ wait ─▶ remove
//!             └────────────┴─── kill (any time) ─▶ wait ─▶ remove
//! ```
//!
//! Between `launch` and `send` a container may wait for as long as nobody needs it. In a kept session [`Sandbox::say`] takes
//! the place of `send`, and is called again for each further request of the same conversation; `freeze` and `thaw` may come
//! in between. Any other container serves one request and is removed (invariant 8). Its effective settings are inspected
//! before its program starts, and a container that is not as strict as asked for never starts (invariant 9).

pub mod docker;
mod image_name;
pub mod oci;
mod order;
pub mod scripted;
pub mod shares;
pub mod workspace;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quayside_shared::agent::Agent;
use quayside_shared::ids::RunId;
use serde::Serialize;

/// What a container is made for.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    /// Image, command, limits.
    pub agent: Agent,
    /// Its name, for its labels; it tells neither the user nor the message.
    pub key: ContainerKey,
    /// The place that the container takes on this machine, from 0. Containers that live at the same time have different
    /// places, and so different host uids: per-uid kernel quotas cannot be drained across them.
    pub place: u32,
}

/// Names a container of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ContainerKey {
    /// Made for a run, under the lease of this epoch: two epochs of one run never share a container.
    Run {
        /// The run.
        run_id: RunId,
        /// The epoch of the lease it was started under.
        epoch: u64,
    },
    /// Made before there was a run for it, under a random number.
    Warm(u64),
}

impl ContainerKey {
    /// The name as it is written in labels and file names: `run-<id>-<epoch>` or `warm-<number>`. [`FromStr`] reads it.
    #[must_use]
    pub fn name(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for ContainerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run { run_id, epoch } => write!(f, "run-{run_id}-{epoch}"),
            Self::Warm(number) => write!(f, "warm-{number:016x}"),
        }
    }
}

/// A name that is none of a container of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not the name of a container of Quayside")]
pub struct NotAContainerKey;

impl FromStr for ContainerKey {
    type Err = NotAContainerKey;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if let Some(number) = name.strip_prefix("warm-") {
            return u64::from_str_radix(number, 16).map(Self::Warm).map_err(|_| NotAContainerKey);
        }
        let (run_id, epoch) = name.strip_prefix("run-").and_then(|rest| rest.rsplit_once('-')).ok_or(NotAContainerKey)?;
        Ok(Self::Run { run_id: run_id.parse().map_err(|_| NotAContainerKey)?, epoch: epoch.parse().map_err(|_| NotAContainerKey)? })
    }
}

/// A piece of what the program wrote. Chunks follow reads, not lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputChunk {
    /// From standard output: the reply.
    Stdout(Bytes),
    /// From standard error: the run's log.
    Stderr(Bytes),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code; 128 + n after signal n.
    pub code: i64,
    /// Whether the memory limit killed it. A bare 137 is not enough: anybody can send signal 9 to themselves.
    pub oom: bool,
    /// CPU time of the whole container, when it could be read.
    pub cpu: Option<Duration>,
    /// Peak memory in bytes, when it could be read.
    pub max_memory: Option<u64>,
}

/// What a container has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// CPU time of the whole container, when it could be read.
    pub cpu: Option<Duration>,
    /// Peak memory in bytes, when it could be read.
    pub max_memory: Option<u64>,
}

/// What a caller can do about a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The image is not there and cannot be had. Trying again does not help.
    ImageUnavailable,
    /// The engine refuses this container: no such program, no such runtime, a setting that is not enforced. Trying
    /// again does not help.
    Refused,
    /// The engine does not answer or failed by itself: nobody's fault, the attempt does not count.
    Engine,
    /// Calls in the wrong order: a bug in the caller.
    Misuse,
}

/// A failed call on the port. The context is fit for the run's user: no paths, no secrets.
#[derive(Debug)]
pub struct Fault {
    kind: FaultKind,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    setting: Option<String>,
}

impl Fault {
    /// A fault of `kind`; `context` says what was being done or what is wrong.
    pub fn new(kind: FaultKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None, setting: None }
    }

    /// The same with the error that caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same about one setting that the engine made weaker than asked for.
    #[must_use]
    pub fn with_setting(mut self, setting: impl Into<String>) -> Self {
        self.setting = Some(setting.into());
        self
    }

    /// The setting that the engine made weaker than asked for, by the adapter's name for it: every container would be.
    #[must_use]
    pub fn setting(&self) -> Option<&str> {
        self.setting.as_deref()
    }

    /// What a caller can do about it.
    #[must_use]
    pub const fn kind(&self) -> FaultKind {
        self.kind
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Fault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// A container with its program started, waiting for its request. Dropping it without [`Sandbox::remove`] leaves it to
/// the sweeper: it is killed there, not here.
#[async_trait]
pub trait Sandbox: Send + fmt::Debug {
    /// Hands the request over, once: it is written to standard input, followed by end of file, while output is read. A
    /// program that never reads its input, or that ended before, is no fault.
    fn send(&mut self, request: Bytes) -> Result<(), Fault>;

    /// Hands one request of a kept session over: as [`Sandbox::send`], but standard input stays open, and another call may
    /// follow when this one is answered. The output then goes on with `next_output`.
    ///
    /// # Errors
    /// [`FaultKind::Refused`] by an adapter that keeps no sessions.
    fn say(&mut self, _request: Bytes) -> Result<(), Fault> {
        Err(no_sessions())
    }

    /// Whether the program is known to have ended, or cannot be vouched for any more because its engine went away. Told from
    /// what is known here, without a call: for a container that waits. An end of the last few milliseconds may be missed.
    fn is_over(&mut self) -> bool {
        false
    }

    /// What the container has used until now, read without asking it: for a reply that is told before its end.
    fn measure(&mut self) -> Measured {
        Measured::default()
    }

    /// Stops every process of the container where it stands, and returns when none runs. It uses no CPU from then on. What
    /// it wrote before can still be read; a frozen container can be spoken to, thawed, killed and removed. Freezing what is frozen is fine.
    ///
    /// # Errors
    /// [`FaultKind::Refused`] by an adapter that keeps no sessions.
    async fn freeze(&mut self) -> Result<(), Fault> {
        Err(no_sessions())
    }

    /// How long what a program wrote before it was frozen may be on its way to `next_output`.
    fn lag(&self) -> Duration {
        Duration::from_millis(20)
    }

    /// Lets a frozen container go on. Thawing what runs is fine.
    ///
    /// # Errors
    /// [`FaultKind::Refused`] by an adapter that keeps no sessions.
    async fn thaw(&mut self) -> Result<(), Fault> {
        Err(no_sessions())
    }

    /// The host's own view of the container's `/workspace`, where there is one. A stranger writes there: nothing beneath it
    /// may be followed, believed or waited for. It is there until `remove`, with all that was written.
    fn workspace(&self) -> Option<&Path> {
        None
    }

    /// The next piece of output; `None` when the program closed both streams or the container ended. Cancel-safe.
    /// Output is only read when this is called: a caller that wants to drop what comes must still drain it.
    async fn next_output(&mut self) -> Option<Result<OutputChunk, Fault>>;

    /// Kills every process of the container and returns when the engine confirms that none is left. At most 10 s, then
    /// it is an [`FaultKind::Engine`] fault. Killing what is dead already is fine.
    async fn kill(&mut self) -> Result<(), Fault>;

    /// Waits for the end of the program and says how it ended. Cancel-safe. Calling it again gives the same answer.
    async fn wait(&mut self) -> Result<Exit, Fault>;

    /// Removes the container with all it wrote. It must be dead.
    async fn remove(self: Box<Self>) -> Result<(), Fault>;
}

fn no_sessions() -> Fault {
    Fault::new(FaultKind::Refused, "this runner keeps no sessions: leave `session` of the agent out")
}

/// Whether the engine answers, and which it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// For people: `Docker 20.10.24, API 1.41, runc 1.1.5`.
    pub description: String,
}

/// Something that containers stand on, and its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Component {
    /// `docker`, `containerd`, `runc`, `crun`, `runsc`, `linux`.
    pub name: String,
    /// As its package has it, where that is told: `1.1.5+ds1-1+deb12u1`.
    pub version: String,
}

impl Component {
    /// The component `name` in this version.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self { name: name.into(), version: version.into() }
    }
}

/// Starts containers, and cleans up after itself.
#[async_trait]
pub trait Runner: Send + Sync + 'static {
    /// Creates a container as strict as [`LaunchSpec`] asks, inspects what the engine made of it, attaches to it and
    /// starts its program. On an error nothing is left behind that the sweeper would not find.
    async fn launch(&self, spec: &LaunchSpec) -> Result<Box<dyn Sandbox>, Fault>;

    /// Kills and removes every container of this instance for which `live` says no, and never anyone else's. Returns
    /// how many it removed. `live` is asked after the containers were listed: one that was launched in between has been
    /// announced by then.
    async fn sweep(&self, live: &(dyn for<'a> Fn(&'a ContainerKey) -> bool + Send + Sync)) -> Result<usize, Fault>;

    /// Whether the engine answers.
    async fn ping(&self) -> Result<EngineInfo, Fault>;

    /// What containers stand on, for the record and for known ways out of it: engine, runtime, kernel. Empty where it does not
    /// tell.
    async fn components(&self) -> Result<Vec<Component>, Fault> {
        Ok(Vec::new())
    }

    /// The digest of an agent's image as the engine has it, for `GET /api/agents` and `doctor`; `None` when it is not
    /// there.
    async fn image_digest(&self, image: &str) -> Result<Option<String>, Fault>;
}
