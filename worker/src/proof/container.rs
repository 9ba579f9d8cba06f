//! The containers of a proof: how they are made, and what their program said.

use std::time::Duration;

use bytes::Bytes;
use quayside_shared::agent::{Agent, Input, Network, Output};
use quayside_shared::error::chain;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::outside::{self, Outside};
use crate::runner::{ContainerKey, Exit, Fault, FaultKind, LaunchSpec, OutputChunk, Runner, Sandbox};
use crate::slots::LiveContainers;

/// The program. It runs in the agents' own image, so that it needs none of its own.
const PROGRAM: &str = include_str!("probe.py");
/// On a machine that is busy with everything else; on a quiet one a second or two.
const LIMIT: Duration = Duration::from_secs(45);
/// What the program says is a few kilobytes.
const OUTPUT_MAX: usize = 256 << 10;

const MIB: u64 = 1 << 20;

/// The places of the two containers: the last ones of a worker, so that their uids are nobody else's.
const PLACES: [u32; 2] = [9_998, 9_999];

/// The folders that a program may write to: path, bytes, inodes.
pub const FOLDERS: [(&str, u64, u64); 3] = [("/tmp", 32 * MIB, 4096), ("/dev/shm", 16 * MIB, 1024), ("/workspace", 64 * MIB, 8192)];
/// The largest file.
pub const FILE_SIZE: u64 = 64 * MIB;
/// Open files of a process.
pub const OPEN_FILES: u64 = 1024;

/// What is asked for. Each is small, so that the try is short.
pub const PIDS: u32 = 32;
/// Memory of the container that is killed for it.
pub const MEMORY: u64 = 48 * MIB;
/// Memory of the container that fills the folders, which are in memory.
pub const WALLS_MEMORY: u64 = 256 * MIB;
/// CPU quota of the container that wants two.
pub const CPUS: f64 = 0.2;
/// For so long, in seconds.
const WINDOW: f64 = 0.3;

/// How a proof is made.
#[derive(Debug, Clone)]
pub struct Probe {
    /// An image with `python3` in it: the one of the agent `python`.
    pub image: String,
    /// The first uid of this worker's containers; `None` where uids are not of this kind.
    pub uid_base: Option<u32>,
    /// Whether the processes of containers are to be found in this machine's `/proc`.
    pub local: bool,
    /// Containers in use, for the sweeper.
    pub live: LiveContainers,
}

impl Probe {
    /// The uid of the container that tries the walls.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        self.uid_base.and_then(|base| base.checked_add(PLACES[0]))
    }
}

/// What the program said, by the name of the probe, and how its containers ended.
#[derive(Debug, Default)]
pub struct Report {
    pub(super) said: Vec<Value>,
    /// What the host saw meanwhile.
    pub outside: Option<Outside>,
    /// How the container that takes too much memory ended.
    pub budget_exit: Option<Exit>,
    /// Why something is missing, when trying again may help.
    pub incomplete: Option<String>,
    /// The engine will not make containers as strict as asked for: in its own words.
    pub refused: Option<String>,
}

impl Report {
    /// What the program said about `probe`, if it said anything that can be read.
    #[must_use]
    pub fn said<T: DeserializeOwned>(&self, probe: &str) -> Option<T> {
        let line = self.said.iter().find(|line| line["probe"] == probe)?;
        T::deserialize(line).ok()
    }

    /// All that it said under that name.
    #[must_use]
    pub fn said_all<T: DeserializeOwned>(&self, probe: &str) -> Vec<T> {
        self.said.iter().filter(|line| line["probe"] == probe).filter_map(|line| T::deserialize(line).ok()).collect()
    }

    /// A report of these lines, for judges.
    #[must_use]
    pub fn of(said: Vec<Value>) -> Self {
        Self { said, ..Self::default() }
    }
}

/// Runs both containers, side by side.
pub async fn run(runner: &dyn Runner, probe: &Probe) -> Report {
    match runner.image_digest(&probe.image).await {
        Ok(Some(_)) => {}
        Ok(None) => return missing(format!("the image {} is not there", probe.image)),
        Err(fault) => return missing(chain(&fault)),
    }
    let (mut walls, budget) = tokio::join!(one(runner, probe, Part::Walls), one(runner, probe, Part::Budget));
    walls.said.extend(budget.said);
    walls.budget_exit = budget.budget_exit;
    walls.incomplete = walls.incomplete.or(budget.incomplete);
    walls.refused = walls.refused.or(budget.refused);
    walls
}

fn missing(why: String) -> Report {
    Report { incomplete: Some(why), ..Report::default() }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Walls,
    Budget,
}

impl Part {
    /// The agent that is this part's container. It asks for a little more than it may have, of everything.
    fn agent(self, image: &str) -> Option<Agent> {
        let (name, asks) = match self {
            Self::Walls => {
                let folders: Vec<Value> = FOLDERS.iter().map(|(path, size, inodes)| json!([path, size + 16 * MIB, inodes * 5 / 4])).collect();
                ("walls", json!({ "pids": PIDS + 16, "nofile": OPEN_FILES * 2, "fsize": FILE_SIZE, "folders": folders }))
            }
            Self::Budget => ("budget", json!({ "window": WINDOW, "memory": MEMORY * 2 })),
        };
        let command = ["python3", "-S", "-E", "-c", PROGRAM, name, &asks.to_string()].map(str::to_owned).to_vec();
        Some(Agent {
            input: Input::Text,
            output: Output::Text,
            memory: if self == Self::Walls { WALLS_MEMORY } else { MEMORY },
            cpus: if self == Self::Walls { 1.0 } else { CPUS },
            pids: PIDS,
            network: Network::None,
            timeout: LIMIT,
            ..Agent::new("sandbox-proof".parse().ok()?, image.to_owned(), command)
        })
    }
}

async fn one(runner: &dyn Runner, probe: &Probe, part: Part) -> Report {
    let Some(agent) = part.agent(&probe.image) else { return Report::default() };
    let announced = probe.live.announce(ContainerKey::Warm(rand::random()));
    let spec = LaunchSpec { agent, key: announced.key().clone(), place: PLACES[part as usize] };
    let mut sandbox = match runner.launch(&spec).await {
        Ok(sandbox) => sandbox,
        Err(fault) => return not_launched(&fault),
    };
    let mut report = Report::default();
    let told = tokio::time::timeout(LIMIT, listen(&mut *sandbox, probe, part, &mut report)).await;
    let trouble = match told {
        Ok(Ok(())) => None,
        Ok(Err(fault)) => Some(chain(&fault)),
        Err(_elapsed) => Some(format!("it did not end within {} s", LIMIT.as_secs())),
    };
    report.incomplete = trouble;
    // Whatever cannot be killed or removed here is the sweeper's: it is announced no longer.
    if let Err(fault) = sandbox.kill().await {
        tracing::warn!(error = %chain(&fault), "a container of a proof could not be killed; the sweeper will");
    }
    if let Err(fault) = sandbox.remove().await {
        tracing::warn!(error = %chain(&fault), "a container of a proof could not be removed; the sweeper will");
    }
    drop(announced);
    report
}

fn not_launched(fault: &Fault) -> Report {
    match (fault.kind(), fault.setting()) {
        (FaultKind::Refused, Some(_)) => Report { refused: Some(fault.to_string()), ..Report::default() },
        _ => missing(chain(fault)),
    }
}

async fn listen(sandbox: &mut dyn Sandbox, probe: &Probe, part: Part, report: &mut Report) -> Result<(), Fault> {
    // It stands there and waits for its request: the moment to look at it from the host.
    if part == Part::Walls
        && probe.local
        && let Some(uid) = probe.uid()
    {
        report.outside = tokio::task::spawn_blocking(move || outside::look(uid)).await.ok().flatten();
    }
    sandbox.send(Bytes::new())?;
    let mut output = Vec::new();
    while let Some(chunk) = sandbox.next_output().await.transpose()? {
        if let OutputChunk::Stdout(bytes) = chunk {
            output.extend_from_slice(&bytes);
            output.truncate(OUTPUT_MAX);
        }
    }
    report.said = output.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let exit = sandbox.wait().await?;
    if part == Part::Budget {
        report.budget_exit = Some(exit);
    }
    Ok(())
}
