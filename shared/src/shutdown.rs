//! How a process ends: SIGTERM or Ctrl-C asks it to drain, a second one stops it at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two steps of stopping.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Take nothing new, finish or hand back what is there.
    pub drain: CancellationToken,
    /// Stop now.
    pub stop: CancellationToken,
}

impl Shutdown {
    /// Listens for SIGTERM and SIGINT for as long as the process lives.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::default();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let handle = shutdown.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if handle.drain.is_cancelled() {
                    tracing::warn!("second signal: stopping at once");
                    handle.stop.cancel();
                } else {
                    tracing::info!("draining; a second signal stops at once");
                    handle.drain.cancel();
                }
            }
        });
        Ok(shutdown)
    }
}
