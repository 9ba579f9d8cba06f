//! `quayside doctor`: what works here, what does not, and what to do about it.

mod sandbox;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use quayside_shared::config::{BackendKind, Config};
use quayside_shared::connect::{Connected, connect};
use quayside_shared::error::chain;
use quayside_shared::sqlite::examine::{Found, examine, room};

use crate::backup::{runs, size};
use crate::cli::DoctorArguments;

/// Checks one thing after the other and prints a line for each.
pub(crate) async fn run(config: Config, arguments: DoctorArguments) -> anyhow::Result<ExitCode> {
    let mut healthy = true;
    let mut checks = Vec::new();
    let say = |line: String| {
        if !arguments.json {
            // Who reads only the first lines (`| head`) has closed the pipe.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    };
    let mut row = |name: &str, outcome: Result<String, String>| {
        let (mark, text) = match outcome {
            Ok(text) => ("ok  ", text),
            Err(text) => {
                healthy = false;
                ("FAIL", text)
            }
        };
        say(format!("{mark}  {name:<14} {text}"));
        checks.push(serde_json::json!({ "name": name, "ok": mark != "FAIL", "text": text }));
    };
    row("configuration", Ok(format!("{} agents, {:?} backend", config.agents.len(), config.backend.kind)));
    match config.backend.kind {
        BackendKind::Embedded => {
            row("data folder", data_folder(&config));
            match examine(&config.backend.data_dir) {
                Ok(found) => {
                    row("database", Ok(database(&found)));
                    if found.contents.is_some() {
                        row("integrity", integrity(found).await);
                    }
                }
                Err(error) => row("database", Err(chain(&error))),
            }
        }
        BackendKind::Google => match connect(&config, None).await {
            Ok(Connected { queue, store }) => {
                row("firestore", store.ping().await.map(|()| config.google.project_id.clone()).map_err(|error| chain(&error)));
                row("pubsub", queue.ping().await.map(|()| config.google.topic.clone()).map_err(|error| chain(&error)));
            }
            Err(error) => row("google", Err(chain(&error))),
        },
    }
    let chosen = crate::runners::choose(&config);
    row("runner", Ok(format!("{}: {}", chosen.kind.name(), chosen.why)));
    let runner = crate::work::looking_runner(&config)?;
    let answered = runner.ping().await;
    let is_up = answered.is_ok();
    match answered {
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
    let mut examined = None;
    if is_up {
        let found = sandbox::examine(&config).await?;
        row("sandbox", found.summary());
        found.lines().into_iter().for_each(&say);
        examined = Some(found);
    }
    if arguments.json {
        let _ = writeln!(
            std::io::stdout(),
            "{}",
            serde_json::json!({ "healthy": healthy, "checks": checks, "sandbox": examined.map(|found| found.json()) })
        );
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A large file takes a while to read: how often that is said.
const STILL_CHECKING: Duration = Duration::from_secs(5);

fn data_folder(config: &Config) -> Result<String, String> {
    let folder = config.backend.data_dir.display();
    let (free, reserve) = (room(&config.backend.data_dir).map_err(|error| chain(&error))?, config.backend.reserve.bytes());
    if free < reserve {
        return Err(format!(
            "{folder} has {} left, less than backend.reserve = {}: new runs are refused; free some space, or shorten limits.retention",
            size(free),
            size(reserve)
        ));
    }
    Ok(format!("{folder} has {} left; the last {} of it are for runs that were accepted", size(free), size(reserve)))
}

fn database(found: &Found) -> String {
    let Some(contents) = &found.contents else { return format!("none yet; the first start makes {}", found.database.display()) };
    let schema = match contents.schema {
        schema if schema < found.newest_schema => format!("schema {schema}, which the next start brings to {}", found.newest_schema),
        schema => format!("schema {schema}"),
    };
    let served = if found.served { "; a server is running on it" } else { "" };
    let (all, bytes) = (runs(contents.runs), size(contents.bytes));
    format!("{}: {schema}, {all}, {} of them unfinished, {bytes}{served}", found.database.display(), contents.unfinished)
}

/// Every page. Says on standard error that it still lives.
async fn integrity(found: Found) -> Result<String, String> {
    let begun = Instant::now();
    let mut check = tokio::task::spawn_blocking(move || found.check());
    loop {
        match tokio::time::timeout(STILL_CHECKING, &mut check).await {
            Ok(Ok(outcome)) => {
                return outcome
                    .map(|()| format!("every page and index fits ({:.1} s)", begun.elapsed().as_secs_f64()))
                    .map_err(|error| chain(&error));
            }
            Ok(Err(_panicked)) => return Err("the check broke off".to_owned()),
            Err(_elapsed) => eprintln!("      still reading the database ({:.0} s)", begun.elapsed().as_secs_f64()),
        }
    }
}
