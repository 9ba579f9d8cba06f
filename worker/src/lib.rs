//! The worker: consumes the queue, runs each attempt in a container of its own, writes the reply to the store.
//!
//! Read [`consumer`] for the loop, [`attempt`] for one delivery from top to bottom, [`pool`] for where its container comes
//! from, [`sweeper`] for the repair.

pub mod artefacts;
pub mod attempt;
pub mod consumer;
pub mod lease;
pub mod places;
pub mod pool;
pub mod preemption;
pub mod proof;
pub mod protocol;
mod reaper;
pub mod reply;
pub mod report;
pub mod runner;
mod sessions;
pub mod slots;
pub mod sweeper;
