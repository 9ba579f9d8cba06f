//! What a database file is, before anything is written to it: ours and of a schema we know, whole as far as a look can
//! tell.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{log, migrations, sql};
use crate::error::{Error, ErrorKind, Result};

/// In the header of every database of ours: `Quay`.
const APPLICATION_ID: u32 = 0x5175_6179;
/// Tables that the first schema has already.
const TABLES: [&str; 3] = ["runs", "conversations", "queue_length"];
/// The newest of SQLite's file formats: with a write-ahead log.
const FORMAT: u8 = 2;
const BUSY: Duration = Duration::from_secs(5);

/// What to do about a damaged database, in every message about one.
pub(super) const RESTORE: &str = "stop the server, keep the files, and see docs/operations.md: `quayside doctor`, then `quayside restore FILE`";

/// Signs the file, so that no other program's is ever taken for ours.
pub(super) fn sign(connection: &Connection) -> rusqlite::Result<()> {
    let signed: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if signed.cast_unsigned() == APPLICATION_ID {
        return Ok(());
    }
    connection.pragma_update(None, "application_id", APPLICATION_ID)
}

/// The newest schema that this program knows.
pub(super) fn newest_schema() -> Result<u32> {
    let known = Connection::open_in_memory().map_err(sql("opening a database in memory"))?;
    let steps = migrations().pending_migrations(&known);
    steps.ok().and_then(|steps| u32::try_from(steps).ok()).ok_or_else(|| Error::new(ErrorKind::Internal, "the schema has no version"))
}

/// Opens for reading alone. The file must be there.
pub(super) fn open_for_reading(database: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags).map_err(sql("opening the database for reading"))?;
    connection.busy_timeout(BUSY).map_err(sql("configuring the database"))?;
    Ok(connection)
}

/// Refuses a database that lost commits with its log, or that SQLite would open for reading alone because its header
/// names a format of the future. Nobody may have it open.
pub(super) fn refuse_damaged_files(database: &Path) -> Result<()> {
    let mut header = [0; 20];
    let read = File::open(database).and_then(|mut file| file.read_exact(&mut header));
    if read.is_ok() && (header[18] > FORMAT || header[19] > FORMAT) {
        return Err(damaged(database, "its header names a format that does not exist"));
    }
    let state = log::inspect(database)
        .map_err(|error| Error::new(ErrorKind::Unavailable, format!("cannot read the log beside {}", database.display())).with_source(error))?;
    match state {
        log::State::Sound => Ok(()),
        log::State::Damaged(words) => Err(damaged(database, &format!("its log {words}: accepted runs are missing"))),
    }
}

/// The schema's version.
///
/// # Errors
/// `Corrupt` when the file is no database of ours, or a newer Quayside's.
pub(super) fn identify(connection: &Connection, database: &Path) -> Result<u32> {
    let seen = look(connection).map_err(|error| {
        let error = sql("reading the database")(error);
        if error.kind() == ErrorKind::Corrupt {
            damaged(database, "it is no database, or its beginning is damaged").with_source(error)
        } else {
            error
        }
    })?;
    let (schema, application, tables) = seen;
    let ours = TABLES.iter().all(|name| tables.iter().any(|table| table == name));
    let foreign = match (schema, application) {
        (0, 0 | APPLICATION_ID) => !tables.is_empty(),
        (_, 0 | APPLICATION_ID) => !ours,
        _ => true,
    };
    if foreign {
        let words = format!("{} is a database of another program; set another backend.data_dir, or take it away", database.display());
        return Err(Error::new(ErrorKind::Corrupt, words));
    }
    let newest = newest_schema()?;
    if schema > newest {
        let words = format!(
            "{} was made by a newer Quayside (schema {schema}, this one knows up to {newest}); start that version, or `quayside restore FILE` from a backup of this one",
            database.display()
        );
        return Err(Error::new(ErrorKind::Corrupt, words));
    }
    Ok(schema)
}

fn look(connection: &Connection) -> rusqlite::Result<(u32, u32, Vec<String>)> {
    let schema = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    // Signed in SQLite, whatever it stands for.
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables =
        connection.prepare("SELECT name FROM sqlite_master WHERE type = 'table'")?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok((schema, application.cast_unsigned(), tables))
}

/// How far a check came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checked {
    /// Over all of the file.
    Whole,
    /// Its time was over before.
    Partly,
}

/// Reads pages for as long as `time` allows and refuses what does not fit together. `thorough` compares the indexes with
/// their tables too.
///
/// # Errors
/// `Corrupt` with the first things that were found.
pub(super) fn check_pages(connection: &Connection, database: &Path, thorough: bool, time: Option<Duration>) -> Result<Checked> {
    let (done, waited) = mpsc::channel::<()>();
    let handle = connection.get_interrupt_handle();
    let timer = time.map(|time| {
        std::thread::spawn(move || {
            if waited.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout) {
                handle.interrupt();
            }
        })
    });
    let check = if thorough { "PRAGMA integrity_check(20)" } else { "PRAGMA quick_check(20)" };
    let found =
        connection.prepare(check).and_then(|mut check| check.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>());
    drop(done);
    if let Some(timer) = timer {
        let _ = timer.join();
    }
    match found {
        Ok(lines) if lines == ["ok"] => Ok(Checked::Whole),
        Ok(lines) => Err(damaged(database, "pages do not fit together").with_source(lines.join("; "))),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok(Checked::Partly),
        Err(error) => {
            let error = sql("checking the database")(error);
            Err(if error.kind() == ErrorKind::Corrupt { damaged(database, "pages do not fit together").with_source(error) } else { error })
        }
    }
}

/// In the words that every damaged file is told with.
pub(super) fn damaged(database: &Path, how: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{} is damaged ({how}); {RESTORE}", database.display()))
}
