//! Configuration: one file, then the environment, read once, checked whole before anything starts.
//!
//! `quayside.toml` first, then `QUAYSIDE__SECTION__KEY` for each `[section] key`. Whatever is unknown, malformed or
//! contradictory is a [`ConfigError`] that says where it stands and what to write instead.

mod google;
mod source;
mod values;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub use google::Google;
pub use source::ConfigError;
pub use values::{HumanDuration, HumanSize};

use crate::agent::{Agent, Input, Network, Output, Session};
use crate::ids::AgentName;

/// The whole configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The HTTP side.
    pub api: Api,
    /// Where runs are kept and queued.
    pub backend: Backend,
    /// Where Google's services are.
    pub google: Google,
    /// The side that runs containers.
    pub worker: Worker,
    /// How containers are made.
    pub runner: Runner,
    /// What one user may ask for.
    pub limits: Limits,
    /// Who answers.
    pub agents: BTreeMap<AgentName, Agent>,
}

/// `[api]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Where to listen. Port 0 picks one. Defaults to `127.0.0.1:8080`.
    pub bind: SocketAddr,
    /// How callers are known. Defaults to `header`.
    pub auth: Auth,
    /// Who answers when the request names nobody. Defaults to `python`.
    pub default_agent: AgentName,
    /// Origins whose pages may call the API, exactly as browsers send them. Defaults to none.
    pub cors_origins: Vec<String>,
    /// What lets operators in at `/api/admin`. Defaults to none: the embedded backend makes one beside its data.
    pub admin_key: Option<Secret>,
}

/// How callers are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// `X-User-Id` is believed. Only where nobody but you can connect.
    Header,
    /// Firebase ID tokens and API keys.
    Tokens,
}

/// So much cannot be guessed.
const ADMIN_KEY_MIN: usize = 20;

/// `[backend]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Backend {
    /// Which adapters. Defaults to `embedded`.
    pub kind: BackendKind,
    /// Embedded: the folder of the database file. Defaults to `./data`.
    pub data_dir: PathBuf,
    /// Embedded: room on the disk that new runs leave to those that were accepted. Defaults to 64 MiB; 0 is none.
    pub reserve: HumanSize,
}

/// Which adapters hold the queue and the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendKind {
    /// One SQLite file, one process.
    Embedded,
    /// Pub/Sub and Firestore.
    Google,
}

/// `[worker]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// Containers at once; 0 = from this machine's CPUs and memory.
    pub slots: u32,
    /// How long a claim lasts without a heartbeat. Defaults to 30 s.
    pub lease: HumanDuration,
    /// How often a claim is prolonged. Defaults to 10 s.
    pub heartbeat: HumanDuration,
    /// How long running attempts may go on after SIGTERM. Defaults to 25 s.
    pub drain: HumanDuration,
    /// Lost workers in a row after which a run is poison. Defaults to 3.
    pub max_attempts: u32,
    /// Where a worker of its own serves `/livez`, `/readyz` and `/metrics`. Defaults to nowhere.
    pub probes: Option<SocketAddr>,
    /// Memory that idle warm containers may hold in all; 0 turns them off. Defaults to a quarter of this machine's.
    pub warm_memory: Option<HumanSize>,
    /// Memory that frozen containers of kept sessions may hold in all. Defaults to a quarter of this machine's.
    pub session_memory: Option<HumanSize>,
    /// Whether every limit is tried in a real container before the first message is taken. Defaults to true.
    pub prove_limits: bool,
    /// What a version with known ways out of containers means. Defaults to `warn`.
    pub known_escapes: KnownEscapes,
    /// The metadata key that turns `TRUE` when this machine is about to be taken away. Defaults to none: nobody asks.
    pub preemption_notice: Option<String>,
}

/// What a version with known ways out of containers means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KnownEscapes {
    /// It is told.
    Warn,
    /// No agent runs on it.
    Refuse,
}

/// `[runner]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runner {
    /// Which adapter. Defaults to `docker`.
    pub kind: RunnerKind,
    /// Where the Docker engine listens: the one that starts containers, or only knows images. Defaults to
    /// `unix:///var/run/docker.sock`.
    pub docker_host: String,
    /// Docker: the OCI runtime by the name the engine knows it under, for example `runsc`. Defaults to the engine's.
    /// Without an engine: the runtime by name or path. Defaults to `crun`, else `runc`.
    pub runtime: Option<String>,
    /// Without an engine: where images are unpacked, once for all workers of the machine. Defaults to
    /// `/var/lib/quayside/images`.
    pub images: PathBuf,
    /// Container uids are this plus the place of each. Two workers on one machine need ranges that do not meet.
    /// Defaults to 100000.
    pub uid_base: u32,
}

/// Which runner adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunnerKind {
    /// The Docker Engine API.
    Docker,
    /// A container runtime, called directly.
    Oci,
    /// The second where it works for every agent, else the first.
    Auto,
}

impl RunnerKind {
    /// As it is written in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Oci => "oci",
            Self::Auto => "auto",
        }
    }
}

/// `[limits]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of UTF-8 in one message. Defaults to 64 KiB.
    pub message: HumanSize,
    /// Runs of all users that may wait. Defaults to 100000.
    pub queued: u64,
    /// Runs of one user that may wait. Defaults to 100.
    pub queued_per_user: u32,
    /// Runs of one user in progress at once. Defaults to 2.
    pub running_per_user: u32,
    /// Open event streams of one user. Defaults to 20.
    pub streams_per_user: u32,
    /// How long a finished run is kept. Defaults to 30 days.
    pub retention: HumanDuration,
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// `text` as a secret.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// What it is. Not for logs.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Default for Api {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 8080)),
            auth: Auth::Header,
            default_agent: python(),
            cors_origins: Vec::new(),
            admin_key: None,
        }
    }
}

impl Default for Backend {
    fn default() -> Self {
        Self { kind: BackendKind::Embedded, data_dir: PathBuf::from("./data"), reserve: HumanSize(64 << 20) }
    }
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            slots: 0,
            lease: Duration::from_secs(30).into(),
            heartbeat: Duration::from_secs(10).into(),
            drain: Duration::from_secs(25).into(),
            max_attempts: 3,
            probes: None,
            warm_memory: None,
            session_memory: None,
            preemption_notice: None,
            prove_limits: true,
            known_escapes: KnownEscapes::Warn,
        }
    }
}

impl Default for Runner {
    fn default() -> Self {
        Self {
            kind: RunnerKind::Docker,
            docker_host: "unix:///var/run/docker.sock".to_owned(),
            runtime: None,
            images: PathBuf::from("/var/lib/quayside/images"),
            uid_base: 100_000,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message: HumanSize(64 << 10),
            queued: 100_000,
            queued_per_user: 100,
            running_per_user: 2,
            streams_per_user: 20,
            retention: Duration::from_secs(30 * 24 * 3600).into(),
        }
    }
}

/// The file as it is written, before it is checked.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    api: Api,
    backend: Backend,
    google: Google,
    worker: Worker,
    runner: Runner,
    limits: Limits,
    agents: BTreeMap<AgentName, AgentFile>,
}

/// `[agents.<name>]`. What is missing comes from the defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentFile {
    image: Option<String>,
    command: Option<Vec<String>>,
    description: Option<String>,
    input: Option<Input>,
    output: Option<Output>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    memory: Option<HumanSize>,
    cpus: Option<f64>,
    pids: Option<u32>,
    network: Option<Network>,
    timeout: Option<HumanDuration>,
    output_limit: Option<HumanSize>,
    workspace: Option<HumanSize>,
    files: Option<HumanSize>,
    warm: Option<u32>,
    session: Option<Session>,
    idle: Option<HumanDuration>,
}

impl Config {
    /// Reads `file` (or `quayside.toml` in the working directory, if there is one) and then `environment`.
    pub fn load(file: Option<&std::path::Path>, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let environment: Vec<_> = environment.into_iter().collect();
        let source = source::Source::read(file, environment.iter().cloned())?;
        let mut file = source.parse()?;
        file.google = file.google.with_emulators(&environment);
        Self::check(file, &source)
    }

    fn check(file: File, source: &source::Source) -> Result<Self, ConfigError> {
        let wrong = |key: &str, what: &str| Err(source.error(key, what));
        let File { api, backend, google, worker, runner, limits, agents } = file;
        google.check(&backend, source)?;
        for origin in &api.cors_origins {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            if host.is_none_or(|host| host.is_empty() || host.contains(['/', '*', ' '])) {
                return wrong(
                    "api.cors_origins",
                    "write each origin as scheme://host[:port], without a path or a wildcard, for example \"https://app.example.org\"",
                );
            }
        }
        if api.admin_key.as_ref().is_some_and(|key| key.0.len() < ADMIN_KEY_MIN || !key.0.bytes().all(|byte| byte.is_ascii_graphic())) {
            return wrong("api.admin_key", "must be at least 20 visible ASCII characters, for example the output of `openssl rand -base64 32`");
        }
        let (lease, heartbeat) = (worker.lease.get(), worker.heartbeat.get());
        if heartbeat.is_zero() || heartbeat.saturating_mul(2) > lease {
            return wrong(
                "worker.heartbeat",
                "must be more than 0 and at most half of worker.lease, so that one lost heartbeat loses nothing; for example lease = \"30s\", heartbeat = \"10s\"",
            );
        }
        if worker.max_attempts == 0 {
            return wrong("worker.max_attempts", "must be at least 1");
        }
        if worker.slots > 10_000 {
            return wrong("worker.slots", "must be at most 10000; 0 takes it from this machine's CPUs and memory");
        }
        if worker.preemption_notice.as_deref().is_some_and(|notice| !values::is_http(notice)) {
            return wrong(
                "worker.preemption_notice",
                "write the address of the metadata key; it begins with http:// (that server has no TLS), on Google Cloud \"http://metadata.google.internal/computeMetadata/v1/instance/preempted\"",
            );
        }
        if limits.message.bytes() == 0 || limits.message.bytes() > 512 << 10 {
            return wrong("limits.message", "must be between 1B and 512KiB");
        }
        for (key, value) in [
            ("limits.queued", limits.queued),
            ("limits.queued_per_user", limits.queued_per_user.into()),
            ("limits.running_per_user", limits.running_per_user.into()),
            ("limits.streams_per_user", limits.streams_per_user.into()),
        ] {
            if value == 0 {
                return wrong(key, "must be at least 1");
            }
        }
        // A user's unfinished runs are in one document there, which may have 1 MiB.
        if backend.kind == BackendKind::Google && limits.queued_per_user > 5000 {
            return wrong("limits.queued_per_user", "must be at most 5000 on the google backend");
        }
        let hosts = ["unix://", "tcp://", "http://"];
        if !hosts.iter().any(|scheme| runner.docker_host.starts_with(scheme)) {
            return wrong("runner.docker_host", "must begin with unix://, tcp:// or http://");
        }
        if runner.uid_base < 1000 {
            return wrong("runner.uid_base", "must be at least 1000: smaller uids belong to the host's own users");
        }
        let agents = check_agents(agents, source)?;
        if !agents.contains_key(&api.default_agent) {
            return wrong("api.default_agent", &format!("there is no [agents.{}]; name one that is there or add it", api.default_agent));
        }
        Ok(Self { api, backend, google, worker, runner, limits, agents })
    }
}

fn python() -> AgentName {
    #[expect(clippy::expect_used, reason = "a literal that the type accepts, see the test below")]
    "python".parse().expect("a valid agent name")
}

/// The agent that is there without being configured; `[agents.python]` overrides it key by key.
const PYTHON_IMAGE: &str = "quayside/agent-python:3.11";
const PYTHON_COMMAND: [&str; 3] = ["python3", "-u", "/agent/main.py"];
const PYTHON_DESCRIPTION: &str = "Runs the Python code in your message and streams what it prints.";

fn check_agents(files: BTreeMap<AgentName, AgentFile>, source: &source::Source) -> Result<BTreeMap<AgentName, Agent>, ConfigError> {
    let mut agents = BTreeMap::from([(python(), builtin_python())]);
    for (name, file) in files {
        let key = |field: &str| format!("agents.{name}.{field}");
        let base = agents.get(&name).cloned();
        let Some(image) = file.image.or_else(|| base.as_ref().map(|base| base.image.clone())).filter(|image| !image.trim().is_empty()) else {
            return Err(source.error(&key("image"), "every agent needs an image, for example image = \"quayside/agent-python:3.11\""));
        };
        let base = base.unwrap_or_else(|| Agent::new(name.clone(), image.clone(), Vec::new()));
        let agent = Agent {
            description: file.description.unwrap_or(base.description),
            command: file.command.unwrap_or(base.command),
            image,
            env: file.env.into_iter().collect(),
            memory: file.memory.map_or(base.memory, HumanSize::bytes),
            cpus: file.cpus.unwrap_or(base.cpus),
            pids: file.pids.unwrap_or(base.pids),
            network: file.network.unwrap_or(base.network),
            input: file.input.unwrap_or(base.input),
            output: file.output.unwrap_or(base.output),
            timeout: file.timeout.map_or(base.timeout, HumanDuration::get),
            output_limit: file.output_limit.map_or(base.output_limit, HumanSize::bytes),
            workspace: file.workspace.map_or(base.workspace, HumanSize::bytes),
            files: file.files.map_or(base.files, HumanSize::bytes),
            warm: file.warm.or(base.warm),
            session: file.session.unwrap_or(base.session),
            idle: file.idle.map_or(base.idle, HumanDuration::get),
            name: name.clone(),
        };
        if agent.session == Session::Conversation && (agent.input != Input::Json || agent.output != Output::Events) {
            return Err(source.error(
                &key("session"),
                "a container that serves a conversation needs input = \"json\" and output = \"events\": a request is a line, and a result event ends its reply",
            ));
        }
        if agent.idle.is_zero() || agent.idle > Duration::from_secs(7 * 24 * 3600) {
            return Err(source.error(&key("idle"), "must be more than 0 and at most 7days"));
        }
        if agent.memory < 6 << 20 {
            return Err(source.error(&key("memory"), "must be at least 6MiB, the least a container engine accepts"));
        }
        if !(0.01..=1024.0).contains(&agent.cpus) {
            return Err(source.error(&key("cpus"), "must be between 0.01 and 1024"));
        }
        if agent.pids == 0 || agent.pids > 1 << 22 {
            return Err(source.error(&key("pids"), "must be between 1 and 4194304"));
        }
        if agent.timeout < Duration::from_secs(1) || agent.timeout > Duration::from_secs(7 * 24 * 3600) {
            return Err(source.error(&key("timeout"), "must be between 1s and 7days"));
        }
        if agent.output_limit == 0 || agent.output_limit > 64 << 20 {
            return Err(source.error(&key("output_limit"), "must be between 1B and 64MiB"));
        }
        if !(1 << 20..=1 << 40).contains(&agent.workspace) {
            return Err(source.error(&key("workspace"), "must be between 1MiB and 1TiB; it counts against the agent's memory"));
        }
        if agent.files > 64 << 20 {
            return Err(source.error(&key("files"), "must be at most 64MiB; 0B keeps no files"));
        }
        if agent.env.iter().any(|(name, value)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')) {
            return Err(source.error(&key("env"), "a name must not be empty or contain `=`, and neither may contain NUL"));
        }
        agents.insert(name, agent);
    }
    Ok(agents)
}

fn builtin_python() -> Agent {
    let command = PYTHON_COMMAND.map(str::to_owned).to_vec();
    Agent { description: PYTHON_DESCRIPTION.to_owned(), ..Agent::new(python(), PYTHON_IMAGE.to_owned(), command) }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
