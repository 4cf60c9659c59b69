//! A state that fits is continued, another is refused or visibly lost.

use fastvideo_proto::state::{Dtype, StateHeader};

use super::{SMALL, Take, difference, first, format, is_marked_lost, next, request, run, spec};
use crate::engine::synthetic::Synthetic;
use crate::engine::{Engine, EngineError, NewState, State};

#[test]
fn altered_state_is_visibly_lost() {
    let (_, good) = first("a quiet forest");
    assert!(!is_marked_lost(&next("a quiet forest", &good).0.frames[7]));
    let latents = good.blob.len() - 3 * 8 * 16 * 2;
    let places = [
        0,
        latents / 2,
        latents,
        latents + 40,
        latents + 221,
        good.blob.len() - 1,
    ];
    for place in places {
        let (_, mut state) = first("a quiet forest");
        state.blob[place] ^= 1;
        let (take, _) = next("a quiet forest", &state);
        assert!(
            take.frames.iter().all(|f| is_marked_lost(f)),
            "byte {place}"
        );
    }
}

#[test]
fn frames_of_another_session_are_visibly_lost() {
    let (_, mut state) = first("a quiet forest");
    let (_, other) = first("a quiet forest in the rain");
    let frames = usize::try_from(state.header.frames_end()).unwrap();
    state.blob[..frames].copy_from_slice(&other.blob[..frames]);
    let (take, after) = next("a quiet forest", &state);
    assert!(take.frames.iter().all(|f| is_marked_lost(f)));
    assert!(!is_marked_lost(&next("a quiet forest", &after).0.frames[0]));
}

#[test]
fn lost_state_is_visible_in_the_smallest_picture() {
    let mut request = request("x");
    request.format = format(64, 64, 2);
    let (_, mut state) = run(&request);
    state.blob[5] ^= 0x80;
    request.state = Some(State {
        header: &state.header,
        blob: &state.blob,
    });
    assert!(is_marked_lost(&run(&request).0.frames[0]));
}

#[test]
fn state_of_another_shape_is_refused() {
    let (_, state) = first("sea");
    let refusal = |change: fn(&mut StateHeader)| {
        let mut header = state.header.clone();
        change(&mut header);
        let mut request = request("sea");
        request.state = Some(State {
            header: &header,
            blob: &state.blob,
        });
        let mut take = Take::default();
        match Synthetic::new(spec(), SMALL).generate(&request, &mut take) {
            Err(EngineError::StateIncompatible(message)) => message,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        refusal(|h| h.frames.as_mut().unwrap().width = 256),
        "state's frames: expected 1 to 4 of 192x128, given 4 of 256x128"
    );
    assert_eq!(
        refusal(|h| h.frames.as_mut().unwrap().count = 5),
        "state's frames: expected 1 to 4 of 192x128, given 5 of 192x128"
    );
    assert_eq!(
        refusal(|h| h.frames = None),
        "state's frames: expected 1 to 4 of 192x128, given none"
    );
    assert_eq!(
        refusal(|h| h.audio_latents.as_mut().unwrap().dtype = Dtype::F16),
        "state's audio latents: expected Bf16 [1, 8, 3, 16], given F16 [1, 8, 3, 16]"
    );
    assert_eq!(
        refusal(|h| h.audio_latents.as_mut().unwrap().shape[2] = 4),
        "state's audio latents: expected Bf16 [1, 8, 3, 16], given Bf16 [1, 8, 4, 16]"
    );
    assert_eq!(
        refusal(|h| h.audio_latents = None),
        "state's audio latents: expected Bf16 [1, 8, 3, 16], given none"
    );
    assert_eq!(
        refusal(|h| h.frames.as_mut().unwrap().count = 3),
        "state's size: expected 221952 bytes, given 295680 bytes"
    );
}

#[test]
fn state_says_what_it_holds() {
    let (take, state) = first("sea");
    let header = &state.header;
    assert_eq!(header.blob_bytes(), state.blob.len() as u64);
    let trailing: Vec<u8> = take.frames[4..].concat();
    assert!(state.blob[..trailing.len()] == trailing);
    assert_eq!(header.segment_index, 0);
    assert_eq!(header.metadata, r#"{"engine":"synthetic"}"#);
    let latents = state.blob[trailing.len()..].chunks_exact(2);
    for element in latents {
        let bits = u32::from(u16::from_le_bytes([element[0], element[1]])) << 16;
        assert!(f32::from_bits(bits).abs() < 4.0);
    }
    assert_eq!(next("sea", &state).1.header.segment_index, 1);
}

#[test]
fn segment_shorter_than_the_conditioning_keeps_all_its_frames() {
    let mut request = request("sea");
    request.format.num_frames = 3;
    let (_, state) = run(&request);
    assert_eq!(state.header.frames.unwrap().count, 3);
    assert!(!is_marked_lost(&next("sea", &state).0.frames[0]));
}

/// A segment of which the last frames are cut off.
fn cut_first(prompt: &str, cut_frames: u32) -> (Take, NewState) {
    let mut request = request(prompt);
    request.cut_frames = cut_frames;
    run(&request)
}

#[test]
fn cut_segment_is_one_that_ended_there() {
    for cut_frames in 1..SMALL.num_frames {
        let (cut, cut_state) = cut_first("a red fox by the sea", cut_frames);
        let mut shorter = request("a red fox by the sea");
        shorter.format.num_frames -= cut_frames;
        let (expected, state) = run(&shorter);
        assert!(cut.frames == expected.frames && cut.sound == expected.sound);
        assert_eq!(cut_state.header, state.header);
        assert!(cut_state.blob[..] == state.blob[..]);
    }
}

#[test]
fn segment_after_a_cut_goes_on_where_the_last_frame_was() {
    let prompt = "a calm walk through hills";
    let (whole, _) = first(prompt);
    for cut_frames in [1, 3, 6] {
        let (cut, state) = cut_first(prompt, cut_frames);
        let (two, _) = next(prompt, &state);
        assert!(!is_marked_lost(&two.frames[0]));
        let last = cut.frames.last().unwrap();
        let usual = difference(&whole.frames[6], &whole.frames[7]);
        let seam = difference(last, &two.frames[0]);
        assert!(
            seam < usual * 1.5,
            "cut {cut_frames}: {seam}, usual {usual}"
        );
        let jump = |channel: usize| {
            let last = cut.sound[cut.sound.len() - 2 + channel];
            (last - two.sound[channel]).abs()
        };
        assert!(jump(0) < 0.06 && jump(1) < 0.06, "cut {cut_frames}");
    }
}

#[test]
fn new_prompt_is_there_before_the_cut() {
    let (_, state) = first("golden sunrise over the mountains");
    let mut cut = request("neon city at night");
    cut.segment_idx = 1;
    cut.cut_frames = 5;
    cut.state = Some(State {
        header: &state.header,
        blob: &state.blob,
    });
    let (two, state) = run(&cut);
    let (three, _) = next("neon city at night", &state);
    let whole = difference(&two.frames[0], &two.frames[2]);
    assert!(difference(&two.frames[2], &three.frames[0]) < whole / 4.0);
}
