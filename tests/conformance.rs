//! One suite for each port, applied to every adapter of it.

pub mod runner;
