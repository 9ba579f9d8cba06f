//! A small client of the HTTP API, for the client commands.

use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use quayside_shared::config::Secret;
use serde_json::Value;

/// Talks to one server as one user.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    user: String,
    bearer: Option<Secret>,
}

/// One server-sent event.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct ServerEvent {
    pub(crate) id: Option<String>,
    pub(crate) event: String,
    pub(crate) data: String,
}

impl Client {
    pub(crate) fn new(url: &str, user: &str) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build().context("preparing the HTTP client")?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), user: user.to_owned(), bearer: None })
    }

    /// The same, with a key.
    pub(crate) fn with_bearer(self, key: &Secret) -> Self {
        Self { bearer: Some(key.clone()), ..self }
    }

    pub(crate) fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.as_user(self.http.post(format!("{}{path}", self.url)))
    }

    pub(crate) fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.as_user(self.http.get(format!("{}{path}", self.url)))
    }

    fn as_user(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        let request = request.header("X-User-Id", &self.user);
        match &self.bearer {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        }
    }

    /// Sends a request; an answer that is no success becomes an error in the server's own words.
    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<reqwest::Response> {
        let response = request.send().await.with_context(|| format!("no answer from {}; is `quayside up` running there?", self.url))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let problem: Value = response.json().await.unwrap_or_default();
        let words = problem["detail"].as_str().or(problem["title"].as_str()).unwrap_or("no explanation");
        bail!("{words} ({}, {})", problem["code"].as_str().unwrap_or("error"), status.as_u16())
    }

    /// Sends a request and reads JSON.
    pub(crate) async fn json(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        self.send(request).await?.json().await.context("the answer is not JSON; is this a Quayside server?")
    }

    /// Follows a run's events after `after`, until the stream ends or `handle` says stop. Returns the last id seen.
    pub(crate) async fn follow(
        &self,
        run: &str,
        after: Option<String>,
        mut handle: impl FnMut(ServerEvent) -> anyhow::Result<bool>,
    ) -> anyhow::Result<Followed> {
        let mut request = self.get(&format!("/api/runs/{run}/events"));
        if let Some(after) = &after {
            request = request.header("Last-Event-ID", after);
        }
        let mut bytes = self.send(request).await?.bytes_stream();
        let (mut parser, mut last) = (SseParser::default(), after);
        while let Some(chunk) = bytes.next().await {
            let Ok(chunk) = chunk else { break };
            for event in parser.feed(&chunk) {
                last = event.id.clone().or(last);
                if handle(event)? {
                    return Ok(Followed { last, ended: true });
                }
            }
        }
        Ok(Followed { last, ended: false })
    }
}

/// How far a stream was followed.
pub(crate) struct Followed {
    /// To resume after.
    pub(crate) last: Option<String>,
    /// Whether the handler said stop; otherwise the connection ended early.
    pub(crate) ended: bool,
}

/// The event stream format of the HTML standard, as far as the API uses it.
#[derive(Debug, Default)]
struct SseParser {
    pending: Vec<u8>,
    event: ServerEvent,
}

impl SseParser {
    fn feed(&mut self, chunk: &[u8]) -> Vec<ServerEvent> {
        self.pending.extend_from_slice(chunk);
        let mut events = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\n', '\r']);
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if !event.data.is_empty() {
                    events.push(event);
                }
            } else if let Some((field, value)) = line.split_once(':') {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match field {
                    "id" => self.event.id = Some(value.to_owned()),
                    "event" => value.clone_into(&mut self.event.event),
                    "data" => {
                        if !self.event.data.is_empty() {
                            self.event.data.push('\n');
                        }
                        self.event.data.push_str(value);
                    }
                    _ => {}
                }
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_cutting() {
        let stream = ": hello\nid: 1\nevent: delta\ndata: {\"text\":\"ä\"}\n\n\nid: 2\r\nevent: result\r\ndata: a\r\ndata: b\r\n\r\n".as_bytes();
        for cut in 1..stream.len() {
            let mut parser = SseParser::default();
            let events: Vec<_> = stream.chunks(cut).flat_map(|chunk| parser.feed(chunk)).collect();
            assert_eq!(events.len(), 2, "cut {cut}");
            assert_eq!((events[0].event.as_str(), events[0].data.as_str()), ("delta", "{\"text\":\"ä\"}"));
            assert_eq!((events[1].id.as_deref(), events[1].data.as_str()), (Some("2"), "a\nb"));
        }
    }
}
