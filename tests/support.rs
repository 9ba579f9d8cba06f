//! Starts the real things and waits for conditions.

pub mod emulators;
pub mod liar;
pub mod server;

use std::time::{Duration, Instant};

/// The longest that any condition is waited for: generous, because it is reached only when a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `probe` until it gives a value; panics with `what` when it does not within [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut probe: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not come within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
