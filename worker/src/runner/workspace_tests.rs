//! Mounts for real, where this process may; where it may not, that is what is checked.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use quayside_shared::ids::RunId;

use super::*;

fn key() -> ContainerKey {
    ContainerKey::Run { run_id: RunId::random(), epoch: 1 }
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

/// `None` where this process may not mount.
fn workspaces(folder: &Path) -> Option<Workspaces> {
    let workspaces = Workspaces::in_folder(folder, "instance");
    let may = workspaces.prove();
    assert_eq!(may.is_ok(), rustix::process::geteuid().is_root(), "{may:?}");
    may.is_ok().then_some(workspaces)
}

#[test]
fn a_workspace_is_the_containers_own_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let Some(workspaces) = workspaces(folder.path()) else { return };
    let workspace = workspaces.make(&key(), 1 << 20, 100_007).unwrap();
    let path = workspace.path().to_owned();
    let seen = fs::metadata(&path).unwrap();
    assert_eq!((seen.uid(), seen.gid(), seen.permissions().mode() & 0o7777), (100_007, 100_007, 0o700));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(path.to_str().unwrap())).unwrap();
    assert!(line.contains("nosuid") && line.contains("nodev") && line.contains("nr_inodes=8192"), "{line}");
    let full = fs::write(path.join("large"), vec![0; 2 << 20]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    workspace.remove().unwrap();
    assert!(!is_mounted(&path) && !path.exists());
}

#[test]
fn a_second_try_finds_it_empty() {
    let folder = tempfile::tempdir().unwrap();
    let Some(workspaces) = workspaces(folder.path()) else { return };
    let key = key();
    let first = workspaces.make(&key, 1 << 20, 0).unwrap();
    fs::write(first.path().join("left"), "x").unwrap();
    let second = workspaces.make(&key, 1 << 20, 0).unwrap();
    assert_eq!(fs::read_dir(second.path()).unwrap().count(), 0);
    second.remove().unwrap();
    assert!(!is_mounted(first.path()), "the first is gone with it");
}

#[test]
fn what_nobody_knows_is_swept() {
    let folder = tempfile::tempdir().unwrap();
    let Some(workspaces) = workspaces(folder.path()) else { return };
    let (alive, dead) = (key(), key());
    let kept = workspaces.make(&alive, 1 << 20, 0).unwrap();
    let left = workspaces.make(&dead, 1 << 20, 0).unwrap();
    fs::write(left.path().join("file"), "x").unwrap();
    let held = fs::File::open(left.path().join("file")).unwrap();
    let others = Workspaces::in_folder(folder.path(), "another").make(&dead, 1 << 20, 0).unwrap();
    assert_eq!(workspaces.sweep(&|key| *key == alive).unwrap(), 1);
    assert!(is_mounted(kept.path()) && is_mounted(others.path()) && !is_mounted(left.path()));
    drop(held);
    assert_eq!(workspaces.sweep(&|_| false).unwrap(), 1);
    assert!(!is_mounted(kept.path()));
    others.remove().unwrap();
    assert_eq!(Workspaces::in_folder(folder.path(), "never").sweep(&|_| false).unwrap(), 0);
}

#[test]
fn an_instance_leads_nowhere_else() {
    for bad in ["..", "a/b", "/etc", "", "."] {
        assert_eq!(Workspaces::in_folder(Path::new("/x"), bad).folder, Path::new("/x/nameless"), "{bad}");
    }
}
