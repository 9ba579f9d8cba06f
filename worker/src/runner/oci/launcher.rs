//! A thread that starts the runtimes.
//!
//! `crun` refuses to run where version 2 of the control groups is mounted beside version 1, even when it has no group to
//! make. There this thread has a mount name space of its own in which version 2 is not mounted; nothing changes for anybody
//! else. A workspace that the worker mounts later does not appear there by itself: it is handed over, and taken back when the
//! container has it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError, mpsc};

use rustix::fd::OwnedFd;
use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree, unmount};
use rustix::thread::UnshareFlags;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::super::workspace;

/// Puts itself into control groups, then becomes the runtime: whatever that starts is in them from its first instruction.
/// A constant; paths and arguments are words of their own.
const ENTER: &str = r#"for entry; do shift; [ "$entry" = -- ] && break; echo 0 >"$entry" || exit 125; done; exec "$@""#;

/// What is to be started.
#[derive(Debug)]
pub(super) struct Start {
    /// Files of control groups that it writes itself into.
    pub entries: Vec<PathBuf>,
    /// The runtime and its arguments.
    pub command: Vec<std::ffi::OsString>,
    /// A mount that is handed over, and where the runtime is to find it.
    pub mount: Option<(OwnedFd, PathBuf)>,
}

enum Request {
    Start { start: Start, runtime: Handle, answer: oneshot::Sender<std::io::Result<Child>> },
    TakeBack(PathBuf),
}

/// Starts runtimes. Its thread begins with the first one and ends with it.
#[derive(Debug)]
pub(super) struct Launcher {
    /// A mount to be taken away from those that are started.
    hidden: Option<PathBuf>,
    requests: Mutex<Option<mpsc::Sender<Request>>>,
}

impl Launcher {
    /// One whose runtimes do not see what is mounted at `hidden`.
    pub(super) const fn new(hidden: Option<PathBuf>) -> Self {
        Self { hidden, requests: Mutex::new(None) }
    }

    /// Starts a runtime with three pipes.
    pub(super) async fn start(&self, start: Start) -> std::io::Result<Child> {
        let (answer, answered) = oneshot::channel();
        self.thread()?.send(Request::Start { start, runtime: Handle::current(), answer }).map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    /// Whether mounts must be handed over to be seen.
    pub(super) const fn is_apart(&self) -> bool {
        self.hidden.is_some()
    }

    /// Unmounts what was handed over: a container that has started has it by itself.
    pub(super) fn take_back(&self, mount: PathBuf) -> std::io::Result<()> {
        self.thread()?.send(Request::TakeBack(mount)).map_err(|_| ended())
    }

    fn thread(&self) -> std::io::Result<mpsc::Sender<Request>> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*requests {
            return Ok(sender.clone());
        }
        let (sender, receiver) = mpsc::channel::<Request>();
        let (ready, prepared) = mpsc::channel();
        let hidden = self.hidden.clone();
        std::thread::Builder::new().name("oci-launcher".to_owned()).spawn(move || {
            let outcome = hidden.as_deref().map_or(Ok(()), hide);
            let failed = outcome.is_err();
            if ready.send(outcome).is_err() || failed {
                return;
            }
            for request in receiver {
                match request {
                    Request::Start { start, runtime, answer } => {
                        let _nobody_waits = answer.send(spawn(start, &runtime));
                    }
                    Request::TakeBack(mount) => {
                        if let Err(error) = unmount(&mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                            tracing::warn!(%error, "a workspace that was handed over cannot be taken back");
                        }
                    }
                }
            }
        })?;
        prepared.recv().map_err(|_| ended())??;
        *requests = Some(sender.clone());
        Ok(sender)
    }
}

/// A mount of this worker to be handed over.
pub(super) fn detached(mount: &Path) -> std::io::Result<OwnedFd> {
    Ok(open_tree(CWD, mount, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

/// Takes a mount away from this thread and what it starts, with all that others have mounted as workspaces: what is
/// unmounted elsewhere would live on here.
fn hide(mount: &Path) -> std::io::Result<()> {
    #[expect(deprecated, reason = "what makes the call unsafe is a table of open files of one's own, which is not asked for")]
    rustix::thread::unshare(UnshareFlags::NEWNS)?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    unmount(mount, UnmountFlags::DETACH)?;
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    for mount in mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|mount| mount.starts_with(workspace::FOLDER)) {
        unmount(mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

fn spawn(start: Start, runtime: &Handle) -> std::io::Result<Child> {
    let _entered = runtime.enter();
    if let Some((mount, at)) = &start.mount {
        move_mount(mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(ENTER).arg("sh").args(&start.entries).arg("--").args(&start.command);
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Not in ours: Ctrl-C at a terminal is for the worker, which then drains.
    command.process_group(0);
    command.spawn()
}

fn ended() -> std::io::Error {
    std::io::Error::other("the thread that starts containers has ended")
}
