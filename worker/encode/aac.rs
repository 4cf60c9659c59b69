//! The AAC track, encoded so that the segments of a session join without a click.
//!
//! AAC codes blocks of 1024 samples, and a decoder overlaps and adds the halves of neighbouring blocks. A block is
//! therefore decoded correctly only after the block that preceded it in the same stream. So the blocks of all segments
//! form one grid, which starts with the session: block `k` holds the sound from sample `1024 k` on, whichever segment
//! that is in. A segment carries the blocks that begin between its start and its end. Its last block reaches over its
//! end, and its decoding needs one more block. The sound there is predicted, since the next segment does not exist yet.
//! The next segment's first block cross-fades from the prediction to the real sound, as overlapping halves do. Players
//! see a stream without gaps or overlaps.
//!
//! The encoder is fresh for each segment. It is primed with the 2048 samples before the first block, and the packets
//! for those samples are dropped.

use std::ffi::c_int;

use super::av::{Codec, Options, PacketSink, SoundFrame, SoundSettings};
use super::error::EncodeError;
use super::params::EncodeParams;
use crate::sound::{AudioFormat, SOUND_TAIL_SAMPLES, predict};

/// The number of samples per channel of an AAC packet.
const BLOCK: usize = 1024;

/// Encodes the sound of one segment as AAC.
#[derive(Debug)]
pub(super) struct AacTrack {
    codec: Codec,
    frame: SoundFrame,
    format: AudioFormat,
    fps: u32,
    /// Interleaved samples that do not fill a block yet.
    pending: Vec<f32>,
    start_frame: u64,
    /// The place of the first block to keep on the time line, in samples.
    first: i64,
    /// The place of the block that comes out of the encoder next, in samples.
    next_out: i64,
}

impl AacTrack {
    /// Opens libavcodec's AAC encoder.
    ///
    /// # Errors
    /// Returns an error when the AAC encoder does not take the sample rate.
    pub(super) fn open(params: &EncodeParams, format: AudioFormat) -> Result<Self, EncodeError> {
        let number = |value| c_int::try_from(value).expect("parameters are checked and small");
        let settings = SoundSettings {
            sample_rate: number(format.sample_rate),
            channels: number(format.channels),
        };
        let mut options = Options::new([
            (c"flags", "+global_header+bitexact"),
            // This coder needs a third less processor time than the default search.
            (c"aac_coder", "fast"),
        ])?;
        options.extend([(c"b", params.spec.audio_bit_rate)])?;
        let codec = Codec::open_aac(settings, options)?;
        let samples = c_int::try_from(BLOCK).expect("a block is small");
        let frame = SoundFrame::new(samples, settings.sample_rate, settings.channels)?;
        Ok(Self {
            codec,
            frame,
            format,
            fps: params.format.fps,
            pending: Vec::new(),
            start_frame: 0,
            first: 0,
            next_out: 0,
        })
    }

    pub(super) fn codec(&self) -> &Codec {
        &self.codec
    }

    /// Places the segment and primes the encoder. `before` is the sound that came directly before the segment, at most
    /// [`SOUND_TAIL_SAMPLES`] samples per channel.
    ///
    /// # Errors
    /// Returns an error when the encoder fails.
    pub(super) fn begin(&mut self, start_frame: u64, before: &[f32]) -> Result<(), EncodeError> {
        let start = self.format.sample_at(start_frame, self.fps);
        let first = start.next_multiple_of(BLOCK as u64);
        self.start_frame = start_frame;
        self.first = place(first);
        // Two blocks prime the encoder, and its first packet is for the block before all of its input.
        self.next_out = self.first - place((SOUND_TAIL_SAMPLES + BLOCK) as u64);
        let missing_start = usize::try_from(first - start).expect("less than a block");
        let priming = (SOUND_TAIL_SAMPLES - missing_start) * self.format.channels as usize;
        let kept = &before[before.len().saturating_sub(priming)..];
        self.pending.resize(priming - kept.len(), 0.0);
        self.push(kept, &mut |_| Ok(()))
    }

    /// Encodes interleaved sound and passes on the packets that are ready.
    ///
    /// # Errors
    /// Returns an error when the encoder or `emit` fails.
    pub(super) fn push(
        &mut self,
        sound: &[f32],
        emit: &mut PacketSink<'_, EncodeError>,
    ) -> Result<(), EncodeError> {
        self.push_pending(sound);
        self.encode(i64::MAX, emit)
    }

    /// Encodes the sound that is predicted after `tail`, the last sound of the segment, until the blocks reach over the
    /// end of its `frames`.
    ///
    /// # Errors
    /// Returns an error when the encoder or `emit` fails.
    pub(super) fn end(
        &mut self,
        frames: u32,
        tail: &[f32],
        emit: &mut PacketSink<'_, EncodeError>,
    ) -> Result<(), EncodeError> {
        let end_frame = self.start_frame + u64::from(frames);
        let end = place(self.format.sample_at(end_frame, self.fps));
        // A block comes out when the two after it are in, and the last block begins before the end.
        let channels = self.format.channels as usize;
        let predicted = predict(tail, channels, 3 * BLOCK);
        self.push_pending(&predicted);
        self.encode(end, emit)?;
        debug_assert!(self.next_out >= end);
        Ok(())
    }

    /// Appends sound to encode, clamped to -1 to 1, with silence in place of samples that are not finite.
    fn push_pending(&mut self, sound: &[f32]) {
        let clean = |&sample: &f32| {
            if sample.is_finite() {
                sample.clamp(-1.0, 1.0)
            } else {
                0.0
            }
        };
        self.pending.extend(sound.iter().map(clean));
    }

    /// Encodes whole blocks, and passes on the packets for blocks of this segment that begin before `end`.
    fn encode(
        &mut self,
        end: i64,
        emit: &mut PacketSink<'_, EncodeError>,
    ) -> Result<(), EncodeError> {
        let channels = self.format.channels as usize;
        let mut used = 0;
        while let Some(block) = self.pending.get(used..used + BLOCK * channels) {
            used += block.len();
            for channel in 0..channels {
                let samples = self.frame.channel(channel)?;
                for (sample, from) in samples
                    .iter_mut()
                    .zip(block.iter().skip(channel).step_by(channels))
                {
                    *sample = *from;
                }
            }
            self.codec.send_sound(&self.frame)?;
            while let Some(packet) = self.codec.receive()? {
                let start = self.next_out;
                self.next_out += place(BLOCK as u64);
                if (self.first..end).contains(&start) {
                    packet.set_time(start, place(BLOCK as u64));
                    emit(packet)?;
                }
            }
        }
        self.pending.drain(..used);
        Ok(())
    }
}

/// Converts a place on the time line to libav's type.
fn place(samples: u64) -> i64 {
    i64::try_from(samples).expect("no session lasts millions of years")
}
