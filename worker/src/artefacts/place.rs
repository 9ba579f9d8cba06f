//! Files that come with a message, put into a workspace before the request.
//!
//! The container may be running already, and in a kept session a stranger has been at work there. Whatever stands in the
//! way is an error or is removed, never followed; what is made belongs to the container.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use quayside_shared::store::files::{FilePath, RunFile};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, fchown, fstat, mkdirat, unlinkat};
use rustix::io::Errno;

use super::beneath;

/// A file that could not be put where it belongs.
#[derive(Debug, thiserror::Error)]
#[error("the file `{path}` cannot be put into the workspace")]
pub struct NotPlaced {
    path: FilePath,
    #[source]
    cause: io::Error,
}

/// Writes `files` below `root`, with the folders on their way. They belong to whom `root` belongs to.
///
/// # Errors
/// With the first file that cannot be written: no room, or something in its way.
pub fn place(root: &Path, files: &[RunFile]) -> Result<(), NotPlaced> {
    for file in files {
        put(root, file).map_err(|cause| NotPlaced { path: file.path.clone(), cause })?;
    }
    Ok(())
}

fn put(root: &Path, file: &RunFile) -> io::Result<()> {
    let mut folder = beneath::root(root)?;
    let owner = Owner::of(&folder)?;
    let (folders, name) = file.path.split();
    for name in folders {
        let made = match mkdirat(&folder, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        folder = beneath::folder(&folder, name)?;
        if made {
            owner.own(&folder)?;
        }
    }
    match unlinkat(&folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let made = beneath::open(&folder, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, Mode::from_raw_mode(0o644))?;
    owner.own(&made)?;
    File::from(made).write_all(&file.content)
}

struct Owner(Uid, Gid);

impl Owner {
    fn of(root: &OwnedFd) -> io::Result<Self> {
        let seen = fstat(root)?;
        Ok(Self(Uid::from_raw(seen.st_uid), Gid::from_raw(seen.st_gid)))
    }

    /// By what is open, not by a name: between the two somebody may have come.
    fn own(&self, made: impl AsFd) -> io::Result<()> {
        Ok(fchown(made, Some(self.0), Some(self.1))?)
    }
}
