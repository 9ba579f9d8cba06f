//! The files of a run, as the host sees them in its workspace.
//!
//! A stranger wrote there. Everything is opened beneath the workspace's own folder with `openat2`: no link is followed, no
//! mount is crossed, nothing is waited for, and what was opened is looked at before it is believed. Names are read as bytes
//! and become a path only when they can be shown.

mod beneath;
mod collect;
mod place;

use std::io;
use std::path::Path;

use rustix::fs::Dir;

pub use collect::collect;
pub use place::place;

/// Whether anything is in the workspace at `root`.
///
/// # Errors
/// When it cannot be read.
pub fn has_entries(root: &Path) -> io::Result<bool> {
    let mut entries = Dir::new(beneath::root(root)?)?;
    while let Some(entry) = entries.read() {
        if !is_dots(entry?.file_name().to_bytes()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_dots(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

#[cfg(test)]
#[path = "artefacts/tests.rs"]
mod tests;
