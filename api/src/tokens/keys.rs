//! The public keys that ID tokens are verified with: fetched, kept for as long as their publisher says, and a while
//! longer when he does not answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::header::{AGE, CACHE_CONTROL};
use http::{HeaderMap, StatusCode};
use jsonwebtoken::DecodingKey;
use quayside_shared::clock::{Clock, Timestamp};
use quayside_shared::error::chain;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::Refused;

/// For one fetch, from the connection to the last byte.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Google's answer has two or three keys in less than two kilobytes.
const BODY_MAX: usize = 64 << 10;
/// Whatever the publisher says, keys are fresh for no less and no more.
const FRESH_MIN: Duration = Duration::from_mins(5);
const FRESH_MAX: Duration = Duration::from_hours(24);
/// While no new ones can be had, keys serve on until they are so old.
const AGE_MAX: Duration = Duration::from_hours(36);
/// Wait after a fetch that failed.
const RETRY: Duration = Duration::from_secs(10);
/// A key that is not there is looked for no more often: anybody can name one.
const UNKNOWN_KEY: Duration = Duration::from_mins(1);
/// How long `/readyz` waits for a fetch; less than it is given for all its checks.
const READY_WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("preparing the HTTP client")]
    Client(#[source] reqwest::Error),
    #[error("asking for the keys")]
    Request(#[from] reqwest::Error),
    #[error("the answer is {0}")]
    Status(StatusCode),
    #[error("the answer is longer than {BODY_MAX} bytes")]
    TooLong,
    #[error("the answer is no JWK set")]
    Malformed(#[from] serde_json::Error),
    #[error("the answer has no RSA key with an id")]
    Empty,
}

/// A JWK set as far as it matters.
#[derive(Deserialize)]
struct Published {
    keys: Vec<PublishedKey>,
}

#[derive(Deserialize)]
struct PublishedKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl PublishedKey {
    /// `None` of a key for something else.
    fn usable(self) -> Option<(String, Arc<DecodingKey>)> {
        let says = |said: Option<String>, wanted: &str| said.is_none_or(|said| said == wanted);
        if self.kty != "RSA" || !says(self.alg, "RS256") || !says(self.purpose, "sig") {
            return None;
        }
        let key = DecodingKey::from_rsa_components(&self.n?, &self.e?).ok()?;
        Some((self.kid?, Arc::new(key)))
    }
}

/// What one fetch gave.
struct KeySet {
    keys: HashMap<String, Arc<DecodingKey>>,
    fetched: Timestamp,
    fresh: Duration,
}

impl KeySet {
    /// `None` when the clock went back: then nobody knows.
    fn age(&self, now: Timestamp) -> Option<Duration> {
        (self.fetched <= now).then(|| now.since(self.fetched))
    }

    /// Whether no new ones need be asked for: until a tenth of their time is left.
    fn is_young(&self, now: Timestamp) -> bool {
        self.age(now).is_some_and(|age| age < self.fresh - self.fresh / 10)
    }

    fn is_fresh(&self, now: Timestamp) -> bool {
        self.age(now).is_some_and(|age| age < self.fresh)
    }

    fn is_usable(&self, now: Timestamp) -> bool {
        self.age(now).is_some_and(|age| age < AGE_MAX)
    }
}

#[derive(Default)]
struct State {
    set: Option<Arc<KeySet>>,
    /// When the last fetch began.
    asked: Option<Timestamp>,
    /// The last fetch; cancelled when it is over, however it ended.
    fetch: Option<CancellationToken>,
}

/// The keys of one publisher.
pub(super) struct Keys {
    url: String,
    clock: Arc<dyn Clock>,
    /// Made when it is first needed: without the machine's certificates it cannot be, and an emulator needs none.
    client: OnceLock<reqwest::Client>,
    state: Mutex<State>,
}

impl Keys {
    pub(super) fn new(url: String, clock: Arc<dyn Clock>) -> Self {
        Self { url, clock, client: OnceLock::new(), state: Mutex::default() }
    }

    /// Starts fetching, so that the first token need not wait. Must be called inside a Tokio runtime.
    pub(super) fn prepare(self: &Arc<Self>) {
        self.fetch_unless_asked_within(RETRY);
    }

    /// The key of this id.
    pub(super) async fn find(self: &Arc<Self>, id: &str) -> Result<Arc<DecodingKey>, Refused> {
        if let Some(key) = self.current().await.ok_or(Refused::NoKeys)?.keys.get(id) {
            return Ok(Arc::clone(key));
        }
        // It may be newer than what is here.
        if let Some(fetch) = self.fetch_unless_asked_within(UNKNOWN_KEY) {
            fetch.cancelled().await;
        }
        let set = self.usable().ok_or(Refused::NoKeys)?;
        set.keys.get(id).map(Arc::clone).ok_or(Refused::UnknownKey)
    }

    /// `Err` when there are no keys and none can be had.
    pub(super) async fn ready(self: &Arc<Self>) -> Result<(), String> {
        // A fetch that takes longer goes on by itself.
        let current = tokio::time::timeout(READY_WAIT, self.current()).await.ok().flatten();
        let told = || format!("the keys to verify ID tokens with cannot be fetched from {}; the log has the cause", self.url);
        current.map(drop).ok_or_else(told)
    }

    /// The keys as they should be: asks for new ones ahead of time, and waits for them once the old ones are not fresh.
    async fn current(self: &Arc<Self>) -> Option<Arc<KeySet>> {
        let (now, set) = (self.clock.now(), self.state().set.clone());
        if let Some(set) = set.filter(|set| set.is_fresh(now)) {
            if !set.is_young(now) {
                self.fetch_unless_asked_within(RETRY);
            }
            return Some(set);
        }
        if let Some(fetch) = self.fetch_unless_asked_within(RETRY) {
            fetch.cancelled().await;
        }
        self.usable()
    }

    fn usable(&self) -> Option<Arc<KeySet>> {
        let now = self.clock.now();
        self.state().set.clone().filter(|set| set.is_usable(now))
    }

    /// The fetch that is under way, or a new one unless the last began less than `pause` ago. It goes on when who waits
    /// for it is gone.
    fn fetch_unless_asked_within(self: &Arc<Self>, pause: Duration) -> Option<CancellationToken> {
        let now = self.clock.now();
        let mut state = self.state();
        if let Some(fetch) = state.fetch.as_ref().filter(|fetch| !fetch.is_cancelled()) {
            return Some(fetch.clone());
        }
        if state.asked.is_some_and(|asked| asked <= now && now.since(asked) < pause) {
            return None;
        }
        let fetch = CancellationToken::new();
        state.asked = Some(now);
        state.fetch = Some(fetch.clone());
        drop(state);
        let (keys, over) = (Arc::clone(self), fetch.clone().drop_guard());
        tokio::spawn(async move {
            keys.renew().await;
            drop(over);
        });
        Some(fetch)
    }

    async fn renew(&self) {
        match self.fetch().await {
            Ok(set) => {
                tracing::info!(keys = set.keys.len(), fresh_s = set.fresh.as_secs(), "fetched the keys that ID tokens are verified with");
                self.state().set = Some(Arc::new(set));
            }
            Err(error) => {
                let usable = self.usable().is_some();
                tracing::warn!(url = self.url, error = %chain(&error), old_keys_serve_on = usable, "the keys that ID tokens are verified with cannot be fetched");
            }
        }
    }

    async fn fetch(&self) -> Result<KeySet, FetchError> {
        // Before the answer, whose own age counts from then at the latest.
        let fetched = self.clock.now();
        let mut response = self.client()?.get(&self.url).send().await?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let fresh = freshness(response.headers());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > BODY_MAX {
                return Err(FetchError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        let published: Published = serde_json::from_slice(&body)?;
        let keys: HashMap<_, _> = published.keys.into_iter().filter_map(PublishedKey::usable).collect();
        if keys.is_empty() {
            return Err(FetchError::Empty);
        }
        Ok(KeySet { keys, fetched, fresh })
    }

    fn client(&self) -> Result<&reqwest::Client, FetchError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let redirects = reqwest::redirect::Policy::none();
        let client = reqwest::Client::builder().timeout(FETCH_TIMEOUT).redirect(redirects).build().map_err(FetchError::Client)?;
        Ok(self.client.get_or_init(|| client))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For how long the answer is good: `max-age` less the time that it lay in caches on the way.
fn freshness(headers: &HeaderMap) -> Duration {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let directives = values.flat_map(|value| value.split(',')).filter_map(|directive| directive.trim().split_once('='));
    let seconds = |text: &str| text.trim().trim_matches('"').parse::<u64>().ok();
    let max_age = directives.filter(|(name, _)| name.eq_ignore_ascii_case("max-age")).find_map(|(_, value)| seconds(value));
    let age = headers.get(AGE).and_then(|value| value.to_str().ok()).and_then(seconds);
    Duration::from_secs(max_age.unwrap_or(0).saturating_sub(age.unwrap_or(0))).clamp(FRESH_MIN, FRESH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_future_are_of_no_age() {
        let at = |seconds: i64| Timestamp::from_millis(seconds * 1000);
        let set = KeySet { keys: HashMap::new(), fetched: at(10_000), fresh: Duration::from_secs(1000) };
        let states = |now: i64| (set.is_young(at(now)), set.is_fresh(at(now)), set.is_usable(at(now)));
        assert_eq!(states(9_999), (false, false, false));
        assert_eq!(states(10_000), (true, true, true));
        assert_eq!((states(10_899), states(10_900)), ((true, true, true), (false, true, true)));
        assert_eq!((states(10_999), states(11_000)), ((false, true, true), (false, false, true)));
        let old = 10_000 + 36 * 3600;
        assert_eq!((states(old - 1), states(old)), ((false, false, true), (false, false, false)));
    }

    #[test]
    fn keys_are_fresh_for_as_long_as_the_answer_says_within_bounds() {
        for (cache_control, age, seconds) in [
            (&["public, max-age=19302, must-revalidate, no-transform"][..], None, 19_302),
            (&["MAX-AGE=\"7200\""], Some("1200"), 6000),
            (&["public", "max-age=7200"], None, 7200),
            (&["max-age=7200"], Some("soon"), 7200),
            (&["max-age=10"], None, 300),
            (&["max-age=7200"], Some("9999"), 300),
            (&["max-age=99999999999"], None, 86_400),
            (&["max-age=-1"], None, 300),
            (&["s-maxage=7200, no-store"], None, 300),
            (&[], None, 300),
        ] {
            let mut headers = HeaderMap::new();
            for value in cache_control {
                headers.append(CACHE_CONTROL, value.parse().unwrap());
            }
            headers.extend(age.map(|age| (AGE, age.parse().unwrap())));
            assert_eq!(freshness(&headers).as_secs(), seconds, "{cache_control:?} {age:?}");
        }
    }
}
