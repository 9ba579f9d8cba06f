//! Whatever is weaker than asked for is noticed.

use super::*;

const STATUS: &str = "Name:\tinit\nUid:\t100002\t100002\t100002\t100002\nGid:\t100002\t100002\t100002\t100002\nGroups:\t \n\
CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n\
NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units\n\
Max file size             67108864             67108864             bytes\n\
Max core file size        0                    0                    bytes\n\
Max open files            1024                 1024                 files\n\
Max msgqueue size         0                    0                    bytes\n";
const GROUPS: &str = "9:name=systemd:/\n8:pids:/quayside/i/n\n6:freezer:/quayside/i/n\n4:memory:/quayside/i/n\n2:cpu,cpuacct:/quayside/i/n\n0::/\n";
const MOUNTS: &str = "90 80 254:0 /images/x/rootfs / ro,relatime - ext4 /dev/vda rw\n91 90 0:51 / /proc rw,nosuid - proc proc rw\n";

fn seen(change: impl FnOnce(&mut Seen)) -> Option<&'static str> {
    let mut seen = Seen {
        status: STATUS.to_owned(),
        limits: LIMITS.to_owned(),
        groups: GROUPS.to_owned(),
        oom_score_adj: "500\n".to_owned(),
        mounts: MOUNTS.to_owned(),
        namespaces: NAMESPACES.into_iter().map(|name| (name, "x:[1]".into(), "x:[2]".into())).collect(),
    };
    change(&mut seen);
    seen.difference(&Wanted { uid: 100_002, group: "/quayside/i/n", kernel: true })
}

#[test]
fn what_is_as_strict_as_asked_for_passes() {
    assert_eq!(seen(|_| {}), None);
    assert_eq!(seen(|seen| seen.groups = "0::/quayside/i/n\n".to_owned()), None, "version 2");
    assert_eq!(seen(|seen| seen.groups = GROUPS.replace("/quayside/i/n", "/quayside/i/n/runc")), None, "a group below it");
    assert_eq!(seen(|seen| seen.groups = GROUPS.replace("/quayside", "/../worker/quayside")), None, "a worker in a group");
}

#[test]
fn every_line_of_the_status_counts() {
    let weaker = [
        ("uid", "Uid:\t100002\t100002\t100002\t100002", "Uid:\t100002\t0\t100002\t100002"),
        ("gid", "Gid:\t100002\t100002\t100002\t100002", "Gid:\t100002\t100002\t100002\t0"),
        ("groups", "Groups:\t ", "Groups:\t0 "),
        ("NoNewPrivs", "NoNewPrivs:\t1", "NoNewPrivs:\t0"),
        ("Seccomp", "Seccomp:\t2", "Seccomp:\t0"),
        ("CapEff", "CapEff:\t0000000000000000", "CapEff:\t0000000000000400"),
        ("CapPrm", "CapPrm:\t0000000000000000", "CapPrm:\t0000000000000400"),
        ("CapInh", "CapInh:\t0000000000000000", "CapInh:\t0000000000000400"),
        ("CapBnd", "CapBnd:\t0000000000000000", "CapBnd:\t0000000000000400"),
        ("CapAmb", "CapAmb:\t0000000000000000", "CapAmb:\t0000000000000400"),
    ];
    for (name, before, after) in weaker {
        assert!(STATUS.contains(before));
        assert_eq!(seen(|seen| seen.status = STATUS.replace(before, after)), Some(name));
        let without: String = STATUS.lines().filter(|line| !before.starts_with(line) && *line != before).map(|line| format!("{line}\n")).collect();
        assert_eq!(seen(|seen| seen.status = without), Some(name), "{name} is not there");
    }
}

#[test]
fn every_limit_and_name_space_counts() {
    for (name, before, after) in [
        ("RLIMIT_NOFILE", "1024                 1024 ", "1024                 1048576 "),
        ("RLIMIT_CORE", "Max core file size        0  ", "Max core file size        unlimited  "),
        ("RLIMIT_FSIZE", "67108864             67108864", "unlimited             unlimited"),
        ("RLIMIT_MSGQUEUE", "Max msgqueue size         0 ", "Max msgqueue size         819200 "),
    ] {
        assert!(LIMITS.contains(before), "{name}");
        assert_eq!(seen(|seen| seen.limits = LIMITS.replace(before, after)), Some(name));
    }
    for (place, name) in NAMESPACES.into_iter().enumerate() {
        assert_eq!(seen(|seen| seen.namespaces[place].2 = "x:[1]".into()), Some(name));
    }
    assert_eq!(seen(|seen| seen.oom_score_adj = "0\n".to_owned()), Some("oom_score_adj"));
    assert_eq!(seen(|seen| seen.mounts = MOUNTS.replace("/ ro,", "/ rw,")), Some("readonly root"));
}

#[test]
fn every_controller_counts() {
    for controller in ["8:pids", "6:freezer", "4:memory", "2:cpu,cpuacct"] {
        let outside = GROUPS.replace(&format!("{controller}:/quayside/i/n"), &format!("{controller}:/"));
        assert_ne!(outside, GROUPS);
        assert_eq!(seen(|seen| seen.groups = outside), Some("cgroup"), "{controller}");
        let another = GROUPS.replace(&format!("{controller}:/quayside/i/n"), &format!("{controller}:/quayside/i/nn"));
        assert_eq!(seen(|seen| seen.groups = another), Some("cgroup"), "{controller}");
    }
    assert_eq!(seen(|seen| seen.groups = "0::/\n".to_owned()), Some("cgroup"));
    assert_eq!(seen(|seen| seen.groups = "4:memory:/\n0::/quayside/i/n\n".to_owned()), Some("cgroup"), "version 2 beside version 1 limits nothing");
}
