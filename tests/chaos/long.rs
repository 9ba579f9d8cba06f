//! The long form: rounds until enough was killed, the time to recovery, and memory over thousands of runs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use crate::chaos::load::Load;
use crate::chaos::round::Round;
use crate::chaos::stage::Stage;
use crate::chaos::{judged, now, short, summary};
use crate::checker::Promise;
use crate::support::server::Backend;
use crate::{recovery, soak};

/// Breaks real processes, containers and emulators by seed, and judges what the users saw.
#[derive(Debug, Parser)]
#[command(name = "make chaos", max_term_width = 100)]
pub struct Arguments {
    /// What to break
    #[arg(long, value_enum, default_value = "both")]
    backend: On,
    /// The first round's seed; the next rounds count up from it [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Rounds for each backend [default: as many as fit into the time]
    #[arg(long)]
    rounds: Option<usize>,
    /// Go on until so many processes were killed, on each backend
    #[arg(long)]
    kills: Option<usize>,
    /// Minutes of rounds for each backend, when neither rounds nor kills are given
    #[arg(long, default_value_t = 3)]
    minutes: u64,
    /// Rounds as CI plays them
    #[arg(long)]
    short: bool,
    /// Kills for the time to recovery with leases of 30 s on google, each of which takes some 40 s; ten times as many embedded
    #[arg(long, default_value_t = 3)]
    recoveries: usize,
    /// Runs after the warm-up for the growth of memory
    #[arg(long, default_value_t = 2000)]
    soak: usize,
    /// Leave everything out but
    #[arg(long, value_enum)]
    only: Option<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum On {
    Embedded,
    Google,
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Rounds,
    Recovery,
    Memory,
}

/// The bar for the growth of a process.
const GROWTH: u64 = 10 << 20;
/// The bars for the 99th percentile from a kill to the same run elsewhere, in milliseconds.
const ELSEWHERE_EMBEDDED: u64 = 5_000;
const ELSEWHERE_GOOGLE: u64 = 45_000;

/// Everything that `arguments` ask for; false when a bar was missed or a promise broken.
pub async fn run(arguments: &Arguments) -> bool {
    let backends = match arguments.backend {
        On::Embedded => vec![Backend::Embedded],
        On::Google => vec![Backend::Google],
        On::Both => vec![Backend::Embedded, Backend::Google],
    };
    let wanted = |part| arguments.only.is_none_or(|only| only == part);
    let mut good = true;
    let mut lines = Vec::new();
    for backend in backends {
        let mut stage = Stage::set(backend).await;
        if wanted(Part::Rounds) {
            good &= rounds(arguments, &mut stage, &mut lines).await;
        }
        if wanted(Part::Recovery) && arguments.recoveries > 0 {
            // Embedded, a restart ends every lease at once.
            let (kills, bar) = match backend {
                Backend::Embedded => (arguments.recoveries * 10, ELSEWHERE_EMBEDDED),
                Backend::Google => (arguments.recoveries, ELSEWHERE_GOOGLE),
            };
            eprintln!("==> {}: {kills} kills with leases of 30 s", name(backend));
            let times = recovery::measure(&stage, kills, arguments.seed.unwrap_or(1)).await;
            good &= recovered(&mut lines, &format!("{}, lease 30 s", name(backend)), times, bar);
        }
        if wanted(Part::Memory) && arguments.soak > 0 {
            good &= memory(&stage, arguments.soak, &mut lines).await;
        }
    }
    println!("\n{}", lines.join("\n"));
    good
}

async fn rounds(arguments: &Arguments, stage: &mut Stage, lines: &mut Vec<String>) -> bool {
    let name = name(stage.backend);
    let begun = Instant::now();
    let first = arguments.seed.unwrap_or_else(|| now() / 1000);
    let (mut runs, mut kills, mut faults, mut played, mut times, mut good) = (0, 0, 0, 0, Vec::new(), true);
    let mut broken = BTreeMap::<Promise, usize>::new();
    let mut blamed = 0;
    let (mut leftovers, mut containers, mut hit) = (0, 0, 0);
    loop {
        let over = match (arguments.rounds, arguments.kills) {
            (Some(rounds), _) => played >= rounds,
            (None, Some(wanted)) => kills >= wanted,
            (None, None) => begun.elapsed() > Duration::from_secs(60 * arguments.minutes),
        };
        if over {
            break;
        }
        let seed = first + played as u64;
        let round = if arguments.short { short(seed) } else { long(stage.backend, seed) };
        eprintln!("==> {name}: round {}, seed {seed}", played + 1);
        let report = round.play(stage).await;
        played += 1;
        eprintln!("    {}", summary(&report));
        if let Err(told) = judged(&report, stage.backend) {
            good = false;
            println!("{told}");
            stage.keep_files();
        }
        runs += report.runs;
        kills += report.deeds.kills.len();
        faults += report.deeds.faults.len();
        containers += report.containers;
        hit += report.hit;
        blamed += report.blamed.len();
        leftovers += usize::from(report.leftovers.is_some());
        times.extend(&report.elsewhere);
        for violation in &report.violations {
            *broken.entry(violation.promise).or_default() += 1;
        }
        eprintln!("    so far {kills} kills, {runs} runs, {:?} broken promises, {:.0?}", broken.values().sum::<usize>(), begun.elapsed());
    }
    let count = |promise| broken.get(&promise).copied().unwrap_or(0);
    lines.push(format!(
        "{name}: {played} rounds from seed {first}, {runs} runs in {containers} containers, {faults} faults, {kills} processes killed over {hit} running containers: {} lost, {} doubled, {} wrong-user, {} other broken promises, {blamed} failed for our faults; {leftovers} rounds left something",
        count(Promise::NothingLost),
        count(Promise::NothingDoubled),
        count(Promise::BelongsTogether),
        broken.iter().filter(|(promise, _)| !matches!(promise, Promise::NothingLost | Promise::NothingDoubled | Promise::BelongsTogether)).map(|(_, count)| count).sum::<usize>(),
    ));
    // No bar here: many a kill is followed by another fault.
    recovered(lines, &format!("{name}, lease 4 s, among all faults"), times, u64::MAX);
    good
}

/// A round with 200 runs.
fn long(backend: Backend, seed: u64) -> Round {
    let (rest, kills_in_a_deck) = if backend == Backend::Embedded { ((100, 2000), 24) } else { ((200, 1500), 14) };
    Round { seed, load: Load { runs: 200, rest: Duration::from_secs(5) }, deeds: usize::MAX, kills_in_a_deck, rest }
}

fn recovered(lines: &mut Vec<String>, what: &str, mut times: Vec<u64>, bar: u64) -> bool {
    if times.is_empty() {
        lines.push(format!("kill -> running elsewhere ({what}): nothing was hit"));
        return true;
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
    let (p50, p99, most) = (at(50), at(99), at(100));
    lines.push(format!("kill -> running elsewhere ({what}): p50 {p50} ms, p99 {p99} ms, at most {most} ms, {} runs hit", times.len()));
    p99 <= bar
}

async fn memory(stage: &Stage, runs: usize, lines: &mut Vec<String>) -> bool {
    let name = name(stage.backend);
    eprintln!("==> {name}: {runs} runs for the growth of memory");
    let soaked = soak::soak(stage, runs).await;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut good = soaked.leftovers.is_none();
    for growth in &soaked.growth {
        let grown = growth.end.saturating_sub(growth.warm);
        good &= grown < GROWTH;
        lines.push(format!(
            "{name}: {} over {runs} runs: {:.1} MiB resident, {:+.1} MiB since the warm-up",
            growth.process,
            mib(growth.end),
            mib(growth.end) - mib(growth.warm)
        ));
    }
    let left = soaked.leftovers.as_deref().unwrap_or("nothing");
    lines.push(format!("{name}: {:.1} runs a second; left on the host {:.1?} after the last end: {left}", soaked.per_second, soaked.empty_after));
    good
}

fn name(backend: Backend) -> &'static str {
    if backend == Backend::Google { "google" } else { "embedded" }
}
