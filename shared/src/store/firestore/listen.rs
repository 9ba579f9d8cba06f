//! One listener for all runs that somebody in this process waits for. It only wakes them: what has changed they read
//! themselves. What it should miss is caught by waking everybody now and then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use firestore::gcloud_sdk::google::firestore::v1::Document;
use firestore::{
    FirestoreDb, FirestoreListenEvent, FirestoreListener, FirestoreListenerParams, FirestoreListenerTarget, FirestoreMemListenStateStorage,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::client::Client;
use super::codec;
use crate::ids::RunId;
use crate::store::hub::Hub;

/// Runs that nobody waits for any more are let go at this pace, and everybody who waits reads again at this one.
const ROUND: Duration = Duration::from_secs(5);
/// After the stream broke off.
const RETRY: Duration = Duration::from_millis(500);

type Listener = FirestoreListener<FirestoreDb, FirestoreMemListenStateStorage>;

/// The task that keeps the listener's targets what the hub's watchers want.
pub(super) struct Listening {
    look: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Listening {
    pub(super) fn start(client: Client, hub: Arc<Hub>) -> Self {
        let look = Arc::new(Notify::new());
        let task = tokio::spawn(follow(client, hub, Arc::clone(&look)));
        Self { look, task }
    }

    /// There is a new watcher.
    pub(super) fn look(&self) {
        self.look.notify_one();
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Targets by run, with the listener they are in.
#[derive(Default)]
struct Targets {
    listener: Option<Listener>,
    by_run: HashMap<RunId, FirestoreListenerTarget>,
    last: u32,
}

async fn follow(client: Client, hub: Arc<Hub>, look: Arc<Notify>) {
    let mut targets = Targets::default();
    let mut round = tokio::time::interval(ROUND);
    loop {
        tokio::select! {
            () = look.notified() => {}
            _ = round.tick() => hub.signal_all(),
        }
        let wanted = hub.watched();
        if let Err(error) = targets.become_like(&client, &hub, &wanted).await {
            // The safety net still works: readers come back every few seconds.
            tracing::warn!(error = %error, "listening to Firestore failed, trying again");
            targets = Targets { last: targets.last, ..Targets::default() };
        }
    }
}

impl Targets {
    async fn become_like(&mut self, client: &Client, hub: &Arc<Hub>, wanted: &[RunId]) -> firestore::FirestoreResult<()> {
        let listener = match &mut self.listener {
            Some(listener) => listener,
            None if wanted.is_empty() => return Ok(()),
            None => {
                let params = FirestoreListenerParams::new().with_retry_delay(RETRY);
                let mut listener = client.db().create_listener_with_params(FirestoreMemListenStateStorage::new(), params).await?;
                let hub = Arc::clone(hub);
                listener
                    .start(move |event| {
                        wake(&hub, event);
                        std::future::ready(Ok(()))
                    })
                    .await?;
                self.listener.insert(listener)
            }
        };
        let gone: Vec<RunId> = self.by_run.keys().filter(|id| wanted.binary_search(id).is_err()).cloned().collect();
        for id in gone {
            if let Some(target) = self.by_run.remove(&id) {
                listener.remove_target(&target).await?;
            }
        }
        for id in wanted {
            if !self.by_run.contains_key(id) {
                // Numbers are not used again, so that what is on the way of an old one cannot be taken for a new one's.
                self.last = self.last % (i32::MAX as u32) + 1;
                let target = FirestoreListenerTarget::new(self.last);
                client.db().fluent().select().by_id_in("runs").batch_listen([id.as_str()]).add_target(target.clone(), listener)?;
                self.by_run.insert(id.clone(), target);
            }
        }
        Ok(())
    }
}

fn wake(hub: &Hub, event: FirestoreListenEvent) {
    match event {
        FirestoreListenEvent::DocumentChange(change) => {
            if let Some(document) = change.document
                && let Some(id) = run_of(&document.name)
            {
                let (cancelling, ended) = standing(&document);
                hub.signal(&id, cancelling, ended);
            }
        }
        FirestoreListenEvent::DocumentDelete(gone) => {
            if let Some(id) = run_of(&gone.document) {
                hub.signal(&id, false, false);
            }
        }
        _ => {}
    }
}

fn run_of(name: &str) -> Option<RunId> {
    name.rsplit('/').next()?.parse().ok()
}

fn standing(document: &Document) -> (bool, bool) {
    let status = codec::text_in(&document.fields, "status").unwrap_or_default();
    (status == "cancelling", !matches!(status, "queued" | "in_progress" | "cancelling" | ""))
}
