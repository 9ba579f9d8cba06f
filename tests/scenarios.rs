//! HTTP to a real process with real containers: what a user of the contract sees.

mod attempts;
mod cancel;
mod command_line;
mod faults;
mod order;
mod replies;
mod verdicts;
