//! Containers that were ended through the engine: by an operator, by an engine that stops in order, by one that was
//! killed. None of it is the program's own end, whatever its exit code says.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quayside_shared::ids::RunId;
use quayside_worker::runner::docker::{DockerOptions, DockerRunner};
use quayside_worker::runner::{Exit, Fault, FaultKind, Runner, Sandbox};

use super::docker::{OnDocker, python};
use super::{Behaviour, Fixture, check, within};
use crate::chaos::engine::{Engine, Stop, docker_at};
use crate::chaos::line::Line;

const LIMIT: Duration = Duration::from_secs(40);
/// Ends with 143 when it is told to end.
const PLAIN: &str = "import time; print('begun'); time.sleep(3600)";
/// Ends with 0 when it is told to end, as if its work were done.
const POLITE: &str = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('begun'); time.sleep(3600)";

/// Launches `program` and waits until it has begun.
async fn launch(fixture: &OnDocker, runner: &DockerRunner, program: &str, place: u32) -> Box<dyn Sandbox> {
    let mut spec = fixture.spec(&Behaviour::Hang);
    spec.agent.command = python(program);
    spec.place = place;
    let mut sandbox = runner.launch(&spec).await.unwrap();
    sandbox.send(Bytes::new()).unwrap();
    sandbox.next_output().await.unwrap().unwrap();
    sandbox
}

/// The end of it as an attempt would learn of it.
async fn end_of(sandbox: &mut dyn Sandbox) -> Result<Exit, Fault> {
    while let Some(chunk) = sandbox.next_output().await {
        chunk?;
    }
    sandbox.wait().await
}

fn assert_is_the_engines(what: &str, end: &Result<Exit, Fault>) {
    match end {
        Ok(exit) => panic!("{what}: taken for the program's own end, {exit:?}"),
        Err(fault) => assert_eq!(fault.kind(), FaultKind::Engine, "{what}: {fault}"),
    }
}

#[tokio::test]
async fn what_an_operator_ends_did_not_end_by_itself() {
    check(OnDocker::new(), async |fixture| {
        let runner = fixture.docker_runner();
        runner.ping().await.unwrap();
        for (command, program) in [(&["stop", "-t", "5"][..], PLAIN), (&["stop", "-t", "5"], POLITE), (&["kill"], PLAIN), (&["rm", "-f"], PLAIN)] {
            let mut sandbox = launch(fixture, runner, program, 0).await;
            let filter = format!("label=dev.quayside.instance={}", fixture.instance());
            let socket = std::path::Path::new("/var/run/docker.sock");
            let id = docker_at(socket, &["ps", "-q", "--filter", &filter]).unwrap();
            let arguments: Vec<String> = command.iter().map(|&word| word.to_owned()).chain([id.trim().to_owned()]).collect();
            let ended = tokio::task::spawn_blocking(move || {
                docker_at(std::path::Path::new("/var/run/docker.sock"), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
            });
            let end = within(LIMIT, "an end", end_of(&mut *sandbox)).await;
            assert!(ended.await.unwrap().is_some());
            assert_is_the_engines(&format!("docker {command:?}"), &end);
            // As an attempt does before it hands the run back.
            sandbox.kill().await.unwrap();
            sandbox.remove().await.unwrap();
        }
    })
    .await;
}

/// Two programs run while the engine stops and comes back; both ends are the engine's.
async fn stopped(live_restore: bool, how: Stop) {
    if !Engine::is_possible() {
        eprintln!("only root may start an engine of its own: nothing was tested here");
        return;
    }
    let fixture = OnDocker::new();
    let mut engine = Engine::start(live_restore).await;
    // The runner must not be able to tell by a connection that is refused.
    let near = engine.folder().join("held");
    let _line = Line::held(&near, engine.socket());
    let host = format!("unix://{}", near.display());
    let options = DockerOptions { host, instance: format!("stopped-{}", RunId::random()), runtime: None, uid_base: 100_000 };
    let runner = Arc::new(DockerRunner::connect(options).unwrap());
    runner.ping().await.unwrap();
    let mut ends = Vec::new();
    for (slot, program) in [PLAIN, POLITE].into_iter().enumerate() {
        let mut sandbox = launch(&fixture, &runner, program, u32::try_from(slot).unwrap()).await;
        ends.push(tokio::spawn(async move {
            let end = end_of(&mut *sandbox).await;
            (end, sandbox)
        }));
    }
    engine.stop(how).await;
    engine.go_on().await;
    for end in ends {
        let (end, mut sandbox) = within(LIMIT, "an end", end).await.unwrap();
        assert_is_the_engines(&format!("{how:?}, live-restore {live_restore}"), &end);
        sandbox.kill().await.unwrap();
        sandbox.remove().await.unwrap();
    }
    assert_eq!(runner.sweep(&|_| false).await.unwrap(), 0);
    // And it works as before.
    let mut sandbox = launch(&fixture, &runner, "print('again')", 0).await;
    assert_eq!(end_of(&mut *sandbox).await.unwrap().code, 0);
    sandbox.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_stops_in_order_ends_no_attempt() {
    stopped(false, Stop::Orderly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_killed_ends_no_attempt() {
    stopped(false, Stop::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_keeps_its_containers_over_a_stop_ends_no_attempt() {
    stopped(true, Stop::Orderly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_keeps_its_containers_over_a_crash_ends_no_attempt() {
    stopped(true, Stop::Killed).await;
}
