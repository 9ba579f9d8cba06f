//! The notice that this machine is about to be taken away. Google's metadata server gives it to Spot VMs, 30 seconds
//! before the end.

use std::time::Duration;

use backoff::backoff::Backoff;
use quayside_shared::error::chain;
use tokio::time::Instant;

/// How long one request may wait for a change.
const WAIT: Duration = Duration::from_secs(60);
/// What the network may take beyond that.
const SLACK: Duration = Duration::from_secs(10);
/// A server that does not wait is not asked more often than this.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest pause after a failed request: most of the notice's 30 seconds must be left when the answer comes.
const LONGEST: Duration = Duration::from_secs(5);
/// An answer is one word.
const ANSWER_MAX: usize = 64;
/// The entity tag of a client that has seen nothing yet: the first answer comes at once.
const NOTHING_SEEN: &str = "NONE";

/// Why an answer could not be had.
#[derive(Debug, thiserror::Error)]
enum NoticeError {
    #[error("the request failed")]
    Request(#[from] reqwest::Error),
    #[error("it answered {0}")]
    Status(reqwest::StatusCode),
    #[error("it answered neither TRUE nor FALSE")]
    Answer,
}

/// What the server knows.
struct Known {
    preempted: bool,
    /// Names this answer, so that the next request waits until there is another.
    etag: Option<String>,
}

/// Reads the notice at one address.
#[derive(Debug, Clone)]
pub struct Notice {
    http: reqwest::Client,
    url: String,
}

impl Notice {
    /// The metadata key at `url`.
    ///
    /// # Errors
    /// When no HTTP client can be made, which is a fault of this machine.
    pub fn at(url: &str) -> Result<Self, reqwest::Error> {
        // The address is the machine's own: a proxy or another host would speak of another machine.
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(WAIT + SLACK).build()?;
        Ok(Self { http, url: url.to_owned() })
    }

    /// Returns when the key says `TRUE`. Each request waits for a change. Failures are tried again for ever, with growing
    /// pauses: the work goes on meanwhile.
    pub async fn given(&self) {
        let mut pauses = backoff::ExponentialBackoffBuilder::new()
            .with_initial_interval(Duration::from_millis(250))
            .with_max_interval(LONGEST)
            .with_max_elapsed_time(None)
            .build();
        let mut seen = Some(NOTHING_SEEN.to_owned());
        let mut failing = false;
        loop {
            let asked = Instant::now();
            match self.ask(seen.as_deref()).await {
                Ok(known) if known.preempted => return,
                Ok(known) => {
                    if failing {
                        tracing::info!(url = self.url, "the preemption notice can be read again");
                    }
                    failing = false;
                    pauses.reset();
                    seen = known.etag;
                    tokio::time::sleep_until(asked + SHORTEST).await;
                }
                Err(error) => {
                    // Once: it may go on for the whole life of a machine that has no such server.
                    if !failing {
                        tracing::warn!(url = self.url, error = %chain(&error), "the preemption notice cannot be read; trying again");
                    }
                    failing = true;
                    tokio::time::sleep(pauses.next_backoff().unwrap_or(LONGEST)).await;
                }
            }
        }
    }

    async fn ask(&self, seen: Option<&str>) -> Result<Known, NoticeError> {
        let wait = WAIT.as_secs().to_string();
        let mut request = self.http.get(&self.url).header("Metadata-Flavor", "Google");
        request = request.query(&[("wait_for_change", "true"), ("timeout_sec", &wait)]);
        if let Some(seen) = seen {
            request = request.query(&[("last_etag", seen)]);
        }
        let mut answer = request.send().await?;
        if answer.status() != reqwest::StatusCode::OK {
            return Err(NoticeError::Status(answer.status()));
        }
        let etag = answer.headers().get(reqwest::header::ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        let mut word = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            word.extend_from_slice(&chunk);
            if word.len() > ANSWER_MAX {
                return Err(NoticeError::Answer);
            }
        }
        let word = word.trim_ascii();
        let preempted = word.eq_ignore_ascii_case(b"TRUE");
        if !preempted && !word.eq_ignore_ascii_case(b"FALSE") {
            return Err(NoticeError::Answer);
        }
        Ok(Known { preempted, etag })
    }
}
