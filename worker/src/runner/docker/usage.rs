//! What a container cost, read from its control group while it is there: it goes away moments after the program.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

const ROOT: &str = "/sys/fs/cgroup";
/// A sample costs some 30 microseconds, and the last output before the exit should get one.
const APART: Duration = Duration::from_millis(20);

/// Keeps the highest figures seen of one container. Everything stays `None` where the engine runs on another machine or
/// keeps its groups elsewhere.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    files: Option<Files>,
    sampled: Option<Instant>,
    cpu: Option<Duration>,
    max_memory: Option<u64>,
    limit: u64,
}

#[derive(Debug, Clone, Default)]
struct Files {
    /// Nanoseconds, version 1.
    cpuacct_usage: Option<PathBuf>,
    /// `usage_usec` among others, version 2.
    cpu_stat: Option<PathBuf>,
    /// Bytes, either version.
    memory_peak: Option<PathBuf>,
}

impl Meter {
    /// For the started container `id` with this memory limit in bytes; `local` says whether its engine runs on this
    /// machine. Reads the figures at once: a short program may not live long enough for another reading.
    pub(super) fn start(local: bool, id: &str, limit: u64) -> Self {
        let files = local.then(|| Files::locate(Path::new(ROOT), id));
        let mut meter = Self { files, sampled: None, cpu: None, max_memory: None, limit };
        meter.sample();
        meter
    }

    /// Reads the figures if the last reading is a while ago.
    pub(super) fn sample_if_due(&mut self) {
        if self.sampled.is_none_or(|at| at.elapsed() >= APART) {
            self.sample();
        }
    }

    /// Reads the figures now. These files live in memory: reading them takes microseconds and never blocks on a disk.
    pub(super) fn sample(&mut self) {
        let Some(files) = &self.files else { return };
        self.sampled = Some(Instant::now());
        self.cpu = self.cpu.max(files.cpu());
        self.max_memory = self.max_memory.max(files.max_memory());
    }

    /// CPU time of the whole container.
    pub(super) const fn cpu(&self) -> Option<Duration> {
        self.cpu
    }

    /// Peak memory in bytes. A program that the limit killed reached it, between two readings.
    pub(super) const fn max_memory(&self, oom: bool) -> Option<u64> {
        if oom { Some(self.limit) } else { self.max_memory }
    }
}

impl Files {
    /// Finds the group of `id` below `root`: made by the engine itself or by systemd for it, version 1 (a folder for each
    /// controller), 2, or both at once.
    fn locate(root: &Path, id: &str) -> Self {
        let groups = [format!("docker/{id}"), format!("system.slice/docker-{id}.scope")];
        let find = |controllers: &[&str], file: &str| {
            controllers
                .iter()
                .flat_map(|controller| groups.iter().map(move |group| root.join(controller).join(group).join(file)))
                .find(|path| path.exists())
        };
        Self {
            cpuacct_usage: find(&["cpuacct", "cpu,cpuacct"], "cpuacct.usage"),
            cpu_stat: find(&["", "unified"], "cpu.stat"),
            memory_peak: find(&["memory"], "memory.max_usage_in_bytes").or_else(|| find(&["", "unified"], "memory.peak")),
        }
    }

    fn cpu(&self) -> Option<Duration> {
        if let Some(path) = &self.cpuacct_usage {
            return read_number(path).map(Duration::from_nanos);
        }
        let stat = std::fs::read_to_string(self.cpu_stat.as_ref()?).ok()?;
        let micros = stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
        micros.trim().parse().ok().map(Duration::from_micros)
    }

    fn max_memory(&self) -> Option<u64> {
        read_number(self.memory_peak.as_ref()?)
    }
}

fn read_number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like the root of the control groups.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn version_1_is_read_by_controller() {
        let root = root(&[
            ("cpuacct/docker/abc/cpuacct.usage", "33914251\n"),
            ("memory/docker/abc/memory.max_usage_in_bytes", "3563520\n"),
            ("unified/docker/abc/cpu.stat", "usage_usec 1\n"),
        ]);
        let files = Files::locate(root.path(), "abc");
        assert_eq!(files.cpu(), Some(Duration::from_nanos(33_914_251)));
        assert_eq!(files.max_memory(), Some(3_563_520));
    }

    #[test]
    fn version_2_is_read_from_one_group() {
        let root = root(&[
            ("system.slice/docker-abc.scope/cpu.stat", "usage_usec 2500\nuser_usec 2000\n"),
            ("system.slice/docker-abc.scope/memory.peak", "4096\n"),
        ]);
        let files = Files::locate(root.path(), "abc");
        assert_eq!(files.cpu(), Some(Duration::from_micros(2500)));
        assert_eq!(files.max_memory(), Some(4096));
    }

    #[test]
    fn what_cannot_be_read_is_absent() {
        let root = root(&[("docker/other/memory.peak", "4096\n"), ("docker/abc/cpu.stat", "nonsense\n")]);
        let files = Files::locate(root.path(), "abc");
        assert_eq!(files.cpu(), None);
        assert_eq!(files.max_memory(), None);
    }
}
