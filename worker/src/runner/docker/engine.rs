//! The connection to the engine: API negotiation, a limit on every call, and what a failed call means.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bollard::errors::Error as DockerError;
use bollard::{API_DEFAULT_VERSION, ClientVersion, Docker};

use super::super::{Fault, FaultKind};

/// For calls that only look something up.
pub(super) const QUICK: Duration = Duration::from_secs(10);
/// For calls that make the engine work: a start may take seconds on a loaded machine.
pub(super) const SLOW: Duration = Duration::from_secs(30);

/// Docker 20.10: the first with `CgroupnsMode` and control groups v2, and the oldest that is tested here.
const OLDEST_API: ClientVersion = ClientVersion { major_version: 1, minor_version: 41 };

/// An engine that need not be up. The first call negotiates the API version, and so does the first one after a failure,
/// because what comes back may be another version.
#[derive(Debug)]
pub(super) struct Engine {
    host: String,
    negotiated: Mutex<Option<Docker>>,
}

impl Engine {
    /// Only looks at how `host` is written.
    pub(super) fn new(host: String) -> Result<Self, Fault> {
        if ["unix://", "tcp://", "http://"].iter().any(|scheme| host.starts_with(scheme)) {
            Ok(Self { host, negotiated: Mutex::new(None) })
        } else {
            Err(Fault::new(FaultKind::Refused, "the Docker host must begin with `unix://`, `tcp://` or `http://`"))
        }
    }

    /// Whether the engine runs on this machine, as far as its address tells.
    pub(super) fn is_local(&self) -> bool {
        self.host.starts_with("unix://")
    }

    /// Its socket, when it runs on this machine.
    pub(super) fn socket(&self) -> Option<std::path::PathBuf> {
        self.host.strip_prefix("unix://").map(Into::into)
    }

    /// A client that speaks the engine's version.
    pub(super) async fn client(&self) -> Result<Docker, Fault> {
        if let Some(docker) = self.slot().clone() {
            return Ok(docker);
        }
        let seconds = SLOW.as_secs();
        let unconnected = if self.is_local() {
            Docker::connect_with_unix(&self.host, seconds, API_DEFAULT_VERSION)
        } else {
            Docker::connect_with_http(&self.host, seconds, API_DEFAULT_VERSION)
        };
        let docker = unconnected.map_err(|error| fault("connecting", error))?;
        let docker = self.call(QUICK, docker.negotiate_version()).await.map_err(|error| fault("asking for its version", error))?;
        let version = docker.client_version();
        if version < OLDEST_API {
            let sentence = format!("the container engine speaks API {version}; Docker 20.10 (API {OLDEST_API}) or newer is needed");
            return Err(Fault::new(FaultKind::Refused, sentence));
        }
        let docker = speak(docker, &version);
        *self.slot() = Some(docker.clone());
        Ok(docker)
    }

    /// Makes one call with a limit. A call that the engine did not answer makes the next [`Engine::client`] negotiate anew.
    pub(super) async fn call<T>(&self, limit: Duration, request: impl Future<Output = Result<T, DockerError>> + Send) -> Result<T, DockerError> {
        let answer = tokio::time::timeout(limit, request).await.unwrap_or(Err(DockerError::RequestTimeoutError));
        if let Err(error) = &answer {
            self.note_failure(error);
        }
        answer
    }

    /// Forgets what was negotiated when `error` means that the engine did not answer.
    pub(super) fn note_failure(&self, error: &DockerError) {
        if status(error).is_none() {
            *self.slot() = None;
        }
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Docker>> {
        self.negotiated.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes every request name the version. The client loses it on the way (it joins an absolute path to the versioned
/// address), and an engine answers a request without one as its newest version would.
fn speak(docker: Docker, version: &ClientVersion) -> Docker {
    let prefix = format!("/v{version}");
    docker.with_request_modifier(move |mut request| {
        let address = request.uri();
        if let (Some(scheme), Some(authority), Some(path)) = (address.scheme_str(), address.authority(), address.path_and_query())
            && !path.as_str().starts_with("/v1.")
            && let Ok(versioned) = format!("{scheme}://{authority}{prefix}{path}").parse()
        {
            *request.uri_mut() = versioned;
        }
        request
    })
}

/// The HTTP status of an answer that says no; `None` when there was no answer.
pub(super) const fn status(error: &DockerError) -> Option<u16> {
    match error {
        DockerError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// A failed call that nothing better is known about: 400 is a refusal, everything else is the engine's own trouble. What
/// the engine said goes into the source, for the log: it may name paths of the host.
pub(super) fn fault(doing: &str, error: DockerError) -> Fault {
    let fault = match status(&error) {
        Some(400) => Fault::new(FaultKind::Refused, format!("the container engine refuses this container ({doing})")),
        Some(_) => Fault::new(FaultKind::Engine, format!("the container engine failed ({doing})")),
        None => Fault::new(FaultKind::Engine, format!("the container engine does not answer ({doing})")),
    };
    fault.with_source(error)
}
