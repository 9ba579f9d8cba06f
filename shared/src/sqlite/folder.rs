//! The data folder: one process holds it, and it remembers that there was a database.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

const DATABASE: &str = "quayside.db";
const LOCK: &str = "quayside.lock";
/// Written into the lock file once there is a database: SQLite takes a missing or an emptied file for a new one.
const MARK: &[u8] = b"There is a database beside this file. Should it be gone, Quayside does not begin a new one as long as this is here.\n";

/// A data folder that no other process can open while this lives.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    lock: File,
}

/// Who has a folder.
pub(super) enum Held {
    /// This process, from now on.
    Here(Folder),
    /// Another process.
    Elsewhere,
    /// Nobody: it was never used.
    Nowhere,
}

/// Where the database of the folder is.
pub(super) fn database_in(folder: &Path) -> PathBuf {
    folder.join(DATABASE)
}

/// SQLite's own files have the database's name and an ending.
pub(super) fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

impl Folder {
    /// Takes the folder, and makes it when it is missing.
    pub(super) fn take(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|error| {
            unavailable(path, "cannot create the data folder", "; let this user write there, or set another backend.data_dir").with_source(error)
        })?;
        // Not truncated: the mark is in it.
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path.join(LOCK)).map_err(|error| {
            let what_to_do = "; let this user write there, mount it for writing, or set another backend.data_dir";
            unavailable(path, "cannot write into the data folder", what_to_do).with_source(error)
        })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock }),
            Err(TryLockError::WouldBlock) => {
                Err(unavailable(path, "another Quayside process is using the data folder", "; stop it, or set another backend.data_dir"))
            }
            Err(TryLockError::Error(error)) => Err(unavailable(path, "cannot lock the data folder", "").with_source(error)),
        }
    }

    /// Takes the folder if there is one that was used, and if nobody has it.
    pub(super) fn held(path: &Path) -> Result<Held> {
        let lock = match OpenOptions::new().read(true).write(true).open(path.join(LOCK)) {
            Ok(lock) => lock,
            // Copied without its lock: it is a folder like any other from now on.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && database_in(path).exists() => return Self::take(path).map(Held::Here),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Held::Nowhere),
            Err(error) => return Err(unavailable(path, "cannot write into the data folder", "; run this as the server's user").with_source(error)),
        };
        match lock.try_lock() {
            Ok(()) => Ok(Held::Here(Self { path: path.to_owned(), lock })),
            Err(TryLockError::WouldBlock) => Ok(Held::Elsewhere),
            Err(TryLockError::Error(error)) => Err(unavailable(path, "cannot lock the data folder", "").with_source(error)),
        }
    }

    /// The database file.
    pub(super) fn database(&self) -> PathBuf {
        database_in(&self.path)
    }

    /// Whether the folder has a database to be opened, and not merely room for a new one.
    ///
    /// # Errors
    /// `Corrupt` when there was one and it is gone or empty.
    pub(super) fn has_database(&mut self) -> Result<bool> {
        let length = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        let database = self.database();
        // SQLite takes one byte for none.
        if length(&database) > 1 {
            return Ok(true);
        }
        let mut mark = Vec::new();
        self.lock
            .read_to_end(&mut mark)
            .map_err(|error| unavailable(&self.path, "cannot read the lock of the data folder", "").with_source(error))?;
        if mark.is_empty() && length(&beside(&database, "-wal")) == 0 {
            return Ok(false);
        }
        let gone = if database.exists() { "is empty" } else { "is gone" };
        Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "{} {gone}, and there was a database: put it back, or `quayside restore FILE` from a backup; to begin with nothing, remove {} first",
                database.display(),
                self.path.join(LOCK).display()
            ),
        ))
    }

    /// Remembers that there is a database.
    pub(super) fn mark(&mut self) -> Result<()> {
        let marked = self.lock.metadata().and_then(|lock| {
            if lock.len() == 0 {
                self.lock.write_all(MARK)?;
                self.lock.sync_all()?;
            }
            Ok(())
        });
        marked.map_err(|error| unavailable(&self.path, "cannot write into the data folder", "").with_source(error))
    }
}

fn unavailable(folder: &Path, what: &str, what_to_do: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{what} {}{what_to_do}", folder.display()))
}
