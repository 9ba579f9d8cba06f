//! What the documents say of the tests.

use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && !["node_modules", "target"].contains(&name.to_str().unwrap()) {
            sources(&path, found);
        } else if ["rs", "mjs", "js"].iter().any(|ending| path.extension().is_some_and(|found| found == *ending)) {
            found.push(path);
        }
    }
}

#[test]
fn every_test_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["tests", "api", "shared", "worker", "src"] {
        sources(&root.join(folder), &mut found);
    }
    let code: String = found.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let hostile: Vec<String> = std::fs::read_dir(root.join("tests/hostile/programs"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|file| file.file_name().into_string().unwrap())
        .collect();
    let named = regex::Regex::new("`([a-z0-9]+(?:_[a-z0-9]+){2,})`").unwrap();
    let mut checked = 0;
    for document in ["ARCHITECTURE.md", "docs/reliability.md", "docs/operations.md", "docs/isolation.md", "CONTRIBUTING.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for capture in named.captures_iter(&text) {
            let name = &capture[1];
            checked += 1;
            let there = [format!("fn {name}"), format!("{name},"), format!("const {name}"), format!(" {name}:"), format!("\"{name}\"")];
            assert!(
                there.iter().any(|words| code.contains(words)) || hostile.iter().any(|file| file.starts_with(name)),
                "{document} names {name}, which is not there"
            );
        }
    }
    assert!(checked > 80, "only {checked} names were found");
}
