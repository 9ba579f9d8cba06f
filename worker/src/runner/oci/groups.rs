//! Control groups: one for each container, made, limited, read and removed by us on version 1, hybrid and version 2.
//!
//! A container's group is `/quayside/<instance>/<name of the container>` below every hierarchy that limits something. The
//! runtime starts inside it, so that nothing it makes is ever outside, and whatever a dead worker left is found by its path.

mod group;
mod mounts;
mod oom;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub(super) use group::{Group, Limits};
pub(super) use mounts::{Hierarchies, Version};
pub(super) use oom::OomWatch;

/// The group above all of ours.
const PARENT: &str = "quayside";
/// What a container may open where the kernel lists devices (version 1): making nodes takes a capability that none has.
const DEVICES: [&str; 11] =
    ["c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm", "c 10:200 rwm"];

/// The groups of one instance.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    hierarchies: Hierarchies,
    instance: String,
}

impl Groups {
    /// Those of `instance` in these hierarchies; makes nothing.
    pub(super) const fn new(hierarchies: Hierarchies, instance: String) -> Self {
        Self { hierarchies, instance }
    }

    /// The hierarchies they are in.
    pub(super) const fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// The path of a container's group below the root of every hierarchy.
    pub(super) fn path_of(&self, name: &str) -> String {
        format!("/{PARENT}/{}/{name}", self.instance)
    }

    /// The group of the container `name`, which need not be there.
    pub(super) fn group(&self, name: &str) -> Group {
        Group::new(self.hierarchies.clone(), self.path_of(name))
    }

    /// Makes the group of the container `name` with its limits.
    pub(super) fn create(&self, name: &str, limits: &Limits) -> io::Result<Group> {
        let group = self.group(name);
        // Somebody who removes the empty group of an instance may come between its making and ours, once.
        match self.create_parents().and_then(|()| group.create(limits)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.create_parents().and_then(|()| group.create(limits))?,
            done => done?,
        }
        Ok(group)
    }

    /// Names of the groups that are there, whatever made them.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = std::collections::BTreeSet::new();
        for root in self.hierarchies.all() {
            names.extend(folders(&self.instance_below(root))?);
        }
        Ok(names.into_iter().collect())
    }

    /// Removes what holds the groups of the instance together, if none is left.
    pub(super) fn remove_empty(&self) {
        for root in self.hierarchies.all() {
            // It fails while a container has a group in it, and that is the point.
            let _not_empty = fs::remove_dir(self.instance_below(root));
        }
    }

    fn instance_below(&self, root: &Path) -> PathBuf {
        root.join(PARENT).join(&self.instance)
    }

    fn create_parents(&self) -> io::Result<()> {
        for root in self.hierarchies.limiting() {
            let instance = self.instance_below(root);
            if instance.exists() {
                continue;
            }
            fs::create_dir_all(&instance)?;
            if self.hierarchies.version() == Version::Two {
                // A controller reaches a group when every group above hands it on.
                for above in [root.to_owned(), root.join(PARENT), instance] {
                    fs::write(above.join("cgroup.subtree_control"), "+cpu +memory +pids")?;
                }
            }
        }
        self.deny_devices()
    }

    /// Once for all containers of the instance: the rules are the same, and each would take a dozen writes.
    fn deny_devices(&self) -> io::Result<()> {
        let Some(root) = self.hierarchies.devices() else { return Ok(()) };
        let group = self.instance_below(root);
        // It begins with everything allowed.
        if !fs::read_to_string(group.join("devices.list"))?.starts_with('a') {
            return Ok(());
        }
        fs::write(group.join("devices.deny"), "a")?;
        DEVICES.iter().try_for_each(|rule| fs::write(group.join("devices.allow"), rule))
    }

    /// What a process writes itself into to be under these rules; none where the kernel keeps no list.
    pub(super) fn devices_entry(&self) -> Option<PathBuf> {
        self.hierarchies.devices().map(|root| self.instance_below(root).join("cgroup.procs"))
    }
}

fn folders(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}
