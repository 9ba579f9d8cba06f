//! What a round could leave on the machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::engine::docker_at;

/// Everything on this machine that an engine below `folder` could have made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub containers: BTreeSet<String>,
    pub volumes: BTreeSet<String>,
    pub mounts: BTreeSet<String>,
    pub control_groups: BTreeSet<String>,
}

impl Host {
    /// As it is now. Control groups are those of the containers `ids`, because the engines of a machine share a parent.
    pub fn now<'a>(socket: &Path, folder: &Path, ids: impl Iterator<Item = &'a str>) -> Self {
        let lines = |arguments: &[&str]| docker_at(socket, arguments).expect("the engine answers").lines().map(str::to_owned).collect();
        let below = folder.display().to_string();
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|mount| mount.starts_with(&below));
        Self {
            containers: lines(&["ps", "-aq", "--no-trunc"]),
            volumes: lines(&["volume", "ls", "-q"]),
            mounts: mounts.map(str::to_owned).collect(),
            control_groups: ids.filter(|id| has_control_group(id)).map(str::to_owned).collect(),
        }
    }

    /// What is there now and was not `before`; nothing when nothing is.
    pub fn more_than(&self, before: &Self) -> Option<String> {
        let more = [
            ("containers", &self.containers, &before.containers),
            ("volumes", &self.volumes, &before.volumes),
            ("mounts", &self.mounts, &before.mounts),
            ("control groups", &self.control_groups, &before.control_groups),
        ];
        let more = more.map(|(what, now, then)| (what, now.difference(then).collect::<Vec<_>>()));
        let more: Vec<_> = more.iter().filter(|(_, left)| !left.is_empty()).map(|(what, left)| format!("{what}: {left:?}")).collect();
        (!more.is_empty()).then(|| more.join("; "))
    }
}

/// Removes the control groups of the containers `ids` that have no process. An engine that is killed while it makes or removes
/// a container leaves such ones, and no client of an engine can take them away. One with a process in it stays, and is told.
pub fn remove_empty_control_groups<'a>(ids: impl Iterator<Item = &'a str>) {
    for group in ids.flat_map(control_groups) {
        let _still_used = std::fs::remove_dir(group);
    }
}

fn has_control_group(id: &str) -> bool {
    control_groups(id).next().is_some()
}

fn control_groups(id: &str) -> impl Iterator<Item = PathBuf> {
    let controllers = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    let roots = controllers.chain(["/sys/fs/cgroup".into()]);
    let names = [format!("docker/{id}"), format!("system.slice/docker-{id}.scope")];
    roots.flat_map(move |root| names.clone().map(|name| root.join(name))).filter(|group| group.exists())
}
