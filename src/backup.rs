//! `quayside backup` and `quayside restore`: the embedded database as one file, and back.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use quayside_shared::config::{BackendKind, Config};
use quayside_shared::error::Error;
use quayside_shared::sqlite::backup::{self, Contents};

use crate::cli::{BackupArguments, RestoreArguments};

/// What to use where there is no file of ours.
const ON_GOOGLE: &str = "backup and restore are for [backend] kind = \"embedded\". Firestore backs itself up: \
    `gcloud firestore backups schedules create --database='(default)' --recurrence=daily --retention=14w`, \
    or `gcloud firestore export gs://BUCKET` and `gcloud firestore import gs://BUCKET/PREFIX`. Pub/Sub needs none: the sweeper publishes every waiting run again";

/// `quayside backup`
pub(crate) async fn backup(config: Config, arguments: BackupArguments) -> anyhow::Result<ExitCode> {
    let Some(folder) = folder(&config) else { return Ok(ExitCode::from(crate::EXIT_USAGE)) };
    let file = arguments.file.clone();
    let contents = blocking(move || if arguments.salvage { backup::salvage(&folder, &file) } else { backup::backup(&folder, &file) }).await?;
    say(&format!("wrote {}: {}", arguments.file.display(), told(&contents)));
    Ok(ExitCode::SUCCESS)
}

/// `quayside restore`
pub(crate) async fn restore(config: Config, arguments: RestoreArguments) -> anyhow::Result<ExitCode> {
    let Some(folder) = folder(&config) else { return Ok(ExitCode::from(crate::EXIT_USAGE)) };
    let (into, file) = (folder.clone(), arguments.file.clone());
    let (contents, kept) = blocking(move || backup::restore(&into, &file)).await?;
    say(&format!("{} holds {} now: {}", folder.display(), arguments.file.display(), told(&contents)));
    say(&kept.map_or_else(|| "there was no database before".to_owned(), |kept| format!("what was there is kept as {}", kept.display())));
    say("start the server: what was queued or in progress goes on");
    Ok(ExitCode::SUCCESS)
}

fn folder(config: &Config) -> Option<PathBuf> {
    if config.backend.kind == BackendKind::Google {
        eprintln!("quayside: {ON_GOOGLE}");
        return None;
    }
    Some(config.backend.data_dir.clone())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> anyhow::Result<T> {
    Ok(tokio::task::spawn_blocking(work).await.context("the copying panicked")??)
}

fn told(contents: &Contents) -> String {
    format!("{}, {} of them unfinished, {}", runs(contents.runs), contents.unfinished, size(contents.bytes))
}

/// For people.
pub(crate) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

pub(crate) fn runs(count: u64) -> String {
    if count == 1 { "1 run".to_owned() } else { format!("{count} runs") }
}

fn say(line: &str) {
    // It is done, whether or not somebody reads it.
    let _ = writeln!(std::io::stdout(), "{line}");
}
