//! The configuration file: YAML with the sections of FastVideo's serve file, read into values that know their line.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::keys::{self, KEYS};
use super::settings::{Origin, Settings};
use super::{ConfigError, accepted, suggest};

/// A YAML value. Lines are kept where a message may need them: at the entries of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Null,
    Bool(bool),
    Whole(i128),
    Decimal(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    name: String,
    value: Node,
    line: u64,
}

/// Reads the file into `settings`. Every key that is unknown or does not fit becomes one of `errors`; returns the keys
/// that are understood but have no effect, in the order of the file.
pub(super) fn read(
    path: &Path,
    settings: &mut Settings,
    errors: &mut Vec<ConfigError>,
) -> Vec<String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(source) => {
            errors.push(ConfigError::Unreadable {
                path: path.to_owned(),
                source,
            });
            return Vec::new();
        }
    };
    read_text(&text, path, settings, errors)
}

pub(super) fn read_text(
    text: &str,
    path: &Path,
    settings: &mut Settings,
    errors: &mut Vec<ConfigError>,
) -> Vec<String> {
    let mut reader = Reader {
        path,
        settings,
        errors,
        ignored: Vec::new(),
    };
    match serde_saphyr::from_str(text) {
        Ok(Node::Map(entries)) => reader.section("", &entries),
        Ok(Node::Null) => {}
        Ok(other) => reader.errors.push(ConfigError::Syntax {
            path: path.to_owned(),
            message: format!("must hold sections of keys, given {other}"),
        }),
        Err(source) => reader.errors.push(ConfigError::Syntax {
            path: path.to_owned(),
            message: source.without_snippet().to_string(),
        }),
    }
    reader.ignored
}

struct Reader<'a> {
    path: &'a Path,
    settings: &'a mut Settings,
    errors: &'a mut Vec<ConfigError>,
    ignored: Vec<String>,
}

impl Reader<'_> {
    fn section(&mut self, parent: &str, entries: &[Entry]) {
        for entry in entries {
            let path = match parent {
                "" => entry.name.clone(),
                _ => format!("{parent}.{}", entry.name),
            };
            self.entry(path, entry);
        }
    }

    fn entry(&mut self, path: String, entry: &Entry) {
        let origin = self.origin(entry.line);
        // FastVideo writes null for "not set".
        let given = entry.value != Node::Null;
        if let Some(key) = keys::find(&path) {
            if given && let Err(e) = self.settings.set_node(key, &entry.value, origin) {
                self.errors.push(e);
            }
        } else if accepted::covers(&path) {
            if given {
                self.ignored.push(path);
            }
        } else if is_section(&path) {
            match &entry.value {
                Node::Map(entries) => self.section(&path, entries),
                Node::Null => {}
                other => self.errors.push(ConfigError::NotASection {
                    given: other.to_string(),
                    key: path,
                    origin,
                }),
            }
        } else {
            self.errors.push(ConfigError::UnknownKey {
                suggestion: suggest::nearest(&path),
                key: path,
                origin,
            });
        }
    }

    fn origin(&self, line: u64) -> Origin {
        Origin::File {
            path: self.path.to_owned(),
            line,
        }
    }
}

impl Node {
    pub(super) fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Whole(value) => match i64::try_from(*value) {
                Ok(value) => value.into(),
                Err(_) => value.to_string().into(),
            },
            Self::Decimal(value) => (*value).into(),
            Self::Text(value) => value.as_str().into(),
            Self::List(items) => items.iter().map(Self::to_json).collect(),
            Self::Map(entries) => (entries.iter())
                .map(|entry| (entry.name.clone(), entry.value.to_json()))
                .collect(),
        }
    }
}

fn is_section(path: &str) -> bool {
    KEYS.iter()
        .map(|key| key.path)
        .chain(accepted::paths())
        .any(|known| {
            known
                .strip_prefix(path)
                .is_some_and(|rest| rest.starts_with('.'))
        })
}

/// As a message shows it: short, on one line.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Whole(value) => value.fmt(f),
            Self::Decimal(value) => value.fmt(f),
            Self::Text(value) => write!(f, "{value:?}"),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a section"),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Whole(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Whole(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Whole(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Decimal(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<Spanned<String>>()? {
            entries.push(Entry {
                line: name.referenced.line(),
                name: name.value,
                value: map.next_value()?,
            });
        }
        Ok(Node::Map(entries))
    }
}
