//! The container `av_fmp4`: one segment as fragmented MP4. This file joins both tracks and decides where fragments are
//! cut.

use super::aac::AacTrack;
use super::av::{Muxer, Options};
use super::error::EncodeError;
use super::h264::{H264Track, codec_string};
use super::media::{Media, MediaSink};
use super::params::EncodeParams;

const VIDEO_TRACK: usize = 0;
const SOUND_TRACK: usize = 1;

/// Ticks per frame on the video track, so that each frame begins at a whole tick.
const TICKS_PER_FRAME: u32 = 1000;

/// Writes one segment as fragmented MP4.
#[derive(Debug)]
pub(super) struct Fmp4 {
    video: H264Track,
    sound: Option<AacTrack>,
    muxer: Muxer,
    /// The init segment; `None` after it was emitted.
    init: Option<Media>,
    frames_per_fragment: u32,
    /// The number of frames so far.
    frames: u32,
    /// The number of written frames at which the current fragment ends.
    next_cut: u32,
    /// The number of frames in the fragments that were cut and in the current one.
    written: u32,
    /// The number of frames of the segment, once it has begun.
    num_frames: u32,
}

impl Fmp4 {
    /// Opens both encoders and the muxer.
    ///
    /// # Errors
    /// Returns an error when an encoder is missing or cannot be opened, or writes no sequence parameter set.
    pub(super) fn open(params: &EncodeParams) -> Result<Self, EncodeError> {
        let fps = params.format.fps;
        let video = H264Track::open(params)?;
        let sound = params
            .audio
            .map(|format| AacTrack::open(params, format))
            .transpose()?;
        let mime = mime(&video, sound.is_some()).ok_or_else(|| EncodeError::NoParameterSet {
            name: params.spec.video_codec.clone(),
        })?;
        let codecs: Vec<_> = std::iter::once(video.codec())
            .chain(sound.as_ref().map(AacTrack::codec))
            .collect();
        let mut muxer = Muxer::open(&codecs, muxer_options(fps)?)?;
        let bytes = muxer.take()?;
        Ok(Self {
            video,
            sound,
            muxer,
            init: Some(Media::Init { bytes, mime }),
            frames_per_fragment: params.spec.frames_per_fragment(fps),
            frames: 0,
            next_cut: 1,
            written: 0,
            num_frames: 0,
        })
    }

    /// Places the segment of `num_frames` frames on the time line and emits the init segment.
    ///
    /// # Errors
    /// Returns an error when the sound before the segment cannot be encoded.
    pub(super) fn begin(
        &mut self,
        start_frame: u64,
        num_frames: u32,
        sound_before: &[f32],
        out: &mut MediaSink<'_>,
    ) -> Result<(), EncodeError> {
        self.num_frames = num_frames;
        self.video.begin(start_frame);
        if let Some(sound) = &mut self.sound {
            sound.begin(start_frame, sound_before)?;
        }
        if let Some(init) = self.init.take() {
            out(init);
        }
        Ok(())
    }

    /// Encodes a frame with its sound. Cuts a fragment when it is long enough; the first one has a single frame, so
    /// that it is emitted early.
    ///
    /// # Errors
    /// Returns an error when the encoder or the muxer fails.
    pub(super) fn frame(
        &mut self,
        rgb: &[u8],
        sound: &[f32],
        out: &mut MediaSink<'_>,
    ) -> Result<(), EncodeError> {
        let muxer = &mut self.muxer;
        if let Some(track) = &mut self.sound {
            track.push(sound, &mut |packet| Ok(muxer.write(SOUND_TRACK, packet)?))?;
        }
        let written = &mut self.written;
        self.video.frame(rgb, &mut |packet| {
            *written += 1;
            Ok(muxer.write(VIDEO_TRACK, packet)?)
        })?;
        self.frames += 1;
        // The last fragment is cut by `end`, with the end of the sound.
        if self.written >= self.next_cut && self.written < self.num_frames {
            self.cut(out)?;
        }
        Ok(())
    }

    /// Ends both tracks; `tail` is the last sound of the segment.
    ///
    /// # Errors
    /// Returns an error when the encoder or the muxer fails.
    pub(super) fn end(&mut self, tail: &[f32], out: &mut MediaSink<'_>) -> Result<(), EncodeError> {
        let muxer = &mut self.muxer;
        self.video
            .end(&mut |packet| Ok(muxer.write(VIDEO_TRACK, packet)?))?;
        if let Some(sound) = &mut self.sound {
            sound.end(self.frames, tail, &mut |packet| {
                Ok(muxer.write(SOUND_TRACK, packet)?)
            })?;
        }
        self.cut(out)
    }

    /// Ends the current fragment.
    fn cut(&mut self, out: &mut MediaSink<'_>) -> Result<(), EncodeError> {
        let bytes = self.muxer.cut()?;
        self.next_cut = self.written.saturating_add(self.frames_per_fragment);
        if !bytes.is_empty() {
            out(Media::Fragment { bytes });
        }
        Ok(())
    }
}

/// Returns the MIME type with its codecs, or `None` when the encoder wrote no sequence parameter set.
fn mime(video: &H264Track, sound: bool) -> Option<String> {
    let codec = codec_string(video.codec().extradata())?;
    let sound = if sound { ", mp4a.40.2" } else { "" };
    Some(format!("video/mp4; codecs=\"{codec}{sound}\""))
}

fn muxer_options(fps: u32) -> Result<Options, EncodeError> {
    let mut options = Options::new([
        // Fragments end where they are cut and nowhere else; each has its own decode time; no index follows the last.
        (
            c"movflags",
            "empty_moov+default_base_moof+frag_custom+frag_discont+skip_trailer",
        ),
        // Times are written as they are, without an edit list and without a shift to zero.
        (c"use_editlist", "0"),
        (c"avoid_negative_ts", "disabled"),
    ])?;
    options.extend([(c"video_track_timescale", fps * TICKS_PER_FRAME)])?;
    Ok(options)
}
