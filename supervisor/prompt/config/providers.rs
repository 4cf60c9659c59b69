//! Providers of language models: one from the keys of `streaming.prompt`, or several from its list.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::super::provider::{Config, Key as ProviderKey, Models};
use crate::settings::{
    HOUR, Key, KeySpec, Origin, Reader, Reload, SettingError, Surroundings, WEB_ADDRESS,
    web_address,
};

/// The section of the keys of a single provider.
const SECTION: &str = "streaming.prompt";

/// The keys of a single provider, which have no meaning beside a list.
static SINGLE: [&KeySpec; 9] = [
    &PROVIDER.spec,
    &BASE_URL.spec,
    &API_KEY_ENV.spec,
    &API_KEY_FILE.spec,
    &MODEL.spec,
    &ENHANCE_MODEL.spec,
    &AUTO_EXTEND_MODEL.spec,
    &REWRITE_MODEL.spec,
    &ROLLOUT_MODEL.spec,
];

pub(super) static PROVIDER: Key<Option<String>> = Key::choice(
    "streaming.prompt.provider",
    &["cerebras", "groq", "openai_compatible"],
)
.reload(Reload::AtOnce)
    .help("Whose model; openai_compatible is any server with an OpenAI-like API, such as vLLM, Ollama or llama.cpp [default: cerebras]");

pub(super) static BASE_URL: Key<Option<String>> = Key::text("streaming.prompt.base_url")
    .reload(Reload::AtOnce)
    .help("Where `chat/completions` is found [default: that of the provider]");

pub(super) static API_KEY_ENV: Key<Option<String>> = Key::text("streaming.prompt.api_key_env")
    .reload(Reload::AtOnce)
    .help("The environment variable that holds the key [default: CEREBRAS_API_KEY or GROQ_API_KEY; openai_compatible needs none]");

pub(super) static API_KEY_FILE: Key<Option<String>> = Key::text("streaming.prompt.api_key_file")
    .reload(Reload::AtOnce)
    .help("A file that holds the key, instead of a variable; a relative path is one in CREDENTIALS_DIRECTORY, where systemd puts credentials, if that is set [default: none]");

pub(super) static MODEL: Key<Option<String>> = Key::text("streaming.prompt.model")
    .reload(Reload::AtOnce)
    .help("The model [default: cerebras: gpt-oss-120b, groq: openai/gpt-oss-120b]");

pub(super) static TIMEOUT: Key<Duration> =
    Key::millis("streaming.prompt.timeout_ms", 1.0, HOUR * 1e3)
        .reload(Reload::AtOnce)
        .help("Time that a provider has for one answer")
        .default(20_000.0);

pub(super) static PROVIDERS: Key<Option<Vec<serde_json::Value>>> = Key::json_list(
    "streaming.prompt.providers",
    "a list such as `[{provider: cerebras}, {provider: groq}]`",
)
.reload(Reload::AtOnce)
    .help("Several providers, asked in this order: each with `provider`, and where needed `base_url`, `api_key_env`, `api_key_file`, `model`, `models` (`{enhance, auto_extend, rewrite, rollout}`) and `timeout_ms` [default: the one of `provider`]");

pub(super) static ENHANCE_MODEL: Key<Option<String>> = Key::text("streaming.prompt.enhance.model")
    .reload(Reload::AtOnce)
    .help("The model that enhances a prompt [default: that of the provider]");

pub(super) static AUTO_EXTEND_MODEL: Key<Option<String>> =
    Key::text("streaming.prompt.auto_extend.model")
        .reload(Reload::AtOnce)
        .help("The model that writes the next prompt [default: that of the provider]");

pub(super) static REWRITE_MODEL: Key<Option<String>> = Key::text("streaming.prompt.rewrite.model")
    .reload(Reload::AtOnce)
    .help("The model that rewrites a prompt [default: that of the provider]");

pub(super) static ROLLOUT_MODEL: Key<Option<String>> = Key::text("streaming.prompt.rollout.model")
    .reload(Reload::AtOnce)
    .help("The model that writes the prompts of a whole video [default: that of the provider]");

/// A provider as the operator describes it: an entry of the list, or the single keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    provider: Preset,
    base_url: Option<String>,
    api_key_env: Option<String>,
    api_key_file: Option<PathBuf>,
    model: Option<String>,
    #[serde(default)]
    models: DescribedModels,
    timeout_ms: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DescribedModels {
    enhance: Option<String>,
    auto_extend: Option<String>,
    rewrite: Option<String>,
    rollout: Option<String>,
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

/// Reads the providers in their order, at least one unless an error is reported. A missing API key is not an error: the
/// server runs without it.
pub(super) fn read(reader: &mut Reader<'_>) -> Vec<Config> {
    let timeout = reader.get(&TIMEOUT);
    let mut providers = Vec::new();
    let mut keep = |reader: &mut Reader<'_>, checked: Result<Config, SettingError>| match checked {
        Ok(provider) => providers.push(provider),
        Err(error) => reader.report(error),
    };
    let Some(list) = reader.get(&PROVIDERS) else {
        let checker = Checker {
            place: SECTION.to_owned(),
            origin: reader.origin(&PROVIDER.spec),
            surroundings: reader.surroundings(),
        };
        keep(reader, checker.check(single(reader), timeout));
        return providers;
    };
    refuse_single_keys(reader);
    let origin = reader.origin(&PROVIDERS.spec);
    if list.is_empty() {
        let path = PROVIDERS.spec.path.to_owned();
        reader.report(wrong(path, "at least one provider", "none", &origin));
    }
    for (position, entry) in list.iter().enumerate() {
        let checker = Checker {
            place: format!("{}[{position}]", PROVIDERS.spec.path),
            origin: origin.clone(),
            surroundings: reader.surroundings(),
        };
        let checked = match serde_path_to_error::deserialize(entry) {
            Ok(description) => checker.check(description, timeout),
            Err(error) => Err(unread(&checker.place, &error, &origin)),
        };
        keep(reader, checked);
    }
    providers
}

fn single(reader: &Reader<'_>) -> Description {
    Description {
        provider: Preset::named(&reader.get(&PROVIDER).unwrap_or_default()),
        base_url: reader.get(&BASE_URL),
        api_key_env: reader.get(&API_KEY_ENV),
        api_key_file: reader.get(&API_KEY_FILE).map(PathBuf::from),
        model: reader.get(&MODEL),
        models: DescribedModels {
            enhance: reader.get(&ENHANCE_MODEL),
            auto_extend: reader.get(&AUTO_EXTEND_MODEL),
            rewrite: reader.get(&REWRITE_MODEL),
            rollout: reader.get(&ROLLOUT_MODEL),
        },
        timeout_ms: None,
    }
}

fn refuse_single_keys(reader: &mut Reader<'_>) {
    for key in SINGLE {
        if reader.is_given(key) {
            let expected = "left out where `streaming.prompt.providers` is given";
            let origin = reader.origin(key);
            reader.report(wrong(key.path.to_owned(), expected, "both", &origin));
        }
    }
}

fn unread(
    place: &str,
    error: &serde_path_to_error::Error<serde_json::Error>,
    origin: &Origin,
) -> SettingError {
    let field = match error.path().to_string() {
        whole if whole == "." => place.to_owned(),
        path => format!("{place}.{path}"),
    };
    // The value itself may be a secret in the wrong place.
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
) -> SettingError {
    SettingError::Value {
        key,
        expected: expected.into(),
        given: given.into(),
        origin: origin.clone(),
    }
}

/// The folder of the credentials that systemd gives to a service.
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Checks one description of a provider.
struct Checker<'a> {
    /// The path before the names of fields.
    place: String,
    origin: Origin,
    surroundings: &'a Surroundings,
}

impl Checker<'_> {
    fn check(&self, description: Description, timeout: Duration) -> Result<Config, SettingError> {
        let key = self.key(&description)?;
        let preset = description.provider;
        let default = |given: Option<String>, default: Option<&str>| {
            given.or_else(|| default.map(str::to_owned))
        };
        let Some(model) = default(description.model, preset.model()) else {
            return Err(self.wrong("model", "the name of a model", "nothing"));
        };
        let DescribedModels {
            enhance,
            auto_extend,
            rewrite,
            rollout,
        } = description.models;
        let or_model = |given: Option<String>| given.unwrap_or_else(|| model.clone());
        Ok(Config {
            name: preset.name().to_owned(),
            base_url: self.base_url(default(description.base_url, preset.base_url()))?,
            key,
            models: Models {
                enhance: or_model(enhance),
                auto_extend: or_model(auto_extend),
                rewrite: or_model(rewrite),
                rollout: or_model(rollout),
            },
            timeout: self.timeout(description.timeout_ms)?.unwrap_or(timeout),
        })
    }

    fn timeout(&self, given: Option<f64>) -> Result<Option<Duration>, SettingError> {
        let Some(ms) = given else { return Ok(None) };
        match (1.0..=3_600_000.0).contains(&ms) {
            true => Ok(Some(Duration::from_secs_f64(ms / 1000.0))),
            false => {
                let expected = "a number from 1 to 3600000 ms";
                Err(self.wrong("timeout_ms", expected, ms.to_string()))
            }
        }
    }

    fn base_url(&self, given: Option<String>) -> Result<Url, SettingError> {
        let url = match &given {
            Some(given) => web_address(given),
            None => Err("nothing".to_owned()),
        };
        url.map_err(|given| self.wrong("base_url", WEB_ADDRESS, given))
    }

    fn key(&self, description: &Description) -> Result<ProviderKey, SettingError> {
        if let Some(path) = &description.api_key_file {
            if description.api_key_env.is_some() {
                let expected = "left out where `api_key_file` is given";
                return Err(self.wrong("api_key_env", expected, "both"));
            }
            let path = match self.surroundings.variable(CREDENTIALS_VARIABLE) {
                Some(credentials) => Path::new(credentials).join(path),
                None => path.clone(),
            };
            return match std::fs::read_to_string(&path) {
                Ok(text) => self.usable(text.trim(), "api_key_file"),
                Err(error) => {
                    let given = format!("{} ({error})", path.display());
                    Err(self.wrong("api_key_file", "a file that can be read", given))
                }
            };
        }
        if let Some(name) = &description.api_key_env {
            let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            if name.is_empty() || !name.chars().all(is_name) {
                let expected = "the name of an environment variable in capital letters";
                // The text is not shown, since it may be the key itself.
                return Err(self.wrong("api_key_env", expected, "something else"));
            }
        }
        let default = description.provider.key_variable();
        let Some(name) = description.api_key_env.as_deref().or(default) else {
            return Ok(ProviderKey::NotNeeded);
        };
        match self.surroundings.variable(name).map(str::trim) {
            Some(value) if !value.is_empty() => self.usable(value, "api_key_env"),
            _ => Ok(ProviderKey::Missing(name.to_owned())),
        }
    }

    fn usable(&self, key: &str, field: &str) -> Result<ProviderKey, SettingError> {
        match key.is_empty() || !key.chars().all(|c| c.is_ascii_graphic()) {
            true => Err(self.wrong(field, "a key in printable ASCII", "another text")),
            false => Ok(ProviderKey::Given(key.to_owned())),
        }
    }

    fn wrong(
        &self,
        field: &str,
        expected: impl Into<String>,
        given: impl Into<String>,
    ) -> SettingError {
        let key = format!("{}.{field}", self.place);
        wrong(key, expected, given, &self.origin)
    }
}
