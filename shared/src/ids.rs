//! Typed ids. Made ids are a prefix and 128 random bits in base62: random on purpose, because ordered ids make hot
//! spots in Firestore, and because nobody should learn anything from an id.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an id of the wanted kind. The message is meant for the caller who sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidId(&'static str);

/// 128 random bits in base62, always 22 characters.
fn random_suffix() -> String {
    let mut suffix = base62::encode(rand::random::<u128>());
    while suffix.len() < 22 {
        suffix.insert(0, '0');
    }
    suffix
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $check:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.into())) } else { Err(InvalidId($rule)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn is_word(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

id!(
    /// One message of a user and its reply. Always made by us.
    RunId,
    |text| text.strip_prefix("run_").is_some_and(|rest| rest.len() == 22 && rest.bytes().all(|b| b.is_ascii_alphanumeric())),
    "a run id is `run_` and 22 letters or digits"
);
id!(
    /// An ordered list of runs of one user. Made by us, or chosen by the client; unique per user only.
    ConversationId,
    |text| is_word(text, 64),
    "must be 1 to 64 letters, digits, `_` or `-`"
);
id!(
    /// Who a run belongs to, as the identity provider or the trusted header names them.
    UserId,
    |text| (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()),
    "must be 1 to 128 visible ASCII characters"
);
id!(
    /// The name of an agent in the configuration.
    AgentName,
    |text| is_word(text, 64),
    "must be 1 to 64 letters, digits, `_` or `-`"
);
id!(
    /// One life of one worker process. A restarted worker is another worker.
    WorkerId,
    |text| is_word(text, 64),
    "must be 1 to 64 letters, digits, `_` or `-`"
);

id!(
    /// A dead letter: the id of its run, or one made from the message.
    DeadLetterId,
    |text| is_word(text, 64),
    "a dead letter's id is that of its run, or `msg_` and letters and digits"
);

impl From<&RunId> for DeadLetterId {
    fn from(id: &RunId) -> Self {
        Self(std::sync::Arc::clone(&id.0))
    }
}

impl DeadLetterId {
    /// `msg_` and the first 12 bytes of `digest` in hexadecimal.
    pub(crate) fn of_message(digest: &[u8]) -> Self {
        let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        Self(format!("msg_{hex}").into())
    }
}

impl RunId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("run_{}", random_suffix()).into())
    }
}

impl ConversationId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("conv_{}", random_suffix()).into())
    }
}

impl WorkerId {
    /// A new random id: `worker_` and 128 bits, so that two lives of a worker are never taken for one.
    #[must_use]
    pub fn random() -> Self {
        Self(format!("worker_{}", random_suffix()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_ids_are_valid_and_differ() {
        let (a, b) = (RunId::random(), RunId::random());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse::<RunId>().unwrap(), a);
        assert_eq!(a.as_str().len(), 26);
        assert!(ConversationId::random().as_str().starts_with("conv_"));
    }

    #[test]
    fn bad_ids_are_refused() {
        for bad in ["", "run_", "run_short", "run_../../../../../etc/pass", "RUN_0123456789012345678901", "conv_0123456789012345678901"] {
            assert!(bad.parse::<RunId>().is_err(), "{bad}");
        }
        for bad in ["", "a b", "a/b", "..", "ä", "a\0", &"x".repeat(65)] {
            assert!(bad.parse::<ConversationId>().is_err(), "{bad}");
        }
        for bad in ["", " ", "a b", "ä", "a\u{7f}", &"x".repeat(129)] {
            assert!(bad.parse::<UserId>().is_err(), "{bad}");
        }
        assert!("someone@example.org".parse::<UserId>().is_ok());
    }
}
