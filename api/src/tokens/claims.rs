//! What an ID token of one Firebase project must claim.

use std::time::Duration;

use quayside_shared::clock::Timestamp;
use quayside_shared::ids::UserId;
use serde_json::{Map, Value};

use super::{LEEWAY_SECONDS, Refused, json};

/// Firebase's tokens are good for an hour. One that was issued before this is none of theirs, whatever its `exp` says.
const AGE_MAX: Duration = Duration::from_hours(24);

/// The rules of one project.
///
/// They are checked of every token, also of those that the library has checked: it takes a list for `iss` and `aud` and
/// does not know `iat`, and an emulator's tokens it cannot check at all.
pub(super) struct Rules {
    project: String,
    issuer: String,
}

impl Rules {
    pub(super) fn new(project: &str) -> Self {
        Self { project: project.to_owned(), issuer: format!("https://securetoken.google.com/{project}") }
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(super) fn audience(&self) -> &str {
        &self.project
    }

    /// The user that the claims in `payload` name, if they hold at `now`.
    pub(super) fn user(&self, payload: &str, now: Timestamp) -> Result<UserId, Refused> {
        let claims = Claims(json(payload)?);
        let now = u64::try_from(now.as_millis() / 1000).unwrap_or(0);
        let latest_begin = now.saturating_add(LEEWAY_SECONDS);
        let holds = |name: &'static str, holds: bool| if holds { Ok(()) } else { Err(Refused::Claim(name)) };

        holds("iss", claims.text("iss")? == self.issuer)?;
        holds("aud", claims.text("aud")? == self.project)?;
        holds("exp", claims.seconds("exp")?.saturating_add(LEEWAY_SECONDS) > now)?;
        let issued = claims.seconds("iat")?;
        holds("iat", issued <= latest_begin && issued.saturating_add(AGE_MAX.as_secs()) > now)?;
        for name in ["nbf", "auth_time"] {
            holds(name, !claims.has(name) || claims.seconds(name)? <= latest_begin)?;
        }
        claims.text("sub")?.parse().map_err(|_| Refused::Claim("sub"))
    }
}

struct Claims(Map<String, Value>);

impl Claims {
    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn text(&self, name: &'static str) -> Result<&str, Refused> {
        self.0.get(name).and_then(Value::as_str).ok_or(Refused::Claim(name))
    }

    /// Since 1970, in whole seconds, as Firebase writes times.
    fn seconds(&self, name: &'static str) -> Result<u64, Refused> {
        self.0.get(name).and_then(Value::as_u64).ok_or(Refused::Claim(name))
    }
}
