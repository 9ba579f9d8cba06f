//! The seccomp profile, which is written in Docker's form, in the form of a container runtime.

use serde_json::{Map, Value, json};

use super::super::{Fault, FaultKind};

/// Deny by default. The same file as for every other runner.
const PROFILE: &str = include_str!("../../../../infra/docker/seccomp.json");

/// The architecture of this machine, by the name that seccomp has for it.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "SCMP_ARCH_AARCH64" } else { "SCMP_ARCH_X86_64" };

/// The profile as `linux.seccomp` of a container's configuration.
pub(super) fn profile() -> Result<Value, Fault> {
    convert(PROFILE).map_err(|what| Fault::new(FaultKind::Refused, format!("the seccomp profile cannot be enforced: {what}")))
}

/// Every rule is kept as it is; a rule or a setting that is not understood is an error, for leaving it out could let
/// something through.
fn convert(profile: &str) -> Result<Value, String> {
    let mut profile: Map<String, Value> = serde_json::from_str(profile).map_err(|error| error.to_string())?;
    let architectures = architectures(profile.remove("archMap").unwrap_or_default())?;
    let rules = profile.remove("syscalls").unwrap_or_default();
    let rules = rules.as_array().ok_or("it has no rules")?.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    let mut converted = json!({ "architectures": architectures, "syscalls": rules });
    for name in ["defaultAction", "defaultErrnoRet"] {
        if let Some(value) = profile.remove(name) {
            converted[name] = value;
        }
    }
    match profile.keys().next() {
        None => Ok(converted),
        Some(unknown) => Err(format!("it has a setting `{unknown}`, which is not understood")),
    }
}

fn architectures(map: Value) -> Result<Vec<Value>, String> {
    let map = map.as_array().cloned().unwrap_or_default();
    let ours = map.into_iter().find(|entry| entry["architecture"] == ARCHITECTURE).ok_or("it says nothing about this architecture")?;
    let others = ours["subArchitectures"].as_array().cloned().unwrap_or_default();
    Ok([ours["architecture"].clone()].into_iter().chain(others).collect())
}

fn rule(rule: &Value) -> Result<Value, String> {
    let rule = rule.as_object().ok_or("a rule is no object")?;
    let known = ["names", "action", "args", "errnoRet"];
    match rule.keys().find(|key| !known.contains(&key.as_str()) && *key != "comment") {
        Some(unknown) => Err(format!("a rule has `{unknown}`, which is not understood")),
        None => Ok(rule.iter().filter(|(key, _)| known.contains(&key.as_str())).map(|(key, value)| (key.clone(), value.clone())).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_kept() {
        let before: Value = serde_json::from_str(PROFILE).unwrap();
        let after = profile().unwrap();
        assert_eq!(after["syscalls"], before["syscalls"]);
        assert_eq!(after["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(after["architectures"], json!([ARCHITECTURE]));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        let with = |name: &str, value: Value| {
            let mut profile: Value = serde_json::from_str(PROFILE).unwrap();
            profile[name] = value;
            convert(&profile.to_string()).unwrap_err()
        };
        assert!(with("defaultAct", json!("SCMP_ACT_ALLOW")).contains("defaultAct"));
        assert!(
            with("syscalls", json!([{ "names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_ADMIN"] } }]))
                .contains("includes")
        );
        assert!(with("archMap", json!([])).contains("architecture"));
    }
}
