//! The disk of the data folder: full, failing, mounted for reading.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::server::{Options, Server, User, docker};

/// A disk of its own, small enough to be filled. Needs root, or sudo without a password.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        privileged(&["mount", "-t", "tmpfs", "-o", &format!("mode=0777,{options}"), "quayside-test", at.to_str().unwrap()]);
        Self(at.to_owned())
    }

    fn file(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Takes all room but `left` bytes.
    fn fill(&self, left: u64) {
        let mut filler = File::options().create(true).append(true).open(self.file()).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
        let length = filler.metadata().unwrap().len();
        filler.set_len(length - left.min(length)).unwrap();
    }

    fn free(&self) {
        std::fs::remove_file(self.file()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        privileged(&["umount", "--lazy", self.0.to_str().unwrap()]);
    }
}

fn privileged(command: &[&str]) {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let words: Vec<&str> = if root { command.to_vec() } else { ["sudo", "-n"].iter().chain(command).copied().collect() };
    let done = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(done.status.success(), "this test needs root or sudo without a password: {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// On a disk of 16 MiB.
async fn server(options: Options) -> (Server, Disk) {
    let mut server = Server::prepared("reserve = \"1MiB\"\n", options);
    let disk = Disk::mount(server.data_dir(), "size=16m");
    server.restart().await;
    (server, disk)
}

/// 503 in words, with `Retry-After`.
async fn assert_refused(user: &User) {
    let answer = user.post("/api/conversation").json(&json!({"agent": "cat", "message": "x"})).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers()["Retry-After"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(answer.headers()["Content-Type"], "application/problem+json");
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["code"], "overloaded", "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("store"), "{problem}");
}

async fn assert_not_ready(user: &User) {
    let ready = user.get("/readyz").send().await.unwrap();
    assert_eq!(ready.status(), 503);
    let ready: Value = ready.json().await.unwrap();
    let store = ready["checks"].as_array().unwrap().iter().find(|check| check["name"] == "store").unwrap();
    assert!(store["ok"] == false && store["detail"].as_str().unwrap().contains("disk"), "{ready}");
}

async fn ready_again(user: &User) {
    eventually("a green readiness", || async { Some(user.get("/readyz").send().await.unwrap()).filter(|answer| answer.status() == 200) }).await;
}

fn outcomes(run: &Value) -> Vec<&str> {
    run["attempts"].as_array().unwrap().iter().filter_map(|attempt| attempt["outcome"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_keeps_and_recovers() {
    let (server, disk) = server(Options { lease: "20s", heartbeat: "500ms", ..Options::default() }).await;
    let user = server.user("u");
    let before = user.finished(&user.say("cat", "before").await).await;
    let running = user.say("sh", "echo begun; sleep 3; echo ended").await;
    user.says(&running, "begun").await;
    disk.fill(0);
    let filled = Instant::now();
    for _ in 0..5 {
        assert_refused(&user).await;
    }
    assert_not_ready(&user).await;
    assert_eq!(user.run(before["id"].as_str().unwrap()).await, before, "reading goes on");
    eventually("a write that failed", || async { server.log_text().contains("the disk of the data folder is full").then_some(()) }).await;
    // Longer than the attempt takes: its end waits for room.
    tokio::time::sleep(Duration::from_secs(5).saturating_sub(filled.elapsed())).await;
    assert_eq!(user.run(&running).await["status"], "in_progress");
    disk.free();
    let run = user.finished(&running).await;
    assert_eq!((&run["status"], &run["text"]), (&json!("completed"), &json!("begun\nended\n")), "{run}");
    assert_eq!(outcomes(&run), ["finished"], "its lease was kept: {run}");
    ready_again(&user).await;
    assert_eq!(user.finished(&user.say("cat", "after").await).await["text"], "after");
    let log = server.log_text();
    assert_eq!(log.matches("the disk of the data folder is full; free some space").count(), 1, "said once, not with every write");
    assert_eq!(log.matches("the database is written again").count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_for_longer_than_the_lease_fences() {
    let (server, disk) = server(Options { lease: "3s", heartbeat: "500ms", ..Options::default() }).await;
    let user = server.user("u");
    let running = user.say("sh", "echo begun; sleep 1; echo ended").await;
    user.says(&running, "begun").await;
    let container = server.containers();
    disk.fill(0);
    eventually("a lost lease", || async { server.log_text().contains("the lease was lost").then_some(()) }).await;
    eventually("a killed container", || async { (!docker(&["ps", "-aq", "--no-trunc"]).contains(&container[0])).then_some(()) }).await;
    disk.free();
    let run = user.finished(&running).await;
    assert_eq!((&run["status"], &run["text"]), (&json!("completed"), &json!("begun\nended\n")), "{run}");
    assert_eq!(outcomes(&run), ["worker_lost", "finished"], "{run}");
    eventually("an empty host", || async { server.containers().is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_has_no_room_for_its_files_says_so() {
    let (mut server, disk) = server(Options::default()).await;
    let user = server.user("u");
    let before = user.finished(&user.say("cat", "before").await).await;
    server.kill();
    // The index of the log is made anew, for which there is no room.
    std::fs::remove_file(server.data_dir().join("quayside.db-shm")).unwrap();
    disk.fill(0);
    let mut start = server.command().arg("up").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    let status = loop {
        match start.try_wait().unwrap() {
            Some(status) => break status,
            None if begun.elapsed() > Duration::from_secs(30) => {
                start.kill().unwrap();
                panic!("it started");
            }
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let mut words = String::new();
    start.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert!(status.code() == Some(1) && words.contains("is full") && words.contains("free some space"), "{words}");
    disk.free();
    server.restart().await;
    assert_eq!(server.user("u").run(before["id"].as_str().unwrap()).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reserve_is_for_what_was_accepted() {
    let (server, disk) = server(Options { slots: 1, ..Options::default() }).await;
    let user = server.user("u");
    let running = user.say("sh", "echo begun; sleep 2; echo ended").await;
    let second = user.say("sh", "echo begun; sleep 2; echo ended").await;
    let third = user.say("cat", "third").await;
    user.says(&running, "begun").await;
    // The reserve is touched: nothing new, and what was accepted is started and ends.
    disk.fill(800 << 10);
    assert_refused(&user).await;
    assert_not_ready(&user).await;
    assert_eq!(user.finished(&running).await["status"], "completed");
    user.says(&second, "begun").await;
    // Half of it is gone: what is in progress ends, and nothing is started.
    disk.fill(300 << 10);
    assert_refused(&user).await;
    assert_eq!(outcomes(&user.finished(&second).await), ["finished"]);
    eventually("a refused start", || async { server.log_text().contains("no run is started").then_some(()) }).await;
    assert_eq!(user.run(&third).await["status"], "queued");
    assert!(!server.log_text().contains("the disk of the data folder is full; free"), "no write failed");
    disk.free();
    assert_eq!(user.finished(&third).await["status"], "completed");
    ready_again(&user).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_disk_refuses_and_recovers() {
    let mut server = Server::prepared("", Options { lease: "20s", heartbeat: "500ms", ..Options::default() });
    server.restart().await;
    let user = server.user("u");
    let running = user.say("sh", "echo begun; sleep 2; echo ended").await;
    user.says(&running, "begun").await;
    // Files of this process may not grow any more: every write into the log behind its end is an error of the disk.
    let limit = |limit: &str| {
        let done = Command::new("prlimit").args(["--pid", &server.pid().to_string(), &format!("--fsize={limit}:")]).status();
        assert!(done.expect("prlimit (util-linux)").success());
    };
    limit("65536");
    let length = std::fs::metadata(server.data_dir().join("quayside.db-wal")).unwrap().len();
    assert!(length > 65536, "{length}");
    assert_refused(&user).await;
    let ready = user.get("/readyz").send().await.unwrap();
    assert!(ready.status() == 503 && ready.text().await.unwrap().contains("the disk fails"));
    assert_eq!(user.run(&running).await["status"], "in_progress", "reading goes on");
    limit("unlimited");
    let run = user.finished(&running).await;
    assert_eq!((&run["text"], outcomes(&run)), (&json!("begun\nended\n"), vec!["finished"]), "{run}");
    ready_again(&user).await;
    user.finished(&user.say("cat", "after").await).await;
}

#[tokio::test]
async fn a_disk_for_reading_alone_is_told() {
    let server = Server::prepared("", Options::default());
    let _disk = Disk::mount(server.data_dir(), "ro,size=1m");
    let output = server.command().arg("up").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("cannot write into the data folder") && words.contains("backend.data_dir") && words.contains("Read-only"), "{words}");
}
