//! The suite over the runtimes of this machine, and what only they can show. It needs root, as the runner does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use quayside_shared::ids::RunId;
use quayside_worker::runner::oci::{OciOptions, OciRunner};
use quayside_worker::runner::{LaunchSpec, Runner, Sandbox};

use super::docker::{UID_BASE, program, python};
use super::{Behaviour, Fixture, serve};

/// Shared by all tests and with `make run`: an image is unpacked once.
pub const IMAGES: &str = "/var/lib/quayside/images";
pub const STATE: &str = "/run/quayside/containers";

/// A runner whose containers no other test touches.
pub struct OnOci {
    runner: OciRunner,
    instance: String,
}

pub fn options(instance: &str, runtime: &str) -> OciOptions {
    OciOptions {
        instance: instance.to_owned(),
        runtime: Some(runtime.to_owned()),
        uid_base: UID_BASE,
        images: IMAGES.into(),
        state: STATE.into(),
        docker_host: "unix:///var/run/docker.sock".to_owned(),
    }
}

impl OnOci {
    pub fn new(runtime: &str) -> Self {
        let instance = format!("conformance-{}", RunId::random());
        let runner = OciRunner::connect(options(&instance, runtime)).expect("a machine with the runtime, and root");
        Self { runner, instance }
    }

    /// Runs a Python program to its end and returns what it wrote.
    pub async fn python(&self, program: &str) -> String {
        self.python_in(self.spec(&Behaviour::Echo), program).await
    }

    pub async fn python_in(&self, mut spec: LaunchSpec, program: &str) -> String {
        spec.agent.command = python(program);
        let (written, exit) = serve(self.runner.launch(&spec).await.expect("a launch"), "").await;
        let log = String::from_utf8_lossy(&written.stderr).into_owned();
        assert_eq!(exit.code, 0, "{log}");
        String::from_utf8(written.stdout).expect("text").trim().to_owned()
    }

    /// Launches a Python program and waits until it has written something.
    pub async fn begun(&self, program: &str) -> Box<dyn Sandbox> {
        let mut spec = self.spec(&Behaviour::Echo);
        spec.agent.command = python(program);
        let mut sandbox = self.runner.launch(&spec).await.expect("a launch");
        sandbox.send(Bytes::new()).expect("the first send");
        sandbox.next_output().await.expect("output").expect("without a fault");
        sandbox
    }

    pub fn instance(&self) -> &str {
        &self.instance
    }

    fn group_files(&self, name: &str) -> impl Iterator<Item = PathBuf> {
        let groups = groups_of(&self.instance).into_iter().flat_map(|group| below(&group));
        groups.map(move |group| group.join(name)).filter(|file| file.exists())
    }

    pub fn group_exists(&self, name: &str) -> bool {
        self.group_files(name).next().is_some()
    }

    /// The one file of this name in the group of the only container.
    pub fn group_file(&self, name: &str) -> PathBuf {
        self.group_files(name).next().unwrap_or_else(|| panic!("no group has a file {name}"))
    }

    /// Ids of the processes in its groups, of the runtimes' own ones too.
    pub fn processes(&self) -> Vec<i32> {
        let groups: Vec<PathBuf> = groups_of(&self.instance).into_iter().flat_map(|group| below(&group)).collect();
        let inner = groups.iter().flat_map(|group| below(group));
        let files = groups.iter().cloned().chain(inner).filter_map(|group| std::fs::read_to_string(group.join("cgroup.procs")).ok());
        let found: BTreeSet<i32> = files.flat_map(|text| text.lines().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect();
        found.into_iter().collect()
    }

    /// Ids of the runtimes that wait for its containers.
    pub fn runtimes(&self) -> Vec<i32> {
        let processes = below(Path::new("/proc")).into_iter().filter(|process| {
            let command = std::fs::read_to_string(process.join("cmdline")).unwrap_or_default();
            command.contains("--bundle") && command.contains(&self.instance)
        });
        processes.filter_map(|process| process.file_name()?.to_str()?.parse().ok()).collect()
    }
}

/// The groups of an instance, in every hierarchy.
pub fn groups_of(instance: &str) -> Vec<PathBuf> {
    let hierarchies = below(Path::new("/sys/fs/cgroup"));
    let roots = hierarchies.into_iter().chain([PathBuf::from("/sys/fs/cgroup")]);
    let groups: BTreeSet<PathBuf> = roots.map(|root| root.join("quayside").join(instance)).filter(|group| group.exists()).collect();
    groups.into_iter().collect()
}

fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// What an instance has on this machine: groups and folders of containers, mounts, processes.
pub fn traces_of(instance: &str) -> Vec<String> {
    let groups = groups_of(instance).into_iter().flat_map(|group| below(&group)).map(|path| path.display().to_string());
    let folders = below(&Path::new(STATE).join(instance)).into_iter().map(|path| path.display().to_string());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts: Vec<String> = mounts.lines().filter(|line| line.contains(instance)).map(str::to_owned).collect();
    let processes = below(Path::new("/proc")).into_iter().filter_map(|process| {
        let command = std::fs::read_to_string(process.join("cmdline")).ok()?;
        command.contains(instance).then(|| format!("{}: {}", process.display(), command.replace('\0', " ")))
    });
    groups.chain(folders).chain(mounts).chain(processes).collect()
}

#[async_trait]
impl Fixture for OnOci {
    fn runner(&self) -> &dyn Runner {
        &self.runner
    }

    fn program(&self, behaviour: &Behaviour) -> (String, Vec<String>) {
        program(behaviour)
    }

    async fn leftovers(&self) -> usize {
        let folders = below(&Path::new(STATE).join(&self.instance));
        let groups = groups_of(&self.instance).into_iter().flat_map(|group| below(&group));
        let names: BTreeSet<_> = folders.into_iter().chain(groups).filter_map(|path| path.file_name().map(ToOwned::to_owned)).collect();
        if !names.is_empty() {
            return names.len();
        }
        let traces = traces_of(&self.instance);
        for trace in &traces {
            eprintln!("left behind: {trace}");
        }
        traces.len()
    }
}

mod crun {
    use super::super::conformance;
    conformance!(super::OnOci::new("crun"));
}

mod runc {
    use super::super::conformance;
    conformance!(super::OnOci::new("runc"));
}
