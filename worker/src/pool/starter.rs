//! Makes one warm container.

use std::time::Duration;

use quayside_shared::agent::Agent;
use quayside_shared::error::chain;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::{Pool, observe};
use crate::reaper::Container;
use crate::runner::{ContainerKey, Fault, FaultKind};

/// A start that takes longer (an image that is being fetched) goes on beside the starters, not instead of one.
const SLOW: Duration = Duration::from_secs(5);

/// Starts a container of `agent` for its stock; `starter` is held meanwhile.
pub(super) fn start(pool: Pool, agent: Agent, generation: u64, starter: OwnedSemaphorePermit) {
    let reaper = pool.0.reaper.clone();
    reaper.spawn(async move {
        let (name, begun) = (agent.name.clone(), Instant::now());
        pool.know_image(&agent).await;
        let (spec, place, announced) = pool.prepare(agent, ContainerKey::Warm(rand::random()));
        let launch = pool.0.runner.launch(&spec);
        tokio::pin!(launch);
        let launched = match tokio::time::timeout(SLOW, &mut launch).await {
            Ok(launched) => {
                drop(starter);
                launched
            }
            Err(_elapsed) => {
                tracing::info!(agent = %name, "a warm container takes long to start");
                drop(starter);
                launch.await
            }
        };
        let now = Instant::now();
        let mut state = pool.state();
        let closed = state.closed;
        let mut unwanted = None;
        if let Some(stock) = state.stocks.get_mut(&name) {
            stock.starting -= 1;
            match launched {
                Ok(sandbox) => {
                    let container = Container::new(sandbox, place, announced);
                    if closed || stock.generation != generation {
                        unwanted = Some(container);
                    } else {
                        stock.started(container, now - begun, now);
                    }
                }
                Err(fault) => {
                    stock.failed(now);
                    tell(&name, &fault);
                    if matches!(fault.kind(), FaultKind::Engine | FaultKind::Misuse) {
                        // It may be there all the same, until it was swept.
                        drop(announced);
                        state.engine_failed = true;
                        state.doubtful.push(place);
                    }
                }
            }
            if let Some(stock) = state.stocks.get(&name) {
                observe(stock);
            }
        }
        drop(state);
        if let Some(container) = unwanted {
            pool.0.reaper.reap_idle(container);
        }
        pool.0.changed.notify_one();
    });
}

fn tell(agent: &quayside_shared::ids::AgentName, fault: &Fault) {
    tracing::warn!(%agent, error = %chain(fault), "no warm container could be started; its runs start cold until one can");
}
