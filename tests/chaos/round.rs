//! One round: users, a nemesis, then everything is healed, drained and judged.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quayside_shared::run::Status;
use serde_json::Value;

use super::client::{Clients, status_of};
use super::dice::Dice;
use super::host::{Host, remove_empty_control_groups};
use super::installation::{Installation, Settings};
use super::load::{self, Load};
use super::nemesis::{Deeds, Fault, Kill, Nemesis};
use super::stage::Stage;
use super::witness::Seen;
use crate::checker::{Execution, FinalRun, History, Limits, Outcome, Violation, check};
use crate::support::server::Backend;

/// After the last fault everything must have ended within this.
const DRAIN: Duration = Duration::from_secs(120);
/// No round takes longer, whatever is done to it.
const LONGEST: Duration = Duration::from_secs(1200);
/// Warnings of one kind; each of a few slots may try again twice a second.
const LOUDEST_A_SECOND: u64 = 20;
/// A container that ends this soon after its worker may have ended before it, on other clocks.
const MEANWHILE_MS: u64 = 30;

/// What a round is made of.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    pub seed: u64,
    pub load: Load,
    /// Goes on until so many deeds were done, and until everybody has submitted.
    pub deeds: usize,
    /// Kills of workers in each deck of faults.
    pub kills_in_a_deck: usize,
    /// The rest between two deeds, in milliseconds.
    pub rest: (u64, u64),
}

/// What came of a round.
pub struct Report {
    pub seed: u64,
    pub runs: usize,
    pub containers: usize,
    /// Containers whose worker was killed over them.
    pub hit: usize,
    pub deeds: Deeds,
    pub violations: Vec<Violation>,
    /// What is left on the host.
    pub leftovers: Option<String>,
    /// Runs that ended as no agent ended them.
    pub blamed: Vec<String>,
    /// What a process logged more often than a fault explains.
    pub noise: Option<String>,
    /// From a kill to the same run in another container, in milliseconds.
    pub elsewhere: Vec<u64>,
    /// From the last fault to the last end.
    pub drained: Duration,
    pub took: Duration,
    pub logs: PathBuf,
}

impl Round {
    pub async fn play(self, stage: &mut Stage) -> Report {
        let begun = Instant::now();
        let dice = Dice::new(self.seed);
        let mut settings = Settings::of_a_round(stage.backend);
        settings.small_disk = stage.backend == Backend::Embedded && stage.engine.is_some() && self.seed.is_multiple_of(2);
        let folder = stage.engine.as_ref().map(|engine| engine.folder().to_owned());
        let before = folder.as_ref().map(|folder| Host::now(&stage.socket(), folder, std::iter::empty()));
        let known: Vec<String> = stage.witness.seen().into_keys().collect();
        let mut installation = Installation::start(stage, &format!("round-{}", self.seed), settings).await;
        let clients = Clients::new(installation.apis.clone(), begun + LONGEST);
        let ended = Arc::new(AtomicUsize::new(0));
        let users = tokio::spawn({
            let (clients, dice, ended) = (clients.clone(), dice.fork("users"), ended.clone());
            async move { load::run(&clients, self.load, &dice, &ended).await }
        });

        let mut nemesis = Nemesis::new(dice.fork("nemesis"), self.kills_in_a_deck);
        nemesis.rest(300..1500).await;
        while nemesis.deeds.faults.len() < self.deeds && !users.is_finished() && begun.elapsed() < LONGEST {
            nemesis.strike(stage, &mut installation).await;
            nemesis.rest(self.rest.0..self.rest.1).await;
        }

        installation.ready().await;
        let healed = Instant::now();
        let drained = tokio::time::timeout(DRAIN, users).await;
        let drained = match drained {
            Ok(Ok(())) => healed.elapsed(),
            Ok(Err(surprised)) => panic!("{surprised}; seed {}, logs in {}", self.seed, installation.logs.display()),
            // The checker says what is missing.
            Err(_) => DRAIN,
        };
        let mut history = std::mem::take(&mut *clients.history());
        history.finals = finals(&clients, &history).await;
        let instances = installation.instances();
        stage.witness.until_empty(&instances).await;
        for process in &mut installation.processes {
            process.terminate().await;
        }
        let witnessed = stage.witness.seen().into_iter().filter(|(id, seen)| !known.contains(id) && instances.contains(&seen.instance));
        let witnessed: Vec<(String, Seen)> = witnessed.collect();
        let leftovers = folder.zip(before).and_then(|(folder, before)| {
            let ids = witnessed.iter().map(|(id, _)| id.as_str());
            if nemesis.deeds.faults.iter().any(|deed| deed.fault == Fault::KillEngine) {
                remove_empty_control_groups(ids.clone());
            }
            Host::now(&stage.socket(), &folder, ids).more_than(&before)
        });
        history.executions = witnessed.iter().map(|(_, seen)| execution(seen, &nemesis.deeds, &history)).collect();
        let limits = Limits { max_attempts: settings.max_attempts, engines_apart: stage.backend == Backend::Google };
        let report = Report {
            seed: self.seed,
            runs: history.finals.len(),
            violations: check(&history, &limits),
            leftovers,
            elsewhere: elsewhere(witnessed.iter().map(|(_, seen)| seen), &nemesis.deeds),
            containers: history.executions.len(),
            blamed: history.finals.iter().filter_map(blamed).collect(),
            hit: witnessed.iter().filter(|(_, seen)| nemesis.deeds.kills.iter().any(|kill| is_hit(seen, kill))).count(),
            deeds: nemesis.deeds,
            drained,
            noise: noise(&installation.logs, begun.elapsed()),
            took: begun.elapsed(),
            logs: installation.logs.clone(),
        };
        assert!(ended.load(Ordering::SeqCst) <= report.runs, "nobody watched a run to its end that is not there");
        report
    }
}

/// Every run there is, as it is now.
async fn finals(clients: &Clients, history: &History) -> Vec<FinalRun> {
    let mut runs = Vec::new();
    for (user, conversation) in load::conversations() {
        for listed in clients.list(&user, &conversation).await {
            runs.push((user.clone(), listed["id"].as_str().unwrap().to_owned()));
        }
    }
    for submission in &history.submissions {
        if let Outcome::Accepted(id) = &submission.outcome
            && !runs.iter().any(|(_, known)| known == id)
        {
            runs.push((submission.user.clone(), id.clone()));
        }
    }
    let mut finals = Vec::new();
    for (user, id) in runs {
        // One that is not there is missing in the end, and the checker says so.
        if let Some(run) = clients.read(&user, &format!("/api/runs/{id}")).await {
            let _known = status_of(&run);
            finals.push(FinalRun::from_json(&run).unwrap());
        }
    }
    finals
}

/// The agents do what they are told and have time: they complete, or are cancelled. Any other end is a fault of ours that
/// the user was blamed for.
fn blamed(run: &FinalRun) -> Option<String> {
    let right = matches!(run.status, Status::Completed | Status::Cancelled) || !run.status.is_terminal();
    (!right).then(|| format!("{}: {} ({:?}) after {:?}", run.id, run.status.as_str(), run.error, run.attempts))
}

/// Warnings of one kind by one process, many a second over the whole round: something spins.
fn noise(logs: &Path, took: Duration) -> Option<String> {
    let bound = LOUDEST_A_SECOND * took.as_secs();
    for file in std::fs::read_dir(logs).unwrap().flatten().filter(|file| file.file_name().to_string_lossy().starts_with("log-")) {
        let mut counted = BTreeMap::<String, u64>::new();
        for line in BufReader::new(File::open(file.path()).unwrap()).lines().map_while(Result::ok) {
            if let Ok(line) = serde_json::from_str::<Value>(&line)
                && line["severity"] == "WARNING"
            {
                *counted.entry(line["message"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
            }
        }
        if let Some((message, count)) = counted.into_iter().find(|(_, count)| *count > bound) {
            return Some(format!("{} says {count} times `{message}`", file.path().display()));
        }
    }
    None
}

fn execution(seen: &Seen, deeds: &Deeds, history: &History) -> Execution {
    let (run, end) = (seen.run.clone(), seen.end);
    let killed = deeds
        .kills
        .iter()
        .any(|kill| kill.instance.as_ref() == Some(&seen.instance) && seen.start <= kill.at && end.is_none_or(|(at, _)| at > kill.at + MEANWHILE_MS));
    // What an engine in trouble made of the attempt before its worker died is not known here, and a cancelled run ends
    // as cancelled whoever died.
    let other_ends = deeds.faults.iter().any(|deed| deed.is_the_engines() && seen.start <= deed.to && end.is_none_or(|(at, _)| at >= deed.from))
        || history.cancels.iter().any(|cancel| cancel.run == run)
        || deeds.faults.iter().any(|deed| deed.fault == Fault::FullDisk);
    Execution {
        run,
        epoch: seen.epoch,
        message: None,
        user: None,
        start: seen.start,
        ended: end.and_then(|(at, code)| (code == Some(0)).then_some(at)),
        gone: end.map(|(at, _)| at),
        orphaned: killed && !other_ends,
    }
}

/// Whether it ran when its worker was killed.
fn is_hit(seen: &Seen, kill: &Kill) -> bool {
    kill.instance.as_ref() == Some(&seen.instance) && seen.start <= kill.at && seen.end.is_none_or(|(at, _)| at > kill.at + MEANWHILE_MS)
}

/// For each kill and each run that it hit: the time until the run ran in another container.
pub fn elsewhere<'a>(witnessed: impl Iterator<Item = &'a Seen> + Clone, deeds: &Deeds) -> Vec<u64> {
    let mut times = Vec::new();
    for kill in &deeds.kills {
        for seen in witnessed.clone().filter(|seen| is_hit(seen, kill)) {
            let again = witnessed.clone().filter(|other| other.run == seen.run && other.epoch > seen.epoch && other.start >= kill.at);
            if let Some(again) = again.map(|other| other.start).min() {
                // A second kill before that is the time of that kill.
                if !deeds.kills.iter().any(|other| other.at > kill.at && other.at < again) {
                    times.push(again - kill.at);
                }
            }
        }
    }
    times
}
