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
use rustix::process::Resource;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::stall::Patient;

/// How long a client may take for a request's head, and how long a kept connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A new connection's first request must have come by then: the protocol is guessed before `HEAD_TIMEOUT` begins.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(12);
/// Bytes of a request's head. A token of 64 KiB is refused as a token, not as a head.
const HEAD_MAX: usize = 80 << 10;
/// A client that takes nothing for so long while there is something to send is gone.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECTIONS_MAX: u64 = 8192;
/// Open files that are kept for the database, the container engine and logs.
const FILES_KEPT: u64 = 256;
const STREAMS_PER_CONNECTION: u32 = 100;
/// Wait after a failed accept: it fails for want of file descriptors, and they come back with time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `router` on `listener` until `drain` is cancelled, then finishes what is under way and returns. `stop` ends
/// everything at once.
///
/// # Errors
/// None today; a listener that cannot accept is tried again.
pub async fn serve(listener: TcpListener, router: Router, drain: CancellationToken, stop: CancellationToken) -> io::Result<()> {
    let (room, connections) = (Arc::new(Semaphore::new(connections_max())), TaskTracker::new());
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

/// As many connections as there are files to be had for them; asks for as many as it may.
fn connections_max() -> usize {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = CONNECTIONS_MAX + FILES_KEPT;
    // `None` is no limit.
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted)));
        if let Err(error) = rustix::process::setrlimit(Resource::Nofile, limit) {
            tracing::warn!(error = %error, "the limit of open files cannot be raised");
            limit = rustix::process::getrlimit(Resource::Nofile);
        }
    }
    let files = limit.current.unwrap_or(wanted);
    let connections = files.saturating_sub(FILES_KEPT).clamp(64, CONNECTIONS_MAX);
    if connections < CONNECTIONS_MAX {
        tracing::warn!(connections, files, "few connections at once: raise the limit of open files (ulimit -n)");
    }
    usize::try_from(connections).unwrap_or(64)
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
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(Patient::new(stream, STALL_TIMEOUT)), service));
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
