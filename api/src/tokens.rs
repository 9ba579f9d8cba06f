//! Bearer tokens: from the text behind `Bearer` to the user it was given to. Firebase ID tokens are the one kind today;
//! another kind begins in [`Tokens::identify`].

mod claims;
mod keys;

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use quayside_shared::clock::{Clock, SystemClock};
use quayside_shared::config::Google;
use quayside_shared::ids::UserId;
use serde::Deserialize;
use serde::de::IgnoredAny;

use claims::Rules;
use keys::Keys;

/// A token of Firebase has one or two thousand; its custom claims are limited to a thousand.
const TOKEN_MAX: usize = 16 << 10;
/// Clocks of different machines differ by no more.
const LEEWAY_SECONDS: u64 = 30;
const GOOGLES_KEYS: &str = "https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com";

/// Where the public keys come from that ID tokens are verified with.
#[derive(Clone)]
pub struct KeySource {
    /// The address of a JWK set. Defaults to Google's for Firebase ID tokens.
    pub url: String,
    /// Tells how old keys and tokens are. Defaults to the machine's.
    pub clock: Arc<dyn Clock>,
}

impl Default for KeySource {
    fn default() -> Self {
        Self { url: GOOGLES_KEYS.to_owned(), clock: Arc::new(SystemClock) }
    }
}

/// What a token proves.
#[derive(Debug)]
pub(crate) struct Identity {
    /// On whose behalf its bearer acts.
    pub(crate) user: UserId,
}

/// Why a token proves nothing. For the log alone; holds nothing of the token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it is longer than {TOKEN_MAX} bytes")]
    TooLong,
    #[error("it is not three parts of base64url with JSON in the first two")]
    Malformed,
    #[error("its header has `{0}`")]
    Header(&'static str),
    #[error("its algorithm is not RS256")]
    Algorithm,
    #[error("it names no key, or none that Google publishes")]
    UnknownKey,
    #[error("the keys to verify it with cannot be fetched")]
    NoKeys,
    #[error("its signature is not the named key's")]
    Signature,
    #[error("its claim `{0}` is missing, of another type, or not as it must be")]
    Claim(&'static str),
}

/// What counts of a token's header.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, IgnoredAny>,
}

impl Header {
    /// What says where to find the key, brings it along, or must be understood. None of Firebase's tokens has any of it.
    const FOREIGN: [&str; 5] = ["crit", "jku", "jwk", "x5u", "x5c"];

    fn read(part: &str) -> Result<Self, Refused> {
        let header: Self = json(part)?;
        if let Some(name) = Self::FOREIGN.into_iter().find(|name| header.rest.contains_key(*name)) {
            return Err(Refused::Header(name));
        }
        // `at+jwt` is an access token, `logout+jwt` a notice: signed by the same keys, but no proof of who sends them.
        if header.typ.as_deref().is_some_and(|typ| !typ.eq_ignore_ascii_case("JWT")) {
            return Err(Refused::Header("typ"));
        }
        Ok(header)
    }
}

/// Verifies tokens.
pub(crate) struct Tokens {
    keys: Arc<Keys>,
    validation: Validation,
    rules: Rules,
    /// Whether the unsigned tokens of Google's Auth emulator are believed.
    emulated: bool,
    clock: Arc<dyn Clock>,
}

impl Tokens {
    /// Must be called inside a Tokio runtime: it starts fetching the keys, unless only an emulator's tokens can come.
    pub(crate) fn new(google: &Google, source: KeySource) -> Self {
        let rules = Rules::new(&google.project_id);
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[rules.issuer()]);
        validation.set_audience(&[rules.audience()]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_SECONDS;

        // Both: a variable that was left behind must not open a real project to whoever can write JSON.
        let emulated = google.auth_emulator.is_some() && google.is_demo();
        if emulated {
            tracing::warn!(project = google.project_id, "unsigned tokens of the Auth emulator are believed: anybody can claim to be any user");
        } else if google.auth_emulator.is_some() {
            tracing::warn!(
                project = google.project_id,
                "FIREBASE_AUTH_EMULATOR_HOST is set, but tokens of the emulator are refused: the project's id does not begin with demo-"
            );
        }
        let keys = Arc::new(Keys::new(source.url, Arc::clone(&source.clock)));
        if !emulated {
            keys.prepare();
        }
        Self { keys, validation, rules, emulated, clock: source.clock }
    }

    /// Whether tokens can be verified; `Err` says what is wrong, in words for an operator.
    pub(crate) async fn ready(&self) -> Result<(), String> {
        // Without the emulator's tokens nobody could come in.
        if self.emulated { Ok(()) } else { self.keys.ready().await }
    }

    /// Who the bearer of this token is.
    pub(crate) async fn identify(&self, bearer: &str) -> Result<Identity, Refused> {
        self.id_token(bearer).await.map(|user| Identity { user })
    }

    async fn id_token(&self, token: &str) -> Result<UserId, Refused> {
        if token.len() > TOKEN_MAX {
            return Err(Refused::TooLong);
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(Refused::Malformed);
        };
        let header = Header::read(header)?;
        match header.alg.as_str() {
            "RS256" => self.verify(token, header.kid.as_deref()).await?,
            "none" if self.emulated && signature.is_empty() => {}
            _ => return Err(Refused::Algorithm),
        }
        self.rules.user(payload, self.clock.now())
    }

    async fn verify(&self, token: &str, kid: Option<&str>) -> Result<(), Refused> {
        let key = self.keys.find(kid.ok_or(Refused::UnknownKey)?).await?;
        let verified = jsonwebtoken::decode::<IgnoredAny>(token, &key, &self.validation);
        verified.map(drop).map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => Refused::Claim("exp"),
            ErrorKind::ImmatureSignature => Refused::Claim("nbf"),
            ErrorKind::InvalidIssuer => Refused::Claim("iss"),
            ErrorKind::InvalidAudience => Refused::Claim("aud"),
            ErrorKind::InvalidAlgorithm => Refused::Algorithm,
            ErrorKind::InvalidSignature => Refused::Signature,
            // Everything else is about the form; the library's words may repeat the token's.
            _ => Refused::Malformed,
        })
    }
}

/// A part of a token.
fn json<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, Refused> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| Refused::Malformed)
}
