//! The only file that names HTTP statuses: every answer besides the plain 200, and the one shape of all refusals
//! (RFC 9457, `application/problem+json`).

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use quayside_shared::error::{Error, ErrorKind, chain};
use quayside_shared::store::SubmitError;
use serde::Serialize;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder, response::Response as ResponseDoc};
use utoipa::{IntoResponses, ToSchema};

/// The run was stored, or the cancellation noted.
pub(crate) const ACCEPTED: StatusCode = StatusCode::ACCEPTED;
/// Done, and nothing to show.
pub(crate) const NO_CONTENT: StatusCode = StatusCode::NO_CONTENT;
/// The client has this version of the file.
pub(crate) const NOT_MODIFIED: StatusCode = StatusCode::NOT_MODIFIED;
/// `/readyz` with a check that failed.
pub(crate) const NOT_READY: StatusCode = StatusCode::SERVICE_UNAVAILABLE;

/// Seconds after which an overloaded or draining server is worth another try.
const RETRY_SOON: u64 = 2;
/// Seconds after which a user's queue may have room again.
const RETRY_QUOTA: u64 = 5;
/// Seconds after which somebody may have repaired the store.
const RETRY_REPAIRED: u64 = 60;
/// A detail repeats what the client sent only this far.
const DETAIL_MAX_CHARS: usize = 400;
const FIELD_MAX_CHARS: usize = 100;

/// What a refusal looks like.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemView {
    /// Always `about:blank`: `code` is the machine's word.
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    kind: &'static str,
    /// The status in words.
    #[schema(value_type = String, example = "Unprocessable Entity")]
    title: Cow<'static, str>,
    /// The status, again.
    #[schema(minimum = 400, maximum = 599, example = 422)]
    status: u16,
    /// What is wrong and what would be right, for people.
    #[schema(value_type = String, example = "must be from 1 to 120")]
    detail: Cow<'static, str>,
    /// The stable machine word.
    #[schema(example = "invalid_request")]
    code: &'static str,
    /// The field, header or parameter at fault, when one is.
    #[schema(value_type = Option<String>, nullable = false, example = "timeoutSeconds")]
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
}

/// Why a request is refused. Says nothing of our insides; those go to the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{0}")]
    InvalidJson(String),
    #[error("{field}: {detail}")]
    InvalidRequest { field: String, detail: String },
    #[error("{header}: {detail}")]
    InvalidHeader { header: &'static str, detail: Cow<'static, str> },
    #[error("{0}")]
    BrokenBody(&'static str),
    #[error("{0}")]
    Unauthenticated(&'static str),
    #[error("{0}")]
    BadToken(&'static str),
    #[error("{0}")]
    Forbidden(&'static str),
    #[error("there is nothing here, or it is not yours")]
    NotFound,
    #[error("this route does not know the method")]
    MethodNotAllowed,
    #[error("the body did not arrive in time")]
    BodyTooSlow,
    #[error("the idempotency key was used with another body within the last 24 hours")]
    KeyReused,
    #[error("an earlier run of the conversation is not finished, and multitaskStrategy is `reject`")]
    ConversationBusy,
    #[error("there is no run to try again: the message named none, or the run was removed")]
    NothingToRedrive,
    #[error("the body must be at most {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error("{0}")]
    UnsupportedMediaType(&'static str),
    #[error("{limit} of your runs are waiting already; try again when one has started")]
    QueueFull { limit: u32 },
    #[error("{limit} of your event streams are open already; close one")]
    TooManyStreams { limit: u32 },
    #[error("the server is going down; try again")]
    Draining,
    #[error("more runs are waiting than this service takes; try again later")]
    Overloaded,
    #[error("{}", in_words(.0.kind()))]
    Store(#[source] Error),
    #[error("something went wrong on our side")]
    Internal(&'static str),
}

/// The result of a handler.
pub(crate) type Result<T, E = ApiError> = std::result::Result<T, E>;

impl ApiError {
    /// 422, naming the field or parameter at fault.
    pub(crate) fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::InvalidRequest { field: field.into(), detail: detail.into() }
    }

    /// 400, naming the header or parameter at fault.
    pub(crate) fn header(header: &'static str, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::InvalidHeader { header, detail: detail.into() }
    }

    fn parts(&self) -> (StatusCode, &'static str, Option<u64>) {
        match self {
            Self::InvalidJson(_) => (StatusCode::BAD_REQUEST, "invalid_json", None),
            Self::InvalidHeader { .. } => (StatusCode::BAD_REQUEST, "invalid_header", None),
            Self::BrokenBody(_) => (StatusCode::BAD_REQUEST, "invalid_body", None),
            Self::Unauthenticated(_) | Self::BadToken(_) => (StatusCode::UNAUTHORIZED, "unauthenticated", None),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden", None),
            Self::NothingToRedrive => (StatusCode::CONFLICT, "nothing_to_redrive", None),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found", None),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", None),
            Self::BodyTooSlow => (StatusCode::REQUEST_TIMEOUT, "request_timeout", None),
            Self::ConversationBusy => (StatusCode::CONFLICT, "conversation_busy", None),
            Self::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", None),
            Self::UnsupportedMediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", None),
            Self::InvalidRequest { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", None),
            Self::KeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", None),
            Self::QueueFull { .. } | Self::TooManyStreams { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limited", Some(RETRY_QUOTA)),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", Some(RETRY_SOON)),
            Self::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", Some(RETRY_QUOTA)),
            Self::Store(error) => match error.kind() {
                ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", Some(RETRY_SOON)),
                ErrorKind::Full => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", Some(RETRY_QUOTA)),
                ErrorKind::Corrupt => (StatusCode::SERVICE_UNAVAILABLE, "overloaded", Some(RETRY_REPAIRED)),
                ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", None),
            },
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal", None),
        }
    }

    fn field(&self) -> Option<String> {
        match self {
            Self::InvalidRequest { field, .. } => Some(shortened(field, FIELD_MAX_CHARS)),
            Self::InvalidHeader { header, .. } => Some((*header).to_owned()),
            Self::UnsupportedMediaType(_) => Some("Content-Type".to_owned()),
            Self::KeyReused => Some("Idempotency-Key".to_owned()),
            Self::Unauthenticated(_) => Some("X-User-Id".to_owned()),
            Self::BadToken(_) | Self::Forbidden(_) => Some("Authorization".to_owned()),
            _ => None,
        }
    }

    fn detail(&self) -> Cow<'static, str> {
        match self {
            Self::InvalidRequest { detail, .. } | Self::InvalidJson(detail) => shortened(detail, DETAIL_MAX_CHARS).into(),
            Self::InvalidHeader { detail, .. } => detail.clone(),
            other => other.to_string().into(),
        }
    }
}

/// What a client is told of a fault of the store: the rest is for the log.
const fn in_words(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unavailable => "the store does not answer now; try again",
        ErrorKind::Full => "the store has no room for more; what was accepted goes on; try again later",
        ErrorKind::Corrupt => "the store is damaged and takes nothing until it is repaired; try again later",
        ErrorKind::Internal => "something went wrong on our side",
    }
}

fn shortened(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::KeyReused => Self::KeyReused,
            SubmitError::ConversationBusy => Self::ConversationBusy,
            SubmitError::QueueFull { limit } => Self::QueueFull { limit },
            SubmitError::Overloaded { limit } => {
                tracing::debug!(limit, "a submission was refused: the queue is full");
                Self::Overloaded
            }
            SubmitError::Store(error) => Self::Store(error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match &self {
            Self::Store(error) if error.kind() == ErrorKind::Internal => tracing::error!(error = %chain(error), "a request failed in the store"),
            Self::Store(error) => tracing::warn!(error = %chain(error), "the store did not take a request"),
            Self::Internal(what) => tracing::error!(error = what, "a request failed"),
            _ => {}
        }
        let (status, code, retry_after) = self.parts();
        let title = status.canonical_reason().unwrap_or("Error").into();
        let problem = ProblemView { kind: "about:blank", title, status: status.as_u16(), detail: self.detail(), code, field: self.field() };
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if matches!(self, Self::BadToken(_)) {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // Cannot fail: the shape has nothing but texts and numbers.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        (status, headers, body).into_response()
    }
}

/// One kind of refusal in the document.
fn documented(status: StatusCode, text: &str, headers: &[(&str, Type, &str)]) -> BTreeMap<String, RefOr<ResponseDoc>> {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let mut response = ResponseBuilder::new().description(text).content("application/problem+json", content);
    for (name, kind, text) in headers {
        let schema = ObjectBuilder::new().schema_type(kind.clone()).build();
        response = response.header(*name, HeaderBuilder::new().schema(Some(schema)).description(Some(*text)).build());
    }
    BTreeMap::from([(status.as_u16().to_string(), response.build().into())])
}

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident = $status:ident, $text:literal $(, $header:literal: $kind:ident, $header_text:literal)?;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;
        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<ResponseDoc>> {
                documented(StatusCode::$status, $text, &[$(($header, Type::$kind, $header_text))?])
            }
        }
    )*};
}

problems! {
    /// Of every route: the head of the request is wrong, or its body is no JSON.
    BadRequest = BAD_REQUEST, "`invalid_header`, `invalid_json`, `invalid_body`: a header is wrong, or the body cannot be read";
    /// Of every route of a user.
    Unauthenticated = UNAUTHORIZED, "`unauthenticated`: no identity, or a bad one", "WWW-Authenticate": String, "`Bearer`, where a token is asked for";
    /// Of every route of operators.
    Forbidden = FORBIDDEN, "`forbidden`: the admin key is missing or wrong";
    /// Of redriving.
    NothingToRedrive = CONFLICT, "`nothing_to_redrive`: the message named no run, or the run was removed";
    /// Of every route of a thing.
    NotFound = NOT_FOUND, "`not_found`: it is not there, or it is another user's";
    /// Of routes with a body.
    BodyTooSlow = REQUEST_TIMEOUT, "`request_timeout`: the body did not arrive in time";
    /// Of submitting.
    Busy = CONFLICT, "`conversation_busy`: `multitaskStrategy` is `reject` and the conversation has an unfinished run";
    /// Of routes with a body.
    BodyTooLarge = PAYLOAD_TOO_LARGE, "`body_too_large`";
    /// Of routes with a body.
    UnsupportedMediaType = UNSUPPORTED_MEDIA_TYPE, "`unsupported_media_type`: not JSON, or compressed";
    /// Of routes with parameters or a body.
    Invalid = UNPROCESSABLE_ENTITY, "`invalid_request`, `idempotency_key_reused`: `field` names what is wrong";
    /// Of routes with a quota.
    RateLimited = TOO_MANY_REQUESTS, "`rate_limited`: over one of the user's quotas", "Retry-After": Integer, "Seconds until another try may succeed";
    /// Of every route that touches the store.
    Overloaded = SERVICE_UNAVAILABLE, "`overloaded`: too many runs wait, the store does not answer or is full, or the server is going down", "Retry-After": Integer, "Seconds until another try may succeed";
    /// Of every route that touches the store.
    Failed = INTERNAL_SERVER_ERROR, "`internal`: our fault";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failing_store_is_told_without_its_insides() {
        for (kind, status, code, retry) in [
            (ErrorKind::Unavailable, 503, "overloaded", true),
            (ErrorKind::Full, 503, "overloaded", true),
            (ErrorKind::Corrupt, 503, "overloaded", true),
            (ErrorKind::Internal, 500, "internal", false),
        ] {
            let error = Error::new(kind, "writing to /var/lib/secret.db").with_source(std::io::Error::other("disk sda1"));
            let response = ApiError::from(error).into_response();
            assert_eq!((response.status().as_u16(), response.headers().contains_key(RETRY_AFTER)), (status, retry));
            let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
            let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(problem["code"], code);
            let text = problem.to_string();
            assert!(!text.contains("secret") && !text.contains("sda1"), "{text}");
        }
    }
}
