//! A user's unfinished runs in the order they were accepted. Who may start, who waits for what, and whom an end sets
//! free is decided on this one document, by compare-and-set, without a query. Pure.

use serde::{Deserialize, Serialize};

use super::records::alarm;
use crate::clock::Timestamp;
use crate::ids::{RunId, UserId};
use crate::run::{Run, WaitingReason};
use crate::store::StoreOptions;

/// The document.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    pub(super) user_id: UserId,
    pub(super) entries: Vec<Entry>,
    /// When runs that could start are announced again, in case a message was lost.
    pub(super) sweep_at: Option<i64>,
}

/// An unfinished run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub(super) run: RunId,
    /// Its conversation's key.
    pub(super) conversation: String,
    /// Whether a worker holds it.
    pub(super) running: bool,
    pub(super) not_before: Option<Timestamp>,
}

impl Line {
    pub(super) const fn new(user_id: UserId) -> Self {
        Self { user_id, entries: Vec::new(), sweep_at: None }
    }

    pub(super) fn queued(&self) -> usize {
        self.entries.iter().filter(|entry| !entry.running).count()
    }

    fn running(&self) -> usize {
        self.entries.len() - self.queued()
    }

    pub(super) fn at_quota(&self, options: &StoreOptions) -> bool {
        self.running() >= options.running_per_user as usize
    }

    /// The unfinished runs of a conversation.
    pub(super) fn of_conversation<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.conversation == key)
    }

    /// What holds a queued run up, and how many are before it for the same reason. `None`: nothing.
    pub(super) fn blocked(&self, id: &RunId, options: &StoreOptions) -> Option<(WaitingReason, usize)> {
        let place = self.entries.iter().position(|entry| entry.run == *id)?;
        let (before, own) = (&self.entries[..place], &self.entries[place]);
        let of_conversation = || before.iter().filter(|entry| entry.conversation == own.conversation);
        if of_conversation().next().is_some() {
            return Some((WaitingReason::ConversationBusy, of_conversation().filter(|entry| !entry.running).count()));
        }
        self.at_quota(options).then(|| (WaitingReason::UserQuota, before.iter().filter(|entry| !entry.running).count()))
    }

    /// The oldest runs that may start now, as many as there are places free.
    pub(super) fn startable(&self, options: &StoreOptions, now: Timestamp) -> Vec<RunId> {
        let free = (options.running_per_user as usize).saturating_sub(self.running());
        let first = |place: usize, entry: &Entry| !self.entries[..place].iter().any(|earlier| earlier.conversation == entry.conversation);
        let ready = self
            .entries
            .iter()
            .enumerate()
            .filter(|(place, entry)| !entry.running && entry.not_before.is_none_or(|at| at <= now) && first(*place, entry));
        ready.take(free).map(|(_, entry)| entry.run.clone()).collect()
    }

    /// A run was accepted.
    pub(super) fn join(&mut self, run: &RunId, conversation: &str) {
        self.entries.push(Entry { run: run.clone(), conversation: conversation.to_owned(), running: false, not_before: None });
    }

    /// A run changed.
    pub(super) fn follow(&mut self, run: &Run) {
        if run.status.is_terminal() {
            self.entries.retain(|entry| entry.run != run.id);
        } else if let Some(entry) = self.entries.iter_mut().find(|entry| entry.run == run.id) {
            entry.running = run.status.is_leased();
            entry.not_before = run.not_before;
        }
    }

    /// Sets the alarm where there is something to announce. One that is set stays: a line that never rests is looked at too.
    pub(super) fn settle(&mut self, now: Timestamp, options: &StoreOptions) {
        let due = || alarm(self.user_id.as_str(), now + options.republish_after);
        self.sweep_at = if self.queued() == 0 { None } else { Some(self.sweep_at.unwrap_or_else(due)) };
    }
}
