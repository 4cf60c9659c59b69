//! The sound after decoding, above all at the seam between two segments.

use super::*;

fn check_tone(params: &EncodeParams) {
    let audio = params.audio.unwrap();
    let segments = encode_session(params, 3, &MOVING);
    let heard = decode_sound(&concatenated(&segments), audio.channels);
    let frames = u64::from(params.format.num_frames);
    let end = audio.sample_at(3 * frames, params.format.fps);
    assert!(heard.len() as u64 >= end);
    // The decoder starts from nothing: the first block fades in.
    let mut worst: f32 = 0.0;
    for place in 1024..end {
        let sample = heard[usize::try_from(place).unwrap()];
        worst = worst.max((sample - (MOVING.sound)(place, audio.sample_rate)).abs());
    }
    assert!(worst < 0.05, "{params:?}: off by {worst}");
}

#[test]
fn tone_goes_on_through_seams_without_a_click() {
    for num_frames in [25, 48, 121] {
        check_tone(&params(64, 64, num_frames));
    }
}

#[test]
fn tone_goes_on_at_other_rates() {
    for (fps, sample_rate, channels) in [(24, 48_000, 1), (25, 44_100, 2), (30, 24_000, 1)] {
        let mut params = params(64, 64, 40);
        params.format.fps = fps;
        params.audio = Some(AudioFormat {
            sample_rate,
            channels,
        });
        check_tone(&params);
    }
}

#[test]
fn segments_shorter_than_a_block_join() {
    let mut params = params(64, 64, 1);
    params.format.fps = 60;
    let segments = encode_session(&params, 60, &MOVING);
    let heard = decode_sound(&concatenated(&segments), 2);
    let loudest = heard
        .iter()
        .fold(0.0_f32, |loudest, sample| loudest.max(sample.abs()));
    assert!(loudest < 0.5, "{loudest}");
    assert_eq!(segments[59].tail.len(), 2 * SOUND_TAIL_SAMPLES);
}

#[test]
fn break_in_the_sound_is_smoothed() {
    let loud = Content {
        sound: |_, _| 0.5,
        ..MOVING
    };
    let opposite = Content {
        sound: |_, _| -0.5,
        ..MOVING
    };
    let params = params(64, 64, 25);
    let first = encode(&params, 0, &[], &loud);
    let second = encode(&params, 25, &first.tail, &opposite);
    let heard = decode_sound(&concatenated(&[first, second]), 2);
    let around = &heard[23_000..30_000];
    let jump = around
        .windows(2)
        .fold(0.0_f32, |jump, pair| jump.max((pair[1] - pair[0]).abs()));
    assert!(jump < 0.1, "jumps by {jump}");
}

#[test]
fn impulse_is_heard_at_its_frame() {
    let impulse = Content {
        sound: |sample, _| if sample == 40_000 { 0.9 } else { 0.0 },
        ..MOVING
    };
    let segments = encode_session(&params(64, 64, 30), 3, &impulse);
    let heard = decode_sound(&concatenated(&segments), 2);
    let loudest = (0..heard.len()).max_by(|a, b| heard[*a].abs().total_cmp(&heard[*b].abs()));
    assert_eq!(loudest, Some(40_000));
}

#[test]
fn sound_may_run_ahead_and_changes_nothing() {
    let params = params(64, 64, 20);
    let in_step = encode(&params, 3, &[], &MOVING);
    let mut all: Vec<f32> = Vec::new();
    for index in 0..20 {
        all.extend(sound(&params, 3, index, &MOVING));
    }
    let mut media = Vec::new();
    let mut encoder = Encoder::open(&params).unwrap();
    let mut out = |m| media.push(m);
    encoder.begin(3, &[], &mut out).unwrap();
    for index in 0..20 {
        let rgb = frame(&params, 3 + index, &MOVING);
        encoder.frame(&rgb, &all, &mut out).unwrap();
        all.clear();
    }
    let tail = encoder.finish(&mut out).unwrap();
    let ahead = Encoded {
        media,
        after_frame: Vec::new(),
        tail,
    };
    assert_eq!(ahead.tail, in_step.tail);
    assert_eq!(ahead.samples(2), in_step.samples(2));
    assert_eq!(ahead.moofs()[0].traf.len(), 2);
}

#[test]
fn tail_reaches_back_over_short_segments() {
    let params = params(64, 64, 1);
    let before: Vec<f32> = (0..4096).map(|n| n as f32 / 10_000.0).collect();
    let segment = encode(&params, 24, &before, &MOVING);
    assert_eq!(segment.tail.len(), 4096);
    assert_eq!(segment.tail[..2096], before[2000..]);
    let first = encode(&params, 0, &[], &MOVING);
    assert_eq!(first.tail, sound(&params, 0, 0, &MOVING));
}
