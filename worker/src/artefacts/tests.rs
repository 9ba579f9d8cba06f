//! Hostile trees. What is judged is what comes out of them, and that nothing outside was read or written.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use quayside_shared::store::files::{COUNT_MAX, Collected, FILE_MAX, LeftOut, RunFile};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};

use super::*;

const PLENTY: u64 = 16 << 20;

fn tree() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn collected(root: &Path) -> Collected {
    collect(root, PLENTY, &[]).unwrap()
}

fn paths(collected: &Collected) -> Vec<&str> {
    collected.files.iter().map(|file| file.path.as_str()).collect()
}

fn input(path: &str, content: &str) -> RunFile {
    RunFile::new(path.parse().unwrap(), content.into())
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
}

#[test]
fn plain_files_come_out_in_the_order_of_their_paths() {
    let root = tree();
    for path in ["b", "a/z", "a/b/c", "a.txt"] {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, path.to_str().unwrap()).unwrap();
    }
    fs::write(root.path().join("empty"), "").unwrap();
    let found = collected(root.path());
    assert_eq!(paths(&found), ["a.txt", "a/b/c", "a/z", "b", "empty"]);
    assert_eq!(found.files[3].content, root.path().join("b").to_str().unwrap().as_bytes());
    assert!(found.skipped.is_empty() && !found.truncated);
}

#[test]
fn links_are_not_followed() {
    let (root, outside) = (tree(), tree());
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    for (name, target) in [
        ("passwd", Path::new("/etc/passwd")),
        ("environ", Path::new("/proc/self/environ")),
        ("up", Path::new("../../../../etc/hostname")),
        ("parent", Path::new("..")),
        ("rootdir", Path::new("/")),
        ("loop", Path::new("loop")),
        ("inner", Path::new("kept")),
        ("secret", &secret),
        ("outside", outside.path()),
    ] {
        symlink(target, root.path().join(name)).unwrap();
    }
    fs::write(root.path().join("kept"), "kept").unwrap();
    let found = collected(root.path());
    assert_eq!(paths(&found), ["kept"]);
    assert_eq!(found.skipped, [(LeftOut::Symlink, 9)].into());
}

#[test]
fn a_file_with_another_name_is_left_out() {
    let (root, outside) = (tree(), tree());
    fs::write(outside.path().join("secret"), "secret").unwrap();
    fs::hard_link(outside.path().join("secret"), root.path().join("mine")).unwrap();
    let found = collected(root.path());
    assert_eq!((paths(&found), &found.skipped), (vec![], &[(LeftOut::Hardlink, 1)].into()));
}

#[test]
fn pipes_and_sockets_hold_nobody_up() {
    let root = tree();
    fifo(&root.path().join("pipe"));
    let _listening = UnixListener::bind(root.path().join("socket")).unwrap();
    let begun = Instant::now();
    let found = collected(root.path());
    assert_eq!(found.skipped, [(LeftOut::Special, 2)].into());
    assert!(found.files.is_empty() && begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn what_belongs_to_somebody_else_is_left_out() {
    let root = tree();
    let path = root.path().join("theirs");
    fs::write(&path, "x").unwrap();
    // Only root can give files away; for anybody else there is nothing to look at.
    if std::os::unix::fs::chown(&path, Some(fs::metadata(root.path()).unwrap().uid() + 1), None).is_ok() {
        assert_eq!(collected(root.path()).skipped, [(LeftOut::Owner, 1)].into());
    }
}

#[test]
fn names_that_cannot_be_shown_are_counted() {
    let root = tree();
    let names: [&[u8]; 12] = [
        b"-rf",
        b"a\nb",
        b"\xff\xfe",
        b"..evil",
        b" ",
        b"%2e%2e%2fetc",
        b"..\\..\\x",
        b"\"><script>",
        b"\x1b[2J",
        "\u{202e}gnp.exe".as_bytes(),
        b"\x7f",
        &[b'x'; 255],
    ];
    for name in names {
        fs::write(root.path().join(OsStr::from_bytes(name)), "n").unwrap();
    }
    fs::create_dir(root.path().join("bad\nfolder")).unwrap();
    fs::write(root.path().join("bad\nfolder/good"), "n").unwrap();
    let found = collected(root.path());
    let long = "x".repeat(255);
    assert_eq!(paths(&found), [" ", "\"><script>", "%2e%2e%2fetc", "-rf", "..\\..\\x", "..evil", long.as_str()]);
    assert_eq!(found.skipped, [(LeftOut::Name, 6)].into());
}

#[test]
fn what_is_too_deep_is_not_entered() {
    let root = tree();
    let mut folder = root.path().to_owned();
    for depth in 1..=40 {
        fs::write(folder.join("file"), depth.to_string()).unwrap();
        folder = folder.join("d");
        fs::create_dir(&folder).unwrap();
    }
    let found = collected(root.path());
    assert_eq!(found.files.len(), 8);
    assert_eq!(found.files[0].path.as_str(), "d/d/d/d/d/d/d/file");
    assert_eq!((&found.skipped, found.truncated), (&[(LeftOut::Depth, 1)].into(), true));
}

#[test]
fn the_number_of_files_and_of_looks_is_bounded() {
    let root = tree();
    for number in 0..20_000 {
        fs::File::create(root.path().join(format!("f{number:06}"))).unwrap();
    }
    let begun = Instant::now();
    let found = collected(root.path());
    assert_eq!((found.files.len(), found.truncated), (COUNT_MAX, true));
    assert_eq!(found.skipped, [(LeftOut::Count, 10_000 - COUNT_MAX as u64)].into());
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn long_files_are_left_out_without_being_read() {
    let root = tree();
    // A file system may not take a file of 1 TiB; then it cannot have one either.
    let sparse = fs::File::create(root.path().join("sparse")).unwrap();
    sparse.set_len(1 << 40).or_else(|_| sparse.set_len(1 << 34)).unwrap();
    fs::File::create(root.path().join("over")).unwrap().set_len(FILE_MAX + 1).unwrap();
    fs::write(root.path().join("small"), "s").unwrap();
    let begun = Instant::now();
    let found = collected(root.path());
    assert_eq!(paths(&found), ["small"]);
    assert_eq!((&found.skipped, found.truncated), (&[(LeftOut::FileSize, 2)].into(), true));
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn all_files_together_are_bounded() {
    let root = tree();
    for (name, bytes) in [("a", 600), ("b", 500), ("c", 400)] {
        fs::write(root.path().join(name), "x".repeat(bytes)).unwrap();
    }
    let found = collect(root.path(), 1000, &[]).unwrap();
    assert_eq!(paths(&found), ["a", "c"]);
    assert_eq!((&found.skipped, found.truncated), (&[(LeftOut::TotalSize, 1)].into(), true));
}

#[test]
fn a_file_that_grows_while_it_is_read_is_cut_off_or_left_out() {
    let root = tree();
    let path = root.path().join("grow");
    fs::write(&path, "g").unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::Write;
            let mut file = fs::File::options().append(true).open(&path).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) && file.metadata().unwrap().len() < 4 * FILE_MAX {
                file.write_all(&[b'g'; 65_536]).unwrap();
            }
        });
        for _ in 0..50 {
            let found = collect(root.path(), 1 << 20, &[]).unwrap();
            assert!(found.files.iter().all(|file| file.content.len() <= 1 << 20));
            assert_eq!(found.files.is_empty(), !found.skipped.is_empty());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

/// Files, links to outside and pipes take each other's place under the collector's hands.
#[test]
fn a_tree_that_changes_under_the_hands_gives_nothing_away() {
    let (root, outside) = (tree(), tree());
    fs::create_dir(outside.path().join("folder")).unwrap();
    for path in ["secret", "folder/file"] {
        fs::write(outside.path().join(path), "secret").unwrap();
    }
    let here = |name: &str| root.path().join(name);
    for folder in ["folder", "pipe"] {
        fs::create_dir(here(folder)).unwrap();
    }
    for path in ["file", "folder/file", "pipe/file"] {
        fs::write(here(path), "mine").unwrap();
    }
    symlink(outside.path().join("secret"), here("link")).unwrap();
    symlink(outside.path().join("folder"), here("link to folder")).unwrap();
    fifo(&here("pipe/pipe"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let betrayed = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for (one, other) in [("file", "link"), ("folder", "link to folder"), ("pipe/file", "pipe/pipe")] {
                    renameat_with(CWD, here(one), CWD, here(other), RenameFlags::EXCHANGE).unwrap();
                }
            }
        });
        let until = Instant::now() + Duration::from_secs(2);
        let mut betrayed = None;
        while betrayed.is_none() && Instant::now() < until {
            betrayed = collected(root.path()).files.into_iter().find(|file| file.content != b"mine");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        betrayed
    });
    assert_eq!(betrayed, None);
}

#[test]
fn an_empty_workspace_is_known() {
    let root = tree();
    assert!(!has_entries(root.path()).unwrap());
    symlink("/nowhere", root.path().join("x")).unwrap();
    assert!(has_entries(root.path()).unwrap());
    assert!(has_entries(&root.path().join("x")).is_err() && collect(&root.path().join("x"), 1, &[]).is_err(), "the root is no link");
}

#[test]
fn inputs_are_put_in_place_and_are_no_news() {
    let root = tree();
    let files = [input("data/deep/in.csv", "1,2"), input("top", "t")];
    place(root.path(), &files).unwrap();
    assert_eq!(fs::read_to_string(root.path().join("data/deep/in.csv")).unwrap(), "1,2");
    assert_eq!(fs::metadata(root.path().join("top")).unwrap().permissions().mode() & 0o777, 0o644);
    let known: Vec<_> = files.iter().map(RunFile::entry).collect();
    assert!(collect(root.path(), PLENTY, &known).unwrap().is_empty());
    fs::write(root.path().join("top"), "changed").unwrap();
    assert_eq!(paths(&collect(root.path(), PLENTY, &known).unwrap()), ["top"]);
    // The next message of a kept session brings it again.
    place(root.path(), &files).unwrap();
    assert_eq!(fs::read_to_string(root.path().join("top")).unwrap(), "t");
}

#[test]
fn inputs_are_written_nowhere_else() {
    let (root, outside) = (tree(), tree());
    fs::write(outside.path().join("victim"), "untouched").unwrap();
    symlink(outside.path(), root.path().join("folder")).unwrap();
    symlink(outside.path().join("victim"), root.path().join("link")).unwrap();
    symlink("..", root.path().join("up")).unwrap();
    fs::create_dir(root.path().join("taken")).unwrap();
    fifo(&root.path().join("pipe"));
    fs::hard_link(outside.path().join("victim"), root.path().join("second")).unwrap();
    for refused in ["folder/victim", "folder/new", "up/new", "link/x", "taken", "pipe/x"] {
        let error = place(root.path(), &[input(refused, "written")]).unwrap_err();
        assert!(error.to_string().contains(refused), "{error}");
    }
    for replaced in ["link", "pipe", "second"] {
        place(root.path(), &[input(replaced, "written")]).unwrap();
        assert_eq!(fs::read_to_string(root.path().join(replaced)).unwrap(), "written");
        assert!(fs::symlink_metadata(root.path().join(replaced)).unwrap().is_file());
    }
    assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}
