//! The API over real connections, on the embedded store and queue in a temporary folder. There is no worker: tests
//! claim, append and finish by themselves, so every moment of a run can be held still.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at the first surprise; clippy does not see that the helpers are tests"
)]

mod support;

mod admin;
mod bodies;
mod contract;
mod conversations;
mod cors;
mod files;
mod idempotency;
mod identity;
mod service;
mod sockets;
mod streams;
mod tokens;
mod waits;
