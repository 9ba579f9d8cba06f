//! A judge that cannot say no proves nothing: every limit is seen to hold, to be broken in each way, and to be untried.

use serde_json::{Value, json};

use super::super::container::{MEMORY, WALLS_MEMORY};
use super::super::outside::Outside;
use super::*;
use crate::runner::Exit;
use crate::slots::LiveContainers;

const KERNEL: &str = "Linux version 6.1.0 (somebody@somewhere) #1 SMP";

fn probe() -> Probe {
    Probe { image: "image".to_owned(), uid_base: Some(100_000), local: true, live: LiveContainers::default() }
}

/// What the program says in a sandbox that holds.
fn said() -> Vec<Value> {
    let id = probe().uid().unwrap();
    let mut said = vec![
        json!({ "probe": "status", "ids": [id, id, id, id, id, id], "groups": [id], "core": 0, "version": KERNEL, "NoNewPrivs": "1", "Seccomp": "2",
            "CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000",
            "CapAmb": "0000000000000000" }),
        json!({ "probe": "pids", "forked": 30, "ended": "EAGAIN", "seen": 32 }),
        json!({ "probe": "nofile", "opened": 1021, "ended": "EMFILE" }),
        json!({ "probe": "fsize", "ended": "EFBIG" }),
        json!({ "probe": "network", "interfaces": ["lo", "tunl0"], "public": "ENETUNREACH", "metadata": "ENETUNREACH", "seconds": 0.001 }),
        json!({ "probe": "sockets", "raw": "EPERM", "packet": "EPERM", "vsock": "EPERM", "alg": "EAFNOSUPPORT" }),
        json!({ "probe": "calls", "mount": "EPERM", "unshare_user": "EPERM", "ptrace": "EPERM", "setuid_root": "EPERM" }),
        json!({ "probe": "host", "readable": [], "writable": [], "sockets": [] }),
        json!({ "probe": "root", "readonly": true, "writable": [] }),
        json!({ "probe": "cpu", "used": 0.066, "wall": 0.32, "throttled": 4, "quota": 0.2 }),
        json!({ "probe": "memory_child", "survived": false }),
    ];
    let folder = |(path, size, inodes): &(&str, u64, u64)| json!({ "probe": "folder", "path": path, "inodes": inodes - 1, "inodes_ended": "ENOSPC", "bytes": size, "bytes_ended": "ENOSPC" });
    said.extend(FOLDERS.iter().map(folder));
    said
}

fn outside() -> Outside {
    Outside {
        memory: Some(Some(WALLS_MEMORY)),
        memory_and_swap: Some(Some(WALLS_MEMORY)),
        pids: Some(Some(u64::from(PIDS))),
        cpus: Some(Some(1.0)),
        seccomp: Some(true),
        capabilities: Some(0),
        no_new_privileges: Some(true),
        shared_namespaces: Vec::new(),
    }
}

fn report(said: Vec<Value>) -> Report {
    let exit = Exit { code: 137, oom: true, cpu: None, max_memory: Some(MEMORY) };
    Report { outside: Some(outside()), budget_exit: Some(exit), ..Report::of(said) }
}

fn verdicts(report: &Report) -> BTreeMap<Limit, Verdict> {
    rows(&probe(), report).into_iter().map(|row| (row.limit, row.verdict)).collect()
}

/// Exactly `limits` are broken in `report`; all others hold.
fn breaks(limits: &[Limit], report: &Report, what: &str) {
    for (limit, verdict) in verdicts(report) {
        let expected = if limits.contains(&limit) { Verdict::NotEnforced } else { Verdict::Enforced };
        assert_eq!(verdict, expected, "{what}: {limit:?}");
    }
}

#[test]
fn a_sandbox_that_holds_holds() {
    breaks(&[], &report(said()), "nothing");
    let mut remote = report(said());
    remote.outside = None;
    breaks(&[], &remote, "an engine elsewhere");
}

#[test]
fn what_the_program_got_away_with_is_named() {
    let cases = [
        ("memory_child", "survived", json!(true), Limit::Memory),
        ("pids", "ended", json!(null), Limit::Pids),
        ("cpu", "used", json!(0.4), Limit::Cpus),
        ("cpu", "quota", json!(0), Limit::Cpus),
        ("cpu", "quota", json!(2.0), Limit::Cpus),
        ("root", "readonly", json!(false), Limit::Disk),
        ("root", "writable", json!(["/etc/hosts"]), Limit::Disk),
        ("folder", "bytes_ended", json!(null), Limit::Disk),
        ("folder", "bytes", json!(40 << 20), Limit::Disk),
        ("folder", "inodes_ended", json!(null), Limit::Inodes),
        ("folder", "inodes", json!(5000), Limit::Inodes),
        ("fsize", "ended", json!("done"), Limit::FileSize),
        ("nofile", "ended", json!(null), Limit::OpenFiles),
        ("nofile", "opened", json!(1500), Limit::OpenFiles),
        ("status", "core", json!(-1), Limit::OpenFiles),
        ("network", "interfaces", json!(["eth0", "lo"]), Limit::Network),
        ("network", "public", json!("done"), Limit::Network),
        ("network", "metadata", json!("done"), Limit::Network),
        ("network", "metadata", json!("timeout"), Limit::Network),
        ("network", "metadata", json!("ECONNREFUSED"), Limit::Network),
        ("sockets", "alg", json!("done"), Limit::Sockets),
        ("status", "ids", json!([0, 0, 0, 0, 0, 0]), Limit::Uid),
        ("status", "ids", json!([1000, 1000, 1000, 1000, 1000, 1000]), Limit::Uid),
        ("status", "groups", json!([0]), Limit::Uid),
        ("status", "CapEff", json!("00000000a80425fb"), Limit::Capabilities),
        ("status", "CapBnd", json!("0000000000000400"), Limit::Capabilities),
        ("calls", "setuid_root", json!("done"), Limit::Capabilities),
        ("status", "NoNewPrivs", json!("0"), Limit::NoNewPrivileges),
        ("status", "Seccomp", json!("0"), Limit::Seccomp),
        ("calls", "unshare_user", json!("done"), Limit::Seccomp),
        ("calls", "ptrace", json!("done"), Limit::Seccomp),
        ("host", "readable", json!(["/proc/kcore"]), Limit::Host),
        ("host", "writable", json!(["/proc/sysrq-trigger"]), Limit::Host),
        ("host", "sockets", json!(["/var/run/docker.sock"]), Limit::Host),
        ("pids", "seen", json!(120), Limit::Host),
    ];
    for (name, field, value, limit) in cases {
        let mut said = said();
        said.iter_mut().find(|line| line["probe"] == name).unwrap()[field] = value.clone();
        breaks(&[limit], &report(said), &format!("{name}.{field} = {value}"));
    }
    let survived = [said(), vec![json!({ "probe": "memory_survived" })]].concat();
    breaks(&[Limit::Memory], &report(survived), "a program that lives on");
}

#[test]
fn the_host_can_contradict_the_program() {
    type Change = fn(&mut Outside);
    let cases: [(Change, Limit); 9] = [
        (|seen| seen.memory = Some(None), Limit::Memory),
        (|seen| seen.memory = Some(Some(WALLS_MEMORY + 1)), Limit::Memory),
        (|seen| seen.memory_and_swap = Some(None), Limit::Memory),
        (|seen| seen.pids = Some(None), Limit::Pids),
        (|seen| seen.cpus = Some(None), Limit::Cpus),
        (|seen| seen.seccomp = Some(false), Limit::Seccomp),
        (|seen| seen.capabilities = Some(1), Limit::Capabilities),
        (|seen| seen.no_new_privileges = Some(false), Limit::NoNewPrivileges),
        (|seen| seen.shared_namespaces = vec!["net".to_owned()], Limit::Host),
    ];
    for (number, (change, limit)) in cases.into_iter().enumerate() {
        let mut report = report(said());
        change(report.outside.as_mut().unwrap());
        breaks(&[limit], &report, &format!("case {number}"));
    }
}

#[test]
fn what_was_not_said_is_not_proven() {
    let silent = Report { incomplete: Some("the image is not there".to_owned()), ..Report::default() };
    for row in rows(&probe(), &silent) {
        assert_eq!((row.verdict, row.measured.as_str()), (Verdict::NotProven, "the image is not there"));
    }
    for (number, line) in said().into_iter().enumerate() {
        // That a child was killed is told by the end of its container, too.
        if line["probe"] == "memory_child" {
            continue;
        }
        let mut fewer = said();
        fewer.remove(number);
        let verdicts = verdicts(&report(fewer));
        assert!(verdicts.values().any(|verdict| *verdict == Verdict::NotProven), "{line}");
        assert!(verdicts.values().all(|verdict| *verdict != Verdict::NotEnforced), "{line}");
    }
    let mut busy = said();
    busy.iter_mut().find(|line| line["probe"] == "cpu").unwrap()["used"] = json!(0.01);
    let cpu = busy.iter_mut().find(|line| line["probe"] == "cpu").unwrap();
    cpu["throttled"] = json!(0);
    assert_eq!(verdicts(&report(busy.clone()))[&Limit::Cpus], Verdict::Enforced, "the kernel's own figure is there");
    busy.iter_mut().find(|line| line["probe"] == "cpu").unwrap()["quota"] = json!(null);
    assert_eq!(verdicts(&report(busy))[&Limit::Cpus], Verdict::NotProven, "others had the machine");
    let mut unhurt = report(said());
    unhurt.budget_exit = Some(Exit { code: 1, oom: false, cpu: None, max_memory: None });
    assert_eq!(verdicts(&unhurt)[&Limit::Memory], Verdict::NotProven);
}

#[test]
fn an_engine_that_says_no_enforces_nothing() {
    let refused = Report { refused: Some("the container engine does not enforce `HostConfig.Memory`".to_owned()), ..report(said()) };
    breaks(&Limit::ALL, &refused, "a refusal");
}

#[test]
fn gvisor_is_judged_by_its_own_measure() {
    let mut said = said();
    let status = said.iter_mut().find(|line| line["probe"] == "status").unwrap();
    status["version"] = json!("Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016");
    status["Seccomp"] = json!("0");
    said.iter_mut().find(|line| line["probe"] == "calls").unwrap()["ptrace"] = json!("done");
    let mut report = report(said);
    report.outside = None;
    breaks(&[], &report, "gVisor");
}
