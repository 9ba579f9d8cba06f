//! Who breaks things: one fault after another, by seed, each healed before the next.

use std::fmt;
use std::time::Duration;

use super::dice::Dice;
use super::engine::Stop;
use super::installation::Installation;
use super::line::{Line, Weather};
use super::now;
use super::stage::Stage;
use crate::support::server::Backend;

/// What can be done to an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of a process that runs containers, and a new one soon after.
    KillWorker,
    /// The same for an API that does nothing else.
    KillApi,
    /// SIGSTOP for less than the lease.
    FreezeBriefly,
    /// SIGSTOP for longer than the lease.
    FreezeLong,
    /// The container engine stops in order and comes back.
    RestartEngine,
    /// The container engine is killed and comes back.
    KillEngine,
    /// The connection between worker and engine.
    EngineLine,
    /// The connection between the clients and an API.
    ApiLine,
    /// The emulator forgets every message.
    RestartPubsub,
    /// The emulator stands still.
    FreezeFirestore,
    PubsubLine,
    FirestoreLine,
    FullDisk,
}

/// How often each comes in a shuffled deck.
fn deck(stage: &Stage, disk: bool, kills: usize) -> Vec<Fault> {
    use Fault::*;
    let mut deck = vec![FreezeBriefly, FreezeLong, EngineLine, ApiLine];
    deck.extend(std::iter::repeat_n(KillWorker, kills));
    if stage.backend == Backend::Google {
        deck.extend([KillApi, RestartPubsub, FreezeFirestore, PubsubLine, FirestoreLine]);
    }
    if stage.engine.is_some() {
        deck.extend([RestartEngine, KillEngine]);
    }
    if disk {
        deck.push(FullDisk);
    }
    deck
}

/// A process that was killed.
#[derive(Debug, Clone)]
pub struct Kill {
    /// Milliseconds since 1970.
    pub at: u64,
    /// The owner label of its containers; nothing for an API.
    pub instance: Option<String>,
}

/// A fault, and when it was done and healed.
#[derive(Debug, Clone, Copy)]
pub struct Deed {
    pub fault: Fault,
    pub from: u64,
    pub to: u64,
}

impl Deed {
    /// Whether calls to the engine may have failed meanwhile.
    pub fn is_the_engines(&self) -> bool {
        matches!(self.fault, Fault::RestartEngine | Fault::KillEngine | Fault::EngineLine)
    }
}

/// What was done so far.
#[derive(Debug, Default)]
pub struct Deeds {
    pub kills: Vec<Kill>,
    pub faults: Vec<Deed>,
}

pub struct Nemesis {
    dice: Dice,
    deck: Vec<Fault>,
    kills_in_a_deck: usize,
    pub deeds: Deeds,
}

impl Nemesis {
    /// `kills` says how many of the faults of one deck are kills of a worker.
    pub fn new(dice: Dice, kills: usize) -> Self {
        Self { dice, deck: Vec::new(), kills_in_a_deck: kills, deeds: Deeds::default() }
    }

    /// Commits the next deed, and heals it.
    pub async fn strike(&mut self, stage: &mut Stage, installation: &mut Installation) {
        if self.deck.is_empty() {
            let mut cards = deck(stage, installation.disk.is_some(), self.kills_in_a_deck);
            while !cards.is_empty() {
                self.deck.push(cards.swap_remove(self.dice.below(cards.len())));
            }
        }
        let fault = self.deck.pop().expect("a deck has cards");
        let from = now();
        let engine_line = &stage.engine_line;
        match fault {
            Fault::KillWorker => self.kill(installation, true).await,
            Fault::KillApi => self.kill(installation, false).await,
            Fault::FreezeBriefly => self.freeze(installation, 300..2500).await,
            Fault::FreezeLong => self.freeze(installation, 5000..7500).await,
            Fault::RestartEngine => self.restart(stage, Stop::Orderly).await,
            Fault::KillEngine => self.restart(stage, Stop::Killed).await,
            Fault::EngineLine => self.disturb(engine_line, 500..6000).await,
            Fault::ApiLine => {
                let line = self.dice.below(installation.api_lines.len());
                self.disturb(&installation.api_lines[line], 300..3000).await;
            }
            Fault::RestartPubsub => stage.google.as_mut().expect("on google").pubsub.restart().await,
            Fault::FreezeFirestore => {
                let firestore = &stage.google.as_ref().expect("on google").firestore;
                firestore.freeze();
                tokio::time::sleep(self.dice.millis(500..6000)).await;
                firestore.thaw();
            }
            Fault::PubsubLine => self.disturb(&stage.google.as_ref().expect("on google").pubsub_line, 500..6000).await,
            Fault::FirestoreLine => self.disturb(&stage.google.as_ref().expect("on google").firestore_line, 500..6000).await,
            Fault::FullDisk => self.fill(installation).await,
        }
        installation.ready().await;
        self.deeds.faults.push(Deed { fault, from, to: now() });
    }

    fn note_kill(&mut self, installation: &mut Installation, place: usize) {
        let process = &mut installation.processes[place];
        let instance = process.instance().filter(|_| process.role.works());
        self.deeds.kills.push(Kill { at: process.kill(), instance });
    }

    async fn kill(&mut self, installation: &mut Installation, works: bool) {
        let places: Vec<usize> = (0..installation.processes.len()).filter(|&place| installation.processes[place].role.works() == works).collect();
        let place = self.dice.pick(&places);
        self.note_kill(installation, place);
        tokio::time::sleep(self.dice.millis(0..400)).await;
        installation.processes[place].start();
        if self.dice.percent(15) {
            // In the middle of its start.
            tokio::time::sleep(self.dice.millis(5..250)).await;
            self.note_kill(installation, place);
            installation.processes[place].start();
        }
    }

    async fn freeze(&mut self, installation: &mut Installation, time: std::ops::Range<u64>) {
        let place = self.dice.below(installation.processes.len());
        installation.processes[place].freeze();
        tokio::time::sleep(self.dice.millis(time)).await;
        installation.processes[place].thaw();
    }

    async fn fill(&mut self, installation: &mut Installation) {
        let disk = installation.disk.take().expect("a small disk");
        disk.fill();
        tokio::time::sleep(self.dice.millis(500..4000)).await;
        if self.dice.percent(50) {
            // Found full at the next start.
            let worker = installation.workers()[0];
            self.note_kill(installation, worker);
            installation.processes[worker].start();
            tokio::time::sleep(self.dice.millis(100..1500)).await;
        }
        disk.free();
        installation.disk = Some(disk);
    }

    async fn restart(&mut self, stage: &mut Stage, how: Stop) {
        let engine = stage.engine.as_mut().expect("an engine of our own");
        engine.stop(how).await;
        tokio::time::sleep(self.dice.millis(0..1500)).await;
        engine.go_on().await;
    }

    async fn disturb(&mut self, line: &Line, time: std::ops::Range<u64>) {
        let slow = Weather::Slow(self.dice.millis(20..400));
        line.turn(self.dice.pick(&[Weather::Cut, Weather::NoWayOut, Weather::NoWayBack, slow]));
        tokio::time::sleep(self.dice.millis(time)).await;
        // Connections that hung do not come back to life with the network: they break.
        line.turn(Weather::Cut);
        tokio::time::sleep(Duration::from_millis(50)).await;
        line.turn(Weather::Fair);
    }

    /// A rest between two deeds.
    pub async fn rest(&mut self, time: std::ops::Range<u64>) {
        tokio::time::sleep(self.dice.millis(time)).await;
    }
}

impl fmt::Display for Deeds {
    /// How often each fault came.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counted: Vec<(Fault, usize)> = Vec::new();
        for Deed { fault, .. } in &self.faults {
            match counted.iter_mut().find(|(known, _)| known == fault) {
                Some((_, count)) => *count += 1,
                None => counted.push((*fault, 1)),
            }
        }
        let words: Vec<_> = counted.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
        f.write_str(&words.join(", "))
    }
}
