//! `quayside doctor`: what works here, what does not, and what to do about it.

use std::process::ExitCode;

use quayside_shared::config::{BackendKind, Config};
use quayside_shared::connect::{Connected, connect};
use quayside_shared::error::chain;
use quayside_shared::sqlite::Database;

/// Checks one thing after the other and prints a line for each.
#[expect(clippy::print_stdout, reason = "the table is the command's output")]
pub(crate) async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let mut healthy = true;
    let mut row = |name: &str, outcome: Result<String, String>| {
        let (mark, text) = match outcome {
            Ok(text) => ("ok  ", text),
            Err(text) => {
                healthy = false;
                ("FAIL", text)
            }
        };
        println!("{mark}  {name:<14} {text}");
    };
    row("configuration", Ok(format!("{} agents, {:?} backend", config.agents.len(), config.backend.kind)));
    match config.backend.kind {
        BackendKind::Embedded => row("database", database(&config)),
        BackendKind::Google => match connect(&config, None).await {
            Ok(Connected { queue, store }) => {
                row("firestore", store.ping().await.map(|()| config.google.project_id.clone()).map_err(|error| chain(&error)));
                row("pubsub", queue.ping().await.map(|()| config.google.topic.clone()).map_err(|error| chain(&error)));
            }
            Err(error) => row("google", Err(chain(&error))),
        },
    }
    let runner = crate::work::looking_runner(&config)?;
    match runner.ping().await {
        Ok(engine) => row("engine", Ok(engine.description)),
        Err(fault) => row(
            "engine",
            Err(format!("{}; start it (`sudo systemctl start docker`, or `infra/dev/docker.sh`), or set runner.docker_host", chain(&fault))),
        ),
    }
    for (name, agent) in &config.agents {
        let outcome = match runner.image_digest(&agent.image).await {
            Ok(Some(digest)) => Ok(format!("{} {digest}", agent.image)),
            Ok(None) => Err(format!("the image {} is not there; `docker pull` it, or build ours with `infra/agents/build.sh`", agent.image)),
            Err(fault) => Err(chain(&fault)),
        };
        row(&format!("agent {name}"), outcome);
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn database(config: &Config) -> Result<String, String> {
    match Database::open(&config.backend.data_dir) {
        Ok(database) => Ok(format!("{} opens and has today's schema", database.path().display())),
        Err(error) => Err(chain(&error)),
    }
}
