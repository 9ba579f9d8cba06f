//! One suite per port; every adapter passes it. A new adapter adds a fixture and one macro line.

mod queue;
mod runner;
mod store;
