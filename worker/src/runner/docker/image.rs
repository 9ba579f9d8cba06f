//! Images: what the engine has, and fetching what it has not.

use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures::TryStreamExt;
use quayside_shared::agent::Agent;

use super::super::image_name::{names_a_registry, with_tag};
use super::super::{Fault, FaultKind};
use super::engine::{self, Engine, QUICK};

/// An image that takes longer has to be there before its agent is used.
const PULL_LIMIT: Duration = Duration::from_secs(180);

/// The digest under which a registry knows the image, else the engine's own; `None` when it is not there.
pub(super) async fn digest(engine: &Engine, image: &str) -> Result<Option<String>, Fault> {
    let docker = engine.client().await?;
    let found = match engine.call(QUICK, docker.inspect_image(image)).await {
        Ok(found) => found,
        Err(error) if engine::status(&error) == Some(404) => return Ok(None),
        Err(error) => return Err(engine::fault("inspecting an image", error)),
    };
    let pushed = found.repo_digests.unwrap_or_default().into_iter().next();
    let digest = pushed.as_deref().and_then(|name| name.split_once('@')).map(|(_, digest)| digest.to_owned());
    Ok(digest.or(found.id))
}

/// Fetches the image of an agent, once. Only from a registry that the name spells out: a bare name is an image made on
/// this machine, and on a public registry it may belong to anybody.
pub(super) async fn pull(engine: &Engine, docker: &Docker, agent: &Agent) -> Result<(), Fault> {
    let missing = |what: &str| {
        let sentence = format!("the image `{}` of agent `{}` is not on this machine{what}", agent.image, agent.name);
        Fault::new(FaultKind::ImageUnavailable, sentence)
    };
    if !names_a_registry(&agent.image) {
        return Err(missing(""));
    }
    tracing::info!(image = agent.image, agent = %agent.name, "fetching an image");
    let options = CreateImageOptionsBuilder::default().from_image(&with_tag(&agent.image)).build();
    let fetching = docker.create_image(Some(options), None, None).try_for_each(|_progress| async { Ok(()) });
    let fetched = engine.call(PULL_LIMIT, fetching).await;
    fetched.map_err(|error| missing(" and could not be fetched").with_source(error))
}
