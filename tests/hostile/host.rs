//! The host around a hostile program: what it could leave there, and what its container may take of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::eventually;
use crate::support::server::{Server, docker};

/// The full ids of the containers that a server has made since `since`, whatever became of them: the engine's events remember.
pub fn made(server: &Server, since: u64) -> BTreeSet<String> {
    let of = |instance: String| {
        let (since, label) = (since.to_string(), format!("label=dev.quayside.instance={instance}"));
        let now = now().to_string();
        docker(&["events", "--since", &since, "--until", &now, "--filter", &label, "--filter", "event=create", "--format", "{{.ID}}"])
    };
    server.instances().into_iter().flat_map(|instance| of(instance).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Seconds since 1970, as the engine's events are told by; a second more, so that this very moment is within.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 1
}

/// Waits until no process and no control group of these containers is left.
pub async fn no_trace_of(containers: &BTreeSet<String>) {
    eventually("a host without processes and control groups of dead containers", || async {
        let groups = containers.iter().any(|id| groups(id).next().is_some());
        (!groups && !containers.iter().any(|id| has_process(id))).then_some(())
    })
    .await;
}

fn has_process(id: &str) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("cgroup"));
    processes.filter_map(|path| std::fs::read_to_string(path).ok()).any(|groups| groups.contains(id))
}

/// The folders of a container's control groups, of either version.
pub fn groups(id: &str) -> impl Iterator<Item = PathBuf> {
    let controllers = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    let names = [format!("docker/{id}"), format!("system.slice/docker-{id}.scope")];
    controllers
        .chain([PathBuf::from("/sys/fs/cgroup")])
        .flat_map(move |root| names.clone().map(|name| root.join(name)))
        .filter(|group| group.exists())
}

/// A figure of a container's control groups, while it is there.
pub fn figure(id: &str, file: &str) -> Option<u64> {
    groups(id).find_map(|group| std::fs::read_to_string(group.join(file)).ok()?.trim().parse().ok())
}

/// Core files in the places where a kernel or its helpers put them.
pub fn core_files() -> BTreeSet<PathBuf> {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let of_pattern = Path::new(pattern.trim()).parent().filter(|folder| folder.is_absolute()).map(Path::to_owned);
    let folders = ["/", "/tmp", "/var/crash", "/var/lib/systemd/coredump"].map(PathBuf::from).into_iter().chain(of_pattern);
    let files = folders.filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten().map(|entry| entry.path());
    files.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("core"))).collect()
}
