//! The boxes that messages are made of.

use mp4_atom::Codec;

use super::*;

#[test]
fn each_message_is_whole_boxes() {
    let segment = encode(&params(64, 64, 25), 0, &[], &MOVING);
    assert_eq!(segment.moov().trak.len(), 2);
    assert_eq!(segment.moofs().len(), 1 + 4);
}

#[test]
fn init_segment_is_out_before_the_first_frame() {
    let mut media = Vec::new();
    let mut encoder = Encoder::open(&params(64, 64, 2)).unwrap();
    encoder.begin(7, &[], &mut |m| media.push(m)).unwrap();
    assert!(matches!(media.as_slice(), [Media::Init { .. }]));
}

#[test]
fn first_fragment_leaves_after_one_frame_and_the_others_at_their_length() {
    let segment = encode(&params(64, 64, 21), 0, &[], &MOVING);
    let grows: Vec<usize> = (1..=21)
        .filter(|&frames| {
            let before = if frames == 1 {
                1
            } else {
                segment.after_frame[frames - 2]
            };
            segment.after_frame[frames - 1] > before
        })
        .collect();
    assert_eq!(grows, [1, 7, 13, 19, 21]);
}

#[test]
fn all_is_out_with_the_last_frame() {
    for num_frames in [1, 2, 7, 12, 13] {
        let segment = encode(&params(64, 64, num_frames), 0, &[], &MOVING);
        assert_eq!(segment.after_frame.last(), Some(&segment.media.len()));
    }
}

#[test]
fn fragments_are_never_shorter_than_a_frame() {
    let mut params = params(64, 64, 3);
    params.spec.fragment = Duration::from_millis(1);
    let segment = encode(&params, 0, &[], &MOVING);
    assert_eq!(segment.fragments().count(), 3);
}

#[test]
fn later_fragments_carry_both_tracks() {
    let segment = encode(&params(64, 64, 121), 0, &[], &MOVING);
    for moof in &segment.moofs()[1..] {
        let tracks: Vec<u32> = moof.traf.iter().map(|traf| traf.tfhd.track_id).collect();
        assert_eq!(tracks, [1, 2]);
    }
}

#[test]
fn segment_has_one_idr_picture_and_no_reordering() {
    let segment = encode(&params(64, 64, 300), 0, &[], &MOVING);
    for entry in segment
        .moofs()
        .iter()
        .flat_map(|moof| &moof.traf)
        .flat_map(|traf| &traf.trun)
    {
        assert!(
            entry
                .samples
                .iter()
                .all(|sample| sample.cts.unwrap_or(0) == 0)
        );
    }
    let types = ffprobe(&segment.bytes(), "frame=key_frame,pict_type");
    let pictures: Vec<&str> = types
        .iter()
        .map(String::as_str)
        .filter(|t| t.ends_with(['I', 'P', 'B']))
        .collect();
    assert_eq!(pictures.len(), 300);
    assert_eq!(pictures[0], "1,I");
    assert!(pictures[1..].iter().all(|picture| *picture == "0,P"));
}

#[test]
fn mime_names_what_the_init_segment_holds() {
    for (width, height, fps) in [
        (64, 64, 24),
        (512, 768, 24),
        (1920, 1088, 60),
        (4096, 2176, 24),
    ] {
        let mut params = params(width, height, 1);
        params.format.fps = fps;
        let mut init = None;
        let mut encoder = Encoder::open(&params).unwrap();
        encoder
            .begin(0, &[], &mut |media| init = Some(media))
            .unwrap();
        let segment = Encoded {
            media: vec![init.unwrap()],
            after_frame: Vec::new(),
            tail: Vec::new(),
        };
        let moov = segment.moov();
        let Codec::Avc1(avc1) = &moov.trak[0].mdia.minf.stbl.stsd.codecs[0] else {
            panic!("the first track is not H.264");
        };
        let avcc = &avc1.avcc;
        let codec = format!(
            "avc1.{:02x}{:02x}{:02x}",
            avcc.avc_profile_indication, avcc.profile_compatibility, avcc.avc_level_indication
        );
        assert_eq!(
            segment.mime(),
            format!("video/mp4; codecs=\"{codec}, mp4a.40.2\"")
        );
        assert_eq!(
            (u32::from(avc1.visual.width), u32::from(avc1.visual.height)),
            (width, height)
        );
        let parameter_set = &avcc.sequence_parameter_sets[0];
        assert_eq!(parameter_set[3], avcc.avc_level_indication);
        assert_eq!(
            avcc.avc_level_indication,
            lowest_level(width, height, fps),
            "{width}x{height}"
        );
        assert!(matches!(
            moov.trak[1].mdia.minf.stbl.stsd.codecs[0],
            Codec::Mp4a(_)
        ));
    }
}

/// `level_idc` by table A-1 of H.264, from macroblocks per frame and per second.
fn lowest_level(width: u32, height: u32, fps: u32) -> u8 {
    let macroblocks = width.div_ceil(16) * height.div_ceil(16);
    let levels = [
        (10, 99, 1_485),
        (11, 396, 3_000),
        (12, 396, 6_000),
        (13, 396, 11_880),
        (20, 396, 11_880),
        (21, 792, 19_800),
        (22, 1_620, 20_250),
        (30, 1_620, 40_500),
        (31, 3_600, 108_000),
        (32, 5_120, 216_000),
        (40, 8_192, 245_760),
        (42, 8_704, 522_240),
        (50, 22_080, 589_824),
        (51, 36_864, 983_040),
        (52, 36_864, 2_073_600),
    ];
    let fits = levels
        .iter()
        .find(|(_, frame, second)| macroblocks <= *frame && macroblocks * fps <= *second);
    fits.unwrap().0
}

#[test]
fn silent_stream_has_one_track_and_says_so() {
    let mut params = params(64, 64, 8);
    params.audio = None;
    let segment = encode(&params, 0, &[], &MOVING);
    assert!(!segment.mime().contains("mp4a"));
    assert_eq!(segment.moov().trak.len(), 1);
    assert!(segment.tail.is_empty());
    assert_eq!(ffprobe(&segment.bytes(), "stream=codec_name"), ["h264"]);
}

#[test]
fn same_input_gives_the_same_bytes() {
    for (width, height) in [(64, 64), (1280, 1088)] {
        let params = params(width, height, 9);
        let before: Vec<f32> = (0..4096).map(|n| (n as f32 / 40.0).sin() * 0.3).collect();
        let first = encode(&params, 1234, &before, &MOVING);
        let second = encode(&params, 1234, &before, &MOVING);
        assert!(first.media == second.media);
    }
}

#[test]
fn jpeg_stream_is_one_picture_per_frame() {
    let mut params = params(66, 64, 3);
    params.mode = MediaMode::LegacyJpeg;
    let mut media = Vec::new();
    let mut encoder = Encoder::open(&params).unwrap();
    let mut out = |m| media.push(m);
    encoder.begin(5, &[], &mut out).unwrap();
    for index in 0..3 {
        let rgb = frame(&params, index, &MOVING);
        encoder
            .frame(&rgb, &sound(&params, 5, index, &MOVING), &mut out)
            .unwrap();
    }
    let tail = encoder.finish(&mut out).unwrap();
    assert_eq!(tail.len(), 2 * SOUND_TAIL_SAMPLES);
    assert_eq!(media.len(), 3);
    for (index, picture) in media.into_iter().enumerate() {
        let Media::Fragment { bytes } = picture else {
            panic!("an init segment for JPEG");
        };
        let decoded = image::load_from_memory(&bytes).unwrap().to_rgb8();
        assert_eq!(decoded.dimensions(), (66, 64));
        let source = frame(&params, index as u64, &MOVING);
        assert!(mean_error(decoded.as_raw(), &source) < 12.0);
    }
}

fn mean_error(a: &[u8], b: &[u8]) -> f64 {
    let sum: u64 = a
        .iter()
        .zip(b)
        .map(|(a, b)| u64::from(a.abs_diff(*b)))
        .sum();
    sum as f64 / a.len() as f64
}
