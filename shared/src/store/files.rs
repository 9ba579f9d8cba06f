//! Files of a run: those that came with its message, and those that an attempt left in its workspace.
//!
//! Their names are a stranger's. A [`FilePath`] is made of names that cannot be mistaken for anything else: no way up, no
//! way out, nothing that a terminal, a header or a reader would obey. What has another name is left out.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::run::{AttemptOutcome, Run};

/// Names in one path, the file's own included.
pub const DEPTH_MAX: usize = 8;
/// Bytes of one name: more than this no file system takes.
pub const NAME_MAX: usize = 255;
/// Files that are kept of one attempt.
pub const COUNT_MAX: usize = 100;
/// Bytes of one file that is kept.
pub const FILE_MAX: u64 = 8 << 20;
/// Files that may come with a message.
pub const INPUTS_MAX: usize = 20;
/// Bytes of all files that come with a message.
pub const INPUT_BYTES_MAX: u64 = 1 << 20;

/// Content is kept in parts of this size: a document of Firestore holds 1 MiB with everything else in it.
pub(crate) const PART: usize = 512 << 10;
/// Under this epoch are the files that came with the message; attempts begin with 1.
pub(crate) const INPUT_EPOCH: u64 = 0;

/// Why a text is not the path of a file of a run. Meant for whoever sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a relative path of at most {DEPTH_MAX} names, each 1 to {NAME_MAX} bytes of printable characters, none of them `.` or `..`")]
pub struct InvalidPath;

/// The path of a file below `/workspace`: `data/in.csv`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilePath(Arc<str>);

impl FilePath {
    /// The path as text, with `/` between its names.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folders on the way, and the file's own name.
    #[must_use]
    pub fn split(&self) -> (Vec<&str>, &str) {
        let mut names: Vec<&str> = self.0.split('/').collect();
        let name = names.pop().unwrap_or_default();
        (names, name)
    }

    /// The file's own name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.split().1
    }

    /// Whether this path needs `other`, a file, to be a folder.
    #[must_use]
    pub fn is_below(&self, other: &Self) -> bool {
        self.0.strip_prefix(&*other.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

impl FromStr for FilePath {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        let fits = text.split('/').all(is_name) && text.split('/').count() <= DEPTH_MAX;
        if fits { Ok(Self(text.into())) } else { Err(InvalidPath) }
    }
}

impl TryFrom<String> for FilePath {
    type Error = InvalidPath;

    fn try_from(text: String) -> Result<Self, InvalidPath> {
        text.parse()
    }
}

impl From<FilePath> for String {
    fn from(path: FilePath) -> Self {
        path.0.as_ref().to_owned()
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// Whether `name` can be one name of a path.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && name != "." && name != ".." && name.chars().all(|c| c != '/' && is_printable(c))
}

/// Neither a control character nor one that is not seen but changes how its neighbours are read.
fn is_printable(c: char) -> bool {
    let unseen = matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !unseen
}

/// A file with its content.
#[derive(Clone, PartialEq, Eq)]
pub struct RunFile {
    /// Where it is.
    pub path: FilePath,
    /// What is in it.
    pub content: Vec<u8>,
    /// SHA-256 of the content, in hexadecimal.
    pub sha256: String,
}

impl RunFile {
    /// A file of `content`.
    #[must_use]
    pub fn new(path: FilePath, content: Vec<u8>) -> Self {
        let sha256 = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { path, content, sha256 }
    }

    /// How lists show it.
    #[must_use]
    pub fn entry(&self) -> FileEntry {
        FileEntry { path: self.path.clone(), bytes: self.content.len() as u64, sha256: self.sha256.clone() }
    }

    pub(crate) fn parts(&self) -> std::slice::Chunks<'_, u8> {
        self.content.chunks(PART)
    }
}

impl fmt::Debug for RunFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} bytes", self.path, self.content.len())
    }
}

/// A file in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Where it is.
    pub path: FilePath,
    /// How long it is.
    pub bytes: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
}

/// Why something in a workspace is not among the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOut {
    /// A symbolic link: it may point anywhere.
    Symlink,
    /// A file with more than one name.
    Hardlink,
    /// A pipe, a socket, a device.
    Special,
    /// It belongs to somebody else than the container.
    Owner,
    /// Its name is none of a [`FilePath`].
    Name,
    /// A folder that is too deep, with all that is in it.
    Depth,
    /// It is longer than [`FILE_MAX`].
    FileSize,
    /// With it there would be more bytes than the agent's files may have.
    TotalSize,
    /// There are [`COUNT_MAX`] already.
    Count,
    /// It could not be read.
    Unreadable,
    /// The store had no room for it.
    NotStored,
}

impl LeftOut {
    /// The word of the contract.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Symlink => "symlink",
            Self::Hardlink => "hardlink",
            Self::Special => "special",
            Self::Owner => "owner",
            Self::Name => "name",
            Self::Depth => "depth",
            Self::FileSize => "file_size",
            Self::TotalSize => "total_size",
            Self::Count => "count",
            Self::Unreadable => "unreadable",
            Self::NotStored => "not_stored",
        }
    }
}

/// How many were left out, by the reason.
pub type Skipped = BTreeMap<LeftOut, u64>;

/// What was found in a workspace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// In the order of their paths.
    pub files: Vec<RunFile>,
    /// What is not among them.
    pub skipped: Skipped,
    /// Whether a limit was met, so that there may be more than was counted.
    pub truncated: bool,
}

impl Collected {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.skipped.is_empty() && !self.truncated
    }

    /// The same as a list.
    #[must_use]
    pub fn list(&self) -> FileList {
        FileList { files: self.files.iter().map(RunFile::entry).collect(), skipped: self.skipped.clone(), truncated: self.truncated }
    }
}

/// The files of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileList {
    /// In the order of their paths.
    pub files: Vec<FileEntry>,
    /// What is not among them.
    pub skipped: Skipped,
    /// Whether a limit was met.
    pub truncated: bool,
}

impl FileList {
    pub(crate) fn of(files: &[RunFile]) -> Self {
        Self { files: files.iter().map(RunFile::entry).collect(), ..Self::default() }
    }

    pub(crate) fn entry(&self, path: &FilePath) -> Option<&FileEntry> {
        self.files.iter().find(|entry| entry.path == *path)
    }
}

/// The epoch under which the run's files are: that of the attempt which ended it by its own word. What an attempt stored
/// that was lost later is never shown.
pub(crate) fn shown_epoch(run: &Run) -> Option<u64> {
    let outcome = run.attempts.last().and_then(|attempt| attempt.outcome)?;
    let by_its_word = match outcome {
        AttemptOutcome::Finished
        | AttemptOutcome::ExitNonzero
        | AttemptOutcome::Oom
        | AttemptOutcome::TimedOut
        | AttemptOutcome::Cancelled
        | AttemptOutcome::OutputInvalid => true,
        AttemptOutcome::Refused | AttemptOutcome::WorkerLost | AttemptOutcome::Preempted | AttemptOutcome::Drained | AttemptOutcome::EngineFault => {
            false
        }
    };
    (run.status.is_terminal() && by_its_word).then_some(run.epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_below_and_is_seen_as_it_is() {
        for good in ["a", "data/in.csv", "..evil", "...", " ", "-rf", "%2e%2e%2fetc", "C:\\x", "한글/b", "a/b/c/d/e/f/g/h", &"x".repeat(255)] {
            assert_eq!(good.parse::<FilePath>().unwrap().as_str(), good);
        }
        let long = "x".repeat(256);
        let bad = [
            "",
            "/",
            "/etc/passwd",
            "a/",
            "a//b",
            ".",
            "..",
            "../a",
            "a/../b",
            "a/./b",
            "a\nb",
            "a\0",
            "\u{1b}[2J",
            "\u{202e}gnp.exe",
            "a\u{200b}",
            "\u{7f}",
            "\u{85}",
            "a/b/c/d/e/f/g/h/i",
            &long,
        ];
        for bad in bad {
            assert_eq!(bad.parse::<FilePath>(), Err(InvalidPath), "{bad:?}");
        }
    }

    #[test]
    fn a_path_knows_its_folders() {
        let path: FilePath = "a/b/c".parse().unwrap();
        assert_eq!(path.split(), (vec!["a", "b"], "c"));
        assert!(path.is_below(&"a/b".parse().unwrap()) && path.is_below(&"a".parse().unwrap()));
        assert!(!path.is_below(&path) && !path.is_below(&"a/bb".parse().unwrap()));
    }
}
