//! The host around a hostile program: what it could leave there, and what its container may take of it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quayside_shared::clock::{Clock, SystemClock};

use crate::support::eventually;
use crate::support::server::{Server, containers};

/// Notes the containers that a server makes until it is dropped: full ids by the engine's events, or without an engine
/// `instance/name` by their folders.
pub struct Follower {
    events: Option<Child>,
    made: Arc<Mutex<BTreeSet<String>>>,
}

/// A start alone takes several times as long.
const LOOK: Duration = Duration::from_millis(2);

impl Follower {
    /// Follows from the beginning of this second.
    pub fn of(server: &Server) -> Self {
        if containers::without_engine() {
            return Self::of_folders(server.instances());
        }
        let now = SystemClock.now().as_millis() / 1000;
        let mut command = Command::new("docker");
        command.args(["events", "--since", &now.to_string(), "--filter", "event=create", "--format", "{{.ID}}"]);
        for instance in server.instances() {
            command.args(["--filter", &format!("label=dev.quayside.instance={instance}")]);
        }
        let mut events = command.stdout(Stdio::piped()).spawn().expect("the docker command");
        let (lines, made) = (BufReader::new(events.stdout.take().expect("piped")).lines(), Arc::new(Mutex::new(BTreeSet::new())));
        let noted = Arc::clone(&made);
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|id| noted.lock().unwrap().extend([id])));
        Self { events: Some(events), made }
    }

    /// Looks until nobody else knows what it notes.
    fn of_folders(instances: Vec<String>) -> Self {
        let made = Arc::new(Mutex::new(BTreeSet::new()));
        let noted = Arc::downgrade(&made);
        std::thread::spawn(move || {
            while let Some(noted) = noted.upgrade() {
                for instance in &instances {
                    noted.lock().unwrap().extend(containers::of(instance).into_iter().map(|name| format!("{instance}/{name}")));
                }
                drop(noted);
                std::thread::sleep(LOOK);
            }
        });
        Self { events: None, made }
    }

    /// Those that were made until now.
    pub fn made(&self) -> BTreeSet<String> {
        self.made.lock().unwrap().clone()
    }

    /// Waits until it has heard of a container, and until no process and no control group of those that it heard of is left.
    pub async fn sees_no_trace(&self) {
        eventually("the news of a container", || async { (!self.made().is_empty()).then_some(()) }).await;
        no_trace_of(&self.made()).await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(events) = &mut self.events {
            let _ended = events.kill();
            let _reaped = events.wait();
        }
    }
}

/// Waits until no process and no control group of these containers is left.
async fn no_trace_of(containers: &BTreeSet<String>) {
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
    let names = [format!("docker/{id}"), format!("system.slice/docker-{id}.scope"), format!("quayside/{id}")];
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
