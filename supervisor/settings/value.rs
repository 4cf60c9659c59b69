//! The value of a configuration key, as it is kept and shown.

use std::fmt;

/// A value that fits its key.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Switch(bool),
    Whole(u64),
    Decimal(f64),
    Text(String),
    List(Vec<serde_json::Value>),
}

/// The default value of a key. Its text is what a flag would say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DefaultValue {
    Switch(bool),
    Whole(u64),
    Decimal(f64),
    Text(&'static str),
}

impl From<DefaultValue> for Value {
    fn from(default: DefaultValue) -> Self {
        match default {
            DefaultValue::Switch(value) => Self::Switch(value),
            DefaultValue::Whole(value) => Self::Whole(value),
            DefaultValue::Decimal(value) => Self::Decimal(value),
            DefaultValue::Text(text) => Self::Text(text.to_owned()),
        }
    }
}

impl Value {
    /// Returns the value in JSON, passwords included.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Switch(value) => (*value).into(),
            Self::Whole(value) => (*value).into(),
            Self::Decimal(value) => (*value).into(),
            Self::Text(text) => text.as_str().into(),
            Self::List(items) => items.iter().cloned().collect(),
        }
    }
}

impl fmt::Display for DefaultValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(value) => value.fmt(f),
            Self::Whole(value) => value.fmt(f),
            Self::Decimal(value) => value.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// Formats the value as YAML, so that what `check` prints is a configuration file. The password of a URL is left out.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(value) => value.fmt(f),
            Self::Whole(value) => value.fmt(f),
            Self::Decimal(value) => value.fmt(f),
            Self::Text(text) => serde_json::Value::from(without_password(text)).fmt(f),
            // A list of providers holds no API keys: a provider with a field for one is refused.
            Self::List(_) => self.to_json().fmt(f),
        }
    }
}

/// Returns a URL with its password hidden, so that it may be shown.
fn without_password(text: &str) -> String {
    let hidden = || {
        let (scheme, rest) = text.split_once("://")?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (user, host) = rest[..end].rsplit_once('@')?;
        let (user, _) = user.split_once(':')?;
        Some(format!("{scheme}://{user}:…@{host}{}", &rest[end..]))
    };
    hidden().unwrap_or_else(|| text.to_owned())
}
