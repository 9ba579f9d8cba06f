//! Who may run on this worker: the proof, kept and renewed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quayside_shared::agent::Agent;
use quayside_shared::clock::{Clock, SystemClock, Timestamp};
use quayside_shared::ids::AgentName;
use quayside_shared::sandbox::SandboxRecord;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::container::Probe;
use super::{Proof, Verdict, promise, prove};
use crate::runner::{EngineInfo, Runner};

/// How often a proof that could not be finished is tried again.
const AGAIN: Duration = Duration::from_secs(30);
/// A process that ends waits this long for the containers of a proof to be removed.
const FINISH: Duration = Duration::from_secs(5);
/// A run of a refused agent is looked at again after a quarter of its age, but not more often than this …
const SOONEST: Duration = Duration::from_secs(5);
/// … and not more seldom than this.
const LATEST: Duration = Duration::from_secs(60);

/// What a gate decides by.
#[derive(Debug, Clone)]
pub struct Policy {
    /// How the limits are proven; `None`: they are not, and nobody is refused.
    pub probe: Option<Probe>,
    /// Known ways out of a version in use refuse every agent.
    pub refuse_known_escapes: bool,
    /// The adapter's name, for the record.
    pub runner: &'static str,
    /// CPUs of this machine.
    pub machine_cpus: usize,
}

impl Policy {
    /// Nothing is proven, and nobody is refused.
    #[must_use]
    pub const fn trusting(runner: &'static str) -> Self {
        Self { probe: None, refuse_known_escapes: false, runner, machine_cpus: 1 }
    }
}

/// What is known by now.
#[derive(Debug, Clone)]
struct Known {
    /// The engine's own description of itself: another one is proven anew.
    engine: String,
    proof: Proof,
    /// Why not, by agent.
    refused: BTreeMap<AgentName, String>,
}

/// Keeps the proof of a worker.
pub struct Gate {
    runner: Arc<dyn Runner>,
    agents: BTreeMap<AgentName, Agent>,
    policy: Policy,
    known: watch::Sender<Option<Arc<Known>>>,
    proving: Mutex<()>,
}

impl Gate {
    /// A gate for `agents` on `runner`. It knows nothing yet.
    #[must_use]
    pub fn new(runner: Arc<dyn Runner>, agents: BTreeMap<AgentName, Agent>, policy: Policy) -> Self {
        Self { runner, agents, policy, known: watch::channel(None).0, proving: Mutex::default() }
    }

    /// A gate that proves nothing and refuses nobody.
    #[must_use]
    pub fn trusting(runner: Arc<dyn Runner>) -> Self {
        Self::new(runner, BTreeMap::new(), Policy::trusting("scripted"))
    }

    /// The engine answered as `engine`: its limits are proven, unless that was done for this very engine. Returns when it is
    /// known who may run, within a minute.
    ///
    /// Dropping the call ends nothing: containers that were begun are ended in order, see [`Gate::finish`].
    pub async fn admit(self: &Arc<Self>, engine: &EngineInfo) {
        if self.policy.probe.is_none() {
            return;
        }
        let (gate, engine) = (Arc::clone(self), engine.description.clone());
        // A panic in there leaves everything unknown, and nobody refused.
        let _finished = tokio::spawn(async move { gate.prove_for(engine).await }).await;
    }

    async fn prove_for(&self, engine: String) {
        let Some(probe) = &self.policy.probe else { return };
        let _one_at_a_time = self.proving.lock().await;
        if self.known.borrow().as_ref().is_some_and(|known| known.engine == engine) {
            return;
        }
        let known = self.judge(engine, prove(&*self.runner, probe).await);
        tell(&known);
        self.known.send_replace(Some(Arc::new(known)));
    }

    /// Waits, for some seconds, until no proof is under way.
    pub async fn finish(&self) {
        let _idle = tokio::time::timeout(FINISH, self.proving.lock()).await.is_ok();
    }

    /// Waits until it is known who may run. At once where nothing is proven.
    pub async fn settled(&self) {
        if self.policy.probe.is_some() {
            let mut known = self.known.subscribe();
            // The sender lives as long as this does.
            let _always = known.wait_for(Option::is_some).await.is_ok();
        }
    }

    /// Tries again what could not be finished, until `drain` is set.
    pub async fn keep_trying(&self, drain: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
            self.try_again().await;
        }
    }

    async fn try_again(&self) {
        let (Some(probe), Some(known)) = (&self.policy.probe, self.known.borrow().clone()) else { return };
        if known.proof.incomplete.is_none() || !matches!(self.runner.image_digest(&probe.image).await, Ok(Some(_))) {
            return;
        }
        let _one_at_a_time = self.proving.lock().await;
        let again = self.judge(known.engine.clone(), prove(&*self.runner, probe).await);
        if again.proof.incomplete.is_none() {
            tell(&again);
        }
        self.known.send_replace(Some(Arc::new(again)));
    }

    fn judge(&self, engine: String, proof: Proof) -> Known {
        let escapes: Vec<&str> = proof.known_escapes.iter().flat_map(|escape| escape.ids.iter().copied()).collect();
        let why = |agent: &Agent| {
            let broken = promise::broken(agent, &proof, self.policy.machine_cpus);
            if !broken.is_empty() {
                let names: Vec<&str> = broken.into_iter().map(super::Limit::as_str).collect();
                return Some(format!("not enforced here: {}", names.join(", ")));
            }
            (self.policy.refuse_known_escapes && !escapes.is_empty()).then(|| format!("known escapes: {}", escapes.join(", ")))
        };
        let refused = self.agents.iter().filter_map(|(name, agent)| Some((name.clone(), why(agent)?))).collect();
        Known { engine, proof, refused }
    }

    /// Whether any agent is refused. Costs nothing where none is.
    #[must_use]
    pub fn refuses_any(&self) -> bool {
        self.known.borrow().as_ref().is_some_and(|known| !known.refused.is_empty())
    }

    /// Why `agent` may not run here, if it may not.
    #[must_use]
    pub fn refusal(&self, agent: &AgentName) -> Option<String> {
        self.known.borrow().as_ref()?.refused.get(agent).cloned()
    }

    /// After what time a run of a refused agent is looked at again: soon while it is young, for another worker may take it.
    #[must_use]
    pub fn look_again_after(created_at: Timestamp) -> Duration {
        (SystemClock.now().since(created_at) / 4).clamp(SOONEST, LATEST)
    }

    /// For `/readyz`: an error when no agent may run here, otherwise what an operator should know.
    ///
    /// # Errors
    /// Why nobody may run.
    pub fn readiness(&self) -> Result<Option<String>, String> {
        if self.policy.probe.is_none() {
            return Ok(None);
        }
        let Some(known) = self.known.borrow().clone() else { return Ok(Some("the limits are being proven".to_owned())) };
        let mut told: Vec<String> = known.refused.iter().map(|(agent, why)| format!("{agent} is refused ({why})")).collect();
        told.extend(known.proof.incomplete.iter().map(|why| format!("not proven: {why}")));
        let told = (!told.is_empty()).then(|| told.join("; "));
        if !self.agents.is_empty() && known.refused.len() == self.agents.len() { Err(told.unwrap_or_default()) } else { Ok(told) }
    }

    /// The newest proof.
    #[must_use]
    pub fn proof(&self) -> Option<Proof> {
        self.known.borrow().as_ref().map(|known| known.proof.clone())
    }

    /// What a container of `agent` is held in by, for the record of its attempt.
    #[must_use]
    pub fn record(&self, agent: &Agent) -> SandboxRecord {
        let known = self.known.borrow().clone();
        let proof = known.as_ref().map(|known| &known.proof);
        let component = |names: &[&str]| proof.and_then(|proof| proof.component(names));
        SandboxRecord {
            runner: self.policy.runner.to_owned(),
            runtime: component(&["runc", "crun", "runsc"]).map(|runtime| format!("{} {}", runtime.name, runtime.version)),
            kernel: component(&["linux"]).map(|kernel| kernel.version.clone()),
            limits: agent.into(),
            proven: proof.is_some_and(|proof| promise::proven(agent, proof, self.policy.machine_cpus)),
            proven_at: proof.map(|proof| proof.at),
        }
    }
}

fn tell(known: &Known) {
    let Known { engine, proof, refused } = known;
    for row in &proof.rows {
        let (limit, measured) = (row.limit.as_str(), &row.measured);
        match row.verdict {
            Verdict::Enforced => tracing::debug!(limit, measured, "a limit holds"),
            Verdict::NotEnforced => tracing::error!(limit, measured, promised = row.promised, "a limit is not enforced"),
            Verdict::NotProven => tracing::warn!(limit, reason = measured, "a limit is not proven"),
        }
    }
    for escape in &proof.known_escapes {
        tracing::warn!(
            component = escape.component,
            ids = escape.ids.join(", "),
            remedy = escape.remedy,
            "a version with a known way out of containers"
        );
    }
    for (agent, why) in refused {
        tracing::error!(%agent, why, "the agent is refused on this worker; its runs wait");
    }
    let enforced = proof.rows.iter().filter(|row| row.verdict == Verdict::Enforced).count();
    tracing::info!(engine, enforced, of = proof.rows.len(), "the limits were tried");
}

#[cfg(test)]
mod tests {
    use super::super::escapes::KnownEscape;
    use super::super::{Limit, Row};
    use super::*;
    use crate::runner::scripted::ScriptedRunner;

    fn agent(name: &str, cpus: f64) -> Agent {
        Agent { cpus, ..Agent::new(name.parse().unwrap(), "image".to_owned(), Vec::new()) }
    }

    fn gate(refuse_known_escapes: bool) -> Gate {
        let agents = [agent("narrow", 1.0), agent("wide", 2.0)].map(|agent| (agent.name.clone(), agent));
        let policy = Policy { refuse_known_escapes, machine_cpus: 2, ..Policy::trusting("scripted") };
        Gate::new(Arc::new(ScriptedRunner::new()), BTreeMap::from(agents), policy)
    }

    fn proof(broken: Option<Limit>, known_escapes: Vec<KnownEscape>) -> Proof {
        let verdict = |limit| if Some(limit) == broken { Verdict::NotEnforced } else { Verdict::Enforced };
        let row = |limit| Row { limit, promised: String::new(), measured: String::new(), verdict: verdict(limit) };
        let rows = Limit::ALL.into_iter().map(row).collect();
        Proof { rows, incomplete: None, components: Vec::new(), known_escapes, at: Timestamp::from_millis(0) }
    }

    fn refused(known: &Known) -> Vec<(&str, &str)> {
        known.refused.iter().map(|(agent, why)| (agent.as_str(), why.as_str())).collect()
    }

    #[test]
    fn exactly_those_are_refused_who_are_promised_what_does_not_hold() {
        let judged = |broken| gate(false).judge("engine".to_owned(), proof(broken, Vec::new()));
        assert_eq!(refused(&judged(None)), []);
        assert_eq!(refused(&judged(Some(Limit::Cpus))), [("narrow", "not enforced here: cpus")]);
        let everybody = [("narrow", "not enforced here: pids"), ("wide", "not enforced here: pids")];
        assert_eq!(refused(&judged(Some(Limit::Pids))), everybody);
    }

    #[test]
    fn known_escapes_refuse_everybody_where_they_shall() {
        let escapes = || super::super::escapes::of(&[crate::runner::Component::new("crun", "1.4.3")]);
        assert_eq!(refused(&gate(false).judge("engine".to_owned(), proof(None, escapes()))), []);
        let known = gate(true).judge("engine".to_owned(), proof(None, escapes()));
        assert_eq!(refused(&known), [("narrow", "known escapes: CVE-2022-27650"), ("wide", "known escapes: CVE-2022-27650")]);
        assert_eq!(refused(&gate(true).judge("engine".to_owned(), proof(None, Vec::new()))), []);
    }

    #[test]
    fn a_run_is_looked_at_again_by_its_age() {
        let after = |age: u64| Gate::look_again_after(SystemClock.now() - Duration::from_secs(age));
        assert_eq!(after(0), SOONEST);
        assert!((Duration::from_secs(10)..Duration::from_secs(11)).contains(&after(40)));
        assert_eq!(after(100_000), LATEST);
    }
}
