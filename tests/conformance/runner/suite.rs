//! What every runner must do.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quayside_worker::runner::{ContainerKey, FaultKind, LaunchSpec, OutputChunk, Sandbox};

use super::{Behaviour, Fixture, end, read_all, serve, within};
use crate::support::eventually;

/// More than any of this takes, even on a loaded machine.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

const SILENT: Behaviour = Behaviour::Print { stdout: "", stderr: "", code: 0 };

pub async fn a_request_comes_back_byte_for_byte(fixture: &dyn Fixture) {
    let request = b"'; touch /tmp/x; echo ' $(id) \"\\ \0 \xff\xfe \r\n\n tail without end of line";
    let (written, exit) = serve(fixture.launch(Behaviour::Echo).await, Bytes::from_static(request)).await;
    assert_eq!(written.stdout, request);
    assert_eq!(exit.code, 0);
}

pub async fn a_large_request_is_written_while_output_is_read(fixture: &dyn Fixture) {
    let request: Vec<u8> = (0_u32..1 << 20).map(|n| (n % 251) as u8).collect();
    let (written, exit) = within(LONG, "the echo of 1 MiB", serve(fixture.launch(Behaviour::Echo).await, request.clone())).await;
    assert!(written.stdout == request, "{} bytes came back", written.stdout.len());
    assert_eq!(exit.code, 0);
}

pub async fn the_two_streams_are_told_apart(fixture: &dyn Fixture) {
    let sandbox = fixture.launch(Behaviour::Print { stdout: "the reply", stderr: "the log", code: 0 }).await;
    let (written, _) = serve(sandbox, "").await;
    assert_eq!(written.stdout, b"the reply");
    assert_eq!(written.stderr, b"the log");
}

pub async fn exit_codes_are_kept(fixture: &dyn Fixture) {
    for code in [0, 3, 127, 255] {
        let (_, exit) = serve(fixture.launch(Behaviour::Print { stdout: "x", stderr: "", code }).await, "").await;
        assert_eq!(exit.code, i64::from(code));
        assert!(!exit.oom);
    }
}

pub async fn bytes_that_are_no_text_pass_through(fixture: &dyn Fixture) {
    let (written, _) = serve(fixture.launch(Behaviour::InvalidUtf8).await, "").await;
    assert_eq!(written.stdout, b"ok\xff\xfe\xc3\x28\n");
}

pub async fn much_output_arrives_whole(fixture: &dyn Fixture) {
    let size = 16 << 20;
    let (written, exit) = within(LONG, "16 MiB of output", serve(fixture.launch(Behaviour::Flood(size)).await, "")).await;
    assert_eq!(written.stdout.len(), size);
    assert_eq!(exit.code, 0);
}

pub async fn a_program_that_never_reads_is_no_fault(fixture: &dyn Fixture) {
    for size in [60 << 10, 1 << 20] {
        let sandbox = fixture.launch(Behaviour::NeverReads).await;
        let (_, exit) = within(LONG, "a program that never reads", serve(sandbox, vec![b'x'; size])).await;
        assert_eq!(exit.code, 0);
    }
}

pub async fn a_kill_ends_a_hanging_program(fixture: &dyn Fixture) {
    let mut sandbox = fixture.launch(Behaviour::Hang).await;
    sandbox.send(Bytes::from_static(b"request")).unwrap();
    let begin = Instant::now();
    sandbox.kill().await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(2), "the kill took {:?}", begin.elapsed());
    let exit = sandbox.wait().await.unwrap();
    assert_eq!((exit.code, exit.oom), (137, false));
    sandbox.remove().await.unwrap();
}

pub async fn a_kill_needs_nobody_to_read_the_output(fixture: &dyn Fixture) {
    let mut sandbox = fixture.launch(Behaviour::FloodForever).await;
    sandbox.send(Bytes::new()).unwrap();
    // Long enough for every buffer between the program and us to be full.
    for _ in 0..8 {
        sandbox.next_output().await.unwrap().unwrap();
    }
    let begin = Instant::now();
    within(Duration::from_secs(5), "a kill with unread output", sandbox.kill()).await.unwrap();
    within(LONG, "a wait with unread output", sandbox.wait()).await.unwrap();
    within(LONG, "a removal with unread output", sandbox.remove()).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10), "kill, wait and remove took {:?}", begin.elapsed());
}

pub async fn a_kill_is_possible_before_the_request(fixture: &dyn Fixture) {
    // Not one that reads: a kill lets go of its input first, and it could end by that.
    let mut sandbox = fixture.launch(Behaviour::Hang).await;
    sandbox.kill().await.unwrap();
    assert_eq!(sandbox.wait().await.unwrap().code, 137);
    assert_eq!(sandbox.send(Bytes::new()).unwrap_err().kind(), FaultKind::Misuse);
    sandbox.remove().await.unwrap();
}

pub async fn a_kill_of_the_dead_is_fine(fixture: &dyn Fixture) {
    let mut sandbox = fixture.launch(Behaviour::Print { stdout: "x", stderr: "", code: 5 }).await;
    sandbox.send(Bytes::new()).unwrap();
    read_all(&mut *sandbox).await;
    let exit = sandbox.wait().await.unwrap();
    sandbox.kill().await.unwrap();
    sandbox.kill().await.unwrap();
    assert_eq!(sandbox.wait().await.unwrap(), exit, "a kill must not rewrite how the program ended");
    assert_eq!(exit.code, 5);
    sandbox.remove().await.unwrap();
}

pub async fn after_a_kill_the_output_ends(fixture: &dyn Fixture) {
    for behaviour in [Behaviour::Hang, Behaviour::FloodForever] {
        let mut sandbox = fixture.launch(behaviour).await;
        sandbox.send(Bytes::new()).unwrap();
        sandbox.kill().await.unwrap();
        let written = within(Duration::from_secs(5), "the end of the output", read_all(&mut *sandbox)).await;
        assert!(written.stdout.len() <= 1 << 20, "a kill kept {} bytes", written.stdout.len());
        assert!(sandbox.next_output().await.is_none(), "the end is the end");
        sandbox.remove().await.unwrap();
    }
}

pub async fn closed_streams_are_not_the_exit(fixture: &dyn Fixture) {
    let asleep = Duration::from_millis(1500);
    let mut sandbox = fixture.launch(Behaviour::CloseThenSleep(asleep)).await;
    let begin = Instant::now();
    sandbox.send(Bytes::new()).unwrap();
    // Whether the output ends with the streams or with the container differs; the exit must not.
    read_all(&mut *sandbox).await;
    assert_eq!(sandbox.wait().await.unwrap().code, 7);
    assert!(begin.elapsed() >= asleep, "the exit was told after {:?}", begin.elapsed());
    sandbox.remove().await.unwrap();
}

pub async fn reading_and_waiting_can_be_given_up_and_taken_up(fixture: &dyn Fixture) {
    let mut sandbox = fixture.launch(Behaviour::SleepInBetween(Duration::from_millis(1200))).await;
    sandbox.send(Bytes::new()).unwrap();
    let mut stdout = Vec::new();
    let mut given_up = 0;
    loop {
        match tokio::time::timeout(SHORT, sandbox.next_output()).await {
            Ok(Some(Ok(OutputChunk::Stdout(bytes)))) => stdout.extend_from_slice(&bytes),
            Ok(Some(other)) => panic!("{other:?}"),
            Ok(None) => break,
            Err(_) => given_up += 1,
        }
    }
    assert_eq!(stdout, b"readylate");
    assert!(given_up > 0, "nothing was given up");
    sandbox.wait().await.unwrap();
    sandbox.remove().await.unwrap();

    let mut sandbox = fixture.launch(Behaviour::CloseThenSleep(Duration::from_millis(1200))).await;
    sandbox.send(Bytes::new()).unwrap();
    read_all(&mut *sandbox).await;
    let _given_up_or_not = tokio::time::timeout(SHORT, sandbox.wait()).await;
    let exit = sandbox.wait().await.unwrap();
    assert_eq!(exit.code, 7);
    assert_eq!(sandbox.wait().await.unwrap(), exit, "the same answer again");
    sandbox.remove().await.unwrap();
}

pub async fn a_signal_is_not_the_memory_limit(fixture: &dyn Fixture) {
    let (_, exit) = serve(fixture.launch(Behaviour::KillsItself).await, "").await;
    assert_eq!((exit.code, exit.oom), (137, false));
}

pub async fn the_memory_limit_is_told(fixture: &dyn Fixture) {
    let (_, exit) = within(LONG, "running out of memory", serve(fixture.launch(Behaviour::OutOfMemory).await, "")).await;
    assert_eq!((exit.code, exit.oom), (137, true));
}

pub async fn another_order_of_calls_is_misuse(fixture: &dyn Fixture) {
    let mut sandbox = fixture.launch(Behaviour::Echo).await;
    assert_eq!(sandbox.next_output().await.unwrap().unwrap_err().kind(), FaultKind::Misuse, "next_output before send");
    assert_eq!(sandbox.wait().await.unwrap_err().kind(), FaultKind::Misuse, "wait before send");
    sandbox.send(Bytes::from_static(b"once")).unwrap();
    assert_eq!(sandbox.send(Bytes::from_static(b"twice")).unwrap_err().kind(), FaultKind::Misuse, "send twice");
    assert_eq!(sandbox.wait().await.unwrap_err().kind(), FaultKind::Misuse, "wait before the end of the output");
    let written = read_all(&mut *sandbox).await;
    assert_eq!(written.stdout, b"once", "what was refused had no effect");
    sandbox.wait().await.unwrap();
    sandbox.remove().await.unwrap();

    let mut sandbox = fixture.launch(Behaviour::Hang).await;
    sandbox.send(Bytes::new()).unwrap();
    assert_eq!(sandbox.remove().await.unwrap_err().kind(), FaultKind::Misuse, "remove while it lives");
    assert_eq!(fixture.leftovers().await, 1, "what was refused had no effect");
    assert_eq!(fixture.runner().sweep(&|_| false).await.unwrap(), 1);
}

pub async fn a_missing_image_is_named(fixture: &dyn Fixture) {
    let spec = fixture.spec(&Behaviour::MissingImage);
    let fault = fixture.runner().launch(&spec).await.unwrap_err();
    assert_eq!(fault.kind(), FaultKind::ImageUnavailable, "{fault}");
    assert!(fault.to_string().contains(&spec.agent.image), "{fault}");
    assert_eq!(fixture.runner().image_digest(&spec.agent.image).await.unwrap(), None);
}

pub async fn a_missing_program_is_refused(fixture: &dyn Fixture) {
    let fault = fixture.runner().launch(&fixture.spec(&Behaviour::MissingProgram)).await.unwrap_err();
    assert_eq!(fault.kind(), FaultKind::Refused, "{fault}");
    assert_eq!(fixture.leftovers().await, 0, "a container that did not start stays");
}

pub async fn a_sweep_removes_what_is_not_alive(fixture: &dyn Fixture) {
    drop(fixture.launch(Behaviour::Hang).await);
    let mut ended = fixture.launch(SILENT).await;
    ended.send(Bytes::new()).unwrap();
    read_all(&mut *ended).await;
    ended.wait().await.unwrap();
    drop(ended);
    assert_eq!(fixture.leftovers().await, 2);
    assert_eq!(fixture.runner().sweep(&|_| false).await.unwrap(), 2);
    assert_eq!(fixture.leftovers().await, 0);
}

/// The same run under the epoch before.
fn older(key: &ContainerKey) -> ContainerKey {
    match key {
        ContainerKey::Run { run_id, epoch } => ContainerKey::Run { run_id: run_id.clone(), epoch: epoch - 1 },
        ContainerKey::Warm(_) => panic!("made for a run"),
    }
}

pub async fn a_sweep_leaves_what_lives(fixture: &dyn Fixture) {
    let spec = fixture.spec(&Behaviour::Echo);
    let live = fixture.runner().launch(&spec).await.unwrap();
    // The same run under an older epoch is not the one that lives.
    let older = LaunchSpec { key: older(&spec.key), ..spec.clone() };
    drop(fixture.runner().launch(&older).await.unwrap());
    assert_eq!(fixture.runner().sweep(&|each| *each == spec.key).await.unwrap(), 1);
    assert_eq!(fixture.leftovers().await, 1);
    let (written, _) = serve(live, "still here").await;
    assert_eq!(written.stdout, b"still here");
}

pub async fn the_same_run_can_be_launched_again(fixture: &dyn Fixture) {
    let spec = fixture.spec(&Behaviour::Echo);
    drop(fixture.runner().launch(&spec).await.unwrap());
    let again = fixture.runner().launch(&spec).await.unwrap();
    assert_eq!(fixture.leftovers().await, 1, "the earlier one made room");
    assert_eq!(serve(again, "again").await.0.stdout, b"again");
}

pub async fn neighbours_do_not_mix(fixture: &dyn Fixture) {
    let mut launched: Vec<Box<dyn Sandbox>> = Vec::new();
    for place in 0..3 {
        let spec = LaunchSpec { place, ..fixture.spec(&Behaviour::Echo) };
        launched.push(fixture.runner().launch(&spec).await.unwrap());
    }
    let served = launched.into_iter().enumerate().map(|(n, sandbox)| serve(sandbox, format!("request {n}")));
    for (n, (written, exit)) in futures::future::join_all(served).await.into_iter().enumerate() {
        assert_eq!(written.stdout, format!("request {n}").into_bytes());
        assert_eq!(exit.code, 0);
    }
}

/// Reads until `wanted` has come.
async fn hear(sandbox: &mut dyn Sandbox, wanted: &[u8]) {
    let mut heard = Vec::new();
    while heard.len() < wanted.len() {
        match within(LONG, "the answer", sandbox.next_output()).await {
            Some(Ok(OutputChunk::Stdout(bytes))) => heard.extend_from_slice(&bytes),
            other => panic!("{other:?} after {heard:?}"),
        }
    }
    assert_eq!(heard, wanted);
}

/// Reads until nothing has come for a while: what was on its way is here then.
async fn hush(sandbox: &mut dyn Sandbox) {
    while let Ok(chunk) = tokio::time::timeout(SHORT, sandbox.next_output()).await {
        chunk.expect("it lives").expect("no fault");
    }
}

pub async fn a_container_can_wait_for_its_request(fixture: &dyn Fixture) {
    let mut sandbox = fixture.launch(Behaviour::Echo).await;
    tokio::time::sleep(SHORT).await;
    assert!(!sandbox.is_over());
    let (first, second) = (sandbox.measure(), sandbox.measure());
    assert!(second.cpu >= first.cpu && second.max_memory >= first.max_memory, "{first:?} {second:?}");
    let (written, exit) = serve(sandbox, "after a while").await;
    assert_eq!((written.stdout.as_slice(), exit.code), (b"after a while".as_slice(), 0));
}

pub async fn an_end_before_the_request_is_noticed(fixture: &dyn Fixture) {
    let mut sandbox = fixture.launch(Behaviour::NeverReads).await;
    eventually("the word of its end", || std::future::ready(sandbox.is_over().then_some(()))).await;
    end(sandbox).await;
}

pub async fn a_session_answers_request_after_request(fixture: &dyn Fixture) {
    let mut sandbox = fixture.launch(Behaviour::EchoLines).await;
    for request in ["one\n", "two\n", "three\n"] {
        sandbox.say(Bytes::from_static(request.as_bytes())).unwrap();
        hear(&mut *sandbox, request.as_bytes()).await;
    }
    let large: Vec<u8> = std::iter::repeat_n(b'x', 1 << 20).chain([b'\n']).collect();
    sandbox.say(large.clone().into()).unwrap();
    hear(&mut *sandbox, &large).await;
    assert!(tokio::time::timeout(SHORT, sandbox.next_output()).await.is_err(), "it waits for the next");
    end(sandbox).await;
}

pub async fn a_session_and_one_request_do_not_mix(fixture: &dyn Fixture) {
    let mut sandbox = fixture.launch(Behaviour::EchoLines).await;
    sandbox.say(Bytes::from_static(b"one\n")).unwrap();
    assert_eq!(sandbox.send(Bytes::new()).unwrap_err().kind(), FaultKind::Misuse);
    hear(&mut *sandbox, b"one\n").await;
    sandbox.kill().await.unwrap();
    assert_eq!(sandbox.say(Bytes::new()).unwrap_err().kind(), FaultKind::Misuse);
    assert_eq!(sandbox.freeze().await.unwrap_err().kind(), FaultKind::Misuse);
    sandbox.remove().await.unwrap();
    let mut sandbox = fixture.launch(Behaviour::Echo).await;
    sandbox.send(Bytes::from_static(b"one")).unwrap();
    assert_eq!(sandbox.say(Bytes::new()).unwrap_err().kind(), FaultKind::Misuse);
    assert_eq!(read_all(&mut *sandbox).await.stdout, b"one");
    sandbox.wait().await.unwrap();
    sandbox.remove().await.unwrap();
}

pub async fn a_frozen_container_is_silent_and_goes_on(fixture: &dyn Fixture) {
    let mut sandbox = fixture.launch(Behaviour::Ticks(Duration::from_millis(20))).await;
    sandbox.say(Bytes::new()).unwrap();
    hear(&mut *sandbox, b".").await;
    for _ in 0..2 {
        sandbox.freeze().await.unwrap();
        sandbox.freeze().await.unwrap();
        hush(&mut *sandbox).await;
        let before = sandbox.measure().cpu;
        assert!(tokio::time::timeout(2 * SHORT, sandbox.next_output()).await.is_err(), "it speaks while it is frozen");
        assert_eq!(sandbox.measure().cpu, before, "it works while it is frozen");
        sandbox.thaw().await.unwrap();
        sandbox.thaw().await.unwrap();
        within(LONG, "the next tick", sandbox.next_output()).await.unwrap().unwrap();
    }
    end(sandbox).await;
}

pub async fn a_frozen_container_is_spoken_to(fixture: &dyn Fixture) {
    let mut sandbox = fixture.launch(Behaviour::EchoLines).await;
    sandbox.say(Bytes::from_static(b"one\n")).unwrap();
    hear(&mut *sandbox, b"one\n").await;
    sandbox.freeze().await.unwrap();
    sandbox.say(Bytes::from_static(b"two\n")).unwrap();
    assert!(tokio::time::timeout(SHORT, sandbox.next_output()).await.is_err(), "it answers while it is frozen");
    assert!(!sandbox.is_over());
    sandbox.thaw().await.unwrap();
    hear(&mut *sandbox, b"two\n").await;
    end(sandbox).await;
}

pub async fn a_frozen_container_can_be_killed(fixture: &dyn Fixture) {
    let mut sandbox = fixture.launch(Behaviour::Hang).await;
    sandbox.say(Bytes::new()).unwrap();
    sandbox.freeze().await.unwrap();
    within(Duration::from_secs(5), "the kill of a frozen container", sandbox.kill()).await.unwrap();
    assert_eq!(sandbox.wait().await.unwrap().code, 137);
    sandbox.remove().await.unwrap();
    let mut swept = fixture.launch(Behaviour::Hang).await;
    swept.freeze().await.unwrap();
    drop(swept);
    assert_eq!(fixture.runner().sweep(&|_| false).await.unwrap(), 1, "a frozen leftover");
}

pub async fn the_runner_says_what_it_is(fixture: &dyn Fixture) {
    assert!(!fixture.runner().ping().await.unwrap().description.is_empty());
    let image = fixture.agent(&Behaviour::Echo).image;
    let digest = fixture.runner().image_digest(&image).await.unwrap().expect("a digest");
    assert!(digest.starts_with("sha256:"), "{digest}");
    end(fixture.launch(Behaviour::Hang).await).await;
}
