//! Which promise is whose: what an agent's policy asks for, against what was proven. Pure.

use quayside_shared::agent::{Agent, Network};

use super::{Limit, Proof, Verdict};

/// Whether `agent` is promised `limit` on a machine with this many CPUs.
#[must_use]
pub fn promises(agent: &Agent, limit: Limit, machine_cpus: usize) -> bool {
    match limit {
        // Whoever may use the network is held to nothing there.
        Limit::Network => agent.network == Network::None,
        // A quota of the whole machine is none.
        Limit::Cpus => u32::try_from(machine_cpus).is_ok_and(|cpus| agent.cpus < f64::from(cpus)),
        Limit::Memory
        | Limit::Pids
        | Limit::Disk
        | Limit::Inodes
        | Limit::FileSize
        | Limit::OpenFiles
        | Limit::Sockets
        | Limit::Uid
        | Limit::Capabilities
        | Limit::NoNewPrivileges
        | Limit::Seccomp
        | Limit::Host => true,
    }
}

/// The limits that `agent` is promised and that were seen not to hold. Empty: it may run here. What could not be tried
/// refuses nobody: that is told, not punished.
#[must_use]
pub fn broken(agent: &Agent, proof: &Proof, machine_cpus: usize) -> Vec<Limit> {
    let is_broken = |limit: &Limit| promises(agent, *limit, machine_cpus) && proof.verdict(*limit) == Verdict::NotEnforced;
    Limit::ALL.into_iter().filter(is_broken).collect()
}

/// Whether every limit that `agent` is promised was tried and held.
#[must_use]
pub fn proven(agent: &Agent, proof: &Proof, machine_cpus: usize) -> bool {
    Limit::ALL.into_iter().filter(|limit| promises(agent, *limit, machine_cpus)).all(|limit| proof.verdict(limit) == Verdict::Enforced)
}

#[cfg(test)]
mod tests {
    use quayside_shared::clock::Timestamp;

    use super::super::Row;
    use super::*;

    fn proof(verdict: impl Fn(Limit) -> Verdict) -> Proof {
        let row = |limit| Row { limit, promised: String::new(), measured: String::new(), verdict: verdict(limit) };
        let rows = Limit::ALL.into_iter().map(row).collect();
        Proof { rows, incomplete: None, components: Vec::new(), known_escapes: Vec::new(), at: Timestamp::from_millis(0) }
    }

    fn agent(network: Network, cpus: f64) -> Agent {
        Agent { network, cpus, ..Agent::new("a".parse().unwrap(), "image".to_owned(), Vec::new()) }
    }

    #[test]
    fn one_broken_limit_refuses_exactly_those_who_are_promised_it() {
        let (strict, online) = (agent(Network::None, 1.0), agent(Network::Bridge, 1.0));
        for broken_one in Limit::ALL {
            let proof = proof(|limit| if limit == broken_one { Verdict::NotEnforced } else { Verdict::Enforced });
            assert_eq!(broken(&strict, &proof, 2), [broken_one]);
            assert!(!proven(&strict, &proof, 2));
            let expected: &[Limit] = if broken_one == Limit::Network { &[] } else { &[broken_one] };
            assert_eq!(broken(&online, &proof, 2), expected);
        }
        let cpus = proof(|limit| if limit == Limit::Cpus { Verdict::NotEnforced } else { Verdict::Enforced });
        assert_eq!(broken(&agent(Network::None, 2.0), &cpus, 2), [], "the whole machine is no limit");
        assert_eq!(broken(&agent(Network::None, 1.9), &cpus, 2), [Limit::Cpus]);
    }

    #[test]
    fn what_was_not_tried_refuses_nobody_and_proves_nothing() {
        let untried = proof(|_| Verdict::NotProven);
        let agent = agent(Network::None, 1.0);
        assert_eq!(broken(&agent, &untried, 2), []);
        assert!(!proven(&agent, &untried, 2));
        assert!(proven(&agent, &proof(|_| Verdict::Enforced), 2));
        let empty = Proof { rows: Vec::new(), ..untried };
        assert!(!proven(&agent, &empty, 2) && !empty.is_whole());
    }
}
