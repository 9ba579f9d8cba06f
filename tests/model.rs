//! A small model of claim, heartbeat, finish, release, cancel and sweep, checked exhaustively: two workers, two runs of
//! one conversation, doubled messages, lost answers, workers that die, freeze and wake at any moment, cancellations at
//! any moment. Whatever changes a run is the product's own `shared::state`; the rest is drawn after the worker's code.
//!
//! Each broken variant of it must be found out, or the model shows nothing.

mod properties;
mod record;
mod steps;
mod world;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Property};

use properties::Ending;
use world::{Action, Variant, World};

/// Kills, freezes and drains in one history: as many as make a run poison. `QUAYSIDE_MODEL_FAULTS=3` goes further, in five
/// times the time and with the same result.
const FAULTS: u8 = 2;
/// Reached only when something is wrong with the model, or the machine does something else.
const TIMEOUT: Duration = Duration::from_secs(300);

#[expect(clippy::disallowed_methods, reason = "a switch of this test alone")]
fn faults() -> u8 {
    std::env::var("QUAYSIDE_MODEL_FAULTS").map_or(FAULTS, |number| number.parse().expect("QUAYSIDE_MODEL_FAULTS is a small number"))
}

struct Leases {
    variant: Variant,
    faults: u8,
    ending: Ending,
}

impl Leases {
    fn new(variant: Variant) -> Self {
        Self { variant, faults: faults(), ending: Ending::default() }
    }
}

impl Model for Leases {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.faults)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        // What comes after a flaw says nothing more.
        if world.flaw.is_none() {
            world.actions(self.variant, actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        world.after(action, self.variant)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::properties()
    }
}

#[test]
fn no_history_breaks_a_promise() {
    let begun = Instant::now();
    let checker = Leases::new(Variant::Sound).checker().threads(2).finish_when(HasDiscoveries::AnyFailures).timeout(TIMEOUT).spawn_bfs().join();
    println!("{} states, {} steps deep, in {:.1?}", checker.unique_state_count(), checker.max_depth(), begun.elapsed());
    assert!(begun.elapsed() < TIMEOUT, "not all states were seen");
    checker.assert_properties();
}

/// A broken product breaks the promise that it is about, and the model finds the history.
fn is_found_out(variant: Variant, promise: &'static str) {
    let begun = Instant::now();
    let until = HasDiscoveries::AllOf(BTreeSet::from([promise]));
    let checker = Leases::new(variant).checker().finish_when(until).timeout(TIMEOUT).spawn_bfs().join();
    let history = checker.discovery(promise).unwrap_or_else(|| panic!("{variant:?} is not found out: {promise}"));
    let actions = history.into_actions();
    println!("{variant:?}: \"{promise}\" is broken after {} steps, found in {:.1?}: {actions:?}", actions.len(), begun.elapsed());
}

#[test]
fn a_missing_epoch_guard_is_found_out() {
    is_found_out(Variant::NoEpochGuard, properties::FENCED);
}

#[test]
fn a_cancellation_reported_early_is_found_out() {
    is_found_out(Variant::CancelReportedEarly, properties::GONE);
}

#[test]
fn a_sweeper_that_takes_living_leases_is_found_out() {
    is_found_out(Variant::SweeperTakesLivingLeases, properties::ALONE);
}

#[test]
fn an_acknowledgement_before_the_write_is_found_out() {
    is_found_out(Variant::AcknowledgedBeforeWrite, properties::ACKNOWLEDGED);
}

#[test]
fn an_attempt_that_is_not_counted_is_found_out() {
    is_found_out(Variant::AttemptNotCounted, properties::COUNTED);
}

#[test]
fn a_sweeper_that_is_off_is_found_out() {
    is_found_out(Variant::SweeperOff, properties::ENDS);
}

#[test]
fn a_conversation_without_order_is_found_out() {
    is_found_out(Variant::NoOrder, properties::ORDER);
}
