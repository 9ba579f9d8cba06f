//! Conversations: ordered lists of runs.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use quayside_shared::clock::Timestamp;
use quayside_shared::ids::ConversationId;
use quayside_shared::store::{BadCursor, Conversation};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::auth::Caller;
use crate::error::{self, ApiError, NO_CONTENT, Result};
use crate::params::{Id, Params};
use crate::trace;
use crate::view::RunView;

/// A conversation as lists show it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Conversation)]
pub(crate) struct ConversationView {
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$", example = "conv_7Nw1yQkX5cB2mZs8RtLd0a")]
    id: String,
    /// The beginning of its first message.
    title: String,
    /// When its first run was accepted.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When its last run was accepted.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
    /// Runs in it.
    run_count: u64,
    /// Runs in it that are not finished.
    active_runs: u64,
}

impl From<Conversation> for ConversationView {
    fn from(conversation: Conversation) -> Self {
        let Conversation { id, title, created_at, updated_at, run_count, active_runs } = conversation;
        Self { id: id.into(), title, created_at, updated_at, run_count, active_runs }
    }
}

/// A page of conversations.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ConversationList)]
pub(crate) struct ConversationListView {
    /// The most recently used first.
    data: Vec<ConversationView>,
    /// The `after` of the next page; null on the last.
    #[schema(required)]
    next_after: Option<String>,
}

/// A page of runs.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = RunList)]
pub(crate) struct RunListView {
    /// In the order of their submission.
    data: Vec<RunView>,
    /// The `after` of the next page; null on the last.
    #[schema(required)]
    next_after: Option<String>,
}

fn bad_cursor(_: BadCursor) -> ApiError {
    ApiError::invalid("after", "must be the `nextAfter` of a page of this list")
}

/// Your conversations.
#[utoipa::path(
    get, path = "/api/conversations", tag = "conversations", operation_id = "conversations", security(("user" = [])),
    params(
        ("after" = Option<String>, Query, nullable = false, description = "`nextAfter` of the page before"),
        ("limit" = Option<u32>, Query, nullable = false, minimum = 1, maximum = 100, description = "At most so many; 20 without it"),
    ),
    responses(
        (status = 200, body = ConversationListView, description = "A page of them"),
        error::BadRequest, error::Unauthenticated, error::Invalid, error::Failed, error::Overloaded,
    )
)]
pub(crate) async fn list(State(app): State<Arc<App>>, Caller(user): Caller, params: Params) -> Result<Json<ConversationListView>> {
    let (after, limit) = (params.cursor()?, params.limit()?);
    let page = app.deps.store.conversations(&user, after, limit).await?.map_err(bad_cursor)?;
    Ok(Json(ConversationListView { data: page.data.into_iter().map(Into::into).collect(), next_after: page.next_after }))
}

/// A conversation.
#[utoipa::path(
    get, path = "/api/conversations/{id}", tag = "conversations", operation_id = "conversation", security(("user" = [])),
    params(("id" = String, Path, description = "The conversation")),
    responses(
        (status = 200, body = ConversationView, description = "The conversation"),
        error::BadRequest, error::Unauthenticated, error::NotFound, error::Failed, error::Overloaded,
    )
)]
pub(crate) async fn get(State(app): State<Arc<App>>, Caller(user): Caller, Id(id): Id<ConversationId>) -> Result<Json<ConversationView>> {
    let conversation = app.deps.store.conversation(&user, &id).await?.ok_or(ApiError::NotFound)?;
    Ok(Json(conversation.into()))
}

/// The runs of a conversation.
///
/// Those that a later run with `rollback` dropped are left out.
#[utoipa::path(
    get, path = "/api/conversations/{id}/runs", tag = "conversations", operation_id = "conversation_runs", security(("user" = [])),
    params(
        ("id" = String, Path, description = "The conversation"),
        ("after" = Option<String>, Query, nullable = false, description = "`nextAfter` of the page before"),
        ("limit" = Option<u32>, Query, nullable = false, minimum = 1, maximum = 100, description = "At most so many; 20 without it"),
    ),
    responses(
        (status = 200, body = RunListView, description = "A page of them"),
        error::BadRequest, error::Unauthenticated, error::NotFound, error::Invalid, error::Failed, error::Overloaded,
    )
)]
pub(crate) async fn runs(State(app): State<Arc<App>>, Caller(user): Caller, Id(id): Id<ConversationId>, params: Params) -> Result<Json<RunListView>> {
    let (after, limit) = (params.cursor()?, params.limit()?);
    let store = app.deps.store.as_ref();
    let page = store.conversation_runs(&user, &id, after, limit).await?.ok_or(ApiError::NotFound)?.map_err(bad_cursor)?;
    let mut data = Vec::with_capacity(page.data.len());
    for run in page.data {
        data.push(RunView::counted(store, run).await?);
    }
    Ok(Json(RunListView { data, next_after: page.next_after }))
}

/// Delete a conversation.
///
/// What runs in it is cancelled, and all of it is invisible at once.
#[utoipa::path(
    delete, path = "/api/conversations/{id}", tag = "conversations", operation_id = "delete_conversation", security(("user" = [])),
    params(("id" = String, Path, description = "The conversation")),
    responses(
        (status = 204, description = "It is gone"),
        error::BadRequest, error::Unauthenticated, error::NotFound, error::Failed, error::Overloaded,
    )
)]
pub(crate) async fn delete(State(app): State<Arc<App>>, Caller(user): Caller, Id(id): Id<ConversationId>, headers: HeaderMap) -> Result<Response> {
    let trace = trace::context(&headers);
    // In a task of its own: a client that goes away must not come between the deletion and the wake-ups.
    let deleting = tokio::spawn(async move {
        let wake = app.deps.store.delete_conversation(&user, &id).await?.ok_or(ApiError::NotFound)?;
        app.publisher.publish(wake, &trace);
        Ok::<_, ApiError>(())
    });
    deleting.await.map_err(|_| ApiError::Internal("a deletion panicked"))??;
    Ok(NO_CONTENT.into_response())
}
