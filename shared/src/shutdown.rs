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
            // Counted here: a drain may have begun for another reason, and then the first signal, which follows the notice
            // of a machine that is taken away, must not cut it short.
            let mut asked = false;
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if asked {
                    tracing::warn!("second signal: stopping at once");
                    handle.stop.cancel();
                } else {
                    asked = true;
                    tracing::info!("draining; a second signal stops at once");
                    handle.drain.cancel();
                }
            }
        });
        Ok(shutdown)
    }
}
