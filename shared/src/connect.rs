//! The one place that names adapters: from the configuration to a queue and a store.

use std::sync::Arc;

use crate::clock::SystemClock;
use crate::config::{BackendKind, Config};
use crate::error::Result;
use crate::queue::Queue;
use crate::queue::pubsub::PubSubQueue;
use crate::queue::sqlite::SqliteQueue;
use crate::retry::RetryPolicy;
use crate::sqlite::Database;
use crate::store::firestore::FirestoreStore;
use crate::store::sqlite::SqliteStore;
use crate::store::{Store, StoreOptions};

/// A queue and a store that belong together.
#[derive(Clone)]
pub struct Connected {
    /// Where messages go.
    pub queue: Arc<dyn Queue>,
    /// Where runs are.
    pub store: Arc<dyn Store>,
}

/// Opens what `config` names. `room` is how many messages this process can handle at once, when it is a worker on a
/// queue of several.
///
/// # Errors
/// When the backend cannot be reached or read; the message says what to do.
pub async fn connect(config: &Config, room: Option<u32>) -> Result<Connected> {
    let options = StoreOptions {
        queued_per_user: config.limits.queued_per_user,
        running_per_user: config.limits.running_per_user,
        queued: config.limits.queued,
        retention: config.limits.retention.get(),
        retry: RetryPolicy { max_attempts: config.worker.max_attempts, ..RetryPolicy::default() },
        ..StoreOptions::default()
    };
    match config.backend.kind {
        BackendKind::Embedded => {
            let database = Database::open_with(&config.backend.data_dir, config.backend.reserve.bytes())?;
            let store = SqliteStore::open(database.clone(), Arc::new(SystemClock), options).await?;
            let queue = SqliteQueue::open(database).await?;
            Ok(Connected { queue: Arc::new(queue), store: Arc::new(store) })
        }
        BackendKind::Google => {
            let store = FirestoreStore::connect(&config.google, Arc::new(SystemClock), options).await?;
            let queue = PubSubQueue::connect(&config.google).await?;
            let queue = match room {
                Some(room) => queue.with_room(room),
                None => queue,
            };
            Ok(Connected { queue: Arc::new(queue), store: Arc::new(store) })
        }
    }
}
