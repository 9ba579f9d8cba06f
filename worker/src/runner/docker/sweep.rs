//! Removing the containers that somebody left behind.

use std::collections::HashMap;
use std::sync::Arc;

use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptionsBuilder;
use futures::{StreamExt, stream};

use super::super::{ContainerKey, Fault};
use super::container::Container;
use super::engine::{self, Engine, QUICK};
use super::labels;

/// Removals at once: the engine does not get faster with more.
const AT_ONCE: usize = 4;

/// Whether a container must be left alone; asked after the containers were listed.
pub(super) type Live<'a> = &'a (dyn for<'k> Fn(&'k ContainerKey) -> bool + Send + Sync);

/// Removes what belongs to `instance` and is not `live`. Tries all of them; returns how many it removed, or the first fault.
pub(super) async fn sweep(engine: &Arc<Engine>, instance: &str, live: Live<'_>) -> Result<usize, Fault> {
    let docker = engine.client().await?;
    let ours = HashMap::from([("label".to_owned(), vec![format!("{}={instance}", labels::INSTANCE)])]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&ours).build();
    let found = engine.call(QUICK, docker.list_containers(Some(options))).await;
    let found = found.map_err(|error| engine::fault("listing containers", error))?;

    // Labels that cannot be read name no run that could be alive, so such a container of ours goes, too.
    let is_left =
        |container: &ContainerSummary| labels::are_of(&container.labels, instance) && labels::key(&container.labels).is_none_or(|key| !live(&key));
    let left = found.into_iter().filter(is_left).filter_map(|container| container.id);
    let removals = left.map(|id| {
        let container = Container::new(engine.clone(), id);
        async move { container.remove().await }
    });
    let removals: Vec<_> = stream::iter(removals).buffer_unordered(AT_ONCE).collect().await;
    let mut removed = 0;
    for removal in removals {
        removal?;
        removed += 1;
    }
    Ok(removed)
}
