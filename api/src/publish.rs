//! One task that publishes for everybody: many wake-ups become one write to the queue.

use std::sync::Arc;

use quayside_shared::error::chain;
use quayside_shared::ids::RunId;
use quayside_shared::queue::{Message, Queue};
use tokio::sync::mpsc;

/// Messages in one call of the queue.
const GROUP_MAX: usize = 500;
/// Messages that may wait for a queue that hangs. What does not fit is left to the sweeper.
const WAITING_MAX: usize = 65_536;

/// Where runs that may start are announced.
#[derive(Clone)]
pub(crate) struct Publisher {
    sender: mpsc::Sender<RunId>,
}

impl Publisher {
    /// Starts the task; it ends when the last clone is dropped and everything is published.
    pub(crate) fn start(queue: Arc<dyn Queue>) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(publish_groups(queue, receiver));
        Self { sender }
    }

    /// Announces `runs`. A message is a hint: a lost one is repaired by the sweeper (invariant 2).
    pub(crate) fn publish(&self, runs: impl IntoIterator<Item = RunId>) {
        for run in runs {
            if let Err(error) = self.sender.try_send(run) {
                tracing::warn!(error = %error, "a message was not published; the sweeper will do it");
            }
        }
    }
}

async fn publish_groups(queue: Arc<dyn Queue>, mut receiver: mpsc::Receiver<RunId>) {
    let mut runs = Vec::with_capacity(GROUP_MAX);
    while receiver.recv_many(&mut runs, GROUP_MAX).await > 0 {
        let messages: Vec<Message> = runs.drain(..).map(Message::new).collect();
        if let Err(error) = queue.publish(&messages).await {
            tracing::warn!(count = messages.len(), error = %chain(&error), "messages were not published; the sweeper will do it");
        }
    }
}
