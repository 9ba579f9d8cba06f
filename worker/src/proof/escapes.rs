//! Versions with known ways out of a container. Each entry names where it is from.
//!
//! A version that distributions patch without a new number is judged by the package's own, where the engine tells it; what
//! cannot be told apart is warned of. Kernels are not in here: their numbers do not say what was patched.

use std::cmp::Ordering;

use serde::Serialize;

use crate::runner::Component;

/// A way out of a version in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KnownEscape {
    /// Where: `runc 1.1.5`.
    pub component: String,
    /// Its names.
    pub ids: Vec<&'static str>,
    /// What it is.
    pub what: &'static str,
    /// What to do.
    pub remedy: &'static str,
    /// Where this is said.
    pub source: &'static str,
}

/// A hole: in which versions of what it is.
struct Hole {
    component: &'static str,
    /// The first fixed version of each line of releases, oldest line first. A version is fixed when it is at least the entry
    /// of its own line (major and minor), or of a later line than all of them.
    fixed: &'static [&'static str],
    /// Packages with the fix under an older number: how their versions begin, and the first good revision behind that.
    packages: &'static [(&'static str, u64)],
    ids: &'static [&'static str],
    what: &'static str,
    remedy: &'static str,
    source: &'static str,
}

const HOLES: [Hole; 4] = [
    Hole {
        component: "runc",
        fixed: &["1.1.12"],
        packages: &[("1.1.5+ds1-1+deb12u", 1)],
        ids: &["CVE-2024-21626"],
        what: "a leaked file descriptor as working directory leads to the host's file system",
        remedy: "runc 1.1.12 or newer",
        source: "https://github.com/opencontainers/runc/security/advisories/GHSA-xr7r-f8xq-vfvv",
    },
    Hole {
        component: "runc",
        fixed: &["1.2.8", "1.3.3", "1.4.0-rc.3"],
        packages: &[],
        ids: &["CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"],
        what: "masked paths, /dev/console and writes to /proc can be redirected while a container starts",
        remedy: "runc 1.2.8, 1.3.3, 1.4.0-rc.3 or newer, or gVisor",
        source: "https://github.com/opencontainers/runc/security/advisories/GHSA-9493-h29p-rfm2, GHSA-qw9x-cqr3-wc7r, GHSA-cgrx-mc8f-2prm",
    },
    Hole {
        component: "crun",
        fixed: &["1.4.4"],
        packages: &[],
        ids: &["CVE-2022-27650"],
        what: "containers start with inheritable capabilities that are not empty",
        remedy: "crun 1.4.4 or newer",
        source: "https://nvd.nist.gov/vuln/detail/CVE-2022-27650",
    },
    Hole {
        component: "containerd",
        fixed: &["1.4.13", "1.5.10", "1.6.1"],
        packages: &[],
        ids: &["CVE-2022-23648"],
        what: "an image with a crafted volume path reads files of the host",
        remedy: "containerd 1.6.1 or newer",
        source: "https://github.com/containerd/containerd/security/advisories/GHSA-crp2-qrr5-8pq7",
    },
];

/// The known ways out of these components.
#[must_use]
pub fn of(components: &[Component]) -> Vec<KnownEscape> {
    let holes = components.iter().flat_map(|component| HOLES.iter().filter(|hole| hole.is_in(component)).map(move |hole| (component, hole)));
    holes
        .map(|(component, hole)| KnownEscape {
            component: format!("{} {}", component.name, component.version),
            ids: hole.ids.to_vec(),
            what: hole.what,
            remedy: hole.remedy,
            source: hole.source,
        })
        .collect()
}

impl Hole {
    fn is_in(&self, component: &Component) -> bool {
        if self.component != component.name {
            return false;
        }
        // A version that cannot be read may be any.
        let Some(version) = Version::read(&component.version) else { return true };
        let packaged = self.packages.iter().any(|(beginning, revision)| {
            component.version.strip_prefix(beginning).and_then(leading_number).is_some_and(|(found, _)| found >= *revision)
        });
        if packaged {
            return false;
        }
        let fixed: Vec<Version> = self.fixed.iter().filter_map(|fixed| Version::read(fixed)).collect();
        match fixed.iter().find(|fixed| fixed.line() == version.line()) {
            Some(fixed) => version < *fixed,
            None => fixed.last().is_some_and(|newest| version < *newest),
        }
    }
}

/// Three numbers, and which candidate of a release it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    numbers: [u64; 3],
    /// `None`: the release itself, which comes after its candidates.
    candidate: Option<u64>,
}

impl Version {
    fn read(text: &str) -> Option<Self> {
        let mut numbers = [0; 3];
        let mut rest = text.trim_start_matches('v');
        for (place, number) in numbers.iter_mut().enumerate() {
            if place > 0 {
                let Some(behind) = rest.strip_prefix('.') else { break };
                rest = behind;
            }
            (*number, rest) = leading_number(rest)?;
        }
        let candidate = rest.trim_start_matches(['-', '~']).strip_prefix("rc").and_then(|rest| leading_number(rest.trim_start_matches('.')));
        Some(Self { numbers, candidate: candidate.map(|(number, _)| number) })
    }

    fn line(&self) -> [u64; 2] {
        [self.numbers[0], self.numbers[1]]
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let candidate = |version: &Self| version.candidate.unwrap_or(u64::MAX);
        Some(self.numbers.cmp(&other.numbers).then_with(|| candidate(self).cmp(&candidate(other))))
    }
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holes(name: &str, version: &str) -> Vec<&'static str> {
        of(&[Component::new(name, version)]).into_iter().flat_map(|escape| escape.ids).collect()
    }

    #[test]
    fn each_line_of_runc_is_judged_by_its_own_fix() {
        const LEAK: &str = "CVE-2024-21626";
        let redirected = ["CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"];
        let both = [&[LEAK], &redirected[..]].concat();
        for old in ["1.0.3", "1.1.5", "1.1.11", "1.1.5+ds1", "1.1.5+ds1-1"] {
            assert_eq!(holes("runc", old), both, "{old}");
        }
        for half in
            ["1.1.5+ds1-1+deb12u1", "1.1.5+ds1-1+deb12u2", "1.1.12", "1.1.15", "1.2.0", "1.2.7", "1.3.0", "1.3.2", "1.4.0-rc.1", "v1.4.0-rc.2"]
        {
            assert_eq!(holes("runc", half), redirected, "{half}");
        }
        for good in ["1.2.8", "1.2.9", "1.3.3", "1.3.4", "1.4.0-rc.3", "1.4.0", "1.5.0", "2.0.0"] {
            assert_eq!(holes("runc", good), [""; 0], "{good}");
        }
        assert_eq!(holes("runc", "of unknown version"), both, "what cannot be read is warned of");
    }

    #[test]
    fn the_others_are_judged_too() {
        assert_eq!(holes("crun", "1.4.3"), ["CVE-2022-27650"]);
        assert_eq!(holes("crun", "1.8.1"), [""; 0]);
        assert_eq!(holes("containerd", "1.6.0"), ["CVE-2022-23648"]);
        assert_eq!(holes("containerd", "1.5.11"), [""; 0]);
        assert_eq!(holes("containerd", "1.6.20~ds1-1+deb12u3"), [""; 0]);
        assert_eq!(holes("docker", "20.10.24+dfsg1"), [""; 0]);
        assert_eq!(holes("linux", "6.1.0"), [""; 0]);
    }
}
