//! What clients asked for, against what there is in the end.

use std::collections::{BTreeMap, BTreeSet};

use quayside_shared::run::Status;

use super::{Case, Outcome, Promise, Strategy, Submission};

impl Case<'_> {
    pub(super) fn submissions(&mut self) {
        for submission in &self.history.submissions {
            let Outcome::Accepted(id) = &submission.outcome else { continue };
            match self.finals.get(id.as_str()) {
                None => self.broken(Promise::NothingLost, id, format!("accepted for {} and not there", submission.user)),
                Some(run) if !run.status.is_terminal() => {
                    self.broken(Promise::NothingLost, id, format!("accepted, and still {} after the drain", run.status.as_str()));
                }
                Some(run) if run.message != submission.message => {
                    self.broken(Promise::BelongsTogether, id, format!("accepted for `{}`, and its message is `{}`", submission.message, run.message));
                }
                Some(_) => {}
            }
        }
        self.one_run_each();
        self.order();
    }

    /// One run for all submissions with one key, and one at most for a submission without.
    fn one_run_each(&mut self) {
        let mut runs = BTreeMap::<&str, BTreeSet<&str>>::new();
        for run in &self.history.finals {
            runs.entry(&run.message).or_default().insert(&run.id);
        }
        for submission in &self.history.submissions {
            if let Outcome::Accepted(id) = &submission.outcome {
                runs.entry(&submission.message).or_default().insert(id);
            }
        }
        for (message, ids) in runs {
            let Some(asked) = self.asked.get(message).cloned() else {
                for id in ids {
                    self.broken(Promise::NothingUnexpected, id, format!("nobody submitted `{message}`"));
                }
                continue;
            };
            let possible = asked.iter().filter(|submission| submission.outcome != Outcome::Refused);
            let keys: BTreeSet<_> = possible.clone().filter_map(|submission| submission.key.as_deref()).collect();
            let most = keys.len() + possible.filter(|submission| submission.key.is_none()).count();
            let first = ids.first().copied().unwrap_or_default();
            if most == 0 {
                self.broken(Promise::NothingUnexpected, first, format!("`{message}` was refused"));
            } else if ids.len() > most {
                self.broken(Promise::NothingDoubled, first, format!("`{message}` is {} runs: {ids:?}", ids.len()));
            }
        }
    }

    /// A run that was accepted before another was asked for comes before it, and ends before the other starts.
    fn order(&mut self) {
        let mut conversations = BTreeMap::<(&str, &str), Vec<(&str, &Submission)>>::new();
        for submission in &self.history.submissions {
            if let Outcome::Accepted(id) = &submission.outcome {
                let conversation = conversations.entry((&submission.user, &submission.conversation)).or_default();
                // A repetition says nothing of when the run was accepted; the first answer does.
                if !conversation.iter().any(|(known, _)| known == id) {
                    conversation.push((id, submission));
                }
            }
        }
        for runs in conversations.values() {
            for (later, submission) in runs {
                // The first time that it was asked for: a repetition may only have fetched the answer.
                let asked = self.asked.get(submission.message.as_str()).and_then(|all| all.iter().map(|one| one.asked).min());
                let Some(asked) = asked else { continue };
                for (earlier, _) in runs.iter().filter(|(_, other)| other.answered < asked) {
                    self.one_before_the_other(earlier, later);
                }
            }
        }
    }

    fn one_before_the_other(&mut self, earlier: &str, later: &str) {
        let (Some(first), Some(second)) = (self.finals.get(earlier).copied(), self.finals.get(later).copied()) else { return };
        if let (Some(started), Some(finished)) = (second.started, first.finished)
            && started < finished
        {
            self.broken(Promise::OrderInConversations, later, format!("started at {started}, and its predecessor {earlier} ended at {finished}"));
        }
        let begun = self.executions.get(later).and_then(|all| all.iter().map(|execution| execution.start).min());
        let unfinished = self.observations.get(earlier).into_iter().flatten().filter(|seen| !seen.status.is_terminal());
        let last = unfinished.filter_map(|seen| if let super::Seen::Asked(asked) = seen.how { Some(asked) } else { None }).max();
        if let (Some(begun), Some(last)) = (begun, last)
            && begun < last
        {
            self.broken(Promise::OrderInConversations, later, format!("ran from {begun} on, and its predecessor {earlier} was unfinished at {last}"));
        }
    }

    pub(super) fn cancels(&mut self) {
        let mut wanted = BTreeSet::new();
        for cancel in &self.history.cancels {
            wanted.insert(cancel.run.as_str());
            let Some(run) = self.finals.get(cancel.run.as_str()).copied() else { continue };
            if let Some(answer @ (Status::Cancelling | Status::Cancelled)) = cancel.answer
                && run.status != Status::Cancelled
            {
                let (answer, status) = (answer.as_str(), run.status.as_str());
                self.broken(Promise::CancelStands, &run.id, format!("cancel answered `{answer}`, and the run is {status}"));
            }
        }
        let interrupted: BTreeSet<_> =
            self.history.submissions.iter().filter(|one| one.strategy == Strategy::Interrupt).map(|one| (&one.user, &one.conversation)).collect();
        for run in &self.history.finals {
            if run.status == Status::Cancelled && !wanted.contains(run.id.as_str()) && !interrupted.contains(&(&run.user, &run.conversation)) {
                self.broken(Promise::NothingUnexpected, &run.id, "cancelled, and nobody asked for it".to_owned());
            }
        }
    }
}
