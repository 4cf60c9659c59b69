//! The encoder's thread: frames are encoded while the engine makes the next ones, and between segments the next
//! encoder is opened ahead.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use fastvideo_proto::job::MediaKind;

use crate::encode::{EncodeError, EncodeParams, Encoder, Media};
use crate::outbox::JobOutbox;

/// Frames that may wait for the encoder; more would only hold memory, since the engine is then the faster one.
const FRAMES_AHEAD: usize = 4;

/// The engine's side of the encoder.
#[derive(Debug)]
pub(crate) struct Pipeline {
    orders: SyncSender<Order>,
    outcomes: Receiver<Result<Outcome, EncodeError>>,
    /// Buffers of frames that were encoded.
    empties: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<()>>,
}

/// Where a segment's media go.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Job(Arc<JobOutbox>),
    /// Warm-up: everything is encoded, nothing is sent.
    Nowhere,
}

/// A segment that was encoded.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) frames: u32,
    /// The end of the segment's sound, with which the next segment's encoder is primed; interleaved.
    pub(crate) sound_tail: Vec<f32>,
    /// Time in which frames were encoded, and not waited for.
    pub(crate) took: Duration,
}

#[derive(Debug)]
enum Order {
    Begin {
        params: EncodeParams,
        start_frame: u64,
        sound_before: Vec<f32>,
        target: Target,
    },
    Frame {
        rgb: Arc<Vec<u8>>,
        sound: Vec<f32>,
    },
    Finish,
    Abandon,
    /// Open an encoder now that will be wanted next.
    Prepare(EncodeParams),
}

/// The encoder's thread has panicked.
#[derive(Debug, thiserror::Error)]
#[error("the encoder is gone")]
pub(crate) struct Closed;

/// Why a segment was not encoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PipelineError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Closed(#[from] Closed),
}

impl Pipeline {
    pub(crate) fn start() -> std::io::Result<Self> {
        let (orders, order_rx) = sync_channel(FRAMES_AHEAD);
        let (outcome_tx, outcomes) = channel();
        let (empty_tx, empties) = channel();
        let thread = Builder::new().name("encoder".to_owned()).spawn(move || {
            let mut worker = EncoderThread {
                orders: order_rx,
                outcomes: outcome_tx,
                empties: empty_tx,
                ready: None,
            };
            worker.run();
        })?;
        Ok(Self {
            orders,
            outcomes,
            empties,
            thread: Some(thread),
        })
    }

    pub(crate) fn prepare(&self, params: EncodeParams) -> Result<(), Closed> {
        self.order(Order::Prepare(params))
    }

    pub(crate) fn begin(
        &self,
        params: EncodeParams,
        start_frame: u64,
        sound_before: Vec<f32>,
        target: Target,
    ) -> Result<(), Closed> {
        self.order(Order::Begin {
            params,
            start_frame,
            sound_before,
            target,
        })
    }

    /// Waits while the encoder is [`FRAMES_AHEAD`] frames behind.
    pub(crate) fn frame(&self, rgb: Arc<Vec<u8>>, sound: Vec<f32>) -> Result<(), Closed> {
        self.order(Order::Frame { rgb, sound })
    }

    /// A frame to draw into, of any size and content.
    pub(crate) fn empty_frame(&self) -> Vec<u8> {
        self.empties.try_recv().unwrap_or_default()
    }

    /// Waits until all frames of the segment are encoded and sent.
    ///
    /// # Errors
    /// The first failure since [`Self::begin`].
    pub(crate) fn finish(&self) -> Result<Outcome, PipelineError> {
        self.order(Order::Finish)?;
        Ok(self.outcomes.recv().map_err(|_| Closed)??)
    }

    /// The segment is not wanted any more.
    pub(crate) fn abandon(&self) {
        let _ = self.order(Order::Abandon);
    }

    /// The encoder's thread has panicked. Only between segments.
    pub(crate) fn is_closed(&self) -> bool {
        self.order(Order::Abandon).is_err()
    }

    fn order(&self, order: Order) -> Result<(), Closed> {
        self.orders.send(order).map_err(|_| Closed)
    }
}

struct EncoderThread {
    orders: Receiver<Order>,
    outcomes: Sender<Result<Outcome, EncodeError>>,
    empties: Sender<Vec<u8>>,
    /// Opened ahead, for these parameters.
    ready: Option<(EncodeParams, Encoder)>,
}

impl EncoderThread {
    fn run(&mut self) {
        while let Ok(order) = self.orders.recv() {
            match order {
                Order::Prepare(params) => self.open_ahead(params),
                Order::Begin {
                    params,
                    start_frame,
                    sound_before,
                    target,
                } => {
                    let outcome = self.segment(&params, start_frame, &sound_before, &target);
                    match outcome {
                        Ok(Some(outcome)) => {
                            let _ = self.outcomes.send(Ok(outcome));
                        }
                        Ok(None) => {}
                        Err(error) => self.refuse_rest(error),
                    }
                    self.open_ahead(params);
                }
                // Only between segments: what is left of one that failed.
                Order::Frame { .. } | Order::Finish | Order::Abandon => {}
            }
        }
    }

    /// Encodes one segment; none when it was abandoned.
    fn segment(
        &mut self,
        params: &EncodeParams,
        start_frame: u64,
        sound_before: &[f32],
        target: &Target,
    ) -> Result<Option<Outcome>, EncodeError> {
        let mut encoder = match self.ready.take() {
            Some((ready_for, encoder)) if &ready_for == params => encoder,
            _ => Encoder::open(params)?,
        };
        // The init segment leaves with the first fragment: until then nothing has been sent that a replay would void.
        let mut init = None;
        let mut send = |media: Media| {
            let Target::Job(outbox) = target else { return };
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
        encoder.begin(start_frame, sound_before, &mut send)?;
        let mut took = begun.elapsed();
        let mut frames = 0;
        loop {
            match self.orders.recv() {
                Ok(Order::Frame { rgb, sound }) => {
                    let begun = Instant::now();
                    encoder.frame(&rgb, &sound, &mut send)?;
                    took += begun.elapsed();
                    frames += 1;
                    self.recycle(rgb);
                }
                Ok(Order::Finish) => {
                    let begun = Instant::now();
                    let sound_tail = encoder.finish(&mut send)?;
                    return Ok(Some(Outcome {
                        frames,
                        sound_tail,
                        took: took + begun.elapsed(),
                    }));
                }
                Ok(Order::Abandon | Order::Begin { .. } | Order::Prepare(_)) | Err(_) => {
                    return Ok(None);
                }
            }
        }
    }

    /// Throws the rest of a failed segment away, and tells why at its end.
    fn refuse_rest(&mut self, error: EncodeError) {
        tracing::warn!(error = &error as &dyn std::error::Error, "encoding failed");
        while let Ok(order) = self.orders.recv() {
            match order {
                Order::Frame { rgb, .. } => self.recycle(rgb),
                Order::Finish => {
                    let _ = self.outcomes.send(Err(error));
                    return;
                }
                Order::Abandon | Order::Begin { .. } | Order::Prepare(_) => return,
            }
        }
    }

    /// Gives a frame back to be drawn into, unless the engine keeps it.
    fn recycle(&self, rgb: Arc<Vec<u8>>) {
        if let Ok(rgb) = Arc::try_unwrap(rgb) {
            let _ = self.empties.send(rgb);
        }
    }

    fn open_ahead(&mut self, params: EncodeParams) {
        match Encoder::open(&params) {
            Ok(encoder) => self.ready = Some((params, encoder)),
            // The segment that needs it will say so.
            Err(error) => tracing::debug!(%error, "cannot open an encoder ahead"),
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let (closed, _) = sync_channel(0);
        self.orders = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
