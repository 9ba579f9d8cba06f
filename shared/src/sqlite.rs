//! The SQLite file that the embedded queue and store share: opening, one writer with group commit, a few readers.
//!
//! Writes go to one thread. It takes everything that waits, runs it inside one transaction, commits once, and only then
//! answers: an fsync is paid per group, not per write. A savepoint for each write would copy every page that it touches,
//! so there is none as long as nothing fails; when a write fails, the group is rolled back and run again with savepoints,
//! and the failed write does not take its neighbours with it. `synchronous=FULL` makes the commit durable against power
//! loss.

mod inline;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use rusqlite_migration::{M, Migrations};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::error::{Error, ErrorKind, Result};
use inline::Inline;

/// Every version of the schema, oldest first. Append only: a released step is never edited.
fn migrations() -> Migrations<'static> {
    Migrations::new(vec![M::up(include_str!("sqlite/0001_runs.sql")), M::up(include_str!("sqlite/0002_reply_bytes.sql"))])
}

/// Writes that go into one transaction. Large enough to amortise the fsync, small enough for a latency of milliseconds.
const GROUP_MAX: usize = 512;
/// Writes that may wait; more make the callers wait, which is the back-pressure of the API.
const WRITE_QUEUE: usize = 4096;
/// Writes after which the log is moved into the main file: some 80 MB of log under load. Fewer and larger moves write a
/// page once that was changed often.
const CHECKPOINT_EVERY: usize = 5000;
const READERS: usize = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A write that waits for its turn.
trait Write: Send {
    /// Runs it and keeps its result; says why it failed. May be called again after a rollback.
    fn run(&mut self, connection: &Connection) -> Result<(), ErrorKind>;
    /// Answers its caller with the result, or with the reason why the group could not be committed.
    fn answer(self: Box<Self>, committed: Result<()>);
}

struct Command<T, W, C> {
    write: W,
    committed: C,
    outcome: Option<Result<T>>,
    answer: oneshot::Sender<Result<T>>,
}

impl<T, W, C> Write for Command<T, W, C>
where
    T: Send,
    W: Fn(&Connection) -> rusqlite::Result<T> + Send,
    C: FnOnce(&T) + Send,
{
    fn run(&mut self, connection: &Connection) -> Result<(), ErrorKind> {
        let outcome = (self.write)(connection).map_err(sql("writing"));
        let told = outcome.as_ref().map(drop).map_err(Error::kind);
        self.outcome = Some(outcome);
        told
    }

    fn answer(self: Box<Self>, committed: Result<()>) {
        let Self { committed: signal, outcome, answer, .. } = *self;
        let result = match (outcome, committed) {
            (Some(Ok(value)), Ok(())) => {
                signal(&value);
                Ok(value)
            }
            (Some(Err(error)), _) | (_, Err(error)) => Err(error),
            (None, Ok(())) => Err(Error::new(ErrorKind::Internal, "a write was never run")),
        };
        // The caller may have gone; what was written stays written.
        let _ = answer.send(result);
    }
}

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
    writer: mpsc::Sender<Box<dyn Write>>,
    readers: Mutex<Vec<Connection>>,
    reading: Semaphore,
    path: PathBuf,
    /// Held as long as the database is open: no second process can work on the same file.
    _lock: File,
}

impl Database {
    /// Opens `quayside.db` in `folder`, creates both when missing and brings the schema up to date. Must be called on a
    /// Tokio runtime, which answers the callers of [`Database::write`].
    ///
    /// # Errors
    /// `Unavailable` when another process holds the folder, `Corrupt` when the file is no database of ours. Never
    /// replaces a file that it cannot read.
    pub fn open(folder: &Path) -> Result<Self> {
        let at = |what: &str| format!("{what} {}", folder.display());
        std::fs::create_dir_all(folder)
            .map_err(|error| Error::new(ErrorKind::Unavailable, at("cannot create the data folder")).with_source(error))?;
        let lock = File::create(folder.join("quayside.lock"))
            .map_err(|error| Error::new(ErrorKind::Unavailable, at("cannot write into the data folder")).with_source(error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = at("another Quayside process is using the data folder");
                return Err(Error::new(ErrorKind::Unavailable, format!("{what}; stop it, or set another backend.data_dir")));
            }
            Err(TryLockError::Error(error)) => {
                return Err(Error::new(ErrorKind::Unavailable, at("cannot lock the data folder")).with_source(error));
            }
        }
        let path = folder.join("quayside.db");
        let mut connection = Connection::open(&path).map_err(sql("opening the database"))?;
        configure(&connection).map_err(sql("configuring the database"))?;
        migrations()
            .to_latest(&mut connection)
            .map_err(|error| Error::new(ErrorKind::Corrupt, format!("{} cannot be migrated", path.display())).with_source(error))?;
        let readers = (0..READERS)
            .map(|_| {
                let reader = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
                reader.busy_timeout(BUSY_TIMEOUT)?;
                reader.set_prepared_statement_cache_capacity(64);
                Ok(reader)
            })
            .collect::<rusqlite::Result<Vec<_>>>()
            .map_err(sql("opening the database for reading"))?;
        let (writer, writes) = mpsc::channel(WRITE_QUEUE);
        let (answers, written) = mpsc::unbounded_channel();
        tokio::spawn(answer_groups(written));
        let checkpointer = Checkpointer::start(&path)?;
        thread("sqlite-writer", move || write_groups(&connection, writes, &answers, &checkpointer))?;
        let inner = Inner { writer, readers: Mutex::new(readers), reading: Semaphore::new(READERS), path, _lock: lock };
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

    /// The database file; `:memory:` when there is none.
    #[must_use]
    pub fn path(&self) -> &Path {
        match &self.place {
            Place::File(inner) => &inner.path,
            Place::Memory(_) => Path::new(":memory:"),
        }
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
        let (answer, answered) = oneshot::channel();
        let gone = || Error::new(ErrorKind::Unavailable, "the database writer has stopped");
        inner.writer.send(Box::new(Command { write, committed, outcome: None, answer })).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
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
        outcome.ok_or_else(closed)?.map_err(sql("reading"))
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

fn write_groups(
    connection: &Connection,
    mut writes: mpsc::Receiver<Box<dyn Write>>,
    answers: &mpsc::UnboundedSender<Written>,
    checkpointer: &Checkpointer,
) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    let mut written_since = 0;
    while writes.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
        let written = write_group(connection, &mut group);
        if written.is_err() && !connection.is_autocommit() {
            let _ = connection.execute_batch("ROLLBACK");
        }
        written_since += group.len();
        // A runtime that is gone has nobody left who waits.
        let _ = answers.send((std::mem::replace(&mut group, Vec::with_capacity(GROUP_MAX)), written));
        if checkpointer.is_nearly_done() {
            // What came since is little; with all of it in the main file the log begins again instead of growing.
            checkpoint(connection);
        }
        if written_since >= CHECKPOINT_EVERY && checkpointer.ask() {
            written_since = 0;
        }
    }
}

/// A group that was run, and whether it is committed.
type Written = (Vec<Box<dyn Write>>, Result<(), Failure>);

/// Answers the callers, group by group and so in the order of the commits. On the runtime and not on the writer's
/// thread: waking a task from outside costs a system call, and there is one caller for every write.
async fn answer_groups(mut groups: mpsc::UnboundedReceiver<Written>) {
    while let Some((group, written)) = groups.recv().await {
        for write in group {
            write.answer(written.as_ref().map(drop).map_err(Failure::to_error));
        }
    }
}

/// Moves the log into the main file, on a thread and a connection of its own: it takes hundreds of milliseconds of
/// writing and an fsync, for which no caller should wait.
struct Checkpointer {
    ask: std::sync::mpsc::SyncSender<()>,
    nearly_done: Arc<AtomicBool>,
}

impl Checkpointer {
    fn start(path: &Path) -> Result<Self> {
        let connection = Connection::open(path).map_err(sql("opening the database for checkpoints"))?;
        configure(&connection).map_err(sql("configuring the database for checkpoints"))?;
        let (ask, asked) = std::sync::mpsc::sync_channel(1);
        let nearly_done = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&nearly_done);
        thread("sqlite-checkpointer", move || {
            while asked.recv().is_ok() {
                // The second pass has only what was written during the first.
                checkpoint(&connection);
                checkpoint(&connection);
                done.store(true, Ordering::Release);
            }
        })?;
        Ok(Self { ask, nearly_done })
    }

    /// Asks for a checkpoint; says whether it was taken on.
    fn ask(&self) -> bool {
        self.ask.try_send(()).is_ok()
    }

    fn is_nearly_done(&self) -> bool {
        self.nearly_done.swap(false, Ordering::AcqRel)
    }
}

/// As much as goes without waiting for anybody. What fails now is tried again with the next one; no data depends on it.
fn checkpoint(connection: &Connection) {
    if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
        tracing::warn!(%error, "a checkpoint failed; the log grows until one succeeds");
    }
}

/// Why a whole group was not written: told to each of its writes.
struct Failure(ErrorKind, String);

impl Failure {
    fn to_error(&self) -> Error {
        Error::new(self.0, "writing").with_source(self.1.clone())
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        let words = error.to_string();
        Self(sql("writing")(error).kind(), words)
    }
}

fn write_group(connection: &Connection, group: &mut [Box<dyn Write>]) -> Result<(), Failure> {
    let run = |statement: &str| connection.prepare_cached(statement)?.execute([]);
    run("BEGIN IMMEDIATE")?;
    if group.iter_mut().any(|write| write.run(connection).is_err()) {
        // Some failures (a full disk) have rolled back already.
        if !connection.is_autocommit() {
            run("ROLLBACK")?;
        }
        run("BEGIN IMMEDIATE")?;
        for write in group {
            run("SAVEPOINT one")?;
            if let Err(kind) = write.run(connection) {
                if connection.is_autocommit() {
                    return Err(Failure(kind, "the database rolled the whole transaction back".to_owned()));
                }
                run("ROLLBACK TO one")?;
            }
            run("RELEASE one")?;
        }
    }
    run("COMMIT")?;
    Ok(())
}

/// Gives an SQLite error its kind.
fn sql(context: &'static str) -> impl Fn(rusqlite::Error) -> Error {
    move |error| {
        let kind = match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => ErrorKind::Full,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::Corrupt,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::ReadOnly) => {
                ErrorKind::Unavailable
            }
            _ => match error {
                rusqlite::Error::FromSqlConversionFailure(..) => ErrorKind::Corrupt,
                _ => ErrorKind::Internal,
            },
        };
        Error::new(kind, context).with_source(error)
    }
}

#[cfg(test)]
#[path = "sqlite_tests.rs"]
mod tests;
