//! A Docker engine of the round's own, so that it can be stopped and killed without harm to anybody else's containers.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{PATIENCE, eventually};

/// The image that every agent of a round runs in.
pub const IMAGE: &str = "quayside/agent-python";

/// A `dockerd` with its own data, sockets and containerd. Everything of it goes away with this.
pub struct Engine {
    folder: tempfile::TempDir,
    live_restore: bool,
    daemon: Option<Child>,
}

/// How an engine is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// As `systemctl stop docker` does: the containers are told to end first, unless they are to survive it.
    Orderly,
    /// `kill -9`: the containers go on without it until the next one comes.
    Killed,
}

impl Engine {
    /// Whether this process may start one.
    pub fn is_possible() -> bool {
        rustix::process::geteuid().is_root()
    }

    /// Starts one with the agents' image in it.
    pub async fn start(live_restore: bool) -> Self {
        // Short: the path of a socket must fit into 108 bytes, and the engine makes longer ones below this.
        let folder = tempfile::Builder::new().prefix("qs-").tempdir_in("/tmp").unwrap();
        let mut engine = Self { folder, live_restore, daemon: None };
        engine.go_on().await;
        engine.load();
        engine
    }

    pub fn socket(&self) -> PathBuf {
        self.path("s")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the daemon, again after a [`Engine::stop`]; returns when it answers.
    pub async fn go_on(&mut self) {
        self.spawn();
        let socket = self.socket();
        eventually("an engine of our own", || async { docker_at(&socket, &["version"]).map(drop) }).await;
    }

    fn spawn(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        // In a network of its own: without a bridge it would delete that of the machine's engine.
        let mut command = Command::new("unshare");
        command
            .args(["--net", "dockerd", "--data-root"])
            .arg(self.path("d"))
            .arg("--exec-root")
            .arg(self.path("x"))
            .arg("--pidfile")
            .arg(self.path("pid"))
            .arg(format!("--host=unix://{}", self.socket().display()))
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--shutdown-timeout=5"])
            .arg(format!("--live-restore={}", self.live_restore));
        // A crash leaves the file behind, and with it the next one refuses to start while another process has the number.
        let _absent = std::fs::remove_file(self.path("pid"));
        // Its containerd dies with it. Where nobody reaps orphans, its number stays taken, and the next daemon would wait
        // for a dead one.
        if self.containerd().is_none() {
            let _absent = std::fs::remove_file(self.path("x/containerd/containerd.pid"));
        }
        self.daemon = Some(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().expect("dockerd starts"));
    }

    /// Stops the daemon and waits until it is gone.
    pub async fn stop(&mut self, how: Stop) {
        let mut daemon = self.daemon.take().expect("it runs");
        let signal = if how == Stop::Orderly { "-TERM" } else { "-KILL" };
        Command::new("kill").args([signal, &daemon.id().to_string()]).status().unwrap();
        let begun = Instant::now();
        while daemon.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "the engine does not stop; its log is {}", self.path("log").display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The process of its containerd, if that lives.
    fn containerd(&self) -> Option<String> {
        let pid = std::fs::read_to_string(self.path("x/containerd/containerd.pid")).ok()?.trim().to_owned();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        (status.starts_with("Name:\tcontainerd\n") && !status.contains("State:\tZ")).then_some(pid)
    }

    fn load(&self) {
        let mut save = Command::new("docker").args(["save", IMAGE]).stdout(Stdio::piped()).spawn().expect("the docker command");
        let load = Command::new("docker")
            .arg(format!("--host=unix://{}", self.socket().display()))
            .arg("load")
            .stdin(save.stdout.take().unwrap())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(save.wait().unwrap().success() && load.success(), "the agents' image {IMAGE} could not be copied: infra/agents/build.sh makes it");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.daemon.is_none() {
            // Its containers may live on; only it can end them.
            self.spawn();
        }
        let begun = Instant::now();
        let containers = loop {
            match docker_at(&self.socket(), &["ps", "-aq"]) {
                None if begun.elapsed() < Duration::from_secs(20) => std::thread::sleep(Duration::from_millis(50)),
                listed => break listed.unwrap_or_default(),
            }
        };
        for container in containers.split_whitespace() {
            let _gone = docker_at(&self.socket(), &["rm", "-f", "-v", container]);
        }
        if let Some(daemon) = &mut self.daemon {
            let _ended = Command::new("kill").args(["-TERM", &daemon.id().to_string()]).status();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(10) && matches!(daemon.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _gone = daemon.kill();
            let _reaped = daemon.wait();
        }
        // A daemon that was killed and never came back leaves its containerd, and mounts that keep the folder.
        if let Some(pid) = self.containerd() {
            let _ended = Command::new("kill").args(["-KILL", &pid]).status();
        }
        let below = self.folder.path().display().to_string();
        // Shims of containers that were being removed when it was killed: nobody else ends them.
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let arguments = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            if arguments.contains("containerd-shim") && arguments.contains(&format!("{below}/")) {
                let _ended = Command::new("kill").arg("-KILL").arg(process.file_name()).status();
            }
        }
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|mount| mount.starts_with(&below)) {
            let _gone = Command::new("umount").args(["--lazy", mount]).stderr(Stdio::null()).status();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            eprintln!("the last words of the engine of our own:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// The output of the Docker command line at the engine behind `socket`; nothing when it fails.
pub fn docker_at(socket: &Path, arguments: &[&str]) -> Option<String> {
    let host = format!("--host=unix://{}", socket.display());
    let output = Command::new("docker").arg(host).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().expect("the docker command");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
