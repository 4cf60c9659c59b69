//! The engine that needs no model and no GPU: it draws a small moving world that follows from the prompt's words.
//!
//! The output is a function of prompt, seed, guidance, format, segment index and incoming state alone. The world is
//! carried from segment to segment only by the state: the state's latents hold its clocks, bound by a checksum to the
//! trailing frames, so a state that was lost, altered or mixed up shows in the picture. Faults are injected by the job
//! loop and not here.
//!
//! - `words`, `scene`: turn the prompt into the parameters of a picture;
//! - `world`: the moving parts, and their form in the state;
//! - `landscape` with `plan`, `layer`, `terrain`, `sky`, `water`, `weather`, `actors`: the picture;
//! - `still`, `caption`: the initial image behind the picture, the text in front of it;
//! - `sound`: the chord;
//! - `latents`: what stands for the latents in step snapshots;
//! - `draw`, `shape`, `colour`, `wave`: drawing and arithmetic that is the same on every machine.

mod actors;
mod caption;
mod colour;
mod draw;
mod landscape;
mod latents;
mod layer;
mod options;
mod plan;
mod scene;
mod shape;
mod sky;
mod sound;
mod still;
mod terrain;
#[cfg(test)]
mod tests;
mod water;
mod wave;
mod weather;
mod words;
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastvideo_link::MemoryBuffer;
use fastvideo_proto::job::Stage;
use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::DeviceReport;
use fastvideo_proto::state::{Dtype, FramesLayout, StateHeader, TensorLayout};

use self::caption::{Caption, Counter};
use self::draw::Canvas;
use self::landscape::Painter;
use self::latents::Latents;
use self::scene::Scene;
use self::sound::Chord;
use self::still::Still;
use self::world::{Memory, World};
use super::{
    AudioFormat, Engine, EngineError, GenerateRequest, LoadProgress, Loaded, ModelCheck, NewState,
    Preview, Sink, State, state_memory,
};

pub(crate) use self::options::Options;

/// The engine's name on the link.
pub(crate) const NAME: &str = "synthetic";

pub(crate) const AUDIO: AudioFormat = AudioFormat {
    sample_rate: sound::SAMPLE_RATE,
    channels: sound::CHANNELS,
};
/// The number of samples that the sound is ahead of the picture: the AAC encoder looks that far ahead, and a fragment
/// without sound does not play.
const SOUND_AHEAD: u32 = 4096;
/// The channels and bins of the audio latents, which are the same as in LTX-2.
const LATENT_CHANNELS: u32 = 8;
const LATENT_BINS: u32 = 16;
/// The interval at which a wait checks for cancellation.
const CANCEL_CHECK: Duration = Duration::from_millis(2);
const LOAD_TICKS: u32 = 20;
const PRERENDER_PROMPT: &str = "golden sunrise over the mountains, birds, clouds";

#[derive(Debug)]
pub(crate) struct Synthetic {
    options: Options,
    format: VideoFormat,
    /// Frames of `format` rendered at load; empty unless the options ask for them.
    prerendered: Vec<Arc<Vec<u8>>>,
}

impl Synthetic {
    /// Creates the engine. `format` is the one that frames are rendered in ahead of time, if the options ask for that.
    /// A state always has at least one frame and one latent, and a step snapshot one value, whatever the options say.
    pub(crate) fn new(mut options: Options, format: VideoFormat) -> Self {
        options.conditioning_num_frames = options.conditioning_num_frames.max(1);
        options.audio_latent_frames = options.audio_latent_frames.max(1);
        options.latent_bytes = options.latent_bytes.next_multiple_of(2).max(2);
        Self {
            options,
            format,
            prerendered: Vec::new(),
        }
    }

    fn latents(&self) -> TensorLayout {
        let shape = [
            1,
            LATENT_CHANNELS,
            self.options.audio_latent_frames,
            LATENT_BINS,
        ];
        TensorLayout {
            dtype: Dtype::Bf16,
            shape: shape.map(u64::from).to_vec(),
        }
    }

    fn check_layout(&self, state: &State<'_>, format: VideoFormat) -> Result<(), EngineError> {
        let wrong = |what: &str, expected: String, given: String| {
            let message = format!("state's {what}: expected {expected}, given {given}");
            Err(EngineError::StateIncompatible(message))
        };
        let header = state.header;
        let most = self.options.conditioning_num_frames;
        let VideoFormat { width, height, .. } = format;
        match header.frames {
            Some(f) if f.width == width && f.height == height && (1..=most).contains(&f.count) => {}
            given => {
                let given = given.map_or("none".to_owned(), |f| {
                    format!("{} of {}x{}", f.count, f.width, f.height)
                });
                return wrong("frames", format!("1 to {most} of {width}x{height}"), given);
            }
        }
        let latents = self.latents();
        if header.audio_latents.as_ref() != Some(&latents) {
            let show = |t: &TensorLayout| format!("{:?} {:?}", t.dtype, t.shape);
            let given = header
                .audio_latents
                .as_ref()
                .map_or("none".to_owned(), show);
            return wrong("audio latents", show(&latents), given);
        }
        if header.blob_bytes() != state.blob.len() as u64 {
            let (expected, given) = (header.blob_bytes(), state.blob.len());
            return wrong(
                "size",
                format!("{expected} bytes"),
                format!("{given} bytes"),
            );
        }
        Ok(())
    }

    /// Returns the state from which the segment continues.
    fn departure(&self, request: &GenerateRequest<'_>) -> Result<Departure, EngineError> {
        let scene = Scene::new(
            request.prompt,
            request.negative_prompt,
            request.guidance_scale,
        );
        let begin = || World::begin(request.seed, request.prompt, &scene);
        let Some(state) = &request.state else {
            return Ok(Departure::new(begin(), scene.clone(), scene, false));
        };
        self.check_layout(state, request.format)?;
        let latents_bytes = usize::try_from(self.latents().bytes()).unwrap_or(usize::MAX);
        let frames_end = state.blob.len().saturating_sub(latents_bytes);
        let (frames, latents) = state.blob.split_at(frames_end);
        Ok(match Memory::read(frames, latents) {
            Some(memory) => Departure::new(memory.world, memory.scene, scene, false),
            None => Departure::new(begin(), scene.clone(), scene, true),
        })
    }

    /// Takes the time of the steps, without those up to the step snapshot.
    fn denoise(
        &self,
        request: &GenerateRequest<'_>,
        sink: &mut dyn Sink,
    ) -> Result<(), EngineError> {
        let steps = request.num_inference_steps;
        let latents = Latents::new(self.options.latent_bytes, request);
        let done = match &request.snapshot {
            Some(snapshot) => latents.resume(snapshot, steps)?,
            None => 0,
        };
        sink.begin(Stage::Denoise);
        for step in done + 1..=steps {
            wait(Instant::now(), self.options.step, sink)?;
            sink.step(Stage::Denoise, step, steps, Some(&latents.after(step)));
        }
        Ok(())
    }

    /// Returns the frames of that size that were rendered ahead of time.
    fn stock(&self, format: VideoFormat) -> Option<&[Arc<Vec<u8>>]> {
        let same = (format.width, format.height) == (self.format.width, self.format.height);
        (same && !self.prerendered.is_empty()).then_some(&self.prerendered[..])
    }

    fn prerender(&mut self, progress: &mut dyn FnMut(f32, &str)) {
        let scene = Scene::new(PRERENDER_PROMPT, None, 1.0);
        let world = World::begin(0, PRERENDER_PROMPT, &scene);
        let counter = Counter {
            segment_idx: 0,
            num_frames: self.format.num_frames,
            seed: 0,
        };
        let departure = Departure::new(world, scene.clone(), scene, false);
        let mut film = Film::new(departure, self.format);
        let mut brush = Brush::new(&film, PRERENDER_PROMPT, counter, None);
        for n in 0..self.format.num_frames {
            let mut frame = vec![0; self.format.frame_bytes()];
            brush.paint(&film, n, &mut frame);
            film.advance(n);
            self.prerendered.push(Arc::new(frame));
            let part = (n + 1) as f32 / self.format.num_frames as f32;
            progress(part, "frames ahead of time");
        }
    }
}

impl Engine for Synthetic {
    fn load(&mut self, mut progress: LoadProgress) -> Result<Loaded, EngineError> {
        let begun = Instant::now();
        for tick in 1..=LOAD_TICKS {
            wait_until(begun + self.options.load * tick / LOAD_TICKS, || false);
            progress(tick as f32 / LOAD_TICKS as f32, "weights");
        }
        if self.options.prerender {
            self.prerender(&mut *progress);
        }
        Ok(Loaded {
            adapters: Vec::new(),
            model_id: "synthetic".to_owned(),
            device: DeviceReport {
                name: "CPU".to_owned(),
                memory_bytes: None,
                uuid: None,
            },
            audio: Some(AUDIO),
        })
    }

    fn check(&self) -> Result<ModelCheck, EngineError> {
        Ok(ModelCheck::Usable("needs no model".to_owned()))
    }

    fn generate(
        &mut self,
        request: &GenerateRequest<'_>,
        sink: &mut dyn Sink,
    ) -> Result<NewState, EngineError> {
        if let Some(adapter) = request.adapters.first() {
            let message = format!("test pictures have no adapter `{}`", adapter.name);
            return Err(EngineError::Refused(message));
        }
        // What is behind the cut need not be drawn.
        let format = VideoFormat {
            num_frames: request.format.num_frames - request.cut_frames,
            ..request.format
        };
        let departure = self.departure(request)?;
        let (width, height) = (format.width as usize, format.height as usize);
        let still = || match request.initial_image.filter(|_| request.state.is_none()) {
            Some(path) => Still::open(path, width, height).map(Some),
            None => Ok(None),
        };
        let counter = Counter {
            segment_idx: request.segment_idx,
            num_frames: format.num_frames,
            seed: request.seed,
        };
        let mut film = Film::new(departure, format);
        let mut pictures = match self.stock(format) {
            Some(stock) => Pictures::Stock(stock),
            None => {
                let brush = Brush::new(&film, request.prompt, counter, still()?);
                Pictures::Drawn(Box::new(brush))
            }
        };
        self.denoise(request, sink)?;
        if self.options.preview && sink.takes_previews() {
            let film = Film::new(self.departure(request)?, format);
            let brush = Brush::new(&film, request.prompt, counter, still()?);
            sink.previews(previews(film, brush));
        }
        sink.begin(Stage::Decode);

        let mut state =
            StateWriter::new(format, self.options.conditioning_num_frames, self.latents());
        let mut sound = Vec::new();
        let mut played = 0;
        let ahead = 1 + (SOUND_AHEAD * format.fps).div_ceil(AUDIO.sample_rate);
        for n in 0..format.num_frames {
            let begun = Instant::now();
            if sink.cancelled() {
                return Err(EngineError::Cancelled);
            }
            let frame = match &mut pictures {
                Pictures::Stock(stock) => stock[n as usize % stock.len()].clone(),
                Pictures::Drawn(brush) => {
                    let mut frame = sink.blank_frame();
                    brush.paint(&film, n, &mut frame);
                    Arc::new(frame)
                }
            };
            sound.clear();
            let heard = format.num_frames.min(n.saturating_add(ahead));
            while played < heard {
                film.play(played, &mut sound);
                played += 1;
            }
            film.advance(n);
            state.take(n, &frame)?;
            wait(begun, self.options.frame, sink)?;
            sink.frame(frame, &sound)?;
        }
        let previous = request.state.map(|state| state.header.segment_index);
        state.finish(film, previous)
    }
}

/// Draws the middle frame and the last one of a film.
fn previews(mut film: Film, mut brush: Brush) -> Vec<Preview> {
    let format = film.format;
    let shown = [format.num_frames / 2, format.num_frames - 1];
    let mut previews = Vec::new();
    for frame in 0..format.num_frames {
        if shown.contains(&frame) {
            let mut rgb = vec![0; format.frame_bytes()];
            brush.paint(&film, frame, &mut rgb);
            previews.push(Preview {
                frame,
                num_frames: format.num_frames,
                width: format.width,
                height: format.height,
                rgb,
            });
        }
        film.advance(frame);
    }
    previews
}

/// Waits until `duration` after `begun`, or until the sink is cancelled.
fn wait(begun: Instant, duration: Duration, sink: &dyn Sink) -> Result<(), EngineError> {
    if wait_until(begun + duration, || sink.cancelled()) {
        Ok(())
    } else {
        Err(EngineError::Cancelled)
    }
}

/// Waits until `deadline`; returns false when stopped. No other code unparks this thread, and an early wake-up only
/// causes another check.
fn wait_until(deadline: Instant, stopped: impl Fn() -> bool) -> bool {
    loop {
        if stopped() {
            return false;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::park_timeout(left.min(CANCEL_CHECK));
    }
}

/// The world before a segment's first frame.
#[derive(Debug)]
struct Departure {
    world: World,
    from: Scene,
    to: Scene,
    lost: bool,
}

impl Departure {
    fn new(world: World, from: Scene, to: Scene, lost: bool) -> Self {
        Self {
            world,
            from,
            to,
            lost,
        }
    }
}

/// A segment while it is generated: the world and its sound.
struct Film {
    format: VideoFormat,
    departure: Departure,
    /// The number of frames over which the old scene turns into the new one.
    fade_frames: u32,
}

/// The source of a segment's frames.
enum Pictures<'a> {
    Stock(&'a [Arc<Vec<u8>>]),
    Drawn(Box<Brush>),
}

/// The tools that a segment's frames are drawn with.
struct Brush {
    old: Option<Painter>,
    new: Painter,
    spare: Vec<u8>,
    still: Option<Still>,
    caption: Caption,
}

impl Brush {
    fn new(film: &Film, prompt: &str, counter: Counter, still: Option<Still>) -> Self {
        let (format, departure) = (film.format, &film.departure);
        let (width, height) = (format.width as usize, format.height as usize);
        let painter = |scene: &Scene| Painter::new(scene, departure.world.land, width, height);
        let changed = departure.from != departure.to;
        Self {
            old: changed.then(|| painter(&departure.from)),
            new: painter(&departure.to),
            spare: if changed {
                vec![0; format.frame_bytes()]
            } else {
                Vec::new()
            },
            still,
            caption: Caption::new(prompt, counter, departure.lost, width, height),
        }
    }

    /// Draws frame `n` of the film over all of `frame`.
    fn paint(&mut self, film: &Film, n: u32, frame: &mut [u8]) {
        let world = &film.departure.world;
        let fade = film.fade(n + 1);
        self.new.paint(world, frame);
        match &mut self.old {
            Some(old) if fade < 1.0 => {
                old.paint(world, &mut self.spare);
                draw::cross_fade(frame, &self.spare, fade);
            }
            _ => self.old = None,
        }
        if let Some(still) = &self.still {
            let progress = n as f32 / (film.format.num_frames - 1).max(1) as f32;
            still.paint(progress, frame);
        }
        let mut canvas = Canvas {
            width: film.format.width as usize,
            height: film.format.height as usize,
            pixels: frame,
        };
        self.caption.paint(n, &mut canvas);
    }
}

impl Film {
    fn new(departure: Departure, format: VideoFormat) -> Self {
        let fade_frames = if departure.from != departure.to {
            format.fps.min(format.num_frames)
        } else {
            0
        };
        Self {
            format,
            departure,
            fade_frames,
        }
    }

    /// Returns the share of the new scene after `frames` frames of the segment. It reaches 1 within the segment, so
    /// that a state never holds a half-faded scene.
    fn fade(&self, frames: u32) -> f32 {
        if frames >= self.fade_frames {
            1.0
        } else {
            wave::smoothstep(frames as f32 / self.fade_frames as f32)
        }
    }

    fn play(&mut self, n: u32, sound: &mut Vec<f32>) {
        let Departure {
            world, from, to, ..
        } = &self.departure;
        let (old, new) = (Chord::of(from), Chord::of(to));
        let [now, then] = [n, n + 1].map(|n| old.mix(new, self.fade(n)));
        let start = AUDIO.sample_at(u64::from(n), self.format.fps);
        let end = AUDIO.sample_at(u64::from(n) + 1, self.format.fps);
        let samples = u32::try_from(end - start).unwrap_or(u32::MAX);
        let mut state = world.sound.clone();
        now.play(&then, &mut state, samples, sound);
        self.departure.world.sound = state;
    }

    fn advance(&mut self, n: u32) {
        let fade = self.fade(n + 1);
        let Departure {
            world, from, to, ..
        } = &mut self.departure;
        world.advance(from, to, fade, self.format.fps);
    }
}

/// Collects the trailing frames at their place in the state's blob.
struct StateWriter {
    format: VideoFormat,
    frames: FramesLayout,
    latents: TensorLayout,
    /// The blob; allocated at the first trailing frame, because its pages would only delay the first frame before that.
    blob: Option<MemoryBuffer>,
}

impl StateWriter {
    fn new(format: VideoFormat, most_frames: u32, latents: TensorLayout) -> Self {
        let frames = FramesLayout {
            count: most_frames.min(format.num_frames),
            height: format.height,
            width: format.width,
        };
        Self {
            format,
            frames,
            latents,
            blob: None,
        }
    }

    fn blob(&mut self) -> Result<&mut MemoryBuffer, EngineError> {
        let blob = match self.blob.take() {
            Some(blob) => blob,
            None => {
                let bytes = usize::try_from(self.frames.bytes() + self.latents.bytes())
                    .expect("a state fits into memory, as its frames did");
                state_memory(bytes)?
            }
        };
        Ok(self.blob.insert(blob))
    }

    fn take(&mut self, n: u32, frame: &[u8]) -> Result<(), EngineError> {
        let first = self.format.num_frames - self.frames.count;
        if n >= first {
            let at = (n - first) as usize * frame.len();
            self.blob()?[at..at + frame.len()].copy_from_slice(frame);
        }
        Ok(())
    }

    /// Finishes the state. `previous` is the index of the segment whose state was continued.
    fn finish(mut self, film: Film, previous: Option<u32>) -> Result<NewState, EngineError> {
        let frames_end = self.format.frame_bytes() * self.frames.count as usize;
        let (frames, latents) = self.blob()?.split_at_mut(frames_end);
        let memory = Memory {
            world: film.departure.world,
            scene: film.departure.to,
            frames: crc32fast::hash(frames),
        };
        memory.write(latents);
        let new_frames = self.format.num_frames - self.frames.count;
        let header = StateHeader {
            segment_index: previous.map_or(0, |index| index.saturating_add(1)),
            video_conditioning_frame_idx: 0,
            video_conditioning_strength: 1.0,
            audio_sample_rate: Some(AUDIO.sample_rate),
            audio_conditioning_num_frames: u32::try_from(self.latents.shape[2])
                .expect("made from a u32"),
            audio_conditioning_strength: 1.0,
            video_position_offset_sec: f64::from(new_frames) / f64::from(self.format.fps),
            metadata: serde_json::json!({ "engine": "synthetic" }).to_string(),
            frames: Some(self.frames),
            audio_latents: Some(self.latents),
            blob_hash: [0; 32],
        };
        let blob = self.blob.expect("made above");
        Ok(NewState { header, blob })
    }
}
