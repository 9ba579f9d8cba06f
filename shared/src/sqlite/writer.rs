//! The one writer: its thread takes everything that waits, commits once, and then answers. Another thread moves the log
//! into the main file.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::health::{Files, Health};
use super::{WRITE_QUEUE, configure, in_words, kind_of, sql, thread};
use crate::error::{Error, ErrorKind, Result};

/// Writes that go into one transaction. Large enough to amortise the fsync, small enough for a latency of milliseconds.
const GROUP_MAX: usize = 512;
/// Writes after which the log is moved into the main file: some 80 MB of log under load. Fewer and larger moves write a
/// page once that was changed often.
const CHECKPOINT_EVERY: usize = 5000;

/// Dirties a page, so that the commit has to reach the disk: SQLite writes nothing for a value that stays the same.
const PROBE: &str = "UPDATE queue_length SET queued = queued + 1; UPDATE queue_length SET queued = queued - 1";

/// A write that waits for its turn.
trait Write: Send {
    /// Runs it and keeps its result; says why it failed. May be called again after a rollback.
    fn run(&mut self, connection: &Connection) -> Result<(), Failure>;
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
    fn run(&mut self, connection: &Connection) -> Result<(), Failure> {
        let outcome = (self.write)(connection);
        let told = outcome.as_ref().map(drop).map_err(Failure::of);
        self.outcome = Some(outcome.map_err(sql("writing")));
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

/// The way to the writer's thread, which ends with the last of these.
#[derive(Debug)]
pub(super) struct Writer {
    sender: mpsc::Sender<Box<dyn Write>>,
}

impl Writer {
    /// Starts the threads, and on the runtime the task that answers.
    pub(super) fn start(path: &Path, connection: Connection, health: Arc<Health>) -> Result<Self> {
        let (sender, writes) = mpsc::channel(WRITE_QUEUE);
        let (answers, written) = mpsc::unbounded_channel();
        tokio::spawn(answer_groups(written));
        let checkpointer = Checkpointer::start(path)?;
        let writing = Writing { connection, answers, checkpointer, files: Files::of(path), health };
        thread("sqlite-writer", move || writing.groups(writes))?;
        Ok(Self { sender })
    }

    /// As [`super::Database::write`] says.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        write: impl Fn(&Connection) -> rusqlite::Result<T> + Send + 'static,
        committed: impl FnOnce(&T) + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let gone = || Error::new(ErrorKind::Unavailable, "the database writer has stopped");
        self.sender.send(Box::new(Command { write, committed, outcome: None, answer })).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// What the writer's thread owns.
struct Writing {
    connection: Connection,
    answers: mpsc::UnboundedSender<Written>,
    checkpointer: Checkpointer,
    files: Files,
    health: Arc<Health>,
}

impl Writing {
    fn groups(mut self, mut writes: mpsc::Receiver<Box<dyn Write>>) {
        let mut group = Vec::with_capacity(GROUP_MAX);
        let mut written_since = 0;
        while writes.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
            let written = self.group(&mut group);
            written_since += group.len();
            // A runtime that is gone has nobody left who waits.
            let _ = self.answers.send((std::mem::replace(&mut group, Vec::with_capacity(GROUP_MAX)), written));
            if self.checkpointer.is_nearly_done() {
                // What came since is little; with all of it in the main file the log begins again instead of growing.
                checkpoint(&self.connection);
            }
            if written_since >= CHECKPOINT_EVERY && self.checkpointer.ask() {
                written_since = 0;
            }
        }
    }

    fn group(&mut self, group: &mut [Box<dyn Write>]) -> Result<(), Failure> {
        self.health.refuse_damaged().map_err(|error| Failure(error.kind(), error.to_string()))?;
        let in_doubt = self.health.is_in_doubt();
        let written = write_group(&self.connection, group, &self.health, in_doubt);
        if written.is_err() && !self.connection.is_autocommit() {
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        // Looked at between the commit and the answers: what is written into a file that has no name is lost with this
        // process.
        let written = written.and_then(|()| match self.files.missing() {
            Some(words) => Err(Failure(ErrorKind::Corrupt, words.to_owned())),
            None => Ok(()),
        });
        match &written {
            Ok(()) if in_doubt => self.health.wrote(),
            Ok(()) => {}
            Err(Failure(kind, words)) => self.health.failed(*kind, words),
        }
        written
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

/// Why a write, or a whole group, was not written.
struct Failure(ErrorKind, String);

impl Failure {
    fn to_error(&self) -> Error {
        Error::new(self.0, in_words("writing", self.0)).with_source(self.1.clone())
    }
}

impl Failure {
    /// A value that cannot be decoded is one run's trouble, not the file's.
    fn of(error: &rusqlite::Error) -> Self {
        let kind = if error.sqlite_error_code().is_none() { ErrorKind::Internal } else { kind_of(error) };
        Self(kind, error.to_string())
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::of(&error)
    }
}

fn write_group(connection: &Connection, group: &mut [Box<dyn Write>], health: &Health, in_doubt: bool) -> Result<(), Failure> {
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
            if let Err(failure) = write.run(connection) {
                if connection.is_autocommit() {
                    return Err(Failure(failure.0, format!("{}: the database rolled the whole transaction back", failure.1)));
                }
                health.failed(failure.0, &failure.1);
                run("ROLLBACK TO one")?;
            }
            run("RELEASE one")?;
        }
    }
    if in_doubt {
        connection.execute_batch(PROBE)?;
    }
    run("COMMIT")?;
    Ok(())
}
