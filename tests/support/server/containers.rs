//! The containers of a server under test, whichever runner made them.

use std::path::Path;

use quayside_worker::runner::Runner;
use quayside_worker::runner::oci::{OciOptions, OciRunner};

use super::docker;

/// Names the runner that servers are tested with: `docker` (also without it) or `oci`.
const RUNNER: &str = "QUAYSIDE_TEST_RUNNER";
/// Where the runner without an engine has the folders of containers.
const STATE: &str = "/run/quayside/containers";

/// Whether servers are tested with the runner without an engine.
pub fn without_engine() -> bool {
    #[expect(clippy::disallowed_methods, reason = "the tests' own switch is no configuration of the product")]
    let runner = std::env::var(RUNNER).unwrap_or_default();
    match runner.as_str() {
        "" | "docker" => false,
        "oci" => true,
        other => panic!("{RUNNER} is `docker` or `oci`, not `{other}`"),
    }
}

/// What a server's process needs in its environment.
pub fn environment() -> Option<(&'static str, &'static str)> {
    without_engine().then_some(("QUAYSIDE__RUNNER__KIND", "oci"))
}

/// Names of the containers of an instance, running or not.
pub fn of(instance: &str) -> Vec<String> {
    if without_engine() {
        let folders = std::fs::read_dir(Path::new(STATE).join(instance)).into_iter().flatten().flatten();
        return folders.map(|folder| folder.file_name().to_string_lossy().into_owned()).collect();
    }
    docker(&["ps", "-aq", "--filter", &format!("label=dev.quayside.instance={instance}")]).lines().map(str::to_owned).collect()
}

/// Whether a container of this run is left, dead or alive.
pub fn has_one_for(run_id: &str, instances: &[String]) -> bool {
    if without_engine() {
        return instances.iter().any(|instance| of(instance).iter().any(|name| name.contains(run_id)));
    }
    !docker(&["ps", "-aq", "--filter", &format!("label=dev.quayside.run={run_id}")]).trim().is_empty()
}

/// Ends and removes the containers of these instances.
pub fn remove(instances: &[String]) {
    // A test may have asked for this runner by itself.
    for instance in instances.iter().filter(|instance| without_engine() || Path::new(STATE).join(instance).exists()) {
        sweep(instance.clone());
    }
    if without_engine() {
        return;
    }
    let containers: Vec<String> = instances.iter().flat_map(|instance| of(instance)).collect();
    if !containers.is_empty() {
        let mut arguments = vec!["rm", "-f", "-v"];
        arguments.extend(containers.iter().map(String::as_str));
        docker(&arguments);
    }
}

/// On a thread of its own: a test may be inside a runtime, and may be ending by a panic.
fn sweep(instance: String) {
    let options = OciOptions {
        instance,
        runtime: None,
        uid_base: 100_000,
        images: "/var/lib/quayside/images".into(),
        state: STATE.into(),
        docker_host: "unix:///var/run/docker.sock".to_owned(),
    };
    let swept = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let runner = OciRunner::connect(options).map_err(std::io::Error::other)?;
        runtime.block_on(runner.sweep(&|_| false)).map_err(std::io::Error::other)
    });
    if let Ok(Err(error)) = swept.join() {
        eprintln!("containers of a test are left: {error}");
    }
}
