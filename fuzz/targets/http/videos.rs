//! Reads the body of a request for a video, as the module of the supervisor does.

#[allow(dead_code, reason = "what it offers to others")]
mod ask;
mod form;
mod image;
mod names;

use bytes::Bytes;
use fastvideo_proto::ids::VideoId;

use ask::{Ask, Kind};

/// Reads a body for each of the routes. Returns the longest refusal.
pub fn read(content_type: Option<&str>, body: &Bytes, max_image_bytes: usize) -> String {
    let source = VideoId::after(None, 0, 0);
    let mut longest = String::new();
    for kind in [Kind::Create, Kind::Remix(source), Kind::Edit, Kind::Extend] {
        let fields = form::read(content_type, body);
        match fields.and_then(|fields| Ask::of_fields(kind, fields, max_image_bytes)) {
            Ok(ask) => {
                assert_eq!(ask.source().is_none(), kind == Kind::Create);
                assert_eq!(ask.fingerprint(), ask.clone().fingerprint());
            }
            Err(error::VideoError(message)) if message.len() > longest.len() => longest = message,
            Err(_) => {}
        }
    }
    longest
}

/// What the readers need of the supervisor's `VideoError`.
mod error {
    use std::borrow::Cow;

    #[derive(Debug)]
    pub struct VideoError(pub String);

    impl VideoError {
        pub fn missing(param: &'static str) -> Self {
            Self(param.to_owned())
        }

        pub fn invalid_body(message: impl Into<String>) -> Self {
            Self(message.into())
        }

        pub fn invalid_value(
            param: impl Into<Cow<'static, str>>,
            expected: impl AsRef<str>,
            given: impl AsRef<str>,
        ) -> Self {
            let param = param.into();
            Self([&param, expected.as_ref(), given.as_ref()].concat())
        }

        pub fn invalid_image(
            param: &'static str,
            expected: impl AsRef<str>,
            given: impl AsRef<str>,
        ) -> Self {
            Self::invalid_value(param, expected, given)
        }

        pub fn unknown_parameter(param: String, nearest: Option<&str>) -> Self {
            Self(param + nearest.unwrap_or_default())
        }

        pub fn unsupported_parameter(
            param: impl Into<Cow<'static, str>>,
            why: impl AsRef<str>,
        ) -> Self {
            Self::invalid_value(param, why, "")
        }

        pub fn source_not_found(param: &'static str) -> Self {
            Self(param.to_owned())
        }
    }

    pub fn shown(text: &str) -> String {
        text.chars().take(64).flat_map(char::escape_debug).collect()
    }
}
