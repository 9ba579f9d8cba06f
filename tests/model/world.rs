//! The world of the model: the store, the messages, the workers and their containers, and everything that can happen.

use std::sync::OnceLock;

use quayside_shared::run::{AttemptOutcome, Status};

use super::record::Record;

/// Of one conversation, in this order.
pub(super) const RUNS: usize = 2;
pub(super) const WORKERS: usize = 2;

/// Everything at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) runs: [Record; RUNS],
    /// Whether a message that names the run can be delivered. A second one shows while a worker has the first in hand.
    pub(super) messages: [bool; RUNS],
    pub(super) workers: [Worker; WORKERS],
    /// Sorted: the order in which they were made is no state.
    pub(super) containers: Vec<Container>,
    /// How many faults may still come.
    pub(super) faults: u8,
    // What follows decides nothing; the properties look at it.
    /// Attempts that their worker handed back.
    pub(super) handed_back: [u8; RUNS],
    /// Terminal states that were written.
    pub(super) ends: [u8; RUNS],
    pub(super) flaw: Option<Flaw>,
}

/// A worker has one slot here: two workers with one show every race that one with two would.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Worker {
    pub(super) life: Life,
    pub(super) attempt: Option<Attempt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Life {
    Awake,
    /// SIGSTOP, a suspended machine, a cut cable: its containers go on, it does nothing.
    Frozen,
    /// kill -9: its containers go on, its next life removes them before it does anything else.
    Dead,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Attempt {
    pub(super) run: usize,
    pub(super) epoch: u64,
    pub(super) step: Step,
    /// Its worker was frozen and has not been heard of by the store since.
    pub(super) interrupted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Claimed,
    Running,
    /// It has ended so, and nobody knows yet.
    Over(AttemptOutcome),
    /// The store knows. What is left: publishing whom this set free, and the acknowledgement.
    Written,
}

/// Any order does; outcomes have none of their own.
impl Ord for Step {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let rank = |step: &Self| match step {
            Self::Claimed => (0, ""),
            Self::Running => (1, ""),
            Self::Over(outcome) => (2, outcome.as_str()),
            Self::Written => (3, ""),
        };
        rank(self).cmp(&rank(other))
    }
}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Container {
    pub(super) run: usize,
    pub(super) epoch: u64,
    pub(super) worker: usize,
    /// Its worker died, or was frozen and not heard of since: nobody can be asked to kill it.
    pub(super) orphaned: bool,
}

/// What must not happen, noted when it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Flaw {
    TerminalChanged,
    NoSuchArrow,
    /// A worker wrote under an epoch that is not the lease's.
    StaleWrite,
    /// A message was acknowledged while its attempt still held the lease.
    AcknowledgedEarly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// A worker takes the message and claims the run.
    Deliver {
        worker: usize,
        run: usize,
    },
    /// The program starts.
    Launch(usize),
    /// It ends by itself.
    Exit(usize, AttemptOutcome),
    /// The worker hears that the run is to be cancelled, and kills.
    HearCancel(usize),
    /// A drain or a preemption: the worker kills, to hand the run back.
    HandBack(usize),
    /// The worker stores the end.
    Write(usize),
    /// The worker publishes whom that set free, and acknowledges.
    Acknowledge(usize),
    /// The answer to the write was lost: it is written again, and refused.
    WriteAgain(usize),
    /// A heartbeat.
    Heartbeat(usize),
    /// A piece of the reply.
    Append(usize),
    /// The worker learns that it lost the lease: kills, acknowledges, is silent.
    GiveUp(usize),
    Freeze(usize),
    Wake(usize),
    Kill(usize),
    Start(usize),
    /// The user, at any time.
    Cancel(usize),
    /// The queue delivers once more what it has delivered before.
    Double(usize),
    /// The sweeper takes a run whose lease ran out.
    Sweep(usize),
    /// The sweeper announces a run that may start.
    Announce(usize),
    /// A lease's length passes. Who is awake has prolonged what it holds; what a frozen or dead worker holds runs out.
    Time,
}

/// How the product is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    Sound,
    NoEpochGuard,
    CancelReportedEarly,
    SweeperTakesLivingLeases,
    AcknowledgedBeforeWrite,
    AttemptNotCounted,
    SweeperOff,
    NoOrder,
}

impl World {
    pub(super) fn new(faults: u8) -> Self {
        let worker = Worker { life: Life::Awake, attempt: None };
        Self {
            runs: [Record::accepted(), Record::accepted()],
            messages: [true, true],
            workers: [worker.clone(), worker],
            containers: Vec::new(),
            faults,
            handed_back: [0; RUNS],
            ends: [0; RUNS],
            flaw: None,
        }
    }

    /// What can happen now.
    pub(super) fn actions(&self, variant: Variant, actions: &mut Vec<Action>) {
        let all = every_action().iter().copied();
        actions.extend(all.filter(|action| self.is_possible(*action, variant)));
    }

    /// The world after `action`; `None` when it cannot happen now or changes nothing.
    pub(super) fn after(&self, action: Action, variant: Variant) -> Option<Self> {
        self.is_possible(action, variant).then_some(())?;
        let mut next = self.clone();
        match action {
            Action::Deliver { worker, run } => next.deliver(worker, run, variant),
            Action::Launch(worker) => next.launch(worker),
            Action::Exit(worker, outcome) => next.end_container(worker, outcome),
            Action::HearCancel(worker) if variant == Variant::CancelReportedEarly => next.go_to(worker, Step::Over(AttemptOutcome::Cancelled)),
            Action::HearCancel(worker) => next.end_container(worker, AttemptOutcome::Cancelled),
            Action::HandBack(worker) => next.hand_back(worker),
            Action::Write(worker) => next.write(worker, variant),
            Action::Acknowledge(worker) => next.acknowledge(worker),
            Action::WriteAgain(worker) => next.write_again(worker, variant),
            Action::Heartbeat(worker) => next.heartbeat(worker, variant),
            Action::Append(worker) => next.append(worker, variant),
            Action::GiveUp(worker) => next.leave(worker),
            Action::Freeze(worker) => next.interrupt(worker, Life::Frozen),
            Action::Kill(worker) => next.interrupt(worker, Life::Dead),
            Action::Wake(worker) => next.workers[worker].life = Life::Awake,
            Action::Start(worker) => {
                next.workers[worker].life = Life::Awake;
                next.containers.retain(|container| container.worker != worker);
            }
            Action::Cancel(run) => {
                let cancelled = self.runs[run].cancel()?;
                next.put(run, None, cancelled);
            }
            Action::Double(run) | Action::Announce(run) => next.messages[run] = true,
            Action::Sweep(run) => next.sweep(run, variant),
            Action::Time => next.time_passes(),
        }
        next.name_workers();
        (next != *self).then_some(next)
    }

    /// Whether somebody could do it. What the store decides is asked when it is done.
    fn is_possible(&self, action: Action, variant: Variant) -> bool {
        let step = |worker: usize| self.attempt(worker).map(|attempt| attempt.step);
        let life = |worker: usize| self.workers[worker].life;
        let sweeping = variant != Variant::SweeperOff && self.workers.iter().any(|worker| worker.life == Life::Awake);
        match action {
            Action::Deliver { worker, run } => life(worker) == Life::Awake && self.workers[worker].attempt.is_none() && self.messages[run],
            Action::Launch(worker) => step(worker) == Some(Step::Claimed),
            Action::Exit(worker, _) => step(worker) == Some(Step::Running),
            Action::HearCancel(worker) => self
                .attempt(worker)
                .is_some_and(|attempt| matches!(attempt.step, Step::Claimed | Step::Running) && self.runs[attempt.run].status == Status::Cancelling),
            Action::HandBack(worker) => self.faults > 0 && matches!(step(worker), Some(Step::Claimed | Step::Running)),
            Action::Write(worker) => matches!(step(worker), Some(Step::Over(_))),
            Action::Acknowledge(worker) => match step(worker) {
                Some(Step::Written) => true,
                Some(Step::Over(_)) => variant == Variant::AcknowledgedBeforeWrite,
                _ => false,
            },
            Action::WriteAgain(worker) => step(worker) == Some(Step::Written),
            // While it holds the lease neither changes anything that is kept here.
            Action::Heartbeat(worker) | Action::Append(worker) | Action::GiveUp(worker) => {
                self.attempt(worker).is_some_and(|attempt| attempt.step != Step::Written && !self.is_sure(attempt))
            }
            Action::Freeze(worker) => self.faults > 0 && life(worker) == Life::Awake,
            Action::Kill(worker) => self.faults > 0 && life(worker) != Life::Dead,
            Action::Wake(worker) => life(worker) == Life::Frozen,
            Action::Start(worker) => life(worker) == Life::Dead,
            Action::Cancel(run) => !self.runs[run].is_terminal(),
            Action::Double(run) => !self.messages[run],
            Action::Sweep(run) => sweeping && self.runs[run].lease.is_some(),
            Action::Announce(run) => sweeping && !self.messages[run] && self.may_start(run),
            Action::Time => true,
        }
    }

    /// Whether the attempt holds its lease and nothing has come between.
    pub(super) fn is_sure(&self, attempt: &Attempt) -> bool {
        let lease = self.runs[attempt.run].lease;
        !attempt.interrupted && lease.is_some_and(|lease| lease.epoch == attempt.epoch && !lease.over)
    }

    pub(super) fn may_start(&self, run: usize) -> bool {
        self.runs[run].status == Status::Queued && self.runs[..run].iter().all(Record::is_terminal)
    }

    /// The attempt of a worker that can do something.
    pub(super) fn attempt(&self, worker: usize) -> Option<&Attempt> {
        let worker = &self.workers[worker];
        worker.attempt.as_ref().filter(|_| worker.life == Life::Awake)
    }
}

impl Container {
    pub(super) fn is_of(&self, worker: usize, attempt: &Attempt) -> bool {
        (self.worker, self.run, self.epoch) == (worker, attempt.run, attempt.epoch)
    }
}

fn every_action() -> &'static [Action] {
    static ACTIONS: OnceLock<Vec<Action>> = OnceLock::new();
    ACTIONS.get_or_init(|| {
        let mut actions = vec![Action::Time];
        for worker in 0..WORKERS {
            actions.extend((0..RUNS).map(|run| Action::Deliver { worker, run }));
            actions.extend([AttemptOutcome::Finished, AttemptOutcome::ExitNonzero].map(|outcome| Action::Exit(worker, outcome)));
            let others = [
                Action::Launch,
                Action::HearCancel,
                Action::HandBack,
                Action::Write,
                Action::Acknowledge,
                Action::WriteAgain,
                Action::Heartbeat,
                Action::Append,
                Action::GiveUp,
                Action::Freeze,
                Action::Kill,
                Action::Wake,
                Action::Start,
            ];
            actions.extend(others.map(|action| action(worker)));
        }
        for run in 0..RUNS {
            actions.extend([Action::Cancel, Action::Double, Action::Sweep, Action::Announce].map(|action| action(run)));
        }
        actions
    })
}
