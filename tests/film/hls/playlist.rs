//! Reads Media Playlists as strictly as RFC 8216 and its successor (with Partial Segments) let a client: what it does not
//! know, or what breaks a rule, panics.

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
    /// The Part Target Duration in seconds; `None` when there are no Partial Segments.
    pub(crate) part_target: Option<f64>,
    pub(crate) can_block: bool,
    /// The parts behind the last segment.
    pub(crate) parts: Vec<Part>,
    /// The URI of the next part.
    pub(crate) hint: Option<String>,
    text: String,
}

/// A Partial Segment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) uri: String,
    /// In seconds.
    pub(crate) duration: f64,
    pub(crate) is_independent: bool,
    pub(crate) map: Map,
}

/// A Media Initialization Section.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Map {
    pub(crate) uri: String,
    /// Length and offset.
    pub(crate) range: (u64, u64),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Media {
    pub(crate) uri: String,
    /// In seconds.
    pub(crate) duration: f64,
    /// Length and offset.
    pub(crate) range: Option<(u64, u64)>,
    pub(crate) map: Option<Map>,
    pub(crate) parts: Vec<Part>,
    is_gap: bool,
}

/// What has been read of the next segment.
#[derive(Default)]
struct Next {
    duration: Option<f64>,
    range: Option<(u64, u64)>,
    parts: Vec<Part>,
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
        let mut hint = None;
        for line in lines {
            if line.starts_with('#') && !line.starts_with("#EXT") {
                continue;
            }
            let Some(tag) = line.strip_prefix("#EXT") else {
                assert_eq!(hint, None, "a hint is of what follows the list");
                assert!(!line.starts_with('#') && !line.is_empty(), "{line}");
                assert!(!line.contains(char::is_whitespace), "{line}");
                segments.push(Media {
                    uri: line.to_owned(),
                    duration: next.duration.expect("each segment has its EXTINF"),
                    range: next.range,
                    map: map.clone(),
                    parts: next.parts,
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
                "-X-MAP" => {
                    assert!(next.parts.is_empty(), "{line} between parts of one segment");
                    map = Some(Map::parse(value));
                }
                "-X-SERVER-CONTROL" => {
                    assert!(segments.is_empty(), "{line} behind a segment");
                    let [block, hold_back] =
                        attributes(value, ["CAN-BLOCK-RELOAD", "PART-HOLD-BACK"]);
                    assert_eq!(block.as_deref(), Some("YES"));
                    let hold_back = hold_back.expect("required with Partial Segments");
                    assert_eq!(once.insert(name, hold_back), None);
                }
                "-X-PART-INF" => {
                    assert!(segments.is_empty(), "{line} behind a segment");
                    let [target] = attributes(value, ["PART-TARGET"]);
                    assert_eq!(once.insert(name, target.unwrap()), None);
                }
                "-X-PART" => {
                    assert!(once.contains_key("-X-PART-INF"), "{line}");
                    assert!(next.duration.is_none() && next.range.is_none(), "{line}");
                    assert!(!next.is_gap && hint.is_none(), "{line}");
                    next.parts.push(Part::parse(value, map.as_ref()));
                }
                "-X-PRELOAD-HINT" => {
                    assert!(once.contains_key("-X-PART-INF"), "{line}");
                    let [kind, uri] = attributes(value, ["TYPE", "URI"]);
                    assert_eq!((kind.as_deref(), &hint), (Some("PART"), &None));
                    hint = Some(quoted(&uri.expect("the attribute is required")));
                }
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
            part_target: once.get("-X-PART-INF").map(|target| decimal(target)),
            can_block: once.contains_key("-X-SERVER-CONTROL"),
            parts: next.parts,
            hint,
            text: text.to_owned(),
        };
        // hls.js 1.7 takes a segment in the last line for one that is not finished.
        let last = text.lines().last().unwrap_or_default();
        assert!(last.starts_with('#'), "{text}");
        list.check_parts(once.get("-X-SERVER-CONTROL").map(|given| decimal(given)));
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

impl Playlist {
    /// Checks the durations of the parts, and how far behind the end a player has to begin that plays them.
    fn check_parts(&self, hold_back: Option<f64>) {
        let Some(target) = self.part_target else {
            assert!(hold_back.is_none());
            return;
        };
        assert!(hold_back.is_some_and(|hold_back| hold_back >= 3.0 * target));
        assert!(!self.has_ended || self.hint.is_none());
        let in_parts = self.segments.iter().rev().skip(1);
        for segment in in_parts {
            assert!(segment.parts.is_empty(), "older than the last: {segment:?}");
        }
        for (parts, is_whole) in (self.segments.iter().map(|segment| (&segment.parts, true)))
            .chain([(&self.parts, false)])
        {
            for (n, part) in parts.iter().enumerate() {
                assert!(part.duration > 0.0 && part.duration <= target, "{part:?}");
                let is_last = is_whole && n + 1 == parts.len();
                let may_be_short = part.is_independent || is_last || !is_whole;
                assert!(may_be_short || part.duration >= 0.85 * target, "{part:?}");
                assert_eq!(part.is_independent, n == 0, "{part:?}");
            }
        }
        for segment in self
            .segments
            .iter()
            .filter(|segment| !segment.parts.is_empty())
        {
            let sum: f64 = segment.parts.iter().map(|part| part.duration).sum();
            assert!((sum - segment.duration).abs() < 1e-4, "{segment:?}");
        }
    }

    /// The Media Sequence Number behind the last segment.
    pub(crate) fn next(&self) -> u64 {
        self.sequence + self.segments.len() as u64
    }
}

impl Map {
    fn parse(given: &str) -> Self {
        let [uri, bytes] = attributes(given, ["URI", "BYTERANGE"]);
        Self {
            uri: quoted(&uri.expect("the attribute is required")),
            range: range(&quoted(&bytes.expect("FFmpeg needs it"))),
        }
    }
}

impl Part {
    fn parse(given: &str, map: Option<&Map>) -> Self {
        let [duration, uri, independent] = attributes(given, ["DURATION", "URI", "INDEPENDENT"]);
        if let Some(independent) = &independent {
            assert_eq!(independent, "YES");
        }
        Self {
            uri: quoted(&uri.expect("the attribute is required")),
            duration: decimal(&duration.expect("the attribute is required")),
            is_independent: independent.is_some(),
            map: map.expect("fragmented MP4 has an init segment").clone(),
        }
    }
}

/// Checks that a server may replace one list by the other.
pub(crate) fn check_update(before: &Playlist, after: &Playlist) {
    assert_eq!(before.target, after.target);
    assert_eq!(before.kind, after.kind);
    assert!(!before.has_ended || before.text == after.text);
    if before.kind.is_some() {
        assert_eq!(before.sequence, after.sequence, "nothing goes");
    }
    let gone = after
        .sequence
        .checked_sub(before.sequence)
        .expect("it only grows");
    let same = before.segments.iter().skip(usize::try_from(gone).unwrap());
    for (old, new) in same.zip(&after.segments) {
        // The init segment may be named anew where the one before has gone.
        let map = |segment: &Media| segment.map.clone().filter(|_| gone == 0);
        let whole = |segment: &Media| Media {
            parts: Vec::new(),
            map: map(segment),
            ..segment.clone()
        };
        assert_eq!(
            whole(old),
            whole(new),
            "another segment has the same number"
        );
        // Those of older segments may go.
        if !new.parts.is_empty() && gone == 0 {
            assert_eq!(old.parts, new.parts);
        }
    }
    assert!(before.next() <= after.next());
    let later = after
        .segments
        .get(usize::try_from(before.next() - after.sequence).unwrap());
    let parts = later.map_or(&after.parts, |segment| &segment.parts);
    assert!(
        parts.starts_with(&before.parts),
        "{}\n{}",
        before.text,
        after.text
    );
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
    decimal(seconds)
}

/// A decimal-floating-point.
fn decimal(text: &str) -> f64 {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    integer(whole);
    integer(part);
    text.parse().unwrap()
}

/// A quoted-string.
fn quoted(text: &str) -> String {
    let inner = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    inner
        .unwrap_or_else(|| panic!("{text} is in no quotes"))
        .to_owned()
}

/// A length and an offset, which could be left out only where a part of the same file comes before.
fn range(text: &str) -> (u64, u64) {
    let (length, offset) = text.split_once('@').expect("the offset is given");
    let range = (integer(length), integer(offset));
    assert!(range.0 > 0, "{text}");
    range
}

/// An attribute-list, of which these are known. Returns their values in that order.
fn attributes<const N: usize>(text: &str, known: [&str; N]) -> [Option<String>; N] {
    let mut values = [const { None }; N];
    let mut rest = text;
    while !rest.is_empty() {
        let (name, value) = rest.split_once('=').expect("a name has a value");
        let end = match value.strip_prefix('"') {
            Some(inner) => inner.find('"').expect("its end") + 2,
            None => value.find(',').unwrap_or(value.len()),
        };
        let (value, behind) = value.split_at(end);
        let place = known.iter().position(|known| *known == name);
        let place = place.unwrap_or_else(|| panic!("an unknown attribute: {name:?}"));
        assert_eq!(
            values[place].replace(value.to_owned()),
            None,
            "{name} twice"
        );
        rest = match behind.strip_prefix(',') {
            Some(more) => more,
            None => {
                assert_eq!(behind, "");
                behind
            }
        };
    }
    values
}
