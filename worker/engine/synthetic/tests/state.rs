//! A state that fits is continued, another is refused or visibly lost.

use fastvideo_proto::state::{Dtype, StateHeader};

use super::{SMALL, Take, first, format, is_marked_lost, next, request, run, spec};
use crate::engine::synthetic::Synthetic;
use crate::engine::{Engine, EngineError, State};

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
