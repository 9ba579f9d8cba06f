//! The runner port. Every function of [`suite`] is one property; [`conformance`] makes a test of it for one adapter.
//!
//! An adapter brings a [`Fixture`]: agents that behave in the ways the properties need, on a runner of its own.

mod cut_off;
mod docker;
mod fake_engine;
mod living;
mod oci;
mod oci_only;
mod proof;
mod scripted;
mod stopped;
mod suite;
mod workspaces;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quayside_shared::agent::{Agent, Input, Output};
use quayside_shared::ids::RunId;
use quayside_worker::runner::{ContainerKey, Exit, LaunchSpec, OutputChunk, Runner, Sandbox};

/// What an agent's program does with its one request.
#[derive(Debug, Clone, PartialEq)]
pub enum Behaviour {
    /// Writes the request back.
    Echo,
    /// Writes to both streams and exits.
    Print { stdout: &'static str, stderr: &'static str, code: u8 },
    /// Never ends by itself.
    Hang,
    /// Writes so many bytes and ends.
    Flood(usize),
    /// Writes until it is killed.
    FloodForever,
    /// Closes its streams, sleeps, exits with 7.
    CloseThenSleep(Duration),
    /// Writes `ready`, sleeps, writes `late`.
    SleepInBetween(Duration),
    /// Writes each line back as it comes.
    EchoLines,
    /// Writes again and again, with this pause.
    Ticks(Duration),
    /// Ends without having read anything.
    NeverReads,
    /// Writes bytes that are no UTF-8: `ok`, FF, FE, C3, 28, end of line.
    InvalidUtf8,
    /// Kills itself with signal 9.
    KillsItself,
    /// Takes memory until the limit kills it.
    OutOfMemory,
    /// An image that is not there.
    MissingImage,
    /// A program that is not in the image.
    MissingProgram,
}

/// An adapter with agents for it.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The runner under test.
    fn runner(&self) -> &dyn Runner;

    /// The image and the command of an agent that behaves like this.
    fn program(&self, behaviour: &Behaviour) -> (String, Vec<String>);

    /// How many containers of this runner are left, dead or alive.
    async fn leftovers(&self) -> usize;

    /// An agent that behaves like this.
    fn agent(&self, behaviour: &Behaviour) -> Agent {
        let (image, command) = self.program(behaviour);
        Agent {
            input: Input::Text,
            output: Output::Text,
            memory: 64 << 20,
            pids: 32,
            timeout: Duration::from_secs(60),
            ..Agent::new("conformance".parse().expect("a valid name"), image, command)
        }
    }

    /// A launch of it, in place 0 of a run of its own.
    fn spec(&self, behaviour: &Behaviour) -> LaunchSpec {
        LaunchSpec { agent: self.agent(behaviour), key: ContainerKey::Run { run_id: RunId::random(), epoch: 1 }, place: 0 }
    }

    /// Launches it.
    async fn launch(&self, behaviour: Behaviour) -> Box<dyn Sandbox> {
        self.runner().launch(&self.spec(&behaviour)).await.expect("the launch succeeds")
    }
}

/// Everything a program wrote.
#[derive(Debug, Default, PartialEq)]
pub struct Written {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Reads to the end of the output.
pub async fn read_all(sandbox: &mut dyn Sandbox) -> Written {
    let mut written = Written::default();
    while let Some(chunk) = sandbox.next_output().await {
        match chunk.expect("output without a fault") {
            OutputChunk::Stdout(bytes) => written.stdout.extend_from_slice(&bytes),
            OutputChunk::Stderr(bytes) => written.stderr.extend_from_slice(&bytes),
        }
    }
    written
}

/// The whole life of a container: request in, output and exit out, removed.
pub async fn serve(mut sandbox: Box<dyn Sandbox>, request: impl Into<Bytes>) -> (Written, Exit) {
    sandbox.send(request.into()).expect("the first send");
    let written = read_all(&mut *sandbox).await;
    let exit = sandbox.wait().await.expect("an exit");
    sandbox.remove().await.expect("a removal");
    (written, exit)
}

/// Kills and removes.
pub async fn end(mut sandbox: Box<dyn Sandbox>) {
    sandbox.kill().await.expect("a kill");
    sandbox.remove().await.expect("a removal");
}

/// Fails the test instead of hanging.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took longer than {limit:?}"),
    }
}

/// Runs one property, then proves that nothing is left, and cleans up in any case.
pub async fn check<F: Fixture>(fixture: F, property: impl AsyncFnOnce(&F)) {
    use futures::FutureExt;
    use std::panic::AssertUnwindSafe;

    let bounded = within(Duration::from_secs(120), "the property", property(&fixture));
    let outcome = AssertUnwindSafe(bounded).catch_unwind().await;
    let left = fixture.leftovers().await;
    let swept = fixture.runner().sweep(&|_| false).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    assert_eq!(left, 0, "containers were left behind");
    assert_eq!(swept.expect("a sweep"), 0);
}

/// One test for each property of the suite, over a fixture.
macro_rules! conformance {
    ($fixture:expr) => {
        conformance! { $fixture =>
            a_request_comes_back_byte_for_byte
            a_large_request_is_written_while_output_is_read
            the_two_streams_are_told_apart
            exit_codes_are_kept
            bytes_that_are_no_text_pass_through
            much_output_arrives_whole
            a_program_that_never_reads_is_no_fault
            a_kill_ends_a_hanging_program
            a_kill_needs_nobody_to_read_the_output
            a_kill_is_possible_before_the_request
            a_kill_of_the_dead_is_fine
            after_a_kill_the_output_ends
            closed_streams_are_not_the_exit
            reading_and_waiting_can_be_given_up_and_taken_up
            a_signal_is_not_the_memory_limit
            the_memory_limit_is_told
            another_order_of_calls_is_misuse
            a_missing_image_is_named
            a_missing_program_is_refused
            a_sweep_removes_what_is_not_alive
            a_sweep_leaves_what_lives
            the_same_run_can_be_launched_again
            neighbours_do_not_mix
            a_container_can_wait_for_its_request
            an_end_before_the_request_is_noticed
            a_session_answers_request_after_request
            a_session_and_one_request_do_not_mix
            a_frozen_container_is_silent_and_goes_on
            a_frozen_container_is_spoken_to
            a_frozen_container_can_be_killed
            the_runner_says_what_it_is
        }
    };
    ($fixture:expr => $($property:ident)*) => {
        $(
            #[tokio::test]
            async fn $property() {
                $crate::conformance::runner::check($fixture, async |fixture| {
                    $crate::conformance::runner::suite::$property(fixture).await;
                })
                .await;
            }
        )*
    };
}
use conformance;
