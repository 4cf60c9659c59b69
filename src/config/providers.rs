//! Providers of language models: one from the keys of `streaming.prompt`, or several from its list.

use std::path::PathBuf;

use fastvideo_supervisor_core::prompt::provider::{Config, Key, Models};
use serde::Deserialize;
use url::Url;

use super::ConfigError;
use super::settings::{Origin, Settings};

const LIST: &str = "streaming.prompt.providers";
/// What stands for one provider and has no meaning beside a list.
const SINGLE: [&str; 8] = [
    "provider",
    "base_url",
    "api_key_env",
    "api_key_file",
    "model",
    "enhance.model",
    "auto_extend.model",
    "rewrite.model",
];

/// An entry of the list, and what the single keys come to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    provider: Preset,
    base_url: Option<String>,
    api_key_env: Option<String>,
    api_key_file: Option<PathBuf>,
    model: Option<String>,
    #[serde(default)]
    models: EntryModels,
    timeout_ms: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryModels {
    enhance: Option<String>,
    auto_extend: Option<String>,
    rewrite: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Preset {
    #[default]
    Cerebras,
    Groq,
    OpenaiCompatible,
}

impl Preset {
    fn named(name: &str) -> Self {
        match name {
            "groq" => Self::Groq,
            "openai_compatible" => Self::OpenaiCompatible,
            _ => Self::Cerebras,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cerebras => "cerebras",
            Self::Groq => "groq",
            Self::OpenaiCompatible => "openai_compatible",
        }
    }

    fn base_url(self) -> Option<&'static str> {
        match self {
            Self::Cerebras => Some("https://api.cerebras.ai/v1"),
            Self::Groq => Some("https://api.groq.com/openai/v1"),
            Self::OpenaiCompatible => None,
        }
    }

    fn key_variable(self) -> Option<&'static str> {
        match self {
            Self::Cerebras => Some("CEREBRAS_API_KEY"),
            Self::Groq => Some("GROQ_API_KEY"),
            Self::OpenaiCompatible => None,
        }
    }

    fn model(self) -> Option<&'static str> {
        match self {
            Self::Cerebras => Some("gpt-oss-120b"),
            Self::Groq => Some("openai/gpt-oss-120b"),
            Self::OpenaiCompatible => None,
        }
    }
}

/// The providers in their order, at least one. A key that is not there is no error: the server serves without.
pub(super) fn build(
    settings: &Settings,
    variables: &[(String, String)],
) -> Result<Vec<Config>, Vec<ConfigError>> {
    let check = |entry: Entry, place: String, origin: Origin| {
        let timeout = settings.millis("streaming.prompt.timeout_ms");
        Checker {
            place,
            origin,
            variables,
        }
        .check(entry, timeout)
    };
    let Some(list) = settings.json(LIST) else {
        let place = "streaming.prompt".to_owned();
        let origin = match settings.get("streaming.prompt.provider") {
            Some(setting) => setting.origin.clone(),
            None => Origin::Default,
        };
        return match check(single(settings), place, origin) {
            Ok(provider) => Ok(vec![provider]),
            Err(error) => Err(vec![error]),
        };
    };
    let origin = match settings.get(LIST) {
        Some(setting) => setting.origin.clone(),
        None => Origin::Default,
    };
    let mut errors: Vec<ConfigError> = beside_the_list(settings).collect();
    let mut providers = Vec::new();
    let entries = list.as_array().map_or(&[][..], Vec::as_slice);
    if entries.is_empty() {
        errors.push(wrong(
            LIST.to_owned(),
            "at least one provider",
            "none",
            &origin,
        ));
    }
    for (place, entry) in entries.iter().enumerate() {
        let place = format!("{LIST}[{place}]");
        let checked = match serde_path_to_error::deserialize(entry) {
            Ok(entry) => check(entry, place, origin.clone()),
            Err(error) => Err(unread(&place, &error, &origin)),
        };
        match checked {
            Ok(provider) => providers.push(provider),
            Err(error) => errors.push(error),
        }
    }
    match errors.is_empty() {
        true => Ok(providers),
        false => Err(errors),
    }
}

fn single(settings: &Settings) -> Entry {
    let text = |name: &str| {
        let text = settings.text(&format!("streaming.prompt.{name}"));
        text.map(str::to_owned)
    };
    Entry {
        provider: Preset::named(&text("provider").unwrap_or_default()),
        base_url: text("base_url"),
        api_key_env: text("api_key_env"),
        api_key_file: text("api_key_file").map(PathBuf::from),
        model: text("model"),
        models: EntryModels {
            enhance: text("enhance.model"),
            auto_extend: text("auto_extend.model"),
            rewrite: text("rewrite.model"),
        },
        timeout_ms: None,
    }
}

fn beside_the_list(settings: &Settings) -> impl Iterator<Item = ConfigError> {
    let given = |name: &&str| {
        let path = format!("streaming.prompt.{name}");
        let setting = settings.get(&path)?;
        let expected = "left out where `streaming.prompt.providers` is given";
        Some(wrong(path, expected, "both", &setting.origin))
    };
    SINGLE.iter().filter_map(given)
}

fn unread(
    place: &str,
    error: &serde_path_to_error::Error<serde_json::Error>,
    origin: &Origin,
) -> ConfigError {
    let field = match error.path().to_string() {
        whole if whole == "." => place.to_owned(),
        path => format!("{place}.{path}"),
    };
    // What is given may be a secret in the wrong place.
    let expected = "a provider such as {provider: groq, model: …} with fields of the right types";
    let given = match error.inner().to_string() {
        text if text.starts_with("unknown field") || text.starts_with("missing field") => text,
        text if text.starts_with("unknown variant") => text,
        _ => "something else".to_owned(),
    };
    wrong(field, expected, given, origin)
}

fn wrong(
    key: String,
    expected: impl Into<String>,
    given: impl Into<String>,
    origin: &Origin,
) -> ConfigError {
    ConfigError::Value {
        key,
        expected: expected.into(),
        given: given.into(),
        origin: origin.clone(),
    }
}

/// Checks one entry.
struct Checker<'a> {
    /// Before the names of fields.
    place: String,
    origin: Origin,
    variables: &'a [(String, String)],
}

impl Checker<'_> {
    fn check(&self, entry: Entry, timeout: std::time::Duration) -> Result<Config, ConfigError> {
        let key = self.key(&entry)?;
        let preset = entry.provider;
        let default = |given: Option<String>, default: Option<&str>| {
            given.or_else(|| default.map(str::to_owned))
        };
        let Some(model) = default(entry.model, preset.model()) else {
            return Err(self.wrong("model", "the name of a model", "nothing"));
        };
        let EntryModels {
            enhance,
            auto_extend,
            rewrite,
        } = entry.models;
        let or_model = |given: Option<String>| given.unwrap_or_else(|| model.clone());
        Ok(Config {
            name: preset.name().to_owned(),
            base_url: self.base_url(default(entry.base_url, preset.base_url()))?,
            key,
            models: Models {
                enhance: or_model(enhance),
                auto_extend: or_model(auto_extend),
                rewrite: or_model(rewrite),
            },
            timeout: self.timeout(entry.timeout_ms)?.unwrap_or(timeout),
        })
    }

    fn timeout(&self, given: Option<f64>) -> Result<Option<std::time::Duration>, ConfigError> {
        let Some(ms) = given else { return Ok(None) };
        match (1.0..=3_600_000.0).contains(&ms) {
            true => Ok(Some(std::time::Duration::from_secs_f64(ms / 1000.0))),
            false => {
                let expected = "a number from 1 to 3600000 ms";
                Err(self.wrong("timeout_ms", expected, ms.to_string()))
            }
        }
    }

    fn base_url(&self, given: Option<String>) -> Result<Url, ConfigError> {
        let expected = "an http:// or https:// address without user and password";
        let Some(given) = given else {
            return Err(self.wrong("base_url", expected, "nothing"));
        };
        let Ok(url) = Url::parse(&given) else {
            return Err(self.wrong("base_url", expected, "no address"));
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(self.wrong("base_url", expected, "an address with a user"));
        }
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(self.wrong("base_url", expected, format!("{given:?}")));
        }
        Ok(url)
    }

    fn key(&self, entry: &Entry) -> Result<Key, ConfigError> {
        if let Some(path) = &entry.api_key_file {
            if entry.api_key_env.is_some() {
                let expected = "left out where `api_key_file` is given";
                return Err(self.wrong("api_key_env", expected, "both"));
            }
            return match std::fs::read_to_string(path) {
                Ok(text) => self.usable(text.trim(), "api_key_file"),
                Err(error) => {
                    let given = format!("{} ({error})", path.display());
                    Err(self.wrong("api_key_file", "a file that can be read", given))
                }
            };
        }
        if let Some(name) = &entry.api_key_env {
            let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            if name.is_empty() || !name.chars().all(is_name) {
                let expected = "the name of an environment variable in capital letters";
                // Perhaps the key itself.
                return Err(self.wrong("api_key_env", expected, "something else"));
            }
        }
        let default = entry.provider.key_variable();
        let Some(name) = entry.api_key_env.as_deref().or(default) else {
            return Ok(Key::NotNeeded);
        };
        let found = self.variables.iter().find(|(variable, _)| variable == name);
        match found.map(|(_, value)| value.trim()) {
            Some(value) if !value.is_empty() => self.usable(value, "api_key_env"),
            _ => Ok(Key::Missing(name.to_owned())),
        }
    }

    fn usable(&self, key: &str, field: &str) -> Result<Key, ConfigError> {
        match key.is_empty() || !key.chars().all(|c| c.is_ascii_graphic()) {
            true => Err(self.wrong(field, "a key in printable ASCII", "another text")),
            false => Ok(Key::Given(key.to_owned())),
        }
    }

    fn wrong(
        &self,
        field: &str,
        expected: impl Into<String>,
        given: impl Into<String>,
    ) -> ConfigError {
        let key = format!("{}.{field}", self.place);
        wrong(key, expected, given, &self.origin)
    }
}
