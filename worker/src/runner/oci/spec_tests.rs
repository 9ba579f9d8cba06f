//! Every wall is in the configuration, and what comes from an agent stays in its place.

use serde_json::json;

use super::*;

fn parts<'a>(command: &'a [String], seccomp: &'a Value) -> Parts<'a> {
    Parts {
        rootfs: Path::new("/images/x/rootfs"),
        init: Path::new("/usr/bin/tini-static"),
        uid: 100_002,
        env: ["PATH=/bin", "HOME=/root", "HOME=/workspace", "KEY=a=b c"].map(str::to_owned).to_vec(),
        command,
        workspace: None,
        workspace_bytes: 64 << 20,
        cgroup: None,
        seccomp,
        compiled: None,
    }
}

fn made(change: impl FnOnce(&mut Parts<'_>)) -> Value {
    let command = ["python3", "-c", "print('$(id)')"].map(str::to_owned);
    let seccomp = json!({ "defaultAction": "SCMP_ACT_ERRNO" });
    let mut parts = parts(&command, &seccomp);
    change(&mut parts);
    config(&parts)
}

fn mount<'a>(config: &'a Value, at: &str) -> &'a Value {
    let mounts = config["mounts"].as_array().unwrap();
    let mut found = mounts.iter().filter(|mount| mount["destination"] == at);
    let mount = found.next().unwrap_or_else(|| panic!("nothing is mounted at {at}"));
    assert!(found.next().is_none(), "{at} is mounted twice");
    mount
}

fn options(config: &Value, at: &str) -> Vec<String> {
    serde_json::from_value(mount(config, at)["options"].clone()).unwrap()
}

#[test]
fn a_process_has_no_privileges() {
    let process = &made(|_| {})["process"];
    assert_eq!(process["user"], json!({ "uid": 100_002, "gid": 100_002, "additionalGids": [] }));
    for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
        assert_eq!(process["capabilities"][set], json!([]), "{set}");
    }
    assert_eq!((&process["noNewPrivileges"], &process["terminal"]), (&json!(true), &json!(false)));
    assert_eq!(process["oomScoreAdj"], 500);
    assert_eq!(
        process["rlimits"],
        json!([
            { "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024 },
            { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
            { "type": "RLIMIT_FSIZE", "soft": 64 << 20, "hard": 64 << 20 },
            { "type": "RLIMIT_MSGQUEUE", "soft": 0, "hard": 0 },
        ])
    );
}

#[test]
fn every_name_space_is_its_own() {
    let config = made(|_| {});
    let spaces = config["linux"]["namespaces"].as_array().unwrap();
    let types: Vec<&str> = spaces.iter().map(|space| space["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["pid", "mount", "network", "ipc", "uts", "cgroup"]);
    assert!(spaces.iter().all(|space| space.get("path").is_none()), "a name space with a path is somebody else's");
    assert_eq!(config["hostname"], "sandbox");
    assert!(config["linux"].get("sysctl").is_none() && config.get("hooks").is_none());
}

#[test]
fn nothing_is_writable_but_bounded_memory() {
    let config = made(|_| {});
    assert_eq!(config["root"], json!({ "path": "/images/x/rootfs", "readonly": true }));
    for (at, limits) in
        [("/tmp", ["size=32m", "nr_inodes=4096"]), ("/dev/shm", ["size=16m", "nr_inodes=1024"]), ("/workspace", ["size=67108864", "nr_inodes=8192"])]
    {
        let options = options(&config, at);
        for needed in limits.into_iter().chain(["nosuid", "nodev", "uid=100002", "gid=100002"]) {
            assert!(options.iter().any(|option| option == needed), "{at}: {needed} is missing");
        }
        assert_eq!(mount(&config, at)["type"], "tmpfs");
    }
    for at in ["/sys", "/dev/mqueue", INIT] {
        assert!(options(&config, at).iter().any(|option| option == "ro"), "{at} can be written");
    }
    let at: Vec<&str> = config["mounts"].as_array().unwrap().iter().map(|mount| mount["destination"].as_str().unwrap()).collect();
    assert_eq!(at, ["/proc", "/dev", INIT, "/dev/pts", "/sys", "/dev/shm", "/dev/mqueue", "/tmp", "/workspace"], "and nothing else is mounted");
    let binds = config["mounts"].as_array().unwrap().iter().filter(|mount| mount["type"] == "bind");
    assert_eq!(binds.map(|mount| &mount["source"]).collect::<Vec<_>>(), ["/usr/bin/tini-static"], "nothing of the host but the init");
}

#[test]
fn a_workspace_of_the_host_is_bound_alone() {
    let config = made(|parts| parts.workspace = Some(Path::new("/run/quayside/x/workspace")));
    assert_eq!(mount(&config, "/workspace")["source"], "/run/quayside/x/workspace");
    for needed in ["bind", "nosuid", "nodev", "rprivate"] {
        assert!(options(&config, "/workspace").iter().any(|option| option == needed), "{needed} is missing");
    }
}

#[test]
fn the_hosts_files_are_masked() {
    let config = made(|_| {});
    let listed = |name: &str, path: &str| config["linux"][name].as_array().unwrap().contains(&json!(path));
    for path in ["/proc/kcore", "/proc/keys", "/proc/sched_debug", "/proc/timer_list", "/proc/acpi", "/sys/firmware", "/sys/devices/virtual/powercap"]
    {
        assert!(listed("maskedPaths", path), "{path} is seen");
    }
    for path in ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"] {
        assert!(listed("readonlyPaths", path), "{path} can be written");
    }
    assert_eq!(config["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(config["linux"]["resources"]["devices"], json!([{ "allow": false, "access": "rwm" }]));
}

#[test]
fn the_command_is_arguments_and_the_last_value_of_a_variable_counts() {
    let process = &made(|_| {})["process"];
    assert_eq!(process["args"], json!([INIT, "--", "python3", "-c", "print('$(id)')"]));
    assert_eq!(process["env"], json!(["PATH=/bin", "HOME=/workspace", "KEY=a=b c"]));
    assert_eq!(process["cwd"], "/workspace");
}

#[test]
fn a_runtime_that_makes_a_group_is_told_where() {
    assert!(made(|_| {})["linux"].get("cgroupsPath").is_none());
    assert_eq!(made(|parts| parts.cgroup = Some("/quayside/i/n/x".to_owned()))["linux"]["cgroupsPath"], "/quayside/i/n/x");
}
