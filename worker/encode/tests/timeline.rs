//! The places of pictures and sound on the time line of the session.

use super::*;

const HOURS: u64 = 24 * 3600 * 30;

fn check(params: &EncodeParams, start_frame: u64) {
    let segment = encode(params, start_frame, &[], &MOVING);
    let VideoFormat {
        num_frames, fps, ..
    } = params.format;
    let moov = segment.moov();
    let scale = u64::from(moov.trak[0].mdia.mdhd.timescale);
    let ticks = scale / u64::from(fps);
    assert_eq!(ticks * u64::from(fps), scale);

    let pictures = segment.samples(1);
    let expected: Vec<(u64, u64)> = (0..u64::from(num_frames))
        .map(|index| ((start_frame + index) * ticks, ticks))
        .collect();
    assert_eq!(pictures, expected);

    let audio = params.audio.unwrap();
    assert_eq!(moov.trak[1].mdia.mdhd.timescale, audio.sample_rate);
    let start = audio.sample_at(start_frame, fps);
    let end = audio.sample_at(start_frame + u64::from(num_frames), fps);
    let expected: Vec<(u64, u64)> = (start.next_multiple_of(1024)..end)
        .step_by(1024)
        .map(|place| (place, 1024))
        .collect();
    assert_eq!(segment.samples(2), expected);
    if let Some((place, duration)) = expected.last() {
        assert!(place + duration >= end);
    }
}

#[test]
fn pictures_and_sound_lie_at_their_places() {
    for start_frame in [0, 1, 121, 24 * 3600, HOURS] {
        check(&params(64, 64, 30), start_frame);
    }
}

#[test]
fn places_hold_at_any_frame_rate_and_sample_rate() {
    for (fps, sample_rate, channels) in [
        (1, 24_000, 2),
        (7, 22_050, 1),
        (24, 44_100, 2),
        (25, 48_000, 1),
        (30, 16_000, 2),
        (120, 48_000, 2),
    ] {
        for num_frames in [1, 2, 31] {
            let mut params = params(64, 64, num_frames);
            params.format.fps = fps;
            params.audio = Some(AudioFormat {
                sample_rate,
                channels,
            });
            for start_frame in [0, 77, HOURS + 1] {
                check(&params, start_frame);
            }
        }
    }
}

#[test]
fn shorter_segment_than_asked_for_ends_at_its_last_frame() {
    let params = params(64, 64, 121);
    let mut media = Vec::new();
    let mut encoder = Encoder::open(&params).unwrap();
    let mut out = |m| media.push(m);
    encoder.begin(0, &[], &mut out).unwrap();
    for index in 0..10 {
        let rgb = frame(&params, index, &MOVING);
        encoder
            .frame(&rgb, &sound(&params, 0, index, &MOVING), &mut out)
            .unwrap();
    }
    let tail = encoder.finish(&mut out).unwrap();
    let segment = Encoded {
        media,
        after_frame: Vec::new(),
        tail,
    };
    assert_eq!(segment.samples(1).len(), 10);
    assert_eq!(segment.samples(2).len(), 10);
}

#[test]
fn hundred_segments_play_as_one_file() {
    let segments = encode_session(&params(64, 64, 25), 100, &MOVING);
    let all = concatenated(&segments);
    run("ffmpeg", &["-i"], &all, &["-f", "null", "-"]);

    let packets = ffprobe(&all, "packet=codec_type,dts,duration");
    for (kind, count) in [
        ("video", 2500),
        ("audio", (100 * 25_000_u32).div_ceil(1024)),
    ] {
        let mut next = 0;
        let mut seen = 0;
        for packet in packets.iter().filter_map(|line| line.strip_prefix(kind)) {
            let mut fields = packet.trim_start_matches(',').split(',');
            let mut field = || fields.next().unwrap().parse::<u64>().unwrap();
            let (dts, duration) = (field(), field());
            assert_eq!(dts, next, "{kind} packet {seen}");
            next = dts + duration;
            seen += 1;
        }
        assert_eq!(seen, count, "{kind} packets");
    }
    let seconds: Vec<f64> = ffprobe(&all, "format=duration")
        .iter()
        .map(|s| s.parse().unwrap())
        .collect();
    assert!((seconds[0] - 2500.0 / 24.0).abs() < 0.05, "{seconds:?}");
}
