//! The files of an attempt: those that came with the message are in the workspace before the request is sent, and what is
//! there at the end is stored before the end is.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quayside_shared::agent::Agent;
use quayside_shared::error::{Error, ErrorKind, chain};
use quayside_shared::run::{AttemptOutcome, ErrorCode, Run, RunError};
use quayside_shared::store::files::{Collected, FileEntry, LeftOut, RunFile};
use quayside_shared::store::{Fenced, Lease, LeaseLost};
use tokio::time::Instant;

use super::container::Obtained;
use super::{Attempts, Ending, RETRY};
use crate::artefacts;
use crate::lease::LeaseKeeper;

/// A store that does not take the files for this long gets the run's end without them.
const PATIENCE: Duration = Duration::from_secs(30);

impl Attempts {
    /// Puts what came with the message into `workspace`; says what that was. `Err` is how the attempt ends instead.
    pub(super) async fn place_inputs(&self, run: &Run, workspace: Option<PathBuf>) -> Result<Vec<FileEntry>, Ending> {
        if run.inputs == 0 {
            return Ok(Vec::new());
        }
        let Some(workspace) = workspace else {
            return Err(refused("files came with the message, and this worker cannot put them into a workspace: it may not mount one"));
        };
        let inputs = self.store.inputs(&run.id).await.map_err(|error| {
            tracing::warn!(run_id = %run.id, error = %chain(&error), "the message's files cannot be read, the run goes back");
            Ending::Released(AttemptOutcome::EngineFault)
        })?;
        let known = inputs.iter().map(RunFile::entry).collect();
        let placed = tokio::task::spawn_blocking(move || artefacts::place(&workspace, &inputs)).await;
        match placed {
            Ok(Ok(())) => Ok(known),
            Ok(Err(error)) => {
                tracing::debug!(run_id = %run.id, error = %chain(&error), "a file was not placed");
                Err(refused(chain(&error)))
            }
            Err(_panicked) => Err(Ending::Released(AttemptOutcome::EngineFault)),
        }
    }

    /// Stores what an attempt left in its workspace, when it ends its run. Its container must not move any more.
    pub(super) async fn keep_files(&self, agent: &Agent, lease: &Lease, keeper: &LeaseKeeper, obtained: &mut Obtained, ending: Ending) -> Ending {
        let known = std::mem::take(&mut obtained.inputs);
        let workspace = obtained.container.workspace();
        let (Ending::Finished(..), Some(workspace), 1..) = (&ending, workspace, agent.files) else { return ending };
        let bytes = agent.files;
        let collecting = tokio::task::spawn_blocking(move || {
            if artefacts::has_entries(&workspace)? { artefacts::collect(&workspace, bytes, &known) } else { Ok(Collected::default()) }
        });
        let collected = match collecting.await.map_err(io::Error::other).flatten() {
            Ok(collected) => collected,
            Err(error) => {
                tracing::warn!(run_id = %lease.run_id, error = %chain(&error), "a workspace cannot be read; the run ends without its files");
                Collected { skipped: [(LeftOut::Unreadable, 1)].into(), ..Collected::default() }
            }
        };
        if collected.is_empty() {
            return ending;
        }
        match self.put_files(lease, keeper, collected).await {
            Ok(()) => ending,
            Err(LeaseLost) => Ending::LeaseLost,
        }
    }

    /// Tries until it is done, the lease is lost, or it becomes clear that the store has no room for them.
    async fn put_files(&self, lease: &Lease, keeper: &LeaseKeeper, collected: Collected) -> Fenced<()> {
        let (mut files, until) = (Arc::new(collected), Instant::now() + PATIENCE);
        loop {
            if keeper.lost.is_cancelled() {
                return Err(LeaseLost);
            }
            let error = match self.store.put_files(lease, Arc::clone(&files)).await {
                Ok(fenced) => return fenced,
                Err(error) => error,
            };
            tracing::warn!(run_id = %lease.run_id, error = %chain(&error), "the files of a run cannot be stored");
            if is_hopeless(&error) || Instant::now() >= until {
                if files.files.is_empty() {
                    return Ok(());
                }
                files = Arc::new(without_files(&files));
                continue;
            }
            tokio::select! {
                biased;
                () = keeper.lost.cancelled() => {}
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

fn is_hopeless(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Full | ErrorKind::Internal)
}

/// What can still be told when the files themselves cannot be kept.
fn without_files(files: &Collected) -> Collected {
    let mut skipped = files.skipped.clone();
    skipped.insert(LeftOut::NotStored, files.files.len() as u64);
    Collected { files: Vec::new(), skipped, truncated: true }
}

fn refused(what: impl Into<String>) -> Ending {
    Ending::Finished(super::execute::finished(AttemptOutcome::Refused, Some(RunError::new(ErrorCode::SandboxError, what))), None)
}
