//! What `quayside doctor` asks about a data folder. Nothing is written but the lock, and only if no server runs.

use std::path::{Path, PathBuf};

use super::backup::{Contents, contents};
use super::check::{check_pages, newest_schema, open_for_reading, refuse_damaged_files};
use super::folder::{Folder, Held, database_in};
use super::space::free_bytes;
use crate::error::{Error, ErrorKind, Result};

/// What was found at a first look.
#[derive(Debug)]
pub struct Found {
    /// Where the database is, or would be.
    pub database: PathBuf,
    /// What is in it; `None` when there is none yet.
    pub contents: Option<Contents>,
    /// Whether a server is running on it.
    pub served: bool,
    /// The schema that this program knows; an older one is brought up to it at the next start.
    pub newest_schema: u32,
    /// Keeps servers away for as long as this is looked at.
    _held: Option<Folder>,
}

/// Looks at the database in `folder`: its kind, its schema, its log, what it holds.
///
/// # Errors
/// `Corrupt` with what to do when it could not be opened by a server.
pub fn examine(folder: &Path) -> Result<Found> {
    let database = database_in(folder);
    let newest_schema = newest_schema()?;
    let found = |contents, served, held| Ok(Found { database: database.clone(), contents, served, newest_schema, _held: held });
    match Folder::held(folder)? {
        Held::Nowhere => found(None, false, None),
        Held::Elsewhere => found(Some(contents(&open_for_reading(&database)?, &database)?), true, None),
        Held::Here(mut held) => {
            if !held.has_database()? {
                return found(None, false, Some(held));
            }
            refuse_damaged_files(&database)?;
            let contents = contents(&open_for_reading(&database)?, &database)?;
            found(Some(contents), false, Some(held))
        }
    }
}

impl Found {
    /// Reads every page and compares every index with its table. Takes seconds for each gigabyte.
    ///
    /// # Errors
    /// `Corrupt` with the first things that do not fit.
    pub fn check(&self) -> Result<()> {
        check_pages(&open_for_reading(&self.database)?, &self.database, true, None).map(drop)
    }
}

/// Bytes left on the disk of `folder`, or of the folder it will be made in.
///
/// # Errors
/// When the disk cannot be asked.
pub fn room(folder: &Path) -> Result<u64> {
    let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    free_bytes(existing).map_err(|error| {
        Error::new(ErrorKind::Unavailable, format!("cannot tell how much room the disk of {} has", folder.display())).with_source(error)
    })
}
