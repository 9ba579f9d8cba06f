//! What every queue must do.

mod pubsub_only;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quayside_shared::config::Google;
use quayside_shared::ids::RunId;
use quayside_shared::queue::pubsub::PubSubQueue;
use quayside_shared::queue::sqlite::SqliteQueue;
use quayside_shared::queue::{Delivery, Message, Queue};
use quayside_shared::sqlite::Database;

use crate::support::{PATIENCE, emulators};

/// Long enough for any adapter to deliver what it has, on a busy machine too; reached only when a test fails.
const SOON: Duration = Duration::from_secs(20);

/// Opens an adapter, and opens it again as a restarted process would.
trait Fixture: Sized {
    /// How long the absence of a message is watched: several times what the adapter needs to deliver one that is there.
    const QUIET: Duration;
    /// The same for a message that comes back only when a lease runs out: longer than the adapter's leases last.
    const LEASE: Duration;
    async fn open() -> Self;
    fn queue(&self) -> Arc<dyn Queue>;
    async fn restart(self) -> Self;
}

struct Sqlite {
    folder: tempfile::TempDir,
    queue: Arc<SqliteQueue>,
}

impl Fixture for Sqlite {
    const QUIET: Duration = Duration::from_millis(300);
    // A lease is the delivery's handle; there is no clock that could run out.
    const LEASE: Duration = Self::QUIET;

    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let queue = Arc::new(SqliteQueue::open(Database::open(folder.path()).unwrap()).await.unwrap());
        Self { folder, queue }
    }
    fn queue(&self) -> Arc<dyn Queue> {
        self.queue.clone()
    }
    async fn restart(self) -> Self {
        let Self { folder, queue } = self;
        drop(queue);
        let database = crate::support::eventually("the closed database", || async { Database::open(folder.path()).ok() }).await;
        Self { queue: Arc::new(SqliteQueue::open(database).await.unwrap()), folder }
    }
}

struct PubSub {
    google: Google,
    queue: Arc<PubSubQueue>,
}

impl Fixture for PubSub {
    // The client sends what is handed back every 100 ms, the emulator delivers every 50 ms.
    const QUIET: Duration = Duration::from_secs(1);
    // Prolonged by 15 s at a time.
    const LEASE: Duration = Duration::from_secs(18);

    async fn open() -> Self {
        let google = google(emulators::pubsub().await.host());
        Self { queue: Arc::new(PubSubQueue::connect(&google).await.unwrap()), google }
    }
    fn queue(&self) -> Arc<dyn Queue> {
        self.queue.clone()
    }
    async fn restart(self) -> Self {
        let Self { google, queue } = self;
        queue.stop_receiving().await;
        drop(queue);
        Self { queue: Arc::new(PubSubQueue::connect(&google).await.unwrap()), google }
    }
}

/// A project of its own on the emulator at `host`.
fn google(host: &str) -> Google {
    Google {
        project_id: emulators::project(),
        dead_letter_topic: "runs-dead-letters".to_owned(),
        pubsub_emulator: Some(host.to_owned()),
        ..Google::default()
    }
}

async fn receive(queue: &dyn Queue) -> Box<dyn Delivery> {
    tokio::time::timeout(SOON, queue.receive()).await.expect("a message within the time").unwrap()
}

async fn assert_silent(queue: &dyn Queue, time: Duration) {
    assert!(tokio::time::timeout(time, queue.receive()).await.is_err(), "nothing should be delivered");
}

fn messages(count: usize) -> Vec<Message> {
    (0..count).map(|_| Message::new(RunId::random())).collect()
}

async fn a_message_arrives_with_its_run_and_trace<F: Fixture>() {
    let fixture = F::open().await;
    let queue = fixture.queue();
    let mut message = Message::new(RunId::random());
    message.trace.insert("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    queue.publish(std::slice::from_ref(&message)).await.unwrap();
    let delivery = receive(&*queue).await;
    assert_eq!(delivery.message().unwrap(), &message);
    delivery.ack().await;
    assert_silent(&*queue, F::QUIET).await;
}

async fn an_acknowledged_message_never_comes_back<F: Fixture>() {
    let fixture = F::open().await;
    let queue = fixture.queue();
    queue.publish(&messages(1)).await.unwrap();
    receive(&*queue).await.ack().await;
    drop(queue);
    let fixture = fixture.restart().await;
    assert_silent(&*fixture.queue(), F::LEASE).await;
}

async fn a_leased_message_is_nobody_elses<F: Fixture>() {
    let fixture = F::open().await;
    let queue = fixture.queue();
    queue.publish(&messages(1)).await.unwrap();
    let held = receive(&*queue).await;
    assert_silent(&*queue, F::LEASE).await;
    held.ack().await;
}

async fn a_refused_message_comes_back<F: Fixture>() {
    let fixture = F::open().await;
    let queue = fixture.queue();
    let sent = messages(1);
    queue.publish(&sent).await.unwrap();
    receive(&*queue).await.nack().await;
    let again = receive(&*queue).await;
    assert_eq!(again.message().unwrap(), &sent[0]);
    again.ack().await;
    assert_silent(&*queue, F::QUIET).await;
}

async fn a_dropped_delivery_comes_back<F: Fixture>() {
    let fixture = F::open().await;
    let queue = fixture.queue();
    let sent = messages(1);
    queue.publish(&sent).await.unwrap();
    drop(receive(&*queue).await);
    assert_eq!(receive(&*queue).await.message().unwrap(), &sent[0]);
}

async fn what_was_not_acknowledged_survives_a_restart<F: Fixture>() {
    let fixture = F::open().await;
    let queue = fixture.queue();
    let sent = messages(5);
    queue.publish(&sent).await.unwrap();
    receive(&*queue).await.ack().await;
    let held = receive(&*queue).await;
    // The process ends with a delivery in its hands.
    drop((held, queue));
    let fixture = fixture.restart().await;
    let mut left = BTreeSet::new();
    for _ in 0..4 {
        let delivery = receive(&*fixture.queue()).await;
        left.insert(delivery.message().unwrap().run_id.clone());
        delivery.ack().await;
    }
    assert_eq!(left.len(), 4);
    assert!(left.iter().all(|id| sent.iter().any(|message| &message.run_id == id)));
}

async fn an_abandoned_wait_takes_no_message_with_it<F: Fixture>() {
    let fixture = F::open().await;
    let queue = fixture.queue();
    for _ in 0..20 {
        assert!(tokio::time::timeout(Duration::from_millis(1), queue.receive()).await.is_err());
    }
    queue.publish(&messages(3)).await.unwrap();
    for _ in 0..3 {
        receive(&*queue).await.ack().await;
    }
}

async fn many_receivers_share_without_doubles<F: Fixture>() {
    let fixture = F::open().await;
    let queue = fixture.queue();
    let sent = messages(200);
    let (begun, total) = (Instant::now(), sent.len());
    let seen = Arc::new(AtomicUsize::new(0));
    let receivers: Vec<_> = (0..8)
        .map(|_| {
            let (queue, seen) = (Arc::clone(&queue), Arc::clone(&seen));
            tokio::spawn(async move {
                let mut taken = Vec::new();
                // Goes on for a while when all were seen: a double would come then.
                loop {
                    if let Ok(delivery) = tokio::time::timeout(Duration::from_secs(2), queue.receive()).await {
                        let delivery = delivery.unwrap();
                        seen.fetch_add(1, Ordering::Relaxed);
                        taken.push(delivery.message().unwrap().run_id.clone());
                        delivery.ack().await;
                    } else if seen.load(Ordering::Relaxed) >= total || begun.elapsed() > PATIENCE {
                        return taken;
                    }
                }
            })
        })
        .collect();
    for chunk in sent.chunks(7) {
        queue.publish(chunk).await.unwrap();
    }
    let mut taken = Vec::new();
    for receiver in receivers {
        taken.extend(receiver.await.unwrap());
    }
    assert_eq!(taken.len(), sent.len(), "each message once");
    assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), sent.into_iter().map(|message| message.run_id).collect());
}

async fn a_run_published_while_it_is_delivered_is_delivered_again<F: Fixture>() {
    let fixture = F::open().await;
    let queue = fixture.queue();
    let sent = messages(1);
    queue.publish(&sent).await.unwrap();
    let held = receive(&*queue).await;
    // Its worker decided on what was true before; this message says that something changed.
    queue.publish(&sent).await.unwrap();
    held.ack().await;
    assert_eq!(receive(&*queue).await.message().unwrap(), &sent[0]);
}

/// Rows that another version wrote, or nobody of ours, do not keep the others from being read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_names_no_run_is_delivered_as_that() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::open(folder.path()).unwrap();
    let sent = messages(1);
    let run = sent[0].run_id.to_string();
    let rows = [("run_short", "{}"), (run.as_str(), "no trace"), (run.as_str(), "{}")].map(|(id, trace)| (id.to_owned(), trace.to_owned()));
    let insert = "INSERT INTO messages (run_id, trace) VALUES (?1, ?2)";
    database.write(move |db| rows.iter().try_for_each(|(id, trace)| db.execute(insert, [id, trace]).map(drop)), |()| {}).await.unwrap();
    let queue = SqliteQueue::open(database).await.unwrap();
    for reason in ["not a run id", "trace"] {
        let delivery = receive(&queue).await;
        let undecodable = delivery.message().unwrap_err();
        assert!(undecodable.reason.contains(reason), "{undecodable:?}");
        delivery.ack().await;
    }
    assert_eq!(receive(&queue).await.message(), Ok(&sent[0]));
}

macro_rules! queue_suite {
    ($module:ident, $fixture:ty) => {
        mod $module {
            use super::*;
            queue_suite!(@tests $fixture;
                a_message_arrives_with_its_run_and_trace,
                an_acknowledged_message_never_comes_back,
                a_leased_message_is_nobody_elses,
                a_refused_message_comes_back,
                a_dropped_delivery_comes_back,
                what_was_not_acknowledged_survives_a_restart,
                an_abandoned_wait_takes_no_message_with_it,
                many_receivers_share_without_doubles,
                a_run_published_while_it_is_delivered_is_delivered_again,
            );
        }
    };
    (@tests $fixture:ty; $($name:ident,)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            super::$name::<$fixture>().await;
        })*
    };
}

queue_suite!(sqlite, Sqlite);
queue_suite!(pubsub, PubSub);
