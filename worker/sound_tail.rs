//! The end of a segment's sound, with which the next segment's encoder is primed.
//!
//! It travels in the continuation state's header, as one key of its metadata, because a state's metadata are part of
//! the form that clients see and of stored states. Only this file knows the key and its encoding.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fastvideo_proto::state::StateHeader;
use serde_json::{Map, Value};

/// The key of the metadata. Its value is base64 of f32, little endian.
const METADATA_KEY: &str = "sound_tail";

/// The last samples of a segment, interleaved; empty when they are not known.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SoundTail(pub(crate) Vec<f32>);

impl SoundTail {
    /// Reads the tail from a state. A state without a valid tail has an empty one: the sound before the segment is then
    /// silence, and the state is otherwise used normally.
    pub(crate) fn read(header: &StateHeader) -> Self {
        let metadata: Value = serde_json::from_str(&header.metadata).unwrap_or_default();
        let text = metadata.get(METADATA_KEY).and_then(Value::as_str);
        let bytes = BASE64.decode(text.unwrap_or_default()).unwrap_or_default();
        let (samples, _) = bytes.as_chunks::<4>();
        let samples = samples.iter().map(|&sample| f32::from_le_bytes(sample));
        Self(samples.filter(|sample| sample.is_finite()).collect())
    }

    /// Writes the tail into a state, beside the other metadata.
    pub(crate) fn write(&self, header: &mut StateHeader) {
        let bytes: Vec<u8> = self.0.iter().flat_map(|s| s.to_le_bytes()).collect();
        let mut metadata: Map<String, Value> =
            serde_json::from_str(&header.metadata).unwrap_or_default();
        metadata.insert(METADATA_KEY.to_owned(), BASE64.encode(bytes).into());
        header.metadata = Value::Object(metadata).to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(metadata: &str) -> StateHeader {
        StateHeader {
            segment_index: 0,
            video_conditioning_frame_idx: 0,
            video_conditioning_strength: 1.0,
            audio_sample_rate: None,
            audio_conditioning_num_frames: 0,
            audio_conditioning_strength: 1.0,
            video_position_offset_sec: 0.0,
            metadata: metadata.to_owned(),
            frames: None,
            audio_latents: None,
            blob_hash: [0; 32],
        }
    }

    #[test]
    fn tail_that_is_read_is_the_one_that_was_written() {
        let tail = SoundTail(vec![0.25, -1.0, 1e-9]);
        let mut header = header(r#"{"engine":"x"}"#);
        tail.write(&mut header);
        assert_eq!(SoundTail::read(&header), tail);
        assert!(header.metadata.contains(r#""engine":"x""#));
    }

    #[test]
    fn stored_form_of_the_tail_stays_readable() {
        let header = header(r#"{"sound_tail":"AACAPgAAgL8="}"#);
        assert_eq!(SoundTail::read(&header), SoundTail(vec![0.25, -1.0]));
    }

    #[test]
    fn state_without_a_valid_tail_has_an_empty_one() {
        // The last one ends within a sample, which is cut off; the one before holds a NaN.
        for metadata in [
            "{}",
            "no object",
            "[1]",
            r#"{"sound_tail":7}"#,
            r#"{"sound_tail":"%%"}"#,
            r#"{"sound_tail":"AADAfw=="}"#,
            r#"{"sound_tail":"AACA"}"#,
        ] {
            assert_eq!(SoundTail::read(&header(metadata)), SoundTail::default());
        }
    }
}
