//! What an encoder refuses, and that one may be dropped at any point.

use super::*;

fn no_media(_: Media) {}

fn begun(params: &EncodeParams) -> Encoder {
    let mut encoder = Encoder::open(params).unwrap();
    encoder.begin(0, &[], &mut no_media).unwrap();
    encoder
}

fn open_error(change: impl FnOnce(&mut EncodeParams)) -> String {
    let mut params = params(64, 64, 2);
    change(&mut params);
    Encoder::open(&params).unwrap_err().to_string()
}

#[test]
fn frame_of_another_size_is_refused() {
    let params = params(64, 64, 2);
    for len in [0, 64 * 64 * 3 - 1, 64 * 64 * 3 + 1] {
        let error = begun(&params).frame(&vec![0; len], &[0.0; 2000], &mut no_media);
        assert!(
            matches!(error, Err(EncodeError::FrameSize { expected: 12_288, actual }) if actual == len)
        );
    }
}

#[test]
fn sound_that_lags_or_exceeds_the_frames_is_refused() {
    let params = params(64, 64, 1);
    let rgb = vec![0; params.format.frame_bytes()];
    for (len, refused) in [(0, true), (1998, true), (2000, false), (2002, true)] {
        let result = begun(&params).frame(&rgb, &vec![0.0; len], &mut no_media);
        assert_eq!(
            matches!(result, Err(EncodeError::SoundSize { .. })),
            refused,
            "{len}"
        );
    }
    let odd = begun(&params).frame(&rgb, &[0.0; 2001], &mut no_media);
    assert!(matches!(
        odd,
        Err(EncodeError::SoundPieces {
            channels: 2,
            given: 2001
        })
    ));
    let odd = Encoder::open(&params)
        .unwrap()
        .begin(0, &[0.0; 3], &mut no_media);
    assert!(matches!(
        odd,
        Err(EncodeError::SoundPieces {
            channels: 2,
            given: 3
        })
    ));
}

#[test]
fn sound_in_a_silent_stream_is_refused() {
    let mut params = params(64, 64, 1);
    params.audio = None;
    let rgb = vec![0; params.format.frame_bytes()];
    assert!(
        begun(&params)
            .frame(&rgb, &[0.0; 2], &mut no_media)
            .is_err()
    );
    assert!(begun(&params).frame(&rgb, &[], &mut no_media).is_ok());
}

#[test]
fn frames_before_the_beginning_and_after_the_end_are_refused() {
    let params = params(64, 64, 1);
    let rgb = vec![0; params.format.frame_bytes()];
    let mut encoder = Encoder::open(&params).unwrap();
    let early = encoder.frame(&rgb, &[0.0; 2000], &mut no_media);
    assert!(matches!(early, Err(EncodeError::NotBegun)));
    encoder.begin(0, &[], &mut no_media).unwrap();
    let again = encoder.begin(0, &[], &mut no_media);
    assert!(matches!(again, Err(EncodeError::BegunTwice)));
    encoder.frame(&rgb, &[0.0; 2000], &mut no_media).unwrap();
    let late = encoder.frame(&rgb, &[0.0; 2000], &mut no_media);
    assert!(matches!(
        late,
        Err(EncodeError::TooManyFrames { num_frames: 1 })
    ));
}

#[test]
fn sound_that_is_no_number_is_silence() {
    let params = params(64, 64, 2);
    let rgb = vec![0; params.format.frame_bytes()];
    let mut encoder = begun(&params);
    for value in [f32::NAN, f32::INFINITY] {
        encoder.frame(&rgb, &[value; 2000], &mut no_media).unwrap();
    }
    encoder.finish(&mut no_media).unwrap();
}

#[test]
fn bad_parameters_are_named() {
    assert_eq!(
        open_error(|params| params.format.width = 65),
        "width is 65, expected an even number from 64 to 4096"
    );
    assert!(open_error(|params| params.format.height = 2178).starts_with("height is 2178"));
    assert!(open_error(|params| params.format.fps = 0).starts_with("fps is 0"));
    assert!(open_error(|params| params.spec.crf = 52).starts_with("crf is 52"));
    assert!(open_error(|params| params.spec.jpeg_quality = 0).starts_with("jpeg_quality is 0"));
    assert!(
        open_error(|params| params.audio.as_mut().unwrap().channels = 6).contains("channels is 6")
    );
}

#[test]
fn encoder_that_libavcodec_lacks_is_named() {
    for name in ["h264_nonesuch", "nul\0nul", ""] {
        let error = open_error(|params| params.spec.video_codec = name.to_owned());
        assert_eq!(error, format!("libavcodec has no encoder {name:?}"));
    }
}

#[test]
fn encoder_of_something_else_is_refused() {
    let error = open_error(|params| params.spec.video_codec = "mpeg4".to_owned());
    assert_eq!(error, "encoder \"mpeg4\" does not make H.264");
}

#[test]
fn sample_rate_that_aac_lacks_is_refused() {
    let error = open_error(|params| params.audio.as_mut().unwrap().sample_rate = 23_456);
    assert!(
        error.starts_with("encoder \"aac\" cannot be opened"),
        "{error}"
    );
}

#[test]
fn encoder_may_be_dropped_at_any_point() {
    let params = params(64, 64, 20);
    let rgb = vec![0; params.format.frame_bytes()];
    drop(Encoder::open(&params).unwrap());
    for frames in 0..10 {
        let mut encoder = begun(&params);
        for _ in 0..frames {
            encoder.frame(&rgb, &[0.1; 2000], &mut no_media).unwrap();
        }
    }
}

#[test]
fn encoder_moves_between_threads() {
    let params = params(64, 64, 1);
    let rgb = vec![0; params.format.frame_bytes()];
    let mut encoder = Encoder::open(&params).unwrap();
    let thread = std::thread::spawn(move || {
        encoder.begin(0, &[], &mut no_media).unwrap();
        encoder.frame(&rgb, &[0.0; 2000], &mut no_media).unwrap();
        encoder.finish(&mut no_media).unwrap()
    });
    assert_eq!(thread.join().unwrap().len(), 2000);
}
