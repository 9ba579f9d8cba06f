//! Signals of a store, to whoever watches, in an order that can be repeated: a watch channel with several receivers wakes
//! them in any order, so each watcher has a channel of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use quayside_shared::ids::RunId;
use quayside_shared::store::{Signal, Store, Watch};
use tokio::sync::watch;

use super::process::Life;
use super::world::Shape;

/// See the module's description.
pub struct Signals {
    store: Arc<dyn Store>,
    watched: Mutex<HashMap<RunId, Watchers>>,
}

type Watchers = Arc<Mutex<Vec<(Arc<Life>, watch::Sender<Signal>)>>>;

impl Signals {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, watched: Mutex::default() }
    }

    pub fn watch(&self, id: &RunId, life: &Arc<Life>) -> Watch {
        let (sender, receiver) = watch::channel(Signal::default());
        let mut watched = self.watched.lock().unwrap();
        let watchers = watched.entry(id.clone()).or_insert_with(|| {
            let watchers = Watchers::default();
            tokio::spawn(pass_on(self.store.watch(id), Arc::clone(&watchers)));
            watchers
        });
        watchers.lock().unwrap().push((Arc::clone(life), sender));
        Watch::new(receiver)
    }
}

/// Between processes signals may be late, and some are lost.
async fn pass_on(mut inner: Watch, watchers: Watchers) {
    loop {
        let signal = inner.changed().await;
        let told = {
            let mut watchers = watchers.lock().unwrap();
            watchers.retain(|(_, sender)| !sender.is_closed());
            watchers.clone()
        };
        for (life, sender) in told {
            let world = &life.world;
            if world.plan.shape == Shape::Embedded {
                sender.send_replace(signal);
            } else if world.strikes(world.plan.forgotten) {
                world.note(|| format!("{}: a signal is LOST", life.name));
            } else if world.strikes(world.plan.slow) {
                let time = world.some_millis(200);
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    sender.send_replace(signal);
                });
            } else {
                sender.send_replace(signal);
            }
        }
    }
}
