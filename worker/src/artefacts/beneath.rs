//! The only ways in which anything in a workspace is opened.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::path::Arg;

/// Not through a link of any kind, not out of the folder, not into another file system.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
/// A pipe without a writer must not hold the worker up, and a terminal must not become its own.
const ALWAYS: OFlags = OFlags::CLOEXEC.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// The workspace itself. Its path is the worker's, down to the last name.
pub(super) fn root(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | ALWAYS, Mode::empty())?)
}

/// Something in `folder`.
pub(super) fn open(folder: impl AsFd, name: impl Arg, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    openat2(folder, name, flags | ALWAYS, mode, RESOLVE)
}

/// A folder in `folder`.
pub(super) fn folder(folder: impl AsFd, name: impl Arg) -> rustix::io::Result<OwnedFd> {
    open(folder, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}
