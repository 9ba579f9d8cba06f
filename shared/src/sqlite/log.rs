//! Whether the write-ahead log still holds what was committed into it.
//!
//! SQLite reads the log up to the first frame that does not check, and takes the rest for a commit that never finished.
//! After a crash that is right; after damage it drops commits that were answered with 202, without a word. Two witnesses
//! tell the cases apart, before SQLite opens the files and overwrites the evidence:
//!
//! - The index beside the log (`-shm`) counts the frames that were on disk when their commit was answered: with
//!   `synchronous=FULL` it is published after the fsync. A log with fewer good frames has lost some.
//! - Without an index of the same log: a crash tears the last commit and no other, because each one is on disk before
//!   the next begins. Two commits at or behind the first bad frame are damage.
//!
//! Damage in the very last commit, without an index, cannot be told from a power failure.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind as IoKind, Read};
use std::path::Path;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const MAGIC: u32 = 0x377f_0682;
const INDEX_VERSION: u32 = 3_007_000;
const PAGE_MAX: usize = 1 << 16;

/// What the log was found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is missing, as far as can be known.
    Sound,
    /// Commits are missing: in words.
    Damaged(String),
}

/// Reads the log of `database` and its index. Nobody may write to them meanwhile.
pub(super) fn inspect(database: &Path) -> io::Result<State> {
    let index = Index::read(&super::folder::beside(database, "-shm"))?;
    let log = Log::read(&super::folder::beside(database, "-wal"))?;
    // What is in the database file already is not missed.
    let promised = index.as_ref().filter(|index| index.frames > index.moved);
    Ok(match (log, promised) {
        (Log::Empty, None) => State::Sound,
        (Log::Empty, Some(index)) => State::Damaged(format!("is gone or empty, and had {} pages of commits", index.frames - index.moved)),
        (Log::Headless, _) => State::Damaged("does not begin as a log does".to_owned()),
        (Log::Frames { salt, good, .. }, Some(index)) if index.salt == salt => {
            if good < index.frames {
                State::Damaged(format!("can be read for {good} of the {} pages that were committed", index.frames))
            } else {
                State::Sound
            }
        }
        (Log::Frames { good, commits_behind, .. }, _) if commits_behind >= 2 => {
            State::Damaged(format!("can be read for {good} pages, and {commits_behind} commits come behind them"))
        }
        (Log::Frames { .. }, _) => State::Sound,
    })
}

/// The index's header, when it is whole.
struct Index {
    frames: u32,
    moved: u32,
    salt: [u8; 8],
}

impl Index {
    fn read(path: &Path) -> io::Result<Option<Self>> {
        let mut bytes = [0; 100];
        match File::open(path).and_then(|mut file| file.read_exact(&mut bytes)) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), IoKind::NotFound | IoKind::UnexpectedEof) => return Ok(None),
            Err(error) => return Err(error),
        }
        let number = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (first, second) = (&bytes[..48], &bytes[48..96]);
        let sum = checksum((0, 0), &first[..40], u32::from_ne_bytes);
        let whole = first == second && number(0) == INDEX_VERSION && bytes[12] == 1 && (number(40), number(44)) == sum;
        let mut salt = [0; 8];
        salt.copy_from_slice(&first[32..40]);
        Ok(whole.then(|| Self { frames: number(16), moved: number(96), salt }))
    }
}

enum Log {
    Empty,
    /// There is something, and it does not begin with a log's header.
    Headless,
    Frames {
        salt: [u8; 8],
        /// Frames up to the first that does not check.
        good: u32,
        /// Commits of this log from there on.
        commits_behind: u32,
    },
}

impl Log {
    fn read(path: &Path) -> io::Result<Self> {
        let mut file = match File::open(path) {
            Ok(file) => BufReader::with_capacity(1 << 20, file),
            Err(error) if error.kind() == IoKind::NotFound => return Ok(Self::Empty),
            Err(error) => return Err(error),
        };
        let mut header = [0; HEADER];
        if !fill(&mut file, &mut header)? {
            return Ok(Self::Empty);
        }
        let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (magic, page) = (number(0), number(8) as usize);
        let words = if magic & 1 == 1 { u32::from_be_bytes } else { u32::from_le_bytes };
        let mut sum = checksum((0, 0), &header[..24], words);
        if magic & !1 != MAGIC || !page.is_power_of_two() || !(512..=PAGE_MAX).contains(&page) || sum != (number(24), number(28)) {
            // A file system may give a file its length before its content: then nothing was ever committed to it.
            return Ok(if header == [0; HEADER] && only_zeros(&mut file)? { Self::Empty } else { Self::Headless });
        }
        let mut salt = [0; 8];
        salt.copy_from_slice(&header[16..24]);
        let mut frame = vec![0; FRAME_HEADER + page];
        let (mut good, mut broken, mut commits_behind) = (0, false, 0);
        while fill(&mut file, &mut frame)? {
            let number = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
            let ours = frame[8..16] == salt;
            if !broken {
                sum = checksum(checksum(sum, &frame[..8], words), &frame[FRAME_HEADER..], words);
                if ours && number(0) != 0 && sum == (number(16), number(20)) {
                    good += 1;
                    continue;
                }
                broken = true;
            }
            commits_behind += u32::from(ours && number(4) != 0);
        }
        Ok(Self::Frames { salt, good, commits_behind })
    }
}

/// Whether there was enough to fill `buffer`.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == IoKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn only_zeros(file: &mut impl Read) -> io::Result<bool> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(true),
            read if buffer[..read].iter().any(|byte| *byte != 0) => return Ok(false),
            _ => {}
        }
    }
}

/// SQLite's: two sums over pairs of 32-bit words.
fn checksum((mut first, mut second): (u32, u32), bytes: &[u8], word: fn([u8; 4]) -> u32) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        first = first.wrapping_add(word([pair[0], pair[1], pair[2], pair[3]])).wrapping_add(second);
        second = second.wrapping_add(word([pair[4], pair[5], pair[6], pair[7]])).wrapping_add(first);
    }
    (first, second)
}
