//! The encoder's thread: it encodes frames while the engine generates the next ones, makes pictures of them, and opens the
//! next segment's encoder between segments.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use fastvideo_proto::job::MediaKind;
use fastvideo_proto::link;
use fastvideo_proto::link::{MAX_PREVIEW_BYTES, VideoPart, VideoPictures};

use super::outbox::JobOutbox;
use super::ready_encoders::ReadyEncoders;
use super::video_pictures::PictureMaker;
use crate::encode::{Crop, EncodeError, EncodeParams, Media, preview, thumbnail, thumbnail_frame};
use crate::engine::Preview;
use crate::sound_tail::SoundTail;

/// The number of frames that may wait for the encoder. When it is reached, backpressure makes the engine wait; more
/// waiting frames would only use memory.
const MAX_WAITING_FRAMES: usize = 4;

/// The owner's handle to the encoder's thread. Dropping it ends the thread and waits for it.
#[derive(Debug)]
pub(crate) struct EncoderThread {
    commands: SyncSender<EncoderCommand>,
    results: Receiver<Result<EncodedSegment, EncodeError>>,
    /// The buffers of encoded frames, to be reused.
    recycled_frames: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<()>>,
}

/// The destination of a segment's media.
#[derive(Clone, Debug)]
pub(crate) enum MediaTarget {
    Job(Arc<JobOutbox>),
    /// Warm-up: everything is encoded and discarded.
    Discard,
}

/// A segment to encode.
#[derive(Debug)]
pub(crate) struct SegmentSpec {
    pub(crate) params: EncodeParams,
    /// The width and height of the frames that are passed in. The middle of each is encoded, in the size of the parameters.
    pub(crate) frame_size: (u32, u32),
    /// The segment's place on the session's time line, in frames.
    pub(crate) start_frame: u64,
    pub(crate) sound_before: SoundTail,
    pub(crate) target: MediaTarget,
    /// The part of a video job that the segment is, which fits the parameters.
    pub(crate) video: Option<Box<VideoPart>>,
}

/// The result of encoding a segment.
#[derive(Debug)]
pub(crate) struct EncodedSegment {
    pub(crate) frames: u32,
    pub(crate) sound_tail: SoundTail,
    /// A JPEG picture; `None` when there were too few frames, or when it could not be made.
    pub(crate) thumbnail: Option<Vec<u8>>,
    /// The pictures of a part of a video job.
    pub(crate) video: Option<Box<VideoPictures>>,
    /// The time that the encoder was working, without the time that it waited for frames.
    pub(crate) encode_time: Duration,
}

#[derive(Debug)]
enum EncoderCommand {
    Begin(Box<SegmentSpec>),
    Frame {
        rgb: Arc<Vec<u8>>,
        sound: Vec<f32>,
    },
    /// Pictures to send before the first frame.
    Previews(Vec<Preview>),
    Finish,
    Abandon,
    /// Open the encoder that the next segment is expected to need.
    OpenAhead(EncodeParams),
}

/// The error for an encoder's thread that has panicked.
#[derive(Debug, thiserror::Error)]
#[error("the encoder's thread has ended")]
pub(crate) struct EncoderThreadGone;

/// The reason why a segment was not encoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeSegmentError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    ThreadGone(#[from] EncoderThreadGone),
}

impl EncodeSegmentError {
    /// Returns whether the segment takes more memory than there is.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Encode(error) => error.is_out_of_memory(),
            Self::ThreadGone(_) => false,
        }
    }
}

impl EncoderThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// Returns an error when the system cannot start a thread.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (commands, command_receiver) = sync_channel(MAX_WAITING_FRAMES);
        // These channels need no bound: a segment has one result, and there are never more recycled frames than were
        // passed in.
        let (result_sender, results) = channel();
        let (recycled_sender, recycled_frames) = channel();
        let mut encoder_loop = EncoderLoop {
            commands: command_receiver,
            results: result_sender,
            recycled_frames: recycled_sender,
            ready: ReadyEncoders::default(),
        };
        let thread = Builder::new()
            .name("encoder".to_owned())
            .spawn(move || encoder_loop.run())?;
        Ok(Self {
            commands,
            results,
            recycled_frames,
            thread: Some(thread),
        })
    }

    /// Opens an encoder with these parameters before its segment begins.
    ///
    /// # Errors
    /// Returns an error when the thread has ended. A failure to open is reported by the segment that needs the encoder.
    pub(crate) fn open_ahead(&self, params: EncodeParams) -> Result<(), EncoderThreadGone> {
        self.send(EncoderCommand::OpenAhead(params))
    }

    /// Begins a segment.
    ///
    /// # Errors
    /// Returns an error when the thread has ended. A failure to begin is reported by [`Self::finish`].
    pub(crate) fn begin(&self, segment: SegmentSpec) -> Result<(), EncoderThreadGone> {
        self.send(EncoderCommand::Begin(Box::new(segment)))
    }

    /// Passes in the next frame with its sound. Waits while [`MAX_WAITING_FRAMES`] frames wait for the encoder.
    ///
    /// # Errors
    /// Returns an error when the thread has ended. A failure to encode is reported by [`Self::finish`].
    pub(crate) fn frame(
        &self,
        rgb: Arc<Vec<u8>>,
        sound: Vec<f32>,
    ) -> Result<(), EncoderThreadGone> {
        self.send(EncoderCommand::Frame { rgb, sound })
    }

    /// Passes in previews, which are compressed and sent while the engine goes on. They are dropped where the thread has no
    /// room.
    pub(crate) fn previews(&self, previews: Vec<Preview>) {
        let _ = self.commands.try_send(EncoderCommand::Previews(previews));
    }

    /// Returns a buffer for the next frame, of any size and content.
    pub(crate) fn recycled_frame(&self) -> Vec<u8> {
        self.recycled_frames.try_recv().unwrap_or_default()
    }

    /// Ends the segment. Waits until all its frames are encoded and passed to the target.
    ///
    /// # Errors
    /// Returns the first failure since [`Self::begin`], or an error when the thread has ended.
    pub(crate) fn finish(&self) -> Result<EncodedSegment, EncodeSegmentError> {
        self.send(EncoderCommand::Finish)?;
        Ok(self.results.recv().map_err(|_| EncoderThreadGone)??)
    }

    /// Drops the segment that was begun.
    pub(crate) fn abandon(&self) {
        let _ = self.send(EncoderCommand::Abandon);
    }

    /// Returns whether the thread has panicked. It may be called only between segments.
    pub(crate) fn is_gone(&self) -> bool {
        self.send(EncoderCommand::Abandon).is_err()
    }

    fn send(&self, command: EncoderCommand) -> Result<(), EncoderThreadGone> {
        self.commands.send(command).map_err(|_| EncoderThreadGone)
    }
}

impl Drop for EncoderThread {
    fn drop(&mut self) {
        let (closed, _) = sync_channel(0);
        self.commands = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The state of the thread.
struct EncoderLoop {
    commands: Receiver<EncoderCommand>,
    results: Sender<Result<EncodedSegment, EncodeError>>,
    recycled_frames: Sender<Vec<u8>>,
    ready: ReadyEncoders,
}

impl EncoderLoop {
    /// Serves until the owner is dropped.
    fn run(&mut self) {
        while let Ok(command) = self.commands.recv() {
            self.serve(command);
        }
    }

    /// Obeys a command that comes between segments, and those of the segment that it begins.
    fn serve(&mut self, command: EncoderCommand) {
        match command {
            EncoderCommand::OpenAhead(params) => self.open_ahead(params),
            EncoderCommand::Begin(segment) => {
                let params = segment.params.clone();
                match self.segment(*segment) {
                    Ok(Some(encoded)) => {
                        let _ = self.results.send(Ok(encoded));
                    }
                    Ok(None) => {}
                    Err(error) => self.refuse_rest(error),
                }
                self.open_ahead(params);
            }
            // Between segments, these commands belong to one that failed or was abandoned.
            EncoderCommand::Frame { .. }
            | EncoderCommand::Previews(_)
            | EncoderCommand::Finish
            | EncoderCommand::Abandon => {}
        }
    }

    /// Encodes one segment. Returns `None` when it was abandoned.
    fn segment(&mut self, segment: SegmentSpec) -> Result<Option<EncodedSegment>, EncodeError> {
        let SegmentSpec {
            params,
            frame_size,
            start_frame,
            sound_before,
            target,
            video,
        } = segment;
        let format = params.format;
        let mut encoder = self.ready.take(&params)?;
        let mut crop = Crop::new(frame_size, (format.width, format.height));
        let mut pictures = video.map(|part| PictureMaker::new(part, format));
        // The init segment is sent with the first fragment. Until then nothing has been sent that a retry would
        // invalidate.
        let mut init = None;
        let mut send = |media: Media| {
            let MediaTarget::Job(outbox) = &target else {
                return;
            };
            match media {
                Media::Init { bytes, mime } => init = Some((mime, bytes)),
                Media::Fragment { bytes } => {
                    if let Some((mime, bytes)) = init.take() {
                        outbox.media(MediaKind::InitSegment { mime }, bytes);
                    }
                    outbox.media(MediaKind::Fragment, bytes);
                }
            }
        };
        let begun = Instant::now();
        encoder.begin(start_frame, &sound_before.0, &mut send)?;
        let mut encode_time = begun.elapsed();
        let mut frames = 0;
        let mut picture = None;
        loop {
            match self.commands.recv() {
                Ok(EncoderCommand::Frame { rgb, sound }) => {
                    let begun = Instant::now();
                    let shown = crop.middle(&rgb)?;
                    encoder.frame(shown, &sound, &mut send)?;
                    // After the frame's media, so that the first fragment does not wait for it.
                    if frames == thumbnail_frame(format.num_frames) {
                        picture = thumbnail(shown, format)
                            .inspect_err(|error| tracing::debug!(%error, "no thumbnail"))
                            .ok();
                    }
                    if let Some(pictures) = &mut pictures {
                        pictures.frame(frames, shown);
                    }
                    encode_time += begun.elapsed();
                    frames += 1;
                    self.recycle(rgb);
                }
                Ok(EncoderCommand::Previews(previews)) => send_previews(previews, &target),
                Ok(EncoderCommand::Finish) => {
                    let begun = Instant::now();
                    let sound_tail = SoundTail(encoder.finish(&mut send)?);
                    let video = pictures.map(|pictures| Box::new(pictures.finish()));
                    return Ok(Some(EncodedSegment {
                        frames,
                        sound_tail,
                        thumbnail: picture,
                        video,
                        encode_time: encode_time + begun.elapsed(),
                    }));
                }
                Ok(
                    EncoderCommand::Abandon
                    | EncoderCommand::Begin(_)
                    | EncoderCommand::OpenAhead(_),
                )
                | Err(_) => return Ok(None),
            }
        }
    }

    /// Discards the rest of a segment that failed, and reports the error at its end.
    fn refuse_rest(&mut self, error: EncodeError) {
        tracing::warn!(error = &error as &dyn std::error::Error, "encoding failed");
        while let Ok(command) = self.commands.recv() {
            match command {
                EncoderCommand::Frame { rgb, .. } => self.recycle(rgb),
                EncoderCommand::Previews(_) => {}
                EncoderCommand::Finish => {
                    let _ = self.results.send(Err(error));
                    return;
                }
                EncoderCommand::Abandon
                | EncoderCommand::Begin(_)
                | EncoderCommand::OpenAhead(_) => return,
            }
        }
    }

    /// Gives the frame's buffer back for reuse, unless the engine keeps the frame.
    fn recycle(&self, rgb: Arc<Vec<u8>>) {
        if let Ok(rgb) = Arc::try_unwrap(rgb) {
            let _ = self.recycled_frames.send(rgb);
        }
    }

    fn open_ahead(&mut self, params: EncodeParams) {
        // The segment that needs the encoder reports the error.
        if let Err(error) = self.ready.prepare(params) {
            tracing::debug!(%error, "cannot open an encoder ahead");
        }
    }
}

/// Compresses previews and sends them. One that is too large, or that cannot be compressed, is left out.
fn send_previews(previews: Vec<Preview>, target: &MediaTarget) {
    for picture in previews {
        if let MediaTarget::Job(outbox) = target
            && outbox.is_cancelled()
        {
            return;
        }
        let small = match preview(&picture.rgb, (picture.width, picture.height)) {
            Ok(small) => small,
            Err(error) => {
                tracing::debug!(%error, "no preview");
                continue;
            }
        };
        if let MediaTarget::Job(outbox) = target
            && small.jpeg.len() <= MAX_PREVIEW_BYTES
        {
            outbox.preview(link::Preview {
                frame: picture.frame,
                num_frames: picture.num_frames,
                width: small.width,
                height: small.height,
                jpeg: small.jpeg.into(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use fastvideo_proto::ids::JobId;
    use fastvideo_proto::job::{MediaMode, VideoFormat};
    use fastvideo_proto::link::{EncoderSpec, Event};

    use super::*;
    use crate::link::{EventSender, SentEvents};

    fn params(num_frames: u32) -> EncodeParams {
        EncodeParams {
            format: VideoFormat {
                width: 64,
                height: 64,
                num_frames,
                fps: 24,
            },
            mode: MediaMode::AvFmp4,
            audio: None,
            spec: EncoderSpec::default(),
        }
    }

    fn target() -> (MediaTarget, SentEvents) {
        let (events, sent) = EventSender::to_nobody();
        let outbox = JobOutbox::new(JobId(1), u64::MAX, events);
        (MediaTarget::Job(outbox), sent)
    }

    fn begin(encoder: &EncoderThread, params: &EncodeParams, target: &MediaTarget) {
        encoder.begin(segment(params, target)).unwrap();
    }

    fn segment(params: &EncodeParams, target: &MediaTarget) -> SegmentSpec {
        SegmentSpec {
            params: params.clone(),
            frame_size: (params.format.width, params.format.height),
            start_frame: 0,
            sound_before: SoundTail::default(),
            target: target.clone(),
            video: None,
        }
    }

    fn frame(encoder: &EncoderThread, bytes: usize) {
        encoder.frame(Arc::new(vec![7; bytes]), Vec::new()).unwrap();
    }

    #[test]
    fn init_segment_is_sent_with_the_first_fragment() {
        let encoder = EncoderThread::start().unwrap();
        let (target, sent) = target();
        let params = params(2);
        begin(&encoder, &params, &target);
        encoder.abandon();
        begin(&encoder, &params, &target);
        frame(&encoder, params.format.frame_bytes());
        frame(&encoder, params.format.frame_bytes());
        assert_eq!(encoder.finish().unwrap().frames, 2);
        let kinds: Vec<bool> = sent
            .take()
            .into_iter()
            .map(|event| match event {
                Event::Media { kind, .. } => matches!(kind, MediaKind::InitSegment { .. }),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(kinds, [true, false, false]);
    }

    #[test]
    fn thumbnail_is_the_middle_frame_in_every_media_mode() {
        let encoder = EncoderThread::start().unwrap();
        for (mode, num_frames) in [
            (MediaMode::AvFmp4, 1),
            (MediaMode::AvFmp4, 5),
            (MediaMode::LegacyJpeg, 4),
        ] {
            let params = EncodeParams {
                mode,
                ..params(num_frames)
            };
            begin(&encoder, &params, &MediaTarget::Discard);
            // Each frame is brighter than the one before.
            let grey = |n: u32| u8::try_from(40 * n + 20).unwrap();
            for n in 0..num_frames {
                let frame = vec![grey(n); params.format.frame_bytes()];
                encoder.frame(Arc::new(frame), Vec::new()).unwrap();
            }
            let jpeg = encoder.finish().unwrap().thumbnail.unwrap();
            let picture = image::load_from_memory(&jpeg).unwrap().to_rgb8();
            assert_eq!(picture.dimensions(), (64, 64));
            let middle = grey(num_frames / 2);
            let off = picture.iter().map(|value| value.abs_diff(middle)).max();
            assert!(off <= Some(2), "{mode:?}, {num_frames} frames: {off:?}");
        }
    }

    #[test]
    fn previews_go_out_before_the_first_frame() {
        let encoder = EncoderThread::start().unwrap();
        let (target, sent) = target();
        let params = params(1);
        begin(&encoder, &params, &target);
        let picture = |frame, bytes: usize| Preview {
            frame,
            num_frames: 2,
            width: 64,
            height: 32,
            rgb: vec![200; bytes],
        };
        // The middle one is of no size that a picture has, which costs the segment nothing.
        encoder.previews(vec![picture(0, 6144), picture(1, 7), picture(1, 6144)]);
        frame(&encoder, params.format.frame_bytes());
        assert_eq!(encoder.finish().unwrap().frames, 1);
        let mut shown = Vec::new();
        for event in sent.take() {
            match event {
                Event::Preview { preview, .. } => {
                    let picture = image::load_from_memory(&preview.jpeg).unwrap().to_rgb8();
                    assert_eq!(picture.dimensions(), (preview.width, preview.height));
                    assert_eq!(picture.dimensions(), (64, 32));
                    shown.push(Some(preview.frame));
                }
                Event::Media { .. } => shown.push(None),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(shown, [Some(0), Some(1), None, None]);
        // Those that come between segments belong to none.
        encoder.previews(vec![picture(0, 6144)]);
        assert!(!encoder.is_gone());
        assert!(sent.take().is_empty());
    }

    #[test]
    fn segment_that_ends_before_its_middle_has_no_thumbnail() {
        let encoder = EncoderThread::start().unwrap();
        let params = params(4);
        begin(&encoder, &params, &MediaTarget::Discard);
        frame(&encoder, params.format.frame_bytes());
        assert_eq!(encoder.finish().unwrap().thumbnail, None);
    }

    #[test]
    fn first_failure_is_reported_at_the_end_and_the_next_segment_is_fine() {
        let encoder = EncoderThread::start().unwrap();
        let params = params(1);
        begin(&encoder, &params, &MediaTarget::Discard);
        frame(&encoder, 1);
        frame(&encoder, 2);
        let error = encoder.finish().unwrap_err();
        assert_eq!(error.to_string(), "a frame is 1 bytes, expected 12288");
        assert!(!encoder.is_gone());
        begin(&encoder, &params, &MediaTarget::Discard);
        frame(&encoder, params.format.frame_bytes());
        assert_eq!(encoder.finish().unwrap().frames, 1);
    }

    #[test]
    fn encoder_of_each_of_two_formats_is_open_when_its_segment_begins() {
        let (commands, receiver) = channel();
        let (results, _results) = channel();
        let (recycled_frames, _recycled) = channel();
        let mut encoder_loop = EncoderLoop {
            commands: receiver,
            results,
            recycled_frames,
            ready: ReadyEncoders::default(),
        };
        let wide = |num_frames| {
            let mut params = params(num_frames);
            params.format.width = 96;
            params
        };
        let mut opened = Vec::new();
        // A viewer's segments, and those of a video job of another size between them.
        for params in [params(2), wide(2), params(1), wide(1), wide(3), params(2)] {
            let begin = Box::new(segment(&params, &MediaTarget::Discard));
            opened.push(encoder_loop.ready.sizes().contains(&begin.frame_size));
            commands.send(EncoderCommand::Abandon).unwrap();
            encoder_loop.serve(EncoderCommand::Begin(begin));
        }
        assert_eq!(opened, [false, false, true, true, true, true]);
    }

    #[test]
    fn frame_that_nobody_keeps_is_drawn_into_again() {
        let encoder = EncoderThread::start().unwrap();
        let params = params(2);
        begin(&encoder, &params, &MediaTarget::Discard);
        let kept = Arc::new(vec![7; params.format.frame_bytes()]);
        encoder.frame(kept.clone(), Vec::new()).unwrap();
        frame(&encoder, params.format.frame_bytes());
        encoder.finish().unwrap();
        assert_eq!(encoder.recycled_frame().len(), kept.len());
        assert_eq!(encoder.recycled_frame().len(), 0);
    }
}
