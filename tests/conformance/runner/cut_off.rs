//! A real engine behind a connection that breaks: what was under way is the engine's fault and nobody else's, and goes on
//! when the engine is back.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use quayside_worker::runner::docker::{DockerOptions, DockerRunner};
use quayside_worker::runner::{FaultKind, Runner};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinSet;

use super::docker::OnDocker;
use super::{Behaviour, Fixture, check, within};

/// Passes connections on to the engine until it is dropped, which breaks all of them.
struct Line(JoinSet<()>, SocketAddr);

impl Line {
    async fn open(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut far) = UnixStream::connect("/var/run/docker.sock").await {
                        let _broken = copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self(tasks, address)
    }

    /// Breaks every connection; returns where the line was.
    async fn cut(mut self) -> SocketAddr {
        self.0.shutdown().await;
        self.1
    }
}

#[tokio::test]
async fn an_engine_that_goes_away_and_comes_back() {
    check(OnDocker::new(), async |fixture| {
        let line = Line::open("127.0.0.1:0".parse().unwrap()).await;
        let options = DockerOptions { host: format!("tcp://{}", line.1), instance: fixture.instance().to_owned(), runtime: None, uid_base: 100_000 };
        let runner = DockerRunner::connect(options).unwrap();
        let mut sandbox = runner.launch(&fixture.spec(&Behaviour::SleepInBetween(Duration::from_secs(3600)))).await.unwrap();
        sandbox.send(Bytes::new()).unwrap();
        sandbox.next_output().await.unwrap().unwrap();

        let address = line.cut().await;
        let limit = Duration::from_secs(20);
        // The stream ends; that is not the program's end, and the engine cannot be asked about it.
        while let Some(Ok(_)) = within(limit, "the end of a cut stream", sandbox.next_output()).await {}
        assert_eq!(within(limit, "a wait without an engine", sandbox.wait()).await.unwrap_err().kind(), FaultKind::Engine);
        assert_eq!(within(limit, "a kill without an engine", sandbox.kill()).await.unwrap_err().kind(), FaultKind::Engine);
        assert_eq!(runner.ping().await.unwrap_err().kind(), FaultKind::Engine);

        let _line = Line::open(address).await;
        runner.ping().await.unwrap();
        within(limit, "a kill", sandbox.kill()).await.unwrap();
        assert_eq!(sandbox.wait().await.unwrap().code, 137);
        sandbox.remove().await.unwrap();
    })
    .await;
}
