//! The HTTP API and the web page. Stands on the two ports of `quayside-shared` and knows no adapter and no worker.
//!
//! Read [`router`](mod@router) first: every route is on that page. Then one file per noun, `error` for everything that
//! can be answered besides success, and [`serve()`] for what happens below HTTP's semantics: timeouts and limits.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use futures::future::BoxFuture;
use quayside_shared::config::{Config, Secret};
use quayside_shared::ids::AgentName;
use quayside_shared::queue::Queue;
use quayside_shared::store::Store;
use tokio_util::sync::CancellationToken;

mod admin;
mod agents;
mod auth;
mod body;
mod conversations;
mod edge;
mod error;
mod events;
mod files;
mod inputs;
mod page;
mod params;
mod publish;
mod request;
mod router;
mod runs;
mod serve;
mod service;
mod stall;
mod tokens;
mod trace;
mod view;

pub use router::{Prepared, openapi, probes, router, router_with_keys};
pub use serve::serve;
pub use tokens::KeySource;

/// Renders the process's metrics as Prometheus text.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// The digest of each agent's image, as far as it is known; filled by whoever can ask the engine.
pub type ImageDigests = Arc<RwLock<HashMap<AgentName, Option<String>>>>;

/// What a check came to: `Err` says what is wrong, in words for an operator; `Ok` may say what they should know.
pub type Checked = Result<Option<String>, String>;

/// One more condition of `/readyz`, for example that the worker's engine answers.
#[derive(Clone)]
pub struct Check {
    /// How `/readyz` calls it.
    pub name: &'static str,
    /// Must answer within a second or two; it is cut off at three.
    pub check: Arc<dyn Fn() -> BoxFuture<'static, Checked> + Send + Sync>,
}

/// What the API stands on.
#[derive(Clone)]
pub struct Deps {
    /// The truth about every run.
    pub store: Arc<dyn Store>,
    /// Where messages for workers go.
    pub queue: Arc<dyn Queue>,
    /// The checked configuration.
    pub config: Arc<Config>,
    /// `/metrics`; without it the route answers 404.
    pub metrics: Option<RenderMetrics>,
    /// What `/api/agents` says about images.
    pub image_digests: ImageDigests,
    /// What lets operators in; without it `/api/admin` is closed.
    pub admin_key: Option<Secret>,
    /// Conditions of `/readyz` besides the store and the queue.
    pub checks: Vec<Check>,
    /// Whether only names of this machine's loopback are accepted as `Host`. Set it when the listener is bound to
    /// loopback in the `header` auth mode: it keeps foreign web pages out that point their own name at 127.0.0.1.
    pub loopback_hosts_only: bool,
    /// Cancelled when the process drains: `/readyz` turns red, nothing new is accepted, waits and streams end.
    pub drain: CancellationToken,
}

/// What every handler shares.
struct App {
    deps: Deps,
    callers: auth::Callers,
    admin_key: Option<auth::AdminKey>,
    publisher: publish::Publisher,
    page: Arc<page::Pages>,
    streams: events::Streams,
    body_limit: usize,
}

impl App {
    fn new(mut deps: Deps, keys: KeySource, page: Arc<page::Pages>) -> Self {
        let callers = auth::Callers::new(&deps.config, keys);
        deps.checks.extend(callers.check());
        Self {
            callers,
            admin_key: deps.admin_key.as_ref().map(auth::AdminKey::new),
            publisher: publish::Publisher::start(Arc::clone(&deps.queue)),
            page,
            streams: events::Streams::default(),
            body_limit: request::body_limit(&deps.config),
            deps,
        }
    }
}
