//! The suite over the scripted runner.

use async_trait::async_trait;
use quayside_worker::runner::Runner;
use quayside_worker::runner::scripted::ScriptedRunner;

use super::{Behaviour, Fixture, conformance};

#[derive(Default)]
struct Scripted(ScriptedRunner);

#[async_trait]
impl Fixture for Scripted {
    fn runner(&self) -> &dyn Runner {
        &self.0
    }

    fn program(&self, behaviour: &Behaviour) -> (String, Vec<String>) {
        let words = match behaviour {
            Behaviour::Echo => vec!["echo".to_owned()],
            Behaviour::Print { stdout, stderr, code } => vec![format!("stdout:{stdout}"), format!("stderr:{stderr}"), format!("exit:{code}")],
            Behaviour::EchoLines => vec!["echo-lines".to_owned()],
            Behaviour::Ticks(time) => vec![format!("ticks:{}ms", time.as_millis())],
            Behaviour::Hang => vec!["hang".to_owned()],
            Behaviour::Flood(bytes) => vec![format!("stdout-bytes:{bytes}")],
            Behaviour::FloodForever => vec!["stdout-bytes:8388608".to_owned(), "hang".to_owned()],
            Behaviour::CloseThenSleep(time) => vec!["close".to_owned(), format!("sleep:{}ms", time.as_millis()), "exit:7".to_owned()],
            Behaviour::SleepInBetween(time) => {
                vec!["stdout:ready".to_owned(), format!("sleep:{}ms", time.as_millis()), "stdout:late".to_owned()]
            }
            Behaviour::NeverReads => vec!["ignore-stdin".to_owned()],
            Behaviour::InvalidUtf8 => vec!["stdout:ok".to_owned(), "stdout-hex:fffec3280a".to_owned()],
            Behaviour::KillsItself => vec!["signal:9".to_owned()],
            Behaviour::OutOfMemory => vec!["oom".to_owned()],
            Behaviour::MissingImage => return ("missing".to_owned(), Vec::new()),
            Behaviour::MissingProgram => vec!["launch-fault:refused".to_owned()],
        };
        ("present".to_owned(), words)
    }

    async fn leftovers(&self) -> usize {
        self.0.containers().len()
    }
}

conformance!(Scripted::default());

#[tokio::test]
async fn an_engine_that_is_down_fails_every_call() {
    let runner = ScriptedRunner::new();
    runner.set_engine_down(true);
    assert!(runner.ping().await.is_err());
    assert!(runner.launch(&Scripted::default().spec(&Behaviour::Echo)).await.is_err());
    assert_eq!((runner.launched(), runner.containers().len()), (0, 0));
}
