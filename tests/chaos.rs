//! Real processes, real containers, real emulators, and a nemesis that breaks them by seed.
//!
//! A round starts an installation, lets users talk to it through connections that are cut and APIs that are killed, and
//! breaks one part after another. Then it heals everything, waits until every run has ended, and judges what the users saw
//! and what the container engine witnessed with the checker of the simulator. Here is the short form; `make chaos` is the
//! long one.

pub mod client;
pub mod dice;
pub mod disk;
pub mod engine;
pub mod fleet;
pub mod host;
pub mod installation;
pub mod line;
pub mod load;
pub mod nemesis;
mod restarted;
pub mod round;
pub mod stage;
pub mod witness;

use std::time::Duration;

use quayside_shared::clock::{Clock, SystemClock};

use crate::support::server::Backend;
use load::Load;
use round::{Report, Round};
use stage::Stage;

/// Milliseconds since 1970, by the clock that the engine, the store and the users share.
pub fn now() -> u64 {
    u64::try_from(SystemClock.now().as_millis()).unwrap()
}

/// A round that fits into CI and sees every kind of fault.
pub fn short(seed: u64) -> Round {
    Round { seed, load: Load { runs: 72, rest: Duration::from_secs(6) }, deeds: 14, kills_in_a_deck: 4, rest: (50, 900) }
}

async fn every_promise_is_kept(backend: Backend, seeds: &[u64]) {
    let mut stage = Stage::set(backend).await;
    for &seed in seeds {
        let report = short(seed).play(&mut stage).await;
        println!("{}", summary(&report));
        if let Err(told) = judged(&report, backend) {
            panic!("{told}");
        }
    }
}

pub fn summary(report: &Report) -> String {
    let Report { seed, runs, containers, hit, deeds, elsewhere, .. } = report;
    let slowest = elsewhere.iter().max().map_or("-".to_owned(), |most| format!("{most} ms"));
    format!(
        "seed {seed}: {runs} runs in {containers} containers, {} kills that hit {hit} of them (elsewhere after at most {slowest}), {} broken promises, drained in {:.1?}, {:.1?} in all; {deeds}",
        deeds.kills.len(),
        report.violations.len(),
        report.drained,
        report.took
    )
}

/// `Err` tells what is wrong and how to see it again.
pub fn judged(report: &Report, backend: Backend) -> Result<(), String> {
    let Report { seed, violations, leftovers, blamed, noise, logs, .. } = report;
    let mut wrong: Vec<String> = violations.iter().map(ToString::to_string).collect();
    wrong.extend(leftovers.as_ref().map(|left| format!("left on the host: {left}")));
    wrong.extend(blamed.iter().map(|run| format!("a fault of ours ended it: {run}")));
    wrong.extend(noise.clone());
    if wrong.is_empty() {
        return Ok(());
    }
    let backend = if backend == Backend::Google { "google" } else { "embedded" };
    let replay = format!("make chaos ARGS=\"--only rounds --backend {backend} --rounds 1 --seed {seed}\" (with --short for a round of CI)");
    Err(format!("seed {seed} broke promises:\n{}\nlogs: {}\nreplay: {replay}", wrong.join("\n"), logs.display()))
}

mod embedded {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[cfg(test)]
    async fn every_promise_is_kept_by_real_processes() {
        super::every_promise_is_kept(super::Backend::Embedded, &[2]).await;
    }
}

mod google {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[cfg(test)]
    async fn every_promise_is_kept_by_real_processes() {
        super::every_promise_is_kept(super::Backend::Google, &[1]).await;
    }
}
