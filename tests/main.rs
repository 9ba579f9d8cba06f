//! All tests that need more than one crate: one binary, so that it is linked once.
//!
//! `support` starts the real things, `conformance` holds one suite per port that every adapter passes, `scenarios`
//! speaks HTTP to a real process with real containers, `hostile` runs programs that a sandbox must contain.

mod conformance;
mod hostile;
mod scenarios;
mod support;
