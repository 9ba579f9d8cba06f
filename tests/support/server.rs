//! A real Quayside with its own data folder, in one process or in several, and a client that speaks the contract to it.

pub mod containers;
mod one;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{PATIENCE, emulators, eventually};

/// Agents that the scenarios need, beside the built-in `python`. Their image is the agent image; their programs are
/// given on the command line, the message comes on standard input.
const AGENTS: &str = r#"
[agents.cat]
image = "quayside/agent-python"
command = ["cat"]
input = "text"
output = "text"

[agents.sh]
image = "quayside/agent-python"
command = ["sh", "-s"]
input = "text"
output = "text"
timeout = "60s"
memory = "256MiB"

[agents.request]
image = "quayside/agent-python"
command = ["python3", "-c", "import sys,json; r=json.load(sys.stdin); print(json.dumps({'result': json.dumps(r)}))"]
output = "json"

[agents.events]
image = "quayside/agent-python"
command = ["cat"]
input = "text"
output = "events"

[agents.small]
image = "quayside/agent-python"
command = ["sh", "-s"]
input = "text"
output = "text"
output_limit = "1KiB"
memory = "64MiB"

[agents.ghost]
image = "quayside/no-such-image:1"
command = ["true"]

[agents.nothing]
image = "quayside/agent-python"
command = ["/no/such/program"]
"#;

/// The operators' key on the Google backend.
const ADMIN_KEY: &str = "the-key-of-the-operators";

/// Where a scenario happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// One process with everything in it.
    Embedded,
    /// Two APIs and two workers (one for a single slot), joined by Google's emulators.
    Google,
}

/// The processes of one installation. Killed, with all their containers, when the test lets go of them.
pub struct Server {
    on: Backend,
    /// APIs first.
    processes: Vec<Child>,
    slots: u32,
    folder: Option<tempfile::TempDir>,
    /// The file with its configuration.
    pub config: PathBuf,
    data_dir: PathBuf,
    /// `http://127.0.0.1:port` of each API.
    urls: Vec<String>,
    /// The first of them.
    pub url: String,
    /// What it logged so far, for failing tests.
    pub log: PathBuf,
}

/// How a server is started.
pub struct Options {
    /// TOML after the defaults of the tests: more agents, other sections than `[api]`, `[backend]`, `[worker]`.
    pub extra: String,
    pub slots: u32,
    pub lease: &'static str,
    pub heartbeat: &'static str,
    pub drain: &'static str,
    pub max_attempts: u32,
    /// TOML for the end of `[worker]`.
    pub worker: String,
    /// Whether its workers prove their limits before they begin; nearly all tests have no use for it.
    pub prove_limits: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            extra: String::new(),
            slots: 4,
            lease: "4s",
            heartbeat: "1s",
            drain: "20s",
            max_attempts: 3,
            worker: String::new(),
            prove_limits: false,
        }
    }
}

impl Server {
    pub async fn start(on: Backend) -> Self {
        Self::start_with(on, Options::default()).await
    }

    pub async fn start_with(on: Backend, options: Options) -> Self {
        let server = Self::start_unready(on, options).await;
        server.ready().await;
        server
    }

    /// The same without waiting for readiness.
    pub async fn start_unready(on: Backend, options: Options) -> Self {
        let backend = match on {
            Backend::Embedded => String::new(),
            Backend::Google => {
                let hosts = (emulators::pubsub().await.host(), emulators::firestore().await.host());
                return Self::start_on_emulators(hosts, &emulators::project(), options).await;
            }
        };
        Self::start_processes(on, &backend, options).await
    }

    /// On emulators that belong to the test.
    pub async fn start_on_emulators(hosts: (&str, &str), project: &str, options: Options) -> Self {
        // The hosts come by the environment; written down here so that a restart finds them again.
        let google = format!("kind = \"google\"\n# {} {}\n[google]\nproject_id = \"{project}\"\n", hosts.0, hosts.1);
        let server = Self::start_processes(Backend::Google, &google, options).await;
        server.ready().await;
        server
    }

    /// An embedded one that is not running yet: [`Server::restart`] starts it. `backend` is TOML for `[backend]`.
    pub fn prepared(backend: &str, options: Options) -> Self {
        Self::prepare(Backend::Embedded, backend, options)
    }

    async fn start_processes(on: Backend, backend: &str, options: Options) -> Self {
        let mut server = Self::prepare(on, backend, options);
        server.spawn();
        server
    }

    fn prepare(on: Backend, backend: &str, options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("data");
        let config = folder.path().join("quayside.toml");
        let Options { extra, slots, lease, heartbeat, drain, max_attempts, worker, prove_limits } = options;
        let workers = workers(on, slots);
        // Hundreds of servers, each with its own, would fill the machine: a test that wants a pool asks for it.
        let no_pool = if worker.contains("warm_memory") { "" } else { "warm_memory = \"0B\"\n" };
        // The embedded backend makes its own.
        let admin_key = if on == Backend::Google { format!("admin_key = \"{ADMIN_KEY}\"\n") } else { String::new() };
        let text = format!(
            "[api]\nbind = \"127.0.0.1:0\"\n{admin_key}[backend]\ndata_dir = {data_dir:?}\n{backend}[worker]\nslots = {}\nlease = \"{lease}\"\nheartbeat = \"{heartbeat}\"\ndrain = \"{drain}\"\nmax_attempts = {max_attempts}\nprove_limits = {prove_limits}\n{no_pool}{worker}\n{AGENTS}\n{extra}",
            slots / workers
        );
        std::fs::write(&config, text).unwrap();
        let log = folder.path().join("log");
        Self { on, processes: Vec::new(), slots, folder: Some(folder), config, data_dir, urls: Vec::new(), url: String::new(), log }
    }

    /// A command that reads this server's configuration, in the folder where it is.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quayside"));
        let folder = self.config.parent().expect("it is in a folder");
        command.env_remove("QUAYSIDE_CONFIG").env("QUAYSIDE_LOG", "warn").envs(containers::environment()).current_dir(folder);
        command
    }

    fn spawn(&mut self) {
        self.urls.clear();
        let apis: &[&str] = if self.on == Backend::Embedded { &["up"] } else { &["api", "api"] };
        // Side by side: each waits until it knows its address.
        let started: Vec<(Child, Option<String>)> = std::thread::scope(|scope| {
            let apis: Vec<_> = apis.iter().map(|&command| scope.spawn(|| self.process(command))).collect();
            apis.into_iter().map(|api| api.join().unwrap()).collect()
        });
        for (child, url) in started {
            self.processes.push(child);
            self.urls.push(url.expect("an API prints where it listens"));
        }
        self.url = self.urls[0].clone();
        if self.on == Backend::Google {
            for _ in 0..workers(self.on, self.slots) {
                self.processes.push(self.process("worker").0);
            }
        }
    }

    fn process(&self, command: &str) -> (Child, Option<String>) {
        let text = std::fs::read_to_string(&self.config).unwrap();
        let hosts = text.lines().find_map(|line| line.strip_prefix("# ")?.split_once(' '));
        spawn(&self.config, &self.log, command, hosts)
    }

    /// `kill -9` for every process, at once.
    pub fn kill(&mut self) {
        for child in &mut self.processes {
            child.kill().unwrap();
        }
        for mut child in self.processes.drain(..) {
            child.wait().unwrap();
        }
    }

    /// `kill -9` for one of the APIs and one of the workers, and new ones in their place.
    pub async fn replace_one_of_each(&mut self) {
        assert_eq!(self.on, Backend::Google);
        let last = self.processes.len() - 1;
        for place in [0, last] {
            self.processes[place].kill().unwrap();
            self.processes[place].wait().unwrap();
        }
        let (api, url) = self.process("api");
        self.processes[0] = api;
        self.urls[0] = url.expect("an API prints where it listens");
        self.url = self.urls[0].clone();
        self.processes[last] = self.process("worker").0;
        self.ready().await;
    }

    /// Starts again on the same data after a [`Server::kill`] or [`Server::terminate`].
    pub async fn restart(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// The same when the test itself has had the data open: waits until it is free.
    pub async fn restart_when_free(&mut self) {
        let data_dir = self.data_dir.clone();
        eventually("free data", || async { quayside_shared::sqlite::Database::open(&data_dir).ok().map(drop) }).await;
        self.restart().await;
    }

    /// SIGTERM for every process; returns the highest exit code.
    pub async fn terminate(&mut self) -> i32 {
        for child in &self.processes {
            Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        }
        let begun = Instant::now();
        let mut highest = 0;
        for mut child in self.processes.drain(..) {
            let code = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status.code().unwrap_or(128);
                }
                assert!(begun.elapsed() < PATIENCE, "the server did not drain");
                tokio::time::sleep(Duration::from_millis(20)).await;
            };
            highest = highest.max(code);
        }
        highest
    }

    /// The process that runs containers: the only one, or the last worker.
    pub fn pid(&self) -> u32 {
        self.processes.last().expect("a process").id()
    }

    /// What opens the operators' routes.
    pub fn admin_key(&self) -> String {
        match self.on {
            Backend::Embedded => std::fs::read_to_string(self.data_dir.join("admin.key")).unwrap().trim().to_owned(),
            Backend::Google => ADMIN_KEY.to_owned(),
        }
    }

    /// `kill -9` for the last worker.
    pub fn kill_worker(&mut self) {
        assert_eq!(self.on, Backend::Google);
        let mut worker = self.processes.pop().expect("a worker");
        worker.kill().unwrap();
        worker.wait().unwrap();
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The owner labels of this server's containers.
    pub fn instances(&self) -> Vec<String> {
        let files = std::fs::read_dir(&self.data_dir).into_iter().flatten().flatten();
        let named = files.filter(|file| file.file_name().to_string_lossy().starts_with("instance"));
        named.filter_map(|file| std::fs::read_to_string(file.path()).ok()).map(|name| name.trim().to_owned()).collect()
    }

    /// Ids of this server's containers, running or not.
    pub fn containers(&self) -> Vec<String> {
        self.instances().iter().flat_map(|instance| containers::of(instance)).collect()
    }

    /// What its workers have mounted for containers, whether those live or not.
    pub fn workspaces(&self) -> Vec<PathBuf> {
        let of = |instance: String| std::fs::read_dir(Path::new(quayside_worker::runner::workspace::FOLDER).join(instance));
        self.instances().into_iter().flat_map(of).flatten().flatten().map(|entry| entry.path()).collect()
    }

    pub fn user(&self, name: &str) -> User {
        User { http: reqwest::Client::new(), urls: self.urls.clone().into(), turn: Arc::default(), name: name.to_owned() }
    }

    /// A user of one API alone.
    pub fn user_at(&self, api: usize, name: &str) -> User {
        User { urls: [self.urls[api].clone()].into(), ..self.user(name) }
    }

    async fn ready(&self) {
        for url in &self.urls {
            let url = format!("{url}/readyz");
            eventually("readiness", || async { reqwest::get(&url).await.ok().filter(|answer| answer.status() == 200) }).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        containers::remove(&self.instances());
        for workspace in self.workspaces() {
            let _ = Command::new("umount").arg("--lazy").arg(&workspace).stderr(Stdio::null()).status();
            let _ = std::fs::remove_dir(workspace);
        }
        for instance in self.instances() {
            let _ = std::fs::remove_dir(Path::new(quayside_worker::runner::workspace::FOLDER).join(instance));
        }
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("the server's log is kept in {}", folder.keep().join("log").display());
        }
    }
}

/// One worker for a single slot: two would be two.
fn workers(on: Backend, slots: u32) -> u32 {
    if on == Backend::Google && slots > 1 { 2 } else { 1 }
}

/// Starts a process; what serves HTTP tells where.
fn spawn(config: &Path, log: &Path, command: &str, hosts: Option<(&str, &str)>) -> (Child, Option<String>) {
    let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
    let mut process = Command::new(env!("CARGO_BIN_EXE_quayside"));
    process.args(["--config", config.to_str().unwrap(), command]).env("QUAYSIDE_LOG", "info,quayside_worker=debug,firestore=off,gcloud_sdk=off");
    process.envs(containers::environment());
    if let Some((pubsub, firestore)) = hosts {
        process.env("PUBSUB_EMULATOR_HOST", pubsub).env("FIRESTORE_EMULATOR_HOST", firestore);
    }
    let mut child = process.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Some(url) = serde_json::from_str::<Value>(&line).ok().and_then(|line| line["url"].as_str().map(str::to_owned)) {
                let _ = sender.send(url);
            }
        }
    });
    let url = (command != "worker").then(|| receiver.recv_timeout(PATIENCE).expect("the server prints where it listens"));
    (child, url)
}

/// The Docker command line's output.
pub fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().expect("the docker command");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A user of a server. Each request goes to the next of its APIs.
#[derive(Clone)]
pub struct User {
    pub http: reqwest::Client,
    urls: Arc<[String]>,
    turn: Arc<AtomicUsize>,
    pub name: String,
}

impl User {
    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let url = &self.urls[self.turn.fetch_add(1, Ordering::Relaxed) % self.urls.len()];
        self.http.request(method, format!("{url}{path}")).header("X-User-Id", &self.name)
    }

    pub fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.request(reqwest::Method::GET, path)
    }

    pub fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.request(reqwest::Method::POST, path)
    }

    /// Submits and expects 202.
    pub async fn submit(&self, body: Value) -> Value {
        let answer = self.post("/api/conversation").json(&body).send().await.unwrap();
        let status = answer.status();
        let run: Value = answer.json().await.unwrap();
        assert_eq!(status, 202, "{run}");
        run
    }

    /// Submits `message` to `agent` and returns the run's id.
    pub async fn say(&self, agent: &str, message: &str) -> String {
        id(&self.submit(json!({ "agent": agent, "message": message })).await)
    }

    /// The same in a conversation.
    pub async fn say_in(&self, conversation: &str, agent: &str, message: &str) -> String {
        id(&self.submit(json!({ "agent": agent, "message": message, "conversationId": conversation })).await)
    }

    pub async fn run(&self, id: &str) -> Value {
        let answer = self.get(&format!("/api/runs/{id}")).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{id}");
        answer.json().await.unwrap()
    }

    /// Waits for the end of a run and returns it.
    pub async fn finished(&self, id: &str) -> Value {
        let begun = Instant::now();
        loop {
            let answer = self.get(&format!("/api/runs/{id}?wait=30")).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let run: Value = answer.json().await.unwrap();
            if is_terminal(&run) {
                return run;
            }
            assert!(begun.elapsed() < PATIENCE * 3, "the run does not end: {run}");
        }
    }

    /// Waits until a run has `status`.
    pub async fn reaches(&self, id: &str, status: &str) -> Value {
        eventually(&format!("{id} to be {status}"), || async {
            let run = self.run(id).await;
            assert!(run["status"] == status || !is_terminal(&run), "it ended before it was {status}: {run}");
            (run["status"] == status).then_some(run)
        })
        .await
    }

    /// Waits until a run has `status` or has ended.
    pub async fn reaches_or_ends(&self, id: &str, status: &str) {
        eventually(&format!("{id} to be {status} or ended"), || async {
            let run = self.run(id).await;
            (run["status"] == status || is_terminal(&run)).then_some(())
        })
        .await;
    }

    /// Waits until the reply of a run contains `text`.
    pub async fn says(&self, id: &str, text: &str) -> Value {
        eventually(&format!("{id} to say {text}"), || async {
            let run = self.run(id).await;
            run["text"].as_str().unwrap().contains(text).then_some(run)
        })
        .await
    }

    pub async fn cancel(&self, id: &str) -> Value {
        let answer = self.post(&format!("/api/runs/{id}/cancel")).send().await.unwrap();
        assert_eq!(answer.status(), 202);
        answer.json().await.unwrap()
    }

    /// The events of a run after `after`, to the end of the stream.
    pub async fn events(&self, id: &str, after: Option<u64>) -> Vec<Event> {
        let mut request = self.get(&format!("/api/runs/{id}/events"));
        if let Some(after) = after {
            request = request.header("Last-Event-ID", after.to_string());
        }
        let answer = request.send().await.unwrap();
        if answer.status() == 204 {
            return Vec::new();
        }
        assert_eq!(answer.status(), 200);
        parse_events(&answer.text().await.unwrap())
    }
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: u64,
    pub kind: String,
    pub data: Value,
}

pub fn parse_events(stream: &str) -> Vec<Event> {
    let mut events = Vec::new();
    for block in stream.split("\n\n") {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim_start);
        if let (Some(id), Some(kind), Some(data)) = (field("id:"), field("event:"), field("data:")) {
            events.push(Event { id: id.parse().unwrap(), kind: kind.to_owned(), data: serde_json::from_str(data).unwrap() });
        }
    }
    events
}

pub fn id(run: &Value) -> String {
    run["id"].as_str().unwrap().to_owned()
}

pub fn is_terminal(run: &Value) -> bool {
    ["completed", "failed", "timed_out", "cancelled", "expired"].contains(&run["status"].as_str().unwrap())
}
