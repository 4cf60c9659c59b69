//! A film as an HLS playlist (RFC 8216 and its successor, draft-pantos-hls-rfc8216bis).
//!
//! A segment of the session is a Media Segment of the playlist: a byte range of the file that `film/{n}.mp4` serves. Its
//! init segment is another one. The timestamps go on from segment to segment, and so do the tracks, so there is no
//! `EXT-X-DISCONTINUITY`. A segment between others whose media are gone is an `EXT-X-GAP`, so that each segment keeps
//! its Media Sequence Number, which is its index.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::stored::StoredSegment;
use url::form_urlencoded::byte_serialize;

pub(super) const MIME: &str = "application/vnd.apple.mpegurl";

/// Where the bytes of a segment lie in its file.
struct Place {
    init: u64,
    fragments: u64,
}

/// Returns the playlist of a film of these segments, each of which usually lasts for `usual`; `None` when it has ended
/// and has nothing to play. A token makes its way into all that the playlist refers to.
pub(super) fn playlist(
    known: &[Arc<StoredSegment>],
    is_live: bool,
    usual: Duration,
    token: Option<&str>,
) -> Option<String> {
    let listed = listed(known);
    if listed.is_empty() && !is_live {
        return None;
    }
    let next = known.last().map_or(0, |last| last.segment_idx + 1);
    let first = listed.first().map_or(next, |first| first.segment_idx);
    let is_whole = first == 0 && listed.iter().all(|segment| place(segment).is_some());
    let longest = listed.iter().map(|segment| segment.duration).max();
    let longest = longest.unwrap_or_default().max(usual).as_secs_f64();

    let mut lines = vec![
        "#EXTM3U".to_owned(),
        "#EXT-X-VERSION:6".to_owned(),
        format!("#EXT-X-TARGETDURATION:{}", longest.ceil()),
        format!("#EXT-X-MEDIA-SEQUENCE:{first}"),
        "#EXT-X-INDEPENDENT-SEGMENTS".to_owned(),
    ];
    // What is listed once may never be missing in a list of this type.
    if is_whole {
        lines.push("#EXT-X-PLAYLIST-TYPE:EVENT".to_owned());
    }
    let query = token.map(|token| byte_serialize(token.as_bytes()).collect::<String>());
    let query = query.map_or(String::new(), |token| format!("?token={token}"));
    for segment in listed {
        let uri = format!("film/{}.mp4{query}", segment.segment_idx);
        let duration = format!("#EXTINF:{:.6},", segment.duration.as_secs_f64());
        match place(segment) {
            Some(Place { init, fragments }) => lines.extend([
                format!("#EXT-X-MAP:URI=\"{uri}\",BYTERANGE=\"{init}@0\""),
                duration,
                format!("#EXT-X-BYTERANGE:{fragments}@{init}"),
            ]),
            None => lines.extend(["#EXT-X-GAP".to_owned(), duration]),
        }
        lines.push(uri);
    }
    if !is_live {
        lines.push("#EXT-X-ENDLIST".to_owned());
    }
    lines.push(String::new());
    Some(lines.join("\n"))
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

/// Returns where the bytes of a segment are; `None` when its media are not kept, or are no video.
fn place(segment: &StoredSegment) -> Option<Place> {
    let media = segment.media.as_ref().filter(|_| !segment.is_pictures())?;
    let (init, fragments) = media.messages.split_first()?;
    let fragments = fragments.iter().copied().map(u64::from).sum();
    (fragments > 0).then_some(Place {
        init: (*init).into(),
        fragments,
    })
}
