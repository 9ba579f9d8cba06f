//! When a lost attempt is tried again. Pure: the attempts so far in, a delay out, jitter apart.

use std::time::Duration;

use crate::run::AttemptOutcome;

/// How often, and how long to wait in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Lost workers in a row after which a run is `poison`.
    pub max_attempts: u32,
    /// Attempts that did not count (drain, preemption, engine faults) after which a run is given up all the same: a
    /// bound, so that no run circles for ever on a broken host.
    pub max_uncounted: u32,
    /// The first delay.
    pub base: Duration,
    /// No delay is longer.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 3, max_uncounted: 20, base: Duration::from_millis(500), cap: Duration::from_secs(60) }
    }
}

impl RetryPolicy {
    /// The delay before the attempt after `lost` attempts in a row, the last of which ended with `outcome`.
    /// A drained or preempted attempt was nobody's fault and goes on at once.
    /// `jitter` is in `0.0..=1.0` and takes up to half of the delay away.
    #[must_use]
    pub fn delay(&self, outcome: AttemptOutcome, lost: u32, jitter: f64) -> Duration {
        if matches!(outcome, AttemptOutcome::Drained | AttemptOutcome::Preempted) {
            return Duration::ZERO;
        }
        let doubled = self.base.saturating_mul(1 << lost.saturating_sub(1).min(16));
        doubled.min(self.cap).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap() {
        let policy = RetryPolicy::default();
        let delay = |lost| policy.delay(AttemptOutcome::WorkerLost, lost, 0.0);
        assert_eq!(delay(1), Duration::from_millis(500));
        assert_eq!(delay(2), Duration::from_secs(1));
        assert_eq!(delay(30), policy.cap);
        assert_eq!(policy.delay(AttemptOutcome::WorkerLost, 1, 1.0), Duration::from_millis(250));
    }

    #[test]
    fn a_drained_attempt_goes_on_at_once() {
        assert_eq!(RetryPolicy::default().delay(AttemptOutcome::Drained, 5, 0.0), Duration::ZERO);
    }
}
