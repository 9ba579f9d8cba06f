//! Every setting is checked: taking any one of them away, or changing it, turns the check red.

use std::time::Duration;

use quayside_shared::agent::{Agent, Input, Output};
use quayside_shared::ids::RunId;
use serde_json::{Value, json};

use super::super::super::ContainerKey;
use super::*;

fn spec(network: Network) -> LaunchSpec {
    LaunchSpec {
        agent: Agent {
            input: Input::Json,
            output: Output::Events,
            env: vec![("PROVIDER_KEY".to_owned(), "a secret".to_owned())],
            cpus: 0.5,
            pids: 128,
            network,
            timeout: Duration::from_secs(60),
            ..Agent::new(
                "python".parse().unwrap(),
                "quayside/agent-python".to_owned(),
                vec!["python3".to_owned(), "-u".to_owned(), "/agent/main.py".to_owned()],
            )
        },
        key: ContainerKey::Run { run_id: RunId::random(), epoch: 3 },
        place: 2,
    }
}

fn wanted(network: Network) -> ContainerCreateBody {
    create_body(&spec(network), 100_002, "test", Some("runc"), None).unwrap()
}

/// What an engine that obeys answers to an inspect: what was asked for, its own defaults, and what the image brings.
fn obeyed(wanted: &ContainerCreateBody) -> Value {
    let mut config = serde_json::to_value(wanted).unwrap();
    let mut host = config.as_object_mut().unwrap().remove("HostConfig").unwrap();
    host["MaskedPaths"] = json!(["/proc/kcore"]);
    host["ReadonlyPaths"] = json!(["/proc/sys"]);
    host["Binds"] = Value::Null;
    host["CapAdd"] = Value::Null;
    host["PidMode"] = json!("");
    host["OomKillDisable"] = json!(false);
    host["LogConfig"]["Config"] = json!({});
    config["Env"].as_array_mut().unwrap().push(json!("PATH=/usr/bin"));
    config["Labels"]["brought.by.the.image"] = json!("x");
    json!({ "Config": config, "HostConfig": host, "Mounts": [] })
}

fn difference_in(wanted: &ContainerCreateBody, found: &Value) -> Option<String> {
    difference(wanted, &serde_json::from_value(found.clone()).unwrap())
}

#[test]
fn an_obedient_engine_passes() {
    for network in [Network::None, Network::Bridge] {
        let wanted = wanted(network);
        assert_eq!(difference_in(&wanted, &obeyed(&wanted)), None);
    }
}

#[test]
fn every_setting_that_is_missing_is_noticed() {
    let wanted = wanted(Network::None);
    let obeyed = obeyed(&wanted);
    let asked = serde_json::to_value(&wanted).unwrap();
    let mut seen = 0;
    for (part, asked) in [("Config", &asked), ("HostConfig", &asked["HostConfig"])] {
        for name in asked.as_object().unwrap().keys() {
            // Its absence is as good as what was asked for.
            if ["HostConfig", "Cmd", "Tty", "AutoRemove", "RestartPolicy"].contains(&name.as_str()) {
                continue;
            }
            let mut found = obeyed.clone();
            found[part].as_object_mut().unwrap().remove(name);
            assert_eq!(difference_in(&wanted, &found), Some(format!("{part}.{name}")), "{part}.{name} was taken away");
            seen += 1;
        }
    }
    assert!(seen > 25, "only {seen} settings were looked at");
}

#[test]
fn every_setting_that_is_weaker_is_noticed() {
    let weaker = [
        ("Config.Image", json!("another")),
        ("Config.Entrypoint", json!(["/bin/sh", "-c"])),
        ("Config.Env", json!(["HOME=/workspace"])),
        ("Config.User", json!("0:0")),
        ("Config.User", json!("100001:100001")),
        ("Config.WorkingDir", json!("/")),
        ("Config.Hostname", json!("host")),
        ("Config.Labels", json!({ "dev.quayside.instance": "another" })),
        ("Config.OpenStdin", json!(false)),
        ("Config.StdinOnce", json!(false)),
        ("Config.Tty", json!(true)),
        ("Config.Healthcheck", json!({ "Test": ["CMD", "curl"] })),
        ("Config.NetworkDisabled", json!(false)),
        ("HostConfig.NetworkMode", json!("bridge")),
        ("HostConfig.NetworkMode", json!("host")),
        ("HostConfig.IpcMode", json!("shareable")),
        ("HostConfig.Init", json!(false)),
        ("HostConfig.AutoRemove", json!(true)),
        ("HostConfig.RestartPolicy", json!({ "Name": "always" })),
        ("HostConfig.Privileged", json!(true)),
        ("HostConfig.ReadonlyRootfs", json!(false)),
        ("HostConfig.CapDrop", json!(["NET_RAW"])),
        ("HostConfig.CapAdd", json!(["SYS_ADMIN"])),
        ("HostConfig.SecurityOpt", json!(["no-new-privileges", "seccomp=unconfined"])),
        ("HostConfig.SecurityOpt", json!(["no-new-privileges"])),
        ("HostConfig.Memory", json!(0)),
        ("HostConfig.MemorySwap", json!(-1)),
        ("HostConfig.NanoCpus", json!(0)),
        ("HostConfig.CpuShares", json!(1024)),
        ("HostConfig.CpuShares", json!(null)),
        ("HostConfig.PidsLimit", json!(null)),
        ("HostConfig.PidsLimit", json!(4096)),
        ("HostConfig.OomScoreAdj", json!(0)),
        ("HostConfig.OomKillDisable", json!(true)),
        ("HostConfig.Ulimits", json!([])),
        ("HostConfig.Ulimits", json!([{ "Name": "nofile", "Soft": 1024, "Hard": 1_048_576 }])),
        ("HostConfig.Tmpfs", json!({ "/tmp": "rw" })),
        ("HostConfig.LogConfig", json!({ "Type": "json-file", "Config": {} })),
        ("HostConfig.Runtime", json!("another")),
        ("HostConfig.Binds", json!(["/:/host"])),
        ("HostConfig.Mounts", json!([{ "Type": "bind", "Source": "/", "Target": "/host" }])),
        ("HostConfig.VolumesFrom", json!(["another"])),
        ("HostConfig.Devices", json!([{ "PathOnHost": "/dev/sda" }])),
        ("HostConfig.DeviceRequests", json!([{ "Driver": "nvidia" }])),
        ("HostConfig.DeviceCgroupRules", json!(["a *:* rwm"])),
        ("HostConfig.GroupAdd", json!(["docker"])),
        ("HostConfig.PidMode", json!("host")),
        ("HostConfig.UTSMode", json!("host")),
        ("HostConfig.UsernsMode", json!("host")),
        ("HostConfig.CgroupParent", json!("/")),
        ("HostConfig.Sysctls", json!({ "net.ipv4.ip_forward": "1" })),
        ("HostConfig.PortBindings", json!({ "80/tcp": [{ "HostPort": "80" }] })),
        ("HostConfig.MaskedPaths", json!([])),
        ("HostConfig.ReadonlyPaths", json!([])),
    ];
    let wanted = wanted(Network::None);
    for (setting, value) in weaker {
        let mut found = obeyed(&wanted);
        let (part, name) = setting.split_once('.').unwrap();
        found[part][name] = value.clone();
        assert_eq!(difference_in(&wanted, &found), Some(setting.to_owned()), "{setting} = {value}");
    }
}

#[test]
fn a_volume_of_the_image_is_noticed() {
    let wanted = wanted(Network::None);
    let mut found = obeyed(&wanted);
    found["Mounts"] = json!([{ "Type": "volume", "Destination": "/data", "RW": true }]);
    assert_eq!(difference_in(&wanted, &found), Some("Mounts".to_owned()));
}

#[test]
fn a_workspace_of_the_host_is_the_only_mount() {
    let workspace = "/run/quayside/workspaces/test/run-1";
    let wanted = create_body(&spec(Network::None), 100_002, "test", Some("runc"), Some(Path::new(workspace))).unwrap();
    let host = wanted.host_config.clone().unwrap();
    assert!(!host.tmpfs.unwrap().contains_key("/workspace"), "not both");
    let mount = json!({ "Type": "bind", "Source": workspace, "Destination": "/workspace", "Mode": "", "RW": true, "Propagation": "rprivate" });
    let mut obeyed = obeyed(&wanted);
    assert_eq!(difference_in(&wanted, &obeyed), Some("Mounts".to_owned()), "it is not mounted");
    obeyed["Mounts"] = json!([mount]);
    assert_eq!(difference_in(&wanted, &obeyed), None);
    for (name, value) in [("Source", "/"), ("Destination", "/etc"), ("Propagation", "rshared"), ("Type", "volume")] {
        let mut found = obeyed.clone();
        found["Mounts"][0][name] = json!(value);
        assert_eq!(difference_in(&wanted, &found), Some("Mounts".to_owned()), "{name} = {value}");
    }
    let mut found = obeyed.clone();
    found["Mounts"] = json!([mount, { "Type": "volume", "Destination": "/data", "RW": true }]);
    assert_eq!(difference_in(&wanted, &found), Some("Mounts".to_owned()));
    for mounts in [json!([]), json!([host_mount("/")]), json!([host_mount(workspace), host_mount("/")])] {
        let mut found = obeyed.clone();
        found["HostConfig"]["Mounts"] = mounts.clone();
        assert_eq!(difference_in(&wanted, &found), Some("HostConfig.Mounts".to_owned()), "{mounts}");
    }
}

fn host_mount(source: &str) -> Value {
    json!({ "Type": "bind", "Source": source, "Target": "/workspace", "BindOptions": { "Propagation": "rprivate" } })
}

#[test]
fn an_agent_that_cannot_be_limited_is_refused() {
    for cpus in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let mut spec = spec(Network::None);
        spec.agent.cpus = cpus;
        assert_eq!(create_body(&spec, 100_000, "test", None, None).unwrap_err().kind(), FaultKind::Refused);
    }
}

#[test]
fn the_seccomp_profile_denies_by_default() {
    let profile: Value = serde_json::from_str(SECCOMP).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let allowed = profile["syscalls"].to_string();
    for call in ["io_uring_setup", "ptrace", "memfd_secret", "unshare", "mount", "bpf", "keyctl"] {
        assert!(!allowed.contains(&format!("\"{call}\"")), "{call} is let through");
    }
}
