use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn open() -> (tempfile::TempDir, Database) {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(folder.path()).unwrap();
    (folder, database)
}

async fn insert(database: &Database, run_id: &str) -> Result<usize> {
    let run_id = run_id.to_owned();
    database.write(move |db| db.execute("INSERT INTO messages (run_id, trace) VALUES (?1, '{}')", [&run_id]), |_| {}).await
}

async fn count(database: &Database) -> i64 {
    database.read(|db| db.query_row("SELECT count(*) FROM messages", [], |row| row.get(0))).await.unwrap()
}

#[tokio::test]
async fn commits_are_durable_against_power_loss() {
    let (_folder, database) = open();
    let settings = |db: &Connection| {
        let get = |name| db.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0));
        Ok((get("journal_mode")?, get("synchronous")?, get("foreign_keys")?))
    };
    let (journal, synchronous, foreign_keys) = database.write(settings, |_| {}).await.unwrap();
    assert_eq!(journal, rusqlite::types::Value::Text("wal".into()));
    assert_eq!(synchronous, rusqlite::types::Value::Integer(2), "FULL");
    assert_eq!(foreign_keys, rusqlite::types::Value::Integer(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_does_not_take_its_neighbours_with_it() {
    let (_folder, database) = open();
    let writes: Vec<_> = (0..100)
        .map(|number| {
            let database = database.clone();
            tokio::spawn(async move {
                let half_done = move |db: &Connection| {
                    db.execute("INSERT INTO messages (run_id, trace) VALUES (?1, '{}')", [format!("run {number}")])?;
                    if number % 3 == 0 { db.execute("INSERT INTO no_such_table VALUES (1)", []) } else { Ok(1) }
                };
                database.write(half_done, |_| {}).await.is_ok()
            })
        })
        .collect();
    let mut succeeded = 0;
    for write in writes {
        succeeded += i64::from(write.await.unwrap());
    }
    assert_eq!((succeeded, count(&database).await), (66, 66), "nothing half-done, nothing lost");
}

#[tokio::test]
async fn what_follows_a_commit_happens_although_nobody_waits() {
    let (_folder, database) = open();
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let write = database.write(
        |_| Ok(()),
        move |()| {
            counter.fetch_add(1, Ordering::SeqCst);
        },
    );
    // Polled once, so that it is sent, then abandoned like a request whose client hung up.
    assert!(futures_poll_once(write).await.is_none_or(|result| result.is_ok()));
    insert(&database, "a later one").await.unwrap();
    // Groups are answered in their order, so the earlier write's turn has been.
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

async fn futures_poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(move |context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn a_full_disk_is_told_and_recovers() {
    let (_folder, database) = open();
    let limit = |pages: i64| move |db: &Connection| db.pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0));
    let pages = database.write(limit(1), |_| {}).await.unwrap();
    let mut refused = None;
    for number in 0..10_000 {
        if let Err(error) = insert(&database, &format!("{number} {}", "x".repeat(1000))).await {
            refused = Some(error);
            break;
        }
    }
    assert_eq!(refused.expect("a full database").kind(), ErrorKind::Full);
    let before = count(&database).await;
    database.write(limit(pages + 1000), |_| {}).await.unwrap();
    insert(&database, "again").await.unwrap();
    assert_eq!(count(&database).await, before + 1);
}

#[tokio::test]
async fn a_folder_belongs_to_one_process() {
    let (folder, _database) = open();
    let error = Database::open(folder.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("another Quayside process"), "{error}");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quayside.db");
    std::fs::File::create(&path).unwrap().write_all(&b"this is somebody's precious file. ".repeat(100)).unwrap();
    let before = std::fs::read(&path).unwrap();
    assert_eq!(Database::open(folder.path()).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_database_from_the_future_is_refused() {
    let (folder, database) = open();
    database.write(|db| db.pragma_update(None, "user_version", 99), |()| {}).await.unwrap();
    let path = folder.path().to_owned();
    drop(database);
    let begun = std::time::Instant::now();
    let error = loop {
        let error = Database::open(&path).unwrap_err();
        if error.kind() != ErrorKind::Unavailable || begun.elapsed() > Duration::from_secs(10) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_database_in_memory_writes_all_or_nothing_and_at_once() {
    let database = Database::in_memory().unwrap();
    assert_eq!(insert(&database, "one").await.unwrap(), 1);
    let half_done = |db: &Connection| {
        db.execute("INSERT INTO messages (run_id, trace) VALUES ('two', '{}')", [])?;
        db.execute("INSERT INTO no_such_table VALUES (1)", [])
    };
    assert!(database.write(half_done, |_| panic!("nothing was committed")).await.is_err());
    let mut counting = std::pin::pin!(count(&database));
    assert_eq!(futures::FutureExt::now_or_never(&mut counting), Some(1));
}
