//! How long a run waits for another worker when its own was killed, with the leases of production.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::chaos::client::{Clients, Request};
use crate::chaos::dice::Dice;
use crate::chaos::installation::{Installation, Settings};
use crate::chaos::nemesis::{Deeds, Kill};
use crate::chaos::round::elsewhere;
use crate::chaos::stage::Stage;
use crate::support::eventually;
use crate::support::server::Backend;

const LONGEST: Duration = Duration::from_secs(7200);

/// One that runs until it is cancelled.
fn request(number: usize) -> Request {
    let name = format!("recovery-{number}");
    Request {
        user: "user".to_owned(),
        conversation: name.clone(),
        key: name,
        agent: "sh",
        message: format!("echo begun; sleep 3000 # {number}"),
        reply: "begun\n".to_owned(),
    }
}

/// Kills a worker `kills` times, each at another moment of its heartbeat; returns the times until each of its runs ran
/// elsewhere, in milliseconds.
pub async fn measure(stage: &Stage, kills: usize, seed: u64) -> Vec<u64> {
    // Embedded, as many as a machine of two CPUs has slots. On google, enough that each of three workers has several and the
    // others have room for them.
    let (count, slots) = if stage.backend == Backend::Embedded { (4, 4) } else { (18, 10) };
    let settings = Settings { lease: "30s", heartbeat: "10s", slots, running_per_user: 100, workers: 3, ..Settings::of_a_round(stage.backend) };
    let mut installation = Installation::start(stage, "recovery", settings).await;
    let clients = Clients::new(installation.apis.clone(), Instant::now() + LONGEST);
    let mut runs = Vec::new();
    for number in 0..count {
        runs.push(clients.submit(&request(number)).await);
    }
    let instances = installation.instances();
    let alive = || stage.witness.alive().into_iter().filter(|seen| instances.contains(&seen.instance)).collect::<Vec<_>>();
    eventually("all of them", || async { (alive().len() == count).then_some(()) }).await;
    let (mut dice, mut deeds, mut submitted) = (Dice::new(seed).fork("recovery"), Deeds::default(), count);
    for number in 0..kills {
        tokio::time::sleep(dice.millis(500..10_500)).await;
        let place = dice.pick(&installation.workers());
        let instance = installation.processes[place].instance();
        let hit: Vec<_> = alive().into_iter().filter(|seen| Some(&seen.instance) == instance.as_ref()).collect();
        deeds.kills.push(Kill { at: installation.processes[place].kill(), instance });
        installation.processes[place].start();
        for lost in &hit {
            eventually("a run elsewhere", || async { alive().iter().any(|seen| seen.run == lost.run && seen.epoch > lost.epoch).then_some(()) })
                .await;
        }
        // A run that is lost again and again waits longer each time: each is lost once here.
        for lost in &hit {
            clients.cancel("user", &lost.run).await;
            runs.retain(|run| *run != lost.run);
            submitted += 1;
            runs.push(clients.submit(&request(submitted)).await);
        }
        // Whoever came back has removed what its earlier life left.
        let expected: BTreeSet<String> = runs.iter().cloned().collect();
        let one_each = || {
            let alive = alive();
            alive.len() == count && alive.into_iter().map(|seen| seen.run).collect::<BTreeSet<_>>() == expected
        };
        eventually("one container for each run", || async { one_each().then_some(()) }).await;
        let seen = stage.witness.seen();
        let times = elsewhere(seen.values(), &deeds);
        eprintln!("    kill {} of {kills} hit {} runs; elsewhere after at most {:?} ms", number + 1, hit.len(), times.iter().max().unwrap_or(&0));
        installation.ready().await;
    }
    for run in &runs {
        clients.cancel("user", run).await;
    }
    stage.witness.until_empty(&instances).await;
    for process in &mut installation.processes {
        process.terminate().await;
    }
    let seen = stage.witness.seen();
    elsewhere(seen.values(), &deeds)
}
