//! Files: those that came with the message, and those that an attempt left behind.

use std::sync::Arc;
use std::time::Duration;

use quayside_shared::ids::RunId;
use quayside_shared::run::AttemptOutcome;
use quayside_shared::store::files::{Collected, FileList, LeftOut, RunFile};
use quayside_shared::store::{Lease, LeaseLost, Store};

use super::{Fixture, LEASE, alone, claim, ended, finish, new_run, submit, user, with_key};

fn file(path: &str, content: &[u8]) -> RunFile {
    RunFile::new(path.parse().unwrap(), content.to_vec())
}

/// More than fits into one part of any store, and different everywhere.
fn long(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn left(files: Vec<RunFile>) -> Arc<Collected> {
    Arc::new(Collected { files, skipped: [(LeftOut::Symlink, 2), (LeftOut::Name, 1)].into(), truncated: true })
}

async fn put(store: &dyn Store, lease: &Lease, files: Vec<RunFile>) {
    store.put_files(lease, left(files)).await.unwrap().unwrap();
}

async fn paths(store: &dyn Store, id: &RunId) -> Vec<String> {
    store.files(id).await.unwrap().expect("the run").files.into_iter().map(|entry| entry.path.into()).collect()
}

pub(crate) async fn files_read_back_as_they_were_left<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &id).await;
    let wanted = vec![
        file("a b/..evil/%2e%2e", b"\0\xff"),
        file("empty", b""),
        file("exact", &long(1 << 20)),
        file("long", &long((5 << 20) + 1)),
        file("한글/-rf", "text".as_bytes()),
    ];
    put(&*store, &lease, wanted.clone()).await;
    assert_eq!(store.files(&id).await.unwrap(), Some(FileList::default()), "not before the end");
    assert_eq!(store.file(&id, &wanted[0].path).await.unwrap(), None, "not before the end");
    finish(&*store, &lease).await;
    let list = store.files(&id).await.unwrap().unwrap();
    assert_eq!(list, left(wanted.clone()).list());
    for file in &wanted {
        let found = store.file(&id, &file.path).await.unwrap().expect("the file");
        assert!(found == *file, "{file:?} reads back as {found:?}");
    }
    assert_eq!(store.file(&id, &"a b".parse().unwrap()).await.unwrap(), None, "a folder is no file");
    drop(store);
    let fixture = fixture.restart().await;
    assert_eq!(fixture.store().files(&id).await.unwrap().unwrap(), list);
    assert!(fixture.store().file(&id, &wanted[3].path).await.unwrap().expect("the file") == wanted[3], "a restart keeps it");
}

pub(crate) async fn files_are_put_again_as_a_whole<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &id).await;
    put(&*store, &lease, vec![file("a", &long(2 << 20)), file("b", b"b")]).await;
    put(&*store, &lease, vec![file("a", b"again")]).await;
    put(&*store, &lease, vec![file("a", b"again")]).await;
    finish(&*store, &lease).await;
    assert_eq!(paths(&*store, &id).await, ["a"]);
    assert!(store.file(&id, &"a".parse().unwrap()).await.unwrap().unwrap() == file("a", b"again"));
    assert_eq!(store.file(&id, &"b".parse().unwrap()).await.unwrap(), None);
}

pub(crate) async fn files_of_a_lost_attempt_are_never_shown<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let id = submit(&*store, alone("u")).await;
    let old = claim(&*store, &id).await;
    put(&*store, &old, vec![file("old", b"old"), file("both", b"old")]).await;
    fixture.advance(LEASE * 2);
    store.sweep().await.unwrap();
    fixture.advance(Duration::from_secs(120));
    let new = claim(&*store, &id).await;
    assert_eq!(store.put_files(&old, left(vec![file("late", b"late")])).await.unwrap(), Err(LeaseLost));
    put(&*store, &new, vec![file("both", b"new")]).await;
    assert_eq!(store.put_files(&old, left(vec![file("both", b"late")])).await.unwrap(), Err(LeaseLost));
    finish(&*store, &new).await;
    assert_eq!(store.put_files(&new, left(vec![file("after", b"")])).await.unwrap(), Err(LeaseLost), "what has ended stays");
    assert_eq!(paths(&*store, &id).await, ["both"]);
    assert!(store.file(&id, &"both".parse().unwrap()).await.unwrap().unwrap() == file("both", b"new"));

    // A hand-back after the files were put, and a run that is given up: nothing of them is seen.
    let handed = submit(&*store, alone("u")).await;
    let lease = claim(&*store, &handed).await;
    put(&*store, &lease, vec![file("handed", b"")]).await;
    store.release(&lease, AttemptOutcome::Drained).await.unwrap().unwrap();
    store.cancel(&handed).await.unwrap().unwrap();
    assert_eq!(store.files(&handed).await.unwrap(), Some(FileList::default()));
    let given_up = submit(&*store, alone("u")).await;
    for _ in 0..3 {
        let lease = claim(&*store, &given_up).await;
        put(&*store, &lease, vec![file("lost", b"")]).await;
        fixture.advance(LEASE * 2);
        store.sweep().await.unwrap();
        fixture.advance(Duration::from_secs(120));
        store.sweep().await.unwrap();
    }
    assert!(super::get(&*store, &given_up).await.error.is_some(), "it is poison");
    assert_eq!(store.files(&given_up).await.unwrap(), Some(FileList::default()));
}

pub(crate) async fn a_failed_run_keeps_its_files<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    for outcome in [AttemptOutcome::ExitNonzero, AttemptOutcome::Oom, AttemptOutcome::TimedOut] {
        let id = submit(&*store, alone("u")).await;
        let lease = claim(&*store, &id).await;
        put(&*store, &lease, vec![file("core", b"why")]).await;
        store.finish(&lease, ended(outcome), None).await.unwrap().unwrap();
        assert_eq!(paths(&*store, &id).await, ["core"], "{outcome:?}");
    }
}

pub(crate) async fn inputs_come_with_their_run<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let sent = vec![file("data/in.csv", b"1,2\n"), file("long", &long(900 << 10))];
    let mut new = with_key(alone("u"), "key", 1);
    new.files.clone_from(&sent);
    let id = submit(&*store, new.clone()).await;
    new.id = RunId::random();
    assert_eq!(submit(&*store, new).await, id, "the key stands for it");
    assert!(store.inputs(&id).await.unwrap() == sent);
    assert_eq!(store.files(&id).await.unwrap(), Some(FileList::default()), "what came in did not come out");
    drop(store);
    let fixture = fixture.restart().await;
    let store = fixture.store();
    fixture.advance(LEASE * 2);
    store.sweep().await.unwrap();
    let lease = claim(&*store, &id).await;
    assert_eq!(super::get(&*store, &id).await.inputs, 2);
    assert!(store.inputs(&id).await.unwrap() == sent);
    put(&*store, &lease, vec![file("data/in.csv", b"changed")]).await;
    store.release(&lease, AttemptOutcome::Drained).await.unwrap().unwrap();
    assert!(store.inputs(&id).await.unwrap() == sent, "the next attempt gets what was sent");
    let none = submit(&*store, alone("u")).await;
    assert!(store.inputs(&none).await.unwrap().is_empty());
}

pub(crate) async fn files_go_with_their_run<F: Fixture>() {
    let fixture = F::open().await;
    let store = fixture.store();
    let mut new = new_run("u", "c");
    new.files = vec![file("in", &long(700 << 10))];
    let id = submit(&*store, new).await;
    let lease = claim(&*store, &id).await;
    put(&*store, &lease, vec![file("out", &long(3 << 20))]).await;
    finish(&*store, &lease).await;
    store.delete_conversation(&user("u"), &"c".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(store.files(&id).await.unwrap(), None, "at once");
    assert_eq!(store.file(&id, &"out".parse().unwrap()).await.unwrap(), None, "at once");
    store.sweep().await.unwrap();
    assert!(store.inputs(&id).await.unwrap().is_empty(), "removed");
    assert_eq!(store.files(&RunId::random()).await.unwrap(), None);
}
