//! Limits are proven, not believed.
//!
//! Before a worker takes its first message it starts two containers through the [`Runner`] port, exactly as it starts an
//! agent's, with a program in them that tries the walls ([`container`]). What that program saw, and what the host sees of it
//! where the engine is local ([`outside`]), is judged limit by limit ([`judge`]). What follows for each agent is a pure
//! function of its policy and that proof ([`promise`]); [`gate`] keeps the result and tries again when the engine is
//! another one, or when the image of the probe was missing and has come. [`escapes`] knows versions with known ways out.

pub mod container;
pub mod escapes;
pub mod gate;
pub mod judge;
pub mod outside;
pub mod promise;

use quayside_shared::clock::{Clock, SystemClock, Timestamp};
use serde::Serialize;

use crate::runner::{Component, Runner};
use escapes::KnownEscape;

/// One wall of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Who takes more memory is killed.
    Memory,
    /// No more processes than asked for.
    Pids,
    /// No more CPU time than asked for.
    Cpus,
    /// Nothing but three folders in memory can be written, each with an end.
    Disk,
    /// No more files in them than asked for.
    Inodes,
    /// No file larger than asked for.
    FileSize,
    /// No more open files than asked for; no core files.
    OpenFiles,
    /// Nothing can be reached.
    Network,
    /// Kinds of sockets that lead into the kernel cannot be opened.
    Sockets,
    /// A uid of its own, which is not root's.
    Uid,
    /// No capabilities, and none to be had.
    Capabilities,
    /// No privileges can be gained by executing anything.
    NoNewPrivileges,
    /// System calls that are not needed are refused.
    Seccomp,
    /// Neither processes, nor settings, nor sockets of the host are there.
    Host,
}

impl Limit {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 14] = [
        Self::Memory,
        Self::Pids,
        Self::Cpus,
        Self::Disk,
        Self::Inodes,
        Self::FileSize,
        Self::OpenFiles,
        Self::Network,
        Self::Sockets,
        Self::Uid,
        Self::Capabilities,
        Self::NoNewPrivileges,
        Self::Seccomp,
        Self::Host,
    ];

    /// Its name, for operators.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpus => "cpus",
            Self::Disk => "disk",
            Self::Inodes => "inodes",
            Self::FileSize => "file_size",
            Self::OpenFiles => "open_files",
            Self::Network => "network",
            Self::Sockets => "sockets",
            Self::Uid => "uid",
            Self::Capabilities => "capabilities",
            Self::NoNewPrivileges => "no_new_privileges",
            Self::Seccomp => "seccomp",
            Self::Host => "host",
        }
    }
}

/// What was found about a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was tried, and it held.
    Enforced,
    /// It was tried, and it did not hold.
    NotEnforced,
    /// It could not be tried, or the try said nothing.
    NotProven,
}

/// A limit, what was promised, what was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Which.
    pub limit: Limit,
    /// The promise, for people.
    pub promised: String,
    /// What happened, for people.
    pub measured: String,
    /// What follows.
    pub verdict: Verdict,
}

/// What was found out about a worker's containers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Proof {
    /// One for each limit, in the order of [`Limit::ALL`].
    pub rows: Vec<Row>,
    /// Why some of it is not proven, when the reason may pass.
    pub incomplete: Option<String>,
    /// What the containers stand on.
    pub components: Vec<Component>,
    /// Known ways out of these versions.
    pub known_escapes: Vec<KnownEscape>,
    /// When it was tried.
    pub at: Timestamp,
}

impl Proof {
    /// What was found about `limit`.
    #[must_use]
    pub fn verdict(&self, limit: Limit) -> Verdict {
        self.rows.iter().find(|row| row.limit == limit).map_or(Verdict::NotProven, |row| row.verdict)
    }

    /// Whether everything was tried and held.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        Limit::ALL.iter().all(|limit| self.verdict(*limit) == Verdict::Enforced)
    }

    /// Name and version of the component `name`.
    #[must_use]
    pub fn component(&self, names: &[&str]) -> Option<&Component> {
        self.components.iter().find(|component| names.contains(&component.name.as_str()))
    }
}

/// Tries everything once: two containers, well below three seconds on a quiet machine. A fault of the engine is not an
/// error here: what it left untried is not proven.
pub async fn prove(runner: &dyn Runner, probe: &container::Probe) -> Proof {
    let components = runner.components().await.unwrap_or_else(|fault| {
        tracing::warn!(error = %quayside_shared::error::chain(&fault), "the versions of the container engine are not known");
        Vec::new()
    });
    let report = container::run(runner, probe).await;
    Proof {
        rows: judge::rows(probe, &report),
        incomplete: report.incomplete,
        known_escapes: escapes::of(&components),
        components,
        at: SystemClock.now(),
    }
}
