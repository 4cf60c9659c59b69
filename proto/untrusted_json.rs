//! Readers of JSON from clients that take memory in proportion to the text, whatever it holds.
//!
//! A [`Value`] costs up to a hundred times its text: `{"":0},` is seven bytes, and a map with a key and a number in
//! memory. The functions here are for `#[serde(deserialize_with)]`, except for [`named_once`].

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Limit on the number of values in a free-form object, nested ones included. The metadata of a continuation state, at
/// most 256 KiB of text, have fewer.
const MAX_VALUES: usize = 256 << 10;
/// Limit on the length of a list of prompts. Sessions accept fewer; this only bounds what is kept until they look.
const MAX_PROMPTS: usize = 4096;
/// The most characters of a name that an error shows.
const MAX_SHOWN_CHARS: usize = 64;
/// The fields of an initial image; all other ones are skipped.
const IMAGE_FIELDS: [&str; 3] = ["mime", "name", "data"];

/// Reads a text that is one object of at most `max_values` values, nested ones included, in which no object has two values of
/// one name.
///
/// # Errors
/// Returns an error when the text is something else.
pub fn named_once(text: &[u8], max_values: usize) -> Result<Map<String, Value>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let tree = Tree {
        left: &mut { max_values },
        max_values,
        may_repeat: false,
    };
    let object = deserializer.deserialize_map(Object(tree))?;
    deserializer.end()?;
    Ok(object)
}

/// Reads an object of anything with a limited number of values.
pub(crate) fn object<'de, D>(deserializer: D) -> Result<Map<String, Value>, D::Error>
where
    D: Deserializer<'de>,
{
    deserializer.deserialize_map(Object(Tree {
        left: &mut { MAX_VALUES },
        max_values: MAX_VALUES,
        may_repeat: true,
    }))
}

/// Reads `{mime, name, data}` or null. Fields with other names are skipped, but for one with the value null, so that an
/// object without any field stays distinct. A value that is a list or an object is read as null.
pub(crate) fn image<'de, D>(deserializer: D) -> Result<Option<Map<String, Value>>, D::Error>
where
    D: Deserializer<'de>,
{
    struct Image;

    impl<'de> Visitor<'de> for Image {
        type Value = Option<Map<String, Value>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
            inner.deserialize_map(self)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut image = Map::new();
            let mut has_other = false;
            while let Some(field) = map.next_key::<String>()? {
                if IMAGE_FIELDS.contains(&field.as_str()) {
                    let value = map.next_value_seed(Scalar)?;
                    image.insert(field, value);
                } else {
                    map.next_value::<IgnoredAny>()?;
                    if !std::mem::replace(&mut has_other, true) {
                        image.insert(field, Value::Null);
                    }
                }
            }
            Ok(Some(image))
        }
    }

    deserializer.deserialize_option(Image)
}

/// Reads a list of texts of limited length.
pub(crate) fn prompts<'de, D>(deserializer: D) -> Result<Vec<String>, D::Error>
where
    D: Deserializer<'de>,
{
    struct Prompts;

    impl<'de> Visitor<'de> for Prompts {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a sequence")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut prompts = Vec::new();
            while let Some(prompt) = list.next_element()? {
                if prompts.len() == MAX_PROMPTS {
                    let message = format_args!("more than {MAX_PROMPTS} prompts");
                    return Err(A::Error::custom(message));
                }
                prompts.push(prompt);
            }
            Ok(prompts)
        }
    }

    deserializer.deserialize_seq(Prompts)
}

/// Reads a value that is neither a list nor an object; such a one is skipped and read as null.
struct Scalar;

impl<'de> DeserializeSeed<'de> for Scalar {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// The methods of a visitor for everything that has no parts.
macro_rules! visit_scalars {
    () => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any valid JSON value")
        }

        fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
            Ok(Value::Bool(value))
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
            Ok(Value::Number(value.into()))
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
            Ok(Value::Number(value.into()))
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
            Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
        }

        fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
            Ok(Value::String(value.to_owned()))
        }

        fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
            Ok(Value::String(value))
        }

        fn visit_unit<E: Error>(self) -> Result<Value, E> {
            Ok(Value::Null)
        }
    };
}

impl<'de> Visitor<'de> for Scalar {
    type Value = Value;

    visit_scalars!();

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }
}

/// Reads an object, and nothing else, as [`Tree`] does.
struct Object<'a>(Tree<'a>);

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        self.0.map(map)
    }
}

/// Reads any value and counts down the values that are left.
struct Tree<'a> {
    left: &'a mut usize,
    max_values: usize,
    /// Whether an object may have several values of one name, of which the last one counts.
    may_repeat: bool,
}

impl Tree<'_> {
    fn reborrow(&mut self) -> Tree<'_> {
        Tree {
            left: self.left,
            ..*self
        }
    }

    /// Takes note of one more value.
    fn count<E: Error>(&mut self) -> Result<(), E> {
        match self.left.checked_sub(1) {
            Some(left) => {
                *self.left = left;
                Ok(())
            }
            None => {
                let max_values = self.max_values;
                Err(E::custom(format_args!("more than {max_values} values")))
            }
        }
    }

    fn map<'de, A: MapAccess<'de>>(mut self, mut map: A) -> Result<Map<String, Value>, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            self.count()?;
            if !self.may_repeat && object.contains_key(&key) {
                let name: String = key.chars().take(MAX_SHOWN_CHARS).collect();
                return Err(A::Error::custom(format_args!("{name:?} is there twice")));
            }
            let value = map.next_value_seed(self.reborrow())?;
            object.insert(key, value);
        }
        Ok(object)
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    visit_scalars!();

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self.reborrow())? {
            self.count()?;
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        self.map(map).map(Value::Object)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Message {
        #[serde(default, deserialize_with = "image")]
        image: Option<Map<String, Value>>,
        #[serde(default, deserialize_with = "object")]
        object: Map<String, Value>,
        #[serde(default, deserialize_with = "prompts")]
        prompts: Vec<String>,
    }

    fn read(text: &str) -> Result<Message, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn an_object_is_what_serde_json_makes_of_it() {
        let value = json!({"a": [1, -2, 2.5, "é", null, true, {"b": []}], "": {}, "c": u64::MAX});
        let text = json!({"object": value}).to_string();
        assert_eq!(Value::Object(read(&text).unwrap().object), value);
    }

    #[test]
    fn an_object_of_too_many_values_is_refused() {
        let many = |count: usize| format!(r#"{{"object":{{"x":[{}0]}}}}"#, "0,".repeat(count));
        // The list itself and its last number count, too.
        assert!(read(&many(MAX_VALUES - 2)).is_ok());
        let refused = read(&many(MAX_VALUES - 1)).unwrap_err();
        assert!(refused.starts_with("more than 262144 values"), "{refused}");
        let maps = format!(
            r#"{{"object":{{"x":[{}0]}}}}"#,
            r#"{"":0},"#.repeat(MAX_VALUES)
        );
        assert!(read(&maps).is_err());
    }

    #[test]
    fn an_object_whose_names_are_there_once_is_read_within_its_limit() {
        let read = |text: &str| {
            let object = named_once(text.as_bytes(), 3);
            object.map_err(|error| error.to_string())
        };
        let value = json!({"a": [1], "b": null});
        assert_eq!(Value::Object(read(&value.to_string()).unwrap()), value);
        assert_eq!(read(" {} ").unwrap(), Map::new());
        for (text, expected) in [
            (r#"{"a":1,"a":2}"#, "\"a\" is there twice"),
            (r#"{"a":{"b":1,"b":2}}"#, "\"b\" is there twice"),
            (r#"{"a":1,"b":2,"c":3,"d":4}"#, "more than 3 values"),
            (r#"{"a":[[],[],[]]}"#, "more than 3 values"),
            ("{} {}", "trailing characters"),
            ("[]", "invalid type: sequence, expected a map"),
            ("", "EOF while parsing a value"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.starts_with(expected), "{text}: {refused}");
        }
        let deep = format!(r#"{{"a":{}"#, "[".repeat(1000));
        assert!(read(&deep).is_err());
    }

    #[test]
    fn an_image_has_the_fields_that_somebody_reads() {
        let check = |image: &str, expected: Value| {
            let read = read(&format!(r#"{{"image":{image}}}"#)).unwrap().image;
            assert_eq!(json!(read), expected, "{image}");
        };
        check("null", json!(null));
        check("{}", json!({}));
        let whole = r#"{"mime":"image/png","name":"a","data":"AA"}"#;
        check(
            whole,
            json!({"mime": "image/png", "name": "a", "data": "AA"}),
        );
        check(
            r#"{"name":5,"data":[[{"a":0}]]}"#,
            json!({"name": 5, "data": null}),
        );
        check(r#"{"x":[{"":0}],"y":{"z":[]}}"#, json!({"x": null}));
    }

    #[test]
    fn a_list_of_too_many_prompts_is_refused() {
        let list = |count: usize| format!(r#"{{"prompts":["a"{}]}}"#, r#","""#.repeat(count));
        assert_eq!(
            read(&list(MAX_PROMPTS - 1)).unwrap().prompts.len(),
            MAX_PROMPTS
        );
        assert!(
            read(&list(MAX_PROMPTS))
                .unwrap_err()
                .starts_with("more than 4096 prompts")
        );
    }
}
