//! Submitting, reading and cancelling a run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::LOCATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use quayside_shared::ids::{RunId, UserId};
use quayside_shared::run::Run;
use quayside_shared::store::{NewRun, Submitted, Watch};
use quayside_shared::telemetry::names;
use tokio::time::Instant;

use crate::App;
use crate::auth::Caller;
use crate::body::json_body;
use crate::error::{self, ACCEPTED, ApiError, Result};
use crate::params::{Id, Params, idempotency_key, preferred_wait};
use crate::request::{self, SubmitRequest};
use crate::trace;
use crate::view::RunView;

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// A signal should never be lost; should one be, a waiting client is late by this much at most.
const SAFETY_INTERVAL: Duration = Duration::from_secs(15);

/// Send a message to an agent.
///
/// The answer 202 means that the run is stored: it survives a crash of anything from here on. `Prefer: wait=N` or
/// `?wait=N` answers with the finished run when it ends within N seconds.
#[utoipa::path(
    post, path = "/api/conversation", tag = "runs", operation_id = "submit", security(("user" = [])),
    params(
        ("wait" = Option<u64>, Query, nullable = false, minimum = 0, maximum = 60, description = "Seconds to wait for the end; counts before `Prefer`"),
        ("Prefer" = Option<String>, Header, nullable = false, description = "RFC 7240; `wait=N` up to 60 seconds, others are ignored", example = "wait=10"),
        ("Idempotency-Key" = Option<String>, Header, nullable = false, min_length = 1, max_length = 255, pattern = "^[!-~]{1,255}$", description = "The same key and body within 24 hours is the same run"),
    ),
    request_body(content = SubmitRequest, content_type = "application/json"),
    responses(
        (status = 200, body = RunView, description = "The finished run, when it was waited for", headers(
            ("Location" = String, description = "Where the run is"),
            ("Preference-Applied" = String, description = "`wait=N`"),
            ("Idempotency-Replayed" = String, description = "`true` when an earlier request with this key made the run"),
        )),
        (status = 202, body = RunView, description = "Accepted: the run so far", headers(
            ("Location" = String, description = "Where the run is"),
            ("Preference-Applied" = String, description = "`wait=N`, when it was waited for"),
            ("Idempotency-Replayed" = String, description = "`true` when an earlier request with this key made the run"),
        )),
        error::BadRequest, error::Unauthenticated, error::BodyTooSlow, error::Busy, error::BodyTooLarge, error::UnsupportedMediaType,
        error::Invalid, error::RateLimited, error::Failed, error::Overloaded,
    )
)]
pub(crate) async fn submit(State(app): State<Arc<App>>, Caller(user): Caller, params: Params, request: Request) -> Result<Response> {
    if app.deps.drain.is_cancelled() {
        return Err(ApiError::Draining);
    }
    let (parts, body) = request.into_parts();
    let key = idempotency_key(&parts.headers)?;
    let wait = params.wait()?.or_else(|| preferred_wait(&parts.headers));
    let body = json_body(&parts.headers, body, app.body_limit).await?;
    let new = request::parse(&body, user, key, &app.deps.config)?;
    let Submitted { run, replayed, waiting, wake: _ } = accept(&app, new, trace::context(&parts.headers)).await?;
    if !replayed {
        metrics::counter!(names::RUNS_SUBMITTED, "agent" => run.agent.to_string()).increment(1);
    }
    let mut headers = HeaderMap::with_capacity(3);
    headers.insert(LOCATION, header_value(&format!("/api/runs/{}", run.id))?);
    if replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    let Some(seconds) = wait else {
        return Ok((ACCEPTED, headers, Json(RunView::new(run, waiting))).into_response());
    };
    headers.insert(PREFERENCE_APPLIED, header_value(&format!("wait={seconds}"))?);
    let run = when_ended(&app, &run.id, Duration::from_secs(seconds)).await?;
    let ended = run.status.is_terminal();
    let view = Json(RunView::counted(app.deps.store.as_ref(), run).await?);
    Ok(if ended { (headers, view).into_response() } else { (ACCEPTED, headers, view).into_response() })
}

/// Stores the run and announces what may start. In a task of its own: a client that goes away must not come between.
pub(crate) async fn accept(app: &Arc<App>, new: NewRun, trace: BTreeMap<String, String>) -> Result<Submitted> {
    let app = Arc::clone(app);
    let accepting = tokio::spawn(async move {
        let mut submitted = app.deps.store.submit(new).await?;
        app.publisher.publish(submitted.wake.drain(..), &trace);
        Ok::<_, ApiError>(submitted)
    });
    accepting.await.map_err(|_| ApiError::Internal("a submission panicked"))?
}

/// A run.
///
/// `Prefer: wait=N` or `?wait=N` answers when it ends, or after N seconds with the run so far.
#[utoipa::path(
    get, path = "/api/runs/{id}", tag = "runs", operation_id = "run", security(("user" = [])),
    params(
        ("id" = String, Path, description = "The run"),
        ("wait" = Option<u64>, Query, nullable = false, minimum = 0, maximum = 60, description = "Seconds to wait for the end; counts before `Prefer`"),
        ("Prefer" = Option<String>, Header, nullable = false, description = "RFC 7240; `wait=N` up to 60 seconds, others are ignored", example = "wait=10"),
    ),
    responses(
        (status = 200, body = RunView, description = "The run", headers(("Preference-Applied" = String, description = "`wait=N`, when it was waited for"))),
        error::BadRequest, error::Unauthenticated, error::NotFound, error::Invalid, error::Failed, error::Overloaded,
    )
)]
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Caller(user): Caller,
    Id(id): Id<RunId>,
    params: Params,
    headers: HeaderMap,
) -> Result<Response> {
    let wait = params.wait()?.or_else(|| preferred_wait(&headers));
    let mut run = owned(&app, &user, &id).await?;
    let mut answered = HeaderMap::new();
    if let Some(seconds) = wait {
        answered.insert(PREFERENCE_APPLIED, header_value(&format!("wait={seconds}"))?);
        if !run.status.is_terminal() {
            run = when_ended(&app, &id, Duration::from_secs(seconds)).await?;
        }
    }
    Ok((answered, Json(RunView::counted(app.deps.store.as_ref(), run).await?)).into_response())
}

/// Cancel a run.
///
/// A queued run is `cancelled` at once; a running one is `cancelling` until its container is proven gone. A run that
/// has ended stays as it is.
#[utoipa::path(
    post, path = "/api/runs/{id}/cancel", tag = "runs", operation_id = "cancel", security(("user" = [])),
    params(("id" = String, Path, description = "The run")),
    responses(
        (status = 202, body = RunView, description = "The run, with what became of it so far"),
        error::BadRequest, error::Unauthenticated, error::NotFound, error::Failed, error::Overloaded,
    )
)]
pub(crate) async fn cancel(State(app): State<Arc<App>>, Caller(user): Caller, Id(id): Id<RunId>, headers: HeaderMap) -> Result<Response> {
    owned(&app, &user, &id).await?;
    let (acting, trace) = (Arc::clone(&app), trace::context(&headers));
    let cancelling = tokio::spawn(async move {
        let changed = acting.deps.store.cancel(&id).await?.ok_or(ApiError::NotFound)?;
        acting.publisher.publish(changed.wake, &trace);
        Ok::<_, ApiError>(changed.run)
    });
    let run = cancelling.await.map_err(|_| ApiError::Internal("a cancellation panicked"))??;
    Ok((ACCEPTED, Json(RunView::counted(app.deps.store.as_ref(), run).await?)).into_response())
}

/// The run, if it is the user's.
pub(crate) async fn owned(app: &App, user: &UserId, id: &RunId) -> Result<Run> {
    app.deps.store.run(id).await?.filter(|run| run.user_id == *user).ok_or(ApiError::NotFound)
}

/// The run when it has ended, or as it is after `wait` or when the process drains.
async fn when_ended(app: &App, id: &RunId, wait: Duration) -> Result<Run> {
    let deadline = Instant::now() + wait;
    let mut watch = app.deps.store.watch(id);
    loop {
        let run = app.deps.store.run(id).await?.ok_or(ApiError::NotFound)?;
        let now = Instant::now();
        if run.status.is_terminal() || now >= deadline || app.deps.drain.is_cancelled() {
            return Ok(run);
        }
        tokio::select! {
            biased;
            () = app.deps.drain.cancelled() => {}
            () = end(&mut watch) => {}
            () = tokio::time::sleep_until(deadline.min(now + SAFETY_INTERVAL)) => {}
        }
    }
}

async fn end(watch: &mut Watch) {
    while !watch.changed().await.ended {}
}

fn header_value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| ApiError::Internal("a header cannot be written"))
}
