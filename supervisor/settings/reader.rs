//! The reader that modules build their `Config` with: typed values, the process's surroundings, and a place for errors.

use std::path::PathBuf;

use super::key::{Key, KeySpec};
use super::merged::{Origin, Setting, SettingError, Settings};
use super::types::KeyType;

/// What the process finds around itself: its environment variables, its folder and the file system.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The environment variables.
    pub variables: Vec<(String, String)>,
    /// The folder of this program.
    pub program_folder: PathBuf,
    /// The root of the file system in which GPUs are looked for: `/`, except in tests.
    pub root: PathBuf,
}

impl Surroundings {
    /// Returns the value of an environment variable.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let found = self.variables.iter().find(|(variable, _)| variable == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Reads values and collects all errors, so that an operator can fix all of them at once.
///
/// When a value is wrong, a module reports it and builds its `Config` with a placeholder, which is never used.
#[derive(Debug)]
pub struct Reader<'a> {
    settings: &'a Settings,
    surroundings: &'a Surroundings,
    errors: Vec<SettingError>,
}

impl<'a> Reader<'a> {
    /// Creates a reader without errors.
    pub fn new(settings: &'a Settings, surroundings: &'a Surroundings) -> Self {
        Self {
            settings,
            surroundings,
            errors: Vec::new(),
        }
    }

    /// Returns the process's surroundings.
    pub fn surroundings(&self) -> &'a Surroundings {
        self.surroundings
    }

    /// Returns the errors that were reported so far.
    pub fn errors(&self) -> &[SettingError] {
        &self.errors
    }

    /// Returns the errors that were reported, in order.
    pub fn into_errors(self) -> Vec<SettingError> {
        self.errors
    }

    /// Returns the value of a key.
    pub fn get<T: KeyType>(&self, key: &Key<T>) -> T {
        self.settings.get(key)
    }

    /// Returns the value of a text key without a default; an empty text counts as none.
    pub fn non_empty(&self, key: &Key<Option<String>>) -> Option<String> {
        self.get(key).filter(|text| !text.is_empty())
    }

    /// Returns whether the file, the environment or a flag gives the key.
    pub fn is_given(&self, key: &KeySpec) -> bool {
        (self.setting(key)).is_some_and(|setting| setting.origin != Origin::Default)
    }

    /// Returns where the value of a key comes from.
    pub fn origin(&self, key: &KeySpec) -> Origin {
        self.setting(key)
            .map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// Returns the value of a key as a message shows it, with its origin.
    pub fn given(&self, key: &KeySpec) -> String {
        match self.setting(key) {
            Some(setting) => format!("{} ({})", setting.value, setting.origin),
            None => "nothing".to_owned(),
        }
    }

    /// Returns these keys' values in JSON, each under the last part of its path; null where a key has no value.
    pub fn to_json(&self, keys: &[&'static KeySpec]) -> serde_json::Map<String, serde_json::Value> {
        let value = |key: &&'static KeySpec| {
            let setting = self.setting(key);
            let value = setting.map_or(serde_json::Value::Null, |s| s.value.to_json());
            (key.name().to_owned(), value)
        };
        keys.iter().map(value).collect()
    }

    /// Reports that the value of a key is not what it must be.
    pub fn refuse(&mut self, key: &KeySpec, expected: impl Into<String>) {
        let given = match self.setting(key) {
            Some(setting) => setting.value.to_string(),
            None => "nothing".to_owned(),
        };
        let origin = self.origin(key);
        self.report(SettingError::Value {
            key: key.path.to_owned(),
            expected: expected.into(),
            given,
            origin,
        });
    }

    /// Refuses a text that consists of nothing but blanks.
    pub fn refuse_blank<T>(&mut self, key: &Key<T>, expected: &str)
    where
        T: KeyType + Into<Option<String>>,
    {
        let text: Option<String> = self.get(key).into();
        if text.is_some_and(|text| text.trim().is_empty()) {
            self.refuse(&key.spec, expected);
        }
    }

    /// Refuses two values when the first is larger than the second.
    pub fn refuse_reversed<T: KeyType + PartialOrd>(&mut self, less: &Key<T>, more: &Key<T>) {
        if self.get(less) > self.get(more) {
            let error = SettingError::Reversed {
                less: less.spec.path,
                less_given: self.given(&less.spec),
                more: more.spec.path,
                more_given: self.given(&more.spec),
            };
            self.report(error);
        }
    }

    /// Reports an error that only the module that owns the keys can describe.
    pub fn refuse_because(&mut self, error: impl std::error::Error + Send + Sync + 'static) {
        self.report(SettingError::Module(Box::new(error)));
    }

    /// Reports an error.
    pub fn report(&mut self, error: SettingError) {
        self.errors.push(error);
    }

    fn setting(&self, key: &KeySpec) -> Option<&'a Setting> {
        self.settings.setting(key)
    }
}
