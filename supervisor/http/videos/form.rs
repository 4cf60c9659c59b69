//! The body of a request, in either of its two forms, as fields: `multipart/form-data`, which OpenAI's clients send, and JSON.
//!
//! In the former, `name[key]` is a value of an object and `name[]` one of a list. What a field means, and which fields there are,
//! is left to `check`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::convert::Infallible;

use bytes::Bytes;
use fastvideo_proto::untrusted_json;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use multer::Multipart;
use serde_json::{Map, Value};

use super::error::{VideoError, shown};

/// The most fields of a request, those within other ones included.
const MAX_FIELDS: usize = 200;
/// The longest name of a field, and the longest key within one, in characters.
const MAX_NAME_CHARS: usize = 64;
/// Objects whose fields are those of the request, except where the request itself has a field of that name. An earlier one's
/// count before a later one's, and it may have a later one within.
const EXTRAS: [&str; 3] = ["extra_body", "extra_params", "extra_json"];

/// The fields of a request. None is null.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Fields(BTreeMap<String, Given>);

/// The value of a field.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Given {
    Value(Value),
    /// An uploaded file, or a text that is not UTF-8.
    File(Bytes),
}

/// The name of a part of a multipart body.
enum PartName<'a> {
    Field(&'a str),
    /// `name[key]`.
    Entry(&'a str, &'a str),
    /// `name[]`.
    Item(&'a str),
}

/// Reads a body. It takes memory in proportion to the body, and as much time: call it on a thread for blocking work where the body
/// is large.
///
/// # Errors
/// Returns a refusal when the body is of another type, cannot be read, has a field twice or too many of them.
pub(super) fn read(content_type: Option<&str>, body: &Bytes) -> Result<Fields, VideoError> {
    let is_object = body.trim_ascii_start().starts_with(b"{");
    let mut fields = match media_type(content_type).as_deref() {
        Some("multipart/form-data") => {
            let reading = read_multipart(content_type.unwrap_or_default(), body);
            // All of the body is there, so there is nothing to wait for.
            let fields = reading.now_or_never();
            fields.unwrap_or_else(|| Err(unreadable("it ends too early")))?
        }
        Some("application/json") => Fields::of_json(read_object(body).map_err(unreadable)?),
        None if is_object => Fields::of_json(read_object(body).map_err(unreadable)?),
        _ => {
            let expected = "`multipart/form-data` or `application/json`";
            let given = content_type.map_or_else(|| "none".to_owned(), shown);
            return Err(VideoError::invalid_value("Content-Type", expected, given));
        }
    };
    fields.merge_extras()?;
    fields.check_names()?;
    Ok(fields)
}

/// Returns the type of a `Content-Type` without its parameters, in lower case.
fn media_type(content_type: Option<&str>) -> Option<String> {
    let kind = content_type?.split(';').next()?.trim();
    Some(kind.to_ascii_lowercase())
}

async fn read_multipart(content_type: &str, body: &Bytes) -> Result<Fields, VideoError> {
    let boundary = multer::parse_boundary(content_type).map_err(unreadable)?;
    let whole = stream::iter([Ok::<_, Infallible>(body.clone())]);
    let mut parts = Multipart::new(whole, boundary);
    let mut fields = Fields::default();
    let mut count = 0;
    while let Some(mut part) = parts.next_field().await.map_err(unreadable)? {
        count += 1;
        if count > MAX_FIELDS {
            return Err(too_many());
        }
        let name = part
            .name()
            .ok_or_else(|| unreadable("a part has no name"))?;
        let name = name.to_owned();
        let is_file = part.file_name().is_some();
        // The only chunk is the whole part, without a copy.
        let bytes = part.next().await.transpose().map_err(unreadable)?;
        let given = Given::of_part(bytes.unwrap_or_default(), is_file);
        fields.add(PartName::parse(&name)?, given)?;
    }
    Ok(fields)
}

/// Reads a text that is one object.
fn read_object(text: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
    untrusted_json::named_once(text, MAX_FIELDS)
}

impl<'a> PartName<'a> {
    fn parse(name: &'a str) -> Result<Self, VideoError> {
        let Some((field, rest)) = name.split_once('[') else {
            return Ok(Self::Field(name));
        };
        match rest.strip_suffix(']') {
            Some("") => Ok(Self::Item(field)),
            Some(key) if !key.contains(['[', ']']) => Ok(Self::Entry(field, key)),
            _ => {
                let message = format!(
                    "the body cannot be read: {} is nested deeper than `name[key]` or `name[]`",
                    shown(name)
                );
                Err(VideoError::invalid_body(message))
            }
        }
    }
}

impl Given {
    fn of_part(bytes: Bytes, is_file: bool) -> Self {
        match std::str::from_utf8(&bytes) {
            // Browsers and npm's client send the end of a line as two characters, as forms do.
            Ok(text) if !is_file => Self::Value(text.replace("\r\n", "\n").into()),
            _ => Self::File(bytes),
        }
    }
}

impl Fields {
    /// Makes fields of those of an object.
    pub(super) fn of_json(object: Map<String, Value>) -> Self {
        let mut fields = Self::default();
        fields.merge(object);
        fields
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Takes a field out. Its value is not null.
    pub(super) fn take(&mut self, name: &str) -> Option<Given> {
        self.0.remove(name)
    }

    /// Returns the names of all fields, in alphabetical order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Adds the fields of an object, without nulls and without those that are there already.
    fn merge(&mut self, object: Map<String, Value>) {
        for (name, value) in object {
            if !value.is_null() {
                self.0.entry(name).or_insert(Given::Value(value));
            }
        }
    }

    /// Adds a part of a multipart body.
    fn add(&mut self, name: PartName<'_>, given: Given) -> Result<(), VideoError> {
        let (field, key) = match name {
            PartName::Field(field) => {
                let Entry::Vacant(entry) = self.0.entry(field.to_owned()) else {
                    return Err(repeated(field));
                };
                entry.insert(given);
                return Ok(());
            }
            PartName::Entry(field, key) => (field, Some(key)),
            PartName::Item(field) => (field, None),
        };
        let Given::Value(value) = given else {
            return Err(VideoError::invalid_value(
                cut(field),
                "texts in UTF-8 within the field",
                "a file",
            ));
        };
        let empty = match key {
            Some(_) => Value::Object(Map::new()),
            None => Value::Array(Vec::new()),
        };
        let entry = self.0.entry(field.to_owned());
        match (entry.or_insert(Given::Value(empty)), key) {
            (Given::Value(Value::Object(object)), Some(key)) => {
                match object.insert(key.to_owned(), value) {
                    Some(_) => Err(repeated(&format!("{field}[{key}]"))),
                    None => Ok(()),
                }
            }
            (Given::Value(Value::Array(list)), None) => {
                list.push(value);
                Ok(())
            }
            _ => Err(repeated(field)),
        }
    }

    /// Puts the fields of [`EXTRAS`] among the others.
    fn merge_extras(&mut self) -> Result<(), VideoError> {
        for name in EXTRAS {
            if let Some(given) = self.take(name) {
                let object = given.into_object().map_err(|given| {
                    VideoError::invalid_value(name, "an object, or the text of one", given)
                })?;
                self.merge(object);
            }
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), VideoError> {
        if self.0.len() > MAX_FIELDS {
            return Err(too_many());
        }
        for (name, given) in &self.0 {
            check_name(name)?;
            if let Given::Value(Value::Object(object)) = given {
                object.keys().try_for_each(|key| check_name(key))?;
            }
        }
        Ok(())
    }
}

impl Given {
    /// Returns the object that this is, or that its text is.
    ///
    /// # Errors
    /// Returns what it is instead.
    pub(super) fn into_object(self) -> Result<Map<String, Value>, String> {
        match self {
            Self::Value(Value::Object(object)) => Ok(object),
            Self::Value(Value::String(text)) => {
                read_object(text.as_bytes()).map_err(|_| shown(&text))
            }
            other => Err(other.to_string()),
        }
    }
}

impl std::fmt::Display for Given {
    /// Shows what was given, in a few words.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Value(value) => f.write_str(&kind_of(value)),
            Self::File(_) => f.write_str("a file, or what is not UTF-8"),
        }
    }
}

/// Shows a value in a few words.
pub(super) fn kind_of(value: &Value) -> String {
    match value {
        Value::String(text) => shown(text),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn check_name(name: &str) -> Result<(), VideoError> {
    if name.is_empty() || name.chars().nth(MAX_NAME_CHARS).is_some() {
        let message = format!(
            "the name of a field has from 1 to {MAX_NAME_CHARS} characters, got {}",
            shown(name)
        );
        return Err(VideoError::invalid_body(message));
    }
    Ok(())
}

/// Returns a name that is short enough to be shown.
fn cut(name: &str) -> String {
    name.chars().take(MAX_NAME_CHARS).collect()
}

fn repeated(name: &str) -> VideoError {
    VideoError::invalid_value(cut(name), "one value", "several")
}

fn too_many() -> VideoError {
    let message = format!("the request has more than {MAX_FIELDS} fields, which is the limit");
    VideoError::invalid_body(message)
}

fn unreadable(reason: impl ToString) -> VideoError {
    let reason: String = reason.to_string().chars().take(200).collect();
    VideoError::invalid_body(format!("the body cannot be read: {reason}"))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const MULTIPART: &str = "multipart/form-data; boundary=x";
    const JSON: Option<&str> = Some("application/json");

    /// A part of a multipart body.
    enum Part<'a> {
        Text(&'a str, &'a str),
        File(&'a str, &'a [u8]),
    }
    use Part::{File, Text};

    fn multipart(parts: &[Part<'_>]) -> Bytes {
        let mut body = Vec::new();
        for part in parts {
            let (name, file, value) = match *part {
                Text(name, value) => (name, "", value.as_bytes()),
                File(name, bytes) => (name, "; filename=\"f\"", bytes),
            };
            let head =
                format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n");
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(value);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--x--\r\n");
        body.into()
    }

    fn read_parts(parts: &[Part<'_>]) -> Result<Fields, VideoError> {
        read(Some(MULTIPART), &multipart(parts))
    }

    fn read_json(text: &str) -> Result<Fields, VideoError> {
        read(JSON, &Bytes::from(text.to_owned()))
    }

    /// The fields of an object.
    pub(in crate::http::videos) fn fields(object: &Value) -> Fields {
        read_json(&object.to_string()).unwrap()
    }

    #[track_caller]
    fn check_refused(read: Result<Fields, VideoError>, param: Option<&str>, expected: &str) {
        let error = read.unwrap_err();
        let (code, given, message) = error.parts();
        assert_eq!((code, given), ("invalid_value", param), "{message}");
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn both_forms_are_the_same_fields() {
        let parts = [
            Text("prompt", "a fox"),
            Text("metadata[shot]", "7"),
            Text("metadata[of]", ""),
            Text("list[]", "a"),
            Text("list[]", "b"),
        ];
        let object =
            json!({"prompt": "a fox", "metadata": {"shot": "7", "of": ""}, "list": ["a", "b"]});
        assert_eq!(read_parts(&parts).unwrap(), fields(&object));
        assert_eq!(read_parts(&[]).unwrap(), fields(&json!({})));
    }

    #[test]
    fn a_file_is_its_bytes_whatever_it_is_called() {
        let png: &[u8] = b"\x89PNG\r\n\x1a\n--x\r\n-";
        let mut fields = read_parts(&[File("input_reference", png)]).unwrap();
        let given = fields.take("input_reference");
        assert_eq!(given, Some(Given::File(Bytes::from_static(png))));
        assert_eq!(fields, Fields::default());
        let mut empty = read_parts(&[File("input_reference", b"")]).unwrap();
        assert_eq!(
            empty.take("input_reference"),
            Some(Given::File(Bytes::new()))
        );
        // A part without a file name that is no text.
        let head = b"--x\r\ncontent-disposition: form-data; name=a\r\n\r\n\xff\xd8\r\n--x--";
        let mut unnamed = read(Some(MULTIPART), &Bytes::from_static(head)).unwrap();
        assert_eq!(
            unnamed.take("a"),
            Some(Given::File(Bytes::from_static(b"\xff\xd8")))
        );
    }

    #[test]
    fn the_content_type_tells_the_form() {
        let text = Bytes::from_static(b" {\"prompt\": \"a fox\"}");
        for fine in [JSON, Some("Application/JSON; charset=utf-8"), None] {
            assert!(read(fine, &text).is_ok(), "{fine:?}");
        }
        for (other, body) in [
            (Some("text/plain"), text.clone()),
            (Some("application/x-www-form-urlencoded"), text.clone()),
            (Some(""), text),
            (None, multipart(&[])),
            (None, Bytes::new()),
        ] {
            check_refused(
                read(other, &body),
                Some("Content-Type"),
                "expected `multipart/form-data`",
            );
        }
        let parts = multipart(&[Text("prompt", "a fox")]);
        assert!(read(Some("MULTIPART/form-data;boundary=\"x\""), &parts).is_ok());
        for bad in [
            "multipart/form-data",
            "multipart/form-data; boundary=y",
            "multipart/form-data; =;",
        ] {
            check_refused(read(Some(bad), &parts), None, "the body cannot be read: ");
        }
    }

    #[test]
    fn line_ends_are_one_character() {
        let fields = read_parts(&[Text("prompt", "a\r\nb\rc\nd\r\r\n")]).unwrap();
        assert_eq!(
            fields,
            super::tests::fields(&json!({"prompt": "a\nb\rc\nd\r\n"}))
        );
    }

    #[test]
    fn nulls_are_not_there() {
        let given =
            json!({"seed": null, "extra_body": null, "extra_params": {"fps": null, "seed": 5}});
        assert_eq!(fields(&given), fields(&json!({"seed": 5})));
    }

    #[test]
    fn extra_fields_do_not_replace_others() {
        let given = json!({
            "seed": 1,
            "extra_body": {"seed": 2, "fps": 2, "extra_params": {"size": "2"}},
            "extra_json": r#"{"seed": 4, "fps": 4, "size": "4", "model": "4"}"#,
        });
        let merged = json!({"seed": 1, "fps": 2, "size": "2", "model": "4"});
        assert_eq!(fields(&given), fields(&merged));
        let parts = [
            Text("extra_body[fps]", "2"),
            Text("extra_params", r#"{"fps": 3, "n": 1}"#),
        ];
        assert_eq!(
            read_parts(&parts).unwrap(),
            fields(&json!({"fps": "2", "n": 1}))
        );
        for (text, given) in [
            (r#"{"extra_body": "no"}"#, "\"no\""),
            (r#"{"extra_body": "[]"}"#, "\"[]\""),
            (r#"{"extra_body": ["a"]}"#, "a list"),
            (r#"{"extra_body": 5}"#, "5"),
        ] {
            let expected = format!("expected an object, or the text of one, got {given}");
            check_refused(read_json(text), Some("extra_body"), &expected);
        }
        check_refused(
            read_parts(&[File("extra_json", b"{}")]),
            Some("extra_json"),
            "got a file",
        );
    }

    #[test]
    fn a_field_is_there_once() {
        for parts in [
            [Text("a", "1"), Text("a", "1")],
            [Text("a", "1"), Text("a[]", "1")],
            [Text("a[]", "1"), Text("a[b]", "1")],
            [Text("a[b]", "1"), Text("a", "1")],
            [File("a", b""), Text("a[b]", "1")],
        ] {
            check_refused(
                read_parts(&parts),
                Some("a"),
                "expected one value, got several",
            );
        }
        let twice = [Text("a[b]", "1"), Text("a[b]", "1")];
        check_refused(read_parts(&twice), Some("a[b]"), "got several");
        check_refused(
            read_json(r#"{"a": 1, "a": 1}"#),
            None,
            "\"a\" is there twice",
        );
    }

    #[test]
    fn a_body_that_is_not_what_it_says_is_refused() {
        for text in ["", "{", "[]", "5", "{} {}", "{\"a\": 1e999}", "\u{feff}{}"] {
            check_refused(read_json(text), None, "the body cannot be read: ");
        }
        check_refused(
            read(JSON, &Bytes::from_static(b"{\"a\": \"\xff\"}")),
            None,
            "the body cannot be read: ",
        );
        let deep = format!(r#"{{"a": {}1{}}}"#, "[".repeat(150), "]".repeat(150));
        check_refused(read_json(&deep), None, "recursion limit");
        for body in [
            &b""[..],
            b"--x",
            b"--x\r\n",
            b"--x\r\n\r\n",
            b"--x\r\ncontent-disposition: form-data; name=a\r\n\r\nno end",
            b"--x\r\ncontent-disposition: form-data; name=a\r\n\r\n1\r\n--x",
            b"--x\r\ncontent-disposition: form-data\r\n\r\n1\r\n--x--",
            b"--x\r\nno colon\r\n\r\n1\r\n--x--",
        ] {
            let read = read(Some(MULTIPART), &Bytes::from_static(body));
            check_refused(read, None, "the body cannot be read: ");
        }
        check_refused(read_parts(&[Text("a[b][c]", "1")]), None, "nested deeper");
        check_refused(read_parts(&[Text("a[b", "1")]), None, "nested deeper");
        check_refused(read_parts(&[File("a[b]", b"1")]), Some("a"), "got a file");
    }

    #[test]
    fn there_are_not_too_many_fields_and_no_long_names() {
        let many = |count: usize| (0..count).map(|n| n.to_string()).collect::<Vec<_>>();
        let parts = |names: &[String]| {
            let parts: Vec<_> = names.iter().map(|name| Text(name, "1")).collect();
            read_parts(&parts)
        };
        let object = |names: &[String]| {
            let object: Map<_, _> = names.iter().map(|name| (name.clone(), json!(1))).collect();
            read_json(&Value::Object(object).to_string())
        };
        assert!(parts(&many(MAX_FIELDS)).is_ok());
        check_refused(parts(&many(MAX_FIELDS + 1)), None, "more than 200");
        assert!(object(&many(MAX_FIELDS)).is_ok());
        check_refused(object(&many(MAX_FIELDS + 1)), None, "more than 200");
        let long = ["é".repeat(MAX_NAME_CHARS)];
        assert!(parts(&long).is_ok() && object(&long).is_ok());
        let longer = "é".repeat(MAX_NAME_CHARS + 1);
        for names in [[longer.clone()], [String::new()], [format!("a[{longer}]")]] {
            check_refused(parts(&names), None, "from 1 to 64 characters");
        }
        check_refused(object(&[longer]), None, "from 1 to 64 characters");
        let extras: Vec<_> = EXTRAS
            .iter()
            .enumerate()
            .map(|(n, extra)| {
                let within: Map<_, _> = (0..150)
                    .map(|key| (format!("{n}-{key}"), json!(1)))
                    .collect();
                (*extra, Value::Object(within).to_string())
            })
            .collect();
        let extras: Vec<_> = extras.iter().map(|(name, text)| Text(name, text)).collect();
        check_refused(read_parts(&extras), None, "more than 200");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            texts in proptest::collection::btree_map("[a-z]{1,9}", "[^\r]{0,20}", 0..20),
            file in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            prop_assume!(!file.windows(5).any(|it| it == b"\r\n--x"));
            let mut parts: Vec<_> = texts.iter().map(|(name, text)| Text(name, text)).collect();
            parts.push(File("A", &file));
            let mut read = read_parts(&parts).unwrap();
            prop_assert_eq!(read.take("A"), Some(Given::File(file.clone().into())));
            for (name, text) in &texts {
                prop_assert_eq!(read.take(name), Some(Given::Value(text.as_str().into())));
            }
            prop_assert_eq!(read, Fields::default());
        }

        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..300), is_json: bool) {
            let content_type = if is_json { JSON } else { Some(MULTIPART) };
            let _ = read(content_type, &body.into());
        }
    }
}
