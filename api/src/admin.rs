//! What operators see and do: dead letters and workers.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse, Response};
use http::header::LOCATION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use quayside_shared::clock::{Clock, SystemClock, Timestamp};
use quayside_shared::ids::{DeadLetterId, RunId};
use quayside_shared::run::Run;
use quayside_shared::store::files::RunFile;
use quayside_shared::store::{DeadLetter, DeadLetterReason, Idempotency, MultitaskStrategy, NewRun, WorkerReport};
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::App;
use crate::error::{self, ACCEPTED, ApiError, Result};
use crate::params::{Id, Params};
use crate::runs::accept;
use crate::trace;
use crate::view::{RunView, words};

/// Proof that the request carries the admin key.
pub(crate) struct Admin;

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self> {
        app.callers.admit_admin(&parts.headers, app.admin_key.as_ref()).await.map(|()| Self)
    }
}

words! {
    /// Why something was put aside.
    DeadLetterReasonView as DeadLetterReason of DeadLetterReason { Undecodable, UnknownRun, Poison, AttemptsExhausted }
}

/// A message or a run that no worker will try again by itself.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = DeadLetter)]
pub(crate) struct DeadLetterView {
    /// The id of its run, or one made from the message.
    #[schema(example = "run_3tN9ODEQZULWsziabijmT5")]
    id: String,
    /// Its run; null when the message names none.
    #[schema(required)]
    run_id: Option<String>,
    /// Why it was put aside.
    reason: DeadLetterReasonView,
    /// The same in words.
    detail: String,
    /// Whose run it is.
    #[schema(required)]
    user_id: Option<String>,
    /// Who was to answer.
    #[schema(required)]
    agent: Option<String>,
    /// How often the run was tried.
    attempts: u32,
    /// The beginning of an undecodable message, with what is not printable escaped.
    #[schema(required)]
    data: Option<String>,
    /// When it was put aside.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it will be deleted.
    #[schema(value_type = String, format = DateTime)]
    expire_at: Timestamp,
    /// The run that a redrive made of it.
    #[schema(required)]
    redriven_as: Option<String>,
    /// When that was.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    redriven_at: Option<Timestamp>,
}

impl From<DeadLetter> for DeadLetterView {
    fn from(letter: DeadLetter) -> Self {
        Self {
            id: letter.id.into(),
            run_id: letter.run_id.map(Into::into),
            reason: letter.reason.into(),
            detail: letter.detail,
            user_id: letter.user_id.map(Into::into),
            agent: letter.agent.map(Into::into),
            attempts: letter.attempts,
            data: letter.data,
            created_at: letter.created_at,
            expire_at: letter.expire_at,
            redriven_as: letter.redriven_as.map(Into::into),
            redriven_at: letter.redriven_at,
        }
    }
}

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = DeadLetterList)]
pub(crate) struct DeadLetterListView {
    /// The newest first.
    data: Vec<DeadLetterView>,
    /// `after` of the next page; null on the last.
    #[schema(required)]
    next_after: Option<String>,
}

/// The dead letters.
///
/// Messages that lead nowhere, and runs that were given up, as long as nobody has redriven them.
#[utoipa::path(
    get, path = "/api/admin/dead-letters", tag = "operators", operation_id = "dead_letters", security(("admin" = [])),
    params(
        ("after" = Option<String>, Query, nullable = false, description = "`nextAfter` of the page before"),
        ("limit" = Option<u32>, Query, nullable = false, minimum = 1, maximum = 100, description = "Rows of the page; 20 unless told"),
    ),
    responses(
        (status = 200, body = DeadLetterListView, description = "A page of them"),
        error::BadRequest, error::Unauthenticated, error::Forbidden, error::Invalid, error::Failed, error::Overloaded,
    )
)]
pub(crate) async fn dead_letters(State(app): State<Arc<App>>, _: Admin, params: Params) -> Result<Json<DeadLetterListView>> {
    let page = app.deps.store.dead_letters(params.cursor()?, params.limit()?).await?;
    let page = page.map_err(|_| ApiError::invalid("after", "is not a `nextAfter` of this list"))?;
    Ok(Json(DeadLetterListView { data: page.data.into_iter().map(Into::into).collect(), next_after: page.next_after }))
}

/// A dead letter.
#[utoipa::path(
    get, path = "/api/admin/dead-letters/{id}", tag = "operators", operation_id = "dead_letter", security(("admin" = [])),
    params(("id" = String, Path, description = "The dead letter: the id of its run, or `msg_…`")),
    responses(
        (status = 200, body = DeadLetterView, description = "The dead letter, redriven or not"),
        error::BadRequest, error::Unauthenticated, error::Forbidden, error::NotFound, error::Failed, error::Overloaded,
    )
)]
pub(crate) async fn dead_letter(State(app): State<Arc<App>>, _: Admin, Id(id): Id<DeadLetterId>) -> Result<Json<DeadLetterView>> {
    let letter = app.deps.store.dead_letter(&id).await?.ok_or(ApiError::NotFound)?;
    Ok(Json(letter.into()))
}

/// Try a run again that was given up.
///
/// A run ends once, so this makes a new run of the same message with its files, agent, conversation and user. Done twice, it answers
/// with the same new run.
#[utoipa::path(
    post, path = "/api/admin/dead-letters/{id}/redrive", tag = "operators", operation_id = "redrive", security(("admin" = [])),
    params(("id" = String, Path, description = "The run that was given up")),
    responses(
        (status = 202, body = RunView, description = "The new run", headers(("Location" = String, description = "Where the run is, for its user"))),
        error::BadRequest, error::Unauthenticated, error::Forbidden, error::NotFound, error::NothingToRedrive, error::RateLimited, error::Failed,
        error::Overloaded,
    )
)]
pub(crate) async fn redrive(State(app): State<Arc<App>>, _: Admin, Id(id): Id<DeadLetterId>, headers: HeaderMap) -> Result<Response> {
    let letter = app.deps.store.dead_letter(&id).await?.ok_or(ApiError::NotFound)?;
    let run = match (&letter.redriven_as, &letter.run_id, letter.reason) {
        (Some(made), ..) => app.deps.store.run(made).await?.ok_or(ApiError::NothingToRedrive)?,
        (None, Some(given_up), DeadLetterReason::Poison | DeadLetterReason::AttemptsExhausted) => {
            let given_up = app.deps.store.run(given_up).await?.ok_or(ApiError::NothingToRedrive)?;
            let files = app.deps.store.inputs(&given_up.id).await?;
            let run = accept(&app, again(&given_up, files), trace::context(&headers)).await?.run;
            app.deps.store.redriven(&id, &run.id).await?;
            tracing::info!(dead_letter = %id, run_id = %run.id, "redriven");
            run
        }
        (None, ..) => return Err(ApiError::NothingToRedrive),
    };
    let mut answered = HeaderMap::with_capacity(1);
    let place = HeaderValue::from_str(&format!("/api/runs/{}", run.id)).map_err(|_| ApiError::Internal("a header cannot be written"))?;
    answered.insert(LOCATION, place);
    Ok((ACCEPTED, answered, Json(RunView::counted(app.deps.store.as_ref(), run).await?)).into_response())
}

/// The same request once more. Its key makes a redrive that broke off halfway, and is done again, the same run; no
/// client can send it, because it has a space.
fn again(run: &Run, files: Vec<RunFile>) -> NewRun {
    let key = format!("redrive of {}", run.id);
    NewRun {
        id: RunId::random(),
        user_id: run.user_id.clone(),
        conversation_id: run.conversation_id.clone(),
        agent: run.agent.clone(),
        message: run.message.clone(),
        multitask: MultitaskStrategy::Enqueue,
        timeout: run.timeout(),
        queue_ttl: None,
        metadata: run.metadata.clone(),
        files,
        idempotency: Some(Idempotency { body_hash: Sha256::digest(key.as_bytes()).into(), key }),
    }
}

/// A worker, as it last told of itself.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Worker)]
pub(crate) struct WorkerView {
    /// This life of it: what a run's attempts name.
    id: String,
    /// The machine it is on.
    host: String,
    /// The version of Quayside.
    version: String,
    /// Whether it works.
    status: WorkerStatusView,
    /// Containers at once.
    slots: u32,
    /// How many of them are in use.
    busy: u32,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    started_at: Timestamp,
    /// When it was last heard of.
    #[schema(value_type = String, format = DateTime)]
    seen_at: Timestamp,
}

/// Whether a worker works.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = WorkerStatus)]
pub(crate) enum WorkerStatusView {
    /// It takes runs.
    Active,
    /// It takes no more runs and finishes or hands back what it has.
    Draining,
    /// It has said nothing for longer than a lease: its runs go to others.
    Lost,
}

/// The workers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkerList)]
pub(crate) struct WorkerListView {
    /// The oldest first.
    data: Vec<WorkerView>,
}

/// The workers that were heard of within the last hour.
#[utoipa::path(
    get, path = "/api/admin/workers", tag = "operators", operation_id = "workers", security(("admin" = [])),
    responses(
        (status = 200, body = WorkerListView, description = "All of them"),
        error::BadRequest, error::Unauthenticated, error::Forbidden, error::Failed, error::Overloaded,
    )
)]
pub(crate) async fn workers(State(app): State<Arc<App>>, _: Admin) -> Result<Json<WorkerListView>> {
    let now = SystemClock.now();
    let lease = app.deps.config.worker.lease.get();
    let view = |worker: WorkerReport| WorkerView {
        status: match worker.draining {
            _ if now.since(worker.seen_at) > lease => WorkerStatusView::Lost,
            true => WorkerStatusView::Draining,
            false => WorkerStatusView::Active,
        },
        id: worker.id.into(),
        host: worker.host,
        version: worker.version,
        slots: worker.slots,
        busy: worker.busy,
        started_at: worker.started_at,
        seen_at: worker.seen_at,
    };
    Ok(Json(WorkerListView { data: app.deps.store.workers().await?.into_iter().map(view).collect() }))
}
