//! The agents that the user may run. Never their commands or their environment: those may hold secrets.

use std::sync::{Arc, PoisonError};

use axum::Json;
use axum::extract::State;
use quayside_shared::agent::{Agent, Network};
use serde::Serialize;
use utoipa::ToSchema;

use crate::App;
use crate::auth::Caller;
use crate::error;

/// What the container may reach.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Network)]
pub(crate) enum NetworkView {
    /// Nothing but its own loopback.
    None,
    /// Whatever the engine's default network reaches.
    Bridge,
}

/// What one run of the agent may use.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AgentLimits)]
pub(crate) struct LimitsView {
    memory_bytes: u64,
    cpus: f64,
    /// Processes and threads.
    pids: u32,
    /// The longest run.
    timeout_seconds: u64,
    /// Bytes of reply that are kept.
    output_limit_bytes: u64,
    /// The longest message.
    message_bytes: u64,
}

/// Somebody who answers.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Agent)]
pub(crate) struct AgentView {
    name: String,
    description: String,
    /// The image it runs in.
    image: String,
    /// The image's digest; null until it is known.
    #[schema(required)]
    image_digest: Option<String>,
    /// Whether it answers when the request names nobody.
    default: bool,
    limits: LimitsView,
    network: NetworkView,
}

/// All agents.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AgentList)]
pub(crate) struct AgentListView {
    data: Vec<AgentView>,
    /// Always null: there is one page.
    #[schema(required)]
    next_after: Option<String>,
}

/// The agents that you may run.
#[utoipa::path(
    get, path = "/api/agents", tag = "agents", operation_id = "agents", security(("user" = [])),
    responses((status = 200, body = AgentListView, description = "All of them"), error::BadRequest, error::Unauthenticated, error::Failed)
)]
pub(crate) async fn list(State(app): State<Arc<App>>, Caller(_user): Caller) -> Json<AgentListView> {
    let digests = app.deps.image_digests.read().unwrap_or_else(PoisonError::into_inner);
    let view = |agent: &Agent| AgentView {
        name: agent.name.to_string(),
        description: agent.description.clone(),
        image: agent.image.clone(),
        image_digest: digests.get(&agent.name).cloned().flatten(),
        default: agent.name == app.deps.config.api.default_agent,
        limits: LimitsView {
            memory_bytes: agent.memory,
            cpus: agent.cpus,
            pids: agent.pids,
            timeout_seconds: agent.timeout.as_secs(),
            output_limit_bytes: agent.output_limit,
            message_bytes: app.deps.config.limits.message.bytes(),
        },
        network: match agent.network {
            Network::None => NetworkView::None,
            Network::Bridge => NetworkView::Bridge,
        },
    };
    Json(AgentListView { data: app.deps.config.agents.values().map(view).collect(), next_after: None })
}
