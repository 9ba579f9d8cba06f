//! Tokens signed by hand, with nothing of the library that verifies them, and a server that publishes keys.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RsaEncoding};
use aws_lc_rs::{hmac, rsa};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use quayside_api::KeySource;
use quayside_shared::clock::{Clock, ManualClock, SystemClock};
use quayside_shared::config::{Auth, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::{Answer, Server, answer, server_with};

pub(crate) const PROJECT: &str = "quayside-prod";

/// Published from the start.
pub(crate) static FIRST: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::new("first"));
/// Published later.
pub(crate) static SECOND: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::new("second"));
/// Never published.
pub(crate) static STRANGER: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::new("first"));

pub(crate) struct SigningKey {
    id: &'static str,
    pair: KeyPair,
}

impl SigningKey {
    fn new(id: &'static str) -> Self {
        Self { id, pair: KeyPair::generate(KeySize::Rsa2048).unwrap() }
    }

    fn public(&self) -> &rsa::PublicKey {
        self.pair.public_key()
    }

    pub(crate) fn jwk(&self) -> Value {
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (n, e) = (self.public().modulus(), self.public().exponent());
        let (n, e) = (number(n.big_endian_without_leading_zero()), number(e.big_endian_without_leading_zero()));
        json!({"kty": "RSA", "alg": "RS256", "use": "sig", "kid": self.id, "n": n, "e": e})
    }

    /// What `openssl` would write into a file, and what it would encode there.
    pub(crate) fn public_files(&self) -> [Vec<u8>; 3] {
        let der = AsDer::<PublicKeyX509Der<'_>>::as_der(self.public()).unwrap().as_ref().to_vec();
        let text = STANDARD.encode(&der);
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"));
        [pem.into_bytes(), der, self.public().modulus().big_endian_without_leading_zero().to_vec()]
    }

    pub(crate) fn header(&self) -> Value {
        json!({"alg": "RS256", "kid": self.id, "typ": "JWT"})
    }

    fn sign_with(&self, padding: &'static dyn RsaEncoding, header: &Value, claims: &str) -> String {
        let message = format!("{}.{}", part(header), URL_SAFE_NO_PAD.encode(claims));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign(padding, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Signed whatever the header says.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(header, &claims.to_string())
    }

    pub(crate) fn sign_text(&self, header: &Value, claims: &str) -> String {
        self.sign_with(&RSA_PKCS1_SHA256, header, claims)
    }

    pub(crate) fn sign_rs512(&self, header: &Value, claims: &Value) -> String {
        self.sign_with(&RSA_PKCS1_SHA512, header, &claims.to_string())
    }

    pub(crate) fn sign_ps256(&self, header: &Value, claims: &Value) -> String {
        self.sign_with(&RSA_PSS_SHA256, header, &claims.to_string())
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        self.sign(&self.header(), claims)
    }
}

pub(crate) fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// As the Auth emulator writes them.
pub(crate) fn unsigned(claims: &Value) -> String {
    format!("{}.{}.", part(&json!({"alg": "none", "typ": "JWT"})), part(claims))
}

pub(crate) fn hs256(secret: &[u8], header: &Value, claims: &Value) -> String {
    let message = format!("{}.{}", part(header), part(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// What the next fetch gets.
#[derive(Clone)]
pub(crate) struct Published {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
    /// Answers once this is cancelled.
    pub(crate) hold: Option<CancellationToken>,
}

impl Published {
    pub(crate) fn keys(keys: &[&SigningKey]) -> Self {
        let body = json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()}).to_string();
        Self { status: 200, headers: vec![("cache-control", "public, max-age=21600".to_owned())], body, hold: None }
    }
}

/// In Google's place.
pub(crate) struct KeyServer {
    pub(crate) address: SocketAddr,
    shared: Arc<(Mutex<Published>, AtomicUsize)>,
    stop: CancellationToken,
}

impl KeyServer {
    pub(crate) async fn start(published: Published) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shared, stop) = (Arc::new((Mutex::new(published), AtomicUsize::new(0))), CancellationToken::new());
        let router = axum::Router::new().fallback(publish).with_state(Arc::clone(&shared));
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            tokio::select! {
                served = axum::serve(listener, router) => served.unwrap(),
                () = stopped => {}
            }
        });
        Self { address, shared, stop }
    }

    pub(crate) fn publish(&self, published: Published) {
        *self.shared.0.lock().unwrap() = published;
    }

    pub(crate) fn fetches(&self) -> usize {
        self.shared.1.load(Ordering::SeqCst)
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn publish(State(shared): State<Arc<(Mutex<Published>, AtomicUsize)>>) -> Response {
    shared.1.fetch_add(1, Ordering::SeqCst);
    let Published { status, headers, body, hold } = shared.0.lock().unwrap().clone();
    if let Some(hold) = hold {
        hold.cancelled().await;
    }
    let mut response = (http::StatusCode::from_u16(status).unwrap(), body).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

/// The API in the `tokens` mode with the keys it fetches.
pub(crate) struct Stage {
    pub(crate) server: Server,
    pub(crate) keys: KeyServer,
    /// By which keys and tokens grow old.
    pub(crate) clock: Arc<ManualClock>,
}

pub(crate) async fn stage() -> Stage {
    stage_with(Published::keys(&[&FIRST]), |_| {}).await
}

pub(crate) async fn stage_with(published: Published, change: impl FnOnce(&mut Config)) -> Stage {
    let keys = KeyServer::start(published).await;
    let clock = Arc::new(ManualClock::new(SystemClock.now()));
    let source = KeySource { url: format!("http://{}/keys", keys.address), clock: clock.clone() };
    let server = server_with(|setup| {
        setup.config.api.auth = Auth::Tokens;
        setup.config.google.project_id = PROJECT.to_owned();
        setup.keys = source;
        change(&mut setup.config);
    })
    .await;
    Stage { server, keys, clock }
}

impl Stage {
    /// Seconds since 1970.
    pub(crate) fn now(&self) -> i64 {
        self.clock.now().as_millis() / 1000
    }

    pub(crate) fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    /// What Firebase puts into a token that it gives out now.
    pub(crate) fn claims(&self, user: &str) -> Value {
        self.claims_of(PROJECT, user)
    }

    pub(crate) fn claims_of(&self, project: &str, user: &str) -> Value {
        let now = self.now();
        json!({
            "iss": format!("https://securetoken.google.com/{project}"), "aud": project, "sub": user, "user_id": user,
            "iat": now, "exp": now + 3600, "auth_time": now - 86_400 * 90, "firebase": {"identities": {}, "sign_in_provider": "password"},
        })
    }

    /// A token that is as it should be.
    pub(crate) fn good(&self, key: &SigningKey) -> String {
        key.token(&self.claims("ann"))
    }

    /// A token that `change` makes wrong, signed with a key that is believed.
    pub(crate) fn claiming(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = self.claims("ann");
        change(&mut claims);
        FIRST.token(&claims)
    }

    /// The same about its header.
    pub(crate) fn headed(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut header = FIRST.header();
        change(&mut header);
        FIRST.sign(&header, &self.claims("ann"))
    }

    pub(crate) async fn ask(&self, token: &str) -> Answer {
        answer(self.request("GET", "/api/agents", token)).await
    }

    pub(crate) fn request(&self, method: &str, path: &str, token: &str) -> reqwest::RequestBuilder {
        self.server.client.request(method.parse().unwrap(), self.server.url(path)).header("authorization", format!("Bearer {token}"))
    }
}
