//! What only the runner without an engine can show: the walls as seen from inside, and an empty machine afterwards.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quayside_shared::agent::Network;
use quayside_shared::ids::RunId;
use quayside_worker::runner::oci::OciRunner;
use quayside_worker::runner::{ContainerKey, FaultKind, LaunchSpec, OutputChunk, Runner, Sandbox};

use super::docker::{IMAGE, UID_BASE, python};
use super::oci::{IMAGES, OnOci, groups_of, options, traces_of};
use super::{Behaviour, Fixture, check, end, serve, within};
use crate::support::eventually;

const RUNTIMES: [&str; 2] = ["crun", "runc"];

#[tokio::test]
async fn the_settings_hold_inside() {
    for runtime in RUNTIMES {
        check(OnOci::new(runtime), async |fixture| {
            let seen = fixture.python(LOOK_AROUND).await;
            let seen: serde_json::Value = serde_json::from_str(&seen).expect("JSON");
            let none = "0000000000000000";
            assert_eq!(seen["uid"], serde_json::json!([UID_BASE, UID_BASE, []]));
            assert_eq!(seen["caps"], serde_json::json!([none, none, none, none, none]));
            assert_eq!((&seen["no_new_privs"], &seen["seccomp"]), (&"1".into(), &"2".into()));
            assert_eq!((&seen["root"], &seen["mqueue"], &seen["sys"]), (&true.into(), &true.into(), &true.into()));
            let tmpfs =
                |inodes: u32, size: u32| serde_json::json!(["tmpfs", "nodev", "nosuid", format!("nr_inodes={inodes}"), format!("size={size}k")]);
            assert_eq!(seen["tmp"]["/tmp"], tmpfs(4096, 32 << 10));
            assert_eq!(seen["tmp"]["/dev/shm"], tmpfs(1024, 16 << 10));
            assert_eq!(seen["tmp"]["/workspace"], tmpfs(8192, 64 << 10));
            assert_eq!(seen["writable"], serde_json::json!(["/tmp", "/dev/shm", "/workspace"]));
            assert_eq!(seen["read_only"], serde_json::json!(["/", "/dev", "/proc/sys/kernel", "/sys"]));
            assert_eq!(seen["limits"]["NOFILE"], serde_json::json!([1024, 1024]));
            assert_eq!(seen["limits"]["CORE"], serde_json::json!([0, 0]));
            assert_eq!(seen["limits"]["FSIZE"], serde_json::json!([64 << 20, 64 << 20]));
            assert_eq!(seen["interfaces"], serde_json::json!(["lo"]));
            assert_eq!(seen["oom_score_adj"], "500");
            assert_eq!((&seen["cwd"], &seen["home"], &seen["host"]), (&"/workspace".into(), &"/workspace".into(), &"sandbox".into()));
            assert_eq!(seen["init"], "/.init");
            assert_eq!(seen["groups"], serde_json::json!(["/"]), "the paths of the host's control groups are seen");
            assert_eq!(seen["open"], serde_json::json!(["0", "1", "2"]), "something of the worker's is open inside");
            assert!(!seen["mounts"].to_string().contains(fixture.instance()), "{}", seen["mounts"]);
        })
        .await;
    }
}

/// The runtime compiles the filter for the first container only.
#[tokio::test]
async fn every_container_has_the_same_filter() {
    check(OnOci::new("crun"), async |fixture| {
        let mut seen = Vec::new();
        for _ in 0..2 {
            seen.push(fixture.python(TRY_CALLS).await);
        }
        assert_eq!(seen[0], seen[1]);
        let calls: serde_json::Value = serde_json::from_str(&seen[0]).expect("JSON");
        assert_eq!(calls["refused"], calls["all"], "{calls}");
        assert_eq!((&calls["mode"], &calls["filters"]), (&"2".into(), &"1".into()));
    })
    .await;
}

/// Calls that an ordinary user may make where no filter forbids them.
const TRY_CALLS: &str = r#"
import json, socket, ctypes
libc = ctypes.CDLL(None, use_errno=True)
status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
calls = {"personality": (135, 0x0040000), "memfd_secret": (447, 0), "unshare": (272, 0), "ptrace": (101, 0, 0, 0, 0), "add_key": (248, 0, 0, 0, 0, 0), "io_uring": (425, 1, 0)}
refused = [name for name, call in calls.items() if libc.syscall(*call) == -1 and ctypes.get_errno() in (1, 38)]
try: socket.socket(40, 1)
except OSError as error: refused.append("vsock" if error.errno in (1, 38) else str(error))
print(json.dumps({"refused": refused, "all": [*calls, "vsock"], "mode": status["Seccomp"], "filters": status["Seccomp_filters"]}))
"#;

const LOOK_AROUND: &str = r#"
import json, os, resource, socket
status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
mounts = {line.split()[1]: (line.split()[2], line.split()[3].split(",")) for line in open("/proc/mounts")}
def refuses(path):
    try: open(path + "/file", "w").close()
    except OSError: return True
def open_files():
    names = os.listdir("/proc/self/fd")
    return sorted(name for name in names if os.path.exists("/proc/self/fd/" + name) or name in "012")
print(json.dumps({
    "uid": [os.getuid(), os.getgid(), os.getgroups()],
    "caps": [status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")],
    "no_new_privs": status["NoNewPrivs"], "seccomp": status["Seccomp"],
    "root": "ro" in mounts["/"][1], "sys": "ro" in mounts["/sys"][1],
    "tmp": {path: [mounts[path][0], *sorted(o for o in mounts[path][1] if o.startswith(("size", "nr_inodes", "nosuid", "nodev")))]
            for path in ("/tmp", "/dev/shm", "/workspace")},
    "writable": [path for path in ("/tmp", "/dev/shm", "/workspace") if open(path + "/file", "w").write("x") == 1],
    "read_only": [path for path in ("/", "/dev", "/proc/sys/kernel", "/sys") if refuses(path)],
    "mqueue": "ro" in mounts["/dev/mqueue"][1],
    "limits": {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in ("NOFILE", "CORE", "FSIZE")},
    "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line],
    "oom_score_adj": open("/proc/self/oom_score_adj").read().strip(),
    "cwd": os.getcwd(), "home": os.environ["HOME"], "host": socket.gethostname(),
    "init": open("/proc/1/cmdline").read().split("\0")[0],
    "groups": sorted({line.rstrip("\n").split(":", 2)[2] for line in open("/proc/self/cgroup")}),
    "open": open_files(), "mounts": open("/proc/self/mountinfo").read(),
}))
"#;

#[tokio::test]
async fn the_kernel_holds_the_limits() {
    for runtime in RUNTIMES {
        check(OnOci::new(runtime), async |fixture| {
            let mut spec = fixture.spec(&Behaviour::Hang);
            (spec.agent.memory, spec.agent.pids, spec.agent.cpus) = (48 << 20, 20, 0.5);
            let sandbox = fixture.runner().launch(&spec).await.unwrap();
            let read = |name: &str| std::fs::read_to_string(fixture.group_file(name)).unwrap().trim().to_owned();
            if fixture.group_exists("memory.limit_in_bytes") {
                assert_eq!(read("memory.limit_in_bytes"), (48 << 20).to_string());
                assert_eq!(read("memory.memsw.limit_in_bytes"), (48 << 20).to_string());
                assert_eq!((read("cpu.cfs_quota_us"), read("cpu.cfs_period_us"), read("cpu.shares")), ("50000".into(), "100000".into(), "64".into()));
            } else {
                assert_eq!(
                    (read("memory.max"), read("memory.swap.max"), read("cpu.max")),
                    ((48 << 20).to_string(), "0".into(), "50000 100000".into())
                );
            }
            // crun waits inside.
            assert_eq!(read("pids.max"), "20");
            end(sandbox).await;
        })
        .await;
    }
}

#[tokio::test]
async fn the_agents_variables_arrive() {
    check(OnOci::new("crun"), async |fixture| {
        let mut spec = fixture.spec(&Behaviour::Echo);
        spec.agent.env = vec![("PROVIDER_KEY".to_owned(), "a b=c\n'd'".to_owned()), ("LANG".to_owned(), "de".to_owned())];
        let values =
            fixture.python_in(spec, "import os; print(repr([os.environ[n] for n in ('PROVIDER_KEY', 'LANG', 'PYTHONDONTWRITEBYTECODE')]))").await;
        assert_eq!(values, r#"["a b=c\n'd'", 'de', '1']"#);
    })
    .await;
}

#[tokio::test]
async fn two_places_are_two_users() {
    check(OnOci::new("crun"), async |fixture| {
        for place in [0, 1, 7] {
            let spec = LaunchSpec { place, ..fixture.spec(&Behaviour::Echo) };
            let uid = fixture.python_in(spec, "import os; print(os.getuid(), os.getgid())").await;
            assert_eq!(uid, format!("{0} {0}", UID_BASE + place));
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_run_cost_is_measured() {
    for runtime in RUNTIMES {
        check(OnOci::new(runtime), async |fixture| {
            let mut spec = fixture.spec(&Behaviour::Echo);
            spec.agent.command = python(
                "import time; x = b'x' * (20 << 20); t = time.process_time()\nwhile time.process_time() - t < 0.5: pass\nprint(1); time.sleep(60)",
            );
            let mut sandbox = fixture.runner().launch(&spec).await.unwrap();
            sandbox.send(Bytes::new()).unwrap();
            sandbox.next_output().await.unwrap().unwrap();
            let measured = sandbox.measure();
            let (cpu, memory) = (measured.cpu.expect("CPU time"), measured.max_memory.expect("peak memory"));
            assert!(cpu >= Duration::from_millis(450) && cpu < Duration::from_secs(3), "{cpu:?}");
            assert!((20 << 20..64 << 20).contains(&memory), "{memory}");
            sandbox.kill().await.unwrap();
            let exit = sandbox.wait().await.unwrap();
            assert!(exit.cpu >= measured.cpu && exit.max_memory >= measured.max_memory, "{exit:?} is less than {measured:?}");
            sandbox.remove().await.unwrap();
            let (_, exit) = serve(fixture.launch(Behaviour::OutOfMemory).await, "").await;
            assert_eq!(exit.max_memory, Some(fixture.agent(&Behaviour::OutOfMemory).memory));
        })
        .await;
    }
}

#[tokio::test]
async fn a_fork_bomb_dies_within_two_seconds() {
    for runtime in RUNTIMES {
        check(OnOci::new(runtime), async |fixture| {
            let mut sandbox = fixture.begun("import os\nos.write(1, b'!')\nwhile True:\n try: os.fork()\n except OSError: pass").await;
            let begin = Instant::now();
            sandbox.kill().await.unwrap();
            assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
            sandbox.remove().await.unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn a_flood_is_drained_in_bounded_memory() {
    check(OnOci::new("crun"), async |fixture| {
        let size = 100 << 20;
        let mut sandbox = fixture.launch(Behaviour::Flood(size)).await;
        sandbox.send(Bytes::new()).unwrap();
        let (mut drained, mut largest) = (0, 0);
        while let Some(chunk) = within(Duration::from_secs(30), "the next chunk", sandbox.next_output()).await {
            if let OutputChunk::Stdout(bytes) = chunk.unwrap() {
                drained += bytes.len();
                largest = largest.max(bytes.len());
            }
        }
        assert_eq!(drained, size);
        assert!(largest <= 1 << 20, "a chunk of {largest} bytes");
        sandbox.wait().await.unwrap();
        sandbox.remove().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_session_is_frozen_thawed_and_spoken_to_again() {
    for runtime in RUNTIMES {
        check(OnOci::new(runtime), async |fixture| {
            let mut spec = fixture.spec(&Behaviour::Echo);
            spec.agent.command = python("import sys\nfor n, line in enumerate(sys.stdin): print(n, line, end='')\nprint('end')");
            let mut sandbox = fixture.runner().launch(&spec).await.unwrap();
            sandbox.say(Bytes::from_static(b"one\n")).unwrap();
            assert_eq!(line(&mut *sandbox).await, "0 one\n");
            sandbox.freeze().await.unwrap();
            let before = sandbox.measure().cpu.unwrap();
            sandbox.say(Bytes::from_static(b"while it is frozen\n")).unwrap();
            let silence = tokio::time::timeout(Duration::from_millis(300), sandbox.next_output()).await;
            assert!(silence.is_err(), "a frozen program spoke");
            assert_eq!(sandbox.measure().cpu.unwrap(), before, "a frozen program ran");
            sandbox.thaw().await.unwrap();
            assert_eq!(line(&mut *sandbox).await, "1 while it is frozen\n");
            sandbox.say(Bytes::from_static(b"three\n")).unwrap();
            assert_eq!(line(&mut *sandbox).await, "2 three\n");
            assert_eq!(sandbox.send(Bytes::new()).unwrap_err().kind(), FaultKind::Misuse);
            sandbox.freeze().await.unwrap();
            let begin = Instant::now();
            sandbox.kill().await.unwrap();
            assert!(begin.elapsed() < Duration::from_secs(2), "a frozen container took {:?} to die", begin.elapsed());
            assert_eq!(sandbox.wait().await.unwrap().code, 137);
            sandbox.remove().await.unwrap();
        })
        .await;
    }
}

async fn line(sandbox: &mut dyn Sandbox) -> String {
    let mut text = String::new();
    while !text.ends_with('\n') {
        match within(Duration::from_secs(20), "a line", sandbox.next_output()).await.unwrap().unwrap() {
            OutputChunk::Stdout(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            OutputChunk::Stderr(bytes) => panic!("{}", String::from_utf8_lossy(&bytes)),
        }
    }
    text
}

#[tokio::test]
async fn the_memory_limit_ends_a_child_and_not_the_program() {
    check(OnOci::new("crun"), async |fixture| {
        let mut spec = fixture.spec(&Behaviour::Echo);
        spec.agent.command = python(
            "import os, sys\npid = os.fork()\nif pid == 0: x = [bytearray(b'x') * (1 << 20) for _ in range(4096)]\n\
             _, status = os.waitpid(pid, 0); print(os.WTERMSIG(status)); sys.exit(3)",
        );
        let (written, exit) = serve(fixture.runner().launch(&spec).await.unwrap(), "").await;
        assert_eq!((written.stdout.as_slice(), exit.code, exit.oom), (b"9\n".as_slice(), 3, false));
    })
    .await;
}

#[tokio::test]
async fn a_runtime_that_somebody_kills_is_nobodys_verdict_and_leaves_no_program() {
    for runtime in RUNTIMES {
        check(OnOci::new(runtime), async |fixture| {
            let mut sandbox = fixture.begun("import os, time; os.write(1, b'!'); time.sleep(3600)").await;
            let inside = fixture.processes();
            assert_ne!(inside, Vec::<i32>::new());
            let runtimes = fixture.runtimes();
            assert_eq!(runtimes.len(), 1, "{runtimes:?}");
            kill(runtimes[0]);
            while sandbox.next_output().await.transpose().unwrap().is_some() {}
            assert_eq!(sandbox.wait().await.unwrap_err().kind(), FaultKind::Engine);
            assert_eq!(fixture.processes(), Vec::<i32>::new());
            sandbox.kill().await.unwrap();
            sandbox.remove().await.unwrap();
        })
        .await;
    }
}

fn kill(pid: i32) {
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
}

#[tokio::test]
async fn what_a_dead_worker_left_is_found_and_removed() {
    for runtime in RUNTIMES {
        check(OnOci::new(runtime), async |fixture| {
            let sandbox = fixture.begun("import os, time; os.write(1, b'!'); time.sleep(3600)").await;
            let frozen = fixture.begun("import os, time; os.write(1, b'!'); time.sleep(3600)").await;
            let mut frozen = frozen;
            frozen.freeze().await.unwrap();
            // What a worker that is gone leaves: nobody holds the pipes or waits for the runtime.
            drop((sandbox, frozen));
            assert_ne!(fixture.processes(), Vec::<i32>::new());
            assert_eq!(fixture.runner().sweep(&|_| true).await.unwrap(), 0, "what lives was touched");
            assert_eq!(fixture.runner().sweep(&|_| false).await.unwrap(), 2);
            eventually("no trace", || async { traces_of(fixture.instance()).is_empty().then_some(()) }).await;
            assert!(groups_of(fixture.instance()).is_empty(), "an instance without containers has a group");
        })
        .await;
    }
}

#[tokio::test]
async fn half_a_container_is_swept() {
    check(OnOci::new("crun"), async |fixture| {
        // A worker may die between any two steps of a launch.
        std::fs::create_dir_all(Path::new(super::oci::STATE).join(fixture.instance()).join("run-without-a-group-1")).unwrap();
        end(fixture.launch(Behaviour::Hang).await).await;
        let sandbox = fixture.launch(Behaviour::Hang).await;
        let group = fixture.group_file("cgroup.procs");
        let without_a_folder = group.parent().unwrap().parent().unwrap().join("no name of ours");
        std::fs::create_dir(&without_a_folder).unwrap();
        assert_eq!(fixture.runner().sweep(&|_| true).await.unwrap(), 2);
        assert!(!without_a_folder.exists());
        end(sandbox).await;
    })
    .await;
}

#[tokio::test]
async fn a_sweep_touches_nobody_elses_containers() {
    check(OnOci::new("crun"), async |fixture| {
        let longer = format!("{}-longer", fixture.instance());
        let other = OciRunner::connect(options(&longer, "crun")).unwrap();
        let mut sandbox = other.launch(&fixture.spec(&Behaviour::Hang)).await.unwrap();
        assert_eq!(fixture.runner().sweep(&|_| false).await.unwrap(), 0);
        let still = tokio::time::timeout(Duration::from_millis(300), async {
            sandbox.send(Bytes::new()).unwrap();
            sandbox.next_output().await
        });
        assert!(still.await.is_err(), "somebody else's container ended");
        end(sandbox).await;
        other.sweep(&|_| false).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_command_is_the_program_whatever_the_image_says() {
    check(OnOci::new("crun"), async |fixture| {
        let mut spec = fixture.spec(&Behaviour::Echo);
        spec.agent.command = Vec::new();
        let (written, exit) = serve(fixture.runner().launch(&spec).await.unwrap(), "no request object").await;
        // The image's own command, which says that this is no request.
        assert_eq!(exit.code, 64, "{}", String::from_utf8_lossy(&written.stderr));
        assert_eq!(fixture.python("import sys; print(sys.argv)").await, "['-c']");
    })
    .await;
}

#[tokio::test]
async fn what_this_runner_cannot_do_is_refused() {
    check(OnOci::new("crun"), async |fixture| {
        let mut spec = fixture.spec(&Behaviour::Echo);
        spec.agent.network = Network::Bridge;
        let fault = fixture.runner().launch(&spec).await.unwrap_err();
        assert_eq!(fault.kind(), FaultKind::Refused);
        assert!(fault.to_string().contains("network"), "{fault}");
        let mut spec = fixture.spec(&Behaviour::Echo);
        spec.agent.memory = 256 << 10;
        let fault = fixture.runner().launch(&spec).await.unwrap_err();
        assert_eq!(fault.kind(), FaultKind::Refused, "{fault}");
        assert!(fault.to_string().contains("too small"), "{fault}");
    })
    .await;
    for (runtime, instance) in [("no-such-runtime", "conformance"), ("/bin/true", "conformance"), ("crun", "../x"), ("crun", "")] {
        assert_eq!(OciRunner::connect(options(instance, runtime)).unwrap_err().kind(), FaultKind::Refused, "{runtime} {instance}");
    }
}

#[tokio::test]
async fn an_image_comes_from_a_layout_and_from_an_archive() {
    check(OnOci::new("crun"), async |fixture| {
        let folder = tempfile::tempdir().unwrap();
        let (layout, archive) = (folder.path().join("layout"), folder.path().join("image.tar"));
        let source = format!("docker-daemon:{IMAGE}:latest");
        for target in [format!("oci:{}:v1", layout.display()), format!("docker-archive:{}:{IMAGE}:latest", archive.display())] {
            let copied = Command::new("skopeo").args(["copy", "--quiet", &source, &target]).status().unwrap();
            assert!(copied.success(), "{target}");
        }
        for image in [format!("oci:{}:v1", layout.display()), format!("docker-archive:{}", archive.display())] {
            let mut spec = fixture.spec(&Behaviour::Print { stdout: "here", stderr: "", code: 0 });
            spec.agent.image.clone_from(&image);
            let (written, exit) = serve(fixture.runner().launch(&spec).await.unwrap(), "").await;
            assert_eq!((written.stdout.as_slice(), exit.code), (b"here".as_slice(), 0), "{image}");
            assert!(fixture.runner().image_digest(&image).await.unwrap().is_some());
            forget(fixture, &image).await;
        }
        let mut spec = fixture.spec(&Behaviour::Echo);
        spec.agent.image = format!("oci:{}:v2", layout.display());
        assert_eq!(fixture.runner().launch(&spec).await.unwrap_err().kind(), FaultKind::ImageUnavailable);
    })
    .await;
}

/// Removes an unpacked image that was only for a test.
async fn forget(fixture: &OnOci, image: &str) {
    forget_digest(&fixture.runner().image_digest(image).await.unwrap().unwrap());
}

fn forget_digest(digest: &str) {
    let folder: String = digest.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    std::fs::remove_dir_all(Path::new(IMAGES).join(folder)).unwrap();
}

#[tokio::test]
async fn a_name_that_means_another_image_is_another_image() {
    check(OnOci::new("crun"), async |fixture| {
        let name = format!("quayside/test-oci:{}", RunId::random().to_string().to_lowercase().replace('_', "-"));
        let mut digests = Vec::new();
        for words in ["first", "second"] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("Dockerfile"), format!("FROM {IMAGE}\nCMD [\"python3\", \"-c\", \"print('{words}', end='')\"]\n"))
                .unwrap();
            let built = Command::new("docker").args(["build", "--quiet", "--network", "none", "--tag", &name]).arg(folder.path()).output().unwrap();
            assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
            let mut spec = fixture.spec(&Behaviour::Echo);
            spec.agent.image.clone_from(&name);
            spec.agent.command.clear();
            let second = eventually("the image of now", || async {
                let (written, _) = serve(fixture.runner().launch(&spec).await.unwrap(), "").await;
                (written.stdout == words.as_bytes()).then_some(())
            });
            second.await;
            digests.push(fixture.runner().image_digest(&name).await.unwrap().unwrap());
        }
        assert_ne!(digests[0], digests[1]);
        digests.iter().for_each(|digest| forget_digest(digest));
        assert!(Command::new("docker").args(["rmi", "--no-prune", &name]).output().unwrap().status.success());
    })
    .await;
}

#[tokio::test]
async fn a_volume_of_the_image_is_refused() {
    check(OnOci::new("crun"), async |fixture| {
        let name = format!("quayside/test-oci-volume:{}", RunId::random().to_string().to_lowercase().replace('_', "-"));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Dockerfile"), format!("FROM {IMAGE}\nVOLUME /data\n")).unwrap();
        let built = Command::new("docker").args(["build", "--quiet", "--network", "none", "--tag", &name]).arg(folder.path()).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let mut spec = fixture.spec(&Behaviour::Echo);
        spec.agent.image.clone_from(&name);
        let fault = fixture.runner().launch(&spec).await.unwrap_err();
        forget(fixture, &name).await;
        assert!(Command::new("docker").args(["rmi", "--no-prune", &name]).output().unwrap().status.success());
        assert_eq!(fault.kind(), FaultKind::Refused);
        assert!(fault.to_string().contains("Mounts"), "{fault}");
    })
    .await;
}

#[tokio::test]
async fn the_runner_names_its_runtime() {
    for runtime in RUNTIMES {
        let description = OnOci::new(runtime).runner().ping().await.unwrap().description;
        assert!(description.starts_with(&format!("{runtime} 1.")) && description.contains("control groups"), "{description}");
    }
}

#[tokio::test]
async fn containers_of_one_image_share_its_files_and_cannot_change_them() {
    check(OnOci::new("crun"), async |fixture| {
        let key = |number| ContainerKey::Warm(number);
        let change = "import os\ntry: open('/agent/main.py', 'a'); print('changed')\nexcept OSError as error: print(error.errno)";
        for number in 0..2 {
            let spec = LaunchSpec { key: key(number), ..fixture.spec(&Behaviour::Echo) };
            assert_ne!(fixture.python_in(spec, change).await, "changed");
        }
        let digest = fixture.runner().image_digest(IMAGE).await.unwrap();
        assert!(digest.is_some_and(|digest| digest.starts_with("sha256:")));
    })
    .await;
}
