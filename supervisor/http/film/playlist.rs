//! A film as an HLS playlist (RFC 8216 and its successor, draft-pantos-hls-rfc8216bis).
//!
//! A segment of the session is a Media Segment of the playlist: a byte range of the file that `film/{n}.mp4` serves. Its
//! init segment is a file of its own, which is named only where it says something else than the one before. The timestamps go on from segment to segment, and so do the tracks, so there is no
//! `EXT-X-DISCONTINUITY`. A segment between others whose media are gone is an `EXT-X-GAP`, so that each segment keeps
//! its Media Sequence Number, which is its index.
//!
//! While the session runs here, the segment that is being made is listed in parts (low-latency HLS), each of which is a
//! fragment; so is the last one that is finished, since players may be in the middle of it. hls.js loads older parts
//! again and again.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::stored::StoredSegment;
use url::form_urlencoded::byte_serialize;

use super::growth::LiveEnd;
use super::parts::{InitSegment, PartName, Parts, attempt};
use crate::segment_run::AttemptId;

pub(super) const MIME: &str = "application/vnd.apple.mpegurl";

/// The last line of a list that grows, where it has no hint. hls.js 1.7 takes a segment in the last line for one that is
/// not finished.
const MORE_FOLLOWS: &str = "# more follows";
/// How long a request waits for more of the film, in target durations.
const PATIENCE: u32 = 3;
/// How far before the list's end a player begins that plays parts, in the longest that a part can be.
const PART_HOLD_BACK: f64 = 3.0;

/// What a playlist is made of.
#[derive(Debug)]
pub(super) struct Listing<'a> {
    /// What is known of the film's segments.
    pub(super) known: &'a [Arc<StoredSegment>],
    /// Whether nothing more is expected.
    pub(super) is_over: bool,
    /// How long a segment usually is.
    pub(super) usual: Duration,
    /// How long a part is at most.
    pub(super) part: Duration,
    /// Present when the film grows on this server.
    pub(super) live_end: Option<&'a LiveEnd>,
    /// Makes its way into all that the playlist refers to.
    pub(super) token: Option<&'a str>,
}

/// Where the fragments of a segment lie in its file.
struct Place {
    start: u64,
    bytes: u64,
}

impl Listing<'_> {
    /// Returns the playlist; `None` when the film has ended and has nothing to play.
    pub(super) fn playlist(&self) -> Option<String> {
        let listed = listed(self.known);
        if listed.is_empty() && self.is_over {
            return None;
        }
        let next = self.known.last().map_or(0, |last| last.segment_idx + 1);
        let first = listed.first().map_or(next, |first| first.segment_idx);
        let is_whole = first == 0 && listed.iter().all(|segment| place(segment).is_some());
        let mut lines = vec![
            "#EXTM3U".to_owned(),
            "#EXT-X-VERSION:6".to_owned(),
            format!("#EXT-X-TARGETDURATION:{}", self.target().as_secs()),
            format!("#EXT-X-MEDIA-SEQUENCE:{first}"),
            "#EXT-X-INDEPENDENT-SEGMENTS".to_owned(),
        ];
        // What is listed once may never be missing in a list of this type.
        if is_whole {
            lines.push("#EXT-X-PLAYLIST-TYPE:EVENT".to_owned());
        }
        if self.live_end.is_some() {
            let part = self.part.as_secs_f64();
            let hold_back = part * PART_HOLD_BACK;
            lines.extend([
                format!("#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK={hold_back:.6}"),
                format!("#EXT-X-PART-INF:PART-TARGET={part:.6}"),
            ]);
        }
        let mut init = None;
        for (n, segment) in listed.iter().enumerate() {
            let is_last = n + 1 == listed.len();
            self.segment(segment, is_last, &mut init, &mut lines);
        }
        let growing = self.live_end.and_then(|end| end.parts.as_ref());
        if let Some(parts) = growing {
            self.parts(parts, &mut init, &mut lines);
            let hinted = PartName {
                at: parts.at,
                message: parts.messages.len(),
            };
            let uri = self.uri(&hinted.path());
            lines.push(format!("#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"{uri}\""));
        }
        if self.is_over {
            lines.push("#EXT-X-ENDLIST".to_owned());
        } else if growing.is_none() {
            lines.push(MORE_FOLLOWS.to_owned());
        }
        lines.push(String::new());
        Some(lines.join("\n"))
    }

    /// Returns the target duration, which is a whole number of seconds.
    pub(super) fn target(&self) -> Duration {
        let segments = listed(self.known).iter();
        let longest = segments.map(|segment| segment.duration).max();
        let longest = longest.unwrap_or_default().max(self.usual);
        Duration::from_secs(longest.as_secs() + u64::from(longest.subsec_nanos() > 0))
    }

    /// Returns how long a request waits for more of the film.
    pub(super) fn patience(&self) -> Duration {
        self.target() * PATIENCE
    }

    /// Adds a finished segment. `init` is the init segment that was named last.
    fn segment(
        &self,
        segment: &StoredSegment,
        is_last: bool,
        init: &mut Option<InitSegment>,
        lines: &mut Vec<String>,
    ) {
        let uri = self.uri(&format!("film/{}.mp4", segment.segment_idx));
        let duration = format!("#EXTINF:{:.6},", segment.duration.as_secs_f64());
        match (place(segment), InitSegment::of_stored(segment)) {
            (Some(Place { start, bytes }), Some(own)) => {
                let is_void = |end: &LiveEnd| end.void_idx == Some(segment.segment_idx);
                let in_parts = self.live_end.is_some_and(|end| is_last && !is_void(end));
                match Parts::of_stored(segment).filter(|_| in_parts) {
                    Some(parts) => self.parts(&parts, init, lines),
                    None => self.map(attempt(segment), own, init, lines),
                }
                lines.extend([duration, format!("#EXT-X-BYTERANGE:{bytes}@{start}")]);
            }
            _ => lines.extend(["#EXT-X-GAP".to_owned(), duration]),
        }
        lines.push(uri);
    }

    /// Adds the parts of a segment, after its init segment.
    fn parts(&self, parts: &Parts, init: &mut Option<InitSegment>, lines: &mut Vec<String>) {
        self.map(parts.at, parts.init.clone(), init, lines);
        for (message, plays) in parts.iter() {
            let name = PartName {
                at: parts.at,
                message,
            };
            let duration = plays.duration.as_secs_f64();
            let uri = self.uri(&name.path());
            let independent = match plays.is_independent {
                true => ",INDEPENDENT=YES",
                false => "",
            };
            lines.push(format!(
                "#EXT-X-PART:DURATION={duration:.6},URI=\"{uri}\"{independent}"
            ));
        }
    }

    /// Names the init segment of a segment, unless the one that was named last says the same. FFmpeg 5.1 takes the range
    /// of the bytes that it has loaded before for that of a file that is named without one.
    fn map(
        &self,
        at: AttemptId,
        own: InitSegment,
        named: &mut Option<InitSegment>,
        lines: &mut Vec<String>,
    ) {
        if named.as_ref().is_some_and(|named| own.is_like(named)) {
            return;
        }
        let name = PartName { at, message: 0 };
        let (uri, bytes) = (self.uri(&name.path()), own.bytes);
        lines.push(format!("#EXT-X-MAP:URI=\"{uri}\",BYTERANGE=\"{bytes}@0\""));
        *named = Some(own);
    }

    fn uri(&self, path: &str) -> String {
        match self.token {
            Some(token) => {
                let token: String = byte_serialize(token.as_bytes()).collect();
                format!("{path}?token={token}")
            }
            None => path.to_owned(),
        }
    }
}

/// Returns the segments from the first to the last that can be played.
fn listed(known: &[Arc<StoredSegment>]) -> &[Arc<StoredSegment>] {
    let is_playable = |segment: &Arc<StoredSegment>| place(segment).is_some();
    match (
        known.iter().position(is_playable),
        known.iter().rposition(is_playable),
    ) {
        (Some(first), Some(last)) => &known[first..=last],
        _ => &[],
    }
}

/// Returns where the fragments of a segment are; `None` when its media are not kept, or are no video.
fn place(segment: &StoredSegment) -> Option<Place> {
    let media = segment.media.as_ref().filter(|_| !segment.is_pictures())?;
    let (init, fragments) = media.messages.split_first()?;
    let fragments = fragments.iter().copied().map(u64::from).sum();
    (fragments > 0).then_some(Place {
        start: (*init).into(),
        bytes: fragments,
    })
}
