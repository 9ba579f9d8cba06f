//! How processes end: readiness first, running work next, then the process; and a whole installation replaced under load.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::server::{Backend, Options, Server, id, is_terminal};
use crate::support::{PATIENCE, eventually};

/// Where the process that runs containers serves `/readyz`.
async fn readiness(on: Backend, server: &Server) -> String {
    let address = if on == Backend::Embedded { server.url.clone() } else { server.probes().await };
    format!("{address}/readyz")
}

async fn readiness_is_red_while_attempts_still_run(on: Backend) {
    let options = Options { slots: 1, worker: "probes = \"127.0.0.1:0\"\n".to_owned(), ..Options::default() };
    let mut server = Server::start_with(on, options).await;
    let user = server.user("u");
    let running = user.say("sh", "echo here; sleep 4; echo there").await;
    user.says(&running, "here").await;
    let waiting = user.say("sh", "echo later").await;
    let (place, ready) = (server.worker_places().start, readiness(on, &server).await);
    eventually("a green readiness", || async { (reqwest::get(&ready).await.ok()?.status() == 200).then_some(()) }).await;
    server.signal(place, "TERM");
    let red = eventually("a red readiness", || async {
        let answer = reqwest::get(&ready).await.expect("it answers during the drain");
        (answer.status() == 503).then_some(answer)
    })
    .await;
    let red: Value = red.json().await.unwrap();
    let failing: Vec<_> = red["checks"].as_array().unwrap().iter().filter(|check| check["ok"] == false).map(|check| check["name"].clone()).collect();
    assert_eq!(failing, ["drain"], "{red}");
    // The API of the same process can still be read, and takes nothing new.
    assert_eq!(user.run(&running).await["status"], "in_progress", "red before the attempt has ended");
    if on == Backend::Embedded {
        let refused = user.post("/api/conversation").json(&json!({"agent": "cat", "message": "x"})).send().await.unwrap();
        assert_eq!(refused.status(), 503);
        assert!(refused.headers().contains_key("Retry-After"));
    }
    assert_eq!(server.ended(place).await.0, 0, "drained");
    server.replace(place).await;
    let user = server.user("u");
    for (run, text) in [(&running, "here\nthere\n"), (&waiting, "later\n")] {
        let ended = user.finished(run).await;
        assert_eq!((&ended["status"], &ended["text"]), (&json!("completed"), &json!(text)), "{ended}");
        // What ran could finish, and what waited was not begun by the process that was going down.
        assert_eq!(ended["attempts"].as_array().unwrap().len(), 1, "{ended}");
    }
}

async fn a_second_signal_stops_at_once(on: Backend) {
    let mut server = Server::start_with(on, Options { slots: 1, ..Options::default() }).await;
    let user = server.user("u");
    let run = user.say("sh", "echo here; sleep 2; echo there").await;
    user.says(&run, "here").await;
    let place = server.worker_places().start;
    // Ctrl-C, and then what a supervisor sends.
    server.signal(place, "INT");
    eventually("the drain", || async { (server.logged("draining: no new attempts") == 1).then_some(()) }).await;
    server.signal(place, "TERM");
    let (code, took) = server.ended(place).await;
    assert_eq!(code, 1, "not drained");
    assert!(took < Duration::from_secs(1), "at once: {took:?}");
    server.replace(place).await;
    let ended = server.user("u").finished(&run).await;
    assert_eq!((&ended["status"], &ended["text"]), (&json!("completed"), &json!("here\nthere\n")), "its next life redoes it: {ended}");
}

const USERS: usize = 4;
const ROUNDS: usize = 3;
/// Of one conversation: a bound, reached only when the replacements take very long.
const RUNS_MAX: usize = 15;
const GRACE: Duration = Duration::from_secs(8);

/// Someone in a conversation: says something, waits for the answer, says the next thing, as long as the installation is
/// being replaced. A refused connection and a 503 are tried again elsewhere, with the same idempotency key.
struct Talker {
    http: reqwest::Client,
    addresses: Arc<RwLock<Vec<String>>>,
    turn: AtomicUsize,
    /// Answers that all of them had.
    answered: Arc<AtomicUsize>,
    user: String,
    conversation: String,
}

impl Talker {
    async fn request(&self, make: impl Fn(&reqwest::Client, &str) -> reqwest::RequestBuilder) -> Value {
        eventually("an answer", || async {
            let address = {
                let addresses = self.addresses.read().unwrap();
                addresses[self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len()].clone()
            };
            let request = make(&self.http, &address).header("X-User-Id", &self.user).timeout(PATIENCE);
            let answer = request.send().await.ok()?;
            let status = answer.status().as_u16();
            assert!(matches!(status, 200 | 202 | 503), "{status}: {:?}", answer.text().await);
            if status == 503 { None } else { answer.json().await.ok() }
        })
        .await
    }

    /// What was said and the ids that were accepted.
    async fn talk(self, stop: Arc<AtomicBool>) -> (Self, Vec<(String, String)>) {
        let mut said = Vec::new();
        while !stop.load(Ordering::SeqCst) && said.len() < RUNS_MAX {
            // Every third takes longer than a drain lets it.
            let seconds = if said.len() % 3 == 0 { "12" } else { "0.3" };
            let number = said.len().to_string();
            let body = json!({"agent": "sh", "message": format!("sleep {seconds}; echo {number}"), "conversationId": self.conversation});
            let key = format!("{}-{number}", self.conversation);
            let accepted =
                self.request(|http, address| http.post(format!("{address}/api/conversation")).header("Idempotency-Key", &key).json(&body)).await;
            let run = id(&accepted);
            while !is_terminal(&self.request(|http, address| http.get(format!("{address}/api/runs/{run}?wait=5"))).await) {}
            said.push((number, run));
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
        (self, said)
    }
}

async fn a_rolling_restart_under_load_loses_and_burns_nothing(on: Backend) {
    let mut server = Server::start_with(on, Options { drain: "8s", ..Options::default() }).await;
    let addresses = Arc::new(RwLock::new(server.addresses()));
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let talkers = (0..USERS * 2).map(|number| Talker {
        http: reqwest::Client::new(),
        addresses: Arc::clone(&addresses),
        turn: AtomicUsize::new(number),
        answered: Arc::clone(&answered),
        user: format!("user-{}", number % USERS),
        conversation: format!("talk-{number}"),
    });
    let talks: Vec<_> = talkers.map(|talker| tokio::spawn(talker.talk(Arc::clone(&stop)))).collect();

    let mut longest = Duration::ZERO;
    for _ in 0..ROUNDS {
        // Each round meets people in another place of what they say.
        let before = answered.load(Ordering::SeqCst);
        eventually("some answers", || async { (answered.load(Ordering::SeqCst) >= before + USERS).then_some(()) }).await;
        for place in server.places() {
            server.signal(place, "TERM");
            let (code, took) = server.ended(place).await;
            assert_eq!(code, 0, "drained");
            assert!(took <= GRACE, "the drain took {took:?}");
            longest = longest.max(took);
            server.replace(place).await;
            *addresses.write().unwrap() = server.addresses();
        }
    }
    stop.store(true, Ordering::SeqCst);

    let (mut runs, mut handed_back) = (0, 0);
    for talk in talks {
        let (talker, said) = talk.await.unwrap();
        assert!(!said.is_empty());
        for (text, run) in &said {
            let ended = talker.request(|http, address| http.get(format!("{address}/api/runs/{run}"))).await;
            assert_eq!((&ended["status"], ended["text"].as_str().map(str::trim_end)), (&json!("completed"), Some(text.as_str())), "{ended}");
            let (last, given_back) = ended["attempts"].as_array().unwrap().split_last().unwrap();
            assert_eq!((&last["outcome"], &last["counted"]), (&json!("finished"), &json!(true)), "{ended}");
            for attempt in given_back {
                assert_eq!((&attempt["outcome"], &attempt["counted"]), (&json!("drained"), &json!(false)), "{ended}");
            }
            handed_back += given_back.len();
        }
        runs += said.len();
        // Accepted once, however often it was sent.
        let path = format!("/api/conversations/{}/runs", talker.conversation);
        let listed = talker.request(|http, address| http.get(format!("{address}{path}"))).await;
        let listed: Vec<_> = listed["data"].as_array().unwrap().iter().map(id).collect();
        assert_eq!(listed, said.into_iter().map(|(_, run)| run).collect::<Vec<_>>());
    }
    println!("{runs} runs over {ROUNDS} rounds, {handed_back} attempts handed back, the longest drain {longest:.1?}");
    assert!(handed_back > 0, "no drain met a running attempt: the test shows nothing");
    eventually("an empty host", || async { server.containers().is_empty().then_some(()) }).await;
}

super::on_both! {
    readiness_is_red_while_attempts_still_run,
    a_second_signal_stops_at_once,
    a_rolling_restart_under_load_loses_and_burns_nothing,
}
