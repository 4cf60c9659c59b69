//! What a configuration key accepts, and how its value is read from text (flags, environment) and from the file.

use std::fmt;

use serde_json::Value as Json;

use super::value::{DefaultValue, Value};

/// The values that a key accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Switch,
    Whole {
        min: u64,
        max: u64,
        /// Whether only even numbers are accepted: 4:2:0 video has no odd sizes.
        even: bool,
        unit: &'static str,
    },
    Decimal {
        min: f64,
        max: f64,
        unit: &'static str,
    },
    Time {
        min: f64,
        max: f64,
        unit: TimeUnit,
    },
    Choice(&'static [&'static str]),
    Text,
    /// A text with commas; in the file, a number or a list of numbers and texts is accepted, too.
    Items {
        placeholder: &'static str,
        expected: &'static str,
    },
    /// A list in the file, or the same in JSON.
    JsonList {
        expected: &'static str,
    },
}

/// The unit in which a key gives a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeUnit {
    Millis,
    Seconds,
    Days,
}

impl TimeUnit {
    /// Returns the unit's name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Millis => "ms",
            Self::Seconds => "seconds",
            Self::Days => "days",
        }
    }
}

impl Kind {
    /// Parses the text of a flag or a variable. Returns `None` when it does not fit.
    pub fn read_text(&self, text: &str) -> Option<Value> {
        match self {
            Self::Switch => text.parse().ok().map(Value::Switch),
            Self::Whole { .. } => self.in_range(Value::Whole(text.parse().ok()?)),
            Self::Decimal { .. } | Self::Time { .. } => {
                self.in_range(Value::Decimal(text.parse().ok()?))
            }
            Self::Choice(names) => names.contains(&text).then(|| Value::Text(text.to_owned())),
            Self::Text | Self::Items { .. } => Some(Value::Text(text.to_owned())),
            Self::JsonList { .. } => match serde_json::from_str(text) {
                Ok(Json::Array(items)) => Some(Value::List(items)),
                _ => None,
            },
        }
    }

    /// Reads a value of the file. Returns `None` when it does not fit. Quoted numbers are texts and do not fit a
    /// number.
    pub fn read_file(&self, value: Json) -> Option<Value> {
        match (self, value) {
            (Self::Switch, Json::Bool(value)) => Some(Value::Switch(value)),
            (Self::Whole { .. }, Json::Number(number)) => {
                self.in_range(Value::Whole(number.as_u64()?))
            }
            (Self::Decimal { .. } | Self::Time { .. }, Json::Number(number)) => {
                self.in_range(Value::Decimal(number.as_f64()?))
            }
            (Self::Choice(_) | Self::Text | Self::Items { .. }, Json::String(text)) => {
                self.read_text(&text)
            }
            (Self::Items { .. }, Json::Number(count)) if !count.is_f64() => {
                Some(Value::Text(count.to_string()))
            }
            (Self::Items { .. }, Json::Array(items)) => {
                // A trailing comma keeps a list of one item from being read as a count.
                let item = |item: &Json| match item {
                    Json::Number(number) if !number.is_f64() => Some(format!("{number},")),
                    Json::String(text) => Some(format!("{text},")),
                    _ => None,
                };
                items
                    .iter()
                    .map(item)
                    .collect::<Option<_>>()
                    .map(Value::Text)
            }
            (Self::JsonList { .. }, Json::Array(items)) => Some(Value::List(items)),
            _ => None,
        }
    }

    /// Returns the name for values of this kind in `--help`.
    pub fn placeholder(&self) -> &'static str {
        match self {
            Self::Switch => "BOOL",
            Self::Whole { .. } => "N",
            Self::Decimal { .. } | Self::Time { .. } => "NUMBER",
            Self::Choice(_) => "NAME",
            Self::Text => "TEXT",
            Self::Items { placeholder, .. } => placeholder,
            Self::JsonList { .. } => "JSON",
        }
    }

    /// Returns what `--help` says beside the placeholder; `None` when the placeholder says it all.
    pub fn limits(&self) -> Option<String> {
        match self {
            Self::Whole { even, .. } => {
                let even = if *even { "even, " } else { "" };
                Some(format!("[{even}{}]", self.range()?))
            }
            Self::Decimal { .. } | Self::Time { .. } => Some(format!("[{}]", self.range()?)),
            Self::Choice(names) => Some(format!("[one of: {}]", names.join(", "))),
            Self::Switch | Self::Text | Self::Items { .. } | Self::JsonList { .. } => None,
        }
    }

    /// Returns whether a default fits.
    pub(super) const fn accepts(&self, default: DefaultValue) -> bool {
        match (self, default) {
            (Self::Switch, DefaultValue::Switch(_)) | (Self::Text, DefaultValue::Text(_)) => true,
            (Self::Whole { min, max, even, .. }, DefaultValue::Whole(n)) => {
                *min <= n && n <= *max && (!*even || n.is_multiple_of(2))
            }
            (
                Self::Decimal { min, max, .. } | Self::Time { min, max, .. },
                DefaultValue::Decimal(n),
            ) => *min <= n && n <= *max,
            // A constant expression cannot compare texts: a test of all keys compares the names.
            (Self::Choice(_), DefaultValue::Text(_)) => true,
            _ => false,
        }
    }

    fn in_range(&self, value: Value) -> Option<Value> {
        let fits = match (self, &value) {
            (Self::Whole { .. }, Value::Whole(n)) => self.accepts(DefaultValue::Whole(*n)),
            (Self::Decimal { .. } | Self::Time { .. }, Value::Decimal(n)) => {
                self.accepts(DefaultValue::Decimal(*n))
            }
            _ => true,
        };
        fits.then_some(value)
    }

    /// Returns the smallest and the largest number with their unit.
    fn range(&self) -> Option<String> {
        let (range, unit) = match self {
            Self::Whole { min, max, unit, .. } => (format!("{min} to {max}"), *unit),
            Self::Decimal { min, max, unit } => (format!("{min} to {max}"), *unit),
            Self::Time { min, max, unit } => (format!("{min} to {max}"), unit.name()),
            _ => return None,
        };
        let space = if unit.is_empty() { "" } else { " " };
        Some(format!("{range}{space}{unit}"))
    }
}

/// Formats what the value of the key must be, for messages.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = self.range().unwrap_or_default();
        match self {
            Self::Switch => f.write_str("true or false"),
            Self::Whole { even: true, .. } => write!(f, "an even number from {range}"),
            Self::Whole { .. } => write!(f, "a whole number from {range}"),
            Self::Decimal { .. } | Self::Time { .. } => write!(f, "a number from {range}"),
            Self::Choice(names) => write!(f, "one of {}", names.join(", ")),
            Self::Text => f.write_str("text"),
            Self::Items { expected, .. } | Self::JsonList { expected } => f.write_str(expected),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PERCENT: Kind = Kind::Whole {
        min: 2,
        max: 100,
        even: true,
        unit: "%",
    };
    const SHARE: Kind = Kind::Decimal {
        min: 0.0,
        max: 1.0,
        unit: "",
    };
    const ITEMS: Kind = Kind::Items {
        placeholder: "ITEMS",
        expected: "items",
    };
    const LIST: Kind = Kind::JsonList { expected: "a list" };

    #[test]
    fn texts_are_read_within_the_limits() {
        let check = |kind: Kind, text: &str, expected: Option<Value>| {
            assert_eq!(kind.read_text(text), expected, "{text}");
        };
        check(Kind::Switch, "true", Some(Value::Switch(true)));
        check(Kind::Switch, "yes", None);
        check(PERCENT, "100", Some(Value::Whole(100)));
        for bad in ["0", "3", "102", "-2", "4.0", "NaN", "many", ""] {
            check(PERCENT, bad, None);
        }
        check(SHARE, "1", Some(Value::Decimal(1.0)));
        for bad in ["-0.1", "1.1", "NaN", "inf", ""] {
            check(SHARE, bad, None);
        }
        check(Kind::Choice(&["a", "b"]), "c", None);
        check(LIST, "[1]", Some(Value::List(vec![json!(1)])));
        check(LIST, "{}", None);
    }

    #[test]
    fn values_of_the_file_keep_their_types() {
        let check = |kind: Kind, value: Json, expected: Option<Value>| {
            assert_eq!(kind.read_file(value.clone()), expected, "{value}");
        };
        check(PERCENT, json!(4), Some(Value::Whole(4)));
        check(PERCENT, json!(4.0), None);
        check(PERCENT, json!("4"), None);
        check(SHARE, json!(1), Some(Value::Decimal(1.0)));
        check(Kind::Text, json!(1), None);
        let text = |text: &str| Some(Value::Text(text.to_owned()));
        check(ITEMS, json!(2), text("2"));
        check(ITEMS, json!([2]), text("2,"));
        check(ITEMS, json!([0, "GPU-8a"]), text("0,GPU-8a,"));
        check(ITEMS, json!([0.5]), None);
        check(
            LIST,
            json!([{"a": 1}]),
            Some(Value::List(vec![json!({"a": 1})])),
        );
    }
}
