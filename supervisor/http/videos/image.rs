//! The image of a request: an uploaded file, or one within the text. Nothing is ever fetched for it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::{Map, Value};

use super::ask::{Named, check_all_read};
use super::error::{VideoError, shown};
use super::form::{Fields, Given, kind_of};

/// The fields that may have it.
const NAMES: [&str; 3] = ["input_reference", "image_reference", "reference_url"];

/// Takes the image out of the fields. Its file is not looked into.
///
/// # Errors
/// Returns a refusal when there are several, when one is to be fetched, and when it is empty or larger than `max_bytes`.
pub(super) fn take(
    fields: &mut Fields,
    max_bytes: usize,
) -> Result<Option<Named<Bytes>>, VideoError> {
    let mut images = NAMES
        .iter()
        .filter_map(|name| Some((*name, fields.take(name)?)));
    let Some((param, given)) = images.next() else {
        return Ok(None);
    };
    if let Some((second, _)) = images.next() {
        let given = format!("`{param}` too");
        return Err(VideoError::invalid_value(second, "one image", given));
    }
    let value = match given {
        Given::File(file) => check_size(param, file.len(), max_bytes).map(|()| file),
        Given::Value(value) => of_value(param, value, max_bytes),
    }?;
    if value.is_empty() {
        return Err(VideoError::invalid_image(param, "an image", "0 bytes"));
    }
    Ok(Some(Named { param, value }))
}

fn of_value(param: &'static str, value: Value, max_bytes: usize) -> Result<Bytes, VideoError> {
    match value {
        Value::String(text) if !text.trim_start().starts_with('{') => {
            of_url(param, param, &text, max_bytes)
        }
        // FastVideo's clients send a list.
        Value::Array(mut list) if list.len() == 1 && !list[0].is_array() => {
            of_value(param, list.remove(0), max_bytes)
        }
        Value::Array(list) if list.len() > 1 => {
            let why = format!("expected one image, got {}", list.len());
            Err(VideoError::unsupported_parameter(param, why))
        }
        other => {
            let object = Given::Value(other).into_object().map_err(|given| {
                let expected = "a file, or an object with an `image_url`";
                VideoError::invalid_value(param, expected, given)
            })?;
            of_reference(param, object, max_bytes)
        }
    }
}

/// Reads `{"image_url": "data:…"}`.
fn of_reference(
    param: &'static str,
    mut object: Map<String, Value>,
    max_bytes: usize,
) -> Result<Bytes, VideoError> {
    let url = object.remove("image_url").filter(|url| !url.is_null());
    check_all_read(&object, &["image_url"], &format!("{param}."))?;
    let field = format!("{param}.image_url");
    match url {
        Some(Value::String(url)) => of_url(param, &field, &url, max_bytes),
        Some(other) => Err(VideoError::invalid_value(field, "a text", kind_of(&other))),
        None => {
            let expected = "an object with an `image_url`";
            Err(VideoError::invalid_value(param, expected, "one without"))
        }
    }
}

/// Decodes a data URL. Its type is ignored.
fn of_url(
    param: &'static str,
    field: &str,
    url: &str,
    max_bytes: usize,
) -> Result<Bytes, VideoError> {
    let scheme = url.get(..5).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("data:") {
        let why = "nothing is fetched; send the file, or a URL that begins with `data:`";
        return Err(VideoError::unsupported_parameter(field.to_owned(), why));
    }
    let (head, data) = url.split_once(',').unwrap_or((url, ""));
    let encoding = head.rsplit(';').next().unwrap_or_default();
    if !encoding.eq_ignore_ascii_case("base64") {
        let expected = "base64 after `data:image/png;base64,`";
        return Err(VideoError::invalid_image(param, expected, shown(head)));
    }
    let padding = data.bytes().rev().take(2).filter(|&b| b == b'=').count();
    let size = (data.len() / 4 * 3).saturating_sub(padding);
    check_size(param, size, max_bytes)?;
    let decoded = BASE64.decode(data);
    let decoded = decoded
        .map_err(|error| VideoError::invalid_image(param, "strict base64", error.to_string()))?;
    Ok(decoded.into())
}

fn check_size(param: &'static str, bytes: usize, max_bytes: usize) -> Result<(), VideoError> {
    if bytes > max_bytes {
        let expected = format!("at most {max_bytes} bytes");
        let given = format!("{bytes} bytes");
        return Err(VideoError::invalid_image(param, expected, given));
    }
    Ok(())
}
