//! How much room the disk of the data folder has left.
//!
//! The reserve is for what was accepted: new runs are refused when it is touched, and when half of it is gone no run is
//! started any more, so that those in progress can write down their ends.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};

/// A look is kept for this long: under load it would be one for each submission.
const KEPT: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Space {
    folder: PathBuf,
    reserve: u64,
    seen: Mutex<Option<(Instant, u64)>>,
}

impl Space {
    pub(super) fn new(folder: &Path, reserve: u64) -> Self {
        Self { folder: folder.to_owned(), reserve, seen: Mutex::new(None) }
    }

    /// Whether the reserve is touched.
    pub(super) fn is_short(&self) -> bool {
        self.free() < self.reserve
    }

    /// Whether half of the reserve is gone.
    pub(super) fn is_nearly_gone(&self) -> bool {
        self.free() < self.reserve / 2
    }

    fn free(&self) -> u64 {
        if self.reserve == 0 {
            return u64::MAX;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match *seen {
            Some((at, free)) if at.elapsed() < KEPT => free,
            _ => {
                // What cannot be told refuses nobody; the write itself will tell.
                let free = free_bytes(&self.folder).unwrap_or(u64::MAX);
                *seen = Some((Instant::now(), free));
                free
            }
        }
    }
}

/// Without this much SQLite cannot even begin: it needs a log and an index beside the database.
const NEEDED: u64 = 256 << 10;

/// Says that the disk is full where SQLite tells it as one failure among many.
pub(super) fn or_full(error: Error, folder: &Path) -> Error {
    match free_bytes(folder) {
        Ok(free) if free < NEEDED && error.kind() != ErrorKind::Corrupt => {
            let words = format!("the disk of {} is full ({free} bytes are left); free some space and start again", folder.display());
            Error::new(ErrorKind::Full, words).with_source(error)
        }
        _ => error,
    }
}

/// Bytes that this user may still write to the disk of `folder`.
pub(super) fn free_bytes(folder: &Path) -> std::io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}
