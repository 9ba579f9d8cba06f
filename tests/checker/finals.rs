//! The runs as they are in the end.

use std::collections::BTreeMap;

use quayside_shared::run::{AttemptOutcome, Status};

use super::{Case, FinalRun, Promise};

impl Case<'_> {
    pub(super) fn finals(&mut self) {
        let mut rows = BTreeMap::<&str, u32>::new();
        for run in &self.history.finals {
            *rows.entry(&run.id).or_default() += 1;
            self.belongs_together(run);
            self.ended_as_recorded(run);
            self.attempts(run);
        }
        for (id, count) in rows.into_iter().filter(|(_, count)| *count > 1) {
            self.broken(Promise::NothingDoubled, id, format!("it is there {count} times"));
        }
    }

    fn belongs_together(&mut self, run: &FinalRun) {
        let Some(cause) = self.cause(run).cloned() else { return };
        if (&run.user, &run.conversation) != (&cause.user, &cause.conversation) {
            let what = format!("submitted by {} in {}, and stored for {} in {}", cause.user, cause.conversation, run.user, run.conversation);
            self.broken(Promise::BelongsTogether, &run.id, what);
        }
        let right = if run.status == Status::Completed { run.text == cause.reply } else { cause.reply.starts_with(&run.text) };
        if !right {
            let what = format!("{} with the reply `{}`, which should be `{}`", run.status.as_str(), run.text, cause.reply);
            self.broken(Promise::BelongsTogether, &run.id, what);
        }
        if !run.status.is_terminal() {
            self.broken(Promise::NothingLost, &run.id, format!("still {} after the drain", run.status.as_str()));
        }
    }

    fn ended_as_recorded(&mut self, run: &FinalRun) {
        if run.status != Status::Completed {
            return;
        }
        let last = run.attempts.last();
        let epoch = last.filter(|attempt| attempt.outcome == Some(AttemptOutcome::Finished)).map(|attempt| attempt.number);
        let mut executions = self.executions.get(run.id.as_str()).into_iter().flatten();
        let ran = executions.any(|execution| {
            Some(execution.epoch) == epoch && execution.ended.is_some_and(|ended| run.finished.is_some_and(|finished| ended <= finished))
        });
        if !ran {
            let what =
                format!("completed, and no container of its last attempt came to its end before {:?}; attempts: {:?}", run.finished, run.attempts);
            self.broken(Promise::CompletedRan, &run.id, what);
        }
    }

    fn attempts(&mut self, run: &FinalRun) {
        let counted = run.attempts.iter().filter(|attempt| attempt.counted).count();
        if counted > self.limits.max_attempts {
            self.broken(Promise::AttemptsCounted, &run.id, format!("{counted} attempts count"));
        }
        let lost = run.attempts.iter().filter(|attempt| attempt.outcome == Some(AttemptOutcome::WorkerLost)).count();
        if run.error.as_deref() == Some("poison") && lost < self.limits.max_attempts {
            self.broken(Promise::AttemptsCounted, &run.id, format!("poison after {lost} lost workers"));
        }
        for attempt in &run.attempts {
            let right = attempt.outcome.is_none_or(|outcome| outcome.counted() == attempt.counted);
            if !right || (run.status.is_terminal() && (attempt.outcome.is_none() || attempt.ended.is_none())) {
                self.broken(Promise::AttemptsCounted, &run.id, format!("recorded as {attempt:?}"));
            }
        }
        for pair in run.attempts.windows(2) {
            if pair[1].number != pair[0].number + 1 || pair[0].ended.is_none_or(|ended| ended > pair[1].started) {
                self.broken(Promise::NothingDoubled, &run.id, format!("attempts overlap: {pair:?}"));
            }
        }
    }
}
