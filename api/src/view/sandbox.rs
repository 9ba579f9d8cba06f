//! How a sandbox looks from outside.

use quayside_shared::agent::Network;
use quayside_shared::clock::Timestamp;
use quayside_shared::sandbox::SandboxRecord;
use serde::Serialize;
use utoipa::ToSchema;

use crate::agents::NetworkView;

/// What held the container of an attempt in.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Sandbox)]
pub(crate) struct SandboxView {
    /// What made the container.
    #[schema(example = "docker")]
    runner: String,
    /// The runtime below it and its version, where it tells.
    #[schema(required, example = "runc 1.3.3")]
    runtime: Option<String>,
    /// The version of the kernel, where it is known.
    #[schema(required)]
    kernel: Option<String>,
    limits: SandboxLimitsView,
    /// Whether the worker had seen every limit that the agent is promised hold. False: asked for, and not tried.
    proven: bool,
    /// When it had tried them.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    proven_at: Option<Timestamp>,
}

/// The agent's own limits, which the container was made with. All others are the same for every container.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = SandboxLimits)]
pub(crate) struct SandboxLimitsView {
    /// Bytes of memory, swap included.
    memory_bytes: u64,
    /// CPUs, as a fraction of one.
    cpus: f64,
    /// Processes and threads.
    pids: u32,
    network: NetworkView,
}

impl From<Network> for NetworkView {
    fn from(network: Network) -> Self {
        match network {
            Network::None => Self::None,
            Network::Bridge => Self::Bridge,
        }
    }
}

impl From<SandboxRecord> for SandboxView {
    fn from(record: SandboxRecord) -> Self {
        let SandboxRecord { runner, runtime, kernel, limits, proven, proven_at } = record;
        let limits = SandboxLimitsView { memory_bytes: limits.memory, cpus: limits.cpus, pids: limits.pids, network: limits.network.into() };
        Self { runner, runtime, kernel, limits, proven, proven_at }
    }
}
