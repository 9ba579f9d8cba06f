//! The queue in the SQLite file.
//!
//! Messages are rows, so that they outlive the process; what is waiting is also kept in memory in the same order, so
//! that a worker wakes without polling and a delivery costs no write. Only one process can hold the file, therefore a
//! lease needs no clock: it is the delivery's handle, and the death of the process ends all of them at once.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rusqlite::params;
use rusqlite::types::Type;
use tokio::sync::Notify;

use crate::error::Result;
use crate::ids::RunId;
use crate::queue::{Delivery, Message, Queue};
use crate::sqlite::Database;

/// The embedded [`Queue`].
pub struct SqliteQueue {
    database: Database,
    pending: Arc<Pending>,
}

#[derive(Default)]
struct Pending {
    line: Mutex<Line>,
    arrived: Notify,
}

/// What waits. A run that waits already is not put in a second time; one that is being delivered is, because its
/// worker may have decided on what was true before.
#[derive(Default)]
struct Line {
    waiting: VecDeque<(i64, Message)>,
    runs: HashSet<RunId>,
}

impl Pending {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_back(&self, pk: i64, message: Message) {
        {
            let mut line = self.line();
            line.runs.insert(message.run_id.clone());
            line.waiting.push_front((pk, message));
        }
        self.arrived.notify_one();
    }

    fn take(&self) -> Option<(i64, Message)> {
        let mut line = self.line();
        let (pk, message) = line.waiting.pop_front()?;
        line.runs.remove(&message.run_id);
        Some((pk, message))
    }
}

impl SqliteQueue {
    /// A queue in `database`. Whatever was not acknowledged in an earlier life of the process waits again.
    pub async fn open(database: Database) -> Result<Self> {
        let stored: Vec<(i64, Message)> = database
            .read(|db| {
                db.prepare("SELECT pk, run_id, trace FROM messages ORDER BY pk")?
                    .query_map([], |row| {
                        let run_id = row.get_ref(1)?.as_str()?.parse().map_err(|error| conversion(1, error))?;
                        let trace: BTreeMap<String, String> =
                            serde_json::from_str(row.get_ref(2)?.as_str()?).map_err(|error| conversion(2, error))?;
                        Ok((row.get(0)?, Message { run_id, trace }))
                    })?
                    .collect()
            })
            .await?;
        let pending = Pending::default();
        {
            let mut line = pending.line();
            line.runs = stored.iter().map(|(_, message)| message.run_id.clone()).collect();
            line.waiting = stored.into();
        }
        Ok(Self { database, pending: Arc::new(pending) })
    }
}

fn conversion(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

#[async_trait]
impl Queue for SqliteQueue {
    async fn publish(&self, messages: &[Message]) -> Result<()> {
        let fresh: Vec<Message> = {
            let line = self.pending.line();
            messages.iter().filter(|message| !line.runs.contains(&message.run_id)).cloned().collect()
        };
        if fresh.is_empty() {
            return Ok(());
        }
        let pending = Arc::clone(&self.pending);
        let written = self.database.write(
            move |db| {
                let mut insert = db.prepare_cached("INSERT INTO messages (run_id, trace) VALUES (?1, ?2)")?;
                fresh
                    .iter()
                    .map(|message| {
                        let trace =
                            serde_json::to_string(&message.trace).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
                        Ok((insert.insert(params![message.run_id.as_str(), trace])?, message.clone()))
                    })
                    .collect::<rusqlite::Result<Vec<_>>>()
            },
            move |stored| {
                let mut line = pending.line();
                for (pk, message) in stored {
                    line.runs.insert(message.run_id.clone());
                    line.waiting.push_back((*pk, message.clone()));
                }
                drop(line);
                for _ in stored {
                    pending.arrived.notify_one();
                }
            },
        );
        written.await.map(|_| ())
    }

    async fn receive(&self) -> Result<Box<dyn Delivery>> {
        loop {
            // Registered before looking, so that what arrives in between is not missed.
            let arrived = self.pending.arrived.notified();
            if let Some((pk, message)) = self.pending.take() {
                // One notification may stand for several messages: pass it on.
                self.pending.arrived.notify_one();
                return Ok(Box::new(SqliteDelivery {
                    pk,
                    message: Some(message),
                    database: self.database.clone(),
                    pending: Arc::clone(&self.pending),
                }));
            }
            arrived.await;
        }
    }

    /// Nothing is leased before somebody asks for it, so nothing has to go back.
    async fn stop_receiving(&self) {}

    async fn ping(&self) -> Result<()> {
        self.database.read(|_| Ok(())).await
    }
}

struct SqliteDelivery {
    pk: i64,
    /// Taken by `ack`; whatever is left when the delivery goes is put back.
    message: Option<Message>,
    database: Database,
    pending: Arc<Pending>,
}

#[async_trait]
impl Delivery for SqliteDelivery {
    fn message(&self) -> &Message {
        #[expect(clippy::expect_used, reason = "only `ack` and `drop` take it, and both consume the delivery")]
        self.message.as_ref().expect("a live delivery has its message")
    }

    async fn ack(mut self: Box<Self>) {
        let (pk, run_id) = (self.pk, self.message.take().map(|message| message.run_id));
        let deleted = self.database.write(move |db| db.prepare_cached("DELETE FROM messages WHERE pk = ?1")?.execute([pk]), |_| {}).await;
        if let Err(error) = deleted {
            // It comes again after a restart, and finds nothing to do.
            tracing::warn!(run_id = run_id.as_ref().map(RunId::as_str), error = %crate::error::chain(&error), "an acknowledgement was lost");
        }
    }

    async fn nack(self: Box<Self>) {}
}

impl Drop for SqliteDelivery {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            self.pending.put_back(self.pk, message);
        }
    }
}
