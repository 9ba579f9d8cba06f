//! Where a value was written, so that an error can say so.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::File;

const PREFIX: &str = "QUAYSIDE__";
const DEFAULT_FILE: &str = "quayside.toml";

/// A configuration that cannot be used: where it stands, what is wrong and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    place: String,
    what: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

impl std::error::Error for ConfigError {}

/// The merged values and their origins.
#[derive(Debug)]
pub(super) struct Source {
    table: Table,
    file: Option<PathBuf>,
    /// Key path → the variable that set it.
    variables: BTreeMap<String, String>,
}

impl Source {
    pub(super) fn read(file: Option<&Path>, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let (path, text) = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
                    place: path.display().to_string(),
                    what: format!("cannot be read ({error}); name an existing file with --config, or leave it out for the defaults"),
                })?;
                (Some(path.to_owned()), text)
            }
            None => match std::fs::read_to_string(DEFAULT_FILE) {
                Ok(text) => (Some(PathBuf::from(DEFAULT_FILE)), text),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => (None, String::new()),
                Err(error) => return Err(ConfigError { place: DEFAULT_FILE.to_owned(), what: format!("cannot be read ({error})") }),
            },
        };
        let table = text.parse::<Table>().map_err(|error| ConfigError {
            place: path.as_ref().map_or_else(String::new, |path| path.display().to_string()),
            what: format!("is not valid TOML: {}", error.to_string().trim_end()),
        })?;
        let mut source = Self { table, file: path, variables: BTreeMap::new() };
        let mut variables: Vec<_> = environment.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        variables.sort();
        for (name, value) in variables {
            source.overlay(&name, &value)?;
        }
        Ok(source)
    }

    /// `QUAYSIDE__WORKER__SLOTS=2` sets `worker.slots`.
    fn overlay(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        let mut keys: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_lowercase).collect();
        // A variable for an agent's container: its name and its value stay as they are written.
        let verbatim = matches!(&keys[..], [agents, _, env, _] if agents == "agents" && env == "env");
        if let (true, Some(key), Some(written)) = (verbatim, keys.last_mut(), name.rsplit("__").next()) {
            written.clone_into(key);
        }
        let wrong = |what: &str| ConfigError { place: format!("environment variable {name}"), what: what.to_owned() };
        let Some((last, sections)) = keys.split_last().filter(|(_, sections)| !sections.is_empty()) else {
            return Err(wrong("write QUAYSIDE__SECTION__KEY, for example QUAYSIDE__API__BIND"));
        };
        if keys.iter().any(String::is_empty) {
            return Err(wrong("has an empty part; write QUAYSIDE__SECTION__KEY, for example QUAYSIDE__API__BIND"));
        }
        let mut table = &mut self.table;
        for section in sections {
            let entry = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
            table = entry.as_table_mut().ok_or_else(|| wrong(&format!("`{section}` is a value, not a section")))?;
        }
        table.insert(last.clone(), if verbatim { Value::String(value.to_owned()) } else { literal(value) });
        self.variables.insert(keys.join("."), name.to_owned());
        Ok(())
    }

    pub(super) fn parse(&self) -> Result<File, ConfigError> {
        serde_path_to_error::deserialize(Value::Table(self.table.clone())).map_err(|error| {
            let path = error.path().to_string();
            let inner = error.into_inner();
            self.error(&path, inner.to_string().trim_end())
        })
    }

    /// An error about `key`, told with the place where it was written.
    pub(super) fn error(&self, key: &str, what: &str) -> ConfigError {
        let variable = self.variables.iter().find(|(path, _)| path.as_str() == key || path.starts_with(&format!("{key}.")));
        let place = match (variable, &self.file) {
            (Some((_, variable)), _) => format!("environment variable {variable}"),
            (None, Some(file)) => file.display().to_string(),
            (None, None) => "configuration".to_owned(),
        };
        let what = if key == "." || key.is_empty() { what.to_owned() } else { format!("`{key}`: {what}") };
        ConfigError { place, what }
    }
}

/// Numbers, booleans and lists as TOML writes them; everything else is text.
fn literal(value: &str) -> Value {
    match format!("value = {value}").parse::<Table>() {
        Ok(mut table) if !value.contains('\n') => match table.remove("value") {
            Some(Value::Datetime(_)) | None => Value::String(value.to_owned()),
            Some(parsed) => parsed,
        },
        _ => Value::String(value.to_owned()),
    }
}
