//! Google's emulators of Pub/Sub and Firestore, as processes of the tests.
//!
//! One of each serves a whole test process; tests keep apart by their project id. They end with the test process,
//! however that ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use quayside_shared::ids::RunId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

/// Starting takes a second or two; on a machine that compiles at the same time it may take ten.
const READY: Duration = Duration::from_secs(60);
/// Ports for the emulators: below those that Linux gives to outgoing connections, so that none is taken meanwhile.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Two test processes may choose the same port at the same moment.
const TRIES: u32 = 5;

/// Which emulator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Pubsub,
    Firestore,
}

/// An emulator process. It ends when this is dropped.
pub struct Emulator {
    kind: Kind,
    options: Vec<String>,
    port: u16,
    host: String,
    process: Option<Process>,
}

/// The emulator of Pub/Sub that all tests share.
pub async fn pubsub() -> &'static Emulator {
    static SHARED: OnceCell<Emulator> = OnceCell::const_new();
    SHARED.get_or_init(|| Emulator::start_own(Kind::Pubsub, &[])).await
}

/// The emulator of Firestore that all tests share. It has no rules: every client may do everything.
pub async fn firestore() -> &'static Emulator {
    static SHARED: OnceCell<Emulator> = OnceCell::const_new();
    SHARED.get_or_init(|| Emulator::start_own(Kind::Firestore, &[])).await
}

/// A project id that no other test has.
pub fn project() -> String {
    format!("demo-{}", RunId::random().as_str()[4..].to_lowercase())
}

impl Emulator {
    /// One for a test that kills it, or that needs `options` (for example `--rules=FILE`).
    pub async fn start_own(kind: Kind, options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        for _ in 0..TRIES {
            let port = free_port();
            if let Some(process) = Process::start(kind, port, &options).await {
                return Self { kind, options, port, host: format!("127.0.0.1:{port}"), process: Some(process) };
            }
        }
        panic!("the {kind:?} emulator did not start on any of {TRIES} ports; what it said is above");
    }

    /// `host:port`, as `PUBSUB_EMULATOR_HOST` and `FIRESTORE_EMULATOR_HOST` want it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Kills it, with all that it knew.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Stops it as if its machine stood still: connections stay, nobody answers, nothing is forgotten.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on after a [`Emulator::freeze`].
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.process.as_ref().expect("it runs").pid.to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success(), "kill {signal} {pid}");
    }

    /// A new one on the same port, which knows nothing.
    pub async fn restart(&mut self) {
        self.stop();
        self.process = Process::start(self.kind, self.port, &self.options).await;
        assert!(self.process.is_some(), "the {:?} emulator did not start again on port {}", self.kind, self.port);
    }
}

/// A child in the hands of a thread of its own. The kernel kills the child when the thread that made it ends, and the
/// threads of tests end long before the process does.
struct Process {
    /// `setpriv` becomes the emulator: it is the same process.
    pid: u32,
    /// Dropping it ends the thread, which kills the child first.
    orders: Option<mpsc::Sender<()>>,
    keeper: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    /// Nothing when the process ended before it was ready: its port was taken.
    async fn start(kind: Kind, port: u16, options: &[String]) -> Option<Self> {
        let mut log = tempfile::tempfile().unwrap();
        let mut command = command(kind, port, options);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log.try_clone().unwrap());
        let (orders, ended) = mpsc::channel::<()>();
        let (gone, mut end) = tokio::sync::oneshot::channel();
        let (born, birth) = tokio::sync::oneshot::channel();
        let keeper = std::thread::spawn(move || {
            let child = command.spawn().expect("setpriv (util-linux) starts");
            born.send(child.id()).expect("the starter waits for it");
            keep(child, &ended, gone);
        });
        let pid = birth.await.expect("the keeper told it");
        let process = Self { pid, orders: Some(orders), keeper: Some(keeper) };
        let begun = Instant::now();
        while !answers(port).await {
            if end.try_recv().is_ok() {
                eprintln!("the {kind:?} emulator ended at once:\n{}", said(&mut log));
                return None;
            }
            assert!(begun.elapsed() < READY, "the {kind:?} emulator was not ready within {READY:?}:\n{}", said(&mut log));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Another's emulator may have answered on the same port, and ours found it taken.
        end.try_recv().is_err().then_some(process)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(keeper) = self.keeper.take() {
            keeper.join().unwrap();
        }
    }
}

fn keep(mut child: Child, ended: &mpsc::Receiver<()>, gone: tokio::sync::oneshot::Sender<()>) {
    while ended.recv_timeout(Duration::from_millis(50)) == Err(mpsc::RecvTimeoutError::Timeout) {
        if child.try_wait().unwrap().is_some() {
            let _nobody_asked = gone.send(());
            return;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

fn command(kind: Kind, port: u16, options: &[String]) -> Command {
    let paths = paths();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
    match kind {
        Kind::Pubsub => {
            // In front of the jar; an empty one would mean the current folder.
            let shim = paths["PUBSUB_EMULATOR_SHIM"].as_str();
            let between = if shim.is_empty() { "" } else { ":" };
            command.arg(format!("{shim}{between}{}", paths["PUBSUB_EMULATOR_JAR"]));
            command.arg("com.google.cloud.pubsub.testing.v1.Main");
        }
        Kind::Firestore => {
            command.arg(&paths["FIRESTORE_EMULATOR_JAR"]).arg("com.google.cloud.datastore.emulator.firestore.CloudFirestore");
        }
    }
    command.args(["--host=127.0.0.1".to_owned(), format!("--port={port}")]).args(options);
    command
}

/// Where `infra/dev/emulators.sh` found everything: from the environment when the caller ran it already.
fn paths() -> BTreeMap<String, String> {
    const NAMES: [&str; 3] = ["PUBSUB_EMULATOR_JAR", "PUBSUB_EMULATOR_SHIM", "FIRESTORE_EMULATOR_JAR"];
    let told: BTreeMap<String, String> =
        NAMES.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var_os(name)?.into_string().ok()?))).collect();
    if told.len() == NAMES.len() {
        return told;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/infra/dev/emulators.sh");
    let output = Command::new(script).stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{script} does not start: {error}"));
    let explanation = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "these tests need Google's emulators: run infra/dev/emulators.sh, which says what is missing\n{explanation}");
    let found: BTreeMap<String, String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert!(NAMES.iter().all(|name| found.contains_key(*name)), "infra/dev/emulators.sh printed {found:?}");
    found
}

/// A port of loopback that nobody has, and that Linux gives to no outgoing connection meanwhile.
pub fn free_port() -> u16 {
    // Random, so that test processes that start side by side rarely choose the same.
    let random = || RunId::random().as_str().bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    std::iter::repeat_with(|| PORTS.start + u16::try_from(random() % u64::from(PORTS.end - PORTS.start)).unwrap())
        .take(100)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("one of a hundred ports is free")
}

/// Both emulators answer `GET /` with `Ok`.
async fn answers(port: u16) -> bool {
    let ask = async {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
        connection.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut answer = [0; 12];
        connection.read_exact(&mut answer).await?;
        Ok::<bool, std::io::Error>(answer == *b"HTTP/1.1 200")
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), ask).await, Ok(Ok(true)))
}

fn said(log: &mut File) -> String {
    let mut text = String::new();
    log.seek(SeekFrom::Start(0)).and_then(|_| log.read_to_string(&mut text)).map_or_else(|error| error.to_string(), |_| text)
}
