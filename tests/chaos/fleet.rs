//! The processes of one installation, each of which can be killed, frozen and started again by itself.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::now;
use crate::support::emulators::free_port;
use crate::support::{PATIENCE, eventually};

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Up,
    Api,
    Worker,
}

impl Role {
    const fn command(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Api => "api",
            Self::Worker => "worker",
        }
    }

    /// Whether it runs containers.
    pub const fn works(self) -> bool {
        matches!(self, Self::Up | Self::Worker)
    }

    /// Whether clients speak to it.
    pub const fn serves(self) -> bool {
        matches!(self, Self::Up | Self::Api)
    }
}

/// One `quayside` process, now or again.
pub struct Process {
    pub role: Role,
    config: PathBuf,
    data: PathBuf,
    log: PathBuf,
    environment: Vec<(String, String)>,
    address: SocketAddr,
    child: Option<Child>,
}

impl Process {
    /// Not started yet. Several share a `config`; `data` and `log` are its own.
    pub fn new(role: Role, config: &Path, data: PathBuf, log: PathBuf, environment: &[(String, String)]) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut environment = environment.to_vec();
        let bind = if role.serves() { "QUAYSIDE__API__BIND" } else { "QUAYSIDE__WORKER__PROBES" };
        environment.push((bind.to_owned(), address.to_string()));
        environment.push(("QUAYSIDE__BACKEND__DATA_DIR".to_owned(), data.display().to_string()));
        Self { role, config: config.to_owned(), data, log, environment, address, child: None }
    }

    /// Where it serves: the API, or a worker's probes.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// The owner label of its containers.
    pub fn instance(&self) -> Option<String> {
        Some(std::fs::read_to_string(self.data.join("instance")).ok()?.trim().to_owned())
    }

    pub fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        // Another build of it, for example the release.
        let binary = std::env::var_os("QUAYSIDE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_quayside").into());
        let mut command = Command::new(binary);
        command.arg("--config").arg(&self.config).arg(self.role.command());
        command.env("QUAYSIDE_LOG", "info,quayside_worker=debug,firestore=off,gcloud_sdk=off");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("the quayside binary"));
    }

    /// Waits until it answers that it is ready.
    pub async fn ready(&mut self) {
        let url = format!("http://{}/readyz", self.address);
        let begun = Instant::now();
        loop {
            if reqwest::get(&url).await.is_ok_and(|answer| answer.status() == 200) {
                return;
            }
            self.revive();
            assert!(begun.elapsed() < PATIENCE, "{:?} is not ready; its log is {}", self.role, self.log.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts it again when it gave up by itself, as whoever supervises it would. Only a fault may make it give up: an
    /// exit code, never a signal.
    pub fn revive(&mut self) {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait().unwrap()
        {
            assert!(status.signal().is_none() && status.code() != Some(101), "{:?} crashed ({status}); its log is {}", self.role, self.log.display());
            self.start();
        }
    }

    /// `kill -9`. Returns the moment.
    pub fn kill(&mut self) -> u64 {
        let mut child = self.child.take().expect("it runs");
        let at = now();
        child.kill().unwrap();
        child.wait().unwrap();
        at
    }

    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap().success(), "kill {signal}");
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(&mut self) {
        self.signal("-TERM");
        let mut child = self.child.take().expect("it runs");
        let log = self.log.display().to_string();
        let code = eventually(&format!("the end of a drain ({log})"), || {
            let ended = child.try_wait().unwrap();
            async move { ended }
        })
        .await
        .code();
        assert_eq!(code, Some(0), "{:?} drained; its log is {log}", self.role);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }
}
