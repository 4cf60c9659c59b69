//! What is said of films with holes, and of films that grow.

use std::iter;
use std::sync::Arc;
use std::time::Duration;

use fastvideo_mp4::{Message, SegmentIndex};
use fastvideo_proto::api::film::PlaylistQuery;
use fastvideo_proto::job::PromptSource;
use fastvideo_proto::stored::{JPEG, StoredMedia, StoredSegment};

use super::growth::{Awaited, LiveEnd};
use super::parts::{InitSegment, Parts};
use super::playlist::Listing;
use crate::http::file::whole::missing;
use crate::segment_run::AttemptId;

const USUAL: Duration = Duration::from_millis(1500);
const PART: Duration = Duration::from_millis(250);

/// A segment of 110 bytes.
fn segment(segment_idx: u32, is_kept: bool) -> Arc<StoredSegment> {
    let index = serde_json::json!({"size": 110, "tracks": []});
    let index: SegmentIndex = serde_json::from_value(index).unwrap();
    let media = StoredMedia {
        blob: [1; 32],
        messages: vec![10, 60, 40],
        thumbnail_bytes: 5,
        samples: Some(index),
    };
    Arc::new(StoredSegment {
        segment_idx,
        attempt: 1,
        request_id: None,
        prompt: "a fox".to_owned(),
        original_prompt: None,
        source: PromptSource::User,
        seed: 1,
        num_inference_steps: 1,
        guidance_scale: 1.0,
        start: USUAL * segment_idx,
        duration: USUAL,
        generation: USUAL,
        mime: "video/mp4".to_owned(),
        sha256: [2; 32],
        bytes: 110,
        media: is_kept.then_some(media),
    })
}

/// Segments from `first` on, and whether each is kept.
fn film(first: u32, kept: &[bool]) -> Vec<Arc<StoredSegment>> {
    let segments = (first..).zip(kept);
    segments.map(|(idx, kept)| segment(idx, *kept)).collect()
}

#[test]
fn the_segments_that_a_file_lacks_are_named() {
    for (first, kept, expected) in [
        (0, &[] as &[bool], None),
        (0, &[true, true], None),
        (0, &[false], Some("0")),
        (0, &[false, true, true, false], Some("0,3")),
        (
            0,
            &[false, false, true, false, false, false],
            Some("0-1,3-5"),
        ),
        (7, &[true], Some("0-6")),
        (2, &[false, true], Some("0-2")),
    ] {
        let missing = missing(&film(first, kept));
        let missing = missing.as_ref().map(|list| list.to_str().unwrap());
        assert_eq!(missing, expected, "{first} {kept:?}");
    }
}

/// The playlist of a film whose session does not run here.
fn playlist(known: &[Arc<StoredSegment>], is_over: bool, token: Option<&str>) -> Option<String> {
    Listing {
        known,
        is_over,
        usual: USUAL,
        part: PART,
        live_end: None,
        token,
    }
    .playlist()
}

#[test]
fn a_playlist_lists_what_can_be_played() {
    let list = |known: &[_]| playlist(known, true, None).unwrap();
    let whole = list(&film(0, &[true]));
    assert_eq!(
        whole,
        "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n\
         #EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-PLAYLIST-TYPE:EVENT\n\
         #EXT-X-MAP:URI=\"film/0/1-0.m4s\",BYTERANGE=\"10@0\"\n#EXTINF:1.500000,\n#EXT-X-BYTERANGE:100@10\n\
         film/0.mp4\n#EXT-X-ENDLIST\n"
    );
    let holes = list(&film(3, &[false, true, false, true, false]));
    assert_eq!(
        holes,
        "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:4\n\
         #EXT-X-INDEPENDENT-SEGMENTS\n\
         #EXT-X-MAP:URI=\"film/4/1-0.m4s\",BYTERANGE=\"10@0\"\n#EXTINF:1.500000,\n#EXT-X-BYTERANGE:100@10\n\
         film/4.mp4\n#EXT-X-GAP\n#EXTINF:1.500000,\nfilm/5.mp4\n\
         #EXTINF:1.500000,\n#EXT-X-BYTERANGE:100@10\nfilm/6.mp4\n#EXT-X-ENDLIST\n"
    );
}

#[test]
fn a_playlist_without_segments_is_one_only_while_it_may_grow() {
    let mut pictures = film(0, &[true]);
    Arc::make_mut(&mut pictures[0]).mime = JPEG.to_owned();
    for (known, next) in [(film(0, &[]), 0), (film(3, &[false]), 4), (pictures, 1)] {
        assert_eq!(playlist(&known, true, None), None);
        let live = playlist(&known, false, None).unwrap();
        let sequence = format!("#EXT-X-MEDIA-SEQUENCE:{next}\n");
        assert!(live.contains(&sequence), "{live}");
        assert!(
            !live.contains("ENDLIST") && !live.contains("EXTINF"),
            "{live}"
        );
    }
}

#[test]
fn a_token_cannot_break_out_of_a_playlist() {
    let known = film(0, &[true]);
    let text = playlist(&known, false, Some("a\"\n#,&b")).unwrap();
    let query = "?token=a%22%0A%23%2C%26b";
    assert_eq!(text.matches(query).count(), 2, "{text}");
    assert_eq!(text.lines().count(), 11, "{text}");
}

/// The parts of a segment: the init segment, and fragments of so many milliseconds.
fn parts(segment_idx: u32, milliseconds: &[u64]) -> Parts {
    let fragments = milliseconds.iter().enumerate();
    let fragments = fragments.map(|(n, duration)| Message {
        duration: Duration::from_millis(*duration),
        is_independent: n == 0,
    });
    Parts {
        at: AttemptId {
            segment_idx,
            attempt: 2,
        },
        init: InitSegment {
            bytes: 12,
            form: None,
        },
        messages: iter::once(Message::default()).chain(fragments).collect(),
    }
}

#[test]
fn a_playlist_that_grows_here_ends_with_the_parts_of_the_next_segment() {
    let known = film(0, &[true; 5]);
    let live_end = LiveEnd {
        parts: Some(parts(5, &[40, 250])),
        void_idx: None,
    };
    let listing = Listing {
        known: &known,
        is_over: false,
        usual: USUAL,
        part: PART,
        live_end: Some(&live_end),
        token: Some("t"),
    };
    let text = listing.playlist().unwrap();
    let head = "#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=0.750000\n\
                #EXT-X-PART-INF:PART-TARGET=0.250000\n";
    assert!(text.contains(head), "{text}");
    let end = "film/4.mp4?token=t\n\
               #EXT-X-MAP:URI=\"film/5/2-0.m4s?token=t\",BYTERANGE=\"12@0\"\n\
               #EXT-X-PART:DURATION=0.040000,URI=\"film/5/2-1.m4s?token=t\",INDEPENDENT=YES\n\
               #EXT-X-PART:DURATION=0.250000,URI=\"film/5/2-2.m4s?token=t\"\n\
               #EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"film/5/2-3.m4s?token=t\"\n";
    assert!(text.ends_with(end), "{text}");
    // The last finished segment is in parts too, unless it was restarted.
    let in_parts = |n: usize| text.contains(&format!("URI=\"film/{n}/1-1.m4s?token=t\""));
    assert_eq!(
        [0, 1, 2, 3, 4].map(in_parts),
        [false, false, false, false, true]
    );

    let restarted = LiveEnd {
        parts: None,
        void_idx: Some(4),
    };
    let nothing = Listing {
        live_end: Some(&restarted),
        ..listing
    };
    let text = nothing.playlist().unwrap();
    assert!(
        text.contains(head) && text.ends_with("film/4.mp4?token=t\n# more follows\n"),
        "{text}"
    );
    assert!(!text.contains("EXT-X-PART:"), "{text}");
}

#[test]
fn a_request_waits_until_what_it_names_is_there() {
    let query = |hls_msn, hls_part| PlaylistQuery { hls_msn, hls_part };
    assert_eq!(Awaited::read(query(None, None)).unwrap(), None);
    assert!(Awaited::read(query(None, Some(0))).is_err());
    // Segments 0 to 2 are finished, the last one in 3 parts, and 2 parts of segment 3 are there.
    let (last, live) = (parts(2, &[40, 250, 250]), parts(3, &[40, 250]));
    for (segment, part, expected) in [
        (2, None, true),
        (3, None, false),
        (0, Some(9), true),
        (2, Some(2), true),
        (2, Some(3), true),
        (3, Some(1), true),
        (3, Some(2), false),
        (4, Some(0), false),
    ] {
        let awaited = Awaited::read(query(Some(segment), part)).unwrap().unwrap();
        let reached = awaited.is_reached(3, Some(&last), Some(&live));
        assert_eq!(reached, expected, "{segment} {part:?}");
    }
    // Behind the last part of a segment comes the first one of the next.
    let awaited = Awaited::read(query(Some(2), Some(3))).unwrap().unwrap();
    assert!(!awaited.is_reached(3, Some(&last), None));
    let awaited = Awaited::read(query(Some(0), Some(0))).unwrap().unwrap();
    assert!(!awaited.is_reached(0, None, None));
    assert!(awaited.is_reached(0, None, Some(&parts(0, &[40]))));
}
