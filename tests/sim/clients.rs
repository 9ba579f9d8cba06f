//! Clients: they submit, repeat what they heard no answer to, cancel, and watch.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use futures::StreamExt;
use quayside_shared::run::Status;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::engine::reply_to;
use super::process::Gateway;
use super::world::World;
use crate::checker::{Cancel, FinalRun, Observation, Outcome, Seen, Strategy, Submission};

pub const USERS: [&str; 2] = ["ann", "bob"];
const CONVERSATIONS: [&str; 2] = ["home", "work"];
/// How often what was not answered is repeated.
const TRIES: usize = 12;

/// What a client hears.
enum Heard {
    Answer {
        status: u16,
        body: Value,
    },
    /// It cannot connect: nothing was done.
    Nobody,
    /// It was connected and hears nothing.
    Nothing,
}

/// One client in the name of one user.
#[derive(Clone)]
struct Client {
    world: Arc<World>,
    user: &'static str,
}

/// Everything that the clients do; returns when they have nothing more to do.
pub async fn all(world: Arc<World>) {
    let mut clients = JoinSet::new();
    for user in USERS {
        let client = Client { world: Arc::clone(&world), user };
        for number in 0..=world.roll(world.plan.runs) {
            let client = client.clone();
            clients.spawn(async move { client.one_run(number).await });
        }
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
}

/// All runs that there are, as the API tells them after the healing.
pub async fn finals(world: &Arc<World>) -> Vec<FinalRun> {
    let mut runs = Vec::new();
    for user in USERS {
        for conversation in CONVERSATIONS {
            let client = Client { world: Arc::clone(world), user };
            let list = client.until_answered(&format!("/api/conversations/{conversation}/runs?limit=100")).await;
            for run in list["data"].as_array().into_iter().flatten() {
                let mut run = FinalRun::from_json(run).unwrap_or_else(|error| panic!("{error}: {run}"));
                // In the history's time.
                run.created = World::since_the_beginning(run.created);
                run.started = run.started.map(World::since_the_beginning);
                run.finished = run.finished.map(World::since_the_beginning);
                for attempt in &mut run.attempts {
                    attempt.started = World::since_the_beginning(attempt.started);
                    attempt.ended = attempt.ended.map(World::since_the_beginning);
                }
                runs.push(run);
            }
        }
    }
    runs
}

impl Client {
    async fn one_run(&self, number: u64) {
        let world = &self.world;
        tokio::time::sleep(world.some_millis(7_000)).await;
        let message = format!("{}.{number}", self.user);
        let conversation = world.pick(&CONVERSATIONS);
        let strategy = world.pick(&[Strategy::Enqueue, Strategy::Enqueue, Strategy::Enqueue, Strategy::Enqueue, Strategy::Interrupt]);
        let mut body = json!({
            "message": message,
            "conversationId": conversation,
            "agent": world.pick(&["quick", "quick", "slow", "slow", "fails", "hangs"]),
            "multitaskStrategy": if strategy == Strategy::Enqueue { "enqueue" } else { "interrupt" },
        });
        if world.roll(10) == 0 {
            body["queueTtlSeconds"] = json!(2);
        }
        let key = (world.roll(3) > 0).then(|| format!("key-{number}"));
        let mut id = None;
        for _ in 0..TRIES {
            let asked = world.tick();
            let heard = self.post("/api/conversation", &body, key.as_deref()).await;
            let outcome = match &heard {
                Heard::Nobody => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
                Heard::Answer { status: 200 | 202, body } => Outcome::Accepted(body["id"].as_str().unwrap().to_owned()),
                Heard::Answer { status: 429, .. } => Outcome::Refused,
                Heard::Answer { status: status @ 400..=499, body } => panic!("{status}: {body}"),
                Heard::Answer { .. } | Heard::Nothing => Outcome::Unknown,
            };
            let answered = world.tick();
            world.history().submissions.push(Submission {
                user: self.user.to_owned(),
                conversation: conversation.to_owned(),
                key: key.clone(),
                message: message.clone(),
                reply: reply_to(&message),
                strategy,
                asked,
                answered,
                outcome: outcome.clone(),
            });
            if let Heard::Answer { status: 200 | 202, body } = &heard {
                self.saw(body, asked);
            }
            match outcome {
                Outcome::Accepted(run) => {
                    id = Some(run);
                    // Some repeat themselves although they were heard.
                    if key.is_none() || world.roll(4) > 0 {
                        break;
                    }
                }
                // Without a key a repetition would be another run.
                Outcome::Unknown if key.is_none() => break,
                Outcome::Unknown => {}
                Outcome::Refused => break,
            }
            tokio::time::sleep(world.some_millis(1_500)).await;
        }
        if let Some(id) = id {
            self.follow(&id).await;
        }
    }

    /// Watches a run in some ways at once, and may cancel it.
    async fn follow(&self, id: &str) {
        let mut watching = JoinSet::new();
        let path = format!("/api/runs/{id}");
        let world = &self.world;
        for _ in 0..world.roll(3) {
            let (client, path) = (self.clone(), path.clone());
            watching.spawn(async move {
                for _ in 0..2 {
                    tokio::time::sleep(client.world.some_millis(6_000)).await;
                    client.look(&path).await;
                }
            });
        }
        if world.roll(2) == 0 {
            let (client, path) = (self.clone(), format!("{path}?wait=20"));
            watching.spawn(async move { client.look(&path).await });
        }
        if world.roll(2) == 0 {
            let (client, id, stream) = (self.clone(), id.to_owned(), world.tick());
            watching.spawn(async move { client.stream(&id, stream).await });
        }
        if world.roll(3) == 0 {
            let (client, id) = (self.clone(), id.to_owned());
            watching.spawn(async move { client.cancel(&id).await });
        }
        if world.roll(8) == 0 {
            let stranger = Client { user: if self.user == USERS[0] { USERS[1] } else { USERS[0] }, ..self.clone() };
            watching.spawn(async move { stranger.look(&path).await });
        }
        while let Some(ended) = watching.join_next().await {
            ended.unwrap();
        }
    }

    async fn look(&self, path: &str) {
        let asked = self.world.tick();
        if let Heard::Answer { status: 200, body } = self.get(path).await {
            self.saw(&body, asked);
        }
    }

    async fn cancel(&self, id: &str) {
        tokio::time::sleep(self.world.some_millis(8_000)).await;
        let asked = self.world.tick();
        let answer = match self.post(&format!("/api/runs/{id}/cancel"), &Value::Null, None).await {
            Heard::Answer { status: 202, body } => {
                self.saw(&body, asked);
                Some(serde_json::from_value(body["status"].clone()).unwrap())
            }
            Heard::Nobody => return,
            _ => None,
        };
        self.world.history().cancels.push(Cancel { run: id.to_owned(), answer });
        // What was cancelled is looked at closely: is it gone?
        let until: Duration = self.world.pick(&[Duration::from_millis(20), Duration::from_millis(300)]);
        tokio::time::sleep(until).await;
        self.look(&format!("/api/runs/{id}?wait=10")).await;
    }

    /// Notes what an answer says of a run.
    fn saw(&self, run: &Value, asked: u64) {
        self.observed(run, Seen::Asked(asked), run["text"].as_str().map(str::to_owned));
    }

    fn observed(&self, run: &Value, how: Seen, text: Option<String>) {
        let at = self.world.tick();
        let status: Status = serde_json::from_value(run["status"].clone()).unwrap();
        let (id, sequence_number) = (run["id"].as_str().unwrap().to_owned(), run["sequenceNumber"].as_u64().unwrap());
        self.world.note(|| format!("{} sees {} {} at {sequence_number} ({how:?})", self.user, self.world.name(&id), status.as_str()));
        let observation = Observation { user: self.user.to_owned(), run: id, status, sequence_number, text, how, at };
        self.world.history().observations.push(observation);
    }

    /// Follows the run's stream, and again from where it broke off.
    async fn stream(&self, id: &str, stream: u64) {
        let (mut after, mut text) = (0, String::new());
        for _ in 0..TRIES {
            let Some(Gateway { life, router }) = self.gateway() else {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            };
            let request = Request::get(format!("/api/runs/{id}/events?after={after}"))
                .header("host", "localhost")
                .header("x-user-id", self.user)
                .body(Body::empty())
                .unwrap();
            let reading = async {
                let Ok(response) = router.oneshot(request).await;
                if response.status() != 200 {
                    return response.status() == 204;
                }
                let mut body = response.into_body().into_data_stream();
                while let Some(Ok(chunk)) = body.next().await {
                    life.awake().await;
                    let chunk = String::from_utf8(chunk.to_vec()).unwrap();
                    for event in chunk.split("\n\n").filter(|event| event.starts_with("id: ")) {
                        if self.event(id, stream, event, &mut after, &mut text) {
                            return true;
                        }
                    }
                }
                false
            };
            let ended = tokio::select! {
                biased;
                () = life.death() => false,
                ended = tokio::time::timeout(Duration::from_secs(40), reading) => ended.unwrap_or(false),
            };
            if ended {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Whether it was the last one.
    fn event(&self, id: &str, stream: u64, event: &str, after: &mut u64, text: &mut String) -> bool {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let mut data: Value = serde_json::from_str(field("data: ")).unwrap();
        *after = field("id: ").parse().unwrap();
        match field("event: ") {
            "delta" => text.push_str(data["text"].as_str().unwrap()),
            "status" => {
                if data["status"] == "queued" {
                    // It starts over.
                    text.clear();
                }
                data["id"] = json!(id);
                self.observed(&data, Seen::Streamed(stream), Some(text.clone()));
            }
            _ => {
                self.observed(&data, Seen::Streamed(stream), Some(text.clone()));
                return true;
            }
        }
        false
    }

    fn gateway(&self) -> Option<Gateway> {
        let open: Vec<Gateway> = self.world.gateways.lock().unwrap().iter().flatten().filter(|gateway| !gateway.life.is_dead()).cloned().collect();
        let chosen = usize::try_from(self.world.roll(open.len() as u64)).unwrap();
        open.into_iter().nth(chosen)
    }

    async fn get(&self, path: &str) -> Heard {
        self.send(Request::get(path), Body::empty()).await
    }

    async fn post(&self, path: &str, body: &Value, key: Option<&str>) -> Heard {
        let mut request = Request::post(path).header("content-type", "application/json");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.send(request, if body.is_null() { Body::empty() } else { Body::from(body.to_string()) }).await
    }

    async fn send(&self, request: axum::http::request::Builder, body: Body) -> Heard {
        let Some(Gateway { life, router }) = self.gateway() else { return Heard::Nobody };
        let request = request.header("host", "localhost").header("x-user-id", self.user).body(body).unwrap();
        // Some hang up early.
        let patience = if self.world.strikes(60) { self.world.some_millis(400) } else { Duration::from_secs(30) };
        let serving = Arc::clone(&life);
        tokio::select! {
            biased;
            () = life.death() => Heard::Nothing,
            answer = tokio::time::timeout(patience, async move {
                serving.awake().await;
                let answer = answered(router, request).await;
                serving.awake().await;
                answer
            }) => answer.unwrap_or(Heard::Nothing),
        }
    }

    async fn until_answered(&self, path: &str) -> Value {
        for _ in 0..100 {
            match self.get(path).await {
                Heard::Answer { status: 200, body } => return body,
                Heard::Answer { status: 404, .. } => return Value::Null,
                _ => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
        panic!("no answer to {path} although everything is healed");
    }
}

async fn answered(router: Router, request: Request<Body>) -> Heard {
    let Ok(response) = router.oneshot(request).await;
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap_or_default();
    Heard::Answer { status, body: serde_json::from_slice(&body).unwrap_or_default() }
}
