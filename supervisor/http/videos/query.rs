//! What follows the path of a request for videos. Parameters of other names are ignored.

use std::time::Duration;

use fastvideo_proto::ids::VideoId;
use url::form_urlencoded;

use super::ask::{digits, milliseconds};
use super::error::{VideoError, shown};
use crate::store::records::{Order, VideoPage};

/// The most videos of a page, and how many there are if the client does not tell.
const MAX_PAGE: usize = 100;
const DEFAULT_PAGE: usize = 20;
/// The longest that a client may let the server wait for a change.
const MAX_WAIT_MS: u64 = 60_000;

/// What is fetched of a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Variant {
    Video,
    Thumbnail,
    Spritesheet,
}

/// Reads the query of `GET /v1/videos`.
///
/// # Errors
/// Returns a refusal when a parameter has another value than it may.
pub(in crate::http) fn page(query: Option<&str>) -> Result<VideoPage, VideoError> {
    let limit = match parameter(query, "limit") {
        None => DEFAULT_PAGE,
        Some(given) => {
            let limit = digits(&given).and_then(|limit| usize::try_from(limit).ok());
            let limit = limit.filter(|limit| (1..=MAX_PAGE).contains(limit));
            limit.ok_or_else(|| refused("limit", "a whole number from 1 to 100", &given))?
        }
    };
    let order = match parameter(query, "order").as_deref() {
        None | Some("desc") => Order::Descending,
        Some("asc") => Order::Ascending,
        Some(given) => return Err(refused("order", "`asc` or `desc`", given)),
    };
    let after = parameter(query, "after").map(|given| {
        VideoId::parse(&given).ok_or_else(|| refused("after", "the id of a video", &given))
    });
    Ok(VideoPage {
        limit,
        order,
        after: after.transpose()?,
    })
}

impl Variant {
    /// Reads the query of `GET /v1/videos/{id}/content`.
    ///
    /// # Errors
    /// Returns a refusal when there is no such variant.
    pub(in crate::http) fn read(query: Option<&str>) -> Result<Self, VideoError> {
        match parameter(query, "variant").as_deref() {
            None | Some("video") => Ok(Self::Video),
            Some("thumbnail") => Ok(Self::Thumbnail),
            Some("spritesheet") => Ok(Self::Spritesheet),
            Some(given) => {
                let expected = "`video`, `thumbnail` or `spritesheet`";
                Err(refused("variant", expected, given))
            }
        }
    }
}

/// Reads for how long `GET /v1/videos/{id}` waits for a change: from 0, which is the default, to 60 seconds, with up to three
/// decimals.
///
/// # Errors
/// Returns a refusal when it is something else.
pub(in crate::http) fn wait(query: Option<&str>) -> Result<Duration, VideoError> {
    let Some(given) = parameter(query, "wait_seconds") else {
        return Ok(Duration::ZERO);
    };
    let ms = milliseconds(&given).filter(|ms| *ms <= MAX_WAIT_MS);
    ms.map(Duration::from_millis)
        .ok_or_else(|| refused("wait_seconds", "a number from 0 to 60", &given))
}

/// Returns the first value of a parameter.
fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query?.as_bytes());
    let (_, value) = pairs.find(|(key, _)| key == name)?;
    Some(value.into_owned())
}

fn refused(param: &'static str, expected: &str, given: &str) -> VideoError {
    VideoError::invalid_value(param, expected, shown(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "video_0123456789ab7fffbfffffffffffffff";

    #[test]
    fn a_page_has_limit_order_and_beginning() {
        let check = |query, limit, order, after: Option<&str>| {
            let page = VideoPage {
                limit,
                order,
                after: after.map(|id| VideoId::parse(id).unwrap()),
            };
            assert_eq!(super::page(query), Ok(page), "{query:?}");
        };
        check(None, 20, Order::Descending, None);
        check(Some(""), 20, Order::Descending, None);
        check(Some("limit=1&order=asc&x=y"), 1, Order::Ascending, None);
        let query = format!("order=desc&after=video%5f{}&limit=100", &ID[6..]);
        check(Some(&query), 100, Order::Descending, Some(ID));
    }

    #[test]
    fn other_values_of_parameters_are_refused() {
        let check = |read: Result<(), VideoError>, param: &str| {
            let error = read.unwrap_err();
            let (code, given, _) = error.parts();
            assert_eq!((code, given), ("invalid_value", Some(param)));
        };
        for query in [
            "limit=0",
            "limit=101",
            "limit=",
            "limit=+5",
            "limit=a",
            "limit",
        ] {
            check(page(Some(query)).map(|_| ()), "limit");
        }
        check(page(Some("order=up")).map(|_| ()), "order");
        check(page(Some("after=video_1")).map(|_| ()), "after");
        check(Variant::read(Some("variant=gif")).map(|_| ()), "variant");
        for query in [
            "wait_seconds=60.001",
            "wait_seconds=-1",
            "wait_seconds=",
            "wait_seconds=1e1",
        ] {
            check(wait(Some(query)).map(|_| ()), "wait_seconds");
        }
    }

    #[test]
    fn what_is_fetched_and_how_long_to_wait_have_defaults() {
        assert_eq!(Variant::read(None), Ok(Variant::Video));
        assert_eq!(Variant::read(Some("variant=video")), Ok(Variant::Video));
        let thumbnail = Variant::read(Some("variant=thumbnail"));
        assert_eq!(thumbnail, Ok(Variant::Thumbnail));
        let sheet = Variant::read(Some("variant=spritesheet"));
        assert_eq!(sheet, Ok(Variant::Spritesheet));
        let wait = |query| wait(query).unwrap().as_millis();
        assert_eq!(wait(None), 0);
        assert_eq!(wait(Some("wait_seconds=0")), 0);
        assert_eq!(wait(Some("wait_seconds=2.5")), 2500);
        assert_eq!(wait(Some("wait_seconds=60")), 60_000);
    }
}
