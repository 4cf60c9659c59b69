//! The errors of a configuration.

use std::fmt;
use std::path::PathBuf;

use fastvideo_supervisor_core::settings::{Origin, SettingError};

/// All errors of a configuration, so that an operator can fix them in one go.
#[derive(Debug)]
pub(crate) struct ConfigErrors(pub(super) Vec<ConfigError>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: {message}", path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("`{key}` must be a section of keys, given {given} ({origin})")]
    NotASection {
        key: String,
        given: String,
        origin: Origin,
    },
    #[error("unknown key `{key}` ({origin}){}", did_you_mean(suggestion.as_deref()))]
    UnknownKey {
        key: String,
        origin: Origin,
        suggestion: Option<String>,
    },
    #[error("`{key}` is another name of `{other}`, which is given too ({origin})")]
    Twice {
        key: String,
        other: &'static str,
        origin: Origin,
    },
    #[error(transparent)]
    Setting(#[from] SettingError),
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |key| format!("; did you mean `{key}`?"))
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.0 {
            writeln!(f, "error: {error}")?;
        }
        Ok(())
    }
}
