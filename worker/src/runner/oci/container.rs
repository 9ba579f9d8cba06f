//! One container by its name: its control group and its folder, dead or alive.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::super::{Fault, FaultKind};
use super::groups::{Group, Groups};

/// How long a kill may take until the kernel confirms it.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at something that takes the kernel well below a millisecond, and has no event for its end.
const LOOK: Duration = Duration::from_millis(1);

/// What a container has on this machine.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub group: Group,
    /// Its folder: configuration, the runtime's files, the process id.
    pub state: PathBuf,
}

impl Container {
    /// The container `name` of the instance whose groups and folder these are.
    pub(super) fn new(groups: &Groups, instance_state: &Path, name: &str) -> Self {
        Self { group: groups.group(name), state: instance_state.join(name) }
    }

    /// Kills every process of it and returns when none is left.
    pub(super) async fn kill(&self) -> Result<(), Fault> {
        let begun = Instant::now();
        loop {
            self.group.kill_once().map_err(|error| fault("killing a container", error))?;
            if self.group.processes().map_err(|error| fault("killing a container", error))?.is_empty() {
                return Ok(());
            }
            if begun.elapsed() > KILL_LIMIT {
                return Err(Fault::new(FaultKind::Engine, format!("the kernel did not end a container within {} s", KILL_LIMIT.as_secs())));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Removes everything of it; kills what still lives. What is gone is fine.
    pub(super) async fn remove(&self) -> Result<(), Fault> {
        let begun = Instant::now();
        // A group stays busy for a moment after its last process ended.
        while let Err(error) = self.group.remove() {
            if begun.elapsed() > KILL_LIMIT {
                return Err(fault("removing a control group", error));
            }
            self.kill().await?;
            tokio::time::sleep(LOOK).await;
        }
        let state = self.state.clone();
        let removed = tokio::task::spawn_blocking(move || remove_folder(&state)).await;
        removed.map_err(io::Error::other).and_then(|removed| removed).map_err(|error| fault("removing the folder of a container", error))
    }

    /// Stops its processes, or lets them go on, and returns when it is so.
    pub(super) async fn set_frozen(&self, frozen: bool) -> Result<(), Fault> {
        let doing = if frozen { "freezing a container" } else { "thawing a container" };
        self.group.set_frozen(frozen).map_err(|error| fault(doing, error))?;
        let begun = Instant::now();
        while self.group.is_frozen().map_err(|error| fault(doing, error))? != frozen {
            if begun.elapsed() > KILL_LIMIT {
                return Err(Fault::new(FaultKind::Engine, format!("the kernel did not answer ({doing})")));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A failed call of the kernel: nobody's fault. Paths go into the source, for the log.
pub(super) fn fault(doing: &str, error: io::Error) -> Fault {
    Fault::new(FaultKind::Engine, format!("this machine failed at {doing}")).with_source(error)
}
