//! A client's picture, as this dialect sends it.

use fastvideo_proto::dreamverse::InitialImage;
use serde_json::{Map, Value, json};

/// The largest file of a picture, in bytes.
const MAX_BYTES: usize = 15 << 20;
const TYPES: [&str; 3] = ["image/png", "image/jpeg", "image/webp"];

/// Returns a picture as a session takes it; `None` where there is none.
///
/// # Errors
/// Returns what is wrong, in words for the client.
pub(super) fn read(image: Option<InitialImage>) -> Result<Option<Map<String, Value>>, String> {
    let Some(InitialImage {
        data_url: Some(data_url),
        mime_type,
        name,
    }) = image
    else {
        return Ok(None);
    };
    let data_url = data_url.trim();
    if data_url.is_empty() {
        return Ok(None);
    }
    let parts = data_url
        .strip_prefix("data:")
        .and_then(|rest| rest.split_once(";base64,"));
    let Some((mime, data)) = parts else {
        return Err("`initial_image.data_url` is not a base64 data URL".to_owned());
    };
    let mime = mime.trim().to_ascii_lowercase();
    if mime_type.is_some_and(|given| !given.trim().eq_ignore_ascii_case(&mime)) {
        return Err("`initial_image.mime_type` is another one than the data URL's".to_owned());
    }
    if !TYPES.contains(&mime.as_str()) {
        return Err("`initial_image` must be a PNG, JPEG or WebP picture".to_owned());
    }
    // Four characters of base64 are three bytes.
    if data.len() / 4 * 3 > MAX_BYTES + 2 {
        return Err(format!(
            "`initial_image` is larger than {} MiB",
            MAX_BYTES >> 20
        ));
    }
    let name = name.filter(|name| !name.trim().is_empty());
    match json!({ "mime": mime, "name": name, "data": data }) {
        Value::Object(image) => Ok(Some(image)),
        _ => unreachable!("the value above is an object"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(data_url: &str, mime: Option<&str>) -> Result<Option<Map<String, Value>>, String> {
        read(Some(InitialImage {
            data_url: Some(data_url.to_owned()),
            mime_type: mime.map(str::to_owned),
            name: Some("fox.png".to_owned()),
        }))
    }

    #[test]
    fn a_picture_is_a_data_url_of_a_known_type() {
        assert_eq!(read(None), Ok(None));
        assert_eq!(read(Some(InitialImage::default())), Ok(None));
        assert_eq!(image(" ", None), Ok(None));
        let read = image("data:image/PNG;base64,AAAA", Some("image/png"))
            .unwrap()
            .unwrap();
        assert_eq!(
            Value::Object(read),
            json!({"mime": "image/png", "name": "fox.png", "data": "AAAA"})
        );
        for (data_url, mime, expected) in [
            ("AAAA", None, "not a base64 data URL"),
            ("data:image/png,AAAA", None, "not a base64 data URL"),
            (
                "data:image/png;base64,AAAA",
                Some("image/webp"),
                "another one",
            ),
            (
                "data:image/gif;base64,AAAA",
                None,
                "must be a PNG, JPEG or WebP",
            ),
        ] {
            let error = image(data_url, mime).unwrap_err();
            assert!(error.contains(expected), "{data_url}: {error}");
        }
        let large = format!("data:image/png;base64,{}", "A".repeat(20 * 1024 * 1024 + 8));
        assert_eq!(
            image(&large, None).unwrap_err(),
            "`initial_image` is larger than 15 MiB"
        );
    }
}
