//! The slots of a worker: one run at a time each.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::lease::HeldLeases;
use crate::runner::ContainerKey;

/// Hands out slots. A slot is free again when its run's end is stored; the container may be there for a moment longer.
#[derive(Debug, Clone)]
pub struct Slots {
    permits: Arc<Semaphore>,
    busy: Arc<AtomicU32>,
    total: u32,
}

/// One taken slot. Dropping it frees it.
#[derive(Debug)]
pub struct Slot {
    busy: Arc<AtomicU32>,
    /// Whether it has a message: one that waits for its message is taken, and not busy.
    working: bool,
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    /// `total` slots.
    #[must_use]
    pub fn new(total: u32) -> Self {
        Self { permits: Arc::new(Semaphore::new(total as usize)), busy: Arc::default(), total }
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
        Some(Slot { busy: Arc::clone(&self.busy), working: false, _permit: permit })
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
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.working {
            self.busy.fetch_sub(1, Ordering::Relaxed);
        }
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
    async fn a_slot_is_busy_from_its_message_on() {
        let slots = Slots::new(2);
        let (first, second) = (slots.take().await.unwrap(), slots.take().await.unwrap());
        assert_eq!(slots.busy(), 0, "they wait for their messages");
        let (first, _second) = (first.begin(), second.begin());
        assert_eq!(slots.busy(), 2);
        drop(first);
        assert_eq!(slots.busy(), 1);
        assert_eq!(slots.take().await.unwrap().begin().busy.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn memory_bounds_the_slots() {
        assert_eq!(slots_for(2, Some(24 << 30)), 4);
        assert_eq!(slots_for(8, Some(3 << 30)), 3);
        assert_eq!(slots_for(1, Some(100 << 20)), 1);
        assert_eq!(slots_for(4, None), 8);
    }
}
