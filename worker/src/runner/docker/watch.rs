//! Whether a container ended by itself.
//!
//! Its exit code does not say. An engine that stops in order sends SIGTERM to every container first, and `docker stop` does
//! the same to one: the program exits with 143, or with 0 if it knows that signal. An engine that was killed ends the
//! containers when it comes back. Neither is the program's own end, and its attempt must be made again.
//!
//! The engine's events do say: each signal that goes through the engine is one, told before the exit is. And their
//! stream breaks when the engine goes away, whoever answers at its address afterwards.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures::StreamExt;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::super::{Fault, FaultKind};
use super::{engine, labels};

/// How long the event of an exit may stay behind the exit's answer on another connection. It is told some milliseconds
/// before; an engine that never tells costs this much of each attempt.
const BEHIND: Duration = Duration::from_secs(1);

/// Follows the engine's events about the containers of one instance.
#[derive(Debug, Default)]
pub(super) struct EngineWatch {
    lives: watch::Sender<Lives>,
    following: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// What the events told.
#[derive(Debug, Default)]
struct Lives {
    /// How often the stream broke.
    breaks: u64,
    /// The engine does not tell events to us.
    refused: bool,
    by_id: HashMap<String, Life>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Life {
    /// Its creation was told, so its end will be.
    told: bool,
    /// Somebody here will judge its end: what is known of it is kept until then.
    watched: bool,
    signalled: bool,
    ended: bool,
}

/// A container whose end will be judged. Dropping it forgets what is known of it.
#[derive(Debug)]
pub(super) struct Watched {
    watch: Arc<EngineWatch>,
    id: String,
    breaks: u64,
}

/// A moment before a container is created.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark(u64);

impl EngineWatch {
    /// Follows the events from now on, if nobody does. Called before a container is created.
    pub(super) fn ensure(&self, docker: &Docker, instance: &str) -> Mark {
        let mut following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        let (breaks, refused) = {
            let lives = self.lives.borrow();
            (lives.breaks, lives.refused)
        };
        if !refused && following.as_ref().is_none_or(AbortOnDropHandle::is_finished) {
            let follow = follow(docker.clone(), instance.to_owned(), self.lives.clone());
            *following = Some(AbortOnDropHandle::new(tokio::spawn(follow)));
        }
        Mark(breaks)
    }

    /// Takes the container `id`, created after `mark`, into view.
    pub(super) fn on(self: &Arc<Self>, id: &str, mark: Mark) -> Watched {
        self.lives.send_if_modified(|lives| {
            lives.by_id.entry(id.to_owned()).or_default().watched = true;
            false
        });
        Watched { watch: Arc::clone(self), id: id.to_owned(), breaks: mark.0 }
    }
}

impl Watched {
    /// Whether it ended by itself; asked when its end is known, and never about one that we killed.
    ///
    /// # Errors
    /// [`FaultKind::Engine`] when the engine went away meanwhile, or somebody ended the container through it.
    pub(super) async fn ended_by_itself(&self) -> Result<(), Fault> {
        let mut lives = self.watch.lives.subscribe();
        // Where nobody tells, the exit is all there is to go by.
        let _told_or_not = tokio::time::timeout(BEHIND, lives.wait_for(|lives| self.word(lives).is_some())).await.is_ok();
        self.word(&lives.borrow()).unwrap_or(Ok(()))
    }

    /// Whether its end was told already, or can be told no more. Without a call on the engine.
    pub(super) fn is_over(&self) -> bool {
        let lives = self.watch.lives.borrow();
        lives.breaks != self.breaks || lives.by_id.get(&self.id).is_some_and(|life| life.ended)
    }

    /// Comes back when the engine has gone away since the container was created, and only then.
    pub(super) async fn engine_gone(&self) -> Fault {
        let mut lives = self.watch.lives.subscribe();
        let broken = lives.wait_for(|lives| lives.breaks != self.breaks).await.is_ok();
        if !broken {
            // Never: the sender is ours.
            std::future::pending::<()>().await;
        }
        gone()
    }

    fn word(&self, lives: &Lives) -> Option<Result<(), Fault>> {
        if lives.breaks != self.breaks {
            return Some(Err(gone()));
        }
        match lives.by_id.get(&self.id) {
            Some(Life { signalled: true, .. }) => {
                Some(Err(Fault::new(FaultKind::Engine, "the program was ended through the container engine, and not by us")))
            }
            Some(Life { told: true, ended: false, .. }) => None,
            // Made before anybody watched, or the engine tells no events.
            Some(_) | None => Some(Ok(())),
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.lives.send_if_modified(|lives| {
            lives.by_id.remove(&self.id);
            false
        });
    }
}

fn gone() -> Fault {
    Fault::new(FaultKind::Engine, "the container engine went away while the program ran")
}

async fn follow(docker: Docker, instance: String, lives: watch::Sender<Lives>) {
    let filters = HashMap::from([
        ("type".to_owned(), vec!["container".to_owned()]),
        ("event".to_owned(), ["create", "kill", "die", "destroy"].map(str::to_owned).to_vec()),
        ("label".to_owned(), vec![format!("{}={instance}", labels::INSTANCE)]),
    ]);
    let mut events = Box::pin(docker.events(Some(EventsOptionsBuilder::default().filters(&filters).build())));
    let end = loop {
        match events.next().await {
            Some(Ok(event)) => note(&lives, event),
            Some(Err(error)) => break Some(error),
            None => break None,
        }
    };
    match end {
        Some(error @ DockerError::DockerResponseServerError { .. }) => {
            tracing::warn!(
                status = engine::status(&error),
                "the container engine does not tell its events: its own stop may look like an agent's exit"
            );
            lives.send_modify(|lives| lives.refused = true);
        }
        end => {
            tracing::debug!(error = end.map(tracing::field::display), "the container engine's events broke off");
            lives.send_modify(|lives| {
                lives.breaks += 1;
                lives.by_id.clear();
            });
        }
    }
}

fn note(lives: &watch::Sender<Lives>, event: EventMessage) {
    let (Some(action), Some(id)) = (event.action, event.actor.and_then(|actor| actor.id)) else { return };
    lives.send_modify(|lives| match action.as_str() {
        "create" => lives.by_id.entry(id).or_default().told = true,
        "destroy" => match lives.by_id.get_mut(&id) {
            Some(life) if life.watched => life.ended = true,
            _ => drop(lives.by_id.remove(&id)),
        },
        action => {
            if let Some(life) = lives.by_id.get_mut(&id) {
                life.signalled |= action == "kill" && !life.ended;
                life.ended |= action == "die";
            }
        }
    });
}
