//! A server to talk to, and hands that do what a worker would.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use quayside_api::{Check, Deps, KeySource};
use quayside_shared::clock::{Clock, ManualClock, SystemClock};
use quayside_shared::config::{Config, Secret};
use quayside_shared::ids::{RunId, WorkerId};
use quayside_shared::queue::Queue;
use quayside_shared::queue::sqlite::SqliteQueue;
use quayside_shared::run::{AttemptOutcome, Usage};
use quayside_shared::sqlite::Database;
use quayside_shared::state::Finished;
use quayside_shared::store::StoreOptions;
use quayside_shared::store::sqlite::SqliteStore;
use quayside_shared::store::{Claim, Lease, Store};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const SECRET: &str = "sk-very-secret";
pub(crate) const ADMIN_KEY: &str = "the-key-of-the-operators";

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) queue: Arc<dyn Queue>,
    pub(crate) clock: Arc<ManualClock>,
    /// What the handlers know of the drain.
    pub(crate) drain: CancellationToken,
    /// What the listener knows of it: apart, so that a test can look at one without the other.
    pub(crate) closing: CancellationToken,
    pub(crate) stop: CancellationToken,
    pub(crate) serving: Option<JoinHandle<std::io::Result<()>>>,
    pub(crate) client: reqwest::Client,
    folder: tempfile::TempDir,
}

/// What a test changes before the server starts.
pub(crate) struct Setup {
    pub(crate) config: Config,
    pub(crate) checks: Vec<Check>,
    pub(crate) admin_key: Option<Secret>,
    /// Where tokens' keys are, for the tests of them.
    pub(crate) keys: KeySource,
    pub(crate) loopback_hosts_only: bool,
}

pub(crate) async fn server() -> Server {
    server_with(|_| {}).await
}

pub(crate) async fn server_with(change: impl FnOnce(&mut Setup)) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("quayside.toml");
    let agents = format!(
        "[agents.echo]\nimage = \"echo\"\ncommand = [\"/bin/echo\", \"{SECRET}\"]\ndescription = \"says it again\"\ntimeout = \"30s\"\nnetwork = \"bridge\"\n\
         [agents.echo.env]\nKEY = \"{SECRET}\"\n"
    );
    std::fs::write(&file, agents).unwrap();
    let config = Config::load(Some(&file), []).unwrap();
    let mut setup = Setup {
        config,
        checks: Vec::new(),
        admin_key: Some(Secret::new(ADMIN_KEY.to_owned())),
        keys: KeySource::default(),
        loopback_hosts_only: true,
    };
    change(&mut setup);
    let Setup { config, checks, admin_key, keys, loopback_hosts_only } = setup;
    let database = Database::open(&folder.path().join("data")).unwrap();
    let clock = Arc::new(ManualClock::new(SystemClock.now()));
    let options = StoreOptions {
        queued_per_user: config.limits.queued_per_user,
        running_per_user: config.limits.running_per_user,
        queued: config.limits.queued,
        retention: config.limits.retention.get(),
        ..StoreOptions::default()
    };
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(database.clone(), clock.clone(), options).await.unwrap());
    let queue: Arc<dyn Queue> = Arc::new(SqliteQueue::open(database).await.unwrap());
    let (drain, closing, stop) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let deps = Deps {
        store: store.clone(),
        queue: queue.clone(),
        config: Arc::new(config),
        metrics: Some(Arc::new(|| "quayside_up 1\n".to_owned())),
        image_digests: Arc::new(RwLock::new(HashMap::from([("echo".parse().unwrap(), Some("sha256:abc".to_owned()))]))),
        admin_key,
        checks,
        loopback_hosts_only,
        drain: drain.clone(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(quayside_api::serve(listener, quayside_api::router_with_keys(deps, keys), closing.clone(), stop.clone()));
    let client = reqwest::Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none()).build().unwrap();
    Server { address, store, queue, clock, drain, closing, stop, serving: Some(serving), client, folder }
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks that this is a refusal in the one shape, and that it keeps our insides to itself.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str, field: Option<&str>) {
        let problem = self.json();
        assert_eq!((self.status, problem["code"].as_str()), (status, Some(code)), "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], "about:blank");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{}", self.text);
        assert_eq!(problem.get("field").and_then(Value::as_str), field, "{}", self.text);
        for inside in ["panicked", ".rs:", "sqlite", "SELECT", "quayside.db"] {
            assert!(!self.text.contains(inside), "{}", self.text);
        }
    }
}

impl Server {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn request(&self, method: &str, user: &str, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method.parse().unwrap(), self.url(path)).header("x-user-id", user)
    }

    pub(crate) async fn get(&self, user: &str, path: &str) -> Answer {
        answer(self.request("GET", user, path)).await
    }

    pub(crate) async fn post(&self, user: &str, path: &str) -> Answer {
        answer(self.request("POST", user, path)).await
    }

    pub(crate) async fn submit(&self, user: &str, body: &Value) -> Answer {
        answer(self.submission(user, body)).await
    }

    pub(crate) fn submission(&self, user: &str, body: &Value) -> reqwest::RequestBuilder {
        self.request("POST", user, "/api/conversation").header("content-type", "application/json").body(body.to_string())
    }

    /// A run of `user` that was accepted.
    pub(crate) async fn accepted(&self, user: &str) -> RunId {
        self.accepted_in(user, None).await
    }

    pub(crate) async fn accepted_in(&self, user: &str, conversation: Option<&str>) -> RunId {
        let answer = self.submit(user, &json!({"message": "hello", "conversationId": conversation})).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
        answer.json()["id"].as_str().unwrap().parse().unwrap()
    }

    /// The run that the next message names; the message is done with.
    pub(crate) async fn announced(&self) -> RunId {
        let delivery = tokio::time::timeout(PATIENCE, self.queue.receive()).await.expect("a message comes").unwrap();
        let id = delivery.message().unwrap().run_id.clone();
        delivery.ack().await;
        id
    }

    /// Takes the run as a worker would.
    pub(crate) async fn claim(&self, id: &RunId) -> Lease {
        match self.store.claim(id, &WorkerId::random(), Duration::from_secs(30)).await.unwrap() {
            Claim::Claimed(lease, _) => lease,
            other => panic!("not claimed: {other:?}"),
        }
    }

    pub(crate) async fn append(&self, lease: &Lease, text: &str) {
        let offset = self.store.run(&lease.run_id).await.unwrap().unwrap().text.len() as u64;
        self.store.append(lease, offset, text).await.unwrap().unwrap();
    }

    pub(crate) async fn finish(&self, lease: &Lease) {
        self.end(lease, AttemptOutcome::Finished).await;
    }

    pub(crate) async fn end(&self, lease: &Lease, outcome: AttemptOutcome) {
        let usage = Usage { wall_millis: Some(12), ..Usage::default() };
        let finished = Finished { outcome, error: None, exit_code: Some(0), truncated: false, usage, lives: false, sandbox: None };
        self.store.finish(lease, finished, None).await.unwrap().unwrap();
    }

    /// How many runs are stored.
    pub(crate) async fn stored(&self) -> u64 {
        let depth = self.store.depth().await.unwrap();
        depth.queued + depth.leased
    }

    /// Sends bytes as they are and reads until the server closes.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may answer and close before it has taken everything.
        let _ = stream.write_all(bytes).await;
        let mut read = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await.expect("the server closes");
        String::from_utf8_lossy(&read).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        assert!(self.folder.path().exists());
    }
}

pub(crate) async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, text: response.text().await.unwrap() }
}

/// Waits until `condition` holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}
