//! The host's side of a container's `/workspace`, where the worker may mount.
//!
//! Each is a file system in memory of its own, mounted at `<folder>/<instance>/<container>`, of bounded size and number of
//! files, that belongs to the container's uid; the adapter binds it into the container and nowhere else. What a container
//! writes there is charged to its own memory limit, as everywhere in memory. It lives from before the container is made
//! until after it is gone: what is left in it can be read then, and no engine has a say in that.
//!
//! What a killed worker leaves behind is named like its container, and goes after it.

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use quayside_shared::ids::RunId;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::ContainerKey;

/// Where workspaces are mounted.
pub const FOLDER: &str = "/run/quayside/workspaces";
/// Files in one: a size alone does not bound them.
const INODES: u32 = 8192;

/// The workspaces of one worker.
#[derive(Debug)]
pub struct Workspaces {
    folder: PathBuf,
}

impl Workspaces {
    /// Those of the worker `instance`, below [`FOLDER`].
    #[must_use]
    pub fn of(instance: &str) -> Self {
        Self::in_folder(Path::new(FOLDER), instance)
    }

    /// Those of the worker `instance`, below `folder`.
    #[must_use]
    pub fn in_folder(folder: &Path, instance: &str) -> Self {
        let is_name = Path::new(instance).components().eq([Component::Normal(instance.as_ref())]);
        // A name that leads elsewhere is a mistake of whoever configured it; it ends in a folder that nothing is swept from.
        Self { folder: folder.join(if is_name { instance } else { "nameless" }) }
    }

    /// Shows by doing it that this process may mount.
    ///
    /// # Errors
    /// When it may not: it is not root, or in a container.
    pub fn prove(&self) -> io::Result<()> {
        self.make(&ContainerKey::Run { run_id: RunId::random(), epoch: 0 }, 1 << 20, 0)?.remove()
    }

    /// Mounts an empty one of `bytes` for the container `key`, which runs as `uid`. One that an earlier try left is gone then.
    ///
    /// # Errors
    /// When it cannot be mounted; nothing is left of it.
    pub fn make(&self, key: &ContainerKey, bytes: u64, uid: u32) -> io::Result<Workspace> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let path = self.folder.join(key.name());
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                clear(&path)?;
                DirBuilder::new().mode(0o700).create(&path)?;
            }
            made => made?,
        }
        let options = CString::new(format!("size={bytes},nr_inodes={INODES},mode=0700,uid={uid},gid={uid}"))?;
        if let Err(error) = mount("quayside", &path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str()) {
            fs::remove_dir(&path)?;
            return Err(error.into());
        }
        Ok(Workspace { path })
    }

    /// Removes all whose container `live` does not know; how many. Their containers must be gone.
    ///
    /// # Errors
    /// With the first that could not be removed, when all were tried.
    pub fn sweep(&self, live: &dyn Fn(&ContainerKey) -> bool) -> io::Result<usize> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let (mut removed, mut failed) = (0, None);
        for entry in entries {
            let entry = entry?;
            // A name that cannot be read names no container that could be alive.
            let key: Option<ContainerKey> = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if key.is_some_and(|key| live(&key)) {
                continue;
            }
            match clear(&entry.path()) {
                Ok(()) => removed += 1,
                Err(error) => failed = Some(failed.unwrap_or(error)),
            }
        }
        failed.map_or(Ok(removed), Err)
    }
}

impl Drop for Workspaces {
    /// A worker that ends leaves no folder behind, unless something is in it.
    fn drop(&mut self) {
        let _not_empty_or_absent = fs::remove_dir(&self.folder);
    }
}

/// One mounted workspace. It stays until [`Workspace::remove`]; one that was dropped is the sweeper's.
#[derive(Debug)]
pub struct Workspace {
    path: PathBuf,
}

impl Workspace {
    /// Where the host sees it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts it, with all that is in it. Its container must be gone.
    ///
    /// # Errors
    /// When it cannot be unmounted; the sweeper tries again.
    pub fn remove(self) -> io::Result<()> {
        clear(&self.path)
    }
}

/// Detached, so that somebody who looks at it cannot keep it; the memory goes with the last one that has it open.
fn clear(path: &Path) -> io::Result<()> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Mounted over each other, should that ever have happened.
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
#[path = "workspace_tests.rs"]
mod tests;
