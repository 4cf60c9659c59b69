//! The values of all keys after defaults, file, environment and flags, each with its origin.

use std::fmt;
use std::path::PathBuf;

use super::key::{Key, KeySpec};
use super::types::KeyType;
use super::value::Value;

/// The layer that a value comes from; later ones win.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    Default,
    File { path: PathBuf, line: u64 },
    Environment(String),
    Flag(&'static str),
}

/// The values of all keys.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The entries in the order in which they are shown. A key without a setting has no default and was not given.
    entries: Vec<(&'static KeySpec, Option<Setting>)>,
}

/// The value of one key.
#[derive(Clone, Debug)]
pub struct Setting {
    pub value: Value,
    pub origin: Origin,
}

/// Why the values of keys are wrong. The text names the keys, what is expected, what is given and where.
#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    #[error("`{key}` must be {expected}, given {given} ({origin})")]
    Value {
        key: String,
        expected: String,
        given: String,
        origin: Origin,
    },
    #[error("`{less}` must not be above `{more}`, given {less_given} and {more_given}")]
    Reversed {
        less: &'static str,
        less_given: String,
        more: &'static str,
        more_given: String,
    },
    /// An error that only the module that owns the keys can describe.
    #[error(transparent)]
    Module(Box<dyn std::error::Error + Send + Sync>),
}

impl Settings {
    /// Returns the defaults of these keys.
    pub fn defaults(keys: impl IntoIterator<Item = &'static KeySpec>) -> Self {
        let with_default = |key: &'static KeySpec| {
            let setting = key.default.map(|default| Setting {
                value: default.into(),
                origin: Origin::Default,
            });
            (key, setting)
        };
        Self {
            entries: keys.into_iter().map(with_default).collect(),
        }
    }

    /// Sets a key from a flag or a variable.
    ///
    /// # Errors
    /// Returns [`SettingError::Value`] when the text does not fit the key, which keeps its value.
    pub fn set_text(
        &mut self,
        key: &KeySpec,
        text: &str,
        origin: Origin,
    ) -> Result<(), SettingError> {
        let given = || format!("{text:?}");
        self.set(key, key.kind.read_text(text), given, origin)
    }

    /// Sets a key from the file; `given` is the value as a message shows it.
    ///
    /// # Errors
    /// Returns [`SettingError::Value`] when the value does not fit the key, which keeps its value.
    pub fn set_file(
        &mut self,
        key: &KeySpec,
        value: serde_json::Value,
        given: impl FnOnce() -> String,
        origin: Origin,
    ) -> Result<(), SettingError> {
        self.set(key, key.kind.read_file(value), given, origin)
    }

    fn set(
        &mut self,
        key: &KeySpec,
        value: Option<Value>,
        given: impl FnOnce() -> String,
        origin: Origin,
    ) -> Result<(), SettingError> {
        let Some(value) = value else {
            return Err(SettingError::Value {
                key: key.path.to_owned(),
                expected: key.kind.to_string(),
                given: given(),
                origin,
            });
        };
        let place = self.place(key);
        self.entries[place].1 = Some(Setting { value, origin });
        Ok(())
    }

    /// Returns the value of a key.
    pub fn get<T: KeyType>(&self, key: &Key<T>) -> T {
        let setting = self.setting(&key.spec);
        T::of(&key.spec.kind, setting.map(|setting| &setting.value))
    }

    /// Returns the value of a key with its origin; `None` where the key has no value.
    pub fn setting(&self, key: &KeySpec) -> Option<&Setting> {
        self.entries[self.place(key)].1.as_ref()
    }

    fn place(&self, key: &KeySpec) -> usize {
        (self.entries.iter())
            .position(|(known, _)| known.path == key.path)
            .expect("every key of a module is in its list, of which these settings are made")
    }
}

/// Formats the settings as a configuration file, with the origin of each value behind it.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut open: Vec<&str> = Vec::new();
        for (key, setting) in &self.entries {
            let Some(setting) = setting else { continue };
            let sections: Vec<&str> = key.section().split('.').collect();
            let shared = open
                .iter()
                .zip(&sections)
                .take_while(|(a, b)| a == b)
                .count();
            for (depth, section) in sections.iter().enumerate().skip(shared) {
                writeln!(f, "{:indent$}{section}:", "", indent = 2 * depth)?;
            }
            let indent = 2 * sections.len();
            let line = format!("{:indent$}{}: {}", "", key.name(), setting.value);
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
