//! The same container from the host: the process of the probe in `/proc`, and its control groups.

use std::fs;
use std::path::{Path, PathBuf};

const GROUPS: &str = "/sys/fs/cgroup";
/// A group without a limit says a number like this in version 1.
const UNLIMITED: u64 = 1 << 60;

/// What the host sees. What cannot be read is absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outside {
    /// Bytes; `Some(None)`: no limit.
    pub memory: Option<Option<u64>>,
    /// Bytes of memory and swap together; `Some(None)`: no limit.
    pub memory_and_swap: Option<Option<u64>>,
    /// Processes; `Some(None)`: no limit.
    pub pids: Option<Option<u64>>,
    /// CPUs; `Some(None)`: no limit.
    pub cpus: Option<Option<f64>>,
    /// A filter of system calls is on.
    pub seccomp: Option<bool>,
    /// Capabilities that it has or may get, as bits.
    pub capabilities: Option<u64>,
    /// It can gain no privileges.
    pub no_new_privileges: Option<bool>,
    /// Names of the name spaces that are the host's own.
    pub shared_namespaces: Vec<String>,
}

/// Looks for a process of `uid`, which belongs to the probe alone. `None`: there is none to be seen.
#[must_use]
pub fn look(uid: u32) -> Option<Outside> {
    let process = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path()).find(|path| is_of(path, uid))?;
    Some(of(&process, Path::new(GROUPS)))
}

fn is_of(process: &Path, uid: u32) -> bool {
    if !process.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit)) {
        return false;
    }
    let Some(status) = Status::read(process) else { return false };
    status.field("Uid").is_some_and(|ids| ids.split_whitespace().all(|id| id.parse() == Ok(uid)))
}

struct Status(String);

impl Status {
    fn read(process: &Path) -> Option<Self> {
        fs::read_to_string(process.join("status")).ok().map(Self)
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    fn capabilities(&self) -> Option<u64> {
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
            .iter()
            .try_fold(0, |all, name| Some(all | u64::from_str_radix(self.field(name)?, 16).ok()?))
    }
}

fn of(process: &Path, groups: &Path) -> Outside {
    let mut seen = Outside::default();
    if let Some(status) = Status::read(process) {
        seen.seccomp = status.field("Seccomp").map(|mode| mode == "2");
        seen.no_new_privileges = status.field("NoNewPrivs").map(|flag| flag == "1");
        seen.capabilities = status.capabilities();
    }
    let file = |name: &str| fs::read_link(process.join("ns").join(name)).ok();
    let own = |name: &str| fs::read_link(Path::new("/proc/self/ns").join(name)).ok();
    for name in ["pid", "net", "mnt", "ipc", "uts"] {
        if let (Some(theirs), Some(ours)) = (file(name), own(name))
            && theirs == ours
        {
            seen.shared_namespaces.push(name.to_owned());
        }
    }
    let membership = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
    limits(&membership, groups, &mut seen);
    seen
}

/// Reads the limits of the groups that `membership` (`/proc/<pid>/cgroup`) names, of either version.
fn limits(membership: &str, root: &Path, seen: &mut Outside) {
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let group = group.trim_start_matches('/');
        let folders: Vec<PathBuf> = match controllers {
            "" => vec![root.join(group), root.join("unified").join(group)],
            names => std::iter::once(names).chain(names.split(',')).map(|name| root.join(name).join(group)).collect(),
        };
        for folder in folders {
            let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
            let bounded = |text: String| text.trim().parse().ok().filter(|value: &u64| *value < UNLIMITED);
            if let Some(text) = read("memory.limit_in_bytes").or_else(|| read("memory.max")) {
                seen.memory = Some(bounded(text));
            }
            if let Some(text) = read("memory.memsw.limit_in_bytes") {
                seen.memory_and_swap = Some(bounded(text));
            } else if let Some(text) = read("memory.swap.max") {
                let swap = bounded(text);
                seen.memory_and_swap = Some(seen.memory.flatten().and_then(|memory| Some(memory + swap?)));
            }
            if let Some(text) = read("pids.max") {
                seen.pids = Some(bounded(text));
            }
            if let (Some(quota), Some(period)) = (read("cpu.cfs_quota_us"), read("cpu.cfs_period_us")) {
                seen.cpus = Some(ratio(quota.trim(), period.trim()));
            } else if let Some(text) = read("cpu.max") {
                seen.cpus = Some(text.trim().split_once(' ').and_then(|(quota, period)| ratio(quota, period)));
            }
        }
    }
}

/// `None` where the quota is `-1` or `max`.
fn ratio(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn limits_of_version_1_are_read() {
        let root = root(&[
            ("memory/docker/a/memory.limit_in_bytes", "268435456\n"),
            ("memory/docker/a/memory.memsw.limit_in_bytes", "9223372036854771712\n"),
            ("pids/docker/a/pids.max", "max\n"),
            ("cpu/docker/a/cpu.cfs_quota_us", "20000\n"),
            ("cpu/docker/a/cpu.cfs_period_us", "100000\n"),
        ]);
        let mut seen = Outside::default();
        limits("4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n2:pids:/docker/a\n0::/docker/a\n", root.path(), &mut seen);
        let expected =
            Outside { memory: Some(Some(256 << 20)), memory_and_swap: Some(None), pids: Some(None), cpus: Some(Some(0.2)), ..Outside::default() };
        assert_eq!(seen, expected);
    }

    #[test]
    fn limits_of_version_2_are_read() {
        let root = root(&[("s/memory.max", "268435456\n"), ("s/memory.swap.max", "0\n"), ("s/pids.max", "32\n"), ("s/cpu.max", "max 100000\n")]);
        let mut seen = Outside::default();
        limits("0::/s\n", root.path(), &mut seen);
        let (memory, pids) = (Some(Some(256 << 20)), Some(Some(32)));
        assert_eq!(seen, Outside { memory, memory_and_swap: memory, pids, cpus: Some(None), ..Outside::default() });
    }

    #[test]
    fn this_process_is_no_container() {
        let seen = of(Path::new("/proc/self"), Path::new("/nowhere"));
        assert_eq!(seen.shared_namespaces, ["pid", "net", "mnt", "ipc", "uts"]);
        assert_eq!((seen.memory, seen.pids, seen.cpus), (None, None, None));
    }
}
