//! The queue port: messages that name a run which may start.
//!
//! The store is the truth. A message is a hint: losing, doubling or reordering it is harmless, because claims are
//! fenced by the store and the sweeper publishes again what was lost.

pub mod pubsub;
pub mod sqlite;

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::error::Result;
use crate::ids::RunId;

/// What a message carries, and nothing else (invariant 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The run to start.
    pub run_id: RunId,
    /// W3C trace context of the request that caused it: `traceparent`, `tracestate`.
    pub trace: BTreeMap<String, String>,
}

impl Message {
    /// A message without trace context.
    #[must_use]
    pub const fn new(run_id: RunId) -> Self {
        Self { run_id, trace: BTreeMap::new() }
    }
}

/// What arrived and is no message of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecodable {
    /// The queue's own id of it; the same when it is delivered again.
    pub message_id: String,
    /// What is wrong with it.
    pub reason: String,
    /// What it holds.
    pub data: Vec<u8>,
}

/// A message in the hands of a worker. It stays leased, and is not given to anybody else, while this lives.
/// Dropping it without a word is the same as [`Delivery::nack`]: it comes back.
#[async_trait]
pub trait Delivery: Send + Sync {
    /// What was delivered.
    ///
    /// # Errors
    /// When it names no run: put it aside where people see it, then acknowledge it.
    fn message(&self) -> Result<&Message, &Undecodable>;

    /// The store no longer needs this message (invariant 3). An acknowledgement may be lost; then it comes again.
    async fn ack(self: Box<Self>);

    /// Give it to another worker, at once.
    async fn nack(self: Box<Self>);
}

/// At-least-once delivery of messages to workers.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Puts messages in. When it returns `Ok` they will be delivered unless the queue itself is lost; after an error
    /// any of them may or may not be in.
    async fn publish(&self, messages: &[Message]) -> Result<()>;

    /// Waits until a message is there and leases it. Never returns empty-handed and never polls: the caller decides
    /// with `select!` how long to wait. Cancel-safe: a dropped wait takes no message with it.
    async fn receive(&self) -> Result<Box<dyn Delivery>>;

    /// Leases no more messages; those that wait here go back at once. For a worker that drains.
    async fn stop_receiving(&self);

    /// Whether the queue answers.
    async fn ping(&self) -> Result<()>;
}
