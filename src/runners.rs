//! Which runner makes the containers of this machine.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use quayside_shared::agent::Network;
use quayside_shared::config::{Config, RunnerKind};
use quayside_shared::error::chain;
use quayside_worker::runner::Runner;
use quayside_worker::runner::docker::{DockerOptions, DockerRunner};
use quayside_worker::runner::oci::{OciOptions, OciRunner};
use quayside_worker::runner::workspace::Workspaces;

/// Where containers without an engine have their folders while they live.
const STATE: &str = "/run/quayside/containers";

/// The runner that was taken, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Never [`RunnerKind::Auto`].
    pub(crate) kind: RunnerKind,
    /// For people, without the name of the runner.
    pub(crate) why: String,
}

/// The runner that the configuration names; for `auto` the faster one, where every agent can run on it.
pub(crate) fn choose(config: &Config) -> Choice {
    let asked = |kind| Choice { kind, why: "the configuration names it".to_owned() };
    match config.runner.kind {
        RunnerKind::Auto => {}
        kind => return asked(kind),
    }
    if let Some(agent) = config.agents.values().find(|agent| agent.network != Network::None) {
        let why = format!("agent `{}` asks for a network, which only the engine gives", agent.name);
        return Choice { kind: RunnerKind::Docker, why };
    }
    match oci(config, "quayside-nobody", config.runner.uid_base) {
        Ok(_) => Choice {
            kind: RunnerKind::Oci,
            why: "a container runtime and its control groups are here, and starts take a fraction of the engine's".to_owned(),
        },
        Err(fault) => Choice { kind: RunnerKind::Docker, why: format!("containers cannot be started without the engine: {}", chain(&fault)) },
    }
}

/// The runner of the instance of this name.
pub(crate) fn connect(config: &Config, instance: &str, uid_base: u32) -> anyhow::Result<Arc<dyn Runner>> {
    match choose(config).kind {
        RunnerKind::Oci => {
            let runner = oci(config, instance, uid_base).context("preparing the runner without an engine")?;
            Ok(Arc::new(runner.with_workspaces(Workspaces::of(instance))))
        }
        RunnerKind::Docker | RunnerKind::Auto => {
            let options = DockerOptions {
                host: config.runner.docker_host.clone(),
                instance: instance.to_owned(),
                // A runtime of the other runner is none that an engine knows.
                runtime: config.runner.runtime.clone().filter(|_| config.runner.kind == RunnerKind::Docker),
                uid_base,
            };
            let runner = DockerRunner::connect(options).context("preparing the Docker runner")?;
            Ok(Arc::new(runner.with_workspaces(Workspaces::of(instance))))
        }
    }
}

fn oci(config: &Config, instance: &str, uid_base: u32) -> Result<OciRunner, quayside_worker::runner::Fault> {
    OciRunner::connect(OciOptions {
        instance: instance.to_owned(),
        runtime: config.runner.runtime.clone(),
        uid_base,
        images: config.runner.images.clone(),
        state: PathBuf::from(STATE),
        docker_host: config.runner.docker_host.clone(),
    })
}
