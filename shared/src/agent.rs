//! An agent: an image, a command, limits, and two words on how to talk to it. See `agent-protocol` in the docs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How the request reaches the program on its standard input. Always followed by end of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// One request object on one line.
    Json,
    /// The bare message.
    Text,
}

/// How the reply is read from the program's standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// One JSON object a line: `delta`, `status`, `result`. Other lines are reply text.
    Events,
    /// One object at the end, with `result` or `text`.
    Json,
    /// Everything is the reply, streamed as it comes.
    Text,
}

/// What the container may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Nothing but its own loopback.
    None,
    /// Whatever the engine's default network reaches. For agents that call a model provider.
    Bridge,
}

/// A validated agent. Every limit is enforced by the runner; a runner that cannot enforce one refuses the agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// Its name in the configuration.
    pub name: crate::ids::AgentName,
    /// One sentence for people who choose between agents.
    pub description: String,
    /// The image it runs in; pinned by digest in production.
    pub image: String,
    /// The program and its arguments; never a shell string. Empty: the image's own entry point.
    pub command: Vec<String>,
    /// How the request is written.
    pub input: Input,
    /// How the reply is read.
    pub output: Output,
    /// Variables set in the container, for example a provider's key. Never logged.
    pub env: Vec<(String, String)>,
    /// Bytes of memory, swap included.
    pub memory: u64,
    /// CPUs, as a fraction of one.
    pub cpus: f64,
    /// Processes and threads.
    pub pids: u32,
    /// What it may reach.
    pub network: Network,
    /// Wall-clock limit of a run, from the start of its container.
    pub timeout: Duration,
    /// Bytes of reply that are kept; the rest is drained and dropped, and the run says `truncated`.
    pub output_limit: u64,
    /// Bytes that may be in `/workspace`. They count against the memory.
    pub workspace: u64,
    /// Bytes of the files in `/workspace` that are kept when a run has ended; 0 for none.
    pub files: u64,
    /// Containers kept started, waiting on standard input: at least so many, 0 for never. Without a number, as many as the
    /// agent's traffic asks for.
    pub warm: Option<u32>,
    /// What a container serves.
    pub session: Session,
    /// How long a kept container waits for the next message of its conversation.
    pub idle: Duration,
}

/// What one container serves before it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Session {
    /// One run.
    Run,
    /// The consecutive runs of one conversation of one user, with the files that they leave. Frozen between them.
    Conversation,
}

impl Agent {
    /// An agent with everything as it is when the configuration says nothing: 1 GiB of memory, one CPU, no network.
    #[must_use]
    pub const fn new(name: crate::ids::AgentName, image: String, command: Vec<String>) -> Self {
        Self {
            name,
            description: String::new(),
            image,
            command,
            input: Input::Json,
            output: Output::Events,
            env: Vec::new(),
            memory: 1 << 30,
            cpus: 1.0,
            pids: 128,
            network: Network::None,
            timeout: Duration::from_secs(120),
            output_limit: 1 << 20,
            workspace: 64 << 20,
            files: 16 << 20,
            warm: None,
            session: Session::Run,
            idle: Duration::from_secs(600),
        }
    }
}
