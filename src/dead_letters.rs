//! `quayside dead-letters`: what no worker will try again by itself, and trying it again.

use std::process::ExitCode;

use anyhow::Context;
use quayside_shared::config::{Config, Secret};
use serde_json::Value;

use crate::admin_key;
use crate::cli::{DeadLetterCommand, DeadLettersArguments};
use crate::client::Client;

/// Rows asked for at once.
const PAGE: u32 = 100;

/// With the key that was given, so that no configuration is needed.
pub(crate) async fn run_with_key(arguments: &DeadLettersArguments, key: &str) -> anyhow::Result<ExitCode> {
    run(arguments, &Secret::new(key.to_owned())).await
}

/// With the key of the server whose configuration this is.
pub(crate) async fn run_with_config(arguments: &DeadLettersArguments, config: &Config) -> anyhow::Result<ExitCode> {
    run(arguments, &admin_key::find(config)?).await
}

async fn run(arguments: &DeadLettersArguments, key: &Secret) -> anyhow::Result<ExitCode> {
    let client = Client::new(&arguments.url, "operator")?.with_bearer(key);
    match &arguments.command {
        DeadLetterCommand::List => list(&client, arguments.json).await?,
        DeadLetterCommand::Show { id } => show(&client.json(client.get(&path(id)?)).await?, arguments.json)?,
        DeadLetterCommand::Redrive { ids } => {
            for id in ids {
                let run = client.json(client.post(&format!("{}/redrive", path(id)?))).await.with_context(|| id.clone())?;
                redriven(id, &run, arguments.json)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// An id stands in the path as it is.
fn path(id: &str) -> anyhow::Result<String> {
    let id: quayside_shared::ids::DeadLetterId = id.parse().with_context(|| format!("{id:?}"))?;
    Ok(format!("/api/admin/dead-letters/{id}"))
}

#[expect(clippy::print_stdout, reason = "printing them is the command")]
async fn list(client: &Client, json: bool) -> anyhow::Result<()> {
    let (mut after, mut shown) = (None::<String>, 0);
    loop {
        let place = after.map(|after| format!("&after={after}")).unwrap_or_default();
        let page = client.json(client.get(&format!("/api/admin/dead-letters?limit={PAGE}{place}"))).await?;
        for letter in page["data"].as_array().into_iter().flatten() {
            shown += 1;
            if json {
                println!("{letter}");
            } else {
                println!("{}  {}  {:<18}  {}", text(letter, "id"), text(letter, "createdAt"), text(letter, "reason"), text(letter, "detail"));
            }
        }
        after = page["nextAfter"].as_str().map(str::to_owned);
        if after.is_none() {
            break;
        }
    }
    if shown == 0 {
        eprintln!("There are no dead letters.");
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "printing it is the command")]
fn show(letter: &Value, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{letter}");
        return Ok(());
    }
    let fields = letter.as_object().context("the answer is not a dead letter; is this a Quayside server?")?;
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        println!("{name:<12} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "printing it is the command")]
fn redriven(id: &str, run: &Value, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{run}");
    } else {
        println!("{id} goes on as {}", run["id"].as_str().context("the answer is not a run; is this a Quayside server?")?);
    }
    Ok(())
}

fn text<'a>(letter: &'a Value, field: &str) -> &'a str {
    letter[field].as_str().unwrap_or("-")
}
