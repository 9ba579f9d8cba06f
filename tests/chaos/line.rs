//! A connection between two parts that can be cut, stalled in one direction, or slowed down.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// What becomes of the bytes on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Connections break, new ones break at once.
    Cut,
    /// What the near end says does not arrive, what the far end says does.
    NoWayOut,
    /// The other way round: a request has its effect and its answer stays out.
    NoWayBack,
    /// Everything arrives this much later.
    Slow(Duration),
}

/// Passes connections on until it is dropped.
pub struct Line {
    weather: watch::Sender<Weather>,
    _passing: AbortOnDropHandle<()>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

enum Near {
    Tcp(TcpListener),
    Unix(UnixListener),
}

#[derive(Clone)]
enum Far {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// Whoever connects while nobody listens waits for the next who does.
    Held(PathBuf),
}

impl Near {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| no_delay(stream)),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Box::new(stream) as Box<dyn Stream>),
        }
    }
}

impl Far {
    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(address) => TcpStream::connect(address).await.map(no_delay),
            Self::Unix(path) => UnixStream::connect(path).await.map(|stream| Box::new(stream) as Box<dyn Stream>),
            Self::Held(path) => loop {
                if let Ok(stream) = UnixStream::connect(path).await {
                    break Ok(Box::new(stream));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            },
        }
    }
}

impl Line {
    /// From a free port on loopback to `far`.
    pub async fn to(far: SocketAddr) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = listener.local_addr().unwrap();
        (Self::open(Near::Tcp(listener), Far::Tcp(far)), near)
    }

    /// From the socket `near`, which is made, to the socket `far`.
    pub fn between(near: &Path, far: PathBuf) -> Self {
        Self::open(Near::Unix(UnixListener::bind(near).unwrap()), Far::Unix(far))
    }

    /// The same as systemd holds the engine's socket: to the near end the engine is only ever slow.
    pub fn held(near: &Path, far: PathBuf) -> Self {
        Self::open(Near::Unix(UnixListener::bind(near).unwrap()), Far::Held(far))
    }

    pub fn turn(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    fn open(near: Near, far: Far) -> Self {
        let (weather, seen) = watch::channel(Weather::Fair);
        let passing = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok(near) = near.accept().await {
                let (far, seen) = (far.clone(), seen.clone());
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    let mut cut = seen.clone();
                    tokio::select! {
                        biased;
                        _ = cut.wait_for(|weather| *weather == Weather::Cut) => {}
                        () = async {
                            if let Ok(far) = far.connect().await {
                                pass(near, far, &seen).await;
                            }
                        } => {}
                    }
                });
            }
        });
        Self { weather, _passing: AbortOnDropHandle::new(passing) }
    }
}

fn no_delay(stream: TcpStream) -> Box<dyn Stream> {
    stream.set_nodelay(true).unwrap();
    Box::new(stream)
}

async fn pass(near: Box<dyn Stream>, far: Box<dyn Stream>, weather: &watch::Receiver<Weather>) {
    let (near_in, near_out) = tokio::io::split(near);
    let (far_in, far_out) = tokio::io::split(far);
    let out = pump(near_in, far_out, weather.clone(), Weather::NoWayOut);
    let back = pump(far_in, near_out, weather.clone(), Weather::NoWayBack);
    // A half that was closed in order leaves the other open; a broken one breaks both.
    let _broken = tokio::try_join!(out, back);
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<Weather>,
    stalled: Weather,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        let now = *weather.wait_for(|weather| *weather != stalled).await.map_err(io::Error::other)?;
        if let Weather::Slow(delay) = now {
            tokio::time::sleep(delay).await;
        }
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
    }
}
