//! Programs that a sandbox must contain, each through the whole product. See `hostile/README.md`.

mod artefacts;
mod gvisor;
mod header;
mod host;
mod neighbours;
mod output;
mod stage;
mod weight;

use std::time::{Duration, Instant};

/// One test for each program: the run must be what its header says, and nothing may be left on the host.
macro_rules! contained {
    ($($name:ident $file:literal)*) => {
        /// The programs that are run by a test of their own name.
        const CONTAINED: &[&str] = &[$($file),*];
        $(
            #[tokio::test]
            async fn $name() {
                stage::verdict($file, "").await;
            }
        )*
    };
}

contained! {
    exit_0_after_errors "exit_0_after_errors.sh"
    exit_127_missing "exit_127_missing.sh"
    exit_255 "exit_255.sh"
    fd_exhaust "fd_exhaust.py"
    inj_echo_argv "inj_echo_argv.py"
    inj_prompt "inj_prompt.sh"
    inj_safe_way "inj_safe_way.sh"
    inj_seed_sh_c "inj_seed_sh_c.sh"
    inode_exhaust "inode_exhaust.py"
    inotify_exhaust "inotify_exhaust.py"
    io_hog "io_hog.py"
    kill_self_9 "kill_self_9.sh"
    leak_env "leak_env.sh"
    leak_timing_probe "leak_timing_probe.py"
    neighbour_probe "neighbour_probe.py"
    net_docker_socket "net_docker_socket.sh"
    net_interfaces "net_interfaces.sh"
    net_metadata "net_metadata.py"
    net_tcp_udp "net_tcp_udp.py"
    out_ansi_osc "out_ansi_osc.py"
    out_html_script "out_html_script.sh"
    out_invalid_utf8 "out_invalid_utf8.py"
    out_log_forgery "out_log_forgery.py"
    priv_cgroup_escape "priv_cgroup_escape.py"
    priv_devices "priv_devices.py"
    priv_pid_view "priv_pid_view.py"
    priv_proc_write "priv_proc_write.py"
    priv_setuid "priv_setuid.sh"
    priv_status "priv_status.py"
    priv_unshare "priv_unshare.sh"
    stdin_eof_wait "stdin_eof_wait.sh"
    tmpfs_fill "tmpfs_fill.py"
}

/// The programs whose tests below, and in `artefacts`, look at the host, too.
const WATCHED: &[&str] = &[
    "art_deep_dirs.py",
    "art_growing.py",
    "art_many.py",
    "art_names.py",
    "art_symlinks.sh",
    "art_zip_bomb.py",
    "core_dump.py",
    "cpu_hog.py",
    "disk_fill.py",
    "double_fork_daemon.py",
    "fork_bomb.py",
    "ignore_sigterm.py",
    "mem_bomb.py",
    "single_line_huge.py",
    "sleep_forever.sh",
    "stdout_flood.py",
];

#[test]
fn every_program_has_its_test() {
    let mut named: Vec<String> = CONTAINED.iter().chain(WATCHED).map(|&file| file.to_owned()).collect();
    let folder = std::fs::read_dir(stage::programs()).unwrap();
    let mut there: Vec<String> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    named.sort();
    there.sort();
    assert_eq!(there, named);
}

#[tokio::test]
async fn core_dump() {
    let before = host::core_files();
    stage::verdict("core_dump.py", "").await;
    let new: Vec<_> = host::core_files().difference(&before).cloned().collect();
    assert!(new.is_empty(), "core files are on the host: {new:?}");
}

#[tokio::test]
async fn disk_fill() {
    let seen = stage::verdict("disk_fill.py", "").await;
    let text = seen.run["text"].as_str().unwrap();
    assert!(text.contains("writable disk mounts []"), "a disk of the host can be written: {text}");
}

#[tokio::test]
async fn fork_bomb() {
    let server = stage::server(stage::agent("fork_bomb.py", "", "pids = 100")).await;
    let user = server.user("mallory");
    let follower = host::Follower::of(&server);
    let id = user.say("fork_bomb", "hello").await;
    let mut most = 0;
    let run = loop {
        for container in follower.made() {
            most = most.max(host::figure(&container, "pids.current").unwrap_or_default());
            if let Some(limit) = host::figure(&container, "pids.max") {
                assert_eq!(limit, 100);
            }
        }
        let run = user.run(&id).await;
        if crate::support::server::is_terminal(&run) {
            break run;
        }
    };
    assert_eq!(stage::header("fork_bomb.py").objection(&run), None, "{run:#}");
    assert!(most > 0 && most <= 100, "{most} processes at once");
    stage::nothing_is_left(&server, &id).await;
    follower.sees_no_trace().await;
}

#[tokio::test]
async fn mem_bomb() {
    let seen = stage::verdict("mem_bomb.py", "").await;
    assert_eq!(seen.usage("maxMemoryBytes"), stage::memory_limit());
}

#[tokio::test]
async fn stdout_flood() {
    // 4 GiB take longer than this; what comes until then is drained and dropped.
    let seen = stage::verdict("stdout_flood.py", "timeout = \"8s\"").await;
    assert_eq!(seen.run["truncated"], true);
    assert!(seen.server_growth < 64 << 20, "the server grew by {} bytes", seen.server_growth);
    assert!(seen.run["text"].as_str().unwrap().len() <= 1 << 20);
    assert!(seen.usage("outputBytes") > 1 << 20, "what was dropped is counted, too");
}

#[tokio::test]
async fn single_line_huge() {
    let seen = stage::verdict("single_line_huge.py", "").await;
    assert!(seen.server_growth < 32 << 20, "the server grew by {} bytes", seen.server_growth);
    assert_eq!(seen.usage("outputBytes"), 64 << 20);
}

/// The wall-clock limit of 3 s, and little more.
async fn ends_at_its_limit(file: &str) {
    let seen = stage::verdict(file, "").await;
    let wall = Duration::from_millis(seen.usage("wallMillis"));
    assert!(wall >= Duration::from_secs(3) && wall < Duration::from_secs(5), "it was killed after {wall:?}");
}

#[tokio::test]
async fn sleep_forever() {
    ends_at_its_limit("sleep_forever.sh").await;
}

#[tokio::test]
async fn ignore_sigterm() {
    ends_at_its_limit("ignore_sigterm.py").await;
}

#[tokio::test]
async fn double_fork_daemon() {
    let seen = stage::verdict("double_fork_daemon.py", "").await;
    let wall = Duration::from_millis(seen.usage("wallMillis"));
    assert!(wall < Duration::from_secs(5), "the daemon kept the run open for {wall:?}");
}

#[tokio::test]
async fn cpu_hog() {
    let server = stage::server(stage::agent("cpu_hog.py", "", "")).await;
    let user = server.user("mallory");
    let id = user.say("cpu_hog", "hello").await;
    user.reaches(&id, "in_progress").await;
    let mut answers = Vec::new();
    while user.run(&id).await["status"] == "in_progress" {
        let asked = Instant::now();
        assert_eq!(user.get("/livez").send().await.unwrap().status(), 200);
        answers.push(asked.elapsed());
    }
    let run = user.finished(&id).await;
    assert_eq!(stage::header("cpu_hog.py").objection(&run), None, "{run:#}");
    answers.sort();
    let median = answers[answers.len() / 2];
    assert!(median < Duration::from_millis(250), "the API took {median:?} beside a hog");
    // Eight busy processes on one CPU.
    let (cpu, wall) = (run["usage"]["cpuMillis"].as_u64().unwrap(), run["usage"]["wallMillis"].as_u64().unwrap());
    assert!(cpu * 100 <= wall * 115, "{cpu} ms of CPU in {wall} ms");
    stage::nothing_is_left(&server, &id).await;
}
