//! What the containers witnessed.

use std::collections::{BTreeMap, BTreeSet};

use quayside_shared::run::AttemptOutcome;

use super::{Case, Execution, FinalRun, Hand, Promise};

impl Case<'_> {
    pub(super) fn witnessed(&mut self) {
        let ids: Vec<&str> = self.executions.keys().copied().collect();
        for id in ids {
            let executions = self.executions[id].clone();
            for execution in &executions {
                if execution.gone.is_none() {
                    self.broken(Promise::NothingLeft, id, format!("the container of attempt {} is still there", execution.epoch));
                }
            }
            let mut starts = BTreeMap::<u64, u32>::new();
            for execution in &executions {
                *starts.entry(execution.epoch).or_default() += 1;
            }
            for (epoch, count) in starts.into_iter().filter(|(_, count)| *count > 1) {
                self.broken(Promise::NothingDoubled, id, format!("attempt {epoch} had {count} containers"));
            }
            match self.finals.get(id).copied() {
                None => self.broken(Promise::NothingUnexpected, id, "it had a container, and there is no such run".to_owned()),
                Some(run) => self.of_run(run, &executions),
            }
        }
    }

    fn of_run(&mut self, run: &FinalRun, executions: &[&Execution]) {
        for execution in executions {
            if let Some(user) = &execution.user
                && *user != run.user
            {
                self.broken(Promise::BelongsTogether, &run.id, format!("it is {}'s, and its container was {user}'s", run.user));
            }
            if let Some(message) = &execution.message
                && *message != run.message
            {
                self.broken(Promise::BelongsTogether, &run.id, format!("its message is `{}`, and its container read `{message}`", run.message));
            }
            let attempt = run.attempts.iter().find(|attempt| attempt.number == execution.epoch);
            match attempt {
                None => {
                    self.broken(Promise::NothingUnexpected, &run.id, format!("no attempt {} is recorded, and it had a container", execution.epoch))
                }
                Some(attempt) if execution.orphaned && !(attempt.outcome == Some(AttemptOutcome::WorkerLost) && attempt.counted) => {
                    let what = format!("the worker of attempt {} died over it, and it is recorded as {:?}", execution.epoch, attempt.outcome);
                    self.broken(Promise::AttemptsCounted, &run.id, what);
                }
                Some(_) => {}
            }
        }
        let orphaned: BTreeSet<u64> = executions.iter().filter(|execution| execution.orphaned).map(|execution| execution.epoch).collect();
        if orphaned.len() > self.limits.max_attempts {
            self.broken(Promise::AttemptsCounted, &run.id, format!("{} workers died over it", orphaned.len()));
        }
    }

    /// While a worker holds a run it has a message of it in its hands; unless it had to take the lease for lost.
    pub(super) fn handled(&mut self) {
        let history = self.history;
        let mut hands = BTreeMap::<(&str, &str), (u64, Option<u64>)>::new();
        for one in &history.handled {
            let (messages, lease) = hands.entry((&one.worker, &one.run)).or_default();
            match one.what {
                Hand::Received => *messages += 1,
                Hand::LetGo => *messages = messages.saturating_sub(1),
                Hand::Claimed => *lease = Some(one.epoch),
                Hand::Written => *lease = None,
            }
            let (messages, lease) = (*messages, *lease);
            if let (0, Some(epoch)) = (messages, lease)
                && self.was_kept(&one.run, epoch)
            {
                let what = format!("{} had let its message go and held it as attempt {epoch}", one.worker);
                self.broken(Promise::AcknowledgedLast, &one.run, what);
                hands.remove(&(one.worker.as_str(), one.run.as_str()));
            }
        }
    }

    /// Whether the worker wrote the attempt's end itself.
    fn was_kept(&self, run: &str, epoch: u64) -> bool {
        let attempts = self.finals.get(run).map(|run| run.attempts.as_slice()).unwrap_or_default();
        attempts.iter().any(|attempt| attempt.number == epoch && attempt.outcome != Some(AttemptOutcome::WorkerLost))
    }
}
