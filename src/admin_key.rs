//! The admin key of a server with the embedded backend: a file beside the data, so that whoever may read the data may
//! operate the server, and nobody else.

use std::fs::OpenOptions;
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
    if path.exists() { read(&path) } else { make(&path).with_context(|| format!("writing {}", path.display())) }.map(Some)
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

/// Under its name only when it is whole: a process that is killed in between makes another with its next start. Nobody else
/// does so meanwhile, because the data folder belongs to one process.
fn make(path: &Path) -> anyhow::Result<Secret> {
    // 256 random bits, as two ids have them.
    let key: String = [RunId::random(), RunId::random()].iter().map(|id| id.as_str().trim_start_matches("run_").to_owned()).collect();
    let draft = path.with_extension("new");
    // What a killed process left may have other rights.
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    writeln!(file, "{key}")?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    Ok(Secret::new(key))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_whole_whatever_an_earlier_start_left() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::load(None, [("QUAYSIDE__BACKEND__DATA_DIR".to_owned(), folder.path().display().to_string())]).unwrap();
        // Killed in the middle of writing it.
        std::fs::write(folder.path().join("admin.new"), "half").unwrap();
        let made = take(&config).unwrap().unwrap();
        assert_eq!(made.expose().len(), 44);
        assert_eq!(std::fs::metadata(path(folder.path())).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left of the draft");
        assert_eq!((take(&config).unwrap(), find(&config).unwrap()), (Some(made.clone()), made));
    }
}
