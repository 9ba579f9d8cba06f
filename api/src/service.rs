//! The service itself: its name, its health, its metrics.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::future::{BoxFuture, FutureExt, join_all};
use http::HeaderMap;
use http::header::{CONTENT_TYPE, VARY};
use quayside_shared::error::chain;
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{self, ApiError, NOT_READY, Result};
use crate::page;
use crate::{App, Checked};

/// A check that takes longer has failed.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// What this is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Service)]
pub(crate) struct ServiceView {
    #[schema(value_type = String, example = "ok")]
    status: &'static str,
    #[schema(value_type = String, example = "api-server")]
    service: &'static str,
}

const SERVICE: ServiceView = ServiceView { status: "ok", service: "api-server" };

/// What this is.
///
/// JSON for API clients, the page for browsers.
#[utoipa::path(
    get, path = "/", tag = "service", operation_id = "root",
    responses(
        (status = 200, description = "JSON, or the page when `Accept` prefers `text/html`", content((ServiceView = "application/json"), (String = "text/html"))),
        error::BadRequest,
    )
)]
pub(crate) async fn root(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    if page::prefers_html(&headers) {
        return app.page.index(&headers);
    }
    ([(VARY, "Accept")], Json(SERVICE)).into_response()
}

/// Whether the process lives.
#[utoipa::path(
    get, path = "/livez", tag = "service", operation_id = "livez",
    responses((status = 200, body = ServiceView, description = "It does"), error::BadRequest)
)]
pub(crate) async fn livez() -> Json<ServiceView> {
    Json(SERVICE)
}

/// One condition of readiness.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Check)]
pub(crate) struct CheckView {
    #[schema(value_type = String, example = "store")]
    name: &'static str,
    ok: bool,
    /// What is wrong, or what an operator should know although nothing is; null when there is nothing to say.
    #[schema(required)]
    detail: Option<String>,
}

/// Whether this process should be sent requests.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Readiness)]
pub(crate) struct ReadinessView {
    #[schema(value_type = String, example = "ok")]
    status: &'static str,
    checks: Vec<CheckView>,
}

/// Whether this process should be sent requests.
#[utoipa::path(
    get, path = "/readyz", tag = "service", operation_id = "readyz",
    responses(
        (status = 200, body = ReadinessView, description = "It should"),
        (status = 503, body = ReadinessView, description = "It should not; the failing check is named"),
        error::BadRequest,
    )
)]
pub(crate) async fn readyz(State(app): State<Arc<App>>) -> Response {
    let deps = &app.deps;
    // The causes are for the log: anybody may ask this.
    let told = |error: quayside_shared::error::Error| {
        tracing::warn!(error = %chain(&error), "not ready");
        error.to_string()
    };
    let store = async { deps.store.ping().await.map(|()| None).map_err(told) }.boxed();
    let queue = async { deps.queue.ping().await.map(|()| None).map_err(told) }.boxed();
    let draining = deps.drain.is_cancelled();
    let drain = async { if draining { Err("the process is going down".to_owned()) } else { Ok(None) } }.boxed();
    let mut checks: Vec<(&'static str, BoxFuture<'_, Checked>)> = vec![("store", store), ("queue", queue), ("drain", drain)];
    checks.extend(deps.checks.iter().map(|check| (check.name, (check.check)())));
    let checks = join_all(checks.into_iter().map(|(name, check)| async move {
        let outcome = tokio::time::timeout(CHECK_TIMEOUT, check).await.unwrap_or_else(|_| Err("no answer within 3 seconds".to_owned()));
        let ok = outcome.is_ok();
        CheckView { name, ok, detail: outcome.unwrap_or_else(Some) }
    }))
    .await;
    let ready = checks.iter().all(|check| check.ok);
    let view = Json(ReadinessView { status: if ready { "ok" } else { "unavailable" }, checks });
    if ready { view.into_response() } else { (NOT_READY, view).into_response() }
}

/// Metrics in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "service", operation_id = "metrics",
    responses((status = 200, content_type = "text/plain", body = String, description = "All metrics of this process"), error::BadRequest, error::NotFound)
)]
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<Response> {
    let render = app.deps.metrics.as_ref().ok_or(ApiError::NotFound)?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render()).into_response())
}
