//! What the name of an image says, for every adapter that has to find one.

/// Whether the name spells a registry out. A bare name is an image of this machine: on a public registry it may be anybody's.
pub(crate) fn names_a_registry(image: &str) -> bool {
    image.split_once('/').is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost")
}

/// The name with the tag that a name without one means: else it would mean all of them.
pub(crate) fn with_tag(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_is_a_registry() {
        for image in ["registry.example.org/a/b", "localhost/a", "localhost:5000/a:1", "10.0.0.1/a@sha256:0"] {
            assert!(names_a_registry(image), "{image}");
        }
        for image in ["python", "python:3.11", "quayside/agent-python", "quayside/agent-python:3.11"] {
            assert!(!names_a_registry(image), "{image}");
        }
    }

    #[test]
    fn a_pull_names_one_image() {
        assert_eq!(with_tag("localhost:5000/a"), "localhost:5000/a:latest");
        assert_eq!(with_tag("localhost:5000/a:1"), "localhost:5000/a:1");
        assert_eq!(with_tag("localhost/a@sha256:0"), "localhost/a@sha256:0");
    }
}
