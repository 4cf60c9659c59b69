//! The values of all keys after defaults, file, environment and flags, each with its origin.

use std::fmt;
use std::path::PathBuf;

use super::key::{Key, KeySpec, Reload};
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

/// What becomes of a program's settings when others have been read.
#[derive(Debug)]
pub struct Reloaded {
    /// What holds from now on: the new values, but those of keys that take a restart are still the old ones.
    pub settings: Settings,
    /// The keys whose values have changed.
    pub changed: Vec<&'static str>,
    /// The keys whose new values wait for a restart.
    pub pending_restart: Vec<&'static str>,
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

    /// Takes over from settings of the same keys what may change while the program runs.
    pub fn reloaded(&self, new: &Self) -> Reloaded {
        let mut reloaded = Reloaded {
            settings: new.clone(),
            changed: Vec::new(),
            pending_restart: Vec::new(),
        };
        let entries = self.entries.iter().zip(&mut reloaded.settings.entries);
        for ((key, old), (_, new)) in entries {
            let (value, new_value) = (given(old.as_ref()), given(new.as_ref()));
            if value == new_value {
                continue;
            }
            let takes_effect = match key.reload {
                Reload::AtOnce | Reload::Later => true,
                Reload::AtOnceIfGiven => value.is_some() && new_value.is_some(),
                Reload::Restart => false,
            };
            match takes_effect {
                true => reloaded.changed.push(key.path),
                false => {
                    reloaded.pending_restart.push(key.path);
                    new.clone_from(old);
                }
            }
        }
        reloaded
    }

    fn place(&self, key: &KeySpec) -> usize {
        (self.entries.iter())
            .position(|(known, _)| known.path == key.path)
            .expect("every key of a module is in its list, of which these settings are made")
    }
}

/// Returns the value of a key. An empty text is none.
fn given(setting: Option<&Setting>) -> Option<&Value> {
    let value = setting.map(|setting| &setting.value);
    value.filter(|value| !matches!(value, Value::Text(text) if text.is_empty()))
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

#[cfg(test)]
mod tests {
    use super::*;

    static AT_ONCE: Key<u32> = Key::u32("a.at_once", 0, 9)
        .reload(Reload::AtOnce)
        .default(1);
    static LATER: Key<u32> = Key::u32("a.later", 0, 9).reload(Reload::Later).default(1);
    static FILE: Key<Option<String>> = Key::text("b.file").reload(Reload::AtOnceIfGiven);
    static RESTART: Key<u32> = Key::u32("b.restart", 0, 9).default(1);

    fn settings(values: &[(&KeySpec, &str)]) -> Settings {
        let keys = [&AT_ONCE.spec, &LATER.spec, &FILE.spec, &RESTART.spec];
        let mut settings = Settings::defaults(keys);
        for (key, text) in values {
            settings.set_text(key, text, Origin::Flag("x")).unwrap();
        }
        settings
    }

    #[test]
    fn a_key_takes_over_its_new_value_or_waits_for_a_restart() {
        let old = settings(&[]);
        let new = settings(&[
            (&AT_ONCE.spec, "2"),
            (&LATER.spec, "1"),
            (&FILE.spec, "f"),
            (&RESTART.spec, "2"),
        ]);
        let reloaded = old.reloaded(&new);
        assert_eq!(reloaded.changed, ["a.at_once"]);
        assert_eq!(reloaded.pending_restart, ["b.file", "b.restart"]);
        let held = &reloaded.settings;
        assert_eq!((held.get(&AT_ONCE), held.get(&RESTART)), (2, 1));
        assert_eq!(held.get(&FILE), None);
        // What waits is named again, and no longer when it is taken back.
        let again = held.reloaded(&new);
        assert_eq!(again.changed, [""; 0]);
        assert_eq!(again.pending_restart, ["b.file", "b.restart"]);
        let back = settings(&[(&AT_ONCE.spec, "2"), (&LATER.spec, "3")]);
        let back = held.reloaded(&back);
        assert_eq!(back.changed, ["a.later"]);
        assert_eq!(back.pending_restart, [""; 0]);
    }

    #[test]
    fn a_file_is_exchanged_for_another_one_but_not_for_none() {
        let [none, empty, one, other] = [None, Some(""), Some("f"), Some("g")].map(|file| {
            let values: Vec<_> = file.map(|file| (&FILE.spec, file)).into_iter().collect();
            settings(&values)
        });
        assert_eq!(one.reloaded(&other).changed, ["b.file"]);
        assert_eq!(one.reloaded(&none).pending_restart, ["b.file"]);
        assert_eq!(none.reloaded(&one).pending_restart, ["b.file"]);
        assert_eq!(empty.reloaded(&one).pending_restart, ["b.file"]);
        assert_eq!(none.reloaded(&empty).pending_restart, [""; 0]);
    }
}
