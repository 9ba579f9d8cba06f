//! Which worker on this machine a process is.
//!
//! A worker names its containers, so that its next life finds its own leftovers and nobody else's. The names are in
//! files beside the data, one for each worker that runs there at once; a lock on the file says that its worker lives.
//! What a dead worker left behind is removed by whoever sees that its lock is free.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use quayside_shared::ids::WorkerId;

/// Workers of one data folder on one machine, at most.
const INSTANCES: u32 = 64;
/// Containers' uids of one instance: two workers must not share one.
const UIDS: u32 = 10_000;

/// The identity, held as long as this lives.
pub(crate) struct Instance {
    /// The label of its containers.
    pub(crate) name: String,
    /// Its first container uid.
    pub(crate) uid_base: u32,
    _lock: File,
}

impl Instance {
    /// Takes the first identity in `data_dir` that no living process holds.
    pub(crate) fn take(data_dir: &Path, uid_base: u32) -> anyhow::Result<Self> {
        std::fs::create_dir_all(data_dir).with_context(|| format!("creating {}", data_dir.display()))?;
        for number in 0..INSTANCES {
            let path = path(data_dir, number);
            if let Some((name, lock)) = claim(&path).with_context(|| format!("taking {}", path.display()))? {
                return Ok(Self { name, uid_base: uid_base.saturating_add(number * UIDS), _lock: lock });
            }
        }
        bail!("{INSTANCES} workers run on {} already; give this one its own backend.data_dir", data_dir.display())
    }
}

/// Names of workers in `data_dir` that are dead. Each is held while the closure runs, so that nobody becomes it meanwhile.
pub(crate) fn dead(data_dir: &Path) -> Vec<(String, File)> {
    let existing = (0..INSTANCES).map(|number| path(data_dir, number)).filter(|path| path.exists());
    existing.filter_map(|path| claim(&path).ok().flatten()).collect()
}

fn path(data_dir: &Path, number: u32) -> PathBuf {
    data_dir.join(if number == 0 { "instance".to_owned() } else { format!("instance-{number}") })
}

/// The name in the file, made when it has none, with the file locked; `None` while a living process holds it.
fn claim(path: &Path) -> anyhow::Result<Option<(String, File)>> {
    let mut file = File::options().create(true).read(true).write(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let mut name = text.trim().to_owned();
    if name.is_empty() {
        name = WorkerId::random().as_str().replace("worker_", "quayside-");
        file.rewind()?;
        writeln!(file, "{name}")?;
        file.sync_all()?;
    }
    Ok(Some((name, file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn living_workers_differ_and_a_dead_ones_name_is_taken_up_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = Instance::take(folder.path(), 100_000).unwrap();
        let second = Instance::take(folder.path(), 100_000).unwrap();
        assert_ne!(first.name, second.name);
        assert_ne!(first.uid_base, second.uid_base);
        assert!(dead(folder.path()).is_empty());
        let name = first.name.clone();
        drop(first);
        let dead: Vec<String> = dead(folder.path()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(dead, std::slice::from_ref(&name));
        assert_eq!(Instance::take(folder.path(), 100_000).unwrap().name, name);
    }
}
