//! How many warm containers an agent's traffic asks for.

use std::time::Duration;

use tokio::time::Instant;

/// An agent that was not asked for in this long gets none.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);
/// Rises with a burst at once.
const FAST: Duration = Duration::from_secs(5);
/// Falls slowly behind it, so that containers are not thrown away between two bursts.
const SLOW: Duration = Duration::from_secs(60);
/// Requests come in bunches: twice the mean is there when the next bunch comes.
const BUNCH: f64 = 2.0;

/// Counts requests, each for less as it gets older.
#[derive(Debug, Clone, Copy)]
struct Fading {
    weight: f64,
    at: Option<Instant>,
    over: Duration,
}

impl Fading {
    const fn new(over: Duration) -> Self {
        Self { weight: 0.0, at: None, over }
    }

    fn weight(&self, now: Instant) -> f64 {
        self.at.map_or(0.0, |at| self.weight * (-(now - at).as_secs_f64() / self.over.as_secs_f64()).exp())
    }

    fn count(&mut self, now: Instant) {
        self.weight = self.weight(now) + 1.0;
        self.at = Some(now);
    }

    /// A second.
    fn rate(&self, now: Instant) -> f64 {
        self.weight(now) / self.over.as_secs_f64()
    }
}

/// How often an agent is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    fast: Fading,
    slow: Fading,
    last: Option<Instant>,
}

impl Default for Demand {
    fn default() -> Self {
        Self { fast: Fading::new(FAST), slow: Fading::new(SLOW), last: None }
    }
}

impl Demand {
    /// It was asked for now.
    pub(super) fn asked(&mut self, now: Instant) {
        self.fast.count(now);
        self.slow.count(now);
        self.last = Some(now);
    }

    /// When it is forgotten, unless it is asked for again.
    pub(super) fn forgotten_at(&self) -> Option<Instant> {
        self.last.map(|last| last + FORGOTTEN_AFTER)
    }

    /// What is asked for while one is made: requests a second times the time that making one `takes`, rounded up.
    pub(super) fn wanted(&self, now: Instant, takes: Duration) -> u32 {
        if self.forgotten_at().is_none_or(|at| at <= now) {
            return 0;
        }
        let rate = self.fast.rate(now).max(self.slow.rate(now));
        let wanted = (rate * takes.as_secs_f64() * BUNCH).ceil().clamp(1.0, 1e6);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and a million")]
        let wanted = wanted as u32;
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAKES: Duration = Duration::from_millis(500);

    /// Asks `rate` times a second for `seconds`; returns when that is over.
    fn ask(demand: &mut Demand, mut now: Instant, rate: u32, seconds: u32) -> Instant {
        for _ in 0..rate * seconds {
            now += Duration::from_secs(1) / rate;
            demand.asked(now);
        }
        now
    }

    #[tokio::test(start_paused = true)]
    async fn it_follows_the_traffic_up_at_once_and_down_slowly() {
        let mut demand = Demand::default();
        let now = Instant::now();
        assert_eq!(demand.wanted(now, TAKES), 0, "nobody asked");
        demand.asked(now);
        assert_eq!(demand.wanted(now, TAKES), 1, "somebody did");
        let now = ask(&mut demand, now, 10, 10);
        // 10 a second, half a second each, twice that: 10, of which the fast count has seen 87 % by now.
        assert!((8..=10).contains(&demand.wanted(now, TAKES)), "{}", demand.wanted(now, TAKES));
        assert!(demand.wanted(now, Duration::from_millis(50)) <= 1, "what is made quickly is not kept");
        assert!(demand.wanted(now + Duration::from_secs(20), TAKES) >= 1);
        assert!(demand.wanted(now + Duration::from_secs(20), TAKES) < demand.wanted(now, TAKES));
        assert_eq!(demand.wanted(now + Duration::from_secs(299), TAKES), 1);
        assert_eq!(demand.wanted(now + FORGOTTEN_AFTER, TAKES), 0, "forgotten");
    }
}
