//! A server whose agents are the hostile programs, and a look at the host around it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use super::header::Header;
use super::host::Follower;
use crate::support::eventually;
use crate::support::server::{Backend, Options, Server, containers};

const IMAGE: &str = "quayside/test-hostile:latest";
/// Where a header sets no limit: none of the programs takes as long.
const TIMEOUT: u32 = 60;
/// Enough for the programs, little enough for a machine that runs many at once.
const MEMORY: u64 = 256 << 20;

/// The folder with the programs.
pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hostile/programs")
}

/// The header of one program.
pub fn header(file: &str) -> Header {
    Header::parse(&std::fs::read_to_string(programs().join(file)).expect("the program's source"))
}

/// Builds the image with the programs, once. Needs no network: it is the agent's image and a copy.
fn image() {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let context = programs().parent().expect("the folder above").to_owned();
        let built = Command::new("docker").args(["build", "--quiet", "--network", "none", "--tag", IMAGE]).arg(context).output();
        let built = built.expect("the docker command");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    });
}

/// An agent in TOML that runs `file`. Its name is the file's without the ending, and `suffix`.
pub fn agent(file: &str, suffix: &str, settings: &str) -> String {
    let name = file.split('.').next().unwrap_or(file);
    let timeout = header(file).timeout.unwrap_or(TIMEOUT);
    let timeout = if settings.contains("timeout") { String::new() } else { format!("timeout = \"{timeout}s\"\n") };
    format!(
        "[agents.{name}{suffix}]\nimage = \"{IMAGE}\"\ncommand = [\"/hostile/{file}\"]\ninput = \"text\"\noutput = \"text\"\n\
         memory = \"{}MiB\"\n{timeout}{settings}\n",
        MEMORY >> 20
    )
}

/// A server with these agents and other sections.
pub async fn server(extra: String) -> Server {
    image();
    Server::start_with(Backend::Embedded, Options { extra, ..Options::default() }).await
}

/// Runs one program and compares the run with its header. Afterwards nothing of it is left on the host.
pub async fn verdict(file: &str, settings: &str) -> Seen {
    let server = server(agent(file, "", settings)).await;
    let (before, follower) = (memory(&server, "VmRSS"), Follower::of(&server));
    let user = server.user("mallory");
    let id = user.say(file.split('.').next().unwrap_or(file), "hello").await;
    let run = user.finished(&id).await;
    if let Some(objection) = header(file).objection(&run) {
        panic!("{file}: {objection}: {run:#}");
    }
    nothing_is_left(&server, &id).await;
    follower.sees_no_trace().await;
    let grown = memory(&server, "VmHWM").saturating_sub(before);
    Seen { run, server_growth: grown }
}

/// What a run looked like from outside.
pub struct Seen {
    pub run: Value,
    /// Bytes by which the server's memory peaked above where it was before.
    pub server_growth: u64,
}

impl Seen {
    /// A figure of the run's usage.
    pub fn usage(&self, name: &str) -> u64 {
        self.run["usage"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {:#}", self.run["usage"]))
    }
}

/// The memory limit of the programs.
pub const fn memory_limit() -> u64 {
    MEMORY
}

/// Waits until no container of a run is left.
pub async fn nothing_is_left(server: &Server, run_id: &str) {
    let instances = server.instances();
    eventually("the removal of the container", || async { (!containers::has_one_for(run_id, &instances)).then_some(()) }).await;
    eventually("an empty host", || async { (server.containers().is_empty() && server.workspaces().is_empty()).then_some(()) }).await;
}

/// A figure of the server process from `/proc`, in bytes.
fn memory(server: &Server, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the server is alive");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("a line of /proc");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("kilobytes") << 10
}
