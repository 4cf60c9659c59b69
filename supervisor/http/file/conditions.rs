//! Conditional requests and ranges (RFC 9110, sections 13 and 14) for files with a strong entity tag.

use std::ops::Range;

use axum::http::header::{IF_NONE_MATCH, IF_RANGE, RANGE};
use axum::http::{HeaderMap, HeaderValue, Method};
use http_range_header::parse_range_header;

/// A strong entity tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) struct EntityTag(String);

impl EntityTag {
    /// Makes a tag of a hash of the file.
    pub(in crate::http) fn of(hash: [u8; 32]) -> Self {
        Self(format!("\"{}\"", hex(hash)))
    }

    pub(in crate::http) fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("hexadecimal digits in quotes are a header's value")
    }
}

/// Formats a hash in lower-case hexadecimal digits.
pub(in crate::http) fn hex(hash: [u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What to answer to a request for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Wanted {
    Whole,
    /// These bytes; not empty.
    Part(Range<u64>),
    /// The client has the file.
    Nothing,
    /// A range that has no byte of the file.
    OutOfRange,
}

/// Decides what a request for a file of `size` bytes wants.
pub(in crate::http) fn wanted(
    method: &Method,
    headers: &HeaderMap,
    tag: &EntityTag,
    size: u64,
) -> Wanted {
    if names(headers, tag) {
        return Wanted::Nothing;
    }
    // A date is no tag of this file, so that the whole of it is sent.
    let is_other_file = (headers.get(IF_RANGE)).is_some_and(|given| given != tag.0.as_str());
    if *method != Method::GET || is_other_file {
        return Wanted::Whole;
    }
    let mut ranges = headers.get_all(RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else {
        return Wanted::Whole;
    };
    // A server may ignore what is no range of bytes, and several ranges.
    let parsed = range
        .to_str()
        .ok()
        .and_then(|text| parse_range_header(text).ok());
    let Some(parsed) = parsed.filter(|parsed| parsed.len() == 1) else {
        return Wanted::Whole;
    };
    match parsed.validate(size).as_deref() {
        Ok([range]) => Wanted::Part(*range.start()..range.end() + 1),
        _ => Wanted::OutOfRange,
    }
}

/// Returns whether `If-None-Match` names the file.
fn names(headers: &HeaderMap, tag: &EntityTag) -> bool {
    let values = headers.get_all(IF_NONE_MATCH).iter();
    let mut given = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim);
    given.any(|given| given == "*" || given.strip_prefix("W/").unwrap_or(given) == tag.0)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    const TAG: &str = "\"0101010101010101010101010101010101010101010101010101010101010101\"";

    fn wanted_of(method: Method, given: &[(HeaderName, &str)]) -> Wanted {
        let headers = given.iter();
        let headers = headers
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect();
        let tag = EntityTag::of([1; 32]);
        assert_eq!(tag.header(), TAG);
        wanted(&method, &headers, &tag, 100)
    }

    #[test]
    fn a_range_is_a_part_of_the_file() {
        let part = |range| Wanted::Part(range);
        for (range, expected) in [
            ("bytes=0-0", part(0..1)),
            ("bytes=0-99", part(0..100)),
            ("bytes=0-100", part(0..100)),
            ("bytes=7-", part(7..100)),
            ("bytes=99-", part(99..100)),
            ("bytes=-1", part(99..100)),
            ("bytes=-100", part(0..100)),
            ("bytes=-101", part(0..100)),
            ("bytes= 5-6", part(5..7)),
            ("bytes=5-18446744073709551615", part(5..100)),
            ("bytes=5-99999999999999999999", part(5..100)),
            ("bytes=100-", Wanted::OutOfRange),
            ("bytes=100-100", Wanted::OutOfRange),
            ("bytes=99999999999999999999-", Wanted::OutOfRange),
            ("bytes=-0", Wanted::OutOfRange),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=2-1", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=", Wanted::Whole),
            ("bytes", Wanted::Whole),
            ("bytes=a-", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=1--2", Wanted::Whole),
            ("bytes =1-2", Wanted::Whole),
            ("seconds=1-2", Wanted::Whole),
        ] {
            let given = wanted_of(Method::GET, &[(RANGE, range)]);
            assert_eq!(given, expected, "{range}");
        }
        assert_eq!(wanted_of(Method::GET, &[]), Wanted::Whole);
        let head = wanted_of(Method::HEAD, &[(RANGE, "bytes=0-1")]);
        assert_eq!(head, Wanted::Whole);
        let twice = [(RANGE, "bytes=0-1"), (RANGE, "bytes=0-1")];
        let mut headers = HeaderMap::new();
        for (name, value) in twice {
            headers.append(name, HeaderValue::from_static(value));
        }
        let twice = wanted(&Method::GET, &headers, &EntityTag::of([1; 32]), 100);
        assert_eq!(twice, Wanted::Whole);
    }

    #[test]
    fn a_range_holds_only_for_the_file_that_the_client_knows() {
        let part = Wanted::Part(0..1);
        for (tag, expected) in [
            (TAG, part),
            ("\"other\"", Wanted::Whole),
            (&format!("W/{TAG}"), Wanted::Whole),
            ("Wed, 21 Oct 2026 07:28:00 GMT", Wanted::Whole),
            ("", Wanted::Whole),
        ] {
            let given = [(RANGE, "bytes=0-0"), (IF_RANGE, tag)];
            assert_eq!(wanted_of(Method::GET, &given), expected, "{tag}");
        }
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        for (tags, expected) in [
            (TAG.to_owned(), Wanted::Nothing),
            (format!("W/{TAG}"), Wanted::Nothing),
            (format!("\"a\" , {TAG},\"b\""), Wanted::Nothing),
            ("*".to_owned(), Wanted::Nothing),
            ("\"a\"".to_owned(), Wanted::Part(0..1)),
            (TAG.replace('"', ""), Wanted::Part(0..1)),
        ] {
            let given = [(IF_NONE_MATCH, tags.as_str()), (RANGE, "bytes=0-0")];
            assert_eq!(wanted_of(Method::GET, &given), expected, "{tags}");
        }
        let head = wanted_of(Method::HEAD, &[(IF_NONE_MATCH, TAG)]);
        assert_eq!(head, Wanted::Nothing);
    }
}
