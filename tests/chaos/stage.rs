//! Where rounds happen: the engine, the emulators, the lines to them. It outlives the rounds.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::engine::Engine;
use super::line::Line;
use super::witness::Witness;
use crate::support::emulators::{Emulator, Kind};
use crate::support::server::Backend;

/// The engine that everybody uses, for those who may not start their own.
const SHARED: &str = "/var/run/docker.sock";

pub struct Stage {
    pub backend: Backend,
    /// None where this process may not start one: then nothing is done to the engine itself.
    pub engine: Option<Engine>,
    pub engine_line: Line,
    pub witness: Witness,
    pub google: Option<Google>,
    near: PathBuf,
    folder: tempfile::TempDir,
}

/// Emulators of the stage's own, and the lines to them.
pub struct Google {
    pub pubsub: Emulator,
    pub pubsub_line: Line,
    pub firestore: Emulator,
    pub firestore_line: Line,
    /// The near ends.
    pub addresses: (SocketAddr, SocketAddr),
}

impl Stage {
    pub async fn set(backend: Backend) -> Self {
        let folder = tempfile::Builder::new().prefix("qs-").tempdir_in("/tmp").unwrap();
        let (engine, google) = tokio::join!(async { if Engine::is_possible() { Some(Engine::start(false).await) } else { None } }, async {
            if backend == Backend::Google { Some(Google::start().await) } else { None }
        },);
        if engine.is_none() {
            eprintln!("chaos: this is not root: nothing happens to the engine itself, and no disk runs full");
        }
        let far = engine.as_ref().map_or_else(|| PathBuf::from(SHARED), Engine::socket);
        let near = folder.path().join("engine");
        let engine_line = Line::between(&near, far.clone());
        let witness = Witness::of(&far).await;
        Self { backend, engine, engine_line, witness, google, near, folder }
    }

    /// The worker's end of the line to the engine.
    pub fn docker_host(&self) -> String {
        format!("unix://{}", self.near.display())
    }

    /// The engine itself.
    pub fn socket(&self) -> PathBuf {
        self.engine.as_ref().map_or_else(|| PathBuf::from(SHARED), Engine::socket)
    }

    /// Where rounds put their files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The files stay after the end, for whoever looks into what went wrong.
    pub fn keep_files(&mut self) {
        self.folder.disable_cleanup(true);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_files();
        }
    }
}

impl Google {
    async fn start() -> Self {
        let (pubsub, firestore) = tokio::join!(Emulator::start_own(Kind::Pubsub, &[]), Emulator::start_own(Kind::Firestore, &[]));
        let (pubsub_line, near_pubsub) = Line::to(pubsub.host().parse().unwrap()).await;
        let (firestore_line, near_firestore) = Line::to(firestore.host().parse().unwrap()).await;
        Self { pubsub, pubsub_line, firestore, firestore_line, addresses: (near_pubsub, near_firestore) }
    }
}
