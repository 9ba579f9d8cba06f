//! One task that publishes for everybody: many wake-ups become one write to the queue.

use std::collections::BTreeMap;
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
    sender: mpsc::Sender<Message>,
}

impl Publisher {
    /// Starts the task; it ends when the last clone is dropped and everything is published.
    pub(crate) fn start(queue: Arc<dyn Queue>) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(publish_groups(queue, receiver));
        Self { sender }
    }

    /// Announces `runs`, caused by the request that `trace` belongs to. A message is a hint: a lost one is repaired by
    /// the sweeper (invariant 2).
    pub(crate) fn publish(&self, runs: impl IntoIterator<Item = RunId>, trace: &BTreeMap<String, String>) {
        for run_id in runs {
            if let Err(error) = self.sender.try_send(Message { run_id, trace: trace.clone() }) {
                tracing::warn!(error = %error, "a message was not published; the sweeper will do it");
            }
        }
    }
}

async fn publish_groups(queue: Arc<dyn Queue>, mut receiver: mpsc::Receiver<Message>) {
    let mut messages = Vec::with_capacity(GROUP_MAX);
    while receiver.recv_many(&mut messages, GROUP_MAX).await > 0 {
        if let Err(error) = queue.publish(&messages).await {
            tracing::warn!(count = messages.len(), error = %chain(&error), "messages were not published; the sweeper will do it");
        }
        messages.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use futures::future::BoxFuture;
    use quayside_shared::error::{Error, ErrorKind, Result};
    use quayside_shared::queue::Delivery;

    use super::*;

    /// Fails the first publish, and says how large the later ones are.
    struct Unsteady {
        calls: AtomicUsize,
        groups: mpsc::UnboundedSender<usize>,
    }

    // Written out because this crate has no other need of `async_trait`.
    impl Queue for Unsteady {
        fn publish<'a, 'b, 'c>(&'a self, messages: &'b [Message]) -> BoxFuture<'c, Result<()>>
        where
            'a: 'c,
            'b: 'c,
        {
            Box::pin(async move {
                if self.calls.fetch_add(1, Ordering::SeqCst) == 0 {
                    return Err(Error::new(ErrorKind::Unavailable, "the queue is away"));
                }
                let _ = self.groups.send(messages.len());
                Ok(())
            })
        }

        fn receive<'a, 'c>(&'a self) -> BoxFuture<'c, Result<Box<dyn Delivery>>>
        where
            'a: 'c,
        {
            Box::pin(std::future::pending())
        }

        fn stop_receiving<'a, 'c>(&'a self) -> BoxFuture<'c, ()>
        where
            'a: 'c,
        {
            Box::pin(async {})
        }

        fn ping<'a, 'c>(&'a self) -> BoxFuture<'c, Result<()>>
        where
            'a: 'c,
        {
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test]
    async fn a_failed_publish_is_left_behind_and_the_next_ones_go_in_groups() {
        let (groups, mut published) = mpsc::unbounded_channel();
        let publisher = Publisher::start(Arc::new(Unsteady { calls: AtomicUsize::new(0), groups }));
        publisher.publish([RunId::random()], &BTreeMap::new());
        // The task has taken the first before the others come.
        tokio::task::yield_now().await;
        publisher.publish((0..1200).map(|_| RunId::random()), &BTreeMap::new());
        let mut sizes = Vec::new();
        while sizes.iter().sum::<usize>() < 1200 {
            sizes.push(tokio::time::timeout(Duration::from_secs(10), published.recv()).await.expect("a group is published").unwrap());
        }
        assert_eq!(sizes, [500, 500, 200]);
    }
}
