//! The configuration file: YAML with the sections of FastVideo's serve file, read into values that remember their line.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use fastvideo_supervisor_core::settings::{KeySpec, Origin, Settings};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::error::ConfigError;
use super::keys::Table;
use super::suggest;

/// The largest file that is read. A serve file has a few KiB; what is larger is another file, or a device without an end.
const MAX_BYTES: u64 = 1 << 20;

/// A YAML value. Entries of a mapping keep their line, because error messages may need it.
#[derive(Clone, Debug, PartialEq)]
enum YamlValue {
    Null,
    Bool(bool),
    Whole(i128),
    Decimal(f64),
    Text(String),
    List(Vec<YamlValue>),
    Map(Vec<YamlEntry>),
}

/// An entry of a YAML mapping.
#[derive(Clone, Debug, PartialEq)]
struct YamlEntry {
    name: String,
    value: YamlValue,
    /// The line of the name in the file, counted from 1.
    line: u64,
}

/// Reads the file into `settings`. Each key that is unknown or has an invalid value adds one of `errors`. Returns the
/// keys that are understood but have no effect, in the order of the file.
pub(super) fn read(
    table: &Table,
    path: &Path,
    settings: &mut Settings,
    errors: &mut Vec<ConfigError>,
) -> Vec<String> {
    match text(path) {
        Ok(text) => read_text(table, &text, path, settings, errors),
        Err(source) => {
            errors.push(ConfigError::Unreadable {
                path: path.to_owned(),
                source,
            });
            Vec::new()
        }
    }
}

/// Returns the file's text.
fn text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)?;
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    if bytes.len() as u64 > MAX_BYTES {
        return Err(invalid(format!("at most {MAX_BYTES} bytes are allowed")));
    }
    String::from_utf8(bytes).map_err(|_| invalid("it is not UTF-8".to_owned()))
}

fn read_text(
    table: &Table,
    text: &str,
    path: &Path,
    settings: &mut Settings,
    errors: &mut Vec<ConfigError>,
) -> Vec<String> {
    let mut reader = FileReader {
        table,
        path,
        seen: Vec::new(),
        settings,
        errors,
        ignored: Vec::new(),
    };
    // The library's own limits bound what aliases add to the text, and how deep it nests.
    match serde_saphyr::from_str(text) {
        Ok(YamlValue::Map(entries)) => reader.section("", &entries),
        Ok(YamlValue::Null) => {}
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

/// The reader of one file.
struct FileReader<'a> {
    table: &'a Table,
    path: &'a Path,
    settings: &'a mut Settings,
    errors: &'a mut Vec<ConfigError>,
    /// Keys that are understood but have no effect.
    ignored: Vec<String>,
    /// The keys so far that can have two places.
    seen: Vec<&'static str>,
}

impl FileReader<'_> {
    fn section(&mut self, parent: &str, entries: &[YamlEntry]) {
        for entry in entries {
            let path = match parent {
                "" => entry.name.clone(),
                _ => format!("{parent}.{}", entry.name),
            };
            self.entry(path, entry);
        }
    }

    fn entry(&mut self, path: String, entry: &YamlEntry) {
        let origin = self.origin(entry.line);
        // FastVideo writes null for "not set".
        let given = entry.value != YamlValue::Null;
        if let Some(key) = self.table.find(&path) {
            if given && self.is_first(key, &path, &origin) {
                self.set(key, &entry.value, origin);
            }
        } else if self.table.accepted.contains(&path.as_str()) {
            if given {
                self.ignored.push(path);
            }
        } else if is_section(self.table, &path) {
            match &entry.value {
                YamlValue::Map(entries) => self.section(&path, entries),
                YamlValue::Null => {}
                other => self.errors.push(ConfigError::NotASection {
                    given: other.to_string(),
                    key: path,
                    origin,
                }),
            }
        } else {
            self.errors.push(ConfigError::UnknownKey {
                suggestion: suggest::nearest(self.table, &path),
                key: path,
                origin,
            });
        }
    }

    /// Returns whether a key was not given before, in its other place. It is refused there.
    fn is_first(&mut self, key: &'static KeySpec, path: &str, origin: &Origin) -> bool {
        let Some(alias) = key.alias else { return true };
        let is_first = !self.seen.contains(&key.path);
        self.seen.push(key.path);
        if !is_first {
            let other = if path == alias { key.path } else { alias };
            self.errors.push(ConfigError::Twice {
                key: path.to_owned(),
                other,
                origin: origin.clone(),
            });
        }
        is_first
    }

    fn set(&mut self, key: &KeySpec, value: &YamlValue, origin: Origin) {
        let given = || value.to_string();
        let set = self.settings.set_file(key, value.to_json(), given, origin);
        self.errors.extend(set.err().map(ConfigError::from));
    }

    fn origin(&self, line: u64) -> Origin {
        Origin::File {
            path: self.path.to_owned(),
            line,
        }
    }
}

impl YamlValue {
    /// Converts the value to JSON. A whole number that fits neither `u64` nor `i64` becomes a floating-point number,
    /// which no key for whole numbers accepts.
    fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Whole(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => value.into(),
                (_, Ok(value)) => value.into(),
                _ => (*value as f64).into(),
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

fn is_section(table: &Table, path: &str) -> bool {
    table.paths().any(|known| {
        known
            .strip_prefix(path)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

/// Formats the value for an error message: short, on one line.
impl fmt::Display for YamlValue {
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

impl<'de> Deserialize<'de> for YamlValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = YamlValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<YamlValue, E> {
        Ok(YamlValue::Null)
    }

    fn visit_none<E>(self) -> Result<YamlValue, E> {
        Ok(YamlValue::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<YamlValue, D::Error> {
        YamlValue::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<YamlValue, E> {
        Ok(YamlValue::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<YamlValue, E> {
        Ok(YamlValue::Whole(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<YamlValue, E> {
        Ok(YamlValue::Whole(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<YamlValue, E> {
        Ok(YamlValue::Whole(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<YamlValue, E> {
        Ok(YamlValue::Decimal(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<YamlValue, E> {
        Ok(YamlValue::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<YamlValue, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(YamlValue::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<YamlValue, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<Spanned<String>>()? {
            entries.push(YamlEntry {
                line: name.referenced.line(),
                name: name.value,
                value: map.next_value()?,
            });
        }
        Ok(YamlValue::Map(entries))
    }
}
