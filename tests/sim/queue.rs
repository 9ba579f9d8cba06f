//! The queue as it may be: messages come late, in another order, twice, or not at all, and acknowledgements are lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use quayside_shared::error::Result;
use quayside_shared::queue::{Delivery, Message, Queue, Undecodable};
use tokio::time::Instant;

use super::mutant::Mutant;
use super::process::Life;
use crate::checker::{Hand, Handled};

/// See the module's description.
pub struct FaultyQueue {
    inner: Arc<dyn Queue>,
    life: Arc<Life>,
    line: Mutex<Line>,
}

/// What was taken from the queue and is not delivered yet, by when it is.
#[derive(Default)]
struct Line {
    waiting: BTreeMap<(Instant, u64), Message>,
    next: u64,
}

impl FaultyQueue {
    pub fn new(inner: Arc<dyn Queue>, life: Arc<Life>) -> Self {
        Self { inner, life, line: Mutex::default() }
    }

    /// Takes a delivery, or nothing for a copy of one, under a new number.
    fn take(&self, delivery: Option<Box<dyn Delivery>>) -> u64 {
        let mut line = self.line.lock().unwrap();
        line.next += 1;
        if let Some(delivery) = delivery {
            self.life.hands.lock().unwrap().insert(line.next, delivery);
        }
        line.next
    }

    fn hold(&self, message: Message, number: u64, time: Duration) {
        self.line.lock().unwrap().waiting.insert((Instant::now() + time, number), message);
    }

    /// The message whose time has come, or when the next one's does.
    fn held(&self) -> std::result::Result<(Message, u64), Option<Instant>> {
        let mut line = self.line.lock().unwrap();
        match line.waiting.first_entry() {
            Some(first) if first.key().0 <= Instant::now() => {
                let number = first.key().1;
                Ok((first.remove(), number))
            }
            first => Err(first.map(|first| first.key().0)),
        }
    }

    /// Into the hands of the process.
    async fn deliver(&self, message: Message, number: u64) -> Box<dyn Delivery> {
        let life = &self.life;
        life.world.note(|| format!("{}: received {}", life.name, life.world.name(message.run_id.as_str())));
        handled(life, &message, Hand::Received);
        if life.world.mutant == Some(Mutant::AcknowledgesFirst) {
            // The mutant: what it has not looked at is acknowledged.
            handled(life, &message, Hand::LetGo);
            let delivery = life.hands.lock().unwrap().remove(&number);
            if let Some(delivery) = delivery {
                delivery.ack().await;
            }
        }
        Box::new(FaultyDelivery { message, number, life: Arc::clone(life), let_go: life.world.mutant == Some(Mutant::AcknowledgesFirst) })
    }
}

fn handled(life: &Life, message: &Message, what: Hand) {
    life.world.history().handled.push(Handled { worker: life.name.clone(), run: message.run_id.to_string(), epoch: 0, what });
}

#[async_trait]
impl Queue for FaultyQueue {
    async fn publish(&self, messages: &[Message]) -> Result<()> {
        let (queue, life, messages) = (Arc::clone(&self.inner), Arc::clone(&self.life), messages.to_vec());
        let told: Vec<_> = messages.iter().map(|message| message.run_id.clone()).collect();
        let told = move || format!("publish {:?}", told.iter().map(|id| life.world.name(id.as_str())).collect::<Vec<_>>());
        self.life.call(told, async move { queue.publish(&messages).await }).await
    }

    async fn receive(&self) -> Result<Box<dyn Delivery>> {
        let world = &self.life.world;
        loop {
            self.life.awake().await;
            let until = match self.held() {
                Ok((message, number)) => return Ok(self.deliver(message, number).await),
                Err(until) => until,
            };
            let held_until = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            let delivery = tokio::select! {
                biased;
                () = held_until => continue,
                delivery = self.inner.receive() => delivery?,
            };
            if self.life.is_dead() {
                // It goes back at once; the next life takes it.
                drop(delivery);
                self.life.awake().await;
                continue;
            }
            let message = delivery.message().expect("nobody but us publishes here").clone();
            if world.strikes(world.plan.forgotten) {
                world.note(|| format!("the message of {} is LOST", world.name(message.run_id.as_str())));
                delivery.ack().await;
                continue;
            }
            if world.strikes(world.plan.doubled) {
                self.hold(message.clone(), self.take(None), world.some_millis(4_000));
            }
            let number = self.take(Some(delivery));
            if world.strikes(world.plan.held) {
                self.hold(message, number, world.some_millis(3_000));
                continue;
            }
            return Ok(self.deliver(message, number).await);
        }
    }

    async fn stop_receiving(&self) {
        let waiting = std::mem::take(&mut self.line.lock().unwrap().waiting);
        for ((_, number), _) in waiting {
            drop(self.life.hands.lock().unwrap().remove(&number));
        }
        self.inner.stop_receiving().await;
    }

    async fn ping(&self) -> Result<()> {
        self.life.awake().await;
        self.inner.ping().await
    }
}

/// A message in the hands of a process, or a copy of one.
struct FaultyDelivery {
    message: Message,
    number: u64,
    life: Arc<Life>,
    let_go: bool,
}

impl FaultyDelivery {
    fn take(&mut self) -> Option<Box<dyn Delivery>> {
        if !std::mem::replace(&mut self.let_go, true) {
            handled(&self.life, &self.message, Hand::LetGo);
        }
        self.life.hands.lock().unwrap().remove(&self.number)
    }
}

#[async_trait]
impl Delivery for FaultyDelivery {
    fn message(&self) -> Result<&Message, &Undecodable> {
        Ok(&self.message)
    }

    async fn ack(mut self: Box<Self>) {
        let (life, world) = (Arc::clone(&self.life), Arc::clone(&self.life.world));
        life.awake().await;
        let lost = world.strikes(world.plan.fails_before);
        world.note(|| format!("{}: acknowledged {}{}", life.name, world.name(self.message.run_id.as_str()), if lost { ", UNHEARD" } else { "" }));
        // One that is not heard comes again when it is dropped.
        match self.take() {
            Some(delivery) if !lost => delivery.ack().await,
            other => drop(other),
        }
        life.awake().await;
    }

    async fn nack(self: Box<Self>) {
        self.life.awake().await;
        drop(self);
    }
}

impl Drop for FaultyDelivery {
    fn drop(&mut self) {
        // A dead process gives nothing back: that is noticed later.
        if !self.life.is_dead() {
            drop(self.take());
        }
    }
}
