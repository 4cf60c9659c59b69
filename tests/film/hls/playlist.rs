//! Reads Media Playlists as strictly as RFC 8216 lets a client: what it does not know, or what breaks a rule, panics.

use std::collections::HashMap;

/// A Media Playlist.
#[derive(Clone, Debug)]
pub(crate) struct Playlist {
    pub(crate) target: u64,
    /// The Media Sequence Number of the first segment.
    pub(crate) sequence: u64,
    pub(crate) kind: Option<String>,
    pub(crate) has_ended: bool,
    pub(crate) segments: Vec<Media>,
    text: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Media {
    pub(crate) uri: String,
    /// In seconds.
    pub(crate) duration: f64,
    /// Length and offset.
    pub(crate) range: Option<(u64, u64)>,
    pub(crate) map: Option<Map>,
    is_gap: bool,
}

/// A Media Initialization Section.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Map {
    pub(crate) uri: String,
    /// Length and offset.
    pub(crate) range: (u64, u64),
}

/// What has been read of the next segment.
#[derive(Default)]
struct Next {
    duration: Option<f64>,
    range: Option<(u64, u64)>,
    is_gap: bool,
}

impl Playlist {
    pub(crate) fn parse(text: &str) -> Self {
        assert!(
            text.ends_with('\n') && !text.starts_with('\u{feff}'),
            "{text}"
        );
        let is_forbidden = |c: char| c.is_control() && !matches!(c, '\r' | '\n');
        assert!(!text.contains(is_forbidden), "{text}");
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("#EXTM3U"));
        // The tags of which there is one for the whole list.
        let mut once = HashMap::new();
        let mut segments: Vec<Media> = Vec::new();
        let mut next = Next::default();
        let mut map = None;
        for line in lines {
            let Some(tag) = line.strip_prefix("#EXT") else {
                assert!(!line.starts_with('#') && !line.is_empty(), "{line}");
                assert!(!line.contains(char::is_whitespace), "{line}");
                segments.push(Media {
                    uri: line.to_owned(),
                    duration: next.duration.expect("each segment has its EXTINF"),
                    range: next.range,
                    map: map.clone(),
                    is_gap: next.is_gap,
                });
                next = Next::default();
                continue;
            };
            let (name, value) = tag.split_once(':').unwrap_or((tag, ""));
            match name {
                "-X-VERSION" | "-X-TARGETDURATION" | "-X-MEDIA-SEQUENCE" => {
                    assert!(segments.is_empty(), "{line} behind a segment");
                    assert_eq!(once.insert(name, integer(value).to_string()), None);
                }
                "-X-PLAYLIST-TYPE" => {
                    assert!(matches!(value, "EVENT" | "VOD"), "{line}");
                    assert_eq!(once.insert(name, value.to_owned()), None);
                }
                "-X-INDEPENDENT-SEGMENTS" | "-X-ENDLIST" => {
                    assert!(!tag.contains(':'), "{line}");
                    assert_eq!(once.insert(name, String::new()), None);
                }
                "INF" => {
                    assert_eq!(next.duration, None, "{line}");
                    next.duration = Some(duration(value));
                }
                "-X-BYTERANGE" => {
                    assert_eq!(next.range, None, "{line}");
                    next.range = Some(range(value));
                }
                "-X-GAP" => {
                    assert!(!tag.contains(':') && !next.is_gap, "{line}");
                    next.is_gap = true;
                }
                "-X-MAP" => map = Some(Map::parse(value)),
                _ => panic!("a tag that no playlist here has: {line}"),
            }
        }
        assert!(
            next.duration.is_none() && next.range.is_none(),
            "tags without a segment"
        );
        let number = |name: &str| once.get(name).map(|value| integer(value));
        // Of EXT-X-MAP without EXT-X-I-FRAMES-ONLY; it includes the ones of EXTINF and EXT-X-BYTERANGE.
        assert!(number("-X-VERSION").is_some_and(|version| version >= 6));
        let list = Self {
            target: number("-X-TARGETDURATION").expect("the tag is required"),
            sequence: number("-X-MEDIA-SEQUENCE").unwrap_or(0),
            kind: once.get("-X-PLAYLIST-TYPE").cloned(),
            has_ended: once.contains_key("-X-ENDLIST"),
            segments,
            text: text.to_owned(),
        };
        for segment in &list.segments {
            let rounded = segment.duration.round();
            assert!(
                rounded <= list.target as f64,
                "{segment:?} in {}",
                list.target
            );
            assert!(segment.is_gap || segment.map.is_some(), "{segment:?}");
        }
        list
    }
}

impl Map {
    fn parse(attributes: &str) -> Self {
        let mut attributes = self::attributes(attributes);
        let uri = attributes.remove("URI").expect("the attribute is required");
        let given = attributes.remove("BYTERANGE");
        assert!(attributes.is_empty(), "{attributes:?}");
        Self {
            uri,
            range: range(&given.expect("it is a part of a file")),
        }
    }
}

/// Checks that a server may replace one list by the other.
pub(crate) fn check_update(before: &Playlist, after: &Playlist) {
    assert_eq!(before.target, after.target);
    assert_eq!(before.kind, after.kind);
    assert!(!before.has_ended || before.text == after.text);
    if before.kind.is_some() {
        assert!(
            after.text.starts_with(&before.text),
            "{}\n{}",
            before.text,
            after.text
        );
    }
    let gone = after
        .sequence
        .checked_sub(before.sequence)
        .expect("it only grows");
    let same = before.segments.iter().skip(usize::try_from(gone).unwrap());
    for (old, new) in same.zip(&after.segments) {
        assert_eq!(old, new, "another segment has the same number");
    }
    let end = |list: &Playlist| list.sequence + list.segments.len() as u64;
    assert!(end(before) <= end(after));
}

/// A decimal-integer.
fn integer(text: &str) -> u64 {
    assert!((1..=20).contains(&text.len()), "{text:?}");
    assert!(text.bytes().all(|digit| digit.is_ascii_digit()), "{text:?}");
    text.parse().unwrap()
}

/// The value of EXTINF: a decimal-floating-point, a comma and a title that may be empty.
fn duration(text: &str) -> f64 {
    let (seconds, _title) = text.split_once(',').expect("a comma follows the duration");
    let (whole, part) = seconds.split_once('.').unwrap_or((seconds, "0"));
    integer(whole);
    integer(part);
    seconds.parse().unwrap()
}

/// A length and an offset, which could be left out only where a part of the same file comes before.
fn range(text: &str) -> (u64, u64) {
    let (length, offset) = text.split_once('@').expect("the offset is given");
    let range = (integer(length), integer(offset));
    assert!(range.0 > 0, "{text}");
    range
}

/// An attribute-list whose values are quoted strings.
fn attributes(text: &str) -> HashMap<String, String> {
    let mut attributes = HashMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, value) = rest.split_once('=').expect("a name has a value");
        let is_name = |c| matches!(c, 'A'..='Z' | '0'..='9' | '-');
        assert!(!name.is_empty() && name.chars().all(is_name), "{name:?}");
        let value = value.strip_prefix('"').expect("a quoted string");
        let (value, behind) = value.split_once('"').expect("its end");
        let value = attributes.insert(name.to_owned(), value.to_owned());
        assert_eq!(value, None, "{name} twice");
        rest = match behind.strip_prefix(',') {
            Some(more) => more,
            None => {
                assert_eq!(behind, "");
                behind
            }
        };
    }
    attributes
}
