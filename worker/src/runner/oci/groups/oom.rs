//! Hearing of a memory limit that was met.
//!
//! Version 1 counts the processes that a limit ended where they were, not where the limit is. A runtime that makes a group
//! below ours takes that count away with it; what the kernel says about the limit itself stays.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

use super::Group;

/// A number that the kernel raises whenever the memory limit of a group is met and something must end.
#[derive(Debug)]
pub(in super::super) struct OomWatch {
    events: OwnedFd,
}

impl OomWatch {
    /// Watches the limit of a group (version 1).
    pub(in super::super) fn of(group: &Group) -> io::Result<Self> {
        let events = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = File::open(group.file("memory", "memory.oom_control")?)?;
        fs::write(group.file("memory", "cgroup.event_control")?, format!("{} {}", events.as_raw_fd(), control.as_raw_fd()))?;
        Ok(Self { events })
    }

    /// Whether the limit was met since the last look. The group's removal counts as that, too: to be asked before.
    pub(in super::super) fn happened(&self) -> bool {
        rustix::io::read(&self.events, &mut [0_u8; 8]).is_ok()
    }
}
