//! `docs/reliability.md` names the tests of each promise.

use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn the_tests_that_the_promises_name_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let promises: Vec<&str> = document.lines().filter(|line| line.starts_with("| P")).collect();
    assert_eq!(promises.len(), 10);
    let mut sources = String::new();
    for folder in ["tests", "api/tests", "shared/src", "worker/src"] {
        read(&root.join(folder), &mut sources);
    }
    // Functions, and the names that a macro makes tests of.
    let known: BTreeSet<&str> = sources.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    for promise in promises {
        let named: Vec<&str> = promise.split('`').skip(1).step_by(2).filter(|name| name.len() > 10 && name.contains('_')).collect();
        assert!(!named.is_empty(), "no test for {promise}");
        for name in named.into_iter() {
            assert!(known.contains(name), "docs/reliability.md names the test `{name}`, and there is none");
        }
    }
}

fn read(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("node_modules") {
            read(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}
