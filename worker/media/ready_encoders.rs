//! Encoders that are opened before their segments begin, since opening one takes some milliseconds.

use crate::encode::{EncodeError, EncodeParams, Encoder};

/// The most formats for which an encoder is ready: a live segment after one of a video job of another format, and the other
/// way round, find theirs open.
const MOST: usize = 2;

/// At most one open encoder for each format; the number of frames does not count. The formats are those that were used last.
#[derive(Debug, Default)]
pub(super) struct ReadyEncoders {
    /// The encoders, that of the format that was used last at the end.
    encoders: Vec<(EncodeParams, Encoder)>,
}

impl ReadyEncoders {
    /// Returns an encoder for a segment with these parameters: the ready one, or a new one.
    ///
    /// # Errors
    /// Returns an error when there is none and none can be opened.
    pub(super) fn take(&mut self, params: &EncodeParams) -> Result<Encoder, EncodeError> {
        match self.position(params) {
            Some(position) => {
                let (_, mut encoder) = self.encoders.remove(position);
                encoder.set_num_frames(params.format.num_frames);
                Ok(encoder)
            }
            None => {
                self.make_room();
                Encoder::open(params)
            }
        }
    }

    /// Makes an encoder ready for the next segment with these parameters, in place of the one whose format was not used for
    /// the longest time.
    ///
    /// # Errors
    /// Returns an error when it cannot be opened. The other ones are still ready.
    pub(super) fn prepare(&mut self, params: EncodeParams) -> Result<(), EncodeError> {
        let ready = match self.position(&params) {
            Some(position) => self.encoders.remove(position),
            None => {
                let encoder = Encoder::open(&params)?;
                self.make_room();
                (params, encoder)
            }
        };
        self.encoders.push(ready);
        Ok(())
    }

    /// Drops encoders until one more may be open.
    fn make_room(&mut self) {
        let excess = (self.encoders.len() + 1).saturating_sub(MOST);
        self.encoders.drain(..excess);
    }

    fn position(&self, params: &EncodeParams) -> Option<usize> {
        self.encoders.iter().position(|(of, _)| of.serve(params))
    }

    /// Returns the formats of the encoders, without their numbers of frames, that of the one that was used last at the end.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> Vec<(u32, u32)> {
        let size =
            |(params, _): &(EncodeParams, Encoder)| (params.format.width, params.format.height);
        self.encoders.iter().map(size).collect()
    }
}

#[cfg(test)]
mod tests {
    use fastvideo_proto::job::{MediaMode, VideoFormat};
    use fastvideo_proto::link::EncoderSpec;

    use super::*;
    use crate::encode::Media;

    fn params(width: u32, num_frames: u32) -> EncodeParams {
        EncodeParams {
            format: VideoFormat {
                width,
                height: 64,
                num_frames,
                fps: 24,
            },
            mode: MediaMode::AvFmp4,
            audio: None,
            spec: EncoderSpec::default(),
        }
    }

    /// Takes an encoder and prepares the next one, as a segment does.
    fn segment(ready: &mut ReadyEncoders, params: EncodeParams) {
        ready.take(&params).unwrap();
        ready.prepare(params).unwrap();
    }

    fn widths(ready: &ReadyEncoders) -> Vec<u32> {
        ready.sizes().iter().map(|(width, _)| *width).collect()
    }

    #[test]
    fn encoders_of_the_two_formats_used_last_are_ready() {
        let mut ready = ReadyEncoders::default();
        segment(&mut ready, params(64, 4));
        assert_eq!(widths(&ready), [64]);
        segment(&mut ready, params(96, 4));
        assert_eq!(widths(&ready), [64, 96]);
        segment(&mut ready, params(64, 4));
        assert_eq!(widths(&ready), [96, 64]);
        segment(&mut ready, params(128, 4));
        assert_eq!(widths(&ready), [64, 128]);
    }

    #[test]
    fn lengths_of_segments_share_one_encoder() {
        let mut ready = ReadyEncoders::default();
        segment(&mut ready, params(64, 4));
        for num_frames in [121, 112, 7] {
            segment(&mut ready, params(96, num_frames));
            assert_eq!(widths(&ready), [64, 96]);
        }
    }

    #[test]
    fn encoder_that_is_ready_already_is_not_opened_again() {
        let mut ready = ReadyEncoders::default();
        ready.prepare(params(64, 4)).unwrap();
        ready.prepare(params(96, 4)).unwrap();
        ready.prepare(params(64, 4)).unwrap();
        assert_eq!(widths(&ready), [96, 64]);
    }

    #[test]
    fn no_more_encoders_are_open_than_there_are_formats_to_keep() {
        let mut ready = ReadyEncoders::default();
        segment(&mut ready, params(64, 4));
        segment(&mut ready, params(96, 4));
        let _in_use = ready.take(&params(128, 4)).unwrap();
        assert_eq!(widths(&ready), [96]);
    }

    #[test]
    fn encoder_that_cannot_be_opened_leaves_the_others_ready() {
        let mut ready = ReadyEncoders::default();
        segment(&mut ready, params(64, 4));
        segment(&mut ready, params(96, 4));
        assert!(ready.prepare(params(63, 4)).is_err());
        assert_eq!(widths(&ready), [64, 96]);
    }

    #[test]
    fn media_do_not_depend_on_the_length_that_the_encoder_was_opened_for() {
        let media = |mut encoder: Encoder| {
            let mut media = Vec::new();
            encoder
                .begin(5, &[], &mut |m: Media| media.push(m))
                .unwrap();
            for n in 0..9 {
                let rgb = vec![20 * n; 64 * 64 * 3];
                encoder.frame(&rgb, &[], &mut |m| media.push(m)).unwrap();
            }
            // The last frame has ended the segment.
            let all = media.len();
            encoder.finish(&mut |m| media.push(m)).unwrap();
            assert_eq!(media.len(), all);
            media
        };
        let opened = media(Encoder::open(&params(64, 9)).unwrap());
        for num_frames in [1, 8, 121] {
            let mut ready = ReadyEncoders::default();
            ready.prepare(params(64, num_frames)).unwrap();
            assert!(media(ready.take(&params(64, 9)).unwrap()) == opened);
        }
    }
}
