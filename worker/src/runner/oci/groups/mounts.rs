//! Which control groups the machine has, and where they are mounted.

use std::path::{Path, PathBuf};

use super::super::super::{Fault, FaultKind};

/// How the controllers are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Version {
    /// A hierarchy for each controller, or for a few together.
    One,
    /// One hierarchy for all.
    Two,
}

/// The hierarchies of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Hierarchies {
    version: Version,
    /// Roots by controller; the only one of version 2 is under the empty name.
    roots: Vec<(String, PathBuf)>,
    /// The second version beside the first, which then limits nothing.
    unified: Option<PathBuf>,
}

/// The controllers without which a container could not be held.
const NEEDED: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "freezer"];

impl Hierarchies {
    /// Those of this machine.
    pub(in super::super) fn find() -> Result<Self, Fault> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo");
        let mounts = mounts.map_err(|error| Fault::new(FaultKind::Engine, "the mounts of this machine cannot be read").with_source(error))?;
        Self::read(&mounts).map_err(|what| Fault::new(FaultKind::Refused, what))
    }

    /// Reads them from the lines of `/proc/self/mountinfo`.
    fn read(mounts: &str) -> Result<Self, String> {
        let mut roots = Vec::new();
        let mut unified = None;
        for line in mounts.lines() {
            let Some((mount, file_system)) = line.split_once(" - ") else { continue };
            let (Some(at), Some(kind), Some(options)) = (mount.split(' ').nth(4), file_system.split(' ').next(), file_system.split(' ').nth(2))
            else {
                continue;
            };
            match kind {
                "cgroup2" => unified = Some(PathBuf::from(at)),
                "cgroup" => roots.extend(controllers(options).map(|name| (name, PathBuf::from(at)))),
                _ => {}
            }
        }
        if roots.is_empty() {
            let root = unified.ok_or("this machine has no control groups mounted, so no limit could be enforced")?;
            return Ok(Self { version: Version::Two, roots: vec![(String::new(), root)], unified: None });
        }
        let found = Self { version: Version::One, roots, unified };
        match NEEDED.iter().find(|name| found.root(name).is_none()) {
            None => Ok(found),
            Some(missing) => Err(format!("this machine has no control group controller `{missing}`")),
        }
    }

    /// How they are arranged.
    pub(in super::super) const fn version(&self) -> Version {
        self.version
    }

    /// Where the second version is mounted beside the first.
    pub(in super::super) fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    /// The root of the hierarchy of a controller.
    pub(in super::super) fn root(&self, controller: &str) -> Option<&Path> {
        let name = if self.version == Version::Two { "" } else { controller };
        self.roots.iter().find(|(of, _)| of == name).map(|(_, root)| root.as_path())
    }

    /// The root of the hierarchy that lists devices (version 1 alone has one).
    pub(super) fn devices(&self) -> Option<&Path> {
        (self.version == Version::One).then(|| self.root("devices")).flatten()
    }

    /// Roots of the hierarchies in which a container has a group, and the instance has one.
    pub(super) fn limiting(&self) -> Vec<&Path> {
        let mut roots: Vec<&Path> = self.container_roots();
        roots.extend(self.devices());
        roots.sort_unstable();
        roots.dedup();
        roots
    }

    /// Roots of the hierarchies in which a container has a group of its own.
    pub(super) fn container_roots(&self) -> Vec<&Path> {
        let mut roots: Vec<&Path> = NEEDED.iter().filter_map(|name| self.root(name)).collect();
        roots.sort_unstable();
        roots.dedup();
        roots
    }

    /// Every root there is: a runtime may make groups of its own beside ours.
    pub(super) fn all(&self) -> Vec<&Path> {
        let mut roots: Vec<&Path> = self.roots.iter().map(|(_, root)| root.as_path()).chain(self.unified()).collect();
        roots.sort_unstable();
        roots.dedup();
        roots
    }

    /// The roots in which groups are made.
    pub(in super::super) fn roots(&self) -> impl Iterator<Item = &Path> {
        self.limiting().into_iter()
    }

    /// For people: `control groups 1 and 2 (hybrid)`.
    pub(in super::super) const fn describe(&self) -> &'static str {
        match (self.version, &self.unified) {
            (Version::Two, _) => "control groups 2",
            (Version::One, None) => "control groups 1",
            (Version::One, Some(_)) => "control groups 1 with 2 beside them",
        }
    }
}

/// The controllers among the options of a mount; a named hierarchy without a controller counts under its name.
fn controllers(options: &str) -> impl Iterator<Item = String> {
    options.split(',').filter(|option| !["rw", "ro", "xattr", "clone_children", "noprefix"].contains(option)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn hybrid_is_version_1_with_another_beside_it() {
        let found = Hierarchies::read(HYBRID).unwrap();
        assert_eq!(found.version(), Version::One);
        assert_eq!(found.unified(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(found.root("cpu"), found.root("cpuacct"));
        assert_eq!(found.container_roots().len(), 4, "controllers that are mounted together have one group");
        assert_eq!(found.limiting().len(), 5);
        assert_eq!(found.all().len(), 7);
    }

    #[test]
    fn version_2_has_one_root() {
        let found = Hierarchies::read("30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate").unwrap();
        assert_eq!(found.version(), Version::Two);
        assert_eq!((found.root("memory"), found.devices()), (Some(Path::new("/sys/fs/cgroup")), None));
        assert_eq!(found.container_roots(), found.all());
    }

    #[test]
    fn a_controller_that_is_missing_is_named() {
        let without = HYBRID.replace("/memory rw,relatime - cgroup cgroup rw,memory", "/memory rw,relatime - tmpfs x rw");
        assert!(Hierarchies::read(&without).unwrap_err().contains("`memory`"));
        assert!(Hierarchies::read("").unwrap_err().contains("no control groups"));
    }
}
