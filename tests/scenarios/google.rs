//! What only the Google backend can go through: messages doubled and out of order, workers that die in the middle,
//! emulators that are restarted or frozen, several APIs.

mod away;
mod fleet;
mod foreign;
mod listener;
mod once;
mod replaced;
mod restart;
mod unreachable;

use serde_json::Value;

/// How the attempts of a run ended, as its contract tells them.
fn outcomes(run: &Value) -> Vec<&str> {
    run["attempts"].as_array().unwrap().iter().filter_map(|attempt| attempt["outcome"].as_str()).collect()
}

/// Completed with this reply, by one attempt.
fn assert_completed_once(run: &Value, text: &str) {
    assert_eq!((run["status"].as_str(), run["text"].as_str()), (Some("completed"), Some(text)), "{run}");
    assert_eq!(outcomes(run).iter().filter(|outcome| **outcome == "finished").count(), 1, "one visible end: {run}");
}
