//! A run as Server-Sent Events: what has happened after the client's last event, then what happens, then the result.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName};
use quayside_shared::error::chain;
use quayside_shared::ids::{RunId, UserId};
use quayside_shared::run::{RunEvent, RunEventKind, Status};
use quayside_shared::store::Watch;
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::auth::Caller;
use crate::error::{self, ApiError, NO_CONTENT, Result};
use crate::params::{Id, Params, one_header, sequence_number};
use crate::runs::owned;
use crate::view::{RunView, StatusView, WaitingView};

/// A comment goes out when nothing else did for so long: proxies and clients take silence for death.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Bytes that are written ahead of a slow reader; everything else stays in the store.
const CHUNK: usize = 32 << 10;

/// One event as a client's parser gives it.
#[derive(ToSchema)]
#[schema(as = RunEvent)]
#[expect(dead_code, reason = "only its schema is needed: events are written by hand")]
pub(crate) struct EventView {
    /// The run's sequence number.
    #[schema(pattern = "^[0-9]+$")]
    id: String,
    event: EventName,
    /// JSON: of `status` and `delta` as described above, of `result` the run.
    data: String,
}

/// What happened.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its schema is needed")]
enum EventName {
    Status,
    Delta,
    Result,
}

/// `event: status`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusEvent {
    sequence_number: u64,
    status: StatusView,
    /// Why it waits; null unless it is queued. Its place in the line is the run's to tell, not an event's: null.
    waiting: Option<WaitingView>,
}

/// `event: delta`
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DeltaEvent<'a> {
    sequence_number: u64,
    text: &'a str,
}

/// Follow a run.
///
/// `id:` is the run's sequence number. `event:` is `status` (`{"sequenceNumber","status","waiting"}`), `delta`
/// (`{"sequenceNumber","text"}`) or, last and whatever the outcome, `result` (the run). `queued` after `in_progress`
/// means that the attempt was lost and the reply starts over. A comment line comes every 15 seconds.
#[utoipa::path(
    get, path = "/api/runs/{id}/events", tag = "runs", operation_id = "events", security(("user" = [])),
    params(
        ("id" = String, Path, description = "The run"),
        ("after" = Option<u64>, Query, nullable = false, minimum = 0, description = "The last sequence number seen"),
        ("Last-Event-ID" = Option<u64>, Header, nullable = false, minimum = 0, description = "The same; counts before `after`"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = EventView, description = "The events after that number"),
        (status = 204, description = "The run has ended and its result was seen: nothing will follow"),
        error::BadRequest, error::Unauthenticated, error::NotFound, error::RateLimited, error::Failed, error::Overloaded,
    )
)]
pub(crate) async fn events(
    State(app): State<Arc<App>>,
    Caller(user): Caller,
    Id(id): Id<RunId>,
    params: Params,
    headers: HeaderMap,
) -> Result<Response> {
    // Both are checked, whichever counts.
    let (named, seen) = (params.after()?, last_event_id(&headers)?);
    let after = seen.or(named).unwrap_or(0);
    // Watched before it is read, so that nothing falls in between.
    let watch = app.deps.store.watch(&id);
    let run = owned(&app, &user, &id).await?;
    if run.status.is_terminal() && after >= run.sequence_number {
        return Ok(NO_CONTENT.into_response());
    }
    if app.deps.drain.is_cancelled() {
        return Err(ApiError::Draining);
    }
    let slot = app.streams.open(user, app.deps.config.limits.streams_per_user)?;
    let follower = Follower { app, id, after, watch, pending: VecDeque::new(), ended: false, _slot: slot };
    let body = Body::from_stream(stream::unfold(follower, |mut follower| async move {
        let chunk = follower.next().await?;
        Some((Ok::<_, Infallible>(chunk), follower))
    }));
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    Ok(([(CONTENT_TYPE, "text/event-stream"), (unbuffered, "no")], body).into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>> {
    const NAME: HeaderName = HeaderName::from_static("last-event-id");
    let text = one_header(headers, &NAME, "Last-Event-ID")?;
    text.map(|text| sequence_number(text, "Last-Event-ID")).transpose()
}

/// One client's place in one run.
struct Follower {
    app: Arc<App>,
    id: RunId,
    after: u64,
    watch: Watch,
    pending: VecDeque<RunEvent>,
    ended: bool,
    _slot: Slot,
}

impl Follower {
    /// The next bytes, asked for when the client has taken the last ones. `None` ends the stream; unless the result was
    /// sent, the client comes back with its last event's id.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.pending.is_empty() {
                return Some(self.written());
            }
            if self.ended {
                return None;
            }
            let read = self.app.deps.store.events(&self.id, self.after).await;
            // No run any more: its conversation was deleted.
            let events = self.told(read)??;
            if !events.events.is_empty() {
                self.pending = events.events.into();
                continue;
            }
            if events.ended {
                self.ended = true;
                return self.result().await;
            }
            tokio::select! {
                biased;
                () = self.app.deps.drain.cancelled() => return None,
                _ = self.watch.changed() => {}
                () = tokio::time::sleep(HEARTBEAT) => return Some(Bytes::from_static(b":\n\n")),
            }
        }
    }

    fn written(&mut self) -> Bytes {
        let mut chunk = Vec::new();
        while let Some(event) = self.pending.pop_front() {
            let sequence_number = event.sequence_number;
            match event.kind {
                RunEventKind::Status { status, waiting } => {
                    // An event is the same whoever reads it whenever: a place in the line is not.
                    let waiting = waiting.filter(|_| status == Status::Queued).map(WaitingView::uncounted);
                    frame(&mut chunk, "status", sequence_number, &StatusEvent { sequence_number, status: status.into(), waiting });
                }
                RunEventKind::Delta { text } => frame(&mut chunk, "delta", sequence_number, &DeltaEvent { sequence_number, text: &text }),
            }
            self.after = sequence_number;
            if chunk.len() >= CHUNK {
                break;
            }
        }
        chunk.into()
    }

    async fn result(&mut self) -> Option<Bytes> {
        let run = self.told(self.app.deps.store.run(&self.id).await)??;
        let sequence_number = run.sequence_number;
        let mut chunk = Vec::new();
        frame(&mut chunk, "result", sequence_number, &RunView::uncounted(run));
        Some(chunk.into())
    }

    fn told<T>(&self, read: quayside_shared::error::Result<T>) -> Option<T> {
        read.inspect_err(|error| tracing::error!(run_id = %self.id, error = %chain(error), "an event stream broke off")).ok()
    }
}

/// JSON has no raw line ends in it, so an agent's text cannot break the frame.
fn frame(chunk: &mut Vec<u8>, event: &str, sequence_number: u64, data: &impl Serialize) {
    chunk.extend_from_slice(format!("id: {sequence_number}\nevent: {event}\ndata: ").as_bytes());
    // Cannot fail: the data are texts and numbers, and a vector takes every write.
    let _ = serde_json::to_writer(&mut *chunk, data);
    chunk.extend_from_slice(b"\n\n");
}

/// Open streams by user.
#[derive(Clone, Default)]
pub(crate) struct Streams {
    open: Arc<Mutex<HashMap<UserId, u32>>>,
}

impl Streams {
    fn open(&self, user: UserId, limit: u32) -> Result<Slot> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(user.clone()).or_default();
        if *count >= limit {
            return Err(ApiError::TooManyStreams { limit });
        }
        *count += 1;
        drop(open);
        Ok(Slot { streams: self.clone(), user })
    }
}

/// One open stream; closed when it is dropped, however the client went away.
struct Slot {
    streams: Streams,
    user: UserId,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.streams.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = open.entry(self.user.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}
