//! What was seen of a run while it lived.

use std::collections::{BTreeMap, BTreeSet};

use quayside_shared::run::{AttemptOutcome, Status};
use quayside_shared::state::may_become;

use super::{Case, Execution, Observation, Promise, Seen};

impl Case<'_> {
    pub(super) fn observed(&mut self) {
        let ids: Vec<&str> = self.observations.keys().copied().collect();
        for id in ids {
            let mut seen = self.observations[id].clone();
            self.owned(id, &seen);
            self.streamed(id, &seen);
            self.gone_when_cancelled(id, &seen);
            self.no_answer_is_older(id, &seen);
            seen.sort_by_key(|one| one.sequence_number);
            self.in_order(id, &seen);
        }
    }

    fn owned(&mut self, id: &str, seen: &[&Observation]) {
        let Some(run) = self.finals.get(id).copied() else {
            self.broken(Promise::NothingLost, id, "it was seen, and is not there in the end".to_owned());
            return;
        };
        let reply = self.cause(run).map(|cause| cause.reply.clone());
        for one in seen {
            if one.user != run.user {
                self.broken(Promise::BelongsTogether, id, format!("{} saw a run of {}", one.user, run.user));
            }
            if let (Some(text), Some(reply)) = (&one.text, &reply)
                && !reply.starts_with(text.as_str())
            {
                self.broken(Promise::BelongsTogether, id, format!("its reply was seen as `{text}` and should begin `{reply}`"));
            }
        }
    }

    /// Along the sequence numbers, whoever saw them: each status leads to the next, and the last one to the end.
    fn in_order(&mut self, id: &str, seen: &[&Observation]) {
        let ends: BTreeSet<&str> = seen.iter().map(|one| one.status).filter(|status| status.is_terminal()).map(Status::as_str).collect();
        if ends.len() > 1 {
            self.broken(Promise::NothingDoubled, id, format!("it was seen to end as {ends:?}"));
        }
        for pair in seen.windows(2) {
            self.step(id, pair[0].status, pair[0].sequence_number, pair[1].status, pair[1].sequence_number);
        }
        if let (Some(last), Some(run)) = (seen.last(), self.finals.get(id).copied()) {
            self.step(id, last.status, last.sequence_number, run.status, run.sequence_number);
        }
    }

    fn step(&mut self, id: &str, from: Status, number: u64, to: Status, later: u64) {
        if from == to {
            return;
        }
        let (before, after) = (from.as_str(), to.as_str());
        if from.is_terminal() {
            self.broken(Promise::NothingDoubled, id, format!("{before} at {number}, and {after} at {later}: an end was taken back"));
        } else if number == later {
            self.broken(Promise::LegalTransitions, id, format!("both {before} and {after} at {number}"));
        } else if number > later || !leads_to(from, to) {
            self.broken(Promise::LegalTransitions, id, format!("{before} at {number}, then {after} at {later}"));
        }
    }

    /// A stream tells every change, so that each must be one arrow.
    fn streamed(&mut self, id: &str, seen: &[&Observation]) {
        let mut streams = BTreeMap::<u64, Vec<&Observation>>::new();
        for one in seen {
            if let Seen::Streamed(stream) = one.how {
                streams.entry(stream).or_default().push(one);
            }
        }
        for events in streams.values() {
            for pair in events.windows(2) {
                let (from, to) = (pair[0].status, pair[1].status);
                if from != to && !may_become(from, to) {
                    self.broken(Promise::LegalTransitions, id, format!("streamed as {}, then {}", from.as_str(), to.as_str()));
                }
                if pair[0].sequence_number > pair[1].sequence_number {
                    let (first, second) = (pair[0].sequence_number, pair[1].sequence_number);
                    self.broken(Promise::LegalTransitions, id, format!("streamed {second} after {first}"));
                }
            }
        }
    }

    /// Who asks after somebody has heard hears no less.
    fn no_answer_is_older(&mut self, id: &str, seen: &[&Observation]) {
        let mut heard: Vec<_> = seen.iter().map(|one| (one.at, one.sequence_number)).collect();
        heard.sort_unstable();
        let mut newest = 0;
        for known in &mut heard {
            newest = newest.max(known.1);
            known.1 = newest;
        }
        for one in seen {
            let Seen::Asked(asked) = one.how else { continue };
            let before = heard.partition_point(|(at, _)| *at < asked);
            if before > 0 && heard[before - 1].1 > one.sequence_number {
                let what = format!(
                    "{} at {} was answered at {}, after {} had been seen",
                    one.status.as_str(),
                    one.sequence_number,
                    one.at,
                    heard[before - 1].1
                );
                self.broken(Promise::LegalTransitions, id, what);
            }
        }
    }

    fn gone_when_cancelled(&mut self, id: &str, seen: &[&Observation]) {
        let Some(told) = seen.iter().filter(|one| one.status == Status::Cancelled).map(|one| one.at).min() else { return };
        let executions = self.executions.get(id).cloned().unwrap_or_default();
        for execution in executions {
            if execution.start < told && execution.gone.is_none_or(|gone| gone > told) && !self.out_of_reach(execution) {
                let what = format!("told as cancelled at {told}, and the container of attempt {} was gone at {:?}", execution.epoch, execution.gone);
                self.broken(Promise::CancelledIsGone, id, what);
            }
        }
    }

    /// Whether nobody could see to it that the container is gone: its worker lost the lease, and nobody else reaches its
    /// engine.
    fn out_of_reach(&self, execution: &Execution) -> bool {
        let attempts = self.finals.get(execution.run.as_str()).map(|run| run.attempts.as_slice()).unwrap_or_default();
        let mut lost = attempts.iter().filter(|attempt| attempt.outcome == Some(AttemptOutcome::WorkerLost));
        lost.any(|attempt| attempt.number == execution.epoch) && self.limits.engines_apart
    }
}

/// Whether `to` can come of `from` by one arrow or several.
fn leads_to(from: Status, to: Status) -> bool {
    let mut reached = vec![from];
    let mut next = 0;
    while let Some(&status) = reached.get(next) {
        for candidate in Status::ALL {
            if may_become(status, candidate) && !reached.contains(&candidate) {
                reached.push(candidate);
            }
        }
        next += 1;
    }
    reached.contains(&to)
}
