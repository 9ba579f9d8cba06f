//! The one binary: everything on one machine (`up`), the parts apart (`api`, `worker`), and the client commands.

mod admin_key;
mod backup;
mod cli;
mod client;
mod dead_letters;
mod doctor;
mod instance;
mod listening;
mod runners;
mod serve;
mod submit;
mod work;

use std::process::ExitCode;

use clap::Parser;
use quayside_shared::config::Config;

use cli::{Cli, Command};

/// Wrong configuration or usage, as clap has it too.
const EXIT_USAGE: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    quayside_shared::telemetry::init_logs(&cli.log);
    let outcome = match &cli.command {
        Command::Submit(arguments) => submit::run(arguments).await,
        Command::Up(arguments) => with_config(&cli, |config| serve::up(config, arguments.clone())).await,
        Command::Api(arguments) => with_config(&cli, |config| serve::api(config, arguments.clone())).await,
        Command::Worker => with_config(&cli, serve::worker).await,
        Command::Doctor(arguments) => with_config(&cli, |config| doctor::run(config, arguments.clone())).await,
        Command::DeadLetters(arguments) => match &arguments.admin_key {
            Some(key) => dead_letters::run_with_key(arguments, key).await,
            None => with_config(&cli, |config| async move { dead_letters::run_with_config(arguments, &config).await }).await,
        },
        Command::Backup(arguments) => with_config(&cli, |config| backup::backup(config, arguments.clone())).await,
        Command::Restore(arguments) => with_config(&cli, |config| backup::restore(config, arguments.clone())).await,
        Command::Openapi => print_openapi(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("quayside: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Reads the configuration and runs `command` with it; a wrong one is told and ends with its own exit code.
async fn with_config<F: Future<Output = anyhow::Result<ExitCode>>>(cli: &Cli, command: impl FnOnce(Config) -> F) -> anyhow::Result<ExitCode> {
    match Config::load(cli.config.as_deref(), std::env::vars()) {
        Ok(config) => command(config).await,
        Err(error) => {
            eprintln!("quayside: {error}");
            Ok(ExitCode::from(EXIT_USAGE))
        }
    }
}

#[expect(clippy::print_stdout, reason = "printing it is the command")]
fn print_openapi() -> anyhow::Result<ExitCode> {
    println!("{}", serde_json::to_string_pretty(&quayside_api::openapi())?);
    Ok(ExitCode::SUCCESS)
}
