//! Files: those that came with the message, and those that attempts left behind.

use rusqlite::{Connection, OptionalExtension, params};

use super::read::visible;
use super::rows::{conversion, load};
use crate::ids::RunId;
use crate::state;
use crate::store::files::{Collected, FileEntry, FileList, FilePath, INPUT_EPOCH, PART, RunFile, shown_epoch};
use crate::store::{Fenced, Lease, LeaseLost};

/// Bytes in one write: the writer's time is everybody's.
const GROUP: usize = 2 * PART;

/// All files of an attempt in one write.
pub(super) fn put(db: &Connection, lease: &Lease, collected: &Collected, groups: &[Vec<Part>]) -> rusqlite::Result<Fenced<()>> {
    if begin(db, lease)?.is_err() {
        return Ok(Err(LeaseLost));
    }
    for group in groups {
        if add(db, lease, collected, group)?.is_err() {
            return Ok(Err(LeaseLost));
        }
    }
    complete(db, lease, &collected.list())
}

/// Begins the files of an attempt: what it stored before is gone.
pub(super) fn begin(db: &Connection, lease: &Lease) -> rusqlite::Result<Fenced<()>> {
    let Some(run) = held(db, lease)? else { return Ok(Err(LeaseLost)) };
    db.prepare_cached("DELETE FROM file_lists WHERE run = ?1 AND epoch = ?2")?.execute(params![run, lease.epoch])?;
    db.prepare_cached("DELETE FROM file_parts WHERE run = ?1 AND epoch = ?2")?.execute(params![run, lease.epoch])?;
    Ok(Ok(()))
}

/// A part of a file: which file, and which part of it.
pub(super) type Part = (usize, usize);

/// All parts, grouped for one write each.
pub(super) fn groups(collected: &Collected) -> Vec<Vec<Part>> {
    let (mut groups, mut bytes) = (Vec::new(), GROUP);
    for (file, content) in collected.files.iter().enumerate() {
        for (number, data) in content.parts().enumerate() {
            if bytes + data.len() > GROUP {
                groups.push(Vec::new());
                bytes = 0;
            }
            bytes += data.len();
            if let Some(group) = groups.last_mut() {
                group.push((file, number));
            }
        }
    }
    groups
}

/// A group of them.
pub(super) fn add(db: &Connection, lease: &Lease, collected: &Collected, group: &[Part]) -> rusqlite::Result<Fenced<()>> {
    let Some(run) = held(db, lease)? else { return Ok(Err(LeaseLost)) };
    for &(file, number) in group {
        let file = &collected.files[file];
        if let Some(data) = file.parts().nth(number) {
            insert_part(db, run, lease.epoch, &file.path, number, data)?;
        }
    }
    Ok(Ok(()))
}

/// The list that makes them count.
pub(super) fn complete(db: &Connection, lease: &Lease, list: &FileList) -> rusqlite::Result<Fenced<()>> {
    let Some(run) = held(db, lease)? else { return Ok(Err(LeaseLost)) };
    insert_list(db, run, lease.epoch, list).map(Ok)
}

/// Files that come with a message, with its run.
pub(super) fn insert_inputs(db: &Connection, run: i64, files: &[RunFile]) -> rusqlite::Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    for file in files {
        for (number, data) in file.parts().enumerate() {
            insert_part(db, run, INPUT_EPOCH, &file.path, number, data)?;
        }
    }
    insert_list(db, run, INPUT_EPOCH, &FileList::of(files))
}

/// Drops what attempts left: the next one begins anew.
pub(super) fn drop_left(db: &Connection, run: i64) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM file_lists WHERE run = ?1 AND epoch > 0")?.execute([run])?;
    db.prepare_cached("DELETE FROM file_parts WHERE run = ?1 AND epoch > 0")?.execute([run]).map(drop)
}

/// Bytes of all files of a run.
pub(super) fn bytes_of(db: &Connection, run: i64) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT coalesce(sum(length(data)), 0) FROM file_parts INDEXED BY file_parts_of_run WHERE run = ?1")?
        .query_row([run], |row| row.get(0))
}

pub(super) fn list(db: &Connection, id: &RunId) -> rusqlite::Result<Option<FileList>> {
    let Some(stored) = visible(db, id)? else { return Ok(None) };
    match shown_epoch(&stored.run) {
        Some(epoch) => read_list(db, stored.pk, epoch).map(Some),
        None => Ok(Some(FileList::default())),
    }
}

pub(super) fn file(db: &Connection, id: &RunId, path: &FilePath) -> rusqlite::Result<Option<RunFile>> {
    let Some(stored) = visible(db, id)? else { return Ok(None) };
    let Some(epoch) = shown_epoch(&stored.run) else { return Ok(None) };
    let list = read_list(db, stored.pk, epoch)?;
    list.entry(path).map(|entry| read_file(db, stored.pk, epoch, entry)).transpose()
}

pub(super) fn inputs(db: &Connection, id: &RunId) -> rusqlite::Result<Vec<RunFile>> {
    let Some(stored) = load(db, id)? else { return Ok(Vec::new()) };
    let list = read_list(db, stored.pk, INPUT_EPOCH)?;
    list.files.iter().map(|entry| read_file(db, stored.pk, INPUT_EPOCH, entry)).collect()
}

/// The run's key, while the lease is its holder's.
fn held(db: &Connection, lease: &Lease) -> rusqlite::Result<Option<i64>> {
    let found = load(db, &lease.run_id)?;
    Ok(found.filter(|found| state::holds(&found.run, lease.epoch)).map(|found| found.pk))
}

fn insert_part(db: &Connection, run: i64, epoch: u64, path: &FilePath, number: usize, data: &[u8]) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO file_parts (run, epoch, path, number, data) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![run, epoch, path.as_str(), number, data])
        .map(drop)
}

fn insert_list(db: &Connection, run: i64, epoch: u64, list: &FileList) -> rusqlite::Result<()> {
    let doc = serde_json::to_string(list).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    db.prepare_cached("INSERT INTO file_lists (run, epoch, doc) VALUES (?1, ?2, ?3)")?.execute(params![run, epoch, doc]).map(drop)
}

fn read_list(db: &Connection, run: i64, epoch: u64) -> rusqlite::Result<FileList> {
    let doc: Option<String> =
        db.prepare_cached("SELECT doc FROM file_lists WHERE run = ?1 AND epoch = ?2")?.query_row(params![run, epoch], |row| row.get(0)).optional()?;
    doc.map_or_else(|| Ok(FileList::default()), |doc| serde_json::from_str(&doc).map_err(|error| conversion(0, error)))
}

fn read_file(db: &Connection, run: i64, epoch: u64, entry: &FileEntry) -> rusqlite::Result<RunFile> {
    let mut content = Vec::with_capacity(usize::try_from(entry.bytes).unwrap_or(0));
    let mut statement =
        db.prepare_cached("SELECT data FROM file_parts INDEXED BY file_parts_of_run WHERE run = ?1 AND epoch = ?2 AND path = ?3 ORDER BY number")?;
    let mut rows = statement.query(params![run, epoch, entry.path.as_str()])?;
    while let Some(row) = rows.next()? {
        content.extend_from_slice(row.get_ref(0)?.as_blob()?);
    }
    Ok(RunFile { path: entry.path.clone(), content, sha256: entry.sha256.clone() })
}
