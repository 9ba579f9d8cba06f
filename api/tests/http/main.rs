//! The API over real connections, on the embedded store and queue in a temporary folder. There is no worker: tests
//! claim, append and finish by themselves, so every moment of a run can be held still.

mod support;

mod bodies;
mod contract;
mod conversations;
mod cors;
mod idempotency;
mod identity;
mod service;
mod sockets;
mod streams;
mod waits;
