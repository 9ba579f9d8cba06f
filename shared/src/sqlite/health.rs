//! Whether the database can be written: said once when it turns, not with every request.
//!
//! A full disk, a lock of another process and a failing disk pass: every write tries again, and the first that reaches
//! the disk ends the fault. Damage does not pass: nothing more is written, so that it does not spread, until a person has
//! looked.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::check::RESTORE;
use super::folder::beside;
use crate::error::{Error, ErrorKind, Result};

#[derive(Debug, Default)]
pub(super) struct Health {
    fault: Mutex<Option<ErrorKind>>,
}

impl Health {
    /// A call ended with `kind`, for the reason in `words`.
    pub(super) fn failed(&self, kind: ErrorKind, words: &str) {
        // A mistake of ours says nothing about the file.
        if kind == ErrorKind::Internal {
            return;
        }
        let mut fault = self.fault();
        if *fault == Some(ErrorKind::Corrupt) || *fault == Some(kind) {
            return;
        }
        *fault = Some(kind);
        match kind {
            ErrorKind::Corrupt => tracing::error!(error = words, "the database is damaged and nothing more is written to it; {RESTORE}"),
            ErrorKind::Full => tracing::error!(error = words, "the disk of the data folder is full; free some space, the rest goes by itself"),
            _ => tracing::error!(error = words, "the database cannot be written; what was accepted is kept, and it goes on by itself"),
        }
    }

    /// Something reached the disk.
    pub(super) fn wrote(&self) {
        let mut fault = self.fault();
        if matches!(*fault, Some(kind) if kind != ErrorKind::Corrupt) {
            *fault = None;
            tracing::info!("the database is written again");
        }
    }

    /// Whether the last write failed: then only a write that reaches the disk says how it stands.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.fault().is_some()
    }

    /// # Errors
    /// When nothing may be written any more.
    pub(super) fn refuse_damaged(&self) -> Result<()> {
        if *self.fault() == Some(ErrorKind::Corrupt) {
            return Err(Error::new(ErrorKind::Corrupt, "the database is damaged, and nothing more is written until it is restored"));
        }
        Ok(())
    }

    fn fault(&self) -> MutexGuard<'_, Option<ErrorKind>> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which files are written: what replaced them, or took their names away, will be there after a restart, and these will
/// not.
#[derive(Debug)]
pub(super) struct Files {
    database: (PathBuf, Option<Identity>),
    log: (PathBuf, Option<Identity>),
}

type Identity = (u64, u64);

impl Files {
    pub(super) fn of(database: &Path) -> Self {
        let known = |path: PathBuf| {
            let identity = identity(&path);
            (path, identity)
        };
        Self { database: known(database.to_owned()), log: known(beside(database, "-wal")) }
    }

    /// What is wrong with them, in words.
    pub(super) fn missing(&mut self) -> Option<&'static str> {
        let (path, known) = &mut self.log;
        let now = identity(path);
        // It comes with the first write.
        if known.is_none() {
            *known = now;
        }
        if now != *known {
            return Some("the log was moved, removed or replaced while the server runs");
        }
        let (path, known) = &self.database;
        (identity(path) != *known).then_some("the database was moved, removed or replaced while the server runs")
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}
