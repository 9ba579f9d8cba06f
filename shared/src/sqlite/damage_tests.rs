//! Damage of every kind, on files as a killed process leaves them: never opened as if nothing were, never changed.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use rusqlite::Connection;

use super::folder::beside;
use super::*;
use crate::error::chain;

/// A folder as `kill -9` leaves it: the database, a log that was not moved, its index.
struct Image {
    folder: tempfile::TempDir,
    database: PathBuf,
    rows: BTreeSet<(String, String)>,
}

async fn put(database: &Database, id: String, text: String) {
    database.write(move |db| db.execute("INSERT INTO messages (run_id, trace) VALUES (?1, ?2)", [&id, &text]), |_| {}).await.unwrap();
}

async fn rows(database: &Database) -> Result<BTreeSet<(String, String)>> {
    database.read(|db| db.prepare("SELECT run_id, trace FROM messages")?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()).await
}

/// Into the database; the next commit begins the log again.
fn move_log(database: &Database) {
    let moved = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
    let (logged, moved) = Connection::open(database.path()).unwrap().query_row("PRAGMA wal_checkpoint(PASSIVE)", [], moved).unwrap();
    assert_eq!(logged, moved);
}

fn text(number: usize) -> String {
    // Every tenth needs pages of its own.
    format!("{number} ").repeat(if number.is_multiple_of(10) { 3000 } else { 20 })
}

impl Image {
    /// With `moved` rows in the database itself, and `logged` in the log, each in a commit of its own.
    async fn with(moved: usize, logged: usize) -> Self {
        let live = tempfile::tempdir().unwrap();
        let database = Database::open(live.path()).unwrap();
        let mut expected = BTreeSet::new();
        for number in 0..moved + logged {
            if number == moved {
                move_log(&database);
            }
            put(&database, format!("run {number}"), text(number)).await;
            expected.insert((format!("run {number}"), text(number)));
        }
        if logged == 0 {
            move_log(&database);
        }
        let folder = tempfile::tempdir().unwrap();
        let image = Self { database: folder.path().join("quayside.db"), folder, rows: expected };
        for ending in ["", "-wal", "-shm"] {
            fs::copy(beside(database.path(), ending), image.file(ending)).unwrap();
        }
        fs::copy(live.path().join("quayside.lock"), image.folder.path().join("quayside.lock")).unwrap();
        image
    }

    /// The same as an orderly end leaves it: one file.
    async fn closed(moved: usize) -> Self {
        let image = Self::with(moved, 1).await;
        Connection::open(&image.database).unwrap().pragma_update(None, "journal_mode", "DELETE").unwrap();
        image
    }

    fn copy(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in fs::read_dir(self.folder.path()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        Self { database: folder.path().join("quayside.db"), folder, rows: self.rows.clone() }
    }

    fn file(&self, ending: &str) -> PathBuf {
        beside(&self.database, ending)
    }

    fn change(&self, ending: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.file(ending)).unwrap();
        change(&mut bytes);
        fs::write(self.file(ending), bytes).unwrap();
    }

    /// Where the last commit in the log ends. What lies behind it is from before the log began again.
    fn end_of_log(&self) -> usize {
        let index = fs::read(self.file("-shm")).unwrap();
        32 + u32::from_ne_bytes(index[16..20].try_into().unwrap()) as usize * FRAME
    }

    fn bytes(&self) -> Vec<Option<Vec<u8>>> {
        ["", "-wal"].iter().map(|ending| fs::read(self.file(ending)).ok()).collect()
    }

    /// Refused with words, and nothing was touched.
    fn refused(&self, how: &str) -> String {
        let before = self.bytes();
        let error = Database::open(self.folder.path()).map(drop).expect_err(how);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{how}: {}", chain(&error));
        assert!(self.bytes() == before, "{how}: the files were changed");
        chain(&error)
    }

    async fn opened(&self) -> BTreeSet<(String, String)> {
        rows(&Database::open(self.folder.path()).unwrap()).await.unwrap()
    }
}

const PAGE: usize = 4096;
const FRAME: usize = 24 + PAGE;

#[tokio::test]
async fn what_a_killed_process_left_is_all_there() {
    let image = Image::with(30, 30).await;
    assert!(fs::metadata(image.file("-wal")).unwrap().len() > 30 * FRAME as u64, "the log has what was not moved");
    assert!(image.copy().opened().await == image.rows);
    let without_index = image.copy();
    fs::remove_file(without_index.file("-shm")).unwrap();
    assert!(without_index.opened().await == image.rows, "the index is made anew");
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_is_found_wherever_it_is() {
    let image = Image::with(5, 40).await;
    let length = image.end_of_log();
    let frames = (length - 32) / FRAME;
    let places = (0..frames).flat_map(|frame| [3, 20, 24 + 5, FRAME - 1].map(|at| 32 + frame * FRAME + at)).chain([1, 9, 17, 30]);
    for at in places {
        let hurt = image.copy();
        hurt.change("-wal", |bytes| bytes[at] ^= 0x10);
        assert!(hurt.refused(&format!("byte {at} of {length}")).contains("its log"));
        // Without the index only the last commit cannot be told from one that a power failure tore.
        fs::remove_file(hurt.file("-shm")).unwrap();
        if at < 32 + (frames - 20) * FRAME {
            hurt.refused(&format!("byte {at} of {length}, without the index"));
        }
    }
}

#[tokio::test]
async fn a_log_that_was_cut_is_found() {
    let image = Image::with(5, 20).await;
    let length = image.end_of_log();
    for left in [0, 10, 32, 32 + FRAME, length / 2, length - FRAME, length - 1] {
        let cut = image.copy();
        cut.change("-wal", |bytes| bytes.truncate(left));
        let words = cut.refused(&format!("cut to {left} of {length}"));
        assert!(words.contains("restore") && words.contains("docs/operations.md"), "{words}");
    }
    let gone = image.copy();
    fs::remove_file(gone.file("-wal")).unwrap();
    gone.refused("without its log");
    // What follows the last commit was never answered.
    let torn = image.copy();
    torn.change("-wal", |bytes| {
        bytes.truncate(length);
        bytes.extend_from_within(length - 3000..);
    });
    assert!(torn.opened().await == image.rows);
}

#[tokio::test]
async fn a_log_that_was_moved_already_is_not_missed() {
    let image = Image::with(20, 0).await;
    fs::write(image.file("-wal"), []).unwrap();
    assert!(image.opened().await == image.rows);
}

#[tokio::test]
async fn a_garbled_page_is_found_or_holds_nothing() {
    let image = Image::closed(90).await;
    let pages = fs::metadata(&image.database).unwrap().len() as usize / PAGE;
    assert!(pages > 40, "{pages} pages");
    let mut found = 0;
    for page in 0..pages {
        let hurt = image.copy();
        hurt.change("", |bytes| bytes[page * PAGE..(page + 1) * PAGE].fill(0xa5));
        match Database::open(hurt.folder.path()) {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "page {page}: {}", chain(&error));
                found += 1;
            }
            Ok(database) => assert!(rows(&database).await.unwrap() == image.rows, "page {page} was garbled unseen"),
        }
    }
    assert!(found > pages / 2, "{found} of {pages}");
    for at in [0, 16, 18, 19, 100, PAGE + 3, PAGE + 5] {
        let hurt = image.copy();
        hurt.change("", |bytes| bytes[at] ^= 0x41);
        hurt.refused(&format!("byte {at}"));
    }
}

#[tokio::test]
async fn a_cut_database_is_found() {
    let image = Image::closed(60).await;
    let length = fs::metadata(&image.database).unwrap().len();
    for left in [1, 100, PAGE as u64, length / 2, length - PAGE as u64] {
        let cut = image.copy();
        fs::File::options().write(true).open(&cut.database).unwrap().set_len(left).unwrap();
        cut.refused(&format!("cut to {left} of {length}"));
    }
}

#[tokio::test]
async fn an_emptied_or_missing_database_is_not_begun_anew() {
    for change in [|path: &Path| fs::write(path, []), |path: &Path| fs::write(path, [0]), |path: &Path| fs::remove_file(path)] {
        let image = Image::closed(10).await;
        change(&image.database).unwrap();
        let words = image.refused("no content");
        assert!(words.contains("quayside restore") && words.contains("quayside.lock"), "{words}");
        assert!(fs::metadata(&image.database).map_or(0, |file| file.len()) <= 1);
        // What the words say to do for a new beginning works.
        fs::remove_file(image.folder.path().join("quayside.lock")).unwrap();
        assert!(image.opened().await.is_empty());
    }
    // SQLite itself would remove the log of an empty database.
    let image = Image::with(5, 5).await;
    fs::write(&image.database, []).unwrap();
    fs::remove_file(image.folder.path().join("quayside.lock")).unwrap();
    image.refused("an emptied database with a log");
    assert!(fs::metadata(image.file("-wal")).unwrap().len() > 0);
}

#[tokio::test]
async fn files_of_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quayside.db");
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('precious')").unwrap();
    let before = fs::read(&path).unwrap();
    for version in [0, 2] {
        Connection::open(&path).unwrap().pragma_update(None, "user_version", version).unwrap();
        let error = Database::open(folder.path()).unwrap_err();
        assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("another program"), "{error}");
    }
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 0).unwrap();
    assert_eq!(fs::read(&path).unwrap().len(), before.len());
    let tables: i64 = Connection::open(&path).unwrap().query_row("SELECT count(*) FROM sqlite_master", [], |row| row.get(0)).unwrap();
    assert_eq!(tables, 1, "nothing was added");
}

#[tokio::test]
async fn an_older_schema_is_brought_up_and_a_newer_one_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quayside.db");
    let old = Connection::open(&path).unwrap();
    old.execute_batch(include_str!("0001_runs.sql")).unwrap();
    old.execute_batch("PRAGMA user_version = 1; INSERT INTO messages (run_id, trace) VALUES ('run_1', '{}')").unwrap();
    drop(old);
    let database = Database::open(folder.path()).unwrap();
    assert_eq!(rows(&database).await.unwrap().len(), 1);
    let newest = check::newest_schema().unwrap();
    let version = |db: &Connection| db.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0));
    assert_eq!(database.read(version).await.unwrap(), newest);
    database.write(move |db| db.pragma_update(None, "user_version", newest + 1), |()| {}).await.unwrap();
    let path = database.path().to_owned();
    let elsewhere = tempfile::tempdir().unwrap();
    for ending in ["", "-wal", "-shm"] {
        fs::copy(beside(&path, ending), beside(&elsewhere.path().join("quayside.db"), ending)).unwrap();
    }
    let words = Database::open(elsewhere.path()).unwrap_err().to_string();
    assert!(words.contains("newer Quayside") && words.contains(&format!("schema {}", newest + 1)), "{words}");
}

#[tokio::test]
async fn a_file_that_loses_its_name_ends_the_writing() {
    for ending in ["", "-wal"] {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        put(&database, "before".into(), "x".into()).await;
        let file = beside(database.path(), ending);
        fs::rename(&file, beside(&file, ".elsewhere")).unwrap();
        let write = || database.write(|db| db.execute("INSERT INTO messages (run_id, trace) VALUES ('after', 'x')", []), |_| {});
        assert_eq!(write().await.unwrap_err().kind(), ErrorKind::Corrupt, "{ending}");
        fs::rename(beside(&file, ".elsewhere"), &file).unwrap();
        assert_eq!(write().await.unwrap_err().kind(), ErrorKind::Corrupt, "{ending}: it stays so until somebody has looked");
        assert_eq!(database.ping().await.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

#[tokio::test]
async fn damage_that_is_met_at_run_time_ends_the_writing() {
    let image = Image::closed(400).await;
    let database = Database::open(image.folder.path()).unwrap();
    // Behind what the start has in its cache, and beyond what the cache of a reader holds.
    let length = fs::metadata(&image.database).unwrap().len() as usize;
    let file = fs::File::options().write(true).open(&image.database).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xa5; length - PAGE], PAGE as u64).unwrap();
    assert_eq!(rows(&database).await.unwrap_err().kind(), ErrorKind::Corrupt);
    let refused = database.write(|db| db.execute("UPDATE queue_length SET queued = queued", []), |_| {}).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    assert_eq!(database.ping().await.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_lock_of_another_process_is_waited_for_then_told_and_passes() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(folder.path()).unwrap();
    let other = Connection::open(database.path()).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let begun = std::time::Instant::now();
    let refused = database.write(|db| db.execute("UPDATE queue_length SET queued = queued", []), |_| {}).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{}", chain(&refused));
    assert!(begun.elapsed() >= BUSY_TIMEOUT);
    assert!(rows(&database).await.unwrap().is_empty(), "reading goes on");
    other.execute_batch("ROLLBACK").unwrap();
    assert!(database.file().unwrap().health.is_in_doubt());
    database.ping().await.unwrap();
    assert!(!database.file().unwrap().health.is_in_doubt(), "a ping that reached the disk ends the doubt");
}

#[tokio::test]
async fn the_reserve_is_left_to_what_was_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let free = examine::room(folder.path()).unwrap();
    let database = Database::open_with(folder.path(), free.saturating_mul(4)).unwrap();
    for refused in [database.refuse_new(), database.refuse_starting(), database.ping().await] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Full);
    }
    put(&database, "an end".into(), "x".into()).await;
    let folder = tempfile::tempdir().unwrap();
    // Between half of the reserve and all of it.
    let database = Database::open_with(folder.path(), free + free / 2).unwrap();
    assert!(database.refuse_new().is_err() && database.refuse_starting().is_ok());
    let folder = tempfile::tempdir().unwrap();
    assert!(Database::open_with(folder.path(), 1).unwrap().ping().await.is_ok());
}
