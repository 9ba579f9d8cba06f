//! The domain of Quayside and the two ports every other crate stands on.
//!
//! Read in this order: [`run`] and [`state`] say what a run is and what may happen to it, [`store`] and [`queue`]
//! are the ports, `store/*` and `queue/*` their adapters, [`connect`] the one place that names adapters.
//! No HTTP and no container in here; the files `run`, `state`, `retry`, `ids` know no clock and no runtime either:
//! `now` is an argument.

pub mod agent;
pub mod clock;
pub mod config;
pub mod connect;
pub mod error;
pub mod ids;
pub mod queue;
pub mod retry;
pub mod run;
pub mod sandbox;
pub mod shutdown;
pub mod sqlite;
pub mod state;
pub mod store;
pub mod telemetry;
