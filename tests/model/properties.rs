//! What holds in every state, and what must be possible for that to mean anything.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, OnceLock};

use quayside_shared::run::{AttemptOutcome, ErrorCode, Status};
use stateright::Property;

use super::Leases;
use super::record::{MAX_ATTEMPTS, Record};
use super::world::{Action, Container, Flaw, Life, RUNS, Step, WORKERS, World};

pub(super) const ONE_END: &str = "a run has one terminal state, which never changes";
pub(super) const ARROWS: &str = "a run goes along the arrows of the picture";
pub(super) const FENCED: &str = "only who holds the lease writes";
pub(super) const GONE: &str = "cancelled means gone";
pub(super) const ALONE: &str = "of two containers of a run the older is an orphan and fenced";
pub(super) const ORDER: &str = "a run starts when its predecessor has ended";
pub(super) const COUNTED: &str = "a run is not tried again for ever";
pub(super) const ACKNOWLEDGED: &str = "a message is acknowledged when the store knows the end";
pub(super) const AGREE: &str = "lease and status say the same";
pub(super) const ENDS: &str = "when the faults end, every run ends";

/// Most steps to the end of both runs, from anywhere.
const PATIENCE: usize = 200;

pub(super) fn properties() -> Vec<Property<Leases>> {
    vec![
        Property::always(ONE_END, |_, world: &World| world.flaw != Some(Flaw::TerminalChanged) && world.ends.iter().all(|ends| *ends <= 1)),
        Property::always(ARROWS, |_, world: &World| world.flaw != Some(Flaw::NoSuchArrow)),
        Property::always(FENCED, |_, world: &World| world.flaw != Some(Flaw::StaleWrite)),
        Property::always(GONE, |_, world: &World| world.containers.iter().all(|container| may_live(container, &world.runs[container.run]))),
        Property::always(ALONE, |_, world: &World| {
            pairs(world).all(|(old, new)| old.orphaned && !world.runs[old.run].is_held_by(old.epoch) && old.epoch < new.epoch)
        }),
        Property::always(ORDER, |_, world: &World| world.runs[1].attempts.is_empty() || world.runs[0].is_terminal()),
        Property::always(COUNTED, |_, world: &World| (0..RUNS).all(|run| is_bounded(world, run))),
        Property::always(ACKNOWLEDGED, |_, world: &World| world.flaw != Some(Flaw::AcknowledgedEarly)),
        Property::always(AGREE, |_, world: &World| world.runs.iter().all(|run| run.lease.is_some() == run.status.is_leased())),
        Property::always(ENDS, |model, world: &World| ends_in_peace(model, world)),
        Property::sometimes("completed", |_, world| ended(world, Status::Completed)),
        Property::sometimes("failed by the agent", |_, world| failed(world, ErrorCode::ExitNonzero)),
        Property::sometimes("poison", |_, world| failed(world, ErrorCode::Poison)),
        Property::sometimes("cancelled while it waited", |_, world| ended_after(world, Status::Cancelled, None)),
        Property::sometimes("cancelled by its worker", |_, world| ended_after(world, Status::Cancelled, Some(AttemptOutcome::Cancelled))),
        Property::sometimes("cancelled by the sweeper", |_, world| ended_after(world, Status::Cancelled, Some(AttemptOutcome::WorkerLost))),
        Property::sometimes("a cancellation that came too late", |_, world| came_too_late(world)),
        Property::sometimes("completed after a lost worker", |_, world| redone_after(world, AttemptOutcome::WorkerLost)),
        Property::sometimes("completed after a preemption", |_, world| redone_after(world, AttemptOutcome::Preempted)),
        Property::sometimes("two containers of a run", |_, world| pairs(world).next().is_some()),
        Property::sometimes("a woken worker about to write under an old epoch", |_, world| (0..WORKERS).any(|worker| is_late(world, worker))),
        Property::sometimes("both runs completed", |_, world: &World| world.runs.iter().all(|run| run.status == Status::Completed)),
    ]
}

/// A worker that answers has killed before it says `cancelled`. Of one that does not answer, the container may live on
/// until that worker is back: no epoch of it can write any more.
fn may_live(container: &Container, run: &Record) -> bool {
    let confirmed = run.attempts.last().is_some_and(|(outcome, _)| *outcome == Some(AttemptOutcome::Cancelled)) && container.epoch == run.epoch;
    run.status != Status::Cancelled || (container.orphaned && !confirmed)
}

/// Living containers of the same run, the older first.
fn pairs(world: &World) -> impl Iterator<Item = (&Container, &Container)> {
    world.containers.windows(2).filter(|pair| pair[0].run == pair[1].run).map(|pair| (&pair[0], &pair[1]))
}

fn is_bounded(world: &World, run: usize) -> bool {
    let record = &world.runs[run];
    record.counted() <= MAX_ATTEMPTS && record.attempts.len() - usize::from(world.handed_back[run]) <= MAX_ATTEMPTS as usize
}

fn ended(world: &World, status: Status) -> bool {
    world.runs.iter().any(|run| run.status == status)
}

fn failed(world: &World, code: ErrorCode) -> bool {
    world.runs.iter().any(|run| run.status == Status::Failed && run.error == Some(code))
}

fn ended_after(world: &World, status: Status, last: Option<AttemptOutcome>) -> bool {
    world.runs.iter().any(|run| run.status == status && run.attempts.last().and_then(|(outcome, _)| *outcome) == last)
}

fn redone_after(world: &World, outcome: AttemptOutcome) -> bool {
    world.runs.iter().any(|run| run.status == Status::Completed && run.attempts.iter().any(|(cause, _)| *cause == Some(outcome)))
}

/// The program ended well before its cancellation was asked for, and the run is cancelled all the same: who was told
/// `cancelling` is not told `completed`.
fn came_too_late(world: &World) -> bool {
    let over = |step| step == Step::Over(AttemptOutcome::Finished);
    world
        .workers
        .iter()
        .filter_map(|worker| worker.attempt.as_ref())
        .any(|attempt| over(attempt.step) && world.runs[attempt.run].status == Status::Cancelling)
}

fn is_late(world: &World, worker: usize) -> bool {
    let worker = &world.workers[worker];
    let late = |attempt: &super::world::Attempt| matches!(attempt.step, Step::Over(_)) && !world.runs[attempt.run].is_held_by(attempt.epoch);
    worker.life == Life::Awake && worker.attempt.as_ref().is_some_and(late)
}

/// Without further faults and with workers that go on with what they have, both runs reach a terminal state.
fn ends_in_peace(model: &Leases, world: &World) -> bool {
    let (mut way, mut now) = (Vec::new(), world.clone());
    let ended = loop {
        if model.ending.knows(&now, &mut way) {
            break true;
        }
        match peaceful().iter().find_map(|action| now.after(*action, model.variant)) {
            Some(next) if way.len() < PATIENCE => now = next,
            Some(_) => break false,
            None => break now.runs.iter().all(Record::is_terminal),
        }
    };
    if ended {
        model.ending.learn(way);
    }
    ended
}

/// Worlds from which both runs are known to end, by their fingerprints: most ways join one that was gone before.
#[derive(Default)]
pub(super) struct Ending(Mutex<HashSet<u64, BuildHasherDefault<DefaultHasher>>>);

impl Ending {
    /// Whether `world` is known; if not, it becomes part of the way.
    fn knows(&self, world: &World, way: &mut Vec<u64>) -> bool {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        way.push(hasher.finish());
        self.0.lock().unwrap().contains(&hasher.finish())
    }

    fn learn(&self, way: Vec<u64>) {
        self.0.lock().unwrap().extend(way);
    }
}

/// What happens by itself, the most urgent first.
fn peaceful() -> &'static [Action] {
    static ACTIONS: OnceLock<Vec<Action>> = OnceLock::new();
    ACTIONS.get_or_init(|| {
        let mut actions = Vec::new();
        for worker in 0..WORKERS {
            actions.extend([Action::Start(worker), Action::Wake(worker)]);
        }
        for worker in 0..WORKERS {
            actions.extend([
                Action::GiveUp(worker),
                Action::Acknowledge(worker),
                Action::Write(worker),
                Action::HearCancel(worker),
                Action::Exit(worker, AttemptOutcome::Finished),
                Action::Launch(worker),
            ]);
        }
        actions.extend((0..RUNS).map(Action::Sweep));
        for worker in 0..WORKERS {
            actions.extend((0..RUNS).map(|run| Action::Deliver { worker, run }));
        }
        actions.extend((0..RUNS).map(Action::Announce));
        actions.push(Action::Time);
        actions
    })
}
