//! A user who speaks to APIs that may be dead, frozen or cut off, and writes down what comes of it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use quayside_shared::run::Status;
use serde_json::{Value, json};

use super::now;
use crate::checker::{Cancel, History, Observation, Outcome, Seen, Strategy, Submission};
use crate::support::server::parse_events;

/// A request that takes longer is given up: whether it was heard is unknown then.
const ANSWER: Duration = Duration::from_secs(6);
/// The pause before a request is repeated.
const AGAIN: Duration = Duration::from_millis(150);

/// What all clients of a round share.
pub struct Clients {
    http: reqwest::Client,
    apis: Vec<SocketAddr>,
    turn: AtomicUsize,
    streams: AtomicU64,
    history: Mutex<History>,
    /// Nobody asks longer than that.
    until: Instant,
}

/// What a message asks for, and the reply that it must get.
#[derive(Debug, Clone)]
pub struct Request {
    pub user: String,
    pub conversation: String,
    pub key: String,
    pub agent: &'static str,
    pub message: String,
    pub reply: String,
}

impl Clients {
    pub fn new(apis: Vec<SocketAddr>, until: Instant) -> Arc<Self> {
        let http = reqwest::Client::builder().timeout(ANSWER).build().unwrap();
        Arc::new(Self { http, apis, turn: AtomicUsize::new(0), streams: AtomicU64::new(0), history: Mutex::default(), until })
    }

    /// Everything so far.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap()
    }

    fn request(&self, user: &str, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let api = self.apis[self.turn.fetch_add(1, Ordering::Relaxed) % self.apis.len()];
        self.http.request(method, format!("http://{api}{path}")).header("X-User-Id", user)
    }

    fn patient(&self, what: &str) {
        assert!(Instant::now() < self.until, "{what}: no answer until the end of the round");
    }

    /// Submits under the request's key until somebody says yes; returns the run's id.
    pub async fn submit(&self, request: &Request) -> String {
        loop {
            if let Outcome::Accepted(id) = self.submit_once(request).await {
                return id;
            }
            self.patient("submitting");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Submits once, whatever comes of it.
    pub async fn submit_once(&self, request: &Request) -> Outcome {
        let asked = now();
        let body = json!({"agent": request.agent, "message": request.message, "conversationId": request.conversation});
        let sent = self.request(&request.user, reqwest::Method::POST, "/api/conversation").header("Idempotency-Key", &request.key).json(&body);
        let outcome = match answer(sent).await {
            Some((200 | 202, run)) => Outcome::Accepted(run["id"].as_str().expect("an id").to_owned()),
            // A quota, a full disk, a drain: told in words and with a time to come back. Or the first request with this
            // key is still under way.
            Some((429 | 503 | 409, _)) => Outcome::Unknown,
            Some((status, problem)) => panic!("a submission was answered {status}: {problem}"),
            None => Outcome::Unknown,
        };
        self.history().submissions.push(Submission {
            user: request.user.clone(),
            conversation: request.conversation.clone(),
            key: Some(request.key.clone()),
            message: request.message.clone(),
            reply: request.reply.clone(),
            strategy: Strategy::Enqueue,
            asked,
            answered: now(),
            outcome: outcome.clone(),
        });
        outcome
    }

    /// Asks for a cancellation until somebody answers.
    pub async fn cancel(&self, user: &str, run: &str) {
        loop {
            let answered = answer(self.request(user, reqwest::Method::POST, &format!("/api/runs/{run}/cancel"))).await;
            let status = match &answered {
                Some((202, run)) => Some(status_of(run)),
                Some((429 | 503, _)) | None => None,
                Some((status, problem)) => panic!("a cancellation was answered {status}: {problem}"),
            };
            self.history().cancels.push(Cancel { run: run.to_owned(), answer: status });
            if status.is_some() {
                return;
            }
            self.patient("cancelling");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Reads a run until it has ended, every `pause`, or with a wait on the server's side.
    pub async fn poll(&self, user: &str, run: &str, pause: Duration, wait: bool) {
        let path = if wait { format!("/api/runs/{run}?wait=4") } else { format!("/api/runs/{run}") };
        loop {
            if let Some(read) = self.read(user, &path).await
                && status_of(&read).is_terminal()
            {
                return;
            }
            self.patient("reading a run");
            tokio::time::sleep(pause).await;
        }
    }

    /// Reads what is at `path`, a run; nothing when there is no answer.
    pub async fn read(&self, user: &str, path: &str) -> Option<Value> {
        let asked = now();
        let run = match answer(self.request(user, reqwest::Method::GET, path)).await {
            Some((200 | 202, run)) => run,
            Some((429 | 503, _)) | None => return None,
            Some((status, problem)) => panic!("{path} was answered {status}: {problem}"),
        };
        let how = Seen::Asked(asked);
        self.observe(user, run["id"].as_str().unwrap(), status_of(&run), &run, run["text"].as_str(), how);
        Some(run)
    }

    fn observe(&self, user: &str, run: &str, status: Status, event: &Value, text: Option<&str>, how: Seen) {
        let sequence_number = event["sequenceNumber"].as_u64().expect("a sequence number");
        let text = text.map(str::to_owned);
        let (user, run) = (user.to_owned(), run.to_owned());
        self.history().observations.push(Observation { user, run, status, sequence_number, text, how, at: now() });
    }

    /// Follows a run's stream to its end, from where it broke each time.
    pub async fn follow(&self, user: &str, run: &str) {
        let stream = self.streams.fetch_add(1, Ordering::Relaxed);
        let mut last: Option<u64> = None;
        loop {
            let mut request = self.request(user, reqwest::Method::GET, &format!("/api/runs/{run}/events"));
            if let Some(last) = last {
                request = request.header("Last-Event-ID", last.to_string());
            }
            if let Ok(mut answer) = request.send().await {
                match answer.status().as_u16() {
                    204 => return,
                    200 => {}
                    429 | 503 => {}
                    status => panic!("the events of {run} were answered {status}"),
                }
                let mut text = String::new();
                while let Ok(Some(chunk)) = answer.chunk().await {
                    text.push_str(&String::from_utf8_lossy(&chunk));
                    while let Some(end) = text.find("\n\n") {
                        let event: String = text.drain(..end + 2).collect();
                        for event in parse_events(&event) {
                            last = Some(event.id);
                            if event.kind != "delta" {
                                let seen = event.data["text"].as_str();
                                self.observe(user, run, status_of(&event.data), &event.data, seen, Seen::Streamed(stream));
                            }
                            if event.kind == "result" {
                                return;
                            }
                        }
                    }
                }
            }
            self.patient("following a run");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Every run of a conversation, as the API lists them.
    pub async fn list(&self, user: &str, conversation: &str) -> Vec<Value> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let path = format!("/api/conversations/{conversation}/runs?limit=50{after}");
            let Some((200, page)) = answer(self.request(user, reqwest::Method::GET, &path)).await else {
                self.patient("listing a conversation");
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            all.extend(page["data"].as_array().expect("runs").iter().cloned());
            match page["nextAfter"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return all,
            }
        }
    }
}

/// The status and the body; nothing without a whole answer.
async fn answer(request: reqwest::RequestBuilder) -> Option<(u16, Value)> {
    let answer = request.send().await.ok()?;
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.ok()?;
    assert!(status != 503 || body["code"].is_string(), "503 says why: {body}");
    Some((status, body))
}

pub fn status_of(run: &Value) -> Status {
    serde_json::from_value(run["status"].clone()).unwrap_or_else(|error| panic!("{error}: {run}"))
}
