//! What the engine itself saw of every container: outside the store, and outside the processes that are killed.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bollard::Docker;
use bollard::models::{EventActor, EventMessage};
use bollard::query_parameters::{EventsOptionsBuilder, ListContainersOptionsBuilder};
use futures::StreamExt;
use tokio_util::task::AbortOnDropHandle;

use super::now;
use crate::support::eventually;

pub const INSTANCE: &str = "dev.quayside.instance";
const RUN: &str = "dev.quayside.run";
const EPOCH: &str = "dev.quayside.epoch";

/// One container of ours. Times are milliseconds since 1970, as [`now`] tells them.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The owner label: which worker.
    pub instance: String,
    pub run: String,
    pub epoch: u64,
    pub start: u64,
    /// Its end and its exit code.
    pub end: Option<(u64, Option<i64>)>,
}

type Containers = Arc<Mutex<BTreeMap<String, Seen>>>;

/// Follows the engine's events, across its restarts.
pub struct Witness {
    docker: Docker,
    containers: Containers,
    _following: AbortOnDropHandle<()>,
}

impl Witness {
    pub async fn of(socket: &Path) -> Self {
        let docker = Docker::connect_with_unix(&socket.display().to_string(), 120, bollard::API_DEFAULT_VERSION).unwrap();
        let containers = Containers::default();
        let following = tokio::spawn(follow(docker.clone(), containers.clone()));
        Self { docker, containers, _following: AbortOnDropHandle::new(following) }
    }

    /// Everything so far, by container id.
    pub fn seen(&self) -> BTreeMap<String, Seen> {
        lock(&self.containers).clone()
    }

    /// Containers that run now, as far as is known.
    pub fn alive(&self) -> Vec<Seen> {
        lock(&self.containers).values().filter(|seen| seen.end.is_none()).cloned().collect()
    }

    /// Waits until the engine and the events agree that nothing of `instances` is there.
    pub async fn until_empty(&self, instances: &[String]) {
        eventually("an empty engine", || async {
            let left = list(&self.docker, true).await?;
            let ours = |labels: &HashMap<String, String>| labels.get(INSTANCE).is_some_and(|label| instances.contains(label));
            let none = !left.values().any(ours) && !self.alive().iter().any(|seen| instances.contains(&seen.instance));
            none.then_some(())
        })
        .await;
    }
}

async fn follow(docker: Docker, containers: Containers) {
    let mut since = now() / 1000;
    loop {
        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("event".to_owned(), vec!["start".to_owned(), "die".to_owned()]),
            ("label".to_owned(), vec![INSTANCE.to_owned()]),
        ]);
        let options = EventsOptionsBuilder::default().since(&since.to_string()).filters(&filters).build();
        let mut events = Box::pin(docker.events(Some(options)));
        // What ended while nobody told: an engine that was killed, and ended its containers when it came back.
        if let Some(left) = list(&docker, false).await {
            let at = now();
            for seen in lock(&containers).iter_mut().filter(|(id, _)| !left.contains_key(*id)).map(|(_, seen)| seen) {
                seen.end.get_or_insert((at, None));
            }
        }
        while let Some(Ok(event)) = events.next().await {
            since = u64::try_from(event.time.unwrap_or(0)).unwrap_or(0).max(since);
            note(&containers, event);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The containers that run, or all there are, with their labels.
async fn list(docker: &Docker, all: bool) -> Option<HashMap<String, HashMap<String, String>>> {
    let options = ListContainersOptionsBuilder::default().all(all).filters(&HashMap::from([("label", vec![INSTANCE])])).build();
    let left = docker.list_containers(Some(options)).await.ok()?;
    Some(left.into_iter().filter_map(|container| Some((container.id?, container.labels.unwrap_or_default()))).collect())
}

fn note(containers: &Containers, event: EventMessage) {
    let Some(at) = event.time_nano.and_then(|nanos| u64::try_from(nanos / 1_000_000).ok()) else { return };
    let Some(EventActor { id: Some(id), attributes: Some(attributes) }) = event.actor else { return };
    let of = |name: &str| attributes.get(name).cloned().unwrap_or_default();
    match event.action.as_deref() {
        Some("start") => {
            let seen = Seen { instance: of(INSTANCE), run: of(RUN), epoch: of(EPOCH).parse().unwrap(), start: at, end: None };
            // Told again after a reconnection.
            lock(containers).entry(id).or_insert(seen);
        }
        Some("die") => {
            if let Some(seen) = lock(containers).get_mut(&id) {
                let code = attributes.get("exitCode").and_then(|code| code.parse().ok());
                match &mut seen.end {
                    Some((_, Some(_))) => {}
                    end => *end = Some((at, code)),
                }
            }
        }
        _ => {}
    }
}

fn lock(containers: &Containers) -> MutexGuard<'_, BTreeMap<String, Seen>> {
    containers.lock().unwrap()
}
