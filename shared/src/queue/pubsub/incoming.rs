//! What comes in: one task owns the streaming pull and puts messages where `receive` takes them.
//!
//! The task is alone with the stream because waiting on it must not be given up halfway: that closes the stream. It
//! opens it only while somebody wants messages, and when nobody takes what waits here, all of it goes back: a worker
//! whose engine is down must not sit on messages that another could run.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backoff::backoff::Backoff;
use futures::FutureExt;
use google_cloud_pubsub::model::Message as Envelope;
use google_cloud_pubsub::subscriber::handler::Handler;
use google_cloud_pubsub::subscriber::{MessageStream, ShutdownBehavior, ShutdownToken};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::envelope;
use super::topology::Topology;
use crate::error::{Error, ErrorKind, Result, chain};
use crate::queue::{Message, Undecodable};

/// Leases are prolonged by so much at a time: the wait for the messages of a worker that died.
const LEASE: Duration = Duration::from_secs(15);
/// The longest that a delivery is kept leased: above the longest timeout that an agent can have (7 days). The service
/// itself forgets an unacknowledged message after its retention, 7 days by default; both are harmless, because the
/// lease that counts is the store's.
const LONGEST: Duration = Duration::from_secs(8 * 24 * 60 * 60);
/// Messages that nobody took for so long go back.
const PATIENCE: Duration = Duration::from_secs(5);
/// A stream that was silent for so long is opened anew on a new connection: one that a firewall forgot looks like this.
const SILENCE: Duration = Duration::from_secs(300);
/// How often the service is asked whether it is still the one that the stream was opened on.
const LOOK: Duration = Duration::from_secs(5);
/// How often everything else is looked at, and the service while it does not answer.
const TICK: Duration = Duration::from_secs(1);
/// A stream that lived so long was a good one: the next pause is a short one again.
const GOOD: Duration = Duration::from_secs(10);

/// A message that waits here. Dropping it hands it back.
pub(super) struct Leased {
    pub(super) message: Result<Message, Undecodable>,
    pub(super) handler: Handler,
}

/// Where messages wait between the stream and `receive`.
pub(super) struct Incoming {
    topology: Arc<Topology>,
    room: u32,
    line: Mutex<Line>,
    arrived: Notify,
    /// How many wait for a message.
    wanted: watch::Sender<usize>,
    /// Streams that may still have acknowledgements to send.
    streams: Mutex<Vec<ShutdownToken>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Line {
    waiting: VecDeque<Leased>,
    /// When a message was last taken, or the first one began to wait.
    moved: Instant,
    /// When the stream last brought something.
    brought: Instant,
}

/// Why a stream came to its end.
enum Closed {
    Stopped,
    /// Nobody takes messages.
    Idle,
    /// It is to be opened anew.
    Renew,
    Failed(Error),
}

/// Counts one that waits, for as long as it does.
struct Wanting<'a>(&'a watch::Sender<usize>);

impl<'a> Wanting<'a> {
    fn new(wanted: &'a watch::Sender<usize>) -> Self {
        wanted.send_modify(|count| *count += 1);
        Self(wanted)
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Incoming {
    /// Starts the task; it ends when `stop` is cancelled.
    pub(super) fn start(topology: Arc<Topology>, room: u32, stop: CancellationToken) -> Arc<Self> {
        let line = Line { waiting: VecDeque::new(), moved: Instant::now(), brought: Instant::now() };
        let incoming = Arc::new(Self {
            topology,
            room,
            line: Mutex::new(line),
            arrived: Notify::new(),
            wanted: watch::Sender::new(0),
            streams: Mutex::default(),
            stop,
            tasks: TaskTracker::new(),
        });
        incoming.tasks.spawn(Arc::clone(&incoming).run());
        incoming
    }

    /// The next message. Cancel-safe; never returns after the stop.
    pub(super) async fn next(&self) -> Leased {
        let _wanting = Wanting::new(&self.wanted);
        loop {
            // Registered before looking, so that what arrives in between is not missed.
            let arrived = self.arrived.notified();
            if let Some(leased) = self.take() {
                // One notification may stand for several messages: pass it on.
                self.arrived.notify_one();
                return leased;
            }
            arrived.await;
        }
    }

    /// Waits until the task has ended and everything that was acknowledged or handed back is sent.
    pub(super) async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        let streams = lock(&self.streams).clone();
        futures::future::join_all(streams.iter().map(ShutdownToken::shutdown)).await;
    }

    fn take(&self) -> Option<Leased> {
        let mut line = lock(&self.line);
        let leased = line.waiting.pop_front()?;
        line.moved = Instant::now();
        Some(leased)
    }

    fn put(&self, leased: Leased) {
        {
            let mut line = lock(&self.line);
            if self.stop.is_cancelled() {
                return;
            }
            if line.waiting.is_empty() {
                line.moved = Instant::now();
            }
            line.waiting.push_back(leased);
        }
        self.arrived.notify_one();
    }

    async fn run(self: Arc<Self>) {
        let mut pauses = backoff::ExponentialBackoffBuilder::new()
            .with_initial_interval(Duration::from_millis(100))
            .with_max_interval(Duration::from_secs(10))
            .with_max_elapsed_time(None)
            .build();
        let mut wanted = self.wanted.subscribe();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                // The sender lives in `self`.
                _ = wanted.wait_for(|count| *count > 0) => {}
            }
            let begun = Instant::now();
            match self.stream().await {
                Closed::Stopped => return,
                Closed::Idle => tracing::debug!("nobody takes messages, they went back"),
                Closed::Renew => {}
                Closed::Failed(error) => {
                    if begun.elapsed() >= GOOD {
                        pauses.reset();
                    }
                    let pause = pauses.next_backoff().unwrap_or(TICK);
                    let retry_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                    tracing::warn!(error = %chain(&error), retry_ms, "the stream of messages ended, opening it anew");
                    tokio::select! {
                        biased;
                        () = self.stop.cancelled() => return,
                        () = self.recover(pause) => {}
                    }
                }
            }
        }
    }

    async fn recover(&self, pause: Duration) {
        tokio::time::sleep(pause).await;
        // An emulator that was started anew has forgotten everything.
        if let Err(error) = self.topology.ensure().await {
            tracing::debug!(error = %chain(&error), "the topics and subscriptions could not be ensured");
        }
    }

    /// One stream from its opening to its end.
    async fn stream(self: &Arc<Self>) -> Closed {
        let subscriber = match self.topology.subscriber().await {
            Ok(subscriber) => subscriber,
            Err(error) => return Closed::Failed(error),
        };
        let mut stream = subscriber
            .subscribe(&self.topology.subscription)
            .set_max_outstanding_messages(i64::from(self.room))
            .set_max_lease_extension(LEASE)
            .set_max_lease(LONGEST)
            // What a worker holds stays leased until it says a word, also while it drains.
            .set_shutdown_behavior(ShutdownBehavior::WaitForProcessing)
            .build();
        {
            let mut streams = lock(&self.streams);
            // All but this one are closed already: those that are also settled need no more waiting.
            streams.retain(|closed| closed.shutdown().now_or_never().is_none());
            streams.push(stream.shutdown_token());
        }
        lock(&self.line).brought = Instant::now();
        let closed = tokio::select! {
            biased;
            () = self.stop.cancelled() => Closed::Stopped,
            closed = self.watch() => closed,
            closed = self.read(&mut stream) => closed,
        };
        // Messages that were in the stream's hands would stay leased for as long as any delivery of it is held.
        while let Some(Some(Ok((envelope, handler)))) = tokio::task::unconstrained(stream.next()).now_or_never() {
            self.accept(envelope, handler);
        }
        if matches!(closed, Closed::Stopped | Closed::Idle) {
            let handed_back = std::mem::take(&mut lock(&self.line).waiting);
            drop(handed_back);
        }
        closed
    }

    async fn read(self: &Arc<Self>, stream: &mut MessageStream) -> Closed {
        loop {
            match stream.next().await {
                Some(Ok((envelope, handler))) => {
                    lock(&self.line).brought = Instant::now();
                    self.accept(envelope, handler);
                }
                Some(Err(error)) => return Closed::Failed(self.topology.failed("reading", &self.topology.subscription, error)),
                None => return Closed::Failed(Error::new(ErrorKind::Unavailable, "the stream of messages was closed")),
            }
        }
    }

    /// Returns when the stream should be closed although it did not fail. The client retries a lost connection by
    /// itself, with pauses of up to a minute, and a stream that hangs looks like one that has nothing to say.
    async fn watch(&self) -> Closed {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut answers, mut looked) = (true, Instant::now());
        loop {
            ticks.tick().await;
            let (stalled, silent) = {
                let line = lock(&self.line);
                let stalled = !line.waiting.is_empty() && line.moved.elapsed() >= PATIENCE && *self.wanted.borrow() == 0;
                (stalled, line.brought.elapsed() >= SILENCE)
            };
            if stalled {
                return Closed::Idle;
            }
            if silent {
                return Closed::Renew;
            }
            if answers && looked.elapsed() < LOOK {
                continue;
            }
            looked = Instant::now();
            match self.topology.look().await {
                Ok(true) if answers => {}
                Ok(true) => {
                    tracing::info!("Pub/Sub answers again");
                    return Closed::Renew;
                }
                Ok(false) => {
                    let lost = format!("the subscription {} is gone", self.topology.subscription);
                    return Closed::Failed(Error::new(ErrorKind::Unavailable, lost));
                }
                Err(error) => {
                    if answers {
                        tracing::warn!(error = %chain(&error), "Pub/Sub does not answer");
                    }
                    answers = false;
                }
            }
        }
    }

    fn accept(&self, envelope: Envelope, handler: Handler) {
        self.put(Leased { message: envelope::decode(envelope), handler });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
