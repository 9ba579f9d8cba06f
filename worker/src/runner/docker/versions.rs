//! What a Docker engine says it is made of.

use bollard::models::SystemVersion;

use super::super::Component;

/// The engine's parts with their versions. `runtime` is the one that containers are made with, when it is not the engine's
/// own choice: of such a one the engine tells no version.
pub(super) fn of(version: &SystemVersion, runtime: Option<&str>) -> Vec<Component> {
    let mut components = Vec::new();
    if let Some(engine) = &version.version {
        components.push(Component::new("docker", engine));
    }
    for part in version.components.iter().flatten() {
        let used = part.name == "containerd" || (part.name == "runc" && runtime.is_none_or(|runtime| runtime == "runc"));
        if used {
            components.push(Component::new(&part.name, packaged(&part.version, part.details.as_ref().and_then(|details| details.get("GitCommit")))));
        }
    }
    if let Some(runtime) = runtime.filter(|runtime| *runtime != "runc") {
        components.push(Component::new(runtime, "of unknown version"));
    }
    if let Some(kernel) = &version.kernel_version {
        components.push(Component::new("linux", kernel));
    }
    components
}

/// Debian writes the version of its package where others write a commit, and that one tells which fixes are in it.
fn packaged(version: &str, commit: Option<&String>) -> String {
    commit.filter(|commit| commit.starts_with(version)).map_or_else(|| version.to_owned(), Clone::clone)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_version_of_the_package_is_told_where_there_is_one() {
        let version: SystemVersion = serde_json::from_value(json!({
            "Version": "20.10.24+dfsg1", "KernelVersion": "6.1.0",
            "Components": [
                { "Name": "containerd", "Version": "1.6.20~ds1", "Details": { "GitCommit": "1.6.20~ds1-1+deb12u3" } },
                { "Name": "runc", "Version": "1.1.5+ds1", "Details": { "GitCommit": "1.1.5+ds1-1+deb12u1" } },
                { "Name": "docker-init", "Version": "0.19.0", "Details": { "GitCommit": "" } },
            ],
        }))
        .unwrap();
        let told: Vec<(String, String)> = of(&version, None).into_iter().map(|part| (part.name, part.version)).collect();
        let expected = [("docker", "20.10.24+dfsg1"), ("containerd", "1.6.20~ds1-1+deb12u3"), ("runc", "1.1.5+ds1-1+deb12u1"), ("linux", "6.1.0")];
        assert_eq!(told, expected.map(|(name, version)| (name.to_owned(), version.to_owned())));
        let other = of(&version, Some("runsc"));
        assert!(other.iter().all(|part| part.name != "runc") && other.iter().any(|part| part.name == "runsc"));
        assert_eq!(packaged("29.1.0", Some(&"d6f9a2c".to_owned())), "29.1.0");
    }
}
