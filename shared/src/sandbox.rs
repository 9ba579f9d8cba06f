//! What held a run's container in: kept with each attempt, so that it can be said later.

use serde::{Deserialize, Serialize};

use crate::agent::{Agent, Network};
use crate::clock::Timestamp;

/// What an attempt ran in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxRecord {
    /// Which adapter made the container: `docker`.
    pub runner: String,
    /// The runtime below it and its version, where it tells: `runc 1.1.5`.
    pub runtime: Option<String>,
    /// The version of the kernel, where it is known.
    pub kernel: Option<String>,
    /// The agent's own limits, which the container was made with.
    pub limits: SandboxLimits,
    /// Whether every limit that the agent is promised had been seen to hold here. False: asked for, and not tried.
    pub proven: bool,
    /// When they were tried.
    pub proven_at: Option<Timestamp>,
}

/// The limits that are an agent's own. All others are the same for every container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxLimits {
    /// Bytes of memory, swap included.
    pub memory: u64,
    /// CPUs, as a fraction of one.
    pub cpus: f64,
    /// Processes and threads.
    pub pids: u32,
    /// What it could reach.
    pub network: Network,
}

impl From<&Agent> for SandboxLimits {
    fn from(agent: &Agent) -> Self {
        Self { memory: agent.memory, cpus: agent.cpus, pids: agent.pids, network: agent.network }
    }
}
