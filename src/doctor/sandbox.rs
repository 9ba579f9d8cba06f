//! Doctor's look at the walls: every limit, tried in real containers.

use std::collections::BTreeMap;

use quayside_shared::config::{Config, KnownEscapes};
use quayside_shared::error::chain;
use quayside_worker::proof::{Limit, Proof, Verdict, promise, prove};
use quayside_worker::slots::LiveContainers;

use crate::instance::Instance;
use crate::work::{machine_cpus, probe, runner};

/// What was found.
pub(super) struct Examined {
    pub(super) proof: Proof,
    /// The agents that a worker here would refuse, and the limits for which it would.
    pub(super) refused: BTreeMap<String, Vec<Limit>>,
    /// Whether versions with known ways out refuse every agent.
    pub(super) known_escapes_refuse: bool,
}

/// Makes the containers of a proof as a worker would, and removes them again.
pub(super) async fn examine(config: &Config) -> anyhow::Result<Examined> {
    // A name of its own. In the data folder it is known to the next life; a folder that is not there is not made for this.
    let folder = &config.backend.data_dir;
    let instance = if folder.is_dir() { Instance::take(folder, config.runner.uid_base).ok() } else { None };
    let fallback = format!("quayside-doctor-{}", std::process::id());
    let (name, uid_base) = instance.as_ref().map_or((fallback.as_str(), config.runner.uid_base), |instance| (&instance.name, instance.uid_base));
    let runner = runner(config, name, uid_base)?;
    let proof = prove(&*runner, &probe(config, uid_base, LiveContainers::default())).await;
    if let Err(fault) = runner.sweep(&|_| false).await {
        eprintln!("      a container of this look may be left: {}", chain(&fault));
    }
    let broken = |agent| promise::broken(agent, &proof, machine_cpus());
    let refused = config.agents.iter().map(|(name, agent)| (name.to_string(), broken(agent))).filter(|(_, broken)| !broken.is_empty()).collect();
    Ok(Examined { refused, known_escapes_refuse: config.worker.known_escapes == KnownEscapes::Refuse, proof })
}

impl Examined {
    /// All of it, for machines.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!({ "proof": self.proof, "refused": self.refused, "sound": self.is_sound() })
    }

    /// Whether no agent is promised what does not hold.
    pub(super) fn is_sound(&self) -> bool {
        self.refused.is_empty() && (!self.known_escapes_refuse || self.proof.known_escapes.is_empty())
    }

    /// The table and what follows from it, line by line.
    pub(super) fn lines(&self) -> Vec<String> {
        let enforced = |verdict| match verdict {
            Verdict::Enforced => "yes",
            Verdict::NotEnforced => "NO",
            Verdict::NotProven => "not proven",
        };
        let mut lines = vec![format!("      {:<18} {:<11} {:<62} measured", "limit", "enforced", "promised")];
        let row = |row: &quayside_worker::proof::Row| {
            format!("      {:<18} {:<11} {:<62} {}", row.limit.as_str(), enforced(row.verdict), row.promised, row.measured)
        };
        lines.extend(self.proof.rows.iter().map(row));
        for escape in &self.proof.known_escapes {
            let mark = if self.known_escapes_refuse { "FAIL" } else { "warn" };
            lines.push(format!(
                "{mark}  {:<14} {} ({}): {}; get {} ({})",
                "known escape",
                escape.component,
                escape.ids.join(", "),
                escape.what,
                escape.remedy,
                escape.source
            ));
        }
        for (agent, broken) in &self.refused {
            let names: Vec<&str> = broken.iter().map(|limit| limit.as_str()).collect();
            lines.push(format!("FAIL  {:<14} a worker here refuses it: {} not enforced", format!("agent {agent}"), names.join(", ")));
        }
        lines
    }

    /// One line for all of it.
    pub(super) fn summary(&self) -> Result<String, String> {
        let count = |verdict| self.proof.rows.iter().filter(|row| row.verdict == verdict).count();
        let stands_on: Vec<String> = self.proof.components.iter().map(|part| format!("{} {}", part.name, part.version)).collect();
        let mut text = format!("{} of {} limits hold", count(Verdict::Enforced), self.proof.rows.len());
        if count(Verdict::NotProven) > 0 {
            text.push_str(&format!(", {} not proven", count(Verdict::NotProven)));
        }
        if let Some(why) = &self.proof.incomplete {
            text.push_str(&format!(" ({why})"));
        }
        if !stands_on.is_empty() {
            text.push_str(&format!("; on {}", stands_on.join(", ")));
        }
        if self.is_sound() { Ok(text) } else { Err(text) }
    }
}
