//! Copies of the database, and putting one back. For commands: every call here blocks for as long as the file is large.

use std::fs::File;
use std::io::ErrorKind as IoKind;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::check::{check_pages, identify, open_for_reading, refuse_damaged_files};
use super::folder::{Folder, Held, beside, database_in};
use super::{configure, sql};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};

/// What a database holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// The version of its schema.
    pub schema: u32,
    /// Runs, finished or not.
    pub runs: u64,
    /// Those that wait or are in progress.
    pub unfinished: u64,
    /// The size of the file.
    pub bytes: u64,
}

/// Writes a copy of the database in `folder` to `file`, which must not be there. Everything that was committed before the
/// call is in it, whether a server is running on the folder or not; the copy is one file, checked as a whole and on disk.
///
/// # Errors
/// `Corrupt` when the database is damaged: [`salvage`] takes what can be read.
pub fn backup(folder: &Path, file: &Path) -> Result<Contents> {
    refuse_existing(file)?;
    let _held = match Folder::held(folder)? {
        Held::Here(mut folder) => {
            if !folder.has_database()? {
                return Err(nothing(&folder.database()));
            }
            refuse_damaged_files(&folder.database())?;
            Some(folder)
        }
        Held::Elsewhere => None,
        Held::Nowhere => return Err(nothing(&database_in(folder))),
    };
    copy(&database_in(folder), file)
}

/// The same from a damaged database: what SQLite can still read of it. No server may run on the folder.
///
/// # Errors
/// `Corrupt` when too much is damaged.
pub fn salvage(folder: &Path, file: &Path) -> Result<Contents> {
    refuse_existing(file)?;
    let Held::Here(held) = Folder::held(folder)? else {
        return Err(Error::new(ErrorKind::Unavailable, format!("a server is running on {}, or there is nothing; stop it first", folder.display())));
    };
    let database = held.database();
    // On copies: opening the originals would overwrite what tells how they are damaged.
    let place = beside(file, ".salvage");
    let salvaged = std::fs::create_dir(&place).map_err(cannot("make the folder", &place)).and_then(|()| {
        let twin = database_in(&place);
        for ending in ["", "-wal"] {
            match std::fs::copy(beside(&database, ending), beside(&twin, ending)) {
                Err(error) if error.kind() == IoKind::NotFound => {}
                copied => copied.map(drop).map_err(cannot("copy", &beside(&database, ending)))?,
            }
        }
        let writing = Connection::open(&twin).map_err(sql("opening the copy"))?;
        configure(&writing).map_err(sql("opening the copy"))?;
        copy(&twin, file)
    });
    let _ = std::fs::remove_dir_all(&place);
    salvaged
}

/// Puts `file` in the place of the database in `folder`. What was there is renamed, never removed. Returns the new
/// database's contents and the name of the old one, if there was one.
///
/// # Errors
/// When a server is running on the folder, or `file` is not a whole database of ours: then nothing was changed.
pub fn restore(folder: &Path, file: &Path) -> Result<(Contents, Option<PathBuf>)> {
    // First of all, so that a wrong name makes no folder.
    File::open(file).map_err(cannot("open", file))?;
    let schema = identify(&open_for_reading(file)?, file)?;
    if schema == 0 {
        return Err(Error::new(ErrorKind::Corrupt, format!("{} holds no runs; name a file that `quayside backup` made", file.display())));
    }
    let mut held = Folder::take(folder)?;
    let database = held.database();
    let fresh = beside(&database, ".restoring");
    remove_if_there(&fresh)?;
    let contents = copy(file, &fresh)?;
    let kept = put_aside(&database)?;
    std::fs::rename(&fresh, &database).map_err(cannot("rename", &fresh))?;
    sync_folder_of(&database)?;
    held.mark()?;
    Ok((contents, kept))
}

/// Renames the database with its log, which belongs to it.
fn put_aside(database: &Path) -> Result<Option<PathBuf>> {
    let now = SystemClock.now().to_string().replace(':', "-");
    let mut aside = beside(database, &format!(".before-restore-{now}"));
    let mut number = 2;
    while aside.exists() {
        aside = beside(database, &format!(".before-restore-{now}-{number}"));
        number += 1;
    }
    let mut kept = None;
    // The log first: alone it is nothing, and without it the database would look whole.
    for ending in ["-wal", "-shm", ""] {
        match std::fs::rename(beside(database, ending), beside(&aside, ending)) {
            Ok(()) => kept = Some(aside.clone()),
            Err(error) if error.kind() == IoKind::NotFound => {}
            Err(error) => return Err(cannot("rename", &beside(database, ending))(error)),
        }
    }
    Ok(kept)
}

/// Copies what is committed in `from` to `to`, by way of a name of its own: what has the name `to` is whole.
fn copy(from: &Path, to: &Path) -> Result<Contents> {
    let partial = beside(to, ".partial");
    remove_if_there(&partial)?;
    let copied = copy_to_partial(from, &partial);
    if copied.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    let contents = copied?;
    std::fs::rename(&partial, to).map_err(cannot("rename", &partial))?;
    sync_folder_of(to)?;
    Ok(contents)
}

fn copy_to_partial(from: &Path, partial: &Path) -> Result<Contents> {
    let source = open_for_reading(from)?;
    identify(&source, from)?;
    // The page size and the text of every table go through SQLite: what cannot be read fails here.
    let name = partial.to_str().ok_or_else(|| Error::new(ErrorKind::Internal, format!("{} is not UTF-8; choose another name", partial.display())))?;
    source.execute("VACUUM INTO ?1", [name]).map_err(|error| {
        let full = error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
        let error = sql("copying the database")(error);
        if full { Error::new(ErrorKind::Full, format!("the disk of {} is full", partial.display())).with_source(error) } else { error }
    })?;
    File::open(partial).and_then(|file| file.sync_all()).map_err(cannot("write", partial))?;
    let copy = open_for_reading(partial)?;
    check_pages(&copy, partial, true, None)?;
    contents(&copy, partial)
}

/// Counts what is in an identified database.
pub(super) fn contents(connection: &Connection, database: &Path) -> Result<Contents> {
    let schema = identify(connection, database)?;
    let pages = |name| connection.pragma_query_value(None, name, |row| row.get::<_, u64>(0)).map_err(sql("reading the database"));
    // Not the length of the file: there may be more in the log.
    let bytes = pages("page_count")? * pages("page_size")?;
    if schema == 0 {
        return Ok(Contents { schema, runs: 0, unfinished: 0, bytes });
    }
    let count = |query: &str| connection.query_row(query, [], |row| row.get(0)).map_err(sql("counting runs"));
    let runs = count("SELECT count(*) FROM runs")?;
    let unfinished = count("SELECT count(*) FROM runs WHERE status IN ('queued', 'in_progress', 'cancelling')")?;
    Ok(Contents { schema, runs, unfinished, bytes })
}

fn nothing(database: &Path) -> Error {
    Error::new(ErrorKind::Unavailable, format!("there is no database at {}; check backend.data_dir", database.display()))
}

fn refuse_existing(file: &Path) -> Result<()> {
    if file.exists() {
        return Err(Error::new(ErrorKind::Unavailable, format!("{} is there already and is not overwritten; choose another name", file.display())));
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != IoKind::NotFound => Err(cannot("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync_folder_of(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(cannot("write", folder))
}

fn cannot(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let words = format!("cannot {what} {}", path.display());
    |error| Error::new(ErrorKind::Unavailable, words).with_source(error)
}
