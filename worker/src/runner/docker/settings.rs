//! What a sandbox is made of, as a pure function, and the proof that the engine made it so.
//!
//! "Memory, CPU and no network" is no sandbox. Every setting here holds a way out or a shared resource shut; the hostile
//! programs in `tests/hostile` are the reasons.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use quayside_shared::agent::Network;

use super::super::shares::cpu_shares;
use super::super::{Fault, FaultKind, LaunchSpec};
use super::labels;

/// Deny by default: the engine's own profile leaves families of sockets and system calls open that are known ways out.
const SECCOMP: &str = include_str!("../../../../infra/docker/seccomp.json");

/// Where a program may write, and where it starts.
const WORKSPACE: &str = "/workspace";

const MIB: i64 = 1024 * 1024;

/// The body of the create call for `spec`, run as `uid`, with `/workspace` from the host's `workspace` when there is one.
pub(super) fn create_body(
    spec: &LaunchSpec,
    uid: u32,
    instance: &str,
    runtime: Option<&str>,
    workspace: Option<&Path>,
) -> Result<ContainerCreateBody, Fault> {
    let agent = &spec.agent;
    let refused = |what: &str| Fault::new(FaultKind::Refused, format!("the {what} of agent `{}` is out of range", agent.name));
    let memory = i64::try_from(agent.memory).map_err(|_| refused("memory"))?;
    let nano_cpus = agent.cpus * 1e9;
    if !(1.0..1e15).contains(&nano_cpus) {
        return Err(refused("cpus"));
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked just above")]
    let nano_cpus = nano_cpus.round() as i64;
    let isolated = agent.network == Network::None;
    // The image's entry point would get the command as arguments; an agent's command is the program itself.
    let (entrypoint, cmd) = match agent.command.split_first() {
        Some((program, arguments)) => (Some(vec![program.clone()]), Some(arguments.to_vec())),
        None => (None, None),
    };
    // A size alone does not bound inodes. All of it counts against the memory limit.
    let mut tmpfs = HashMap::from([
        ("/tmp".to_owned(), writable("nr_inodes=4096,size=32m", uid)),
        ("/dev/shm".to_owned(), writable("nr_inodes=1024,size=16m", uid)),
        ("/dev/mqueue".to_owned(), "ro".to_owned()),
    ]);
    if workspace.is_none() {
        tmpfs.insert("/workspace".to_owned(), writable(&format!("nr_inodes=8192,size={},exec", agent.workspace), uid));
    }
    let mut env = vec!["HOME=/workspace".to_owned(), "LANG=C.UTF-8".to_owned()];
    env.extend(agent.env.iter().map(|(name, value)| format!("{name}={value}")));

    Ok(ContainerCreateBody {
        image: Some(agent.image.clone()),
        entrypoint,
        cmd,
        env: Some(env),
        user: Some(format!("{uid}:{uid}")),
        working_dir: Some("/workspace".to_owned()),
        hostname: Some("sandbox".to_owned()),
        labels: Some(labels::of(instance, spec)),
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        open_stdin: Some(true),
        // Without it the end of the request would detach us instead of reaching the program.
        stdin_once: Some(true),
        tty: Some(false),
        // An image's health check would run programs beside the agent.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        // Halves the time of a start: the engine skips its network set-up, the name space is empty all the same.
        network_disabled: Some(isolated),
        host_config: Some(HostConfig {
            network_mode: Some(if isolated { "none" } else { "bridge" }.to_owned()),
            ipc_mode: Some("none".to_owned()),
            // Reaps zombies, and lets signals reach a program that would otherwise be deaf as process 1.
            init: Some(true),
            auto_remove: Some(false),
            restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
            privileged: Some(false),
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned(), format!("seccomp={SECCOMP}")]),
            memory: Some(memory),
            memory_swap: Some(memory),
            nano_cpus: Some(nano_cpus),
            // Who goes first when CPUs are short: API and worker before containers, containers by what they may use.
            cpu_shares: Some(i64::try_from(cpu_shares(agent.cpus)).unwrap_or(i64::MAX)),
            pids_limit: Some(i64::from(agent.pids)),
            oom_score_adj: Some(500),
            ulimits: Some(vec![ulimit("nofile", 1024), ulimit("core", 0), ulimit("fsize", 64 * MIB), ulimit("msgqueue", 0)]),
            tmpfs: Some(tmpfs),
            mounts: workspace.map(|workspace| vec![bound(workspace)]),
            // Output goes through the attached stream only: a log file would let it fill the host's disk.
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            runtime: runtime.map(str::to_owned),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    })
}

/// Options of a folder in memory for the program. It belongs to the program's user: where the image has a folder of that
/// name, older versions of `runc` give the mount that folder's mode, whatever is asked for.
fn writable(limits: &str, uid: u32) -> String {
    format!("rw,nosuid,nodev,{limits},mode=1777,uid={uid},gid={uid}")
}

/// The one folder of the host that a container sees: its own workspace, and nothing that is mounted there later.
fn bound(workspace: &Path) -> Mount {
    Mount {
        target: Some(WORKSPACE.to_owned()),
        source: Some(workspace.to_string_lossy().into_owned()),
        typ: Some(MountType::BIND),
        bind_options: Some(MountBindOptions { propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE), ..MountBindOptions::default() }),
        ..Mount::default()
    }
}

/// Whether the mounts of the container are the one that was asked for, or none.
fn mounted(asked: &HostConfig, found: &ContainerInspectResponse) -> bool {
    let asked = asked.mounts.as_deref().unwrap_or_default();
    let found = found.mounts.as_deref().unwrap_or_default();
    asked.len() == found.len()
        && asked.iter().zip(found).all(|(asked, found)| {
            found.typ.as_deref() == Some("bind")
                && found.source == asked.source
                && found.destination == asked.target
                && found.propagation.as_deref() == Some("rprivate")
        })
}

fn ulimit(name: &str, value: i64) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(name.to_owned()), soft: Some(value), hard: Some(value) }
}

/// The first setting that the engine made weaker or other than `wanted`, by its name in the engine's API.
pub(super) fn difference(wanted: &ContainerCreateBody, found: &ContainerInspectResponse) -> Option<String> {
    let (Some(host), Some(config)) = (&found.host_config, &found.config) else {
        return Some("HostConfig".to_owned());
    };
    let asked = wanted.host_config.clone().unwrap_or_default();
    let command = wanted.entrypoint.is_none() || (config.entrypoint == wanted.entrypoint && same(&config.cmd, &wanted.cmd));
    let checks = [
        ("Config.Image", config.image == wanted.image),
        ("Config.Entrypoint", command),
        ("Config.Env", contains(&config.env, &wanted.env)),
        ("Config.User", config.user == wanted.user),
        ("Config.WorkingDir", config.working_dir == wanted.working_dir),
        ("Config.Hostname", config.hostname == wanted.hostname),
        ("Config.Labels", labels::contain(&config.labels, &wanted.labels)),
        ("Config.AttachStdin", config.attach_stdin == wanted.attach_stdin),
        ("Config.AttachStdout", config.attach_stdout == wanted.attach_stdout),
        ("Config.AttachStderr", config.attach_stderr == wanted.attach_stderr),
        ("Config.OpenStdin", config.open_stdin == wanted.open_stdin),
        ("Config.StdinOnce", config.stdin_once == wanted.stdin_once),
        ("Config.Tty", is_false(config.tty)),
        ("Config.Healthcheck", test_of(&config.healthcheck) == test_of(&wanted.healthcheck)),
        ("Config.NetworkDisabled", config.network_disabled.unwrap_or(false) == wanted.network_disabled.unwrap_or(false)),
        ("HostConfig.NetworkMode", host.network_mode == asked.network_mode),
        ("HostConfig.IpcMode", host.ipc_mode == asked.ipc_mode),
        ("HostConfig.Init", host.init == asked.init),
        ("HostConfig.AutoRemove", is_false(host.auto_remove)),
        ("HostConfig.RestartPolicy", never_restarts(host.restart_policy.as_ref())),
        ("HostConfig.Privileged", host.privileged == Some(false)),
        ("HostConfig.ReadonlyRootfs", host.readonly_rootfs == asked.readonly_rootfs),
        ("HostConfig.CapDrop", host.cap_drop == asked.cap_drop),
        ("HostConfig.CapAdd", same(&host.cap_add, &None)),
        ("HostConfig.SecurityOpt", contains(&host.security_opt, &asked.security_opt) && contains(&asked.security_opt, &host.security_opt)),
        ("HostConfig.Memory", host.memory == asked.memory),
        ("HostConfig.MemorySwap", host.memory_swap == asked.memory_swap),
        ("HostConfig.NanoCpus", host.nano_cpus == asked.nano_cpus),
        ("HostConfig.CpuShares", host.cpu_shares == asked.cpu_shares),
        ("HostConfig.PidsLimit", host.pids_limit == asked.pids_limit),
        ("HostConfig.OomScoreAdj", host.oom_score_adj == asked.oom_score_adj),
        ("HostConfig.OomKillDisable", is_false(host.oom_kill_disable)),
        ("HostConfig.Ulimits", contains(&host.ulimits, &asked.ulimits)),
        ("HostConfig.Tmpfs", host.tmpfs == asked.tmpfs),
        ("HostConfig.LogConfig", log_type(host) == log_type(&asked)),
        ("HostConfig.Runtime", asked.runtime.is_none() || host.runtime == asked.runtime),
        ("HostConfig.Binds", same(&host.binds, &None)),
        ("HostConfig.Mounts", same(&host.mounts, &asked.mounts)),
        ("HostConfig.VolumesFrom", same(&host.volumes_from, &None)),
        ("HostConfig.Devices", same(&host.devices, &None)),
        ("HostConfig.DeviceRequests", same(&host.device_requests, &None)),
        ("HostConfig.DeviceCgroupRules", same(&host.device_cgroup_rules, &None)),
        ("HostConfig.GroupAdd", same(&host.group_add, &None)),
        ("HostConfig.PidMode", is_empty(&host.pid_mode)),
        ("HostConfig.UTSMode", is_empty(&host.uts_mode)),
        ("HostConfig.UsernsMode", is_empty(&host.userns_mode)),
        ("HostConfig.CgroupParent", is_empty(&host.cgroup_parent)),
        ("HostConfig.Sysctls", host.sysctls.as_ref().is_none_or(HashMap::is_empty)),
        ("HostConfig.PortBindings", host.port_bindings.as_ref().is_none_or(HashMap::is_empty)),
        // An empty list would unmask what the engine masks by itself.
        ("HostConfig.MaskedPaths", host.masked_paths.as_ref().is_some_and(|paths| !paths.is_empty())),
        ("HostConfig.ReadonlyPaths", host.readonly_paths.as_ref().is_some_and(|paths| !paths.is_empty())),
        // A volume that the image declares would be a writable disk without a limit.
        ("Mounts", mounted(&asked, found)),
    ];
    checks.into_iter().find(|(_, holds)| !holds).map(|(name, _)| name.to_owned())
}

/// Whether two lists are equal; a missing one is an empty one.
fn same<T: PartialEq>(a: &Option<Vec<T>>, b: &Option<Vec<T>>) -> bool {
    a.as_deref().unwrap_or_default() == b.as_deref().unwrap_or_default()
}

/// Whether every entry of `part` is in `whole`.
fn contains<T: PartialEq>(whole: &Option<Vec<T>>, part: &Option<Vec<T>>) -> bool {
    let whole = whole.as_deref().unwrap_or_default();
    part.as_deref().unwrap_or_default().iter().all(|entry| whole.contains(entry))
}

fn is_false(flag: Option<bool>) -> bool {
    !flag.unwrap_or(false)
}

fn is_empty(text: &Option<String>) -> bool {
    text.as_deref().unwrap_or_default().is_empty()
}

fn test_of(check: &Option<HealthConfig>) -> Option<&Vec<String>> {
    check.as_ref().and_then(|check| check.test.as_ref())
}

fn never_restarts(policy: Option<&RestartPolicy>) -> bool {
    let name = policy.and_then(|policy| policy.name);
    matches!(name, None | Some(RestartPolicyNameEnum::NO | RestartPolicyNameEnum::EMPTY))
}

fn log_type(host: &HostConfig) -> Option<&String> {
    host.log_config.as_ref().and_then(|log| log.typ.as_ref())
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
