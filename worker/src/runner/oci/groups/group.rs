//! The control group of one container.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::super::shares::{cpu_shares, cpu_weight};
use super::{Hierarchies, Version};

/// The period in which a container's CPU time is rationed, in microseconds.
const PERIOD: u64 = 100_000;
/// The kernel gives no less than this much CPU time in a period.
const LEAST_QUOTA: u64 = 1000;

/// What a container may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) struct Limits {
    /// Bytes of memory. There is no swap.
    pub memory: u64,
    /// CPUs, as a fraction of one.
    pub cpus: f64,
    /// Processes and threads, the runtime's included where it runs inside.
    pub pids: u32,
}

impl Limits {
    /// Microseconds of CPU time in a period.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the caller has checked the range of an agent's CPUs")]
    fn quota(&self) -> u64 {
        ((self.cpus * 1e5).round() as u64).max(LEAST_QUOTA)
    }
}

/// The group of one container in every hierarchy that limits something.
#[derive(Debug, Clone)]
pub(in super::super) struct Group {
    hierarchies: Hierarchies,
    path: String,
}

impl Group {
    pub(super) const fn new(hierarchies: Hierarchies, path: String) -> Self {
        Self { hierarchies, path }
    }

    /// Its path below the root of every hierarchy.
    pub(in super::super) fn path(&self) -> &str {
        &self.path
    }

    fn below(&self, root: &Path) -> PathBuf {
        root.join(self.path.trim_start_matches('/'))
    }

    /// A file of the group in the hierarchy of a controller.
    pub(super) fn file(&self, controller: &str, name: &str) -> io::Result<PathBuf> {
        let root = self.hierarchies.root(controller);
        Ok(self.below(root.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no controller {controller}")))?).join(name))
    }

    fn read(&self, controller: &str, name: &str) -> io::Result<String> {
        fs::read_to_string(self.file(controller, name)?)
    }

    fn write(&self, controller: &str, name: &str, value: &str) -> io::Result<()> {
        fs::write(self.file(controller, name)?, value)
    }

    pub(super) fn create(&self, limits: &Limits) -> io::Result<()> {
        for root in self.hierarchies.container_roots() {
            fs::create_dir(self.below(root))?;
        }
        for (controller, name, value) in self.settings(limits) {
            match self.write(controller, name, &value) {
                // Without accounting of swap there is none to limit, and a machine without swap needs none.
                Err(error) if error.kind() == io::ErrorKind::NotFound && is_about_swap(name) => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Controller, file and value of every limit, in the order in which the kernel takes them.
    fn settings(&self, limits: &Limits) -> Vec<(&'static str, &'static str, String)> {
        let memory = limits.memory.to_string();
        match self.hierarchies.version() {
            Version::One => vec![
                ("memory", "memory.limit_in_bytes", memory.clone()),
                ("memory", "memory.memsw.limit_in_bytes", memory),
                ("cpu", "cpu.cfs_period_us", PERIOD.to_string()),
                ("cpu", "cpu.cfs_quota_us", limits.quota().to_string()),
                ("cpu", "cpu.shares", cpu_shares(limits.cpus).to_string()),
                ("pids", "pids.max", limits.pids.to_string()),
            ],
            Version::Two => vec![
                ("memory", "memory.max", memory),
                ("memory", "memory.swap.max", "0".to_owned()),
                // The program is told by its own end; that of a child is its parent's affair.
                ("memory", "memory.oom.group", "0".to_owned()),
                ("cpu", "cpu.max", format!("{} {PERIOD}", limits.quota())),
                ("cpu", "cpu.weight", cpu_weight(limits.cpus).to_string()),
                ("pids", "pids.max", limits.pids.to_string()),
            ],
        }
    }

    /// The first limit that the kernel does not hold as asked for.
    pub(in super::super) fn difference(&self, limits: &Limits) -> Option<&'static str> {
        let page = rustix::param::page_size() as u64;
        self.settings(limits).into_iter().find_map(|(controller, name, wanted)| match self.read(controller, name) {
            Ok(found) if found.trim() == wanted => None,
            // The kernel counts memory in pages.
            Ok(found) if controller == "memory" && found.trim().parse::<u64>().is_ok_and(|bytes| bytes == limits.memory / page * page) => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_about_swap(name) => None,
            _ => Some(name),
        })
    }

    /// The files into which a process writes itself to be in the group.
    pub(in super::super) fn entries(&self) -> Vec<PathBuf> {
        self.hierarchies.container_roots().into_iter().map(|root| self.below(root).join("cgroup.procs")).collect()
    }

    /// The one of these through which [`Group::processes`] finds a process, and which limits nothing by itself.
    pub(in super::super) fn entry_to_be_found(&self) -> Option<PathBuf> {
        (self.hierarchies.version() == Version::One).then(|| self.file("freezer", "cgroup.procs").ok()).flatten()
    }

    /// Ids of the processes in it and in groups below it.
    pub(in super::super) fn processes(&self) -> io::Result<Vec<i32>> {
        let Some(root) = self.hierarchies.root("freezer") else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        let mut groups = vec![self.below(root)];
        while let Some(group) = groups.pop() {
            match fs::read_to_string(group.join("cgroup.procs")) {
                Ok(processes) => found.extend(processes.lines().filter_map(|id| id.parse::<i32>().ok())),
                // It is gone, and so is all that was in it.
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            }
            groups.extend(super::folders(&group)?.into_iter().map(|name| group.join(name)));
        }
        Ok(found)
    }

    /// CPU time of all that ever ran in it.
    pub(in super::super) fn cpu(&self) -> Option<Duration> {
        match self.hierarchies.version() {
            Version::One => self.read("cpuacct", "cpuacct.usage").ok()?.trim().parse().ok().map(Duration::from_nanos),
            Version::Two => field(&self.read("cpu", "cpu.stat").ok()?, "usage_usec").map(Duration::from_micros),
        }
    }

    /// The most memory that it ever used, in bytes.
    pub(in super::super) fn max_memory(&self) -> Option<u64> {
        let name = if self.hierarchies.version() == Version::One { "memory.max_usage_in_bytes" } else { "memory.peak" };
        self.read("memory", name).ok()?.trim().parse().ok()
    }

    /// How many processes the memory limit has killed, those in groups below it included.
    pub(in super::super) fn oom_kills(&self) -> u64 {
        if self.hierarchies.version() == Version::Two {
            return self.read("memory", "memory.events").ok().and_then(|events| field(&events, "oom_kill")).unwrap_or(0);
        }
        let Ok(own) = self.file("memory", "memory.oom_control") else { return 0 };
        let count = |file: &Path| fs::read_to_string(file).ok().and_then(|text| field(&text, "oom_kill")).unwrap_or(0);
        let group = own.parent().unwrap_or(&own);
        let below = super::folders(group).unwrap_or_default();
        count(&own) + below.into_iter().map(|name| count(&group.join(name).join("memory.oom_control"))).sum::<u64>()
    }

    /// Asks for its processes to stand still, or to go on.
    pub(in super::super) fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        match self.hierarchies.version() {
            Version::One => self.write("freezer", "freezer.state", if frozen { "FROZEN" } else { "THAWED" }),
            Version::Two => self.write("", "cgroup.freeze", if frozen { "1" } else { "0" }),
        }
    }

    /// Whether all of them stand still.
    pub(in super::super) fn is_frozen(&self) -> io::Result<bool> {
        match self.hierarchies.version() {
            Version::One => Ok(self.read("freezer", "freezer.state")?.trim() == "FROZEN"),
            Version::Two => Ok(field(&self.read("", "cgroup.events")?, "frozen") == Some(1)),
        }
    }

    /// Sends signal 9 to all of its processes, frozen or not. More may be born meanwhile: to be called until it is empty.
    pub(in super::super) fn kill_once(&self) -> io::Result<()> {
        if self.hierarchies.version() == Version::Two {
            match self.write("", "cgroup.kill", "1") {
                // Linux before 5.14 has no such file.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => return done,
            }
        }
        for id in self.processes()? {
            if let Some(process) = rustix::process::Pid::from_raw(id) {
                // One that has died meanwhile is what is wanted.
                let _gone = rustix::process::kill_process(process, rustix::process::Signal::KILL);
            }
        }
        match self.set_frozen(false) {
            Err(error) if !is_gone(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes it everywhere, with groups that a runtime made below it. It must be empty; one that is gone is fine.
    pub(in super::super) fn remove(&self) -> io::Result<()> {
        self.hierarchies.all().into_iter().try_for_each(|root| remove(&self.below(root)))
    }
}

fn remove(group: &Path) -> io::Result<()> {
    match fs::remove_dir(group) {
        Ok(()) => return Ok(()),
        Err(error) if is_gone(&error) => return Ok(()),
        // Something is in it: a group, or a process.
        Err(_) => {}
    }
    for below in super::folders(group)? {
        remove(&group.join(below))?;
    }
    match fs::remove_dir(group) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Files of a group that was removed answer in two ways.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

fn is_about_swap(name: &str) -> bool {
    name.contains("memsw") || name.contains("swap")
}

/// The number after `name` in a file with a name and a number on each line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_of_a_cpu_is_a_quota() {
        let quota = |cpus| Limits { memory: 1 << 30, cpus, pids: 128 }.quota();
        assert_eq!((quota(1.0), quota(0.5), quota(2.5), quota(0.001)), (100_000, 50_000, 250_000, 1000));
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "oom_kill_disable 0\nunder_oom 1\noom_kill 3\n";
        assert_eq!((field(text, "oom_kill"), field(text, "under_oom"), field(text, "oom")), (Some(3), Some(1), None));
    }
}
