use std::collections::HashSet;

use super::*;
use crate::runner::ContainerKey;
use crate::runner::scripted::ScriptedRunner;

const MIB: u64 = 1 << 20;

struct Stage {
    runner: Arc<ScriptedRunner>,
    live: LiveContainers,
    pool: Pool,
    drain: CancellationToken,
}

fn agent(name: &str, script: &[&str], warm: Option<u32>) -> Agent {
    let command = script.iter().map(|word| (*word).to_owned()).collect();
    Agent { warm, ..Agent::new(name.parse().unwrap(), "scripted".into(), command) }
}

fn name(name: &str) -> AgentName {
    name.parse().unwrap()
}

impl Stage {
    fn on(runner: ScriptedRunner, agents: &[Agent], memory: u64) -> Self {
        let (runner, live, drain) = (Arc::new(runner), LiveContainers::default(), CancellationToken::new());
        let options = PoolOptions { memory, session_memory: memory, starters: 2, slots: 8 };
        let pool = Pool::new(runner.clone(), live.clone(), agents, options);
        let (tended, until) = (pool.clone(), drain.clone());
        tokio::spawn(async move { tended.tend(until).await });
        Self { runner, live, pool, drain }
    }

    fn of(agents: &[Agent]) -> Self {
        Self::on(ScriptedRunner::new(), agents, 1 << 30)
    }

    /// Containers of `agent` that wait.
    fn idle(&self, agent: &str) -> usize {
        self.pool.state().stocks[&name(agent)].idle.len()
    }
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn as_many_wait_as_are_configured_and_each_serves_once() {
    let stage = Stage::of(&[agent("a", &["echo"], Some(3))]);
    seconds(1).await;
    assert_eq!((stage.idle("a"), stage.runner.launched()), (3, 3));
    let mut seen = HashSet::new();
    for _ in 0..5 {
        let taken = stage.pool.take(&name("a")).expect("a warm one");
        assert!(seen.insert(taken.key.clone()), "taken twice");
        assert!(stage.live.contains(&taken.key), "the sweeper would take it");
        stage.pool.reaper().reap(taken).await;
        seconds(1).await;
        assert_eq!(stage.idle("a"), 3, "replaced");
    }
    let mut places = stage.runner.places();
    places.sort_unstable();
    assert_eq!(places, [0, 1, 2], "places are given back, and not shared");
    assert!(stage.runner.containers().iter().all(|key| matches!(key, ContainerKey::Warm(_)) && stage.live.contains(key)));
}

#[tokio::test(start_paused = true)]
async fn the_oldest_is_taken_first() {
    let stage = Stage::of(&[agent("a", &["echo"], Some(2))]);
    seconds(1).await;
    let old = stage.runner.containers();
    let first = stage.pool.take(&name("a")).unwrap();
    seconds(1).await;
    let second = stage.pool.take(&name("a")).unwrap();
    assert!(old.contains(&first.key) && old.contains(&second.key), "a newer one was taken");
}

#[tokio::test(start_paused = true)]
async fn traffic_makes_warm_ones_and_silence_ends_them() {
    let stage = Stage::of(&[agent("a", &["echo"], None), agent("never", &["echo"], Some(0)), agent("quiet", &["echo"], None)]);
    seconds(10).await;
    assert_eq!(stage.runner.launched(), 0, "nobody asked");
    for agent in ["a", "never"] {
        assert!(stage.pool.take(&name(agent)).is_none());
    }
    seconds(1).await;
    assert_eq!((stage.idle("a"), stage.idle("never"), stage.idle("quiet")), (1, 0, 0));
    seconds(290).await;
    assert_eq!(stage.idle("a"), 1);
    seconds(15).await;
    assert_eq!((stage.idle("a"), stage.runner.containers().len()), (0, 0), "forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_burst_asks_for_more_but_not_for_more_than_can_run() {
    let stage = Stage::of(&[agent("a", &["launch-sleep:400ms", "echo"], None)]);
    for _ in 0..300 {
        if let Some(taken) = stage.pool.take(&name("a")) {
            stage.pool.reaper().reap(taken).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    seconds(2).await;
    let (most, idle) = (8, stage.idle("a"));
    assert!((2..=most).contains(&idle), "{idle}");
    seconds(120).await;
    assert_eq!(stage.idle("a"), 1, "the burst is over");
}

#[tokio::test(start_paused = true)]
async fn memory_bounds_them() {
    let stage = Stage::on(ScriptedRunner::new().using(40 * MIB), &[agent("a", &["echo"], Some(5))], 100 * MIB);
    seconds(5).await;
    // They are estimated until they can be measured, and what is too much goes then.
    assert_eq!((stage.idle("a"), stage.runner.containers().len()), (2, 2));
    let launched = stage.runner.launched();
    seconds(60).await;
    assert_eq!(stage.runner.launched(), launched, "and none is made for nothing");
    let off = Stage::on(ScriptedRunner::new(), &[agent("a", &["echo"], Some(5))], 0);
    assert!(off.pool.take(&name("a")).is_none());
    seconds(10).await;
    assert_eq!(off.runner.launched(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_configured_goes_before_what_traffic_asks_for() {
    let stage = Stage::on(ScriptedRunner::new().using(40 * MIB), &[agent("busy", &["echo"], None), agent("kept", &["echo"], Some(2))], 90 * MIB);
    for _ in 0..200 {
        if let Some(taken) = stage.pool.take(&name("busy")) {
            stage.pool.reaper().reap(taken).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    seconds(5).await;
    assert_eq!((stage.idle("busy"), stage.idle("kept")), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_program_that_does_not_wait_is_tried_ever_more_rarely_and_stalls_nobody() {
    let stage = Stage::of(&[agent("broken", &["exit:1"], Some(3)), agent("whole", &["echo"], Some(2))]);
    seconds(3).await;
    assert_eq!(stage.idle("whole"), 2);
    seconds(120).await;
    let tries = stage.runner.launched() - 2;
    assert!((4..=10).contains(&tries), "{tries} starts of a broken agent in two minutes");
    assert!(stage.pool.take(&name("broken")).is_none(), "the dead serve nobody");
    assert!(stage.runner.containers().len() <= 3, "they are removed");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_hangs_stalls_nobody_for_long() {
    let stage = Stage::of(&[agent("hangs", &["launch-hang"], Some(4)), agent("whole", &["echo"], Some(2))]);
    seconds(30).await;
    assert_eq!(stage.idle("whole"), 2);
    for _ in 0..20 {
        let taken = stage.pool.take(&name("whole")).expect("a warm one");
        stage.pool.reaper().reap(taken).await;
        seconds(1).await;
    }
    assert_eq!(stage.idle("whole"), 2);
}

#[tokio::test(start_paused = true)]
async fn the_dead_are_noticed_when_they_are_taken_and_before() {
    let stage = Stage::of(&[agent("a", &["echo"], Some(2))]);
    seconds(20).await;
    let [first, second]: [ContainerKey; 2] = stage.runner.containers().into_iter().collect::<Vec<_>>().try_into().unwrap();
    stage.runner.end(&first);
    let taken = stage.pool.take(&name("a")).expect("the one that lives");
    assert_eq!(taken.key, second);
    seconds(2).await;
    assert!(!stage.runner.containers().contains(&first), "removed");
    for key in stage.runner.containers() {
        stage.runner.end(&key);
    }
    seconds(5).await;
    assert_eq!(stage.idle("a"), 2, "replaced without anybody asking");
    assert!(stage.pool.take(&name("a")).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_new_image_is_served_by_new_containers() {
    let stage = Stage::of(&[agent("a", &["echo"], Some(2))]);
    seconds(20).await;
    let old = stage.runner.containers();
    stage.runner.rebuild_images();
    seconds(20).await;
    assert_eq!(stage.idle("a"), 2);
    assert!(stage.runner.containers().is_disjoint(&old), "an old one stayed");
}

#[tokio::test(start_paused = true)]
async fn while_a_run_waits_for_its_launch_nothing_is_refilled() {
    let stage = Stage::of(&[agent("a", &["echo"], Some(1))]);
    let cold = stage.pool.cold();
    tokio::time::sleep(Duration::from_millis(1900)).await;
    assert_eq!(stage.runner.launched(), 0);
    seconds(1).await;
    assert_eq!(stage.runner.launched(), 1, "one that hangs does not keep the pool empty");
    drop(cold);
    let taken = stage.pool.take(&name("a"));
    let cold = stage.pool.cold();
    seconds(1).await;
    assert_eq!(stage.runner.launched(), 1);
    drop(cold);
    seconds(1).await;
    assert_eq!(stage.runner.launched(), 2);
    drop(taken);
}

#[tokio::test(start_paused = true)]
async fn the_next_look_is_never_due_already() {
    for memory in [0, 1 << 30] {
        let stage = Stage::on(ScriptedRunner::new(), &[agent("a", &["launch-hang"], Some(1))], memory);
        let _cold = stage.pool.cold();
        for _ in 0..5 {
            // Else it would look again and again, and nothing else would be done.
            assert!(stage.pool.plan().is_none_or(|at| at > Instant::now()));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_waits_for_an_engine_that_failed() {
    let stage = Stage::of(&[agent("a", &["echo"], Some(1))]);
    stage.runner.set_engine_down(true);
    seconds(60).await;
    assert_eq!(stage.runner.launched(), 0);
    assert!(stage.pool.take(&name("a")).is_none());
    stage.runner.set_engine_down(false);
    seconds(15).await;
    assert_eq!(stage.idle("a"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_removes_them_first_and_at_once() {
    let stage = Stage::of(&[agent("a", &["echo"], Some(3)), agent("slow", &["launch-hang"], Some(1))]);
    seconds(1).await;
    assert_eq!(stage.idle("a"), 3);
    stage.drain.cancel();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(stage.idle("a"), 0);
    assert!(stage.runner.containers().len() <= 1, "but for the one whose launch hangs");
    assert!(stage.pool.take(&name("a")).is_none());
    seconds(60).await;
    assert_eq!(stage.runner.launched(), 4, "nothing is made any more");
}
