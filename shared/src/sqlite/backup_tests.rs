//! Copies made while the file is written, from what a dead process left, and from what is damaged.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::backup::{backup, restore, salvage};
use super::examine::examine;
use super::folder::beside;
use super::*;

async fn put(database: &Database, id: &str) {
    let id = id.to_owned();
    database.write(move |db| db.execute("INSERT INTO messages (run_id, trace) VALUES (?1, '{}')", [&id]), |_| {}).await.unwrap();
}

async fn ids(database: &Database) -> Vec<String> {
    database.read(|db| db.prepare("SELECT run_id FROM messages ORDER BY pk")?.query_map([], |row| row.get(0))?.collect()).await.unwrap()
}

/// As `kill -9` leaves it.
fn crash_image(of: &Database, into: &Path) {
    for ending in ["", "-wal", "-shm"] {
        fs::copy(beside(of.path(), ending), beside(&into.join("quayside.db"), ending)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_busy_database_has_all_that_was_committed_before() {
    let (folder, copies, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let database = Database::open(folder.path()).unwrap();
    let (written, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = tokio::spawn({
        let (database, written, stop) = (database.clone(), Arc::clone(&written), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::SeqCst) {
                put(&database, &written.load(Ordering::SeqCst).to_string()).await;
                written.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    for round in 0..5 {
        while written.load(Ordering::SeqCst) < (round + 1) * 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let before = written.load(Ordering::SeqCst);
        let file = copies.path().join(round.to_string());
        let (from, to) = (folder.path().to_owned(), file.clone());
        tokio::task::spawn_blocking(move || backup(&from, &to).unwrap()).await.unwrap();
        let place = new.path().join(round.to_string());
        assert_eq!(restore(&place, &file).unwrap().1, None);
        let restored = ids(&Database::open(&place).unwrap()).await;
        assert!(restored.len() as u64 >= before, "{} of {before}", restored.len());
        assert_eq!(restored, (0..restored.len()).map(|number| number.to_string()).collect::<Vec<_>>(), "a prefix, without a gap");
    }
    stop.store(true, Ordering::SeqCst);
    writer.await.unwrap();
    let names: Vec<_> = fs::read_dir(copies.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names.len(), 5, "nothing but the copies: {names:?}");
}

#[tokio::test]
async fn restoring_keeps_the_old_files_and_refuses_what_it_should() {
    let (folder, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let database = Database::open(folder.path()).unwrap();
    put(&database, "early").await;
    let file = copies.path().join("backup.db");
    let contents = backup(folder.path(), &file).unwrap();
    assert_eq!((contents.runs, contents.schema), (0, check::newest_schema().unwrap()));
    assert!(backup(folder.path(), &file).unwrap_err().to_string().contains("not overwritten"));
    put(&database, "late").await;
    let words = restore(folder.path(), &file).unwrap_err().to_string();
    assert!(words.contains("another Quayside process"), "{words}");

    let stopped = tempfile::tempdir().unwrap();
    crash_image(&database, stopped.path());
    for (name, content) in [("text", b"not a database at all, but long enough to be read as one".repeat(40)), ("empty", Vec::new())] {
        let wrong = copies.path().join(name);
        fs::write(&wrong, content).unwrap();
        assert_eq!(restore(stopped.path(), &wrong).unwrap_err().kind(), ErrorKind::Corrupt, "{name}");
    }
    let hurt = copies.path().join("hurt");
    let mut bytes = fs::read(&file).unwrap();
    bytes[4096..8192].fill(0xa5);
    fs::write(&hurt, bytes).unwrap();
    assert_eq!(restore(stopped.path(), &hurt).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(restore(&stopped.path().join("new"), &copies.path().join("nothing")).is_err());
    assert!(!stopped.path().join("new").exists());
    assert_eq!(
        fs::read_dir(stopped.path()).unwrap().filter(|file| file.as_ref().unwrap().file_name() != "quayside.lock").count(),
        3,
        "nothing was changed"
    );

    let (_, kept) = restore(stopped.path(), &file).unwrap();
    let (_, kept_too) = restore(stopped.path(), &file).unwrap();
    let (kept, kept_too) = (kept.unwrap(), kept_too.unwrap());
    assert_ne!(kept, kept_too, "an earlier one is not overwritten");
    assert_eq!(ids(&Database::open(stopped.path()).unwrap()).await, ["early"]);
    // The old one is whole, with its log: it can be put back in the same way.
    let again = tempfile::tempdir().unwrap();
    restore(again.path(), &kept).unwrap();
    assert_eq!(ids(&Database::open(again.path()).unwrap()).await, ["early", "late"]);
}

#[tokio::test]
async fn a_damaged_log_is_not_copied_in_silence_but_can_be_salvaged() {
    let (live, folder, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let database = Database::open(live.path()).unwrap();
    for number in 0..20 {
        put(&database, &number.to_string()).await;
    }
    let file = copies.path().join("salvaged");
    assert_eq!(salvage(live.path(), &file).unwrap_err().kind(), ErrorKind::Unavailable, "a server runs");
    crash_image(&database, folder.path());
    let wal = folder.path().join("quayside.db-wal");
    let mut bytes = fs::read(&wal).unwrap();
    let last = bytes.len() - 2000;
    bytes[last] ^= 1;
    fs::write(&wal, bytes).unwrap();
    assert_eq!(backup(folder.path(), &file).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(examine(folder.path()).unwrap_err().kind(), ErrorKind::Corrupt);
    salvage(folder.path(), &file).unwrap();
    assert_eq!(Database::open(folder.path()).unwrap_err().kind(), ErrorKind::Corrupt, "the evidence is still there");
    restore(folder.path(), &file).unwrap();
    let left = ids(&Database::open(folder.path()).unwrap()).await;
    assert_eq!(left, (0..19).map(|number| number.to_string()).collect::<Vec<_>>(), "all but the damaged commit");
    assert_eq!(fs::read_dir(copies.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn an_examination_tells_what_is_there_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let nothing = examine(folder.path()).unwrap();
    assert!(nothing.contents.is_none() && !nothing.served);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let database = Database::open(folder.path()).unwrap();
    put(&database, "x").await;
    let served = examine(folder.path()).unwrap();
    assert!(served.served && served.contents.unwrap().runs == 0);
    served.check().unwrap();
    let stopped = tempfile::tempdir().unwrap();
    crash_image(&database, stopped.path());
    let found = examine(stopped.path()).unwrap();
    assert!(!found.served && found.contents.is_some());
    found.check().unwrap();
    assert_eq!(Database::open(stopped.path()).unwrap_err().kind(), ErrorKind::Unavailable, "held while it is looked at");
    drop(found);
    assert_eq!(ids(&Database::open(stopped.path()).unwrap()).await, ["x"]);
}
