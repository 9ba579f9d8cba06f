//! Writes the reply into the store while it comes: coalesced, in order, off the reader's path.

use std::sync::Arc;
use std::time::Duration;

use quayside_shared::error::chain;
use quayside_shared::store::{Fenced, Lease, LeaseLost, Store};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The delay before a failed append is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Takes text without waiting and appends it to the run, no more often than the store wants it. What waits is bounded
/// by the agent's output limit.
#[derive(Debug)]
pub struct ReplyWriter {
    text: mpsc::UnboundedSender<String>,
    task: JoinHandle<Fenced<()>>,
}

impl ReplyWriter {
    /// A writer under `lease`. When the lease turns out to be lost it cancels `lost` and writes nothing more.
    pub fn start(store: Arc<dyn Store>, lease: Lease, lost: CancellationToken) -> Self {
        let (text, mut texts) = mpsc::unbounded_channel::<String>();
        let task = tokio::spawn(async move {
            let interval = store.append_interval();
            let mut written = 0;
            while let Some(mut text) = texts.recv().await {
                let next = Instant::now() + interval;
                while let Ok(more) = texts.try_recv() {
                    text.push_str(&more);
                }
                append(&*store, &lease, &mut written, &text, &lost).await?;
                // Collect until the next write is due; the end of the reply does not wait for it.
                let mut collected = String::new();
                let open = loop {
                    tokio::select! {
                        biased;
                        () = tokio::time::sleep_until(next) => break true,
                        more = texts.recv() => match more {
                            Some(more) => collected.push_str(&more),
                            None => break false,
                        },
                    }
                };
                if !collected.is_empty() {
                    append(&*store, &lease, &mut written, &collected, &lost).await?;
                }
                if !open {
                    break;
                }
            }
            Ok(())
        });
        Self { text, task }
    }

    /// More reply text.
    pub fn push(&self, text: String) {
        if !text.is_empty() {
            // A closed channel means that the lease is lost, which `close` tells.
            let _ = self.text.send(text);
        }
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// When the lease was lost meanwhile.
    pub async fn close(self) -> Fenced<()> {
        drop(self.text);
        self.task.await.unwrap_or(Err(LeaseLost))
    }
}

/// Adds `text` behind the `written` bytes; asking again after an error adds nothing twice.
async fn append(store: &dyn Store, lease: &Lease, written: &mut u64, text: &str, lost: &CancellationToken) -> Fenced<()> {
    loop {
        if lost.is_cancelled() {
            return Err(LeaseLost);
        }
        match store.append(lease, *written, text).await {
            Ok(Ok(_standing)) => {
                *written += text.len() as u64;
                return Ok(());
            }
            Ok(Err(LeaseLost)) => {
                lost.cancel();
                return Err(LeaseLost);
            }
            Err(error) => {
                tracing::warn!(run_id = %lease.run_id, error = %chain(&error), "the reply cannot be written, trying again");
                tokio::select! {
                    biased;
                    () = lost.cancelled() => {}
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }
}
