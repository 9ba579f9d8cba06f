//! All tests that need more than one crate: one binary, so that it is linked once.
//!
//! `support` starts the real things, `conformance` holds one suite per port that every adapter passes, `scenarios`
//! speaks HTTP to a real process with real containers, `hostile` runs programs that a sandbox must contain, `model` goes
//! through every history of a small world of leases.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]
#![allow(clippy::print_stdout, reason = "tests print the figures they saw")]
#![allow(missing_docs, unreachable_pub, reason = "nothing here is anybody's interface")]

mod chaos;
mod checker;
mod conformance;
mod docs;
mod hostile;
mod model;
mod scenarios;
mod sim;
mod support;
