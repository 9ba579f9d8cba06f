//! What the page has to know about this server before it asks it anything, and what it may therefore reach.

use bytes::Bytes;
use quayside_shared::config::{Auth, BackendKind, Config, Google};
use serde::Serialize;

/// Everything from here and nothing inline: what an agent prints could not run even if it became markup.
pub(super) const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Firebase Auth's own addresses.
const AUTH: [&str; 2] = ["https://identitytoolkit.googleapis.com", "https://securetoken.googleapis.com"];
const FIRESTORE: &str = "https://firestore.googleapis.com";
/// Sign-in with Google talks to its own frame through a script from here.
const GOOGLE_SCRIPTS: &str = "https://apis.google.com";
/// An emulator asks for a key and takes any.
const EMULATOR_KEY: &str = "emulator";

/// `/web/config.js`, whose embedded file says what each field means.
#[derive(Debug, Serialize)]
pub(super) struct PageSettings<'a> {
    auth: &'static str,
    firebase: Option<Firebase<'a>>,
    firestore: Option<Firestore<'a>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Firebase<'a> {
    sdk: &'a str,
    project_id: &'a str,
    api_key: &'a str,
    auth_domain: Option<&'a str>,
    emulator: Option<String>,
}

#[derive(Debug, Serialize)]
struct Firestore<'a> {
    database: &'a str,
    emulator: Option<String>,
}

impl<'a> PageSettings<'a> {
    /// What the page needs on this server; `None` where the page's own file says it all.
    pub(super) fn new(config: &'a Config) -> Option<Self> {
        if config.api.auth != Auth::Tokens {
            return None;
        }
        let google = &config.google;
        // The API believes the emulator's tokens for such projects only.
        let emulator = google.auth_emulator.as_deref().filter(|_| google.is_demo()).map(emulator_address);
        let api_key = google.firebase_api_key.as_deref().or_else(|| emulator.as_ref().map(|_| EMULATOR_KEY));
        let firebase = api_key.map(|api_key| Firebase {
            sdk: google.firebase_sdk.trim_end_matches('/'),
            project_id: &google.project_id,
            api_key,
            auth_domain: google.firebase_auth_domain.as_deref(),
            emulator,
        });
        let listens = firebase.is_some() && config.backend.kind == BackendKind::Google;
        let firestore = listens.then(|| Firestore::new(google));
        Some(Self { auth: "tokens", firebase, firestore })
    }

    /// The module that the page imports.
    pub(super) fn module(&self) -> Bytes {
        // Cannot fail: the keys are texts.
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("export const config = {json};\n").into()
    }

    /// The page's policy with the addresses that these settings make it use, and no others.
    pub(super) fn policy(&self) -> String {
        let Some(firebase) = &self.firebase else { return PAGE_POLICY.to_owned() };
        let mut scripts = vec![origin(firebase.sdk)];
        let mut connects = Vec::new();
        match &firebase.emulator {
            Some(emulator) => connects.push(origin(emulator)),
            None => connects.extend(AUTH.map(|address| Some(address.to_owned()))),
        }
        if let Some(firestore) = &self.firestore {
            connects.push(firestore.emulator.as_deref().map_or_else(|| Some(FIRESTORE.to_owned()), origin));
        }
        let mut frames = Vec::new();
        if let Some(domain) = firebase.auth_domain {
            scripts.push(Some(GOOGLE_SCRIPTS.to_owned()));
            frames.push(origin(&format!("https://{domain}")));
            // The frame of the emulator's stand-in for Google.
            frames.extend(firebase.emulator.as_deref().map(origin));
        }
        let with = |directive: &str, sources: Vec<Option<String>>| {
            sources.into_iter().flatten().fold(directive.to_owned(), |directive, source| format!("{directive} {source}"))
        };
        let mut policy = PAGE_POLICY
            .replace("script-src 'self'", &with("script-src 'self'", scripts))
            .replace("connect-src 'self'", &with("connect-src 'self'", connects));
        if !frames.is_empty() {
            policy = format!("{policy}; {}", with("frame-src", frames));
        }
        policy
    }
}

impl<'a> Firestore<'a> {
    fn new(google: &'a Google) -> Self {
        Self { database: &google.database, emulator: google.firestore_emulator.as_deref().map(emulator_address) }
    }
}

/// Where a browser on this machine finds an emulator: one that listens everywhere says so with an address that is none.
fn emulator_address(host: &str) -> String {
    let host = match host.rsplit_once(':') {
        Some(("0.0.0.0" | "[::]", port)) => format!("127.0.0.1:{port}"),
        _ => host.to_owned(),
    };
    format!("http://{host}")
}

/// `scheme://host[:port]` of an address. What could end a source and begin another one in the policy is no origin.
fn origin(address: &str) -> Option<String> {
    let (scheme, rest) = address.split_once("://")?;
    let host = rest.split('/').next()?;
    let valid = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c));
    (valid && matches!(scheme, "http" | "https")).then(|| format!("{scheme}://{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(change: impl FnOnce(&mut Config)) -> Config {
        let mut config = Config::load(None, []).unwrap();
        change(&mut config);
        config
    }

    fn tokens(change: impl FnOnce(&mut Config)) -> Config {
        config(|config| {
            config.api.auth = Auth::Tokens;
            change(config);
        })
    }

    fn directive<'a>(policy: &'a str, name: &str) -> Option<&'a str> {
        policy.split("; ").find_map(|directive| directive.strip_prefix(name)?.strip_prefix(' '))
    }

    #[test]
    fn where_nobody_signs_in_the_policy_and_the_file_stay_as_they_are() {
        assert!(PageSettings::new(&config(|_| ())).is_none());
        let google = config(|config| {
            config.backend.kind = BackendKind::Google;
            config.google.firebase_api_key = Some("key".to_owned());
        });
        assert!(PageSettings::new(&google).is_none());
        let unset = tokens(|_| ());
        let settings = PageSettings::new(&unset).unwrap();
        assert_eq!(settings.module(), "export const config = {\"auth\":\"tokens\",\"firebase\":null,\"firestore\":null};\n");
        assert_eq!(settings.policy(), PAGE_POLICY);
    }

    #[test]
    fn in_production_the_page_reaches_googles_addresses_and_no_others() {
        let config = tokens(|config| {
            config.backend.kind = BackendKind::Google;
            config.google.project_id = "my-project".to_owned();
            config.google.firebase_api_key = Some("key".to_owned());
            config.google.firestore_emulator = None;
        });
        let settings = PageSettings::new(&config).unwrap();
        let policy = settings.policy();
        assert_eq!(directive(&policy, "script-src"), Some("'self' https://www.gstatic.com"));
        assert_eq!(
            directive(&policy, "connect-src"),
            Some("'self' https://identitytoolkit.googleapis.com https://securetoken.googleapis.com https://firestore.googleapis.com")
        );
        assert_eq!(directive(&policy, "frame-src"), None);
        let stripped = policy
            .replace(" https://www.gstatic.com", "")
            .replace(" https://identitytoolkit.googleapis.com https://securetoken.googleapis.com https://firestore.googleapis.com", "");
        assert_eq!(stripped, PAGE_POLICY, "nothing else was loosened");
        assert_eq!(
            settings.module(),
            "export const config = {\"auth\":\"tokens\",\"firebase\":{\"sdk\":\"https://www.gstatic.com/firebasejs/12.6.0\",\
             \"projectId\":\"my-project\",\"apiKey\":\"key\",\"authDomain\":null,\"emulator\":null},\
             \"firestore\":{\"database\":\"(default)\",\"emulator\":null}};\n"
        );
    }

    #[test]
    fn without_firestore_the_page_does_not_reach_it() {
        let config = tokens(|config| config.google.firebase_api_key = Some("key".to_owned()));
        let settings = PageSettings::new(&config).unwrap();
        assert!(settings.firestore.is_none());
        assert!(!settings.policy().contains("firestore"));
    }

    #[test]
    fn sign_in_with_google_needs_its_script_and_its_frame() {
        let config = tokens(|config| {
            config.google.firebase_api_key = Some("key".to_owned());
            config.google.firebase_auth_domain = Some("my-project.firebaseapp.com".to_owned());
        });
        let policy = PageSettings::new(&config).unwrap().policy();
        assert_eq!(directive(&policy, "script-src"), Some("'self' https://www.gstatic.com https://apis.google.com"));
        assert_eq!(directive(&policy, "frame-src"), Some("https://my-project.firebaseapp.com"));
    }

    #[test]
    fn emulators_stand_in_for_googles_addresses() {
        let config = tokens(|config| {
            config.backend.kind = BackendKind::Google;
            config.google.firebase_sdk = "http://127.0.0.1:5000/sdk/".to_owned();
            config.google.auth_emulator = Some("0.0.0.0:9099".to_owned());
            config.google.firestore_emulator = Some("localhost:8080".to_owned());
        });
        let settings = PageSettings::new(&config).unwrap();
        let policy = settings.policy();
        assert_eq!(directive(&policy, "script-src"), Some("'self' http://127.0.0.1:5000"));
        assert_eq!(directive(&policy, "connect-src"), Some("'self' http://127.0.0.1:9099 http://localhost:8080"));
        let firebase = settings.firebase.unwrap();
        assert_eq!((firebase.sdk, firebase.api_key), ("http://127.0.0.1:5000/sdk", EMULATOR_KEY));
    }

    #[test]
    fn the_auth_emulator_of_a_real_project_is_not_used() {
        let real = |key: Option<&str>| {
            tokens(|config| {
                config.google.project_id = "my-project".to_owned();
                config.google.firebase_api_key = key.map(str::to_owned);
                config.google.auth_emulator = Some("127.0.0.1:9099".to_owned());
            })
        };
        assert!(PageSettings::new(&real(None)).unwrap().firebase.is_none());
        assert!(PageSettings::new(&real(Some("key"))).unwrap().firebase.unwrap().emulator.is_none());
    }

    #[test]
    fn no_address_slips_another_source_or_directive_into_the_policy() {
        for bad in ["https://a b", "https://a;script-src", "https://a'x", "https://*.a", "ftp://a", "https://", "a", "https://a,b"] {
            assert_eq!(origin(bad), None, "{bad}");
        }
        assert_eq!(origin("https://sdk.example:8443/firebase/12"), Some("https://sdk.example:8443".to_owned()));
    }
}
