//! What follows from what the probe saw. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::container::{CPUS, FILE_SIZE, FOLDERS, OPEN_FILES, PIDS, Probe, Report};
use super::{Limit, Row, Verdict};

/// A busy machine ends a scheduler's period late, and a process is stopped at the next tick only.
const CPU_SLACK: f64 = 1.25;
/// One period of the scheduler may be begun before the window and used up in it.
const CPU_PERIOD: f64 = 0.1;
/// Interfaces that the kernel puts into every name space when a module is loaded; they lead nowhere.
const FALLBACK_TUNNELS: [&str; 7] = ["tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip6tnl0", "ip6gre0"];
/// What a connection ends with when there is no way to begin it.
const NO_WAY: [&str; 6] = ["ENETUNREACH", "ENETDOWN", "EPERM", "EACCES", "EAFNOSUPPORT", "EADDRNOTAVAIL"];

type Judged = Option<(bool, String)>;

#[derive(Deserialize)]
struct Status {
    ids: Vec<u32>,
    groups: Vec<u32>,
    core: i64,
    version: String,
    #[serde(flatten)]
    fields: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Forked {
    forked: u32,
    ended: Option<String>,
    seen: u32,
}

#[derive(Deserialize)]
struct Opened {
    opened: u64,
    ended: Option<String>,
}

#[derive(Deserialize)]
struct Ended {
    ended: String,
}

#[derive(Deserialize)]
struct Folder {
    path: String,
    inodes: u64,
    inodes_ended: Option<String>,
    bytes: u64,
    bytes_ended: Option<String>,
}

#[derive(Deserialize)]
struct Root {
    readonly: bool,
    writable: Vec<String>,
}

#[derive(Deserialize)]
struct Net {
    interfaces: Vec<String>,
    public: String,
    metadata: String,
}

#[derive(Deserialize)]
struct Host {
    readable: Vec<String>,
    writable: Vec<String>,
    sockets: Vec<String>,
}

#[derive(Deserialize)]
struct Cpu {
    used: f64,
    wall: f64,
    throttled: Option<u64>,
    /// The kernel's own figure, as the container may read it; 0 is no limit.
    quota: Option<f64>,
}

#[derive(Deserialize)]
struct Child {
    survived: bool,
}

/// One row for each limit.
#[must_use]
pub fn rows(probe: &Probe, report: &Report) -> Vec<Row> {
    Limit::ALL.into_iter().map(|limit| row(limit, probe, report)).collect()
}

fn row(limit: Limit, probe: &Probe, report: &Report) -> Row {
    let promised = promised(limit, probe);
    if let Some(sentence) = &report.refused {
        return Row { limit, promised, measured: sentence.clone(), verdict: Verdict::NotEnforced };
    }
    let judged = match limit {
        Limit::Memory => memory(report),
        Limit::Pids => pids(report),
        Limit::Cpus => cpus(report),
        Limit::Disk => disk(report),
        Limit::Inodes => inodes(report),
        Limit::FileSize => file_size(report),
        Limit::OpenFiles => open_files(report),
        Limit::Network => network(report),
        Limit::Sockets => sockets(report),
        Limit::Uid => uid(probe, report),
        Limit::Capabilities => capabilities(report),
        Limit::NoNewPrivileges => no_new_privileges(report),
        Limit::Seccomp => seccomp(report),
        Limit::Host => host(report),
    };
    let (measured, verdict) = match judged {
        Some((true, measured)) => (measured, Verdict::Enforced),
        Some((false, measured)) => (measured, Verdict::NotEnforced),
        None => (report.incomplete.clone().unwrap_or_else(|| "the try said nothing".to_owned()), Verdict::NotProven),
    };
    Row { limit, promised, measured, verdict }
}

fn promised(limit: Limit, probe: &Probe) -> String {
    match limit {
        Limit::Memory => "killed at the limit, with or without children; the verdict is oom".to_owned(),
        Limit::Pids => format!("no more than {PIDS} processes"),
        Limit::Cpus => format!("no more than {CPUS} CPUs"),
        Limit::Disk => "a read-only root; folders that end at their size".to_owned(),
        Limit::Inodes => "folders that end at their number of files".to_owned(),
        Limit::FileSize => format!("no file over {} MiB", FILE_SIZE >> 20),
        Limit::OpenFiles => format!("no more than {OPEN_FILES} open files, no core files"),
        Limit::Network => "nothing but loopback".to_owned(),
        Limit::Sockets => "no raw, packet, vsock, AF_ALG, XDP or netfilter sockets".to_owned(),
        Limit::Uid => probe.uid().map_or_else(|| "not root".to_owned(), |uid| format!("uid and gid {uid}")),
        Limit::Capabilities => "none, and none to be had".to_owned(),
        Limit::NoNewPrivileges => "set".to_owned(),
        Limit::Seccomp => "a filter; no mount, unshare, chroot, ptrace, bpf, keyctl, io_uring".to_owned(),
        Limit::Host => "no processes, secrets, settings or engine sockets of the host".to_owned(),
    }
}

/// A kernel of its own, which hands no system call through.
fn is_gvisor(report: &Report) -> bool {
    report
        .said::<Status>("status")
        .is_some_and(|status| status.version.contains("gvisor") || status.version.starts_with("Linux version 4.4.0 #1 SMP Sun Jan 10"))
}

fn memory(report: &Report) -> Judged {
    if report.said::<serde_json::Value>("memory_survived").is_some() {
        return Some((false, "the program took twice its limit and lived".to_owned()));
    }
    if report.said::<Child>("memory_child").is_some_and(|child| child.survived) {
        return Some((false, "a child took twice the limit and lived".to_owned()));
    }
    if let Some(outside) = &report.outside {
        let unlimited = |limit: Option<Option<u64>>| limit.is_some_and(|limit| limit.is_none_or(|bytes| bytes > super::container::WALLS_MEMORY));
        if unlimited(outside.memory) {
            return Some((false, format!("the control group allows {}", bytes(outside.memory.flatten()))));
        }
        if unlimited(outside.memory_and_swap) {
            return Some((false, format!("the control group allows {} with swap", bytes(outside.memory_and_swap.flatten()))));
        }
    }
    match report.budget_exit? {
        exit if exit.oom => Some((true, format!("killed at {} MiB, verdict oom", super::container::MEMORY >> 20))),
        _ => None,
    }
}

fn bytes(limit: Option<u64>) -> String {
    limit.map_or_else(|| "any amount".to_owned(), |bytes| format!("{} MiB", bytes >> 20))
}

fn pids(report: &Report) -> Judged {
    let seen: Forked = report.said("pids")?;
    if let Some(limit) = report.outside.as_ref().and_then(|outside| outside.pids)
        && limit.is_none_or(|limit| limit > u64::from(PIDS))
    {
        return Some((false, format!("the control group allows {}", limit.map_or_else(|| "any number".to_owned(), |limit| limit.to_string()))));
    }
    match seen.ended.as_deref() {
        Some("EAGAIN") => Some((seen.forked < PIDS, format!("fork failed with {} processes", seen.seen))),
        Some(_) => None,
        None => Some((false, format!("{} forks went through", seen.forked))),
    }
}

fn cpus(report: &Report) -> Judged {
    let seen: Cpu = report.said("cpu")?;
    let told = format!("{:.0} ms of CPU in {:.0} ms", seen.used * 1000.0, seen.wall * 1000.0);
    if seen.used > CPUS * (seen.wall + CPU_PERIOD) * CPU_SLACK {
        return Some((false, told));
    }
    if let Some(quota) = report.outside.as_ref().and_then(|outside| outside.cpus)
        && quota.is_none_or(|quota| quota > 1.001)
    {
        return Some((false, "the control group has no quota".to_owned()));
    }
    if let Some(quota) = seen.quota
        && (quota == 0.0 || quota > CPUS * 1.001)
    {
        return Some((false, format!("{told}; the kernel's own figure is {quota} CPUs")));
    }
    // Little use alone proves nothing: the machine may have been busy with others.
    let held = seen.throttled.is_some_and(|times| times > 0) || seen.used > CPUS * seen.wall * 0.5 || seen.quota.is_some();
    held.then_some((true, told))
}

fn folders(report: &Report) -> Option<Vec<(Folder, u64, u64)>> {
    let mut said = report.said_all::<Folder>("folder");
    let take = |(path, size, inodes): &(&str, u64, u64)| {
        let place = said.iter().position(|folder| folder.path == *path)?;
        Some((said.swap_remove(place), *size, *inodes))
    };
    FOLDERS.iter().map(take).collect()
}

fn disk(report: &Report) -> Judged {
    let root: Root = report.said("root")?;
    if !root.readonly || !root.writable.is_empty() {
        let what = if root.readonly { root.writable.join(", ") } else { "the root".to_owned() };
        return Some((false, format!("{what} can be written")));
    }
    let mut told = Vec::new();
    for (folder, size, _) in folders(report)? {
        if folder.bytes > size || folder.bytes_ended.is_none() {
            return Some((false, format!("{} took {} MiB", folder.path, folder.bytes >> 20)));
        }
        if folder.bytes == 0 {
            return None;
        }
        told.push(format!("{} {} MiB", folder.path, folder.bytes >> 20));
    }
    Some((true, told.join(", ")))
}

fn inodes(report: &Report) -> Judged {
    let mut told = Vec::new();
    for (folder, _, inodes) in folders(report)? {
        if folder.inodes > inodes || folder.inodes_ended.is_none() {
            return Some((false, format!("{} took {} files", folder.path, folder.inodes)));
        }
        if folder.inodes == 0 {
            return None;
        }
        told.push(format!("{} {}", folder.path, folder.inodes));
    }
    Some((true, told.join(", ")))
}

fn file_size(report: &Report) -> Judged {
    match report.said::<Ended>("fsize")?.ended.as_str() {
        "EFBIG" => Some((true, "EFBIG".to_owned())),
        "done" => Some((false, "a byte behind the limit was written".to_owned())),
        _ => None,
    }
}

fn open_files(report: &Report) -> Judged {
    let (seen, status): (Opened, Status) = (report.said("nofile")?, report.said("status")?);
    if status.core != 0 {
        return Some((false, format!("a core file may have {} bytes", status.core)));
    }
    Some((seen.ended.as_deref() == Some("EMFILE") && seen.opened < OPEN_FILES, format!("{} could be opened", seen.opened)))
}

fn network(report: &Report) -> Judged {
    let seen: Net = report.said("network")?;
    let others: Vec<&str> = seen.interfaces.iter().map(String::as_str).filter(|name| *name != "lo" && !FALLBACK_TUNNELS.contains(name)).collect();
    if !others.is_empty() {
        return Some((false, format!("there is {}", others.join(", "))));
    }
    let holds = [&seen.public, &seen.metadata].iter().all(|error| NO_WAY.contains(&error.as_str()));
    Some((holds, format!("a public address: {}, 169.254.169.254: {}", seen.public, seen.metadata)))
}

fn sockets(report: &Report) -> Judged {
    let mut seen: BTreeMap<String, String> = report.said("sockets")?;
    seen.remove("probe");
    let open: Vec<&str> = seen.iter().filter(|(_, ended)| *ended == "done").map(|(kind, _)| kind.as_str()).collect();
    Some(if open.is_empty() { (true, format!("{} kinds refused", seen.len())) } else { (false, format!("opened: {}", open.join(", "))) })
}

fn uid(probe: &Probe, report: &Report) -> Judged {
    let status: Status = report.said("status")?;
    let holds = |id: &u32| *id != 0 && probe.uid().is_none_or(|expected| *id == expected);
    let first = status.ids.first().copied().unwrap_or_default();
    Some((!status.ids.is_empty() && status.ids.iter().chain(&status.groups).all(holds), format!("uid {first}")))
}

fn capabilities(report: &Report) -> Judged {
    let status: Status = report.said("status")?;
    let calls: BTreeMap<String, String> = report.said("calls")?;
    if calls.get("setuid_root").is_some_and(|ended| ended == "done") {
        return Some((false, "setuid(0) went through".to_owned()));
    }
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let bits = match status.fields.get(name).and_then(serde_json::Value::as_str) {
            Some(bits) => u64::from_str_radix(bits, 16).ok()?,
            // gVisor tells no ambient set.
            None if name == "CapAmb" => 0,
            None => return None,
        };
        if bits != 0 {
            return Some((false, format!("{name} {bits:016x}")));
        }
    }
    match report.outside.as_ref().and_then(|outside| outside.capabilities) {
        Some(bits) if bits != 0 => Some((false, format!("{bits:016x} as the host sees it"))),
        _ => Some((true, "all sets are empty".to_owned())),
    }
}

fn no_new_privileges(report: &Report) -> Judged {
    let status: Status = report.said("status")?;
    let flag = status.fields.get("NoNewPrivs")?.as_str()?;
    let outside = report.outside.as_ref().and_then(|outside| outside.no_new_privileges);
    Some((flag == "1" && outside != Some(false), format!("NoNewPrivs {flag}")))
}

fn seccomp(report: &Report) -> Judged {
    let mut calls: BTreeMap<String, String> = report.said("calls")?;
    calls.remove("setuid_root");
    if is_gvisor(report) {
        // Its processes may trace each other and chroot: that stays within its own kernel.
        let done = ["mount", "bpf", "io_uring_setup"].into_iter().find(|call| calls.get(*call).is_some_and(|ended| ended == "done"));
        return Some(
            done.map_or_else(|| (true, "gVisor: no system call reaches the host".to_owned()), |call| (false, format!("{call} went through"))),
        );
    }
    let done: Vec<&str> = calls.iter().filter(|(_, ended)| *ended == "done").map(|(call, _)| call.as_str()).collect();
    if !done.is_empty() {
        return Some((false, format!("went through: {}", done.join(", "))));
    }
    let status: Status = report.said("status")?;
    let mode = status.fields.get("Seccomp")?.as_str()?;
    let outside = report.outside.as_ref().and_then(|outside| outside.seccomp);
    Some((mode == "2" && outside != Some(false), format!("Seccomp {mode}, {} calls refused", calls.len().saturating_sub(1))))
}

fn host(report: &Report) -> Judged {
    let (seen, forked): (Host, Forked) = (report.said("host")?, report.said("pids")?);
    let found = [seen.readable, seen.writable, seen.sockets].concat();
    if !found.is_empty() {
        return Some((false, format!("there: {}", found.join(", "))));
    }
    // The forked ones and a few: the program itself, and what starts and reaps for it.
    if forked.seen > forked.forked + 4 {
        return Some((false, format!("{} processes are visible", forked.seen)));
    }
    match &report.outside {
        Some(outside) if !outside.shared_namespaces.is_empty() => {
            Some((false, format!("shares with the host: {}", outside.shared_namespaces.join(", "))))
        }
        Some(_) => Some((true, "nothing found, and no name space shared".to_owned())),
        None => Some((true, "nothing found".to_owned())),
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
