//! The proof that a container is as strict as asked for, read from the kernel before the request is sent.
//!
//! What a runtime says about itself proves nothing. Its first process is looked at from outside, after it has begun and
//! while it waits: the rest of the container descends from it, and nothing that was taken away comes back.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::spec::{NAMESPACES, OOM_SCORE_ADJ, RLIMITS};

/// What must be true of the first process.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// Its uid and gid by the host's count.
    pub uid: u32,
    /// The control group that it, or a group below it, must be in.
    pub group: &'a str,
    /// Whether the walls are the kernel's. gVisor brings its own: what the host sees is its process, not the program, and only
    /// the control group holds both.
    pub kernel: bool,
}

/// What the kernel says about the process `pid`.
#[derive(Debug)]
pub(super) struct Seen {
    status: String,
    limits: String,
    groups: String,
    oom_score_adj: String,
    mounts: String,
    /// Name, the host's, the process's.
    namespaces: Vec<(&'static str, PathBuf, PathBuf)>,
}

impl Seen {
    /// Reads it. It fails when the process has ended.
    pub(super) fn read(pid: i32) -> io::Result<Self> {
        let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let namespaces = NAMESPACES.into_iter().map(|name| {
            let kind = match name {
                "mount" => "mnt",
                "network" => "net",
                other => other,
            };
            Ok((name, fs::read_link(format!("/proc/self/ns/{kind}"))?, fs::read_link(format!("/proc/{pid}/ns/{kind}"))?))
        });
        Ok(Self {
            namespaces: namespaces.collect::<io::Result<_>>()?,
            status: file("status")?,
            limits: file("limits")?,
            groups: file("cgroup")?,
            oom_score_adj: file("oom_score_adj")?,
            mounts: file("mountinfo")?,
        })
    }

    /// The first thing that is not as wanted.
    pub(super) fn difference(&self, wanted: &Wanted<'_>) -> Option<&'static str> {
        let uid = wanted.uid.to_string();
        let only = |field: &str, value: &str| {
            let found = self.field(field);
            found.is_some_and(|found| found.split_whitespace().all(|found| found == value)) && found != Some("")
        };
        let none = "0000000000000000";
        let checks = [
            ("uid", !wanted.kernel || only("Uid", &uid)),
            ("gid", !wanted.kernel || only("Gid", &uid)),
            ("groups", !wanted.kernel || self.field("Groups").is_some_and(|groups| groups.split_whitespace().all(|group| group == uid))),
            ("NoNewPrivs", !wanted.kernel || only("NoNewPrivs", "1")),
            ("Seccomp", !wanted.kernel || only("Seccomp", "2")),
            ("CapEff", !wanted.kernel || only("CapEff", none)),
            ("CapPrm", !wanted.kernel || only("CapPrm", none)),
            ("CapInh", !wanted.kernel || only("CapInh", none)),
            ("CapBnd", !wanted.kernel || only("CapBnd", none)),
            ("CapAmb", !wanted.kernel || only("CapAmb", none)),
            ("oom_score_adj", !wanted.kernel || self.oom_score_adj.trim() == OOM_SCORE_ADJ.to_string()),
            ("cgroup", self.is_in(wanted.group)),
            ("readonly root", !wanted.kernel || self.root_is_read_only()),
        ];
        let limits = RLIMITS.iter().map(|(name, value)| (*name, !wanted.kernel || self.limit(name) == Some(*value)));
        let spaces = self.namespaces.iter().map(|(name, host, own)| (*name, !wanted.kernel || host != own));
        checks.into_iter().chain(limits).chain(spaces).find(|(_, holds)| !holds).map(|(name, _)| name)
    }

    /// The name by which the kernel calls the program.
    pub(super) fn program(status: &str) -> &str {
        field(status, "Name").unwrap_or_default()
    }

    fn field(&self, name: &str) -> Option<&str> {
        field(&self.status, name)
    }

    /// Whether it is in the group for everything that is limited.
    fn is_in(&self, group: &str) -> bool {
        let needed = ["cpu", "cpuacct", "memory", "pids", "freezer"];
        let mut unified = false;
        let mut missing: Vec<&str> = needed.to_vec();
        for line in self.groups.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
            // The worker may be in a group itself, and then sees paths from its own root on.
            let inside = path.split_once(group).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('/'));
            if inside {
                unified |= number == "0" && controllers.is_empty();
                missing.retain(|needed| !controllers.split(',').any(|controller| controller == *needed));
            }
        }
        missing.is_empty() || unified && missing.len() == needed.len() && !self.groups.contains(":memory:")
    }

    fn root_is_read_only(&self) -> bool {
        let root = self.mounts.lines().find_map(|line| {
            let mut parts = line.split(' ').skip(4);
            (parts.next() == Some("/")).then(|| parts.next()).flatten()
        });
        root.is_some_and(|options| options.split(',').any(|option| option == "ro"))
    }

    /// A limit that is the same for soft and hard, by the name that the runtime has for it.
    fn limit(&self, name: &str) -> Option<u64> {
        let title = match name {
            "RLIMIT_NOFILE" => "Max open files",
            "RLIMIT_CORE" => "Max core file size",
            "RLIMIT_FSIZE" => "Max file size",
            "RLIMIT_MSGQUEUE" => "Max msgqueue size",
            _ => return None,
        };
        let values = self.limits.lines().find_map(|line| line.strip_prefix(title))?;
        let mut values = values.split_whitespace();
        let (soft, hard) = (values.next()?, values.next()?);
        if soft == hard { soft.parse().ok() } else { None }
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
#[path = "proof_tests.rs"]
mod tests;
