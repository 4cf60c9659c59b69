//! Sound to AAC, so that the segments of a session join without a click.
//!
//! AAC comes in blocks of 1024 samples, and a decoder adds the halves of neighbouring blocks: a block is only heard
//! right after the one that came before it in the same row. So the blocks of all segments form one row, which starts
//! with the session: block `k` is the sound from sample `1024 k` on, whichever segment it is in. A segment has the
//! blocks that begin between its start and its end. The last one reaches over the end, and its decoding needs a block
//! more; the sound there is predicted, as the next segment does not exist yet. The next segment's first block fades
//! from the prediction to the real sound, as overlapping halves do. Players see a stream without gaps or overlaps.
//!
//! The encoder is fresh for each segment. It is primed with the 2048 samples before the first block, and the packets
//! for those are dropped.

use std::ffi::c_int;

use super::av::{Codec, Options, SoundFrame, SoundSettings};
use super::extrapolate::extrapolate;
use super::{Emit, EncodeError, EncodeParams, SOUND_TAIL_SAMPLES};
use crate::engine::AudioFormat;

/// Samples per channel of an AAC packet.
const BLOCK: usize = 1024;

/// The sound of one segment.
#[derive(Debug)]
pub(super) struct Sound {
    codec: Codec,
    frame: SoundFrame,
    format: AudioFormat,
    fps: u32,
    /// Interleaved samples that do not fill a block yet.
    pending: Vec<f32>,
    start_frame: u64,
    /// Place of the first block to keep, in samples.
    first: i64,
    /// Place of the block that comes out of the encoder next, in samples.
    next_out: i64,
}

impl Sound {
    /// # Errors
    /// When the AAC encoder does not take the sample rate.
    pub(super) fn open(params: &EncodeParams, format: AudioFormat) -> Result<Self, EncodeError> {
        let number = |value| c_int::try_from(value).expect("parameters are checked and small");
        let settings = SoundSettings {
            sample_rate: number(format.sample_rate),
            channels: number(format.channels),
        };
        let mut options = Options::new([
            (c"flags", "+global_header+bitexact"),
            // A third less processor time than the default search.
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

    /// Places the segment and primes the encoder; `before` is the sound that came directly before the segment, at most
    /// [`SOUND_TAIL_SAMPLES`].
    ///
    /// # Errors
    /// When the encoder fails.
    pub(super) fn begin(&mut self, start_frame: u64, before: &[f32]) -> Result<(), EncodeError> {
        let start = self.format.sample_at(start_frame, self.fps);
        let first = start.next_multiple_of(BLOCK as u64);
        self.start_frame = start_frame;
        self.first = place(first);
        // Priming is two blocks, and the encoder's first packet is for the block before all that it was given.
        self.next_out = self.first - place((SOUND_TAIL_SAMPLES + BLOCK) as u64);
        let missing_start = usize::try_from(first - start).expect("less than a block");
        let priming = (SOUND_TAIL_SAMPLES - missing_start) * self.format.channels as usize;
        let kept = &before[before.len().saturating_sub(priming)..];
        self.pending.resize(priming - kept.len(), 0.0);
        self.push(kept, &mut |_| Ok(()))
    }

    /// Encodes interleaved sound and hands on the packets that are ready.
    ///
    /// # Errors
    /// When the encoder or `emit` fails.
    pub(super) fn push(&mut self, sound: &[f32], emit: &mut Emit<'_>) -> Result<(), EncodeError> {
        self.push_pending(sound);
        self.encode(i64::MAX, emit)
    }

    /// Encodes what is predicted after `tail`, the last sound of the segment, until its blocks reach over the end of
    /// its `frames`.
    ///
    /// # Errors
    /// When the encoder or `emit` fails.
    pub(super) fn end(
        &mut self,
        frames: u32,
        tail: &[f32],
        emit: &mut Emit<'_>,
    ) -> Result<(), EncodeError> {
        let end_frame = self.start_frame + u64::from(frames);
        let end = place(self.format.sample_at(end_frame, self.fps));
        // A block comes out when the two after it are in, and the last one begins before the end.
        let channels = self.format.channels as usize;
        let predicted = predict(tail, channels, 3 * BLOCK);
        self.push_pending(&predicted);
        self.encode(end, emit)?;
        debug_assert!(self.next_out >= end);
        Ok(())
    }

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

    /// Encodes whole blocks, and hands on the packets for blocks of this segment that begin before `end`.
    fn encode(&mut self, end: i64, emit: &mut Emit<'_>) -> Result<(), EncodeError> {
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

/// The `count` samples per channel that would come after `tail`, interleaved.
pub(crate) fn predict(tail: &[f32], channels: usize, count: usize) -> Vec<f32> {
    let mut predicted = vec![0.0; count * channels];
    for channel in 0..channels {
        let known: Vec<f32> = tail
            .iter()
            .skip(channel)
            .step_by(channels)
            .copied()
            .collect();
        let after = extrapolate(&known, count);
        for (sample, from) in predicted
            .iter_mut()
            .skip(channel)
            .step_by(channels)
            .zip(after)
        {
            *sample = from;
        }
    }
    predicted
}

fn place(samples: u64) -> i64 {
    i64::try_from(samples).expect("no session lasts millions of years")
}
