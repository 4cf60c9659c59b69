//! The configuration: its layers (defaults, file, environment, flags) merged and given to the supervisor's modules, which
//! check it and build what they need.
//!
//! - `keys` puts the modules' lists of keys together;
//! - [`mod@file`] and `environment` are layers;
//! - `accepted` lists FastVideo's keys that have no effect here;
//! - `suggest` finds the key that was meant;
//! - `error` has the errors that a configuration can have.

mod accepted;
mod environment;
mod error;
mod file;
pub(crate) mod keys;
mod suggest;

use std::path::PathBuf;
use std::sync::Arc;

use fastvideo_supervisor_core::prompt::provider;
use fastvideo_supervisor_core::settings::{KeySpec, Origin, Reader, Settings, Surroundings};
use fastvideo_supervisor_core::{
    self as core, Config, Layers, Source, engines, prompt, router, store,
};

use crate::logging::{self, LogFilter};
use error::ConfigError;
use keys::Table;

pub(crate) use error::ConfigErrors;

/// The variable in which systemd names a service's folder for its state (`StateDirectory=`).
const STATE_FOLDER: &str = "STATE_DIRECTORY";

/// The command line's part of the configuration.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The keys that there are.
    pub(crate) table: &'static Table,
    pub(crate) file: Option<PathBuf>,
    /// Keys and their values as they were typed.
    pub(crate) flags: Vec<(&'static KeySpec, String)>,
}

impl Options {
    /// Adds options that stand later on the command line and win.
    pub(crate) fn overridden_by(mut self, later: Self) -> Self {
        let is_later = |key: &KeySpec| later.flags.iter().any(|(other, _)| other.path == key.path);
        self.flags.retain(|(key, _)| !is_later(key));
        self.flags.extend(later.flags);
        Self {
            table: later.table,
            file: later.file.or(self.file),
            flags: self.flags,
        }
    }
}

/// The layers of a running program's configuration.
#[derive(Debug)]
pub(crate) struct ProgramLayers {
    options: Options,
    surroundings: Surroundings,
}

impl Layers for ProgramLayers {
    fn merge(&self) -> Result<Settings, String> {
        match merge(&self.options, &self.surroundings) {
            Ok((settings, _)) => Ok(settings),
            Err(errors) => Err(errors.to_string().trim_end().to_owned()),
        }
    }
}

/// Returns where a configuration comes from that was loaded from these options.
pub(crate) fn source(
    options: &Options,
    surroundings: &Surroundings,
    settings: Settings,
    log: LogFilter,
) -> Source {
    Source {
        settings,
        surroundings: surroundings.clone(),
        layers: Box::new(ProgramLayers {
            options: options.clone(),
            surroundings: surroundings.clone(),
        }),
        log: Arc::new(log),
    }
}

/// A checked configuration.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    pub(crate) logging: logging::Options,
    pub(crate) settings: Settings,
    /// Warnings for the operator, to be logged once the log has started.
    pub(crate) warnings: Vec<String>,
}

/// Reads and checks the whole configuration; starts nothing.
///
/// # Errors
/// Returns all errors of the layers or, if there are none, all errors of the merged values.
pub(crate) fn load(options: &Options, surroundings: &Surroundings) -> Result<Loaded, ConfigErrors> {
    let (settings, ignored) = merge(options, surroundings)?;
    let mut reader = Reader::new(&settings, surroundings);
    let logging = logging::read(&mut reader);
    let config = core::config::read(&mut reader);
    let warnings = warnings(&ignored, &reader, &config);
    let errors = reader.into_errors();
    if !errors.is_empty() {
        return Err(ConfigErrors(errors.into_iter().map(Into::into).collect()));
    }
    Ok(Loaded {
        config,
        logging,
        settings,
        warnings,
    })
}

/// A checked configuration of a router.
#[derive(Debug)]
pub(crate) struct LoadedRouter {
    pub(crate) config: router::Config,
    pub(crate) logging: logging::Options,
    pub(crate) settings: Settings,
    /// As in [`Loaded`].
    pub(crate) warnings: Vec<String>,
}

/// Reads and checks the configuration of a router; starts nothing.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_router(
    options: &Options,
    surroundings: &Surroundings,
) -> Result<LoadedRouter, ConfigErrors> {
    let (settings, _) = merge(options, surroundings)?;
    let mut reader = Reader::new(&settings, surroundings);
    let logging = logging::read(&mut reader);
    let config = router::config::read(&mut reader);
    let errors = reader.into_errors();
    if !errors.is_empty() {
        return Err(ConfigErrors(errors.into_iter().map(Into::into).collect()));
    }
    let mut warnings = Vec::from_iter(exposed_key(&config));
    warnings.extend(config.auth.warning.clone());
    Ok(LoadedRouter {
        config,
        logging,
        settings,
        warnings,
    })
}

/// Names the servers to which the router's key goes without TLS.
fn exposed_key(config: &router::Config) -> Option<String> {
    let mut addresses = config.exposing_key().map(|replica| replica.url.as_str());
    let first = addresses.next()?;
    let others = match addresses.count() {
        0 => String::new(),
        1 => " and 1 other".to_owned(),
        others => format!(" and {others} others"),
    };
    let key = router::config::KEY_FILE.spec.path;
    Some(format!(
        "the key of `{key}` goes over the network in the clear, to {first}{others}: use https:// or a network of your own"
    ))
}

/// Merges the layers. Each value fits its key, but values may contradict each other. Also returns the keys of the file that
/// are understood but have no effect.
///
/// # Errors
/// Returns all errors of the layers.
pub(crate) fn merge(
    options: &Options,
    surroundings: &Surroundings,
) -> Result<(Settings, Vec<String>), ConfigErrors> {
    let mut errors = Vec::new();
    let mut settings = Settings::defaults(options.table.all());
    if std::ptr::eq(options.table, &keys::SERVER) {
        keep_sessions_in_state_folder(surroundings, &mut settings);
    }
    let ignored = match &options.file {
        Some(path) => file::read(options.table, path, &mut settings, &mut errors),
        None => Vec::new(),
    };
    environment::read(
        options.table,
        &surroundings.variables,
        &mut settings,
        &mut errors,
    );
    for (key, text) in &options.flags {
        let set = settings.set_text(key, text, Origin::Flag(key.flag()));
        errors.extend(set.err().map(ConfigError::from));
    }
    match errors.is_empty() {
        true => Ok((settings, ignored)),
        false => Err(ConfigErrors(errors)),
    }
}

/// Makes the folder that systemd gives a service for its state the default store.
fn keep_sessions_in_state_folder(surroundings: &Surroundings, settings: &mut Settings) {
    let folders = surroundings.variable(STATE_FOLDER).unwrap_or_default();
    // There may be several, with colons between them.
    let folder = folders.split(':').next().unwrap_or_default();
    if folder.starts_with('/') {
        let url = format!("file://{folder}/sessions");
        let key = &store::config::SESSIONS.spec;
        let set = settings.set_text(key, &url, Origin::Default);
        set.expect("the key takes any text");
    }
}

/// Describes the environment of this process.
pub(crate) fn surroundings() -> Surroundings {
    let program = std::env::current_exe().unwrap_or_default();
    Surroundings {
        variables: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        program_folder: program.parent().map_or_else(PathBuf::new, PathBuf::from),
        root: PathBuf::from("/"),
    }
}

fn warnings(ignored: &[String], reader: &Reader<'_>, config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if engines::config::is_synthetic_by_default(reader) {
        warnings.push(format!(
            "test pictures are served, since `{}` names no model; `--engine synthetic` says that this is meant",
            engines::config::MODEL_PATH.spec.path
        ));
    }
    warnings.extend(config.http.auth.warning.clone());
    warnings.extend(missing_keys(config));
    let safety = config.prompt.safety.as_ref();
    if safety.is_some_and(|safety| safety.classifier_path.is_none()) {
        let key = prompt::config::CLASSIFIER_PATH.spec.path;
        warnings.push(format!("prompts are not screened: `{key}` is not set"));
    }
    let mut without_effect: Vec<&str> = ignored.iter().map(String::as_str).collect();
    without_effect.extend(engines::config::unused_model(reader));
    if !without_effect.is_empty() {
        warnings.push(format!("without effect: {}", without_effect.join(", ")));
    }
    warnings
}

/// Names the providers that have no API key. The server runs without them, and prompts are used unchanged.
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

#[cfg(test)]
mod tests;
