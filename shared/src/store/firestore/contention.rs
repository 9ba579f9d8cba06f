//! When another writer came first: how long to try again, and how to meet less often.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::RunId;
use crate::store::Lease;

const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// After this the caller is told to come again.
const PATIENCE: Duration = Duration::from_secs(10);

/// The tries of one change.
pub(super) struct Tries {
    begun: Instant,
    pause: Duration,
}

impl Tries {
    pub(super) fn begin() -> Self {
        Self { begun: Instant::now(), pause: FIRST_PAUSE }
    }

    /// What `waiting` gives, unless the time of this change is over before. For everything before its write: a caller
    /// behind many others, each of whom waits for an answer that does not come, is refused when they are.
    pub(super) async fn within<T>(&self, waiting: impl Future<Output = Result<T>>) -> Result<T> {
        let left = PATIENCE.saturating_sub(self.begun.elapsed());
        let late = || Error::new(ErrorKind::Unavailable, "Firestore, or those who write to the same documents, take too long");
        tokio::time::timeout(left, Box::pin(waiting)).await.unwrap_or_else(|_elapsed| Err(late()))
    }

    /// Waits before the next try: longer each time, and never in step with the other writer.
    pub(super) async fn again(&mut self) -> Result<()> {
        if self.begun.elapsed() > PATIENCE {
            return Err(Error::new(ErrorKind::Unavailable, "too many others write to the same documents in Firestore"));
        }
        tokio::time::sleep(self.pause.mul_f64(0.5 + rand::random::<f64>())).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// Ends of attempts that were written without an answer: they may be stored, or may be yet. Who asks again because of that
/// is told apart by this from who ends a run twice.
#[derive(Default)]
pub(super) struct Doubts {
    open: Mutex<HashSet<(RunId, u64)>>,
}

impl Doubts {
    pub(super) fn note(&self, lease: &Lease) {
        self.open().insert((lease.run_id.clone(), lease.epoch));
    }

    pub(super) fn is_open(&self, lease: &Lease) -> bool {
        self.open().contains(&(lease.run_id.clone(), lease.epoch))
    }

    pub(super) fn settled(&self, lease: &Lease) {
        self.open().remove(&(lease.run_id.clone(), lease.epoch));
    }

    fn open(&self) -> MutexGuard<'_, HashSet<(RunId, u64)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writers of this process to the same documents take turns: only those of other processes still collide.
#[derive(Default)]
pub(super) struct Locks {
    held: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// Until it is dropped, the documents are this writer's alone in this process.
pub(super) type Alone = tokio::sync::OwnedMutexGuard<()>;

impl Locks {
    pub(super) async fn take(&self, path: &str) -> Alone {
        let lock = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            // What nobody holds is swept out when the map would grow.
            if held.len() == held.capacity() {
                held.retain(|_, lock| lock.strong_count() > 0);
            }
            let known = held.get(path).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                held.insert(path.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn writers_of_one_document_take_turns_and_leave_nothing_behind() {
        let locks = Locks::default();
        let first = locks.take("a").await;
        let _other = locks.take("b").await;
        assert!(tokio::time::timeout(Duration::from_millis(20), locks.take("a")).await.is_err());
        drop(first);
        drop(locks.take("a").await);
        for n in 0..1000 {
            drop(locks.take(&n.to_string()).await);
        }
        assert!(locks.held.lock().unwrap().len() < 100);
    }
}
