//! Wakes watchers inside one process. Both stores feed it: SQLite after a commit, Firestore from its listener.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::ids::RunId;
use crate::store::{Signal, Watch};

/// Senders of the runs that somebody watches; the others cost nothing.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    senders: Mutex<HashMap<RunId, watch::Sender<Signal>>>,
}

impl Hub {
    pub(crate) fn watch(&self, id: &RunId) -> Watch {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        // Abandoned watches are swept out when a new one comes: the map stays as large as what is watched, twice over.
        if senders.len() >= 64 && senders.len().is_power_of_two() {
            senders.retain(|_, sender| sender.receiver_count() > 0);
        }
        Watch::new(senders.entry(id.clone()).or_insert_with(|| watch::Sender::new(Signal::default())).subscribe())
    }

    /// The runs that somebody watches, in order; abandoned watches are swept out.
    pub(crate) fn watched(&self) -> Vec<RunId> {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        senders.retain(|_, sender| sender.receiver_count() > 0);
        let mut watched: Vec<RunId> = senders.keys().cloned().collect();
        watched.sort_unstable();
        watched
    }

    /// Makes every watcher read again, without saying that anything changed.
    pub(crate) fn signal_all(&self) {
        let senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        for sender in senders.values() {
            sender.send_modify(|signal| signal.changes += 1);
        }
    }

    pub(crate) fn signal(&self, id: &RunId, cancelling: bool, ended: bool) {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = senders.get(id) else { return };
        sender.send_modify(|signal| *signal = Signal { changes: signal.changes + 1, cancelling, ended });
        if sender.receiver_count() == 0 {
            senders.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn watchers_see_what_comes_after_them_and_abandoned_ones_are_forgotten() {
        let hub = Hub::default();
        let id = RunId::random();
        let mut watch = hub.watch(&id);
        hub.signal(&id, true, false);
        assert!(watch.changed().await.cancelling);
        drop(watch);
        hub.signal(&id, false, true);
        assert!(hub.senders.lock().unwrap().is_empty());
    }
}
