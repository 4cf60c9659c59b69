//! What a configuration key may hold, and how its value is read from text (flags, environment) and from the file.

use std::fmt;

use super::file::Node;

/// The values that a key accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Switch,
    Whole {
        min: u64,
        max: u64,
        /// 4:2:0 video has no odd sizes.
        even: bool,
        unit: &'static str,
    },
    Decimal {
        min: f64,
        max: f64,
        unit: &'static str,
    },
    Choice(&'static [&'static str]),
    Text,
    /// See [`super::gpus`]; in the file also a number or a list.
    Gpus,
    /// A list in the file or in JSON, see [`super::providers`].
    Providers,
}

/// A value that fits its key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Switch(bool),
    Whole(u64),
    Decimal(f64),
    Text(String),
    Json(serde_json::Value),
}

pub(super) const fn whole(min: u64, max: u64, unit: &'static str) -> Kind {
    Kind::Whole {
        min,
        max,
        even: false,
        unit,
    }
}

pub(super) const fn even(min: u64, max: u64, unit: &'static str) -> Kind {
    Kind::Whole {
        min,
        max,
        even: true,
        unit,
    }
}

pub(super) const fn decimal(min: f64, max: f64, unit: &'static str) -> Kind {
    Kind::Decimal { min, max, unit }
}

impl Kind {
    /// Reads a flag or a variable; `None` when it does not fit.
    pub(super) fn read_text(&self, text: &str) -> Option<Value> {
        match self {
            Self::Switch => text.parse().ok().map(Value::Switch),
            Self::Whole { .. } => self.in_range(Value::Whole(text.parse().ok()?)),
            Self::Decimal { .. } => self.in_range(Value::Decimal(text.parse().ok()?)),
            Self::Choice(names) => names.contains(&text).then(|| Value::Text(text.to_owned())),
            Self::Text | Self::Gpus => Some(Value::Text(text.to_owned())),
            Self::Providers => match serde_json::from_str(text) {
                Ok(list @ serde_json::Value::Array(_)) => Some(Value::Json(list)),
                _ => None,
            },
        }
    }

    /// Reads a value of the file; `None` when it does not fit. Quoted numbers are texts and do not fit a number.
    pub(super) fn read_node(&self, node: &Node) -> Option<Value> {
        match (self, node) {
            (Self::Switch, Node::Bool(value)) => Some(Value::Switch(*value)),
            (Self::Whole { .. }, Node::Whole(value)) => {
                self.in_range(Value::Whole(u64::try_from(*value).ok()?))
            }
            (Self::Decimal { .. }, Node::Whole(_) | Node::Decimal(_)) => {
                self.in_range(Value::Decimal(node.to_string().parse().ok()?))
            }
            (Self::Choice(_) | Self::Text | Self::Gpus, Node::Text(text)) => self.read_text(text),
            (Self::Gpus, Node::Whole(count)) => Some(Value::Text(count.to_string())),
            (Self::Gpus, Node::List(items)) => {
                // The comma at the end keeps a list of one from being read as a count.
                let item = |node: &Node| match node {
                    Node::Whole(_) => Some(format!("{node},")),
                    Node::Text(text) => Some(format!("{text},")),
                    _ => None,
                };
                items
                    .iter()
                    .map(item)
                    .collect::<Option<_>>()
                    .map(Value::Text)
            }
            (Self::Providers, Node::List(_)) => Some(Value::Json(node.to_json())),
            _ => None,
        }
    }

    /// How `--help` names a value of this kind.
    pub(crate) fn placeholder(&self) -> &'static str {
        match self {
            Self::Switch => "BOOL",
            Self::Whole { .. } => "N",
            Self::Decimal { .. } => "NUMBER",
            Self::Choice(_) => "NAME",
            Self::Text => "TEXT",
            Self::Gpus => "GPUS",
            Self::Providers => "JSON",
        }
    }

    /// What `--help` says beside the placeholder; nothing where that says it all.
    pub(crate) fn limits(&self) -> Option<String> {
        match self {
            Self::Whole {
                min,
                max,
                even,
                unit,
            } => {
                let even = if *even { "even, " } else { "" };
                Some(format!("[{even}{min} to {max}{}]", Spaced(unit)))
            }
            Self::Decimal { min, max, unit } => Some(format!("[{min} to {max}{}]", Spaced(unit))),
            Self::Choice(names) => Some(format!("[one of: {}]", names.join(", "))),
            Self::Switch | Self::Text | Self::Gpus | Self::Providers => None,
        }
    }

    fn in_range(&self, value: Value) -> Option<Value> {
        let fits = match (self, &value) {
            (Self::Whole { min, max, even, .. }, Value::Whole(n)) => {
                (min..=max).contains(&n) && !(*even && n % 2 == 1)
            }
            (Self::Decimal { min, max, .. }, Value::Decimal(n)) => (min..=max).contains(&n),
            _ => true,
        };
        fits.then_some(value)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch => f.write_str("true or false"),
            Self::Whole {
                min,
                max,
                even,
                unit,
            } => {
                let noun = if *even { "an even" } else { "a whole" };
                write!(f, "{noun} number from {min} to {max}{}", Spaced(unit))
            }
            Self::Decimal { min, max, unit } => {
                write!(f, "a number from {min} to {max}{}", Spaced(unit))
            }
            Self::Choice(names) => write!(f, "one of {}", names.join(", ")),
            Self::Text => f.write_str("text"),
            Self::Gpus => f.write_str("a count, `all`, or a list such as `0,2`"),
            Self::Providers => {
                f.write_str("a list such as `[{provider: cerebras}, {provider: groq}]`")
            }
        }
    }
}

/// A unit behind a number; plain numbers have none.
struct Spaced<'a>(&'a str);

impl fmt::Display for Spaced<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            unit => write!(f, " {unit}"),
        }
    }
}

/// As YAML, so that what `check` prints is a configuration file.
/// A URL as it may be shown.
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

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(value) => value.fmt(f),
            Self::Whole(value) => value.fmt(f),
            Self::Decimal(value) => value.fmt(f),
            Self::Text(value) => serde_json::Value::from(without_password(value)).fmt(f),
            // Such a list holds no secrets: a key in it is refused.
            Self::Json(value) => value.fmt(f),
        }
    }
}
