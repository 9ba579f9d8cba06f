//! A Docker engine that does not do what it says: a proxy before the real one that changes figures in what is asked of it
//! and puts the asked ones into its answers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;

/// What is asked for and what is made of it, as texts of the same length.
pub type Lie = (&'static str, &'static str);

/// The engine. Gone with all its connections when it is dropped.
pub struct Liar {
    address: SocketAddr,
    lies: Arc<Mutex<Vec<Lie>>>,
    /// What it says about itself instead of the truth.
    said: Arc<Mutex<Vec<Lie>>>,
    connections: Arc<Mutex<JoinSet<()>>>,
    _accepting: JoinSet<()>,
}

impl Liar {
    pub async fn start(lies: &[Lie]) -> Self {
        assert!(lies.iter().all(|(asked, made)| asked.len() == made.len()), "lengths are told before they are known");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (lies, said) = (Arc::new(Mutex::new(lies.to_vec())), Arc::new(Mutex::new(Vec::new())));
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let mut accepting = JoinSet::new();
        accepting.spawn({
            let (lies, said, connections) = (Arc::clone(&lies), Arc::clone(&said), Arc::clone(&connections));
            async move {
                while let Ok((near, _)) = listener.accept().await {
                    let (lies, said) = (lies.lock().unwrap().clone(), said.lock().unwrap().clone());
                    connections.lock().unwrap().spawn(async move {
                        let _broken = pass(near, &lies, &said).await;
                    });
                }
            }
        });
        Self { address, lies, said, connections, _accepting: accepting }
    }

    pub fn host(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// From now on it does as it is told, says that it is another version, and has dropped every connection.
    pub fn reform(&self, version: Lie) {
        self.lies.lock().unwrap().clear();
        self.said.lock().unwrap().push(version);
        self.connections.lock().unwrap().abort_all();
    }
}

/// One request, and whatever follows of it.
async fn pass(mut near: TcpStream, lies: &[Lie], said: &[Lie]) -> std::io::Result<()> {
    let mut request = Vec::new();
    let head = loop {
        if let Some(end) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        if near.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    };
    let text = String::from_utf8_lossy(&request[..head]).into_owned();
    let path = text.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    let creates = path.ends_with("/containers/create");
    let tells = path.ends_with("/version") || (path.contains("/containers/") && path.ends_with("/json") && !path.ends_with("/containers/json"));
    let length = text.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    while creates && request.len() < head + length {
        if near.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let mut far = UnixStream::connect("/var/run/docker.sock").await?;
    // One request a connection, so that each is seen; and an answer that is not cut into pieces where it is changed.
    let mut forwarded =
        if text.to_lowercase().contains("upgrade:") { text } else { text.replacen("\r\n", "\r\nConnection: close\r\n", 1) }.into_bytes();
    forwarded.extend_from_slice(&request[head..]);
    if creates {
        for (asked, made) in lies {
            replace(&mut forwarded, asked, made);
        }
    }
    if !tells {
        far.write_all(&forwarded).await?;
        copy_bidirectional(&mut near, &mut far).await?;
        return Ok(());
    }
    replace(&mut forwarded, " HTTP/1.1\r\n", " HTTP/1.0\r\n");
    far.write_all(&forwarded).await?;
    let mut answer = Vec::new();
    far.read_to_end(&mut answer).await?;
    for (asked, made) in lies {
        replace(&mut answer, made, asked);
    }
    for (truth, lie) in said {
        replace(&mut answer, truth, lie);
    }
    near.write_all(&answer).await?;
    near.shutdown().await
}

fn replace(bytes: &mut [u8], from: &str, to: &str) {
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(from.len()).position(|window| window == from.as_bytes()) {
        bytes[at + found..at + found + from.len()].copy_from_slice(to.as_bytes());
        at += found + from.len();
    }
}
