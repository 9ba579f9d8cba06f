//! What a container is made of, in the words of a container runtime (`config.json`), as a pure function.
//!
//! The same walls as those of the Docker adapter; the hostile programs in `tests/hostile` are the reasons. What the runtime
//! made of it is read back from the kernel before the request is sent (`proof`).

use std::path::Path;

use serde_json::{Value, json};

/// The first process of every container: reaps zombies, and lets signals reach a program that would otherwise be deaf as
/// process 1. Every unpacked image has an empty file of this name to mount it on.
pub(super) const INIT: &str = "/.init";

/// The home of the program, which is empty at the start.
pub(super) const WORKSPACE: &str = "/workspace";
/// The folder of a container in which the runtime finds a workspace that is mounted for it alone.
pub(super) const WORKSPACE_MOUNT: &str = "workspace";

const MIB: u64 = 1024 * 1024;

/// Resource limits of a process, each as soft and hard.
pub(super) const RLIMITS: [(&str, u64); 4] = [("RLIMIT_NOFILE", 1024), ("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 64 * MIB), ("RLIMIT_MSGQUEUE", 0)];

/// More likely than anything else on the machine to be ended when its memory runs out.
pub(super) const OOM_SCORE_ADJ: i32 = 500;

/// The name spaces that a container has for itself.
pub(super) const NAMESPACES: [&str; 6] = ["pid", "mount", "network", "ipc", "uts", "cgroup"];

/// Files of `/proc` and `/sys` that tell of the host or change it. Those of Docker's newest versions.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// crun's name for a filter that was compiled before, in base64. From its manual page.
const COMPILED: &str = "run.oci.seccomp_bpf_data";

/// What differs from one container to the next.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    /// The unpacked image.
    pub rootfs: &'a Path,
    /// A static program that becomes the first process.
    pub init: &'a Path,
    /// Whose processes they are, by the host's count.
    pub uid: u32,
    /// `NAME=value` of the image, then of the agent: a later one counts.
    pub env: Vec<String>,
    /// The program and its arguments.
    pub command: &'a [String],
    /// The host's folder that becomes `/workspace`, with limits of its own; a folder in memory without.
    pub workspace: Option<&'a Path>,
    /// The size of that folder in memory.
    pub workspace_bytes: u64,
    /// The path of the control group that the runtime is to make, where it makes one.
    pub cgroup: Option<String>,
    /// The seccomp profile, converted.
    pub seccomp: &'a Value,
    /// What the runtime made of it for an earlier container, for a runtime that takes that.
    pub compiled: Option<&'a str>,
}

/// The configuration of a container.
pub(super) fn config(parts: &Parts<'_>) -> Value {
    let mut args = vec![INIT, "--"];
    args.extend(parts.command.iter().map(String::as_str));
    let none: [&str; 0] = [];
    let mut linux = json!({
        "namespaces": NAMESPACES.map(|name| json!({ "type": name })),
        // Where the runtime manages devices it denies all but the usual ones.
        "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
        "seccomp": parts.seccomp,
        "maskedPaths": MASKED,
        "readonlyPaths": READ_ONLY,
    });
    if let Some(path) = &parts.cgroup {
        linux["cgroupsPath"] = json!(path);
    }
    // A runtime that does not know the annotation reads the profile.
    let annotations = parts.compiled.map_or_else(|| json!({}), |filter| json!({ COMPILED: filter }));
    json!({
        "ociVersion": "1.0.0",
        "annotations": annotations,
        "hostname": "sandbox",
        "root": { "path": parts.rootfs, "readonly": true },
        "process": {
            "terminal": false,
            "user": { "uid": parts.uid, "gid": parts.uid, "additionalGids": none },
            "args": args,
            "env": environment(&parts.env),
            "cwd": WORKSPACE,
            "capabilities": { "bounding": none, "effective": none, "inheritable": none, "permitted": none, "ambient": none },
            "rlimits": RLIMITS.map(|(name, value)| json!({ "type": name, "soft": value, "hard": value })),
            "noNewPrivileges": true,
            "oomScoreAdj": OOM_SCORE_ADJ,
        },
        "mounts": mounts(parts),
        "linux": linux,
    })
}

fn mounts(parts: &Parts<'_>) -> Value {
    let in_memory = |at: &str, limits: &str, exec: &str| {
        let mut options = vec!["nosuid".to_owned(), "nodev".to_owned(), exec.to_owned(), "mode=1777".to_owned()];
        options.extend(limits.split(',').map(str::to_owned));
        options.extend([format!("uid={}", parts.uid), format!("gid={}", parts.uid)]);
        json!({ "destination": at, "type": "tmpfs", "source": "tmpfs", "options": options })
    };
    let workspace = match parts.workspace {
        Some(folder) => {
            json!({ "destination": WORKSPACE, "type": "bind", "source": folder, "options": ["bind", "rw", "nosuid", "nodev", "rprivate"] })
        }
        // A size alone does not bound inodes. All of it counts against the memory limit.
        None => in_memory(WORKSPACE, &format!("size={},nr_inodes=8192", parts.workspace_bytes), "exec"),
    };
    json!([
        { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "strictatime", "mode=755", "size=64k", "nr_inodes=64"] },
        { "destination": INIT, "type": "bind", "source": parts.init, "options": ["bind", "ro", "nosuid", "nodev", "rprivate"] },
        { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "max=64"] },
        { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        in_memory("/dev/shm", "size=16m,nr_inodes=1024", "noexec"),
        { "destination": "/dev/mqueue", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "nosuid", "nodev", "noexec", "size=4k"] },
        in_memory("/tmp", "size=32m,nr_inodes=4096", "noexec"),
        workspace,
    ])
}

/// Each name once, with its last value.
fn environment(entries: &[String]) -> Vec<&str> {
    let mut kept: Vec<&str> = Vec::with_capacity(entries.len());
    for entry in entries {
        let name = entry.split('=').next().unwrap_or(entry);
        kept.retain(|earlier| earlier.split('=').next() != Some(name));
        kept.push(entry);
    }
    kept
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
