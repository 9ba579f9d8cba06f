//! What a container weighs against others when CPUs are short. A quota says how much it may use at most; a weight says who
//! goes first when all want more than there is.

/// The weight of one CPU, where 1024 is that of an ordinary process or service of the host. Beside twice as many busy
/// containers as CPUs, which is as many as a worker takes by itself, one service still gets a core's worth.
const PER_CPU: f64 = 128.0;
/// The kernel's own bounds.
const BOUNDS: (f64, f64) = (2.0, 262_144.0);

/// The CPU shares (control groups version 1) of a container with this many CPUs.
#[must_use]
pub fn cpu_shares(cpus: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded just before")]
    let shares = (cpus * PER_CPU).round().max(BOUNDS.0).min(BOUNDS.1) as u64;
    shares
}

/// The same as a weight of control groups version 2, where 100 is that of an ordinary service.
#[must_use]
pub fn cpu_weight(cpus: f64) -> u64 {
    (cpu_shares(cpus) * 100 / 1024).clamp(1, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_in_proportion_and_low() {
        assert_eq!((cpu_shares(1.0), cpu_weight(1.0)), (128, 12));
        assert_eq!(cpu_shares(2.0), 2 * cpu_shares(1.0));
        assert_eq!((cpu_shares(0.5), cpu_weight(0.5)), (64, 6));
        assert_eq!((cpu_shares(0.01), cpu_weight(0.01)), (2, 1));
        assert_eq!((cpu_shares(1e9), cpu_weight(1e9)), (262_144, 10_000));
        assert_eq!((cpu_shares(f64::NAN), cpu_weight(f64::NAN)), (2, 1));
    }

    #[test]
    fn as_many_containers_as_a_worker_takes_leave_a_core_to_it() {
        for cpus in 2..=64_u32 {
            let (service, containers) = (1024.0, f64::from(2 * cpus) * PER_CPU);
            assert!(service / (service + containers) * f64::from(cpus) >= 1.0, "{cpus} CPUs");
        }
    }
}
