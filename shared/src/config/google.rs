//! `[google]`: where Pub/Sub, Firestore and Firebase are.

use serde::Deserialize;

use super::source::{ConfigError, Source};
use super::{Backend, BackendKind};

/// Projects of this name exist on emulators only; Google's own tools keep to that, too.
const DEMO: &str = "demo-";
/// Where browsers get the Firebase SDK unless the operator serves a copy.
const FIREBASE_SDK: &str = "https://www.gstatic.com/firebasejs/12.6.0";

/// `[google]`, with the emulators that the environment names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Google {
    /// The project that everything is in. Defaults to `demo-quayside`, which exists on emulators only.
    pub project_id: String,
    /// The Pub/Sub topic that runs are announced on. Defaults to `runs`.
    pub topic: String,
    /// The workers' subscription. Defaults to `runs-worker`.
    pub subscription: String,
    /// The topic, and the subscription on it, for messages that cannot be handled. Defaults to `<topic>-dead-letters`.
    pub dead_letter_topic: String,
    /// The Firestore database. Defaults to `(default)`.
    pub database: String,
    /// Base address of the Firebase SDK that the page loads. Defaults to Google's content network.
    pub firebase_sdk: String,
    /// The web API key of the Firebase project. Public: it names the project, it grants nothing.
    pub firebase_api_key: Option<String>,
    /// Where Google sign-in goes, for example `my-project.firebaseapp.com`; without it there is sign-in by password only.
    pub firebase_auth_domain: Option<String>,
    /// `PUBSUB_EMULATOR_HOST`: `host:port`.
    #[serde(skip)]
    pub pubsub_emulator: Option<String>,
    /// `FIRESTORE_EMULATOR_HOST`: `host:port`.
    #[serde(skip)]
    pub firestore_emulator: Option<String>,
    /// `FIREBASE_AUTH_EMULATOR_HOST`: `host:port`.
    #[serde(skip)]
    pub auth_emulator: Option<String>,
}

impl Default for Google {
    fn default() -> Self {
        Self {
            project_id: "demo-quayside".to_owned(),
            topic: "runs".to_owned(),
            subscription: "runs-worker".to_owned(),
            dead_letter_topic: String::new(),
            database: "(default)".to_owned(),
            firebase_sdk: FIREBASE_SDK.to_owned(),
            firebase_api_key: None,
            firebase_auth_domain: None,
            pubsub_emulator: None,
            firestore_emulator: None,
            auth_emulator: None,
        }
    }
}

impl Google {
    /// Whether the project exists on emulators only.
    #[must_use]
    pub fn is_demo(&self) -> bool {
        self.project_id.starts_with(DEMO)
    }

    /// Takes the emulators' addresses from the environment, in the form their own tools print.
    pub(super) fn with_emulators(mut self, environment: &[(String, String)]) -> Self {
        let host = |name: &str| {
            let value = environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.trim())?;
            let value = value.strip_prefix("http://").unwrap_or(value).trim_end_matches('/');
            (!value.is_empty()).then(|| value.to_owned())
        };
        self.pubsub_emulator = host("PUBSUB_EMULATOR_HOST");
        self.firestore_emulator = host("FIRESTORE_EMULATOR_HOST");
        self.auth_emulator = host("FIREBASE_AUTH_EMULATOR_HOST");
        if self.dead_letter_topic.is_empty() {
            self.dead_letter_topic = format!("{}-dead-letters", self.topic);
        }
        self
    }

    /// What is wrong by itself or together with the rest.
    pub(super) fn check(&self, backend: &Backend, source: &Source) -> Result<(), ConfigError> {
        let wrong = |key: &str, what: &str| Err(source.error(key, what));
        if self.project_id.is_empty() || self.project_id.contains(['/', ' ']) {
            return wrong("google.project_id", "write the id of the Google Cloud project, for example \"my-project\"");
        }
        for (key, value) in
            [("google.topic", &self.topic), ("google.subscription", &self.subscription), ("google.dead_letter_topic", &self.dead_letter_topic)]
        {
            let valid = value.len() >= 3
                && value.len() <= 255
                && value.starts_with(|c: char| c.is_ascii_alphabetic())
                && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.~+%".contains(c));
            if !valid || value.starts_with("goog") {
                return wrong(
                    key,
                    "must be 3 to 255 letters, digits or -_.~+%, begin with a letter and not with \"goog\": Pub/Sub takes no other name",
                );
            }
        }
        if self.dead_letter_topic == self.topic || self.dead_letter_topic == self.subscription {
            return wrong(
                "google.dead_letter_topic",
                "must differ from google.topic and google.subscription, or dead letters would be delivered again",
            );
        }
        if !(self.firebase_sdk.starts_with("https://") || self.firebase_sdk.starts_with("http://")) {
            return wrong("google.firebase_sdk", "must begin with https:// (or http:// for a local copy)");
        }
        if backend.kind == BackendKind::Google && self.is_demo() {
            for (variable, value) in [("PUBSUB_EMULATOR_HOST", &self.pubsub_emulator), ("FIRESTORE_EMULATOR_HOST", &self.firestore_emulator)] {
                if value.is_none() {
                    return wrong(
                        "google.project_id",
                        &format!(
                            "`{}` exists on emulators only: set {variable}=host:port (`make run-google` starts both emulators), or name your own project",
                            self.project_id
                        ),
                    );
                }
            }
        }
        Ok(())
    }
}
