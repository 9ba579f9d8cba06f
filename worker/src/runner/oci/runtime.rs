//! The container runtime: which one, how it is called, and what else must be on the machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::{Component, Fault, FaultKind};
use super::groups::{Group, Hierarchies, Version};

/// Where programs of the system are, whatever the worker's own path says.
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Static builds of the init that Docker uses: a container has no libraries of ours. By Debian's name, then by Docker's.
const INITS: [&str; 2] = ["tini-static", "../libexec/docker/docker-init"];
/// What reads and unpacks images.
const TOOLS: [&str; 2] = ["skopeo", "umoci"];

/// How a runtime wants to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Makes no control group when told so, so it starts inside ours.
    Crun,
    /// Always makes a control group: one below ours. It stays outside itself, for it is as large as a small agent.
    Runc,
    /// gVisor: a kernel of its own in the group, which catches the program's system calls.
    Runsc,
}

/// A runtime on this machine.
#[derive(Debug, Clone)]
pub(super) struct Runtime {
    pub kind: Kind,
    pub path: PathBuf,
    /// The static program that becomes the first process.
    pub init: PathBuf,
    /// For people: `crun 1.8.1`.
    pub version: String,
}

impl Runtime {
    /// The one that is asked for by name or path; without, `crun`, else `runc`.
    ///
    /// # Errors
    /// [`FaultKind::Refused`] with what to install when something is missing.
    pub(super) fn find(asked: Option<&str>) -> Result<Self, Fault> {
        let refused = |what: String| Fault::new(FaultKind::Refused, what);
        let path = match asked {
            Some(name) => find(name).ok_or_else(|| refused(format!("the container runtime `{name}` is not on this machine")))?,
            None => ["crun", "runc"].into_iter().find_map(find).ok_or_else(|| {
                refused("no container runtime is on this machine: install `crun` (or `runc`); `infra/dev/oci.sh` does it on Debian".to_owned())
            })?,
        };
        let kind = match path.file_name().and_then(|name| name.to_str()) {
            Some(name) if name.starts_with("crun") => Kind::Crun,
            Some(name) if name.starts_with("runc") => Kind::Runc,
            Some(name) if name.starts_with("runsc") => Kind::Runsc,
            _ => return Err(refused(format!("`{}` is none of the container runtimes that are known here: crun, runc, runsc", path.display()))),
        };
        let init = INITS.into_iter().find_map(find);
        let init =
            init.ok_or_else(|| refused("the init for containers is not on this machine: install `tini` (it brings `tini-static`)".to_owned()))?;
        if let Some(missing) = TOOLS.into_iter().find(|tool| find(tool).is_none()) {
            return Err(refused(format!("`{missing}`, which reads images, is not on this machine: install it")));
        }
        Ok(Self { version: version(&path), kind, path, init })
    }

    /// What containers stand on.
    pub(super) fn components(&self) -> Vec<Component> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let (name, version) = self.version.split_once(' ').unwrap_or((&self.version, ""));
        vec![Component::new(name, version), Component::new("linux", kernel.trim())]
    }

    /// The mount that must be hidden from it, if any.
    pub(super) fn hidden(&self, hierarchies: &Hierarchies) -> Option<PathBuf> {
        if self.kind == Kind::Crun && hierarchies.version() == Version::One { hierarchies.unified().map(Path::to_owned) } else { None }
    }

    /// Processes that the limit of the container's group allows beyond the agent's.
    pub(super) const fn processes_inside(&self) -> u32 {
        match self.kind {
            // crun, which waits there, is one of the agent's own: its limit is a promise.
            Kind::Crun | Kind::Runc => 0,
            // Threads of the kernel that it brings, and of the process that serves its files.
            Kind::Runsc => 512,
        }
    }

    /// The control group that it makes below ours.
    pub(super) fn own_group(&self, group: &Group) -> Option<String> {
        (self.kind == Kind::Runc).then(|| format!("{}/runc", group.path()))
    }

    /// The files through which it enters control groups before it begins.
    pub(super) fn entries(&self, group: &Group, devices: Option<PathBuf>) -> Vec<PathBuf> {
        match self.kind {
            Kind::Crun | Kind::Runsc => group.entries().into_iter().chain(devices).collect(),
            // Only to be found should its worker die.
            Kind::Runc => group.entry_to_be_found().into_iter().collect(),
        }
    }

    /// The command that runs the container `name` in the foreground, with what it keeps below `state`.
    pub(super) fn command(&self, state: &Path, name: &str) -> Vec<OsString> {
        let mut command: Vec<OsString> = vec![self.path.clone().into(), "--root".into(), state.join("runtime").into()];
        command.extend(["--log".into(), state.join("log").into(), "--log-format".into(), "json".into()]);
        match self.kind {
            Kind::Crun => command.push("--cgroup-manager=disabled".into()),
            Kind::Runc => {}
            Kind::Runsc => command.extend(["--ignore-cgroups", "--network=none", "--platform=ptrace", "--overlay=false"].map(Into::into)),
        }
        command.extend(["run".into(), "--pid-file".into(), state.join("pid").into(), "--bundle".into(), state.into(), name.into()]);
        command
    }
}

/// A program by its path, or by its name in the folders of the system.
fn find(name: &str) -> Option<PathBuf> {
    if name.starts_with('/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_file());
    }
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// What it calls itself, on its first line.
fn version(runtime: &Path) -> String {
    let name = runtime.file_name().unwrap_or(runtime.as_os_str()).to_string_lossy().into_owned();
    let output = Command::new(runtime).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let words = text.lines().next().unwrap_or_default().split_whitespace().skip_while(|word| *word != "version");
    words.skip(1).map(|word| word.trim_start_matches("release-")).next().map_or_else(|| name.clone(), |version| format!("{name} {version}"))
}
