//! The admin key of a server with the embedded backend: a file beside the data, so that whoever may read the data may
//! operate the server, and nobody else.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use quayside_shared::config::{BackendKind, Config, Secret};
use quayside_shared::ids::RunId;

/// The key that `config` names, or the one in the data folder, which is made when it is not there.
pub(crate) fn take(config: &Config) -> anyhow::Result<Option<Secret>> {
    if config.api.admin_key.is_some() || config.backend.kind == BackendKind::Google {
        return Ok(config.api.admin_key.clone());
    }
    let path = path(&config.backend.data_dir);
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(file) => write(file).with_context(|| format!("writing {}", path.display())).map(Some),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => read(&path).map(Some),
        Err(error) => Err(error).with_context(|| format!("writing {}", path.display())),
    }
}

/// The key for a client command: from `config` or the data folder of a server on this machine.
pub(crate) fn find(config: &Config) -> anyhow::Result<Secret> {
    match &config.api.admin_key {
        Some(key) => Ok(key.clone()),
        None => read(&path(&config.backend.data_dir))
            .context("no admin key; pass it in QUAYSIDE_ADMIN_KEY, or run this where the server's quayside.toml is"),
    }
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.key")
}

fn read(path: &Path) -> anyhow::Result<Secret> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let key = text.trim();
    anyhow::ensure!(!key.is_empty(), "{} is empty; remove it and start the server again, which makes a new one", path.display());
    Ok(Secret::new(key.to_owned()))
}

fn write(mut file: File) -> anyhow::Result<Secret> {
    // 256 random bits, as two ids have them.
    let key: String = [RunId::random(), RunId::random()].iter().map(|id| id.as_str().trim_start_matches("run_").to_owned()).collect();
    writeln!(file, "{key}")?;
    file.sync_all()?;
    Ok(Secret::new(key))
}
