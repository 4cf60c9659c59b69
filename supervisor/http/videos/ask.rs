//! What a client asks for, as it says it: fields of known names and types, each within the limits that never change, without the
//! values that it leaves out.
//!
//! It is also what tells two requests under one idempotency key apart, so that it has nothing of the server's configuration and of
//! the video that it refers to.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::{Bound, RangeBounds, RangeInclusive};

use bytes::Bytes;
use fastvideo_proto::ids::VideoId;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::error::{VideoError, shown};
use super::form::{Fields, Given, kind_of};
use super::{image, names};
use crate::engines::default_request::MAX_GUIDANCE;

/// The limits of width, height and frames per second that a request may ask for.
const WIDTHS: RangeInclusive<u32> = 64..=4096;
const HEIGHTS: RangeInclusive<u32> = 64..=2176;
pub(super) const RATES: RangeInclusive<u32> = 1..=60;
/// The limits of `metadata`, the latter two in characters.
const MAX_PAIRS: usize = 16;
const MAX_KEY_CHARS: usize = 64;
const MAX_VALUE_CHARS: usize = 512;

/// The routes that create a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(in crate::http) enum Kind {
    /// `POST /v1/videos`, and `/v1/videos/sync`.
    Create,
    /// `POST /v1/videos/{id}/remix` of that video.
    Remix(VideoId),
    /// `POST /v1/videos/edits`.
    Edit,
    /// `POST /v1/videos/extensions`.
    Extend,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::http) struct Ask {
    pub(super) kind: Kind,
    /// The video that the new one is made of; there is one for every kind but [`Kind::Create`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<VideoId>,
    /// It is not blank.
    pub(super) prompt: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) negative_prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) num_inference_steps: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) guidance_scale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) enhance_prompt: Option<bool>,
    /// Even numbers within [`WIDTHS`] and [`HEIGHTS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) size: Option<Named<(u32, u32)>>,
    /// Within [`RATES`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fps: Option<Named<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) length: Option<Named<Length>>,
    /// An image file; not looked into.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "hash")]
    pub(super) image: Option<Named<Bytes>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<BTreeMap<String, String>>,
}

/// A value, and the field that it comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Named<T> {
    pub(super) param: &'static str,
    pub(super) value: T,
}

/// How long the video, or what is added to it, is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Length {
    /// At least 1.
    Frames(u64),
    /// At least 1.
    Milliseconds(u64),
}

/// Which field a value comes from makes no difference.
impl<T: Serialize> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

fn hash<S: Serializer>(image: &Option<Named<Bytes>>, serializer: S) -> Result<S::Ok, S::Error> {
    let hash = image
        .as_ref()
        .map(|image| blake3::hash(&image.value).to_hex());
    hash.as_deref().serialize(serializer)
}

impl Ask {
    /// Reads the fields of a request. `max_image_bytes` is the limit on the image's file.
    ///
    /// # Errors
    /// Returns a refusal when a field is missing, is none that there is, or is out of its limits.
    pub(super) fn of_fields(
        kind: Kind,
        mut fields: Fields,
        max_image_bytes: usize,
    ) -> Result<Self, VideoError> {
        drop_ignored(&mut fields)?;
        fields
            .names()
            .try_for_each(|name| names::check(name, names::READ, ""))?;
        let source = match kind {
            Kind::Create | Kind::Remix(_) if fields.has("video") => {
                let why = "`/v1/videos/edits` and `/v1/videos/extensions` take it";
                return Err(VideoError::unsupported_parameter("video", why));
            }
            Kind::Create => None,
            Kind::Remix(source) => Some(source),
            Kind::Edit | Kind::Extend => Some(source(fields.take("video"))?),
        };
        let params = &mut params(fields.take("video_params"))?;
        let prompt = text(&mut fields, "prompt")?.ok_or_else(|| VideoError::missing("prompt"))?;
        if prompt.trim().is_empty() {
            return Err(VideoError::invalid_value("prompt", "some text", "none"));
        }
        Ok(Self {
            kind,
            source,
            prompt,
            model: text(&mut fields, "model")?,
            size: size(&mut fields, params)?,
            fps: integer_of(&mut fields, params, ["fps", "video_params.fps"], RATES)?,
            length: length(&mut fields, params)?,
            seed: integer(&mut fields, "seed", 0..=u64::MAX)?,
            num_inference_steps: integer(&mut fields, "num_inference_steps", 1..)?,
            guidance_scale: guidance(&mut fields)?,
            negative_prompt: text(&mut fields, "negative_prompt")?,
            enhance_prompt: truth(&mut fields, "enhance_prompt")?,
            metadata: metadata(fields.take("metadata"))?,
            image: image::take(&mut fields, max_image_bytes)?,
        })
    }

    /// Returns the video that the new one is to be made of.
    pub(in crate::http) fn source(&self) -> Option<VideoId> {
        self.source
    }

    /// Returns a hash that is the same for requests that ask for the same, and for no other ones. A field that is left out is not
    /// the same as one with its default.
    pub(in crate::http) fn fingerprint(&self) -> [u8; 32] {
        let text = serde_json::to_vec(self).expect("texts and numbers are JSON");
        blake3::hash(&text).into()
    }
}

/// Drops the fields that have no effect. Refuses those that ask for another value than the only one.
fn drop_ignored(fields: &mut Fields) -> Result<(), VideoError> {
    for name in names::IGNORED {
        fields.take(name);
    }
    for &(name, only) in names::FIXED {
        let given = match fields.take(name) {
            None => continue,
            Some(Given::Value(Value::String(text))) => text,
            Some(other) => other.to_string(),
        };
        if given != only {
            let why = format!("expected `{only}`, got {}", shown(&given));
            return Err(VideoError::unsupported_parameter(name, why));
        }
    }
    Ok(())
}

/// Reads `{"id": …}`.
fn source(given: Option<Given>) -> Result<VideoId, VideoError> {
    let given = given.ok_or_else(|| VideoError::missing("video"))?;
    if let Given::File(_) = given {
        let why = "a video that is made of another one names that by its id";
        return Err(VideoError::unsupported_parameter("video", why));
    }
    let object = given.into_object();
    let mut object = object
        .map_err(|given| VideoError::invalid_value("video", "an object with an `id`", given))?;
    let id = object.remove("id").filter(|id| !id.is_null());
    check_all_read(&object, &["id"], "video.")?;
    match id {
        None => Err(VideoError::missing("video.id")),
        Some(Value::String(id)) => {
            VideoId::parse(&id).ok_or_else(|| VideoError::source_not_found("video"))
        }
        Some(other) => {
            let given = kind_of(&other);
            Err(VideoError::invalid_value("video.id", "an id", given))
        }
    }
}

/// Reads `video_params` as fields.
fn params(given: Option<Given>) -> Result<Fields, VideoError> {
    let Some(given) = given else {
        return Ok(Fields::default());
    };
    let object = given.into_object().map_err(|given| {
        VideoError::invalid_value("video_params", "an object, or the text of one", given)
    })?;
    check_all_read(&object, names::READ_OF_PARAMS, "video_params.")?;
    Ok(Fields::of_json(object))
}

/// Refuses an object that has other fields than those, except with the value null.
pub(super) fn check_all_read(
    object: &Map<String, Value>,
    read: &[&str],
    within: &str,
) -> Result<(), VideoError> {
    let given = object.iter().filter(|(_, value)| !value.is_null());
    let mut names = given.map(|(name, _)| name.as_str());
    names.try_for_each(|name| names::check(name, read, within))
}

/// Reads the size: of `size`, or of both of `width` and `height`, or of both in `video_params`.
fn size(fields: &mut Fields, params: &mut Fields) -> Result<Option<Named<(u32, u32)>>, VideoError> {
    let size = text(fields, "size")?
        .map(|size| parse_size(&size))
        .transpose()?;
    let own = both_sides(fields, ["width", "height"])?;
    let nested = both_sides(params, ["video_params.width", "video_params.height"])?;
    Ok(size.or(own).or(nested))
}

fn parse_size(text: &str) -> Result<Named<(u32, u32)>, VideoError> {
    let side = |text: &str, range: RangeInclusive<u32>| {
        let side = digits(text).and_then(|side| u32::try_from(side).ok());
        side.filter(|side| side % 2 == 0 && range.contains(side))
    };
    let sides = text.split_once('x');
    let size =
        sides.and_then(|(width, height)| Some((side(width, WIDTHS)?, side(height, HEIGHTS)?)));
    let value = size.ok_or_else(|| {
        let expected = format!(
            "even numbers as in `1280x720`, from {}x{} to {}x{}",
            WIDTHS.start(),
            HEIGHTS.start(),
            WIDTHS.end(),
            HEIGHTS.end()
        );
        VideoError::invalid_value("size", expected, shown(text))
    })?;
    Ok(Named {
        param: "size",
        value,
    })
}

fn both_sides(
    fields: &mut Fields,
    [width_name, height_name]: [&'static str; 2],
) -> Result<Option<Named<(u32, u32)>>, VideoError> {
    let width = even(fields, width_name, WIDTHS)?;
    let height = even(fields, height_name, HEIGHTS)?;
    match (width, height) {
        (Some(width), Some(height)) => Ok(Some(Named {
            param: width_name,
            value: (width, height),
        })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(VideoError::missing(height_name)),
        (None, Some(_)) => Err(VideoError::missing(width_name)),
    }
}

fn even(
    fields: &mut Fields,
    param: &'static str,
    range: RangeInclusive<u32>,
) -> Result<Option<u32>, VideoError> {
    match integer(fields, param, range)? {
        Some(odd) if odd % 2 == 1 => {
            let given = odd.to_string();
            Err(VideoError::invalid_value(param, "an even number", given))
        }
        even => Ok(even),
    }
}

/// Reads how long the video is to be. Numbers of frames count before seconds.
fn length(fields: &mut Fields, params: &mut Fields) -> Result<Option<Named<Length>>, VideoError> {
    let frames = ["num_frames", "video_params.num_frames"];
    let frames = integer_of(fields, params, frames, 1..)?;
    let seconds = seconds(fields.take("seconds"))?;
    let frames = frames.map(|Named { param, value }| Named {
        param,
        value: Length::Frames(value),
    });
    let seconds = seconds.map(|ms| Named {
        param: "seconds",
        value: Length::Milliseconds(ms),
    });
    Ok(frames.or(seconds))
}

/// Reads seconds as milliseconds.
fn seconds(given: Option<Given>) -> Result<Option<u64>, VideoError> {
    let given = match given {
        None => return Ok(None),
        Some(Given::Value(Value::String(text))) => text,
        Some(other) => other.to_string(),
    };
    let ms = milliseconds(&given).filter(|ms| *ms > 0);
    ms.map(Some).ok_or_else(|| {
        let expected = "a number above 0 with at most three decimals";
        VideoError::invalid_value("seconds", expected, shown(&given))
    })
}

/// Parses seconds with up to three decimals.
pub(super) fn milliseconds(text: &str) -> Option<u64> {
    let (whole, decimals) = match text.split_once('.') {
        Some((whole, decimals)) => (whole, Some(decimals)),
        None => (text, None),
    };
    let thousandths = match decimals {
        None => 0,
        Some(decimals) if (1..=3).contains(&decimals.len()) => digits(&format!("{decimals:0<3}"))?,
        Some(_) => return None,
    };
    digits(whole)?.checked_mul(1000)?.checked_add(thousandths)
}

/// Parses a number that is digits only.
pub(super) fn digits(text: &str) -> Option<u64> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

fn text(fields: &mut Fields, name: &'static str) -> Result<Option<String>, VideoError> {
    match fields.take(name) {
        None => Ok(None),
        Some(Given::Value(Value::String(text))) => Ok(Some(text)),
        Some(other) => {
            let given = other.to_string();
            Err(VideoError::invalid_value(name, "a text", given))
        }
    }
}

fn truth(fields: &mut Fields, name: &'static str) -> Result<Option<bool>, VideoError> {
    let given = match fields.take(name) {
        None => return Ok(None),
        Some(Given::Value(Value::Bool(truth))) => return Ok(Some(truth)),
        Some(Given::Value(Value::String(text))) => text,
        Some(other) => other.to_string(),
    };
    match given.to_ascii_lowercase().as_str() {
        "true" => Ok(Some(true)),
        "false" => Ok(Some(false)),
        _ => {
            let expected = "`true` or `false`";
            Err(VideoError::invalid_value(name, expected, shown(&given)))
        }
    }
}

/// Reads a whole number. A name with a dot is that of a field within another one, whose fields are given.
fn integer<T: Copy + TryFrom<u64> + PartialOrd + Display>(
    fields: &mut Fields,
    param: &'static str,
    range: impl RangeBounds<T> + Clone,
) -> Result<Option<T>, VideoError> {
    let (_, name) = param.rsplit_once('.').unwrap_or(("", param));
    let Some(given) = fields.take(name) else {
        return Ok(None);
    };
    let number = match &given {
        Given::Value(Value::Number(number)) => number.as_u64(),
        Given::Value(Value::String(text)) => digits(text),
        _ => None,
    };
    let number = number.and_then(|number| T::try_from(number).ok());
    let number = number.filter(|number| range.contains(number));
    number.map(Some).ok_or_else(|| {
        let expected = format!("a whole number {}", limits(&range));
        VideoError::invalid_value(param, expected, given.to_string())
    })
}

/// Describes a range. One without an end has that of the operator, which is checked later.
fn limits<T: Display>(range: &impl RangeBounds<T>) -> String {
    match (range.start_bound(), range.end_bound()) {
        (Bound::Included(start), Bound::Included(end)) => format!("from {start} to {end}"),
        (Bound::Included(start) | Bound::Excluded(start), _) => format!("of at least {start}"),
        (Bound::Unbounded, _) => String::new(),
    }
}

/// Reads a whole number of the first of two places that has it.
fn integer_of<T: Copy + TryFrom<u64> + PartialOrd + Display>(
    fields: &mut Fields,
    params: &mut Fields,
    [own, nested]: [&'static str; 2],
    range: impl RangeBounds<T> + Clone,
) -> Result<Option<Named<T>>, VideoError> {
    let named = |param, value: Option<T>| value.map(|value| Named { param, value });
    let first = named(own, integer(fields, own, range.clone())?);
    let second = named(nested, integer(params, nested, range)?);
    Ok(first.or(second))
}

fn guidance(fields: &mut Fields) -> Result<Option<f64>, VideoError> {
    const NAME: &str = "guidance_scale";
    let Some(given) = fields.take(NAME) else {
        return Ok(None);
    };
    let number = match &given {
        Given::Value(Value::Number(number)) => number.as_f64(),
        Given::Value(Value::String(text)) => text.parse().ok(),
        _ => None,
    };
    let number = number.filter(|number| (0.0..=MAX_GUIDANCE).contains(number));
    number.map(Some).ok_or_else(|| {
        let expected = format!("a number from 0 to {MAX_GUIDANCE}");
        VideoError::invalid_value(NAME, expected, given.to_string())
    })
}

fn metadata(given: Option<Given>) -> Result<Option<BTreeMap<String, String>>, VideoError> {
    const NAME: &str = "metadata";
    let refused = |expected: &str, given: &str| VideoError::invalid_value(NAME, expected, given);
    let Some(given) = given else {
        return Ok(None);
    };
    let object = given.into_object();
    let object = object.map_err(|given| refused("an object, or the text of one", &given))?;
    let pairs = object.into_iter().filter(|(_, value)| !value.is_null());
    let mut metadata = BTreeMap::new();
    for (key, value) in pairs {
        let Value::String(value) = value else {
            return Err(refused("texts", &kind_of(&value)));
        };
        check_chars(&key, MAX_KEY_CHARS, "keys")?;
        check_chars(&value, MAX_VALUE_CHARS, "values")?;
        metadata.insert(key, value);
    }
    if metadata.len() > MAX_PAIRS {
        let expected = format!("at most {MAX_PAIRS} pairs");
        return Err(refused(&expected, &metadata.len().to_string()));
    }
    Ok(Some(metadata))
}

fn check_chars(text: &str, limit: usize, what: &str) -> Result<(), VideoError> {
    match text.chars().count() {
        count if count > limit => {
            let expected = format!("{what} of at most {limit} characters");
            Err(VideoError::invalid_value(
                "metadata",
                expected,
                count.to_string(),
            ))
        }
        _ => Ok(()),
    }
}
