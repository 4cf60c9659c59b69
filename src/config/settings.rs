//! The values of all keys after defaults, file, environment and flags, each with the place that it came from.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::ConfigError;
use super::file::Node;
use super::keys::{self, KEYS, Key};
use super::kind::Value;

/// Where a value came from; later ones win.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Origin {
    Default,
    File { path: PathBuf, line: u64 },
    Environment(String),
    Flag(&'static str),
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// In the order of [`KEYS`].
    values: Vec<Option<Setting>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

impl Settings {
    pub(super) fn defaults() -> Self {
        let default = |key: &Key| {
            key.default.map(|text| Setting {
                value: key
                    .kind
                    .read_text(text)
                    .expect("a test reads every default"),
                origin: Origin::Default,
            })
        };
        Self {
            values: KEYS.iter().map(default).collect(),
        }
    }

    /// Sets a key from a flag or a variable.
    pub(super) fn set_text(
        &mut self,
        key: &'static Key,
        text: &str,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        self.set(key, key.kind.read_text(text), format!("{text:?}"), origin)
    }

    /// Sets a key from the file.
    pub(super) fn set_node(
        &mut self,
        key: &'static Key,
        node: &Node,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        self.set(key, key.kind.read_node(node), node.to_string(), origin)
    }

    fn set(
        &mut self,
        key: &'static Key,
        value: Option<Value>,
        given: String,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let Some(value) = value else {
            return Err(ConfigError::Value {
                key: key.path.to_owned(),
                expected: key.kind.to_string(),
                given,
                origin,
            });
        };
        self.values[keys::index(key.path)] = Some(Setting { value, origin });
        Ok(())
    }

    /// A key without a value has neither a default nor was it given.
    pub(crate) fn get(&self, path: &str) -> Option<&Setting> {
        self.values[keys::index(path)].as_ref()
    }

    pub(super) fn switch(&self, path: &str) -> bool {
        match self.value(path) {
            Value::Switch(value) => *value,
            other => unreachable!("`{path}` is no switch but {other}"),
        }
    }

    pub(super) fn whole(&self, path: &str) -> u64 {
        match self.value(path) {
            Value::Whole(value) => *value,
            other => unreachable!("`{path}` is no whole number but {other}"),
        }
    }

    /// A whole number as the type of the field that it goes to.
    pub(super) fn number<T: TryFrom<u64>>(&self, path: &str) -> T {
        match T::try_from(self.whole(path)) {
            Ok(value) => value,
            Err(_) => unreachable!("the limit of `{path}` fits its field"),
        }
    }

    pub(super) fn decimal(&self, path: &str) -> f64 {
        match self.value(path) {
            Value::Decimal(value) => *value,
            other => unreachable!("`{path}` is no number but {other}"),
        }
    }

    pub(super) fn seconds(&self, path: &str) -> Duration {
        Duration::from_secs_f64(self.decimal(path))
    }

    pub(super) fn days(&self, path: &str) -> Duration {
        Duration::from_secs_f64(self.decimal(path) * 86_400.0)
    }

    pub(super) fn millis(&self, path: &str) -> Duration {
        Duration::from_secs_f64(self.decimal(path) / 1000.0)
    }

    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        match &self.get(path)?.value {
            Value::Text(value) => Some(value),
            other => unreachable!("`{path}` is no text but {other}"),
        }
    }

    pub(super) fn json(&self, path: &str) -> Option<&serde_json::Value> {
        match &self.get(path)?.value {
            Value::Json(value) => Some(value),
            other => unreachable!("`{path}` is no list but {other}"),
        }
    }

    fn value(&self, path: &str) -> &Value {
        match self.get(path) {
            Some(setting) => &setting.value,
            None => unreachable!("`{path}` has a default"),
        }
    }
}

/// As a configuration file with the origin of each value behind it.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut open: Vec<&str> = Vec::new();
        for (key, setting) in KEYS.iter().zip(&self.values) {
            let Some(setting) = setting else { continue };
            let mut sections: Vec<&str> = key.path.split('.').collect();
            let name = sections.pop().expect("a split yields at least one part");
            let shared = open
                .iter()
                .zip(&sections)
                .take_while(|(a, b)| a == b)
                .count();
            for (depth, section) in sections.iter().enumerate().skip(shared) {
                writeln!(f, "{:indent$}{section}:", "", indent = 2 * depth)?;
            }
            let indent = 2 * sections.len();
            let line = format!("{:indent$}{name}: {}", "", setting.value);
            writeln!(f, "{line:<56} # {}", setting.origin)?;
            open = sections;
        }
        Ok(())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Flag(name) => write!(f, "--{name}"),
        }
    }
}
