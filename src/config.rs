//! The configuration: from defaults, file, environment and flags to the checked form that the supervisor takes.
//!
//! [`keys`] is the table of all keys, [`kind`] what a key may hold, [`settings`] the values with their origins,
//! [`mod@file`] reads the file, [`accepted`] lists FastVideo's keys that have no effect here, [`suggest`] finds the key
//! that was meant, [`gpus`], [`faults`] and [`providers`] read the values with a syntax of their own, and [`checked`] turns all
//! of it into [`fastvideo_supervisor_core::Config`].

mod accepted;
mod checked;
mod faults;
mod file;
mod gpus;
pub(crate) mod keys;
pub(crate) mod kind;
mod providers;
pub(crate) mod settings;
mod suggest;

use std::fmt;
use std::path::PathBuf;

use fastvideo_supervisor_core::Config;
use fastvideo_supervisor_core::prompt::provider;

use crate::logging;
use gpus::Machine;
use keys::{KEYS, Key};
use settings::{Origin, Settings};

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) file: Option<PathBuf>,
    /// Keys and their values as they were typed.
    pub(crate) flags: Vec<(&'static Key, String)>,
}

/// What the process finds around itself.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    variables: Vec<(String, String)>,
    machine: Machine,
    /// Where this program lies.
    folder: PathBuf,
}

/// A configuration that can be run.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    pub(crate) logging: logging::Options,
    pub(crate) settings: Settings,
    /// What the operator should know, once there is a log.
    pub(crate) warnings: Vec<String>,
}

/// Everything that was wrong, so that it can be mended in one go.
#[derive(Debug)]
pub(crate) struct ConfigErrors(Vec<ConfigError>);

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
    #[error("`{key}` must be {expected}, given {given} ({origin})")]
    Value {
        key: String,
        expected: String,
        given: String,
        origin: Origin,
    },
    #[error("`{less}` must not be above `{more}`, given {less_given} and {more_given}")]
    Order {
        less: &'static str,
        less_given: String,
        more: &'static str,
        more_given: String,
    },
    #[error(
        "`streaming.store.sessions` and `streaming.store.blobs` do not fit together, given {sessions} and {blobs}: {problem}"
    )]
    Store {
        sessions: String,
        blobs: String,
        problem: &'static str,
    },
    #[error("`streaming.pool.gpus` {source} ({origin})")]
    Gpus {
        source: gpus::GpuError,
        origin: Origin,
    },
    #[error("`generator.synthetic.faults`: {source} ({origin})")]
    Faults {
        source: faults::FaultError,
        origin: Origin,
    },
    #[error(
        "engine ltx2 needs a model ({origin}): `--model` names a folder or a repository; `--engine synthetic` serves test pictures without one"
    )]
    NoModel { origin: Origin },
    #[error("the worker program {} {problem}; `--worker-bin` names another", path.display())]
    WorkerBin {
        path: PathBuf,
        problem: &'static str,
    },
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |key| format!("; did you mean `{key}`?"))
}

impl Surroundings {
    pub(crate) fn of_this_process() -> Self {
        let variables: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let program = std::env::current_exe().unwrap_or_default();
        Self {
            machine: Machine {
                cuda_visible_devices: variables
                    .iter()
                    .find(|(name, _)| name == "CUDA_VISIBLE_DEVICES")
                    .map(|(_, value)| value.clone()),
                root: PathBuf::from("/"),
            },
            variables,
            folder: program.parent().map_or_else(PathBuf::new, PathBuf::from),
        }
    }
}

/// Reads and checks everything; starts nothing.
pub(crate) fn load(options: &Options, surroundings: &Surroundings) -> Result<Loaded, ConfigErrors> {
    let mut errors = Vec::new();
    let mut settings = Settings::defaults();
    let ignored = match &options.file {
        Some(path) => file::read(path, &mut settings, &mut errors),
        None => Vec::new(),
    };
    read_variables(&surroundings.variables, &mut settings, &mut errors);
    for (key, text) in &options.flags {
        let origin = Origin::Flag(key.flag());
        errors.extend(settings.set_text(key, text, origin).err());
    }
    if !errors.is_empty() {
        return Err(ConfigErrors(errors));
    }
    let (config, logging) = checked::build(&settings, surroundings).map_err(ConfigErrors)?;
    Ok(Loaded {
        warnings: warnings(&ignored, &settings, &config),
        config,
        logging,
        settings,
    })
}

/// Empty variables count as absent, as unit files and compose files write them.
fn read_variables(
    variables: &[(String, String)],
    settings: &mut Settings,
    errors: &mut Vec<ConfigError>,
) {
    for (name, text) in variables.iter().filter(|(_, text)| !text.is_empty()) {
        let origin = Origin::Environment(name.clone());
        if let Some(key) = KEYS.iter().find(|key| key.variable() == *name) {
            errors.extend(settings.set_text(key, text, origin).err());
        } else if let Some(path) = path_of_variable(name) {
            errors.push(ConfigError::UnknownKey {
                suggestion: suggest::nearest(&path),
                key: path,
                origin,
            });
        }
    }
}

/// The key that a variable names, known or not. FastVideo has variables of its own that begin with `FASTVIDEO_`; none
/// of them begins with a section and two underscores.
fn path_of_variable(name: &str) -> Option<String> {
    let path = name
        .strip_prefix("FASTVIDEO_")?
        .to_lowercase()
        .replace("__", ".");
    let (section, _) = path.split_once('.')?;
    let known = ["generator", "server", "default_request", "streaming"];
    known.contains(&section).then_some(path)
}

fn warnings(ignored: &[String], settings: &Settings, config: &Config) -> Vec<String> {
    let mut warnings = missing_keys(config);
    let safety = config.prompt.safety.as_ref();
    if safety.is_some_and(|safety| safety.classifier_path.is_none()) {
        let key = "streaming.safety.classifier_path";
        warnings.push(format!("prompts are not screened: `{key}` is not set"));
    }
    let mut without_effect: Vec<&str> = ignored.iter().map(String::as_str).collect();
    if settings.text("generator.engine.name") == Some("synthetic")
        && settings.get("generator.model_path").is_some()
    {
        without_effect.push("generator.model_path");
    }
    if !without_effect.is_empty() {
        warnings.push(format!("without effect: {}", without_effect.join(", ")));
    }
    warnings
}

/// The server serves without them, and prompts are used as they are written.
fn missing_keys(config: &Config) -> Vec<String> {
    let providers = (config.prompt.enhancer.iter()).flat_map(|enhancer| &enhancer.providers);
    let missing = providers.filter_map(|provider| match &provider.key {
        provider::Key::Missing(variable) => Some(format!(
            "prompts are not enhanced by {}: `{variable}` holds no key",
            provider.name
        )),
        _ => None,
    });
    missing.collect()
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.0 {
            writeln!(f, "error: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
