//! What a run left in its workspace: listed, and fetched one by one.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use quayside_shared::ids::RunId;
use quayside_shared::store::files::{FileEntry, FileList, FilePath};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::auth::Caller;
use crate::error::{self, ApiError, NOT_MODIFIED, Result};
use crate::params::Id;
use crate::runs::owned;

/// A file of a run.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = File)]
pub(crate) struct FileView {
    /// Where it is below `/workspace`.
    #[schema(example = "plots/result.png")]
    path: String,
    /// How long it is.
    bytes: u64,
    /// SHA-256 of its content, in hexadecimal.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    sha256: String,
}

/// What a run left in its workspace.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FileList)]
pub(crate) struct FileListView {
    /// In the order of their paths. Empty until the run has ended.
    files: Vec<FileView>,
    /// What was left out, counted by the reason: `symlink`, `hardlink`, `special` (pipes, sockets, devices), `owner`, `name`
    /// (not printable), `depth` (folders), `file_size`, `total_size`, `count`, `unreadable`, `not_stored`.
    #[schema(example = json!({"symlink": 1}))]
    skipped: BTreeMap<String, u64>,
    /// Whether a limit was met: there may be more than was counted.
    truncated: bool,
}

impl From<FileList> for FileListView {
    fn from(list: FileList) -> Self {
        let view = |FileEntry { path, bytes, sha256 }| FileView { path: path.into(), bytes, sha256 };
        Self {
            files: list.files.into_iter().map(view).collect(),
            skipped: list.skipped.into_iter().map(|(reason, count)| (reason.as_str().to_owned(), count)).collect(),
            truncated: list.truncated,
        }
    }
}

/// The files of a run.
///
/// What it left in `/workspace`, once it has ended by itself, at its time limit or by a cancellation. Regular files alone,
/// and not those that came with the message and are as they were.
#[utoipa::path(
    get, path = "/api/runs/{id}/files", tag = "runs", operation_id = "run_files", security(("user" = [])),
    params(("id" = String, Path, description = "The run")),
    responses(
        (status = 200, body = FileListView, description = "All of them; none until the run has ended"),
        error::BadRequest, error::Unauthenticated, error::NotFound, error::Failed, error::Overloaded,
    )
)]
pub(crate) async fn list(State(app): State<Arc<App>>, Caller(user): Caller, Id(id): Id<RunId>) -> Result<Json<FileListView>> {
    owned(&app, &user, &id).await?;
    let list = app.deps.store.files(&id).await?.ok_or(ApiError::NotFound)?;
    Ok(Json(list.into()))
}

/// A file of a run.
///
/// Its bytes as they are, to be saved and never shown by a browser: a stranger's program wrote them.
#[utoipa::path(
    get, path = "/api/runs/{id}/files/{path}", tag = "runs", operation_id = "run_file", security(("user" = [])),
    params(
        ("id" = String, Path, description = "The run"),
        ("path" = String, Path, description = "A path of the list; its slashes may be written as they are or as %2F"),
        ("If-None-Match" = Option<String>, Header, nullable = false, description = "An `ETag` that is here already"),
    ),
    responses(
        (status = 200, content_type = "application/octet-stream", description = "Its content", headers(
            ("Content-Disposition" = String, description = "`attachment`, with the file's name as RFC 8187 has it"),
            ("ETag" = String, description = "SHA-256 of the content"),
        )),
        (status = 304, description = "It is as the `If-None-Match` has it", headers(("ETag" = String, description = "SHA-256 of the content"))),
        error::BadRequest, error::Unauthenticated, error::NotFound, error::Failed, error::Overloaded,
    )
)]
pub(crate) async fn get(State(app): State<Arc<App>>, Caller(user): Caller, FileOf { run, path }: FileOf, headers: HeaderMap) -> Result<Response> {
    owned(&app, &user, &run).await?;
    let file = app.deps.store.file(&run, &path).await?.ok_or(ApiError::NotFound)?;
    let etag = header_value(&format!("\"{}\"", file.sha256))?;
    if headers.get_all(IF_NONE_MATCH).iter().any(|known| names(known, &etag)) {
        return Ok((NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    let answered = [
        (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (CONTENT_DISPOSITION, header_value(&disposition(path.name()))?),
        (ETAG, etag),
    ];
    Ok((answered, file.content).into_response())
}

fn header_value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| ApiError::Internal("a header cannot be written"))
}

/// Whether a list of entity tags has this one.
fn names(known: &HeaderValue, etag: &HeaderValue) -> bool {
    known.to_str().is_ok_and(|known| known.split(',').any(|tag| tag.trim().trim_start_matches("W/").as_bytes() == etag.as_bytes()))
}

/// The name is a stranger's: it goes in as bytes that no header can be broken with, and without what other systems take for
/// a folder.
fn disposition(name: &str) -> String {
    let mut header = "attachment; filename*=UTF-8''".to_owned();
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => header.push(char::from(byte)),
            b'\\' | b':' => header.push('_'),
            // Writing into a string cannot fail.
            _ => drop(write!(header, "%{byte:02X}")),
        }
    }
    header
}

/// The run and the file in the path. What is no path of a file is the path of none: 404.
pub(crate) struct FileOf {
    run: RunId,
    path: FilePath,
}

impl<S: Send + Sync> FromRequestParts<S> for FileOf {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let named = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Path(named) = named.map_err(|_| ApiError::NotFound)?;
        let mut words = named.into_iter().map(|(_, word)| word);
        let run = words.next().and_then(|id| id.parse().ok()).ok_or(ApiError::NotFound)?;
        let path: Vec<String> = words.collect();
        let path = path.join("/").parse().map_err(|_| ApiError::NotFound)?;
        Ok(Self { run, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_breaks_out_of_its_header() {
        assert_eq!(disposition("plot 1.png"), "attachment; filename*=UTF-8''plot%201.png");
        assert_eq!(disposition("\"; x=\r\n'\u{c4}"), "attachment; filename*=UTF-8''%22%3B%20x%3D%0D%0A%27%C3%84");
        assert_eq!(disposition("..\\..\\C:x"), "attachment; filename*=UTF-8''.._.._C_x");
        assert_eq!(disposition("%2e%2e%2f"), "attachment; filename*=UTF-8''%252e%252e%252f");
    }

    #[test]
    fn a_known_tag_is_found_in_a_list() {
        let etag = HeaderValue::from_static("\"ab\"");
        for (known, found) in [("\"ab\"", true), ("W/\"x\", W/\"ab\"", true), ("\"abc\"", false), ("ab", false)] {
            assert_eq!(names(&HeaderValue::from_static(known), &etag), found, "{known}");
        }
    }
}
