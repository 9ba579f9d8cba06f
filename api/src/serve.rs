//! The accept loop: what a client may do to a connection before and beside speaking HTTP properly.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

/// How long a client may take for a request's head, and how long a kept connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A new connection's first request must have come by then: the protocol is guessed before `HEAD_TIMEOUT` begins.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(12);
/// Bytes of a request's head.
const HEAD_MAX: usize = 64 << 10;
const CONNECTIONS_MAX: usize = 8192;
const STREAMS_PER_CONNECTION: u32 = 100;
/// Wait after a failed accept: it fails for want of file descriptors, and they come back with time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `router` on `listener` until `drain` is cancelled, then finishes what is under way and returns. `stop` ends
/// everything at once.
///
/// # Errors
/// None today; a listener that cannot accept is tried again.
pub async fn serve(listener: TcpListener, router: Router, drain: CancellationToken, stop: CancellationToken) -> io::Result<()> {
    let (room, connections) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), TaskTracker::new());
    while let Some((stream, permit)) = next(&listener, &room, &drain, &stop).await {
        connections.spawn(connection(stream, router.clone(), drain.clone(), stop.clone(), permit));
    }
    drop(listener);
    connections.close();
    tokio::select! {
        () = connections.wait() => {}
        () = stop.cancelled() => {}
    }
    Ok(())
}

/// The next connection, once there is room for it; `None` when there shall be none.
async fn next(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
    drain: &CancellationToken,
    stop: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let accepted = async {
        let permit = Arc::clone(room).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((stream, permit)),
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    tracing::warn!(error = %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        () = drain.cancelled() => None,
        accepted = accepted => accepted,
    }
}

async fn connection(stream: TcpStream, router: Router, drain: CancellationToken, stop: CancellationToken, _permit: OwnedSemaphorePermit) {
    // Small answers must not wait for the client's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let begun = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&begun);
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        seen.store(true, Ordering::Relaxed);
        let answer = router.clone().call(request);
        async move { answer.await as Result<_, Infallible> }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_MAX).keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .max_pending_accept_reset_streams(Some(20))
        .max_local_error_reset_streams(Some(100))
        .max_header_list_size(HEAD_MAX as u32)
        .keep_alive_interval(Some(Duration::from_secs(20)))
        .keep_alive_timeout(Duration::from_secs(20));
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut silent = std::pin::pin!(tokio::time::sleep(FIRST_REQUEST_TIMEOUT));
    let (mut draining, mut checked) = (false, false);
    loop {
        tokio::select! {
            // A connection that breaks is the client's affair.
            _ = serving.as_mut() => return,
            () = stop.cancelled() => return,
            () = drain.cancelled(), if !draining => {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
            () = silent.as_mut(), if !checked => {
                checked = true;
                if !begun.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    }
}
