//! Workspaces of the host, bound into containers of a real engine.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use quayside_worker::artefacts;
use quayside_worker::runner::LaunchSpec;
use quayside_worker::runner::workspace::Workspaces;

use super::docker::{OnDocker, python};
use super::{Behaviour, Fixture, check, end, read_all};

/// A runner with workspaces below a folder of its own. Tests of this kind need root, as the worker does.
fn fixture() -> (OnDocker, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let fixture = OnDocker::changed(|runner, instance| runner.with_workspaces(Workspaces::in_folder(folder.path(), instance)));
    (fixture, folder)
}

fn spec(fixture: &OnDocker, program: &str) -> LaunchSpec {
    let mut spec = fixture.spec(&Behaviour::Echo);
    spec.agent.command = python(program);
    spec
}

fn mounted_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).filter(|mount| mount.starts_with(folder)).collect()
}

#[tokio::test]
async fn what_a_program_leaves_is_seen_until_the_removal() {
    let (fixture, folder) = fixture();
    check(fixture, async |fixture| {
        let program =
            "import os; print(open('in').read(), os.getcwd()); os.mkdir('d'); open('d/out', 'w').write('left'); os.symlink('/etc/passwd', 'l')";
        let mut sandbox = fixture.runner().launch(&spec(fixture, &format!("import sys; sys.stdin.read(); {program}"))).await.unwrap();
        let root = sandbox.workspace().expect("a workspace of the host").to_owned();
        assert!(!artefacts::has_entries(&root).unwrap());
        let input = quayside_shared::store::files::RunFile::new("in".parse().unwrap(), b"came".to_vec());
        artefacts::place(&root, std::slice::from_ref(&input)).unwrap();
        sandbox.send("".into()).unwrap();
        let written = read_all(&mut *sandbox).await;
        assert_eq!(String::from_utf8_lossy(&written.stdout), "came /workspace\n", "{}", String::from_utf8_lossy(&written.stderr));
        assert_eq!(sandbox.wait().await.unwrap().code, 0);
        let found = artefacts::collect(&root, 1 << 20, &[input.entry()]).unwrap();
        assert_eq!(found.files.iter().map(|file| (file.path.as_str(), &*file.content)).collect::<Vec<_>>(), [("d/out", &b"left"[..])]);
        assert_eq!(std::fs::metadata(root.join("d/out")).unwrap().uid(), std::fs::metadata(&root).unwrap().uid());
        sandbox.remove().await.unwrap();
        assert!(!root.exists());
    })
    .await;
    assert_eq!(mounted_below(folder.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn what_a_program_writes_counts_against_its_memory() {
    let (fixture, _folder) = fixture();
    check(fixture, async |fixture| {
        let program = "for n in range(4):\n f = open(f'/workspace/{n}', 'wb')\n for _ in range(48): f.write(b'x' * (1 << 20))";
        let mut spec = spec(fixture, program);
        (spec.agent.memory, spec.agent.workspace) = (96 << 20, 512 << 20);
        let mut sandbox = fixture.runner().launch(&spec).await.unwrap();
        sandbox.send("".into()).unwrap();
        read_all(&mut *sandbox).await;
        assert!(sandbox.wait().await.unwrap().oom, "192 MiB of files in 96 MiB of memory");
        sandbox.remove().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_workspace_ends_where_it_should() {
    let (fixture, _folder) = fixture();
    check(fixture, async |fixture| {
        let program = "
import os
def tried(what):
    try: return what()
    except OSError as error: return error.strerror
def fill():
    with open('/workspace/f', 'wb') as f:
        for _ in range(9): f.write(b'x' * (1 << 20))
def many():
    for n in range(9000): os.close(os.open(f'/workspace/n{n}', os.O_CREAT | os.O_WRONLY))
print(tried(fill)); os.unlink('/workspace/f'); print(tried(many))
print(tried(lambda: os.listdir('/workspace/..')) == os.listdir('/'), os.stat('/workspace').st_uid == os.getuid())
";
        let mut spec = spec(fixture, program);
        spec.agent.workspace = 8 << 20;
        let mut sandbox = fixture.runner().launch(&spec).await.unwrap();
        sandbox.send("".into()).unwrap();
        let written = read_all(&mut *sandbox).await;
        let said = String::from_utf8_lossy(&written.stdout).into_owned();
        assert_eq!(said, "No space left on device\nNo space left on device\nTrue True\n", "{}", String::from_utf8_lossy(&written.stderr));
        end(sandbox).await;
    })
    .await;
}

#[tokio::test]
async fn a_sweep_takes_the_workspace_after_its_container() {
    let (fixture, folder) = fixture();
    check(fixture, async |fixture| {
        let (left, kept) = (spec(fixture, "import time; time.sleep(600)"), LaunchSpec { place: 1, ..spec(fixture, "import time; time.sleep(600)") });
        let alive = fixture.runner().launch(&kept).await.unwrap();
        drop(fixture.runner().launch(&left).await.unwrap());
        assert_eq!(mounted_below(folder.path()).len(), 2);
        assert_eq!(fixture.runner().sweep(&|key| *key == kept.key).await.unwrap(), 1);
        assert_eq!(mounted_below(folder.path()), [alive.workspace().unwrap().to_owned()]);
        end(alive).await;
        assert!(mounted_below(folder.path()).is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_launch_that_fails_leaves_no_workspace() {
    let (fixture, folder) = fixture();
    check(fixture, async |fixture| {
        for behaviour in [Behaviour::MissingProgram, Behaviour::MissingImage] {
            fixture.runner().launch(&fixture.spec(&behaviour)).await.unwrap_err();
            assert!(mounted_below(folder.path()).is_empty(), "{behaviour:?}");
        }
    })
    .await;
}
