//! The SQLite file that the embedded queue and store share: opening, one writer with group commit, a few readers.
//!
//! Writes go to one thread. It takes everything that waits, runs it inside one transaction, commits once, and only then
//! answers: an fsync is paid per group, not per write. A savepoint for each write would copy every page that it touches,
//! so there is none as long as nothing fails; when a write fails, the group is rolled back and run again with savepoints,
//! and the failed write does not take its neighbours with it. `synchronous=FULL` makes the commit durable against power
//! loss.
//!
//! What can go wrong with the file is in `sqlite/`: `folder` and `check` look before anything is written, `log` finds
//! commits that are missing, `health` and `space` watch while it runs, `backup` copies it and puts copies back.

pub mod backup;
mod check;
pub mod examine;
mod folder;
mod health;
mod inline;
mod log;
mod space;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use rusqlite_migration::{M, Migrations};
use tokio::sync::Semaphore;

use self::check::{Checked, check_pages, identify, open_for_reading, refuse_damaged_files};
use self::folder::Folder;
use self::health::Health;
use self::inline::Inline;
use self::space::Space;
use self::writer::Writer;
use crate::error::{Error, ErrorKind, Result};

/// Every version of the schema, oldest first. Append only: a released step is never edited.
fn migrations() -> Migrations<'static> {
    Migrations::new(vec![
        M::up(include_str!("sqlite/0001_runs.sql")),
        M::up(include_str!("sqlite/0002_reply_bytes.sql")),
        M::up(include_str!("sqlite/0003_operations.sql")),
        M::up(include_str!("sqlite/0004_files.sql")),
    ])
}

/// Writes that may wait; more make the callers wait, which is the back-pressure of the API.
const WRITE_QUEUE: usize = 4096;
const READERS: usize = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// What a start spends on looking at the pages. It reads several hundred megabytes in this time; `quayside doctor` reads
/// all, however long it takes.
const CHECK_TIME: Duration = Duration::from_secs(1);

/// An open database file. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Database {
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    File(Arc<Inner>),
    Memory(Arc<Inline>),
}

#[derive(Debug)]
struct Inner {
    writer: Writer,
    readers: Mutex<Vec<Connection>>,
    reading: Semaphore,
    path: PathBuf,
    health: Arc<Health>,
    space: Space,
    /// Held as long as the database is open: no second process can work on the same file.
    _folder: Folder,
}

impl Database {
    /// Opens `quayside.db` in `folder`, creates both when missing and brings the schema up to date. Must be called on a
    /// Tokio runtime, which answers the callers of [`Database::write`].
    ///
    /// # Errors
    /// `Unavailable` when another process holds the folder or it cannot be written, `Corrupt` when the file is no database
    /// of ours, damaged, or gone. Never replaces a file that it cannot read, and never begins a new one where one was.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_with(folder, 0)
    }

    /// The same, refusing new work when the disk has less than `reserve` bytes left: see [`Database::refuse_new`].
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn open_with(folder: &Path, reserve: u64) -> Result<Self> {
        Self::look_and_open(folder, reserve).map_err(|error| space::or_full(error, folder))
    }

    fn look_and_open(folder: &Path, reserve: u64) -> Result<Self> {
        let space = Space::new(folder, reserve);
        let mut folder = Folder::take(folder)?;
        let path = folder.database();
        if folder.has_database()? {
            refuse_damaged_files(&path)?;
            // For reading alone: whoever writes would move the log, and with it the damage.
            let looking = open_for_reading(&path)?;
            identify(&looking, &path)?;
            if check_pages(&looking, &path, false, Some(CHECK_TIME))? == Checked::Partly {
                tracing::info!("the database is large and was not looked at as a whole; `quayside doctor` does that");
            }
        }
        let mut connection = Connection::open(&path).map_err(sql("opening the database"))?;
        configure(&connection).map_err(sql("configuring the database"))?;
        migrations().to_latest(&mut connection).map_err(|error| match error {
            rusqlite_migration::Error::RusqliteError { query, err } => {
                tracing::debug!(query, "the migration that failed");
                sql("migrating the database")(err)
            }
            error => Error::new(ErrorKind::Corrupt, format!("{} cannot be migrated", path.display())).with_source(error),
        })?;
        check::sign(&connection).map_err(sql("configuring the database"))?;
        folder.mark()?;
        let readers = (0..READERS)
            .map(|_| {
                let reader = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
                reader.busy_timeout(BUSY_TIMEOUT)?;
                reader.set_prepared_statement_cache_capacity(64);
                Ok(reader)
            })
            .collect::<rusqlite::Result<Vec<_>>>()
            .map_err(sql("opening the database for reading"))?;
        let health = Arc::new(Health::default());
        let writer = Writer::start(&path, connection, Arc::clone(&health))?;
        let (readers, reading) = (Mutex::new(readers), Semaphore::new(READERS));
        let inner = Inner { writer, readers, reading, path, health, space, _folder: folder };
        Ok(Self { place: Place::File(Arc::new(inner)) })
    }

    /// A new database in memory, with the same schema and no file, no threads and no groups: each call is done on the
    /// caller's thread before it first suspends, so that a simulation can repeat it. It is gone with its last clone.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn in_memory() -> Result<Self> {
        Ok(Self { place: Place::Memory(Arc::new(Inline::open()?)) })
    }

    fn file(&self) -> Option<&Inner> {
        match &self.place {
            Place::File(inner) => Some(inner),
            Place::Memory(_) => None,
        }
    }

    /// The database file; `:memory:` when there is none.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file().map_or(Path::new(":memory:"), |file| &file.path)
    }

    /// Runs `write` in the next group. What it wrote is durable when this returns `Ok`; on an error nothing of it is.
    /// `write` may run more than once, each time on a database that has not seen it; only its last run counts.
    /// `committed` runs after the commit and in the order of commits, whether or not the caller still waits: signals that
    /// must not be lost with an abandoned request belong there.
    pub async fn write<T: Send + 'static>(
        &self,
        write: impl Fn(&Connection) -> rusqlite::Result<T> + Send + 'static,
        committed: impl FnOnce(&T) + Send + 'static,
    ) -> Result<T> {
        let inner = match &self.place {
            Place::File(inner) => inner,
            Place::Memory(inline) => return inline.write(write, committed),
        };
        inner.health.refuse_damaged()?;
        inner.writer.write(write, committed).await
    }

    /// Runs `read` on a snapshot of what is committed.
    pub async fn read<T: Send + 'static>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static) -> Result<T> {
        let inner = match &self.place {
            Place::File(inner) => Arc::clone(inner),
            Place::Memory(inline) => return inline.read(read),
        };
        let closed = || Error::new(ErrorKind::Unavailable, "the database is closed");
        let reading = Arc::clone(&inner);
        let _permit = reading.reading.acquire().await.map_err(|_| closed())?;
        let outcome = tokio::task::spawn_blocking(move || {
            let lock = || inner.readers.lock().unwrap_or_else(PoisonError::into_inner);
            let connection = lock().pop();
            let connection = connection?;
            let result = connection.unchecked_transaction().and_then(|snapshot| read(&snapshot));
            lock().push(connection);
            Some(result)
        })
        .await
        .map_err(|error| Error::new(ErrorKind::Internal, "a read panicked").with_source(error))?;
        let read = outcome.ok_or_else(closed)?;
        if let Err(error) = &read
            && matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
        {
            reading.health.failed(ErrorKind::Corrupt, &error.to_string());
        }
        read.map_err(sql("reading"))
    }

    /// Whether the database can be written now. A healthy one is believed; after a fault every group of writes, and so this
    /// one, goes to the disk to find out.
    ///
    /// # Errors
    /// As a write's, and `Full` when the reserve is touched.
    pub async fn ping(&self) -> Result<()> {
        self.refuse_new()?;
        self.write(|_| Ok(()), |()| {}).await
    }

    /// # Errors
    /// `Full` when the disk has less than the reserve left: what was accepted needs it.
    pub fn refuse_new(&self) -> Result<()> {
        if self.file().is_some_and(|file| file.space.is_short()) {
            return Err(Error::new(ErrorKind::Full, "the disk of the data folder has less than backend.reserve left, and new runs are refused"));
        }
        Ok(())
    }

    /// # Errors
    /// `Full` when half of the reserve is gone: those in progress need it to end.
    pub fn refuse_starting(&self) -> Result<()> {
        if self.file().is_some_and(|file| file.space.is_nearly_gone()) {
            return Err(Error::new(ErrorKind::Full, "the disk of the data folder has less than half of backend.reserve left, and no run is started"));
        }
        Ok(())
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -16 * 1024)?;
    // The checkpointer does that: see there.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(())
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(body);
    started.map(drop).map_err(|error| Error::new(ErrorKind::Unavailable, format!("cannot start the thread {name}")).with_source(error))
}

/// Gives an SQLite error its kind.
fn sql(context: &'static str) -> impl Fn(rusqlite::Error) -> Error {
    move |error| {
        let kind = kind_of(&error);
        Error::new(kind, in_words(context, kind)).with_source(error)
    }
}

fn kind_of(error: &rusqlite::Error) -> ErrorKind {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => ErrorKind::Full,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::Corrupt,
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::OutOfMemory
            | ErrorCode::FileLockingProtocolFailed,
        ) => ErrorKind::Unavailable,
        _ => match error {
            rusqlite::Error::FromSqlConversionFailure(..) => ErrorKind::Corrupt,
            _ => ErrorKind::Internal,
        },
    }
}

fn in_words(doing: &str, kind: ErrorKind) -> String {
    match kind {
        ErrorKind::Full => format!("{doing}: the disk of the data folder is full"),
        ErrorKind::Corrupt => format!("{doing}: the database is damaged"),
        ErrorKind::Unavailable => format!("{doing}: the database is locked by another process, or the disk fails"),
        ErrorKind::Internal => doing.to_owned(),
    }
}

#[cfg(test)]
mod backup_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
#[path = "sqlite_tests.rs"]
mod tests;
