//! What a Docker container tells while it lives.

use std::time::Duration;

use bytes::Bytes;
use quayside_worker::runner::{Runner, Sandbox};

use super::docker::{OnDocker, python};
use super::{Behaviour, Fixture, check, end, within};
use crate::support::eventually;
use crate::support::server::docker;

#[tokio::test]
async fn what_a_living_container_used_is_measured() {
    check(OnDocker::new(), async |fixture| {
        let mut spec = fixture.spec(&Behaviour::Echo);
        let burn = "t = time.process_time()\n while time.process_time() - t < 0.3: pass\n os.write(1, b'done')";
        spec.agent.command = python(&format!("import os, sys, time\nfor line in sys.stdin.buffer:\n {burn}"));
        let mut sandbox = fixture.docker_runner().launch(&spec).await.unwrap();
        let idle = sandbox.measure();
        assert!(idle.max_memory.is_some_and(|bytes| (1 << 18..64 << 20).contains(&bytes)), "{idle:?}");
        let mut before = idle.cpu.expect("CPU time");
        for _ in 0..2 {
            sandbox.say(Bytes::from_static(b"go\n")).unwrap();
            within(Duration::from_secs(30), "the answer", sandbox.next_output()).await.unwrap().unwrap();
            let now = sandbox.measure().cpu.expect("CPU time");
            assert!(now - before >= Duration::from_millis(280), "{before:?} {now:?}");
            before = now;
        }
        end(sandbox).await;
    })
    .await;
}

#[tokio::test]
async fn a_container_that_somebody_removes_is_over() {
    check(OnDocker::new(), async |fixture| {
        let mut sandbox = fixture.launch(Behaviour::EchoLines).await;
        sandbox.say(Bytes::from_static(b"x\n")).unwrap();
        within(Duration::from_secs(30), "the answer", sandbox.next_output()).await.unwrap().unwrap();
        sandbox.freeze().await.unwrap();
        assert!(!sandbox.is_over());
        let label = format!("label=dev.quayside.instance={}", fixture.instance());
        let id = docker(&["ps", "-aq", "--filter", &label]);
        docker(&["rm", "-f", id.trim()]);
        eventually("the word of its end", || std::future::ready(sandbox.is_over().then_some(()))).await;
        assert!(sandbox.thaw().await.is_err());
        end(sandbox).await;
    })
    .await;
}
