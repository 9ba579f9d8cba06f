//! The limits of a real engine, proven; and a runner that is weaker than it says, seen through.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use quayside_shared::agent::{Agent, Network};
use quayside_worker::proof::container::Probe;
use quayside_worker::proof::gate::{Gate, Policy};
use quayside_worker::proof::{Limit, Proof, Verdict, prove};
use quayside_worker::runner::docker::{DockerOptions, DockerRunner};
use quayside_worker::runner::{Component, ContainerKey, EngineInfo, Fault, LaunchSpec, Runner, Sandbox};
use quayside_worker::slots::LiveContainers;

use super::check;
use super::docker::OnDocker;

/// Between the conformance tests' own uids and those of servers.
const UID_BASE: u32 = 300_000;

fn probe() -> Probe {
    Probe { image: "quayside/agent-python".to_owned(), uid_base: Some(UID_BASE), local: true, live: LiveContainers::default() }
}

fn runner(fixture: &OnDocker) -> DockerRunner {
    let host = "unix:///var/run/docker.sock".to_owned();
    DockerRunner::connect(DockerOptions { host, instance: fixture.instance().to_owned(), runtime: None, uid_base: UID_BASE }).unwrap()
}

/// A limit of the launch left out, or made wider.
type Weakening = fn(&mut LaunchSpec);

/// A runner that does not do as it is told.
struct Weaker {
    inner: DockerRunner,
    weaken: Weakening,
}

#[async_trait]
impl Runner for Weaker {
    async fn launch(&self, spec: &LaunchSpec) -> Result<Box<dyn Sandbox>, Fault> {
        let mut spec = spec.clone();
        (self.weaken)(&mut spec);
        self.inner.launch(&spec).await
    }
    async fn sweep(&self, live: &(dyn for<'a> Fn(&'a ContainerKey) -> bool + Send + Sync)) -> Result<usize, Fault> {
        self.inner.sweep(live).await
    }
    async fn ping(&self) -> Result<EngineInfo, Fault> {
        self.inner.ping().await
    }
    async fn components(&self) -> Result<Vec<Component>, Fault> {
        self.inner.components().await
    }
    async fn image_digest(&self, image: &str) -> Result<Option<String>, Fault> {
        self.inner.image_digest(image).await
    }
}

fn verdicts(proof: &Proof, wanted: Verdict) -> Vec<Limit> {
    Limit::ALL.into_iter().filter(|limit| proof.verdict(*limit) == wanted).collect()
}

#[tokio::test]
async fn every_limit_holds_on_docker() {
    check(OnDocker::new(), async |fixture| {
        let proof = prove(&runner(fixture), &probe()).await;
        assert!(proof.is_whole() && proof.incomplete.is_none(), "{proof:#?}");
        for name in ["docker", "runc", "linux"] {
            assert!(proof.component(&[name]).is_some_and(|component| !component.version.is_empty()), "{name}: {:?}", proof.components);
        }
    })
    .await;
}

#[tokio::test]
async fn a_limit_that_is_left_out_is_named() {
    let cases: [(Weakening, Limit); 5] = [
        (|spec| spec.agent.memory *= 8, Limit::Memory),
        (|spec| spec.agent.pids = 4096, Limit::Pids),
        (|spec| spec.agent.cpus = 2.0, Limit::Cpus),
        (|spec| spec.agent.network = Network::Bridge, Limit::Network),
        (|spec| spec.place = 7, Limit::Uid),
    ];
    check(OnDocker::new(), async |fixture| {
        for (weaken, limit) in cases {
            let proof = prove(&Weaker { inner: runner(fixture), weaken }, &probe()).await;
            let broken = verdicts(&proof, Verdict::NotEnforced);
            assert_eq!(broken, [limit], "{proof:#?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_missing_image_refuses_nobody_and_is_told() {
    check(OnDocker::new(), async |fixture| {
        let missing = Probe { image: "quayside/no-such-image:1".to_owned(), ..probe() };
        let agent = Agent::new("a".parse().unwrap(), "quayside/agent-python".to_owned(), Vec::new());
        let agents = BTreeMap::from([(agent.name.clone(), agent.clone())]);
        let runner: Arc<dyn Runner> = Arc::new(runner(fixture));
        let policy = Policy { probe: Some(missing), refuse_known_escapes: false, runner: "docker", machine_cpus: 2 };
        let gate = Arc::new(Gate::new(Arc::clone(&runner), agents, policy));
        assert_eq!(gate.readiness().unwrap().unwrap(), "the limits are being proven");
        gate.admit(&runner.ping().await.unwrap()).await;
        assert_eq!(gate.readiness().unwrap().unwrap(), "not proven: the image quayside/no-such-image:1 is not there");
        assert!(!gate.refuses_any() && gate.refusal(&agent.name).is_none() && !gate.record(&agent).proven);
        assert_eq!(verdicts(&gate.proof().unwrap(), Verdict::NotProven), Limit::ALL);
    })
    .await;
}
