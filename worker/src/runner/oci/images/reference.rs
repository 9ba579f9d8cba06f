//! Where an image comes from, by how its name is written.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::super::image_name::{names_a_registry, with_tag};

/// An image's name, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Reference {
    /// Made on this machine: what the Docker engine here calls by this name. On a public registry it may belong to anybody.
    Local(String),
    /// On the registry that its first part names.
    Registry(String),
    /// `oci:FOLDER[:TAG]`, an OCI layout.
    Layout {
        /// The folder of the layout.
        folder: PathBuf,
        /// Which of its images; the only one without.
        tag: Option<String>,
    },
    /// `docker-archive:FILE`, what `docker save` writes.
    Archive(PathBuf),
}

impl Reference {
    /// Reads a name as it is written in the configuration.
    pub(in super::super) fn read(name: &str) -> Self {
        if let Some(path) = name.strip_prefix("docker-archive:") {
            return Self::Archive(path.into());
        }
        if let Some(path) = name.strip_prefix("oci:") {
            // A tag has no slash, and a folder is written with one.
            return match path.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
                Some((folder, tag)) => Self::Layout { folder: folder.into(), tag: Some(tag.to_owned()) },
                None => Self::Layout { folder: path.into(), tag: None },
            };
        }
        if names_a_registry(name) { Self::Registry(name.to_owned()) } else { Self::Local(name.to_owned()) }
    }

    /// The same in the words of `skopeo`.
    pub(super) fn source(&self) -> String {
        match self {
            Self::Local(name) => format!("docker-daemon:{}", with_tag(name)),
            Self::Registry(name) => format!("docker://{name}"),
            Self::Layout { folder, tag: Some(tag) } => format!("oci:{}:{tag}", folder.display()),
            Self::Layout { folder, tag: None } => format!("oci:{}", folder.display()),
            Self::Archive(file) => format!("docker-archive:{}", file.display()),
        }
    }

    /// What a layout or an archive holds at this moment; `None` when it is not there.
    pub(super) fn digest_of_file(&self) -> io::Result<Option<String>> {
        match self {
            Self::Layout { folder, tag } => missing_is_none(digest_in_layout(folder, tag.as_deref())),
            Self::Archive(file) => missing_is_none(stamp(file)),
            Self::Local(_) | Self::Registry(_) => Ok(None),
        }
    }
}

/// The digest of the manifest that a layout's index names.
pub(super) fn digest_in_layout(folder: &Path, tag: Option<&str>) -> io::Result<String> {
    let index: Value = serde_json::from_slice(&std::fs::read(folder.join("index.json"))?)?;
    let manifests = index["manifests"].as_array().cloned().unwrap_or_default();
    let mut found = manifests.iter().filter(|manifest| match tag {
        Some(tag) => manifest["annotations"]["org.opencontainers.image.ref.name"] == tag,
        None => true,
    });
    match (found.next().and_then(|manifest| manifest["digest"].as_str()), found.next()) {
        (Some(digest), None) => Ok(digest.to_owned()),
        (None, _) => Err(io::Error::new(io::ErrorKind::NotFound, "the layout has no such image")),
        (Some(_), Some(_)) => Err(io::Error::other("the layout has several images: name one as oci:FOLDER:TAG")),
    }
}

/// Stands for the contents of a file without reading gigabytes at every look: another file, or one that was written since,
/// has another stamp.
fn stamp(file: &Path) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(file)?;
    Ok(format!("file:{}-{}-{}-{}-{}", file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}

fn missing_is_none(found: io::Result<String>) -> io::Result<Option<String>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_where_an_image_is() {
        let layout = |folder: &str, tag: Option<&str>| Reference::Layout { folder: folder.into(), tag: tag.map(str::to_owned) };
        let names = [
            ("python:3.11", Reference::Local("python:3.11".to_owned()), "docker-daemon:python:3.11"),
            ("quayside/agent-python", Reference::Local("quayside/agent-python".to_owned()), "docker-daemon:quayside/agent-python:latest"),
            ("localhost:5000/a", Reference::Registry("localhost:5000/a".to_owned()), "docker://localhost:5000/a"),
            (
                "registry.example.org/a@sha256:0",
                Reference::Registry("registry.example.org/a@sha256:0".to_owned()),
                "docker://registry.example.org/a@sha256:0",
            ),
            ("oci:/images/a:1.2", layout("/images/a", Some("1.2")), "oci:/images/a:1.2"),
            ("oci:/images/a", layout("/images/a", None), "oci:/images/a"),
            ("docker-archive:/images/a.tar", Reference::Archive("/images/a.tar".into()), "docker-archive:/images/a.tar"),
        ];
        for (name, reference, source) in names {
            assert_eq!(Reference::read(name), reference, "{name}");
            assert_eq!(reference.source(), source, "{name}");
        }
    }

    #[test]
    fn a_layout_is_known_by_its_index() {
        let folder = tempfile::tempdir().unwrap();
        let of = |tag: &str| Reference::read(&format!("oci:{}{tag}", folder.path().display())).digest_of_file();
        assert_eq!(of("").unwrap(), None, "there is none yet");
        let index = r#"{"manifests":[{"digest":"sha256:aa","annotations":{"org.opencontainers.image.ref.name":"a"}},{"digest":"sha256:bb"}]}"#;
        std::fs::write(folder.path().join("index.json"), index).unwrap();
        assert_eq!(of(":a").unwrap().as_deref(), Some("sha256:aa"));
        assert_eq!(of(":b").unwrap(), None);
        assert!(of("").is_err(), "it is not clear which");
    }

    #[test]
    fn an_archive_that_was_written_anew_is_another_image() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.tar");
        let reference = Reference::read(&format!("docker-archive:{}", file.display()));
        assert_eq!(reference.digest_of_file().unwrap(), None);
        std::fs::write(&file, "one").unwrap();
        let one = reference.digest_of_file().unwrap().unwrap();
        std::fs::write(&file, "three").unwrap();
        assert_ne!(reference.digest_of_file().unwrap().unwrap(), one);
    }
}
