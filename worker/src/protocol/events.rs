//! Lines of `output = "events"`: one JSON object each, or reply text.

use serde::Deserialize;

use super::Tokens;

/// What a stretch of output turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// No event: reply text, bytes as they came.
    Raw(Vec<u8>),
    /// Text to append.
    Delta(String),
    /// What the agent is doing.
    Status,
    /// The end of the reply.
    Result(ResultEvent),
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ResultEvent {
    pub(super) text: Option<String>,
    pub(super) usage: Tokens,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    Delta {
        text: String,
    },
    Status {
        #[serde(rename = "text")]
        _text: String,
    },
    Result {
        #[serde(default)]
        text: Option<String>,
        #[serde(default)]
        usage: Option<Tokens>,
    },
}

/// Splits output into lines, holding back only what may still become an event.
#[derive(Debug)]
pub(super) struct Lines {
    line: Vec<u8>,
    /// The current line is known to be reply text: it goes out as it comes.
    raw: bool,
    /// A longer line is no event, whatever it begins with.
    max: usize,
}

impl Lines {
    pub(super) const fn new(max: usize) -> Self {
        Self { line: Vec::new(), raw: false, max }
    }

    pub(super) fn feed(&mut self, mut chunk: &[u8], pieces: &mut Vec<Piece>) {
        while !chunk.is_empty() {
            let newline = chunk.iter().position(|byte| *byte == b'\n');
            let (part, rest) = chunk.split_at(newline.map_or(chunk.len(), |at| at + 1));
            chunk = rest;
            self.line.extend_from_slice(part);
            let begins = self.line.iter().find(|byte| !byte.is_ascii_whitespace());
            self.raw |= begins.is_some_and(|byte| *byte != b'{') || self.line.len() > self.max;
            if newline.is_some() {
                self.end_line(pieces);
            } else if self.raw {
                pieces.push(Piece::Raw(std::mem::take(&mut self.line)));
            }
        }
    }

    pub(super) fn finish(&mut self, pieces: &mut Vec<Piece>) {
        if !self.line.is_empty() {
            self.end_line(pieces);
        }
    }

    fn end_line(&mut self, pieces: &mut Vec<Piece>) {
        let line = std::mem::take(&mut self.line);
        let event = if self.raw { None } else { serde_json::from_slice::<Event>(&line).ok() };
        self.raw = false;
        pieces.push(match event {
            Some(Event::Delta { text }) => Piece::Delta(text),
            Some(Event::Status { .. }) => Piece::Status,
            Some(Event::Result { text, usage }) => Piece::Result(ResultEvent { text, usage: usage.unwrap_or_default() }),
            None => Piece::Raw(line),
        });
    }
}
