//! What the agent is told and how its words are read: the two halves of the agent protocol.

mod decode;
mod events;

use quayside_shared::agent::{Agent, Input, Output};
use quayside_shared::clock::Timestamp;
use quayside_shared::run::Run;
use quayside_shared::store::Turn;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use decode::Utf8Decoder;
use events::Lines;

/// The request object of `input = "json"`, protocol 1.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    protocol: u32,
    run_id: &'a str,
    conversation_id: &'a str,
    user_id: &'a str,
    message: &'a str,
    history: Vec<Said<'a>>,
    attempt: u32,
    deadline_at: Timestamp,
}

#[derive(Serialize)]
struct Said<'a> {
    role: &'static str,
    content: &'a str,
}

/// The bytes for the agent's standard input; end of file follows them.
///
/// # Errors
/// Never in practice: every part is text.
pub fn request(agent: &Agent, run: &Run, history: &[Turn], deadline_at: Timestamp) -> serde_json::Result<Vec<u8>> {
    if agent.input == Input::Text {
        return Ok(run.message.clone().into_bytes());
    }
    let said = |role, content| Said { role, content };
    let mut line = serde_json::to_vec(&Request {
        protocol: 1,
        run_id: run.id.as_str(),
        conversation_id: run.conversation_id.as_str(),
        user_id: run.user_id.as_str(),
        message: &run.message,
        history: history
            .iter()
            .flat_map(|turn| {
                let reply = (!turn.text.is_empty()).then(|| said("assistant", turn.text.as_str()));
                std::iter::once(said("user", turn.message.as_str())).chain(reply)
            })
            .collect(),
        attempt: run.attempts.last().map_or(1, |attempt| attempt.number),
        deadline_at,
    })?;
    line.push(b'\n');
    Ok(line)
}

/// Tokens, as the agent counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Tokens {
    /// Read by the model.
    #[serde(alias = "inputTokens", default)]
    pub input_tokens: Option<u64>,
    /// Written by the model.
    #[serde(alias = "outputTokens", default)]
    pub output_tokens: Option<u64>,
}

/// Why a reply cannot be taken although the agent exited 0. Fit for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidReply(&'static str);

/// What is left to say when the output has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ending {
    /// Text to be appended to the reply.
    pub rest: String,
    /// The whole reply as the agent stated it at the end, when that is not what it streamed.
    pub stated: Option<String>,
    /// Whether output over the limit was dropped.
    pub truncated: bool,
    /// Bytes on standard output, the dropped ones included.
    pub bytes: u64,
    /// As the agent reports them.
    pub tokens: Tokens,
}

/// Reads standard output as it comes and gives out reply text. Bounded: whatever is written over the agent's
/// `output_limit` is counted and dropped.
#[derive(Debug)]
pub struct ReplyReader {
    mode: Mode,
    decoder: Utf8Decoder,
    /// What was given out, to compare a stated reply with.
    kept: String,
    limit: usize,
    truncated: bool,
    bytes: u64,
    result: Option<events::ResultEvent>,
}

#[derive(Debug)]
enum Mode {
    Text,
    Events(Lines),
    /// One object at the end, collected up to what a JSON string of `limit` bytes can need.
    Json(Vec<u8>),
}

/// The longest JSON writing of `limit` bytes of text (`\u00xx` each) with its surroundings, within reason.
const fn json_bound(limit: usize) -> usize {
    let bound = limit.saturating_mul(6).saturating_add(64 << 10);
    if bound > 64 << 20 { 64 << 20 } else { bound }
}

impl ReplyReader {
    /// A reader for one attempt of `agent`.
    #[must_use]
    pub fn new(agent: &Agent) -> Self {
        let limit = usize::try_from(agent.output_limit).unwrap_or(usize::MAX);
        let mode = match agent.output {
            Output::Text => Mode::Text,
            Output::Events => Mode::Events(Lines::new(json_bound(limit))),
            Output::Json => Mode::Json(Vec::new()),
        };
        Self { mode, decoder: Utf8Decoder::default(), kept: String::new(), limit, truncated: false, bytes: 0, result: None }
    }

    /// Takes what came and returns the reply text in it, possibly empty.
    pub fn read(&mut self, chunk: &[u8]) -> String {
        self.bytes += chunk.len() as u64;
        if self.result.is_some() {
            return String::new();
        }
        let mut text = String::new();
        match &mut self.mode {
            Mode::Text => text = self.decoder.decode(chunk),
            Mode::Json(collected) => {
                let room = json_bound(self.limit).saturating_sub(collected.len());
                collected.extend_from_slice(&chunk[..chunk.len().min(room)]);
                self.truncated |= chunk.len() > room;
            }
            Mode::Events(lines) => {
                let mut pieces = Vec::new();
                lines.feed(chunk, &mut pieces);
                self.take_pieces(pieces, &mut text);
            }
        }
        self.keep(text)
    }

    /// Whether the agent has said that its reply is complete: nothing that follows counts.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.result.is_some()
    }

    /// The output has ended.
    ///
    /// # Errors
    /// When the reply is not what the agent's `output` promises. `rest` of the text is lost then.
    pub fn end(mut self) -> Result<Ending, InvalidReply> {
        let mut text = String::new();
        let mut pieces = Vec::new();
        match &mut self.mode {
            Mode::Text => text = self.decoder.finish(),
            Mode::Json(collected) => {
                let collected = std::mem::take(collected);
                return self.end_json(&collected);
            }
            Mode::Events(lines) => lines.finish(&mut pieces),
        }
        if self.result.is_none() {
            self.take_pieces(pieces, &mut text);
            text.push_str(&self.decoder.finish());
        }
        let mut rest = self.keep(text);
        let result = self.result.take().unwrap_or_default();
        let stated = result.text.and_then(|stated| self.take_stated(stated, &mut rest));
        Ok(Ending { rest, stated, truncated: self.truncated, bytes: self.bytes, tokens: result.usage })
    }

    fn end_json(mut self, collected: &[u8]) -> Result<Ending, InvalidReply> {
        if self.truncated {
            return Err(InvalidReply("the agent wrote more than its output limit, and so no complete JSON object"));
        }
        let last_line = collected.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let object: Option<Map<String, Value>> = serde_json::from_slice(collected).or_else(|_| serde_json::from_slice(last_line)).ok();
        let reply = object.as_ref().and_then(|object| object.get("result").or_else(|| object.get("text"))).and_then(Value::as_str);
        let Some(reply) = reply else {
            return Err(InvalidReply("the agent exited 0, but did not end with one JSON object that has a text in `result` or `text`"));
        };
        let usage = object.as_ref().and_then(|object| object.get("usage").cloned());
        let tokens = usage.and_then(|usage| serde_json::from_value(usage).ok()).unwrap_or_default();
        let rest = self.keep(reply.to_owned());
        Ok(Ending { rest, stated: None, truncated: self.truncated, bytes: self.bytes, tokens })
    }

    fn take_pieces(&mut self, pieces: Vec<events::Piece>, text: &mut String) {
        for piece in pieces {
            match piece {
                events::Piece::Raw(bytes) => text.push_str(&self.decoder.decode(&bytes)),
                events::Piece::Delta(delta) => {
                    text.push_str(&self.decoder.finish());
                    text.push_str(&delta);
                }
                // What an agent is doing right now is not part of its reply.
                events::Piece::Status => {}
                events::Piece::Result(result) => {
                    text.push_str(&self.decoder.finish());
                    self.result = Some(result);
                    return;
                }
            }
        }
    }

    /// A reply stated as a whole: the part that was not streamed yet is appended, another text replaces.
    fn take_stated(&mut self, stated: String, rest: &mut String) -> Option<String> {
        match stated.strip_prefix(self.kept.as_str()) {
            Some(more) => {
                let more = self.keep(more.to_owned());
                rest.push_str(&more);
                None
            }
            None => {
                self.kept.clear();
                self.truncated = false;
                Some(self.keep(stated))
            }
        }
    }

    /// Cuts `text` to what still fits under the limit.
    fn keep(&mut self, mut text: String) -> String {
        let room = self.limit.saturating_sub(self.kept.len());
        if text.len() > room {
            self.truncated = true;
            text.truncate(text.floor_char_boundary(room));
            // A piece that was cut ends the reply: what follows must not close up to it.
            self.limit = self.kept.len() + text.len();
        }
        self.kept.push_str(&text);
        text
    }
}

#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;
