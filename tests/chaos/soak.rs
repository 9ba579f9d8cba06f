//! Thousands of runs without a fault: whether the processes grow, and what they leave.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::chaos::client::{Clients, Request};
use crate::chaos::fleet::Process;
use crate::chaos::host::Host;
use crate::chaos::installation::{Installation, Settings};
use crate::chaos::stage::Stage;

/// Runs that fill caches, pools and buffers, before the first look.
const WARM_UP: usize = 200;
/// Submitted and not ended at any moment.
const UNDER_WAY: usize = 12;
const LONGEST: Duration = Duration::from_secs(3600);

/// How much one process grew.
pub struct Growth {
    pub process: String,
    /// Resident, in bytes, after the warm-up and at the end.
    pub warm: u64,
    pub end: u64,
}

pub struct Soaked {
    pub growth: Vec<Growth>,
    pub per_second: f64,
    pub leftovers: Option<String>,
    /// From the last run's end until the engine was empty.
    pub empty_after: Duration,
}

/// Warms up, then makes `runs` runs.
pub async fn soak(stage: &Stage, runs: usize) -> Soaked {
    let folder = stage.engine.as_ref().map(|engine| engine.folder().to_owned());
    let before = folder.as_ref().map(|folder| Host::now(&stage.socket(), folder, std::iter::empty()));
    let settings = Settings { lease: "30s", heartbeat: "10s", running_per_user: 8, ..Settings::of_a_round(stage.backend) };
    let mut installation = Installation::start(stage, "soak", settings).await;
    let clients = Clients::new(installation.apis.clone(), Instant::now() + LONGEST);
    batch(&clients, 0, WARM_UP).await;
    let warm: Vec<u64> = installation.processes.iter().map(memory).collect();
    let begun = Instant::now();
    batch(&clients, WARM_UP, runs).await;
    let per_second = f64::from(u32::try_from(runs).unwrap()) / begun.elapsed().as_secs_f64();
    let ended = Instant::now();
    let instances = installation.instances();
    stage.witness.until_empty(&instances).await;
    let empty_after = ended.elapsed();
    let growth = installation.processes.iter().zip(warm).enumerate();
    let growth =
        growth.map(|(number, (process, warm))| Growth { process: format!("{:?} {number}", process.role), warm, end: memory(process) }).collect();
    for process in &mut installation.processes {
        process.terminate().await;
    }
    let seen = stage.witness.seen();
    let leftovers = folder.zip(before).and_then(|(folder, before)| {
        let ids = seen.iter().filter(|(_, seen)| instances.contains(&seen.instance)).map(|(id, _)| id.as_str());
        Host::now(&stage.socket(), &folder, ids).more_than(&before)
    });
    Soaked { growth, per_second, leftovers, empty_after }
}

async fn batch(clients: &Arc<Clients>, from: usize, count: usize) {
    let (places, done) = (Arc::new(Semaphore::new(UNDER_WAY)), Arc::new(AtomicUsize::new(0)));
    let mut running = JoinSet::new();
    for number in from..from + count {
        let place = places.clone().acquire_owned().await.unwrap();
        let (clients, done) = (clients.clone(), done.clone());
        running.spawn(async move {
            let message = format!("message {number}");
            let user = format!("user-{}", number % crate::chaos::load::USERS);
            let request = Request {
                user: user.clone(),
                conversation: format!("soak-{number}"),
                key: format!("soak-{number}"),
                agent: "cat",
                reply: message.clone(),
                message: message.clone(),
            };
            let run = clients.submit(&request).await;
            loop {
                let read = clients.read(&user, &format!("/api/runs/{run}?wait=4")).await;
                if let Some(read) = read.filter(|read| read["status"] != "queued" && read["status"] != "in_progress") {
                    assert_eq!((read["status"].as_str(), read["text"].as_str()), (Some("completed"), Some(message.as_str())), "{read}");
                    break;
                }
            }
            drop(place);
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if done.is_multiple_of(200) {
                eprintln!("    {done} of {count} runs");
            }
            // The observations of thousands of runs would be this process's memory, and nobody judges them.
            clients.history().observations.clear();
        });
        while running.try_join_next().is_some_and(|ended| ended.is_ok()) {}
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("a run was not answered as it should");
    }
}

/// Resident, in bytes.
fn memory(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() << 10
}
