//! The queue in the SQLite file.
//!
//! Messages are rows, so that they outlive the process; what is waiting is also kept in memory in the same order, so
//! that a worker wakes without polling and a delivery costs no write. Only one process can hold the file, therefore a
//! lease needs no clock: it is the delivery's handle, and the death of the process ends all of them at once.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use rusqlite::params;
use tokio::sync::Notify;

use crate::error::Result;
use crate::ids::RunId;
use crate::queue::{Delivery, Message, Queue, Undecodable};
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

/// A row, as it was understood.
type Row = (i64, Result<Message, Undecodable>);

/// What waits. A run that waits already is not put in a second time; one that is being delivered is, because its
/// worker may have decided on what was true before.
#[derive(Default)]
struct Line {
    waiting: VecDeque<Row>,
    runs: HashSet<RunId>,
}

impl Pending {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_back(&self, (pk, message): Row) {
        {
            let mut line = self.line();
            if let Ok(message) = &message {
                line.runs.insert(message.run_id.clone());
            }
            line.waiting.push_front((pk, message));
        }
        self.arrived.notify_one();
    }

    fn take(&self) -> Option<Row> {
        let mut line = self.line();
        let (pk, message) = line.waiting.pop_front()?;
        if let Ok(message) = &message {
            line.runs.remove(&message.run_id);
        }
        Some((pk, message))
    }
}

impl SqliteQueue {
    /// A queue in `database`. Whatever was not acknowledged in an earlier life of the process waits again.
    pub async fn open(database: Database) -> Result<Self> {
        let stored: Vec<Row> = database
            .read(|db| {
                db.prepare("SELECT pk, run_id, trace FROM messages ORDER BY pk")?
                    .query_map([], |row| Ok((row.get(0)?, message(row.get(0)?, row.get_ref(1)?.as_bytes()?, row.get_ref(2)?.as_bytes()?))))?
                    .collect()
            })
            .await?;
        let pending = Pending::default();
        {
            let mut line = pending.line();
            line.runs = stored.iter().filter_map(|(_, message)| message.as_ref().ok()).map(|message| message.run_id.clone()).collect();
            line.waiting = stored.into();
        }
        Ok(Self { database, pending: Arc::new(pending) })
    }
}

/// What a row says. One that we did not write, or that another version wrote, must not keep the others from being read.
fn message(pk: i64, run_id: &[u8], trace: &[u8]) -> Result<Message, Undecodable> {
    let undecodable = |reason: String| Undecodable { message_id: pk.to_string(), reason, data: run_id.to_vec() };
    let text = std::str::from_utf8(run_id).map_err(|_| undecodable("the run id is not UTF-8".to_owned()))?;
    let run_id = text.parse().map_err(|error| undecodable(format!("not a run id: {error}")))?;
    let trace = serde_json::from_slice(trace).map_err(|error| undecodable(format!("the trace context cannot be read: {error}")))?;
    Ok(Message { run_id, trace })
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
                    line.waiting.push_back((*pk, Ok(message.clone())));
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
            if let Some(row) = self.pending.take() {
                // One notification may stand for several messages: pass it on.
                self.pending.arrived.notify_one();
                return Ok(Box::new(SqliteDelivery { row: Some(row), database: self.database.clone(), pending: Arc::clone(&self.pending) }));
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
    /// Taken by `ack`; whatever is left when the delivery goes is put back.
    row: Option<Row>,
    database: Database,
    pending: Arc<Pending>,
}

#[async_trait]
impl Delivery for SqliteDelivery {
    fn message(&self) -> Result<&Message, &Undecodable> {
        #[expect(clippy::expect_used, reason = "only `ack` and `drop` take it, and both consume the delivery")]
        self.row.as_ref().expect("a live delivery has its message").1.as_ref()
    }

    async fn ack(mut self: Box<Self>) {
        let Some((pk, message)) = self.row.take() else { return };
        let deleted = self.database.write(move |db| db.prepare_cached("DELETE FROM messages WHERE pk = ?1")?.execute([pk]), |_| {}).await;
        if let Err(error) = deleted {
            // It comes again after a restart, and finds nothing to do.
            let run_id = message.as_ref().ok().map(|message| message.run_id.as_str());
            tracing::warn!(run_id, error = %crate::error::chain(&error), "an acknowledgement was lost");
        }
    }

    async fn nack(self: Box<Self>) {}
}

impl Drop for SqliteDelivery {
    fn drop(&mut self) {
        if let Some(row) = self.row.take() {
            self.pending.put_back(row);
        }
    }
}
