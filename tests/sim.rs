//! The product in a world that goes wrong on purpose, over and over, the same way for the same seed.
//!
//! Real: the API's router, the consumer, the attempts, the leases, the sweeper, the SQLite store and queue. Simulated:
//! time (Tokio's, paused, and the store's clock follows it), the container engine, the clients, and the processes: each
//! call of one on what is outside of it may be late, fail before its effect or after it, or be the last thing that the
//! process does (`store.rs`, `queue.rs`, `engine.rs`). A nemesis kills, freezes and drains processes besides. At the end
//! everything is healed and drained, and the history is checked (`../checker.rs`).
//!
//! `QUAYSIDE_SEEDS=N` tries more seeds than usual, `QUAYSIDE_SEED=S` begins with another one. A seed is told again by
//! `QUAYSIDE_SEED=S cargo test --test quayside sim::replay -- --nocapture`.

mod clients;
mod dice;
mod engine;
mod found;
mod mutant;
mod process;
mod queue;
mod signals;
mod store;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quayside_shared::sqlite::Database;

use crate::checker::{History, Limits, Promise, Violation, check};
use engine::Engine;
use mutant::Mutant;
use process::{Kind, Shared, supervise};
use world::{Shape, World};

/// Seeds of one test run.
const SEEDS: u64 = 10_000;
const FIRST_SEED: u64 = 1;
/// Seeds among which one must show a mutant.
const SEEDS_OF_A_MUTANT: u64 = 400;
/// In simulated time: no run needs longer to end, once everything is healed.
const DRAIN: Duration = Duration::from_secs(180);
/// Nor a container to be removed after that.
const CLEAN_UP: Duration = Duration::from_secs(60);

/// What came of a seed.
struct Told {
    history: History,
    violations: Vec<Violation>,
    trace: Vec<String>,
    digest: u64,
    /// Simulated.
    took: Duration,
}

/// Plays one seed. `database` is empty afterwards.
fn play(seed: u64, mutant: Option<Mutant>, traced: bool, database: &Database) -> Told {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let told = runtime.block_on(async {
        let told = simulate(seed, mutant, traced, database).await;
        wipe(database).await;
        told
    });
    // Dead processes wait for ever.
    drop(runtime);
    told
}

async fn simulate(seed: u64, mutant: Option<Mutant>, traced: bool, database: &Database) -> Told {
    let begun = tokio::time::Instant::now();
    let world = Arc::new(World::new(seed, mutant, traced));
    world.note(|| format!("seed {seed}: {:?}", world.plan));
    let (kinds, shared): (&[Kind], _) = match world.plan.shape {
        Shape::Embedded => (&[Kind::Up], None),
        Shape::Fleet => (&[Kind::Api, Kind::Api, Kind::Worker, Kind::Worker], Some(Shared::open(&world, database).await)),
    };
    *world.lives.lock().unwrap() = vec![None; kinds.len()];
    *world.gateways.lock().unwrap() = vec![None; kinds.len()];
    let mut engines = Vec::new();
    for (slot, kind) in kinds.iter().enumerate() {
        let engine = (*kind != Kind::Api).then(|| Engine::new(&world));
        engines.extend(engine.clone());
        tokio::spawn(supervise(Arc::clone(&world), slot, *kind, database.clone(), shared.clone(), engine));
    }
    let clients = tokio::spawn(clients::all(Arc::clone(&world)));
    nemesis(&world, kinds.len()).await;
    world.heal();
    clients.await.unwrap();
    drained(database).await;
    cleaned_up(&engines).await;
    let finals = clients::finals(&world).await;
    let mut history = std::mem::take(&mut *world.history());
    history.finals = finals;
    history.executions = engines.iter().flat_map(|engine| engine.executions()).collect();
    let limits = Limits { max_attempts: 3, engines_apart: world.plan.shape == Shape::Fleet };
    let violations = check(&history, &limits);
    Told { history, violations, trace: world.trace(), digest: world.digest(), took: begun.elapsed() }
}

/// Kills, freezes and drains processes at moments that nobody chose.
async fn nemesis(world: &Arc<World>, slots: usize) {
    for _ in 0..world.pick(&[0, 2, 5, 9]) {
        tokio::time::sleep(world.some_millis(4_000)).await;
        let slot = usize::try_from(world.roll(slots as u64)).unwrap();
        let Some(life) = world.lives.lock().unwrap()[slot].clone() else { continue };
        match world.roll(4) {
            0 | 1 => life.crash(),
            2 => life.freeze_for_a_while(),
            _ => {
                world.note(|| format!("{} is asked to stop", life.name));
                life.drain.cancel();
            }
        }
    }
    // Long enough for a slow agent to come to its end in a world that still goes wrong.
    tokio::time::sleep(Duration::from_secs(6) + world.some_millis(12_000)).await;
}

/// Waits until all runs have ended, or for longer than that can take.
async fn drained(database: &Database) {
    let until = tokio::time::Instant::now() + DRAIN;
    while tokio::time::Instant::now() < until {
        let left: i64 = database
            .read(|db| db.query_row("SELECT count(*) FROM runs WHERE status IN ('queued', 'in_progress', 'cancelling')", [], |row| row.get(0)))
            .await
            .unwrap();
        if left == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn cleaned_up(engines: &[Arc<Engine>]) {
    let until = tokio::time::Instant::now() + CLEAN_UP;
    while tokio::time::Instant::now() < until && engines.iter().any(|engine| engine.leftovers() > 0) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Empties the database: cheaper than a new one, whose statements would have to be prepared again.
async fn wipe(database: &Database) {
    let wiped = database.write(
        |db| {
            let mut tables = db.prepare_cached("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")?;
            let tables: Vec<String> = tables.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            db.pragma_update(None, "defer_foreign_keys", true)?;
            for table in tables {
                // A table of one row, which counts.
                let statement =
                    if table == "queue_length" { "UPDATE queue_length SET queued = 0".to_owned() } else { format!("DELETE FROM {table}") };
                db.prepare_cached(&statement)?.execute([])?;
            }
            Ok(())
        },
        |()| {},
    );
    wiped.await.unwrap();
}

/// A number from the environment.
fn asked(name: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "a test has no configuration file")]
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Tries seeds on all cores until `stop` says so of one; `None` when none did.
fn first(seeds: std::ops::Range<u64>, mutant: Option<Mutant>, stop: impl Fn(u64, &Told) -> bool + Sync) -> Option<u64> {
    let (next, found, stopped) = (AtomicU64::new(seeds.start), AtomicU64::new(u64::MAX), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let database = Database::in_memory().unwrap();
                while !stopped.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    if stop(seed, &play(seed, mutant, false, &database)) {
                        found.fetch_min(seed, Ordering::Relaxed);
                        stopped.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    Some(found.into_inner()).filter(|seed| *seed < u64::MAX)
}

/// The whole story of a seed, for people.
fn story(seed: u64, mutant: Option<Mutant>) -> String {
    let told = play(seed, mutant, true, &Database::in_memory().unwrap());
    let mut text = told.trace.join("\n");
    for violation in &told.violations {
        text.push_str(&format!("\nBROKEN: {violation}"));
    }
    text.push_str(&format!("\nseed {seed}: {} broken promises in {:?} of simulated time; again with\n", told.violations.len(), told.took));
    text.push_str(&format!("QUAYSIDE_SEED={seed} cargo test --test quayside sim::replay -- --nocapture"));
    text
}

#[test]
fn every_seed_keeps_every_promise() {
    let begun = Instant::now();
    let first_seed = asked("QUAYSIDE_SEED").unwrap_or(FIRST_SEED);
    let seeds = asked("QUAYSIDE_SEEDS").unwrap_or(SEEDS);
    let [runs, attempts, executions, simulated] = [const { AtomicU64::new(0) }; 4];
    let broken = first(first_seed..first_seed + seeds, None, |_, told| {
        runs.fetch_add(told.history.finals.len() as u64, Ordering::Relaxed);
        attempts.fetch_add(told.history.finals.iter().map(|run| run.attempts.len() as u64).sum(), Ordering::Relaxed);
        executions.fetch_add(told.history.executions.len() as u64, Ordering::Relaxed);
        simulated.fetch_add(told.took.as_secs(), Ordering::Relaxed);
        !told.violations.is_empty()
    });
    let [runs, attempts, executions, simulated] = [runs, attempts, executions, simulated].map(AtomicU64::into_inner);
    let took = begun.elapsed();
    println!("{seeds} seeds in {took:.1?}: {runs} runs, {attempts} attempts, {executions} containers, {} hours of simulated time", simulated / 3600);
    if let Some(seed) = broken {
        panic!("{}", story(seed, None));
    }
    assert!(seeds < 100 || (attempts > runs && executions > runs / 2), "no fault hit anything: the test shows nothing");
}

#[test]
fn a_seed_tells_the_same_story_again() {
    let seeds: Vec<u64> = (0..30).map(|number| 1_000_000 + number).collect();
    let tell = |order: &[u64]| {
        let database = Database::in_memory().unwrap();
        let mut told: Vec<_> = order.iter().map(|seed| (*seed, play(*seed, None, true, &database))).collect();
        told.sort_by_key(|(seed, _)| *seed);
        told
    };
    let backwards: Vec<u64> = seeds.iter().rev().copied().collect();
    for ((seed, once), (_, again)) in tell(&seeds).iter().zip(&tell(&backwards)) {
        if once.digest != again.digest {
            let differs = once.trace.iter().zip(&again.trace).position(|(one, other)| one != other).unwrap_or(0);
            let around = |told: &Told| told.trace.get(differs.saturating_sub(5)..differs + 1).unwrap_or_default().join("\n");
            panic!("seed {seed} differs from line {differs} on:\n{}\n--- or ---\n{}", around(once), around(again));
        }
    }
}

/// Tells the story of the seed that `QUAYSIDE_SEED` names.
#[test]
fn replay() {
    let seed = asked("QUAYSIDE_SEED").unwrap_or(FIRST_SEED);
    println!("{}", story(seed, None));
}

fn turns_red(mutant: Mutant) {
    let red = first(FIRST_SEED..FIRST_SEED + SEEDS_OF_A_MUTANT, Some(mutant), |_, told| {
        let broken: Vec<Promise> = told.violations.iter().map(|violation| violation.promise).collect();
        mutant.breaks().iter().any(|promise| broken.contains(promise))
    });
    let seed = red.unwrap_or_else(|| panic!("{mutant:?} went unseen for {SEEDS_OF_A_MUTANT} seeds"));
    println!("{mutant:?} shows with seed {seed}");
}

macro_rules! mutants {
    ($($name:ident $mutant:ident)*) => {
        /// The checker checked: each of these products is wrong, and it must say so.
        mod mutants {
            use super::{Mutant, turns_red};

            $(
                #[test]
                fn $name() {
                    turns_red(Mutant::$mutant);
                }
            )*

            #[test]
            fn every_one_has_its_test() {
                let tested = [$(Mutant::$mutant),*];
                assert!(Mutant::ALL.iter().all(|mutant| tested.contains(mutant)));
            }
        }
    };
}

mutants! {
    acknowledging_first_shows AcknowledgesFirst
    fencing_nobody_shows FencesNobody
    accepting_before_storing_shows AcceptsBeforeItStores
    never_sweeping_shows NeverSweeps
    counting_no_lost_worker_shows CountsNoLostWorker
    cancelling_too_early_shows CancelsTooEarly
    forgetting_keys_shows ForgetsKeys
    mixing_replies_shows MixesReplies
    forgetting_ends_shows ForgetsEnds
    forgetting_cancellations_shows ForgetsCancellations
}
