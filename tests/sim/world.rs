//! What everything in one simulation shares: the time, the dice, the faults that are in force, and what was seen.

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use quayside_shared::clock::{Clock, Timestamp};
use quayside_shared::ids::RunId;
use tokio::time::Instant;

use super::dice::Dice;
use super::mutant::Mutant;
use super::process::{Gateway, Life};
use crate::checker::History;

/// How the processes stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One process with API and worker. Its next life finds the leases of the last one ended.
    Embedded,
    /// Two APIs and two workers, each with an engine of its own, on one store and one queue.
    Fleet,
}

/// How often what goes wrong in this simulation, in a thousand calls.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub shape: Shape,
    /// Runs that a user submits at most.
    pub runs: u64,
    pub slow: u64,
    /// Milliseconds that a slow call takes at most, before its effect and again after it.
    pub slowest: u64,
    pub fails_before: u64,
    pub fails_after: u64,
    /// The process dies in the call.
    pub crashes: u64,
    /// The process stops in the call for a while, before its effect.
    pub freezes: u64,
    /// Messages that are held up, and so come in another order.
    pub held: u64,
    pub doubled: u64,
    pub forgotten: u64,
    pub engine_faults: u64,
}

impl Plan {
    /// Some kinds of fault are absent, others rare or frequent: what hides one bug must not hide all.
    fn draw(dice: &mut Dice) -> Self {
        Self {
            shape: dice.pick(&[Shape::Embedded, Shape::Fleet]),
            runs: dice.pick(&[1, 1, 2, 3]),
            slow: dice.pick(&[50, 200, 500]),
            slowest: dice.pick(&[5, 100, 1_000, 8_000]),
            fails_before: dice.pick(&[0, 10, 60]),
            fails_after: dice.pick(&[0, 10, 60]),
            crashes: dice.pick(&[0, 0, 4, 20]),
            freezes: dice.pick(&[0, 0, 5, 20]),
            held: dice.pick(&[0, 200]),
            doubled: dice.pick(&[0, 300]),
            forgotten: dice.pick(&[0, 0, 100]),
            engine_faults: dice.pick(&[0, 0, 20, 80]),
        }
    }
}

/// What a call comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    Before,
    After,
    CrashBefore,
    CrashAfter,
    Freeze,
}

/// The fate of one call.
#[derive(Debug, Clone, Copy)]
pub struct Fate {
    pub before: Option<Duration>,
    pub fault: Fault,
    pub after: Option<Duration>,
}

/// See the module's description.
pub struct World {
    pub plan: Plan,
    pub mutant: Option<Mutant>,
    begun: Instant,
    dice: Mutex<Dice>,
    healed: AtomicBool,
    last_tick: AtomicU64,
    history: Mutex<History>,
    /// Runs by the order in which they were first heard of: their ids differ each time.
    names: Mutex<HashMap<String, usize>>,
    trace: Option<Mutex<Vec<String>>>,
    /// Where clients can connect, by slot.
    pub gateways: Mutex<Vec<Option<Gateway>>>,
    /// The process that lives in each slot.
    pub lives: Mutex<Vec<Option<Arc<Life>>>>,
    /// For the mutants: leases as the store gave them.
    pub leases: Mutex<Vec<(quayside_shared::store::Lease, Timestamp)>>,
}

/// The store's clock shows the simulation's time.
pub struct WorldClock(pub Arc<World>);

impl Clock for WorldClock {
    fn now(&self) -> Timestamp {
        self.0.timestamp()
    }
}

/// Some day at nine.
const EPOCH: i64 = 1_800_000_000_000;

thread_local! {
    static JITTER: Cell<u64> = const { Cell::new(0) };
}

/// The store's jitter: repeatable, too.
pub fn jitter() -> f64 {
    let mut dice = Dice::new(JITTER.get());
    let rolled = dice.roll(1_000);
    JITTER.set(JITTER.get().wrapping_add(1));
    rolled as f64 / 1_000.0
}

impl World {
    /// Must be called on the simulation's runtime: its time begins now.
    pub fn new(seed: u64, mutant: Option<Mutant>, traced: bool) -> Self {
        let mut dice = Dice::new(seed);
        JITTER.set(dice.roll(u64::MAX));
        let mut plan = Plan::draw(&mut dice);
        if let Some(mutant) = mutant {
            mutant.sharpen(&mut plan);
        }
        Self {
            plan,
            mutant,
            begun: Instant::now(),
            dice: Mutex::new(dice),
            healed: AtomicBool::new(false),
            last_tick: AtomicU64::new(0),
            history: Mutex::default(),
            names: Mutex::default(),
            trace: traced.then(Mutex::default),
            gateways: Mutex::default(),
            lives: Mutex::default(),
            leases: Mutex::default(),
        }
    }

    pub fn timestamp(&self) -> Timestamp {
        Timestamp::from_millis(EPOCH) + self.begun.elapsed()
    }

    /// The time of the history: microseconds that never repeat, so that what happened first is always told.
    pub fn tick(&self) -> u64 {
        let now = self.micros(Instant::now()).max(self.last_tick.load(Ordering::Relaxed) + 1);
        self.last_tick.store(now, Ordering::Relaxed);
        now
    }

    /// The store's time as the history's.
    pub fn since_the_beginning(millis: u64) -> u64 {
        millis.saturating_sub(EPOCH.unsigned_abs()) * 1_000
    }

    /// The history's time at `instant`.
    pub fn micros(&self, instant: Instant) -> u64 {
        u64::try_from((instant - self.begun).as_micros()).unwrap_or(u64::MAX)
    }

    pub fn roll(&self, below: u64) -> u64 {
        self.dice.lock().unwrap().roll(below)
    }

    pub fn pick<T: Copy>(&self, of: &[T]) -> T {
        self.dice.lock().unwrap().pick(of)
    }

    /// A time below `millis` milliseconds.
    pub fn some_millis(&self, millis: u64) -> Duration {
        Duration::from_millis(self.roll(millis))
    }

    /// Whether something happens that happens in `per_mille` of a thousand cases. After the healing nothing does.
    pub fn strikes(&self, per_mille: u64) -> bool {
        per_mille > 0 && !self.is_healed() && self.roll(1_000) < per_mille
    }

    /// The fate of a call that may fail.
    pub fn fate(&self) -> Fate {
        let mut fate = Fate { before: None, fault: Fault::None, after: None };
        if self.is_healed() {
            return fate;
        }
        let plan = &self.plan;
        let mut dice = self.dice.lock().unwrap();
        let rolled = dice.roll(1_000);
        if rolled < plan.slow {
            let mut pause = || Some(dice.roll(plan.slowest)).filter(|millis| *millis > 0).map(Duration::from_millis);
            (fate.before, fate.after) = (pause(), pause());
        }
        let rolled = dice.roll(1_000);
        let [before, after, crashes, freezes] = [plan.fails_before, plan.fails_after, plan.crashes, plan.freezes];
        fate.fault = match rolled {
            _ if rolled < before => Fault::Before,
            _ if rolled < before + after => Fault::After,
            _ if rolled < before + after + crashes => dice.pick(&[Fault::CrashBefore, Fault::CrashAfter]),
            _ if rolled < before + after + crashes + freezes => Fault::Freeze,
            _ => Fault::None,
        };
        fate
    }

    /// From now on nothing fails any more.
    pub fn heal(&self) {
        self.healed.store(true, Ordering::Relaxed);
        self.note(|| "HEALED".to_owned());
        for life in self.lives.lock().unwrap().iter().flatten() {
            life.thaw();
        }
    }

    pub fn is_healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap()
    }

    /// A run by a name that is the same each time.
    pub fn name(&self, run: &str) -> String {
        let mut names = self.names.lock().unwrap();
        let next = names.len() + 1;
        format!("run {}", names.entry(run.to_owned()).or_insert(next))
    }

    /// A line for who replays the seed; costs nothing when nobody does.
    pub fn note(&self, line: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let at = self.begun.elapsed();
            let line = format!("{:>9.3} {}", at.as_secs_f64(), line());
            trace.lock().unwrap().push(line);
        }
    }

    /// An outcome on a line, with the names of runs and without the parts that differ each time.
    pub fn brief(&self, outcome: &impl std::fmt::Debug) -> String {
        let text = format!("{outcome:?}");
        let mut told = String::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find("run_") {
            told.push_str(&rest[..at]);
            let id = rest.get(at..at + 26).filter(|id| id.parse::<RunId>().is_ok());
            told.push_str(&id.map_or_else(|| "run_".to_owned(), |id| self.name(id)));
            rest = &rest[at + id.map_or(4, str::len)..];
        }
        told.push_str(rest);
        while let Some(at) = told.find("worker_").filter(|at| told.len() >= at + 29) {
            told.replace_range(at..at + 29, "worker");
        }
        let end = told.char_indices().nth(120).map_or(told.len(), |(at, _)| at);
        told.truncate(end);
        told
    }

    pub fn trace(&self) -> Vec<String> {
        self.trace.as_ref().map(|trace| trace.lock().unwrap().clone()).unwrap_or_default()
    }

    /// One number for all that happened: the same for two runs of a seed.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.trace().hash(&mut hasher);
        hasher.finish()
    }
}
