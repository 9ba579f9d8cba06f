//! The numbered places of a worker's containers: what lives at the same time has different numbers, and so different
//! host uids.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Hands out places, always the smallest that is free: a worker that was busy once does not use up its range of uids.
#[derive(Debug, Clone, Default)]
pub struct Places(Arc<Mutex<BTreeSet<u32>>>);

/// One taken place. Dropping it gives it back: when the container is gone, and not before.
#[derive(Debug)]
pub struct Place {
    number: u32,
    taken: Places,
}

impl Places {
    /// The smallest place that no container has.
    #[must_use]
    pub fn take(&self) -> Place {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = (0..).zip(taken.iter()).find(|(number, taken)| number != *taken).map_or_else(
            // Without a gap, the one behind the last. There are not so many containers that it could overflow.
            || taken.last().map_or(0, |last| last.saturating_add(1)),
            |(number, _)| number,
        );
        taken.insert(number);
        Place { number, taken: self.clone() }
    }
}

impl Place {
    /// Its number, from 0.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_free_place_is_handed_out() {
        let places = Places::default();
        let [first, second, third] = [places.take(), places.take(), places.take()];
        assert_eq!([first.number(), second.number(), third.number()], [0, 1, 2]);
        drop(second);
        assert_eq!(places.take().number(), 1, "given back and free again");
        drop(first);
        let again = places.take();
        assert_eq!(again.number(), 0);
        let (one, three) = (places.take(), places.take());
        assert_eq!((one.number(), three.number()), (1, 3), "2 is still taken");
        drop(third);
    }
}
