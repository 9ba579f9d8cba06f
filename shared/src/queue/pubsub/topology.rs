//! The clients, and the topics and subscriptions that they need.

use std::sync::Arc;
use std::time::{Duration, Instant};

use google_cloud_auth::credentials::anonymous;
use google_cloud_gax::error::rpc::Code;
use google_cloud_gax::exponential_backoff::ExponentialBackoffBuilder;
use google_cloud_gax::retry_policy::{NeverRetry, RetryPolicyExt};
use google_cloud_pubsub::Error as ClientError;
use google_cloud_pubsub::client::{BasePublisher, Publisher, Subscriber, SubscriptionAdmin, TopicAdmin};
use google_cloud_pubsub::model::{DeadLetterPolicy, ExpirationPolicy, Subscription};
use google_cloud_pubsub::retry_policy::RetryableErrors;
use tokio::sync::Mutex;

use crate::config::Google;
use crate::error::{Error, ErrorKind, Result};

/// The client retries a publish for so long; the queue's own limit is above it, so that the cause is in the error.
const PUBLISH_RETRIES: Duration = Duration::from_secs(8);
/// Waiting so long lets messages that are published at the same time share a request, and nobody notices.
const GATHER: Duration = Duration::from_millis(1);
/// One call to the administration of topics and subscriptions.
const CALL: Duration = Duration::from_secs(5);
/// Deliveries before the service itself puts a message aside: the most that it offers. A message that is merely handed
/// back now and then must not get there.
const DELIVERY_ATTEMPTS: i32 = 100;
/// Until a streaming pull sets its own.
const ACK_DEADLINE_SECONDS: i32 = 30;

/// Everything that speaks to the service.
pub(super) struct Topology {
    /// Full path of the topic of runs.
    pub(super) topic: String,
    dead_letters: String,
    dead_letters_subscription: String,
    /// Full path of the workers' subscription.
    pub(super) subscription: String,
    /// `http://host:port`; absent for the real service.
    emulator: Option<String>,
    topics: TopicAdmin,
    subscriptions: SubscriptionAdmin,
    /// To the topic of runs.
    pub(super) runs: Publisher,
    ensured: Mutex<Option<Instant>>,
}

impl Topology {
    /// Builds the clients; nothing is sent yet.
    pub(super) async fn new(google: &Google) -> Result<Self> {
        let emulator = google.pubsub_emulator.as_ref().map(|host| format!("http://{host}"));
        let failed = |error| {
            Error::new(
                ErrorKind::Internal,
                "building the Pub/Sub client: give this process Application Default Credentials, or set PUBSUB_EMULATOR_HOST",
            )
            .with_source(error)
        };
        let mut topics = TopicAdmin::builder().with_retry_policy(NeverRetry);
        let mut subscriptions = SubscriptionAdmin::builder().with_retry_policy(NeverRetry);
        let pauses =
            ExponentialBackoffBuilder::new().with_initial_delay(Duration::from_millis(50)).with_maximum_delay(Duration::from_secs(1)).clamp();
        let mut base = BasePublisher::builder().with_retry_policy(RetryableErrors.with_time_limit(PUBLISH_RETRIES)).with_backoff_policy(pauses);
        if let Some(endpoint) = &emulator {
            let anonymous = || anonymous::Builder::new().build();
            topics = topics.with_endpoint(endpoint).with_credentials(anonymous());
            subscriptions = subscriptions.with_endpoint(endpoint).with_credentials(anonymous());
            base = base.with_endpoint(endpoint).with_credentials(anonymous());
        }
        let base = base.build().await.map_err(failed)?;
        let path = |kind: &str, name: &str| format!("projects/{}/{kind}/{name}", google.project_id);
        let (topic, dead_letters) = (path("topics", &google.topic), path("topics", &google.dead_letter_topic));
        Ok(Self {
            runs: base.publisher(&topic).set_delay_threshold(GATHER).build(),
            topics: topics.build().await.map_err(failed)?,
            subscriptions: subscriptions.build().await.map_err(failed)?,
            subscription: path("subscriptions", &google.subscription),
            dead_letters_subscription: path("subscriptions", &google.dead_letter_topic),
            topic,
            dead_letters,
            emulator,
            ensured: Mutex::new(None),
        })
    }

    /// A client of its own for one stream: a connection that died without a word is not used again.
    pub(super) async fn subscriber(&self) -> Result<Subscriber> {
        let mut builder = Subscriber::builder();
        if let Some(endpoint) = &self.emulator {
            builder = builder.with_endpoint(endpoint).with_credentials(anonymous::Builder::new().build());
        }
        builder.build().await.map_err(|error| Error::new(ErrorKind::Internal, "building the Pub/Sub subscriber").with_source(error))
    }

    /// Makes sure that both topics and both subscriptions are there: one round without retries. Callers that come
    /// while a round is under way share the next one.
    pub(super) async fn ensure(&self) -> Result<()> {
        let asked = Instant::now();
        let mut ensured = self.ensured.lock().await;
        if ensured.is_some_and(|begun| begun >= asked) {
            return Ok(());
        }
        let begun = Instant::now();
        // Boxed, because the client's futures are big and this one is part of every publish.
        Box::pin(self.ensure_all()).await?;
        *ensured = Some(begun);
        Ok(())
    }

    async fn ensure_all(&self) -> Result<()> {
        tokio::try_join!(self.ensure_topic(&self.topic), self.ensure_topic(&self.dead_letters))?;
        let kept = self.subscription_to(&self.dead_letters_subscription, &self.dead_letters);
        let runs = self
            .subscription_to(&self.subscription, &self.topic)
            .set_dead_letter_policy(DeadLetterPolicy::new().set_dead_letter_topic(&self.dead_letters).set_max_delivery_attempts(DELIVERY_ATTEMPTS));
        tokio::try_join!(self.ensure_subscription(kept), self.ensure_subscription(runs))?;
        Ok(())
    }

    /// The same with patience: for a process that starts together with its emulator.
    pub(super) async fn ensure_within(&self, patience: Duration) -> Result<()> {
        let pauses = backoff::ExponentialBackoffBuilder::new()
            .with_initial_interval(Duration::from_millis(100))
            .with_max_interval(Duration::from_secs(2))
            .with_max_elapsed_time(Some(patience))
            .build();
        let attempt = || async {
            self.ensure()
                .await
                .map_err(|error| if error.kind().retryable() { backoff::Error::transient(error) } else { backoff::Error::permanent(error) })
        };
        backoff::future::retry_notify(pauses, attempt, |error: Error, pause: Duration| {
            let retry_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(error = %crate::error::chain(&error), retry_ms, "Pub/Sub does not answer yet");
        })
        .await
    }

    /// Whether the service answers, and whether the workers' subscription is there.
    pub(super) async fn look(&self) -> Result<bool> {
        let found = self.call("reading the subscription", self.subscriptions.get_subscription().set_subscription(&self.subscription).send());
        match found.await? {
            Ok(_) => Ok(true),
            // Who may only consume may not look; that, too, is an answer.
            Err(error) if code(&error) == Some(Code::PermissionDenied) => Ok(true),
            Err(error) if code(&error) == Some(Code::NotFound) => Ok(false),
            Err(error) => Err(self.failed("reading the subscription", &self.subscription, error)),
        }
    }

    async fn ensure_topic(&self, name: &str) -> Result<()> {
        let found = self.call("reading a topic", self.topics.get_topic().set_topic(name).send()).await?;
        if let Some(missing) = self.missing(name, found.map(drop))? {
            let created = self.call("creating a topic", self.topics.create_topic().set_name(name).send()).await?;
            self.created(name, missing, created.map(drop))?;
        }
        Ok(())
    }

    async fn ensure_subscription(&self, wanted: Subscription) -> Result<()> {
        let name = wanted.name.clone();
        let found = self.call("reading a subscription", self.subscriptions.get_subscription().set_subscription(&name).send()).await?;
        if let Ok(found) = &found
            && found.topic != wanted.topic
        {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("the subscription {name} belongs to {}, not to {}: delete it, or name another under [google]", found.topic, wanted.topic),
            ));
        }
        if let Some(missing) = self.missing(&name, found.map(drop))? {
            let created = self.call("creating a subscription", self.subscriptions.create_subscription().with_request(wanted).send()).await?;
            self.created(&name, missing, created.map(drop))?;
        }
        Ok(())
    }

    fn subscription_to(&self, name: &str, topic: &str) -> Subscription {
        Subscription::new()
            .set_name(name)
            .set_topic(topic)
            .set_ack_deadline_seconds(ACK_DEADLINE_SECONDS)
            .set_enable_message_ordering(false)
            .set_enable_exactly_once_delivery(false)
            // Never: by default the service deletes a subscription that nobody used for a month.
            .set_expiration_policy(ExpirationPolicy::new())
    }

    /// What to do after a look: nothing, or create it, knowing why it was not seen.
    fn missing(&self, name: &str, found: Result<(), ClientError>) -> Result<Option<Code>> {
        match found {
            Ok(()) => Ok(None),
            Err(error) => match code(&error) {
                Some(code @ (Code::NotFound | Code::PermissionDenied)) => Ok(Some(code)),
                _ => Err(self.failed("looking for", name, error)),
            },
        }
    }

    fn created(&self, name: &str, missing: Code, created: Result<(), ClientError>) -> Result<()> {
        match created {
            Ok(()) => {
                tracing::info!(name, "created");
                Ok(())
            }
            Err(error) => match code(&error) {
                Some(Code::AlreadyExists) => Ok(()),
                // May neither look nor create: whoever set the project up made it. If not, its use says so.
                Some(Code::PermissionDenied) if missing == Code::PermissionDenied => Ok(()),
                _ => Err(self.failed("creating", name, error)),
            },
        }
    }

    async fn call<T>(&self, doing: &str, call: impl Future<Output = Result<T, ClientError>>) -> Result<Result<T, ClientError>> {
        tokio::time::timeout(CALL, call).await.map_err(|_| self.silent(doing, CALL))
    }

    /// The error for a service that did not answer within `limit`.
    pub(super) fn silent(&self, doing: &str, limit: Duration) -> Error {
        Error::new(ErrorKind::Unavailable, format!("{doing}: {} did not answer within {limit:?}", self.place()))
    }

    /// An error with what to do about it.
    pub(super) fn failed(&self, doing: &str, name: &str, error: impl Into<Arc<ClientError>>) -> Error {
        let (place, error) = (self.place(), error.into());
        let (kind, advice) = match code(&error) {
            Some(Code::NotFound) => (ErrorKind::Unavailable, format!("it is not there; create it, or check [google] project_id at {place}")),
            Some(Code::PermissionDenied | Code::Unauthenticated) => (
                ErrorKind::Internal,
                "give this process's account roles/pubsub.editor, or create it beforehand and give publisher and subscriber".to_owned(),
            ),
            Some(Code::ResourceExhausted) => (ErrorKind::Full, "the project's Pub/Sub quota is used up".to_owned()),
            Some(Code::InvalidArgument) => (ErrorKind::Internal, "the service refuses the name or the settings".to_owned()),
            // A metadata server that does not answer yet is no lasting fault.
            _ if error.is_authentication() => {
                let kind = if error.is_transient_and_before_rpc() { ErrorKind::Unavailable } else { ErrorKind::Internal };
                (kind, "give this process Application Default Credentials".to_owned())
            }
            _ => (ErrorKind::Unavailable, format!("{place} does not answer properly")),
        };
        Error::new(kind, format!("{doing} {name}: {advice}")).with_source(error)
    }

    fn place(&self) -> String {
        match &self.emulator {
            Some(endpoint) => format!("the Pub/Sub emulator at {endpoint} (PUBSUB_EMULATOR_HOST; is it running?)"),
            None => "pubsub.googleapis.com (is the network there?)".to_owned(),
        }
    }
}

/// The service's own word, whichever way it came: as a status, or as an HTTP status without a body.
pub(super) fn code(error: &ClientError) -> Option<Code> {
    error.status().map(|status| status.code).or_else(|| match error.http_status_code()? {
        404 => Some(Code::NotFound),
        403 => Some(Code::PermissionDenied),
        _ => None,
    })
}
