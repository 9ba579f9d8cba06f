//! Where an attempt's container comes from, and where it goes when the end is stored.

use std::time::Duration;

use bytes::Bytes;
use quayside_shared::agent::{Agent, Session};
use quayside_shared::error::chain;
use quayside_shared::run::{AttemptOutcome, Run, Status};
use quayside_shared::store::Lease;
use quayside_shared::store::files::FileEntry;
use tokio::time::Instant;

use super::execute::{Interrupt, finished, launch_failed};
use super::{Attempts, Ending, Leftover, RETRY};
use crate::lease::LeaseKeeper;
use crate::reaper::Container;
use crate::runner::{ContainerKey, Fault, FaultKind, LaunchSpec, Measured, Sandbox};
use crate::sessions::{Kept, SessionKey, Turn};
use crate::slots::Announced;

/// A cancellation waits this long for a launch that is under way; an ordinary one takes a few hundred milliseconds.
const LAUNCH_GRACE: Duration = Duration::from_secs(5);

/// What a failed launch may have left behind is looked for this long, before the run goes to another attempt.
const CLEAN_UP: Duration = Duration::from_secs(5);

/// A container that has been given the request.
pub(super) struct Obtained {
    pub(super) container: Container,
    /// What it had used before the request, for runs that came before in its session.
    pub(super) before: Measured,
    /// Where the agent keeps sessions.
    pub(super) turn: Option<(Turn, u64)>,
    /// What was put into its workspace.
    pub(super) inputs: Vec<FileEntry>,
}

/// What a container whose reply is complete does until the end is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Its program goes on, if it likes. There is nothing in its workspace that anybody could miss.
    AtWork,
    /// It lives and does not move.
    Still,
    /// It is dead.
    Gone,
}

impl Attempts {
    /// The container of the conversation, a warm one, or a new one, in this order; with the request handed over.
    pub(super) async fn obtain(&self, agent: &Agent, run: &Run, lease: &Lease, request: Bytes, keeper: &LeaseKeeper) -> Result<Obtained, Ending> {
        let turn = if agent.session == Session::Conversation {
            let (turn, kept) = tokio::select! {
                biased;
                turn = self.pool.sessions().turn(SessionKey::of(run)) => turn,
                interrupt = self.interrupted(keeper, None) => return Err(ended_early(&interrupt)),
            };
            if let Some(mut kept) = kept {
                let inputs = match self.place_inputs(run, kept.container.workspace()).await {
                    Ok(inputs) => inputs,
                    Err(ending) => {
                        self.pool.reaper().reap(kept.container).await;
                        return Err(ending);
                    }
                };
                match kept.resume(request.clone()).await {
                    Ok(()) => return Ok(Obtained { container: kept.container, before: kept.used, turn: Some((turn, kept.generation)), inputs }),
                    Err(fault) => {
                        tracing::debug!(run_id = %run.id, error = %chain(&fault), "the conversation's container is lost, a new one takes its place");
                        // It may have been thawed all the same, with the request before it.
                        if !self.kill(&mut *kept.container.sandbox, run, keeper).await {
                            self.pool.reaper().reap(kept.container).await;
                            return Err(Ending::LeaseLost);
                        }
                        self.pool.reaper().reap(kept.container).await;
                    }
                }
            }
            self.pool.know_image(agent).await;
            Some((turn, self.pool.generation(&agent.name)))
        } else {
            None
        };
        let mut container = match self.pool.take(&agent.name) {
            Some(container) => container,
            None => self.launch_cold(agent, run, lease, keeper).await?,
        };
        let inputs = match self.place_inputs(run, container.workspace()).await {
            Ok(inputs) => inputs,
            Err(ending) => {
                self.pool.reaper().reap(container).await;
                return Err(ending);
            }
        };
        let sandbox = &mut container.sandbox;
        let handed_over = if turn.is_some() { sandbox.say(request) } else { sandbox.send(request) };
        if let Err(fault) = handed_over {
            self.pool.reaper().reap(container).await;
            return Err(launch_failed(run, &fault));
        }
        Ok(Obtained { container, before: Measured::default(), turn, inputs })
    }

    async fn launch_cold(&self, agent: &Agent, run: &Run, lease: &Lease, keeper: &LeaseKeeper) -> Result<Container, Ending> {
        let _cold = self.pool.cold();
        let key = ContainerKey::Run { run_id: run.id.clone(), epoch: lease.epoch };
        // The place is taken until nothing is left that may have it.
        let (spec, place, announced) = self.pool.prepare(agent.clone(), key);
        match self.launch(&spec, keeper).await {
            Ok(Ok(sandbox)) => Ok(Container::new(sandbox, place, announced)),
            Ok(Err(fault)) => {
                if matches!(fault.kind(), FaultKind::Engine | FaultKind::Misuse) {
                    self.clean_up(run, announced, keeper, Some(Instant::now() + CLEAN_UP)).await;
                }
                Err(launch_failed(run, &fault))
            }
            Err(interrupt) => {
                self.clean_up(run, announced, keeper, None).await;
                Err(ended_early(&interrupt))
            }
        }
    }

    /// Launches; a launch that is still under way some time after an interrupt (an image that is being fetched) is
    /// abandoned.
    async fn launch(&self, spec: &LaunchSpec, keeper: &LeaseKeeper) -> Result<Result<Box<dyn Sandbox>, Fault>, Interrupt> {
        let launch = self.runner.launch(spec);
        tokio::pin!(launch);
        tokio::select! {
            biased;
            launched = &mut launch => Ok(launched),
            interrupt = self.interrupted(keeper, None) => tokio::time::timeout(LAUNCH_GRACE, launch).await.map_err(|_elapsed| interrupt),
        }
    }

    /// Removes what a launch that came to nothing may have made all the same, so that nobody calls the run cancelled while
    /// it lives. Tries until it is done, the lease is lost, or `until`: an engine that stays away must not keep the run.
    async fn clean_up(&self, run: &Run, announced: Announced, keeper: &LeaseKeeper, until: Option<Instant>) {
        drop(announced);
        while let Err(fault) = self.runner.sweep(&|key| self.live.contains(key)).await {
            tracing::warn!(run_id = %run.id, error = %chain(&fault), "a launch that came to nothing cannot be cleaned up");
            if keeper.lost.is_cancelled() || until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Kills until the engine confirms it. Only a lost lease ends the trying: `cancelled` must not be said before. Says
    /// whether it is dead.
    pub(super) async fn kill(&self, sandbox: &mut dyn Sandbox, run: &Run, keeper: &LeaseKeeper) -> bool {
        while let Err(fault) = sandbox.kill().await {
            tracing::warn!(run_id = %run.id, error = %chain(&fault), "a container could not be killed, trying again");
            if keeper.lost.is_cancelled() {
                return false;
            }
            tokio::time::sleep(RETRY).await;
        }
        true
    }

    /// What is to be done with a container whose reply is complete before the end is stored. When somebody has written to
    /// its `/workspace`, nobody may write there any more while that is collected: it is killed, or, where it is kept for
    /// the conversation, frozen. `None` when the lease is lost.
    pub(super) async fn before_the_end(&self, run: &Run, obtained: &mut Obtained, keeper: &LeaseKeeper) -> Option<Rest> {
        let sandbox = &mut *obtained.container.sandbox;
        let wrote = sandbox.workspace().is_some_and(|path| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()));
        if !wrote {
            return Some(Rest::AtWork);
        }
        if obtained.turn.is_some() && sandbox.freeze().await.is_ok() {
            return Some(Rest::Still);
        }
        self.kill(sandbox, run, keeper).await.then_some(Rest::Gone)
    }

    /// The end is stored: the container is kept for the conversation, or goes; neither is waited for.
    pub(super) async fn let_go(&self, leftover: Leftover, run: &Run) {
        let Leftover { obtained: Obtained { mut container, turn, .. }, lives } = leftover;
        match turn {
            Some((turn, generation)) if lives && run.status == Status::Completed => {
                let used = container.sandbox.measure();
                let idle = self.agents.get(&run.agent).map_or(Duration::ZERO, |agent| agent.idle);
                let pool = self.pool.clone();
                self.pool.reaper().spawn(async move {
                    turn.keep(Kept { container, used, generation, idle }).await;
                    pool.look_again();
                });
            }
            _ => self.pool.reaper().reap(container).await,
        }
    }
}

/// The end of an attempt that had no container yet, or has none any more.
fn ended_early(interrupt: &Interrupt) -> Ending {
    match interrupt {
        Interrupt::LeaseLost => Ending::LeaseLost,
        Interrupt::HandBack(outcome) => Ending::Released(*outcome),
        Interrupt::Cancelled => Ending::Finished(finished(AttemptOutcome::Cancelled, None), None),
        Interrupt::TimedOut => Ending::Finished(finished(AttemptOutcome::TimedOut, None), None),
    }
}
