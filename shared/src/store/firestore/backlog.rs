//! How many runs of all users wait, as far as the bound on them needs it.
//!
//! Every submission counts up to [`POSITION_MAX`] anyway, so a bound below that is kept to the run, but for submissions
//! that are decided at the same moment. Beyond it counting costs a read for each thousand: once in [`FRESH`] for a
//! process, and the bound is passed by no more than what all processes accept in that time.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::client::Client;
use super::queries;
use crate::error::Result;
use crate::store::POSITION_MAX;

const FRESH: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(super) struct Backlog {
    counted: Mutex<Option<(Instant, u64)>>,
}

impl Backlog {
    /// Whether `limit` runs wait, when `near` were counted up to [`POSITION_MAX`].
    pub(super) async fn is_full(&self, client: &Client, near: u64, limit: u64) -> Result<bool> {
        if near < POSITION_MAX || limit <= POSITION_MAX {
            return Ok(near >= limit);
        }
        let mut counted = self.counted.lock().await;
        if let Some((at, waiting)) = *counted
            && at.elapsed() < FRESH
        {
            return Ok(waiting >= limit);
        }
        let waiting = client.count(queries::queued(), limit).await?;
        *counted = Some((Instant::now(), waiting));
        Ok(waiting >= limit)
    }
}
