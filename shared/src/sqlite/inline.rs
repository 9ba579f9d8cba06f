//! The database without threads and without a file, for simulations: everything happens on the caller's thread, in the
//! order of the calls and before the call is first suspended. Nothing is durable.

use std::sync::{Mutex, PoisonError};

use rusqlite::Connection;

use super::{migrations, sql};
use crate::error::{Error, ErrorKind, Result};

/// One connection that reads and writes in turn.
#[derive(Debug)]
pub(super) struct Inline(Mutex<Connection>);

impl Inline {
    pub(super) fn open() -> Result<Self> {
        let mut connection = Connection::open_in_memory().map_err(sql("opening a database in memory"))?;
        connection.pragma_update(None, "foreign_keys", true).map_err(sql("configuring the database"))?;
        connection.set_prepared_statement_cache_capacity(128);
        migrations()
            .to_latest(&mut connection)
            .map_err(|error| Error::new(ErrorKind::Internal, "a database in memory cannot be migrated").with_source(error))?;
        Ok(Self(Mutex::new(connection)))
    }

    /// A group of one: what [`super::Database::write`] promises, but for durability.
    pub(super) fn write<T>(&self, write: impl Fn(&Connection) -> rusqlite::Result<T>, committed: impl FnOnce(&T)) -> Result<T> {
        let connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let run = |statement: &str| connection.prepare_cached(statement)?.execute([]);
        let written = run("BEGIN IMMEDIATE").and_then(|_| write(&connection)).and_then(|value| run("COMMIT").map(|_| value));
        if written.is_err() && !connection.is_autocommit() {
            run("ROLLBACK").map_err(sql("writing"))?;
        }
        let value = written.map_err(sql("writing"))?;
        drop(connection);
        committed(&value);
        Ok(value)
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        // No snapshot: nothing can come between.
        read(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).map_err(sql("reading"))
    }
}
