//! A machine that is taken away says so beforehand: the notice of Spot VMs, from a metadata server of the test.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use quayside_worker::preemption::Notice;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use crate::support::eventually;
use crate::support::server::{Backend, Options, Server};

/// What the key answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    False,
    True,
    Broken,
    Garbage,
}

/// A metadata server: waits for a change when it is asked to, and gives each answer an entity tag, as Google's does.
#[derive(Clone)]
struct Metadata {
    key: watch::Sender<Key>,
    asked: Arc<AtomicUsize>,
    /// Whether it heeds `wait_for_change`.
    waits: bool,
    url: String,
}

#[derive(Deserialize)]
struct Asked {
    wait_for_change: bool,
    timeout_sec: u64,
    last_etag: Option<String>,
}

impl Metadata {
    async fn start(waits: bool) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/computeMetadata/v1/instance/preempted", listener.local_addr().unwrap());
        let metadata = Self { key: watch::Sender::new(Key::False), asked: Arc::default(), waits, url };
        let router = Router::new().route("/computeMetadata/v1/instance/preempted", axum::routing::get(answer)).with_state(metadata.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        metadata
    }

    fn set(&self, key: Key) {
        self.key.send_replace(key);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn asked_again(&self) {
        let before = self.asked();
        eventually("another request", || async { (self.asked() > before).then_some(()) }).await;
    }

    fn options(&self) -> Options {
        // Half of the drain is for what may finish by itself.
        Options { drain: "6s", worker: format!("preemption_notice = {:?}\n", self.url), ..Options::default() }
    }
}

async fn answer(State(metadata): State<Metadata>, headers: HeaderMap, Query(asked): Query<Asked>) -> Response {
    metadata.asked.fetch_add(1, Ordering::SeqCst);
    // Google's refuses requests without it, so that no page in a browser can make them.
    if headers.get("Metadata-Flavor").is_none_or(|flavor| flavor != "Google") || asked.timeout_sec == 0 {
        return StatusCode::FORBIDDEN.into_response();
    }
    let mut key = metadata.key.subscribe();
    let etag = |key: Key| format!("{key:?}");
    if metadata.waits && asked.wait_for_change && asked.last_etag == Some(etag(*key.borrow())) {
        let _ = tokio::time::timeout(Duration::from_secs(asked.timeout_sec), key.changed()).await;
    }
    let key = *key.borrow();
    let tag = [("ETag", etag(key))];
    match key {
        Key::False => (tag, "FALSE").into_response(),
        Key::True => (tag, "TRUE").into_response(),
        Key::Broken => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Key::Garbage => (tag, "maybe, who knows".repeat(1000)).into_response(),
    }
}

/// The end of a preempted worker: what could finish did, the rest was handed back and is redone by another life.
async fn a_preempted_worker_hands_its_runs_back(on: Backend) {
    let metadata = Metadata::start(true).await;
    let mut server = Server::start_with(on, metadata.options()).await;
    let user = server.user("u");
    let short = user.say("sh", "echo short; sleep 1").await;
    let long = user.say("sh", "echo long; sleep 6; echo done").await;
    user.says(&short, "short").await;
    user.says(&long, "long").await;
    let given = Instant::now();
    metadata.set(Key::True);
    for place in server.worker_places() {
        let (code, _) = server.ended(place).await;
        assert_eq!(code, 0, "drained");
    }
    assert!(given.elapsed() < Duration::from_secs(8), "a Spot VM has 30 s, and this drain 6: {:?}", given.elapsed());
    assert!(server.containers().is_empty(), "nothing is left running");
    // The machine's replacement.
    metadata.set(Key::False);
    for place in server.worker_places() {
        server.replace(place).await;
    }
    let user = server.user("u");
    let run = user.finished(&long).await;
    assert_eq!((&run["status"], &run["text"]), (&json!("completed"), &json!("long\ndone\n")), "{run}");
    let attempts: Vec<_> =
        run["attempts"].as_array().unwrap().iter().map(|attempt| (attempt["outcome"].clone(), attempt["counted"].clone())).collect();
    assert_eq!(attempts, [(json!("preempted"), json!(false)), (json!("finished"), json!(true))]);
    let run = user.run(&short).await;
    assert_eq!((&run["status"], run["attempts"].as_array().unwrap().len()), (&json!("completed"), 1), "what could finish did: {run}");
}

/// The signal of the machine's shutdown follows the notice; it is the first, so it does not cut the drain short.
async fn a_signal_after_the_notice_does_not_cut_the_drain_short(on: Backend) {
    let metadata = Metadata::start(true).await;
    let mut server = Server::start_with(on, Options { slots: 1, ..metadata.options() }).await;
    let user = server.user("u");
    let run = user.say("sh", "echo long; sleep 600").await;
    user.says(&run, "long").await;
    metadata.set(Key::True);
    eventually("the drain", || async { (server.logged("draining: no new attempts") == 1).then_some(()) }).await;
    let place = server.worker_places().start;
    server.signal(place, "TERM");
    assert_eq!(server.ended(place).await.0, 0, "drained, not stopped");
    assert!(server.containers().is_empty());
    metadata.set(Key::False);
    server.replace(place).await;
    let user = server.user("u");
    let waiting = user.says(&run, "long").await;
    assert_eq!(waiting["attempts"][0]["outcome"], "preempted", "{waiting}");
    user.cancel(&run).await;
    user.finished(&run).await;
}

/// Whatever the metadata server does, the worker works and asks in measure; and the notice is not missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_notice_survives_every_answer() {
    let each = [true, false].map(|waits| {
        tokio::spawn(async move {
            let metadata = Metadata::start(waits).await;
            let notice = Notice::at(&metadata.url).unwrap();
            let given = tokio::spawn(async move { notice.given().await });
            metadata.asked_again().await;
            for fault in [Key::Broken, Key::Garbage] {
                metadata.set(fault);
                metadata.asked_again().await;
                metadata.asked_again().await;
            }
            metadata.set(Key::False);
            metadata.asked_again().await;
            // One that waits is asked once a minute, one that does not once a second: no loop is busy. Time itself is under test.
            let before = metadata.asked();
            tokio::time::sleep(Duration::from_secs(5)).await;
            let most = if waits { 3 } else { 7 };
            assert!(metadata.asked() - before <= most, "asked {} times in 5 s", metadata.asked() - before);
            assert!(!given.is_finished());
            metadata.set(Key::True);
            tokio::time::timeout(Duration::from_secs(10), given).await.expect("the notice was heard").unwrap();
        })
    });
    for one in each {
        one.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_without_a_metadata_server_works() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let worker = format!("preemption_notice = \"http://{free}/preempted\"\n");
    let mut server = Server::start_with(Backend::Embedded, Options { worker, ..Options::default() }).await;
    let user = server.user("u");
    assert_eq!(user.finished(&user.say("cat", "x").await).await["text"], "x");
    assert_eq!(server.terminate().await, 0);
    assert_eq!(server.logged("the preemption notice cannot be read"), 1, "said once");
}

super::on_both! {
    a_preempted_worker_hands_its_runs_back,
    a_signal_after_the_notice_does_not_cut_the_drain_short,
}
