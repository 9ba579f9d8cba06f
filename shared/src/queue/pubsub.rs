//! The queue on Google Cloud Pub/Sub.
//!
//! At least once, in any order; nothing here relies on ordering keys or exactly-once delivery. Acknowledgements leave
//! in batches every tenth of a second and may be lost; then the message comes again.

mod envelope;
mod incoming;
mod topology;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use google_cloud_gax::error::rpc::Code;
use google_cloud_pubsub::error::PublishError;
use google_cloud_pubsub::subscriber::handler::Handler;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::Google;
use crate::error::{Error, ErrorKind, Result};
use crate::queue::{Delivery, Message, Queue, Undecodable};
use incoming::{Incoming, Leased};
use topology::Topology;

/// A process may start before its emulator does.
const CONNECT: Duration = Duration::from_secs(15);
/// All of a publish, with its retries.
const PUBLISH: Duration = Duration::from_secs(10);
/// All of a ping.
const PING: Duration = Duration::from_secs(3);
/// An answer to a ping serves for so long: health checks come from several places at once.
const FRESH: Duration = Duration::from_secs(1);
/// What is acknowledged or handed back leaves within a tenth of a second and a round trip.
const SETTLE: Duration = Duration::from_secs(1);
/// Messages in the hands of a process that did not say how many it can work on.
const ROOM: u32 = 16;

/// The [`Queue`] of the `google` backend. Dropping it is like [`Queue::stop_receiving`], in the background.
pub struct PubSubQueue {
    topology: Arc<Topology>,
    room: u32,
    /// Set by the first `receive`: who only publishes holds no subscription.
    incoming: OnceLock<Arc<Incoming>>,
    stop: CancellationToken,
    _stopped_by_drop: DropGuard,
    health: Mutex<Option<Health>>,
}

/// What the last ping found.
struct Health {
    asked: Instant,
    error: Option<(ErrorKind, String)>,
}

impl PubSubQueue {
    /// Connects to the service, or to the emulator that `google` names, and makes sure that the topics and subscriptions
    /// are there. Waits up to 15 s for a service that does not answer yet.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the service does not answer, [`ErrorKind::Internal`] when credentials or
    /// rights are missing or the subscription belongs to another topic; the message says what to do.
    pub async fn connect(google: &Google) -> Result<Self> {
        let topology = Topology::new(google).await?;
        topology.ensure_within(CONNECT).await?;
        let stop = CancellationToken::new();
        Ok(Self {
            topology: Arc::new(topology),
            room: ROOM,
            incoming: OnceLock::new(),
            stop: stop.clone(),
            _stopped_by_drop: stop.drop_guard(),
            health: Mutex::new(None),
        })
    }

    /// How many messages the service may have outstanding here, held and waiting together: the worker's slots. More
    /// would wait behind long runs while another worker is free. To be set before the first `receive`. The emulator
    /// ignores it.
    #[must_use]
    pub const fn with_room(mut self, room: u32) -> Self {
        self.room = if room == 0 { 1 } else { room };
        self
    }

    fn incoming(&self) -> &Incoming {
        self.incoming.get_or_init(|| Incoming::start(Arc::clone(&self.topology), self.room, self.stop.clone()))
    }

    /// Publishes all of `messages`; gives back those that failed, with one of their errors.
    async fn send(&self, messages: &[Message]) -> Result<(), (Vec<Message>, PublishError)> {
        // All are handed to the client before the first is awaited, so that they share requests.
        let sent: Vec<_> = messages.iter().map(|message| self.topology.runs.publish(envelope::encode(message))).collect();
        let mut failed = Vec::new();
        let mut cause = None;
        for (message, result) in messages.iter().zip(futures::future::join_all(sent).await) {
            if let Err(error) = result {
                failed.push(message.clone());
                cause = Some(error);
            }
        }
        cause.map_or(Ok(()), |cause| Err((failed, cause)))
    }

    async fn send_or_ensure(&self, messages: &[Message]) -> Result<()> {
        let (failed, error) = match self.send(messages).await {
            Ok(()) => return Ok(()),
            Err((failed, PublishError::Rpc(error))) if topology::code(&error) == Some(Code::NotFound) => (failed, error),
            Err((_, error)) => return Err(self.publish_error(error)),
        };
        tracing::warn!(error = %error, "the topic is gone, creating it anew");
        self.topology.ensure().await?;
        self.send(&failed).await.map_err(|(_, error)| self.publish_error(error))
    }

    fn publish_error(&self, error: PublishError) -> Error {
        match error {
            PublishError::Rpc(error) => self.topology.failed("publishing to", &self.topology.topic, error),
            error => Error::new(ErrorKind::Internal, "publishing").with_source(error),
        }
    }

    async fn answers(&self) -> Result<()> {
        let look = async {
            if !self.topology.look().await? {
                // An emulator that was started anew has forgotten everything.
                self.topology.ensure().await?;
            }
            Ok(())
        };
        tokio::time::timeout(PING, look).await.unwrap_or_else(|_| Err(self.topology.silent("looking for the subscription", PING)))
    }
}

#[async_trait]
impl Queue for PubSubQueue {
    async fn publish(&self, messages: &[Message]) -> Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let sent = tokio::time::timeout(PUBLISH, self.send_or_ensure(messages));
        sent.await.unwrap_or_else(|_| Err(self.topology.silent("publishing", PUBLISH)))
    }

    async fn receive(&self) -> Result<Box<dyn Delivery>> {
        let Leased { message, handler } = self.incoming().next().await;
        Ok(Box::new(PubSubDelivery { message, handler }))
    }

    /// Deliveries that are held stay leased and may be acknowledged as before. Returns when everything is sent, at most
    /// a second later; calling it again before the process ends lets the last acknowledgements leave.
    async fn stop_receiving(&self) {
        self.stop.cancel();
        if let Some(incoming) = self.incoming.get() {
            // What is held takes as long as its run: that is not waited for.
            let _held = tokio::time::timeout(SETTLE, incoming.settled()).await;
        }
    }

    async fn ping(&self) -> Result<()> {
        let mut health = self.health.lock().await;
        let known = match &*health {
            Some(last) if last.asked.elapsed() < FRESH => last.error.clone(),
            _ => {
                let error = self.answers().await.err().map(|error| (error.kind(), crate::error::chain(&error)));
                *health = Some(Health { asked: Instant::now(), error: error.clone() });
                error
            }
        };
        known.map_or(Ok(()), |(kind, text)| Err(Error::new(kind, text)))
    }
}

struct PubSubDelivery {
    message: Result<Message, Undecodable>,
    /// Hands the message back when it is dropped unused.
    handler: Handler,
}

#[async_trait]
impl Delivery for PubSubDelivery {
    fn message(&self) -> Result<&Message, &Undecodable> {
        self.message.as_ref()
    }

    async fn ack(self: Box<Self>) {
        self.handler.ack();
    }

    async fn nack(self: Box<Self>) {
        self.handler.nack();
    }
}
