//! What is left in a workspace, within limits, in an order that does not depend on chance.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use quayside_shared::store::files::{COUNT_MAX, Collected, DEPTH_MAX, FILE_MAX, FileEntry, LeftOut, RunFile, is_name};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, statat};
use rustix::io::Errno;

use super::{beneath, is_dots};

/// Entries of all folders that are looked at.
const ENTRIES_MAX: usize = 10_000;
/// No tree within the limits takes as long.
const TIME: Duration = Duration::from_secs(5);

/// The files below `root`, which belong to whom `root` belongs to, at most `bytes` of them in all. Those in `known` with
/// the same content are no news and left out without a word. To be called when nobody writes there any more; what
/// changes all the same can only be missed or cut off.
///
/// # Errors
/// When `root` itself cannot be read.
pub fn collect(root: &Path, bytes: u64, known: &[FileEntry]) -> io::Result<Collected> {
    let root = beneath::root(root)?;
    let owner = fstat(&root)?.st_uid;
    let mut walk = Walk { owner, known, bytes_left: bytes, looked_at: 0, until: Instant::now() + TIME, collected: Collected::default() };
    walk.folder(&root, "", 1);
    walk.collected.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(walk.collected)
}

struct Walk<'a> {
    owner: u32,
    known: &'a [FileEntry],
    bytes_left: u64,
    looked_at: usize,
    until: Instant,
    collected: Collected,
}

impl Walk<'_> {
    /// `depth` counts the names of a file in `folder`.
    fn folder(&mut self, folder: &OwnedFd, prefix: &str, depth: usize) {
        for name in self.names(folder) {
            if Instant::now() > self.until {
                self.collected.truncated = true;
                return;
            }
            let Some(word) = name.to_str().ok().filter(|word| is_name(word)) else {
                self.skip(LeftOut::Name);
                continue;
            };
            let path = format!("{prefix}{word}");
            if let Err(reason) = self.entry(folder, &name, &path, depth) {
                self.skip(reason);
            }
        }
    }

    fn names(&mut self, folder: &OwnedFd) -> Vec<CString> {
        let mut names = Vec::new();
        let Ok(mut entries) = Dir::read_from(folder) else {
            self.skip(LeftOut::Unreadable);
            return names;
        };
        while let Some(entry) = entries.read() {
            let Ok(entry) = entry else {
                self.skip(LeftOut::Unreadable);
                break;
            };
            if is_dots(entry.file_name().to_bytes()) {
                continue;
            }
            if self.looked_at == ENTRIES_MAX {
                self.collected.truncated = true;
                break;
            }
            self.looked_at += 1;
            names.push(entry.file_name().to_owned());
        }
        names.sort();
        names
    }

    fn entry(&mut self, folder: &OwnedFd, name: &CStr, path: &str, depth: usize) -> Result<(), LeftOut> {
        let seen = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(reason)?;
        match FileType::from_raw_mode(seen.st_mode) {
            FileType::Directory if depth == DEPTH_MAX => Err(LeftOut::Depth),
            FileType::Directory => {
                let inner = beneath::folder(folder, name).map_err(reason)?;
                self.folder(&inner, &format!("{path}/"), depth + 1);
                Ok(())
            }
            FileType::Symlink => Err(LeftOut::Symlink),
            // Before it is opened: opening some things does something.
            _ => self.acceptable(&seen).and_then(|()| self.file(folder, name, path)),
        }
    }

    fn acceptable(&self, seen: &Stat) -> Result<(), LeftOut> {
        if FileType::from_raw_mode(seen.st_mode) != FileType::RegularFile {
            return Err(LeftOut::Special);
        }
        if seen.st_nlink != 1 {
            return Err(LeftOut::Hardlink);
        }
        if seen.st_uid != self.owner {
            return Err(LeftOut::Owner);
        }
        self.fits(u64::try_from(seen.st_size).unwrap_or(u64::MAX))
    }

    fn fits(&self, bytes: u64) -> Result<(), LeftOut> {
        if bytes > FILE_MAX {
            return Err(LeftOut::FileSize);
        }
        if self.collected.files.len() >= COUNT_MAX {
            return Err(LeftOut::Count);
        }
        if bytes > self.bytes_left { Err(LeftOut::TotalSize) } else { Ok(()) }
    }

    fn file(&mut self, folder: &OwnedFd, name: &CStr, path: &str) -> Result<(), LeftOut> {
        let file = beneath::open(folder, name, OFlags::RDONLY, Mode::empty()).map_err(reason)?;
        // What was opened counts, not what was there a moment before.
        let seen = fstat(&file).map_err(reason)?;
        self.acceptable(&seen)?;
        let mut content = Vec::with_capacity(usize::try_from(seen.st_size).unwrap_or(0));
        // One byte more than it may have: a file that grows meanwhile is told from one that fits.
        let most = FILE_MAX.min(self.bytes_left) + 1;
        File::from(file).take(most).read_to_end(&mut content).map_err(|_| LeftOut::Unreadable)?;
        self.fits(content.len() as u64)?;
        let Ok(path) = path.parse() else { return Err(LeftOut::Name) };
        let file = RunFile::new(path, content);
        if !self.known.contains(&file.entry()) {
            self.bytes_left -= file.content.len() as u64;
            self.collected.files.push(file);
        }
        Ok(())
    }

    fn skip(&mut self, reason: LeftOut) {
        *self.collected.skipped.entry(reason).or_default() += 1;
        self.collected.truncated |= matches!(reason, LeftOut::FileSize | LeftOut::TotalSize | LeftOut::Count | LeftOut::Depth);
    }
}

fn reason(error: Errno) -> LeftOut {
    match error {
        Errno::LOOP => LeftOut::Symlink,
        Errno::NXIO => LeftOut::Special,
        _ => LeftOut::Unreadable,
    }
}
