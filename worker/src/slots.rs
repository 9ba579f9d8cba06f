//! The numbered places of a worker: one container each.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::lease::HeldLeases;
use crate::runner::ContainerKey;

/// Hands out slots. A slot's number gives its container its uid, so it is only free again when the container is gone.
#[derive(Debug, Clone)]
pub struct Slots {
    permits: Arc<Semaphore>,
    free: Arc<Mutex<BTreeSet<u32>>>,
    busy: Arc<AtomicU32>,
    total: u32,
}

/// One taken slot. Dropping it frees it.
#[derive(Debug)]
pub struct Slot {
    number: u32,
    free: Arc<Mutex<BTreeSet<u32>>>,
    busy: Arc<AtomicU32>,
    /// Whether it has a message: one that waits for its message is taken, and not busy.
    working: bool,
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    /// `total` slots, numbered from 0.
    #[must_use]
    pub fn new(total: u32) -> Self {
        Self { permits: Arc::new(Semaphore::new(total as usize)), free: Arc::new(Mutex::new((0..total).collect())), busy: Arc::default(), total }
    }

    /// How many there are.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.total
    }

    /// How many work on a message.
    #[must_use]
    pub fn busy(&self) -> u32 {
        self.busy.load(Ordering::Relaxed)
    }

    /// Waits for a free slot. Cancel-safe. `None` never comes: the slots are not closed.
    pub async fn take(&self) -> Option<Slot> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        let number = lock(&self.free).pop_first()?;
        Some(Slot { number, free: Arc::clone(&self.free), busy: Arc::clone(&self.busy), working: false, _permit: permit })
    }
}

impl Slot {
    /// Its message has come.
    #[must_use]
    pub fn begin(mut self) -> Self {
        if !std::mem::replace(&mut self.working, true) {
            self.busy.fetch_add(1, Ordering::Relaxed);
        }
        self
    }

    /// Its number; no other live slot of this worker has it.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.working {
            self.busy.fetch_sub(1, Ordering::Relaxed);
        }
        lock(&self.free).insert(self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The containers that attempts of this process are using; the sweeper leaves them alone.
#[derive(Debug, Clone, Default)]
pub struct LiveContainers {
    announced: Arc<Mutex<HashSet<ContainerKey>>>,
    pub(crate) leases: HeldLeases,
}

/// Announces a container for as long as it lives.
#[derive(Debug)]
pub struct Announced {
    key: ContainerKey,
    live: LiveContainers,
}

impl LiveContainers {
    /// Announces `key`; before the container is made, so that the sweeper never sees it unannounced.
    #[must_use]
    pub fn announce(&self, key: ContainerKey) -> Announced {
        lock(&self.announced).insert(key.clone());
        Announced { key, live: self.clone() }
    }

    /// Whether an attempt is using it.
    #[must_use]
    pub fn contains(&self, key: &ContainerKey) -> bool {
        lock(&self.announced).contains(key)
    }
}

impl Announced {
    /// The container's name.
    #[must_use]
    pub const fn key(&self) -> &ContainerKey {
        &self.key
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        lock(&self.live.announced).remove(&self.key);
    }
}

/// Slots for a machine of `cpus` and `memory` bytes: two a CPU, and no more than one a GiB.
#[must_use]
pub fn slots_for(cpus: usize, memory: Option<u64>) -> u32 {
    let by_cpu = u32::try_from(cpus.max(1) * 2).unwrap_or(u32::MAX);
    let by_memory = memory.map_or(u32::MAX, |bytes| u32::try_from(bytes >> 30).unwrap_or(u32::MAX).max(1));
    by_cpu.min(by_memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn slots_that_live_together_have_different_numbers() {
        let slots = Slots::new(2);
        let (a, b) = (slots.take().await.unwrap(), slots.take().await.unwrap());
        assert_ne!(a.number(), b.number());
        assert_eq!(slots.busy(), 0, "they wait for their messages");
        let (a, b) = (a.begin(), b.begin());
        assert_eq!(slots.busy(), 2);
        let freed = a.number();
        drop(a);
        assert_eq!((slots.busy(), b.number()), (1, 1 - freed));
        assert_eq!(slots.take().await.unwrap().number(), freed);
    }

    #[test]
    fn memory_bounds_the_slots() {
        assert_eq!(slots_for(2, Some(24 << 30)), 4);
        assert_eq!(slots_for(8, Some(3 << 30)), 3);
        assert_eq!(slots_for(1, Some(100 << 20)), 1);
        assert_eq!(slots_for(4, None), 8);
    }
}
