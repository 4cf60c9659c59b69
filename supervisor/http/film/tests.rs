//! What is said of films with holes.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_mp4::SegmentIndex;
use fastvideo_proto::job::PromptSource;
use fastvideo_proto::stored::{JPEG, StoredMedia, StoredSegment};

use super::playlist::playlist;
use super::whole::missing;

const USUAL: Duration = Duration::from_millis(1500);

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

#[test]
fn a_playlist_lists_what_can_be_played() {
    let list = |known: &[_]| playlist(known, false, USUAL, None).unwrap();
    let whole = list(&film(0, &[true]));
    assert_eq!(
        whole,
        "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n\
         #EXT-X-INDEPENDENT-SEGMENTS\n#EXT-X-PLAYLIST-TYPE:EVENT\n\
         #EXT-X-MAP:URI=\"film/0.mp4\",BYTERANGE=\"10@0\"\n#EXTINF:1.500000,\n#EXT-X-BYTERANGE:100@10\n\
         film/0.mp4\n#EXT-X-ENDLIST\n"
    );
    let holes = list(&film(3, &[false, true, false, true, false]));
    assert_eq!(
        holes,
        "#EXTM3U\n#EXT-X-VERSION:6\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:4\n\
         #EXT-X-INDEPENDENT-SEGMENTS\n\
         #EXT-X-MAP:URI=\"film/4.mp4\",BYTERANGE=\"10@0\"\n#EXTINF:1.500000,\n#EXT-X-BYTERANGE:100@10\n\
         film/4.mp4\n#EXT-X-GAP\n#EXTINF:1.500000,\nfilm/5.mp4\n\
         #EXT-X-MAP:URI=\"film/6.mp4\",BYTERANGE=\"10@0\"\n#EXTINF:1.500000,\n#EXT-X-BYTERANGE:100@10\n\
         film/6.mp4\n#EXT-X-ENDLIST\n"
    );
}

#[test]
fn a_playlist_without_segments_is_one_only_while_it_may_grow() {
    let mut pictures = film(0, &[true]);
    Arc::make_mut(&mut pictures[0]).mime = JPEG.to_owned();
    for (known, next) in [(film(0, &[]), 0), (film(3, &[false]), 4), (pictures, 1)] {
        assert_eq!(playlist(&known, false, USUAL, None), None);
        let live = playlist(&known, true, USUAL, None).unwrap();
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
    let text = playlist(&known, true, USUAL, Some("a\"\n#,&b")).unwrap();
    let uri = "film/0.mp4?token=a%22%0A%23%2C%26b";
    assert_eq!(text.matches(uri).count(), 2, "{text}");
    assert_eq!(text.lines().count(), 10, "{text}");
}
