//! Every route.

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use quayside_shared::config::Config;
use utoipa::PartialSchema;
use utoipa::openapi::schema::Schema;
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, RefOr};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::ProblemView;
use crate::inputs::InputFile;
use crate::{App, Deps, KeySource, admin, agents, auth, conversations, edge, events, files, page, runs, service};

fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(base())
        .routes(routes!(service::root))
        .routes(routes!(service::livez))
        .routes(routes!(service::readyz))
        .routes(routes!(service::metrics))
        .routes(routes!(runs::submit))
        .routes(routes!(runs::get))
        .routes(routes!(runs::cancel))
        .routes(routes!(events::events))
        .routes(routes!(files::list))
        .routes(routes!(files::get))
        .routes(routes!(conversations::list))
        .routes(routes!(conversations::get, conversations::delete))
        .routes(routes!(conversations::runs))
        .routes(routes!(agents::list))
        .routes(routes!(admin::dead_letters))
        .routes(routes!(admin::dead_letter))
        .routes(routes!(admin::redrive))
        .routes(routes!(admin::workers))
}

/// Files for browsers, no part of the contract.
fn pages() -> Router<Arc<App>> {
    Router::new()
        .route("/web/{*path}", get(page::web))
        .route("/openapi.json", get(page::document))
        .route("/docs", get(page::docs_moved))
        .route("/docs/", get(page::docs_index))
        .route("/docs/{*path}", get(page::docs))
}

/// A path with slashes in it, written as they are. The document has the route with one parameter, as OpenAPI knows no other.
fn deep_paths() -> Router<Arc<App>> {
    Router::new().route("/api/runs/{id}/files/{path}/{*rest}", get(files::get))
}

/// The whole API on `deps`. Must be called inside a Tokio runtime: it starts the publisher, which lives as long as the
/// router or a request does.
pub fn router(deps: Deps) -> Router {
    router_with_keys(deps, KeySource::default())
}

/// [`router`] with tokens verified by the keys of another publisher than Google.
pub fn router_with_keys(deps: Deps, keys: KeySource) -> Router {
    Prepared::new(&deps.config).router(deps, keys)
}

/// What routers of one configuration have in common. Making it costs milliseconds, making a router from it does not:
/// for whoever makes them by the thousand, as a simulation of restarts does.
pub struct Prepared {
    routes: Router<Arc<App>>,
    pages: Arc<page::Pages>,
}

impl Prepared {
    /// Routes and pages for `config`.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let (routes, mut document) = routes().split_for_parts();
        describe_limits(&mut document, config);
        auth::describe(&mut document, Some(config.api.auth));
        let routes = routes.merge(pages()).merge(deep_paths()).fallback(edge::not_found).method_not_allowed_fallback(edge::method_not_allowed);
        Self { routes, pages: Arc::new(page::Pages::new(&document, config)) }
    }

    /// A router on `deps`, whose configuration must be the one this was prepared for. See [`router`].
    pub fn router(&self, deps: Deps, keys: KeySource) -> Router {
        let app = Arc::new(App::new(deps, keys, Arc::clone(&self.pages)));
        let mut router = self.routes.clone();
        if let Some(cors) = edge::cors(&app.deps.config.api.cors_origins) {
            router = router.layer(cors);
        }
        router.layer(from_fn_with_state(Arc::clone(&app), edge::edge)).with_state(app)
    }
}

/// `/livez`, `/readyz` and `/metrics` alone: for a process that answers nobody else. Must be called as [`router`] is.
pub fn probes(deps: Deps) -> Router {
    let pages = Arc::new(page::Pages::new(&openapi(), &deps.config));
    let app = Arc::new(App::new(deps, KeySource::default(), pages));
    Router::new()
        .route("/livez", get(service::livez))
        .route("/readyz", get(service::readyz))
        .route("/metrics", get(service::metrics))
        .fallback(edge::not_found)
        .with_state(app)
}

/// The OpenAPI document, without what depends on the configuration; `/openapi.json` has that too.
#[must_use]
pub fn openapi() -> OpenApi {
    let mut document = routes().split_for_parts().1;
    auth::describe(&mut document, None);
    document
}

fn base() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Quayside")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Send a message, an agent answers it in a container of its own. Every refusal is an `application/problem+json`."))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()));
    let components = ComponentsBuilder::new().schema("Problem", ProblemView::schema()).schema("InputFile", InputFile::schema());
    let tags = ["runs", "conversations", "agents", "operators", "service"].map(|name| TagBuilder::new().name(name).build());
    OpenApiBuilder::new().info(info).components(Some(components.build())).tags(Some(tags)).build()
}

/// Puts the configured limits into the schema of a submission.
fn describe_limits(document: &mut OpenApi, config: &Config) {
    let Some(components) = document.components.as_mut() else { return };
    let Some(RefOr::T(Schema::Object(request))) = components.schemas.get_mut("SubmitRequest") else { return };
    let mut property = |name: &str, change: &dyn Fn(&mut utoipa::openapi::Object)| {
        if let Some(RefOr::T(Schema::Object(object))) = request.properties.get_mut(name) {
            change(object);
        }
    };
    let message = usize::try_from(config.limits.message.bytes()).unwrap_or(usize::MAX);
    property("message", &|object| object.max_length = Some(message));
    let longest = config.agents.values().map(|agent| agent.timeout.as_secs()).max().unwrap_or(0);
    property("timeoutSeconds", &|object| object.maximum = Some(longest.into()));
    let names = || config.agents.keys().map(|name| serde_json::Value::from(name.as_str())).chain([serde_json::Value::Null]);
    property("agent", &|object| object.enum_values = Some(names().collect()));
}
