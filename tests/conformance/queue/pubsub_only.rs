//! What only the queue on Pub/Sub can go through: another process, a lost connection, an emulator that forgets.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quayside_shared::config::Google;
use quayside_shared::error::{ErrorKind, chain};
use quayside_shared::ids::RunId;
use quayside_shared::queue::pubsub::PubSubQueue;
use quayside_shared::queue::{Message, Queue};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{Fixture, PubSub, assert_silent, google, messages, receive};
use crate::support::emulators::{self, Emulator, Kind};
use crate::support::eventually;

/// `not a run` in base64.
const NOT_A_RUN: &str = "bm90IGEgcnVu";

async fn connect(google: &Google) -> PubSubQueue {
    PubSubQueue::connect(google).await.unwrap()
}

/// A call to the emulator behind the queue's back: `path` within the project.
async fn call(google: &Google, path: &str, body: Value) -> Value {
    let host = google.pubsub_emulator.as_ref().unwrap();
    let url = format!("http://{host}/v1/projects/{}/{path}", google.project_id);
    let answer = reqwest::Client::new().post(url).json(&body).send().await.unwrap();
    assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
    answer.json().await.unwrap()
}

fn ids(sent: &[Message]) -> BTreeSet<RunId> {
    sent.iter().map(|message| message.run_id.clone()).collect()
}

/// Takes and acknowledges until all that is `wanted` was there; gives back what else came.
async fn take_until(queue: &dyn Queue, wanted: &[Message]) -> Vec<RunId> {
    let (mut missing, mut others) = (ids(wanted), Vec::new());
    while !missing.is_empty() {
        let delivery = receive(queue).await;
        let run_id = delivery.message().unwrap().run_id.clone();
        if !missing.remove(&run_id) {
            others.push(run_id);
        }
        delivery.ack().await;
    }
    others
}

async fn assert_all_arrive(queue: &dyn Queue, wanted: &[Message]) {
    assert_eq!(take_until(queue, wanted).await, [], "nothing else, and nothing twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trace_context_survives_and_nothing_else_is_added() {
    let google = google(emulators::pubsub().await.host());
    let queue = connect(&google).await;
    let mut message = Message::new(RunId::random());
    message.trace.insert("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    message.trace.insert("tracestate".into(), "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE".into());
    queue.publish(std::slice::from_ref(&message)).await.unwrap();
    let delivery = receive(&queue).await;
    assert_eq!(delivery.message().unwrap(), &message);
    delivery.ack().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_names_no_run_is_delivered_as_that() {
    let google = google(emulators::pubsub().await.host());
    let queue = connect(&google).await;
    call(&google, "topics/runs:publish", json!({"messages": [{"data": NOT_A_RUN, "attributes": {"from": "elsewhere"}}]})).await;
    let delivery = receive(&queue).await;
    let undecodable = delivery.message().unwrap_err().clone();
    assert!(undecodable.reason.contains("not a run id") && !undecodable.data.is_empty(), "{undecodable:?}");
    drop(delivery);
    let again = receive(&queue).await;
    assert_eq!(again.message().unwrap_err(), &undecodable, "the same message has the same id");
    again.ack().await;
    let sent = messages(3);
    queue.publish(&sent).await.unwrap();
    assert_all_arrive(&queue, &sent).await;
    assert_silent(&queue, PubSub::LEASE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_publishes_takes_no_messages() {
    let google = google(emulators::pubsub().await.host());
    let (api, worker) = (connect(&google).await, connect(&google).await);
    api.ping().await.unwrap();
    for _ in 0..10 {
        let sent = messages(5);
        api.publish(&sent).await.unwrap();
        // Sooner than a message comes back that the other took and nobody asked for.
        let arrived = tokio::time::timeout(Duration::from_secs(4), assert_all_arrive(&worker, &sent)).await;
        assert!(arrived.is_ok(), "a message went elsewhere");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_share_one_subscription_without_loss() {
    let google = google(emulators::pubsub().await.host());
    let workers = [Arc::new(connect(&google).await), Arc::new(connect(&google).await)];
    let (seen, mut done) = watch::channel(BTreeSet::new());
    let takers: Vec<_> = workers
        .iter()
        .flat_map(|worker| std::iter::repeat_n(worker, 4))
        .map(|worker| {
            let (worker, seen) = (Arc::clone(worker), seen.clone());
            tokio::spawn(async move {
                loop {
                    let delivery = worker.receive().await.unwrap();
                    seen.send_modify(|seen: &mut BTreeSet<RunId>| seen.extend([delivery.message().unwrap().run_id.clone()]));
                    delivery.ack().await;
                }
            })
        })
        .collect();
    let sent = messages(500);
    workers[0].publish(&sent[..250]).await.unwrap();
    workers[1].publish(&sent[250..]).await.unwrap();
    let all = tokio::time::timeout(super::SOON, done.wait_for(|seen| seen.len() == sent.len())).await;
    assert!(all.is_ok(), "{} of {} arrived", seen.borrow().len(), sent.len());
    assert_eq!(*seen.borrow(), ids(&sent));
    for taker in takers {
        taker.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_gives_back_what_waits_and_keeps_what_it_holds() {
    let google = google(emulators::pubsub().await.host());
    let (stopping, other) = (connect(&google).await, connect(&google).await);
    let mut sent = messages(6);
    stopping.publish(&sent).await.unwrap();
    let held = receive(&stopping).await;
    sent.retain(|message| message != held.message().unwrap());
    let asked = Instant::now();
    stopping.stop_receiving().await;
    assert_silent(&stopping, Duration::from_millis(10)).await;
    assert_all_arrive(&other, &sent).await;
    assert!(asked.elapsed() < Duration::from_secs(2), "it took {:?}", asked.elapsed());
    // Longer than a lease lasts when nobody prolongs it.
    assert_silent(&other, PubSub::LEASE).await;
    held.ack().await;
    stopping.stop_receiving().await;
    drop(stopping);
    assert_silent(&other, PubSub::LEASE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_gives_it_to_others() {
    let google = google(emulators::pubsub().await.host());
    let (stuck, other) = (connect(&google).await, connect(&google).await);
    let mut sent = messages(6);
    stuck.publish(&sent).await.unwrap();
    let held = receive(&stuck).await;
    sent.retain(|message| message != held.message().unwrap());
    // It works on that one and asks for no other.
    assert_all_arrive(&other, &sent).await;
    held.ack().await;
    // When it asks again, it is served again.
    drop(other);
    let more = messages(3);
    stuck.publish(&more).await.unwrap();
    assert_all_arrive(&stuck, &more).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_queue_gives_back_what_it_had() {
    let google = google(emulators::pubsub().await.host());
    let (gone, other) = (connect(&google).await, connect(&google).await);
    let sent = messages(4);
    gone.publish(&sent).await.unwrap();
    let held = receive(&gone).await;
    drop((gone, held));
    assert_all_arrive(&other, &sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emulator_that_forgot_everything_is_set_up_again() {
    let mut emulator = Emulator::start_own(Kind::Pubsub, &[]).await;
    let google = google(emulator.host());
    let (api, worker) = (connect(&google).await, connect(&google).await);
    let before = messages(2);
    api.publish(&before).await.unwrap();
    let held = receive(&worker).await;
    emulator.restart().await;
    // The publisher repairs the topology; a message that is published before the worker is back waits for it.
    let after = messages(3);
    api.publish(&after).await.unwrap();
    // The one that waited here when the emulator went may be given out first.
    let others = take_until(&worker, &after).await;
    assert!(others.len() < before.len(), "{others:?}");
    held.ack().await;
    assert_silent(&worker, PubSub::QUIET).await;
    // And with nobody that publishes, the worker itself does, and so does a health check.
    emulator.restart().await;
    eventually("the worker's subscription", || async {
        let url = format!("http://{}/v1/projects/{}/subscriptions/runs-worker", emulator.host(), google.project_id);
        reqwest::get(url).await.ok()?.status().is_success().then_some(())
    })
    .await;
    emulator.restart().await;
    eventually("a ping", || async { api.ping().await.ok() }).await;
    let last = messages(2);
    api.publish(&last).await.unwrap();
    assert_all_arrive(&worker, &last).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_down_is_said_within_bounds_and_used_when_it_is_back() {
    let mut emulator = Emulator::start_own(Kind::Pubsub, &[]).await;
    let google = google(emulator.host());
    let queue = connect(&google).await;
    queue.ping().await.unwrap();
    emulator.stop();
    let begun = Instant::now();
    let error = queue.publish(&messages(2)).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", chain(&error));
    assert!(chain(&error).contains(emulator.host()), "{}", chain(&error));
    let begun = Instant::now();
    assert_eq!(queue.ping().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    let begun = Instant::now();
    let error = PubSubQueue::connect(&google).await.err().expect("nobody is there");
    assert!(begun.elapsed() < Duration::from_secs(25), "it took {:?}", begun.elapsed());
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", chain(&error));
    assert!(chain(&error).contains("PUBSUB_EMULATOR_HOST"), "{}", chain(&error));
    emulator.restart().await;
    let sent = messages(3);
    queue.publish(&sent).await.unwrap();
    queue.ping().await.unwrap();
    assert_all_arrive(&queue, &sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_of_another_topic_is_refused_in_words() {
    let google = google(emulators::pubsub().await.host());
    drop(connect(&google).await);
    let error = PubSubQueue::connect(&Google { topic: "other-runs".to_owned(), ..google }).await.err().expect("it belongs to `runs`");
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(chain(&error).contains("runs-worker belongs to"), "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_loses_no_message() {
    let direct = google(emulators::pubsub().await.host());
    let line = Line::to(direct.pubsub_emulator.clone().unwrap()).await;
    let far = Google { pubsub_emulator: Some(line.host.clone()), ..direct.clone() };
    let (near, far) = (connect(&direct).await, connect(&far).await);
    near.publish(&messages(1)).await.unwrap();
    let held = receive(&far).await;
    // An acknowledgement that was on its way when the line was cut is lost; then the message comes again.
    let mut known = BTreeSet::new();
    for _ in 0..3 {
        line.cut();
        line.mend();
        let sent = messages(5);
        near.publish(&sent).await.unwrap();
        assert!(take_until(&far, &sent).await.iter().all(|again| known.contains(again)));
        known.extend(ids(&sent));
    }
    // Dead for a while, but shorter than what is held stays leased.
    line.cut();
    let sent = messages(5);
    near.publish(&sent).await.unwrap();
    let dead = tokio::time::timeout(Duration::from_secs(6), take_until(&far, &sent)).await;
    assert!(dead.is_err(), "the line is cut");
    line.mend();
    assert!(take_until(&far, &sent).await.iter().all(|again| known.contains(again)));
    known.extend(ids(&sent));
    let sent = messages(1);
    far.publish(&sent).await.unwrap();
    assert!(take_until(&far, &sent).await.iter().all(|again| known.contains(again)));
    let run_id = held.message().unwrap().run_id.clone();
    held.ack().await;
    far.stop_receiving().await;
    // What was held all the time was nobody else's, and its acknowledgement found its way.
    let until = tokio::time::Instant::now() + PubSub::LEASE;
    while let Ok(delivery) = tokio::time::timeout_at(until, near.receive()).await {
        let delivery = delivery.unwrap();
        assert_ne!(delivery.message().unwrap().run_id, run_id);
        assert!(known.contains(&delivery.message().unwrap().run_id), "{:?}", delivery.message().unwrap());
        delivery.ack().await;
    }
}

/// A network line that a test cuts: every connection through it dies, and no new one is let through.
struct Line {
    host: String,
    open: watch::Sender<bool>,
}

impl Line {
    async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let open = watch::Sender::new(true);
        let state = open.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (target, mut state) = (target.clone(), state.subscribe());
                tokio::spawn(async move {
                    if !*state.borrow_and_update() {
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = state.changed() => {}
                    }
                });
            }
        });
        Self { host, open }
    }

    fn cut(&self) {
        self.open.send_replace(false);
    }

    fn mend(&self) {
        self.open.send_replace(true);
    }
}
