//! What each step does to the world, once it is known to be possible.

use quayside_shared::run::AttemptOutcome;
use quayside_shared::state::may_become;

use super::record::Record;
use super::world::{Attempt, Container, Flaw, Life, RUNS, Step, Variant, Worker, World};

impl World {
    /// The same where it is known to be there.
    fn own(&self, worker: usize) -> Attempt {
        self.workers[worker].attempt.clone().expect("it is possible only with an attempt")
    }

    pub(super) fn go_to(&mut self, worker: usize, step: Step) {
        self.workers[worker].attempt.iter_mut().for_each(|attempt| attempt.step = step);
    }

    /// Workers are alike: of two worlds that differ in who is who, one stands for both.
    pub(super) fn name_workers(&mut self) {
        let made = |worker: usize| {
            self.containers
                .iter()
                .filter(move |container| container.worker == worker)
                .map(|container| (container.run, container.epoch, container.orphaned))
        };
        if (&self.workers[1], made(1).collect::<Vec<_>>()) < (&self.workers[0], made(0).collect()) {
            self.workers.swap(0, 1);
            self.containers.iter_mut().for_each(|container| container.worker = 1 - container.worker);
        }
        self.containers.sort();
    }

    /// Stores a changed run. `writer` is the epoch of the worker that writes.
    pub(super) fn put(&mut self, run: usize, writer: Option<u64>, changed: Record) {
        let stored = &self.runs[run];
        let mut flaw = None;
        if stored.status != changed.status && !may_become(stored.status, changed.status) {
            flaw = Some(Flaw::NoSuchArrow);
        }
        if writer.is_some_and(|epoch| !stored.is_held_by(epoch)) {
            flaw = Some(Flaw::StaleWrite);
        }
        if stored.is_terminal() && *stored != changed {
            flaw = Some(Flaw::TerminalChanged);
        }
        self.ends[run] += u8::from(changed.is_terminal() && *stored != changed);
        self.flaw = self.flaw.or(flaw);
        self.runs[run] = changed;
    }

    /// The epoch that the store compares: the writer's, or whatever it has itself when nobody guards.
    fn guarded(&self, attempt: &Attempt, variant: Variant) -> u64 {
        let lease = self.runs[attempt.run].lease.filter(|_| variant == Variant::NoEpochGuard);
        lease.map_or(attempt.epoch, |lease| lease.epoch)
    }

    pub(super) fn deliver(&mut self, worker: usize, run: usize, variant: Variant) {
        self.messages[run] = false;
        // Otherwise it is acknowledged: it has ended or runs, or whoever ends its predecessor publishes it.
        let claimed = if self.may_start(run) || variant == Variant::NoOrder { self.runs[run].claim() } else { None };
        if let Some(claimed) = claimed {
            self.workers[worker].attempt = Some(Attempt { run, epoch: claimed.epoch, step: Step::Claimed, interrupted: false });
            self.put(run, None, claimed);
        }
    }

    pub(super) fn launch(&mut self, worker: usize) {
        let Attempt { run, epoch, interrupted, .. } = self.own(worker);
        self.containers.push(Container { run, epoch, worker, orphaned: interrupted });
        self.go_to(worker, Step::Running);
    }

    pub(super) fn end_container(&mut self, worker: usize, outcome: AttemptOutcome) {
        self.remove_container(worker);
        self.go_to(worker, Step::Over(outcome));
    }

    /// A drain or a preemption, one of each.
    pub(super) fn hand_back(&mut self, worker: usize) {
        self.faults -= 1;
        let outcome = if self.own(worker).run == 0 { AttemptOutcome::Preempted } else { AttemptOutcome::Drained };
        self.end_container(worker, outcome);
    }

    fn remove_container(&mut self, worker: usize) {
        let attempt = self.own(worker);
        self.containers.retain(|container| !container.is_of(worker, &attempt));
    }

    /// What the store makes of an attempt's end; `None` when it refuses.
    fn end(&self, attempt: &Attempt, outcome: AttemptOutcome, variant: Variant) -> Option<Record> {
        let (stored, epoch) = (&self.runs[attempt.run], self.guarded(attempt, variant));
        if outcome.counted() { stored.finish(epoch, outcome) } else { stored.release(epoch, outcome) }
    }

    pub(super) fn write(&mut self, worker: usize, variant: Variant) {
        let attempt = self.own(worker);
        let Step::Over(outcome) = attempt.step else { return };
        match self.end(&attempt, outcome, variant) {
            Some(changed) => {
                self.handed_back[attempt.run] += u8::from(!outcome.counted());
                self.put(attempt.run, Some(attempt.epoch), changed);
                self.go_to(worker, Step::Written);
            }
            None => self.leave(worker),
        }
    }

    pub(super) fn acknowledge(&mut self, worker: usize) {
        let attempt = self.own(worker);
        if self.runs[attempt.run].is_held_by(attempt.epoch) {
            self.flaw = self.flaw.or(Some(Flaw::AcknowledgedEarly));
        }
        for run in 0..RUNS {
            self.messages[run] |= self.may_start(run);
        }
        self.leave(worker);
    }

    pub(super) fn write_again(&mut self, worker: usize, variant: Variant) {
        let attempt = self.own(worker);
        // Which end it was is not kept; any of them must be refused.
        for outcome in [AttemptOutcome::Finished, AttemptOutcome::Drained] {
            if let Some(changed) = self.end(&attempt, outcome, variant) {
                self.put(attempt.run, Some(attempt.epoch), changed);
            }
        }
        self.leave(worker);
    }

    pub(super) fn heartbeat(&mut self, worker: usize, variant: Variant) {
        let attempt = self.own(worker);
        let Some(prolonged) = self.runs[attempt.run].heartbeat(self.guarded(&attempt, variant)) else { return };
        self.put(attempt.run, Some(attempt.epoch), prolonged);
        // It is heard of again before anybody took the run: its container is no orphan.
        self.workers[worker].attempt.iter_mut().for_each(|attempt| attempt.interrupted = false);
        self.containers.iter_mut().filter(|container| container.is_of(worker, &attempt)).for_each(|container| container.orphaned = false);
    }

    pub(super) fn append(&mut self, worker: usize, variant: Variant) {
        let attempt = self.own(worker);
        let stored = &self.runs[attempt.run];
        // What it says is no state here; that it was let in would be the flaw.
        if stored.takes_delta(self.guarded(&attempt, variant)) && !stored.is_held_by(attempt.epoch) {
            self.flaw = self.flaw.or(Some(Flaw::StaleWrite));
        }
    }

    /// Its container is killed, its message acknowledged, and nothing more is written.
    pub(super) fn leave(&mut self, worker: usize) {
        self.remove_container(worker);
        self.workers[worker].attempt = None;
    }

    pub(super) fn interrupt(&mut self, worker: usize, life: Life) {
        self.faults -= 1;
        self.workers[worker].life = life;
        self.containers.iter_mut().filter(|container| container.worker == worker).for_each(|container| container.orphaned = true);
        match &mut self.workers[worker].attempt {
            Some(attempt) if life == Life::Frozen => attempt.interrupted = true,
            // Not acknowledged, so it is delivered again.
            Some(attempt) => self.messages[attempt.run] = true,
            None => {}
        }
        if life == Life::Dead {
            self.workers[worker].attempt = None;
        }
    }

    pub(super) fn sweep(&mut self, run: usize, variant: Variant) {
        let mut stored = self.runs[run].clone();
        if variant == Variant::SweeperTakesLivingLeases {
            stored.lease.iter_mut().for_each(|lease| lease.over = true);
        }
        let Some(mut taken) = stored.lose_lease() else { return };
        if variant == Variant::AttemptNotCounted {
            taken = stored.release(stored.epoch, AttemptOutcome::EngineFault).unwrap_or(taken);
        }
        self.put(run, None, taken);
    }

    pub(super) fn time_passes(&mut self) {
        for run in 0..RUNS {
            let Some(lease) = self.runs[run].lease else { continue };
            let holds = |worker: &Worker| worker.attempt.as_ref().is_some_and(|attempt| (attempt.run, attempt.epoch) == (run, lease.epoch));
            if !self.workers.iter().any(|worker| worker.life == Life::Awake && holds(worker)) {
                self.runs[run] = self.runs[run].after_its_lease();
            }
        }
    }
}
