//! The configuration of the pool: the keys `streaming.pool.*` and `streaming.encoder.*`, those of `streaming.videos.*` by
//! which workers are shared, and those of an engine's workers.
//!
//! `gpus` resolves the operator's specification of GPUs.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use fastvideo_proto::adapter::Adapter;
use fastvideo_proto::ids::GpuId;
use fastvideo_proto::job::{VideoFormat, frames_to_time};
use fastvideo_proto::link::{EncoderSpec, EngineSpec, WarmupSpec};

use self::gpus::{GpuError, GpuSpec, Machine};
use crate::engines::config::{MAX_GPUS, NUM_GPUS};
use crate::engines::{self, Engine, Shapes, conditioning, default_request, warmup};
use crate::settings::{DAY, HOUR, Key, KeySpec, MINUTE, Origin, Reader, Reload};

mod gpus;

/// The workers to run, and how to supervise them.
#[derive(Clone, Debug)]
pub struct Config {
    /// The worker's executable.
    pub worker_bin: PathBuf,
    /// The GPUs; one worker is run for each.
    pub gpus: Vec<Gpu>,
    pub engine: EngineSpec,
    /// The adapters that the engine offers to clients.
    pub adapters: Vec<Adapter>,
    /// The folder of the adapters that an operator may load while workers serve.
    pub adapters_folder: Option<PathBuf>,
    /// Whether the engine makes previews.
    pub previews: bool,
    /// The format of every segment.
    pub format: VideoFormat,
    /// The number of frames that a segment adds to the one before. It is less than the segment's length when the
    /// segment begins with frames of the one before.
    pub new_frames: u32,
    /// The pictures and segments that the model makes.
    pub shapes: Shapes,
    /// The number of steps that follow the denoise steps of a request, as far as it is known.
    pub refine_steps: u32,
    /// What clients of video jobs call the model where the operator gives it no name.
    pub model_name: String,
    pub encoder: EncoderSpec,
    /// The segments that a worker generates before it is ready; `None` for no warm-up.
    pub warmup: Option<WarmupSpec>,
    /// Whether warm-up generates segments like those of the default request, so that its timing predicts the generation
    /// time.
    pub warmup_is_typical: bool,
    /// The number of sessions that may share one worker, at least 1.
    pub sessions_per_gpu: usize,
    /// Admission control: whether a worker takes another session only while it generates faster than all its sessions
    /// play.
    pub keep_up: bool,
    /// The number of workers, the last ones, on which video jobs come first; at most as many as there are GPUs.
    pub reserved_gpus: usize,
    /// How long a worker begins no segment of a video job after a viewer's segment has pre-empted one.
    pub yield_pause: Duration,
    pub recycle: Recycle,
    /// The longest time from the start of a process to its readiness.
    pub boot_timeout: Duration,
    /// The longest time from the start of a process to its first message.
    pub connect_timeout: Duration,
    /// The interval at which a worker sends heartbeats.
    pub heartbeat_interval: Duration,
    /// The heartbeat timeout: a worker that has sent no heartbeat for this long is stuck.
    pub heartbeat_timeout: Duration,
    /// The lower bound of the progress timeout. The timeout grows with the median step time and with what warm-up took.
    pub min_step_timeout: Duration,
    /// The first pause of the exponential backoff between an exit and the next start.
    pub min_backoff: Duration,
    /// The longest pause of the exponential backoff.
    pub max_backoff: Duration,
    /// A denoise step that took at least this long leaves a step snapshot; `None`: no step does.
    pub snapshot_min_step: Option<Duration>,
    /// The number of exits in a row, without a finished job between them, that quarantines a worker.
    pub quarantine_after: u32,
    /// The time without a serving worker after which all quarantines are lifted.
    pub quarantine_lift: Duration,
    /// The time after which a worker is tried again that was quarantined because it exited during jobs. It doubles with
    /// each trial that fails.
    pub quarantine_trial: Duration,
    /// Whether the threads that read the workers' events ask for real-time scheduling; see [`crate::thread_priority`].
    pub realtime: bool,
}

impl Config {
    /// Returns how long a segment plays that continues another one.
    pub(super) fn segment_plays(&self) -> Duration {
        frames_to_time(self.new_frames.into(), self.format.fps)
    }

    /// Returns how long a segment took to generate, by how long it plays: at most 1 in real time.
    pub(super) fn real_time_factor(&self, generation: Duration) -> f64 {
        generation.as_secs_f64() / self.segment_plays().as_secs_f64()
    }
}

/// When the process of a working worker is replaced by a fresh one. A process is replaced only between two jobs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Recycle {
    /// The process is replaced after this many jobs, at least 1.
    pub after_segments: Option<u32>,
    /// The process is replaced when its resident memory exceeds this many bytes.
    pub above_bytes: Option<u64>,
    /// Whether the next process boots as a standby while the old one still serves. The GPU then holds both for a while.
    pub overlap: bool,
}

/// One GPU as the operator named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub id: GpuId,
    /// The worker's `CUDA_VISIBLE_DEVICES`: an ordinal, a UUID or a MIG id.
    pub visible_device: String,
}

/// The keys of `streaming.pool`, some of which other modules read.
pub static KEYS: &[&KeySpec] = &[
    &GPUS.spec,
    &NUM_WORKERS.spec,
    &SESSIONS_PER_GPU.spec,
    &KEEP_UP.spec,
    &RECYCLE_AFTER_SEGMENTS.spec,
    &RECYCLE_ABOVE_MIB.spec,
    &RECYCLE_OVERLAP.spec,
    &MAX_ATTEMPTS.spec,
    &STEP_SNAPSHOTS.spec,
    &STEP_SNAPSHOT_MIN.spec,
    &WORKER_BIN.spec,
    &conditioning::NUM_FRAMES.spec,
    &conditioning::END_OFFSET.spec,
    &conditioning::ENABLE_AUDIO_REENCODE.spec,
    &CONNECT_TIMEOUT.spec,
    &HEARTBEAT_INTERVAL.spec,
    &HEARTBEAT_TIMEOUT.spec,
    &MIN_STEP_TIMEOUT.spec,
    &MIN_BACKOFF.spec,
    &MAX_BACKOFF.spec,
    &QUARANTINE_AFTER.spec,
    &QUARANTINE_LIFT.spec,
    &QUARANTINE_TRIAL.spec,
];

/// The keys of `streaming.encoder`.
pub static ENCODER_KEYS: &[&KeySpec] = &[
    &VIDEO_CODEC.spec,
    &CRF.spec,
    &FRAGMENT.spec,
    &AUDIO_BIT_RATE.spec,
    &JPEG_QUALITY.spec,
];

/// This key belongs to the section `server`, since it concerns threads of the whole process.
pub static REALTIME: Key<bool> = Key::switch("server.realtime")
    .help("Let the threads between workers and clients run before others, so that busy cores delay no fragment: with real-time priority where the system allows it, in short time slices elsewhere")
    .default(true);

static GPUS: Key<Option<String>> = Key::items(
    "streaming.pool.gpus",
    "GPUS",
    "a count, `all`, or a list such as `0,2`",
)
.short("gpus")
.help("GPUs to use: a count, `all`, or a list of ordinals, GPU UUIDs and MIG ids (`0,2`; one alone: `2,`) [default: 1]");

static NUM_WORKERS: Key<Option<u32>> = Key::u32("streaming.pool.num_workers", 1, MAX_GPUS)
    .unit("GPUs")
    .help("Number of GPUs where --gpus does not say so; FastVideo's name");

static SESSIONS_PER_GPU: Key<usize> = Key::usize("streaming.pool.sessions_per_gpu", 1, 10_000)
    .short("sessions-per-gpu")
    .unit("sessions")
    .reload(Reload::AtOnce)
    .help("Sessions that share one GPU, segment by segment")
    .default(1);

static KEEP_UP: Key<bool> = Key::switch("streaming.pool.keep_up")
    .reload(Reload::AtOnce)
    .help("Let a GPU take another session only while it makes video for all of them in time; the others wait")
    .default(true);

static RECYCLE_AFTER_SEGMENTS: Key<u32> =
    Key::u32("streaming.pool.recycle_after_segments", 0, 1_000_000_000)
        .unit("segments")
        .reload(Reload::AtOnce)
        .help("Segments after which a worker is replaced by a fresh one, 0 for never")
        .default(0);

static RECYCLE_ABOVE_MIB: Key<u64> = Key::u64("streaming.pool.recycle_above_mib", 0, 1 << 24)
    .unit("MiB")
    .reload(Reload::AtOnce)
    .help("Resident memory above which a worker is replaced by a fresh one, 0 for never")
    .default(0);

static RECYCLE_OVERLAP: Key<bool> = Key::switch("streaming.pool.recycle_overlap")
    .reload(Reload::AtOnce)
    .help("Make the fresh worker ready before the old one leaves, where a GPU's memory holds two")
    .default(false);

/// This key is read by the sessions, which count the attempts.
pub static MAX_ATTEMPTS: Key<u32> = Key::u32("streaming.pool.max_attempts", 1, 100)
    .short("max-attempts")
    .unit("workers")
    .reload(Reload::Later)
    .help("Workers that one segment may cost before it is refused")
    .default(5);

static STEP_SNAPSHOTS: Key<bool> = Key::switch("streaming.pool.step_snapshots")
    .reload(Reload::AtOnce)
    .help("Keep the latents after each denoise step in memory, so that a segment whose worker is lost goes on from there")
    .default(true);

/// The copy of the latents takes a few milliseconds, so that of a quicker step would cost more than it saves.
static STEP_SNAPSHOT_MIN: Key<Duration> =
    Key::millis("streaming.pool.step_snapshot_min_ms", 0.0, HOUR * 1e3)
        .reload(Reload::AtOnce)
        .help("Least time that a denoise step takes whose latents are kept, 0 for every step")
        .default(200.0);

static WORKER_BIN: Key<Option<String>> = Key::text("streaming.pool.worker_bin")
    .short("worker-bin")
    .help("The worker program [default: fastvideo-worker beside this program]");

static CONNECT_TIMEOUT: Key<Duration> = Key::millis(
    "streaming.pool.connect_timeout_ms",
    10.0,
    HOUR * 1e3,
)
.reload(Reload::AtOnce)
.help("Longest time from the start of a worker to its first message, before it loads anything")
.default(60_000.0);

static HEARTBEAT_INTERVAL: Key<Duration> =
    Key::millis("streaming.pool.heartbeat_interval_ms", 10.0, MINUTE * 1e3)
        .help("How often a worker says that it lives")
        .default(1000.0);

static HEARTBEAT_TIMEOUT: Key<Duration> =
    Key::millis("streaming.pool.heartbeat_timeout_ms", 20.0, HOUR * 1e3)
        .reload(Reload::AtOnce)
        .help("A worker that is silent for this long is stuck and is replaced")
        .default(5000.0);

static MIN_STEP_TIMEOUT: Key<Duration> = Key::millis(
    "streaming.pool.min_step_timeout_ms",
    10.0,
    DAY * 1e3,
)
.reload(Reload::AtOnce)
    .help("Least time that a denoise step may take before its worker is stuck; ten times the median step when that is more")
.default(30_000.0);

static MIN_BACKOFF: Key<Duration> = Key::millis("streaming.pool.min_backoff_ms", 1.0, HOUR * 1e3)
    .reload(Reload::AtOnce)
    .help("Pause before a worker is started again; doubles with each exit in a row")
    .default(500.0);

static MAX_BACKOFF: Key<Duration> = Key::millis("streaming.pool.max_backoff_ms", 1.0, HOUR * 1e3)
    .reload(Reload::AtOnce)
    .help("Longest pause before a worker is started again")
    .default(60_000.0);

static QUARANTINE_AFTER: Key<u32> = Key::u32("streaming.pool.quarantine_after", 1, 1000)
    .unit("exits")
    .reload(Reload::AtOnce)
    .help("Exits in a row, without a finished segment between, after which a GPU is left alone")
    .default(5);

static QUARANTINE_LIFT: Key<Duration> =
    Key::seconds("streaming.pool.quarantine_lift_seconds", 0.01, DAY)
        .reload(Reload::AtOnce)
        .help("With no worker left, GPUs that were left alone are tried again after this time")
        .default(60.0);

static QUARANTINE_TRIAL: Key<Duration> =
    Key::seconds("streaming.pool.quarantine_trial_seconds", 0.01, DAY)
        .reload(Reload::AtOnce)
    .help("A GPU that was left alone because its worker died during segments is tried again after this time, and after twice as long each time that this fails")
        .default(30.0);

/// This key and the next one stand among those of video jobs.
pub static RESERVED_GPUS: Key<usize> =
    Key::usize("streaming.videos.reserved_gpus", 0, MAX_GPUS as usize)
        .unit("GPUs")
        .reload(Reload::AtOnce)
        .help("GPUs, the last ones, on which video jobs come before sessions")
        .default(0);

pub static YIELD_PAUSE: Key<Duration> =
    Key::millis("streaming.videos.yield_pause_ms", 0.0, MINUTE * 1e3)
        .reload(Reload::AtOnce)
        .help("How long a GPU runs no video job after a session's segment has pre-empted one")
        .default(200.0);

static VIDEO_CODEC: Key<String> =
    Key::choice("streaming.encoder.video_codec", &["libx264", "h264_nvenc"])
        .help("Video encoder")
        .default("libx264");

static CRF: Key<u32> = Key::u32("streaming.encoder.crf", 0, 51)
    .help("Constant rate factor: smaller looks better and takes more bytes")
    .default(23);

static FRAGMENT: Key<Duration> = Key::millis("streaming.encoder.fragment_ms", 20.0, MINUTE * 1e3)
    .help("Length of one media fragment")
    .default(250.0);

static AUDIO_BIT_RATE: Key<u32> = Key::u32("streaming.encoder.audio_bit_rate", 8_000, 512_000)
    .unit("bit/s")
    .help("Bit rate of the sound")
    .default(128_000);

static JPEG_QUALITY: Key<u8> = Key::u8("streaming.encoder.jpeg_quality", 1, 100)
    .help("Quality of the pictures of a legacy_jpeg session")
    .default(85);

#[derive(Debug, thiserror::Error)]
#[error("`{}` {source} ({origin})", GPUS.spec.path)]
struct BadGpus {
    source: GpuError,
    origin: Origin,
}

#[derive(Debug, thiserror::Error)]
#[error("the worker program {} {problem}; `--worker-bin` names another", path.display())]
struct BadWorkerBin {
    path: PathBuf,
    problem: &'static str,
}

/// Refuses values that contradict each other.
pub(crate) fn check(reader: &mut Reader<'_>) {
    reader.refuse_reversed(&HEARTBEAT_INTERVAL, &HEARTBEAT_TIMEOUT);
    reader.refuse_reversed(&MIN_BACKOFF, &MAX_BACKOFF);
}

pub(crate) fn read(reader: &mut Reader<'_>) -> Config {
    let engine = engines::config::read(reader);
    let format = default_request::format(reader);
    let worker_bin = worker_bin(reader);
    let gpus = read_gpus(reader, &engine);
    Config {
        worker_bin,
        reserved_gpus: reserved_gpus(reader, gpus.len()),
        yield_pause: reader.get(&YIELD_PAUSE),
        gpus,
        format,
        new_frames: engine.new_frames(format.num_frames),
        encoder: encoder(reader),
        warmup: warmup::read(reader, engine.warms_up_at_full_size),
        warmup_is_typical: warmup::is_typical(reader, engine.warms_up_at_full_size),
        shapes: engine.shapes,
        refine_steps: engine.refine_steps,
        model_name: engine.model_name,
        engine: engine.spec,
        adapters: engine.adapters,
        adapters_folder: engine.adapters_folder,
        previews: engine.previews,
        sessions_per_gpu: reader.get(&SESSIONS_PER_GPU),
        keep_up: reader.get(&KEEP_UP),
        recycle: recycle(reader),
        boot_timeout: reader.get(&warmup::TIMEOUT),
        connect_timeout: reader.get(&CONNECT_TIMEOUT),
        heartbeat_interval: reader.get(&HEARTBEAT_INTERVAL),
        heartbeat_timeout: reader.get(&HEARTBEAT_TIMEOUT),
        min_step_timeout: reader.get(&MIN_STEP_TIMEOUT),
        min_backoff: reader.get(&MIN_BACKOFF),
        max_backoff: reader.get(&MAX_BACKOFF),
        snapshot_min_step: (reader.get(&STEP_SNAPSHOTS)).then(|| reader.get(&STEP_SNAPSHOT_MIN)),
        quarantine_after: reader.get(&QUARANTINE_AFTER),
        quarantine_lift: reader.get(&QUARANTINE_LIFT),
        quarantine_trial: reader.get(&QUARANTINE_TRIAL),
        realtime: reader.get(&REALTIME),
    }
}

fn worker_bin(reader: &mut Reader<'_>) -> PathBuf {
    let path = match reader.get(&WORKER_BIN) {
        Some(path) => PathBuf::from(path),
        None => (reader.surroundings().program_folder).join("fastvideo-worker"),
    };
    let problem = match std::fs::metadata(&path) {
        Err(_) => Some("is not there"),
        Ok(file) if !file.is_file() => Some("is not a file"),
        Ok(file) if file.permissions().mode() & 0o111 == 0 => Some("is not executable"),
        Ok(_) => None,
    };
    if let Some(problem) = problem {
        let path = path.clone();
        reader.refuse_because(BadWorkerBin { path, problem });
    }
    path
}

fn read_gpus(reader: &mut Reader<'_>, engine: &Engine) -> Vec<Gpu> {
    let machine = Machine::around(reader.surroundings());
    let (spec, origin) = match reader.get(&GPUS) {
        Some(text) => (text.parse(), reader.origin(&GPUS.spec)),
        None => {
            let (count, origin) = gpu_count(reader);
            (Ok(GpuSpec::Count(count)), origin)
        }
    };
    let gpus = spec.and_then(|spec| match engine.needs_gpu {
        true => machine.gpus(&spec),
        false => machine.places(&spec),
    });
    gpus.unwrap_or_else(|source| {
        reader.refuse_because(BadGpus { source, origin });
        Vec::new()
    })
}

/// Returns the number of GPUs that are reserved for video jobs. `gpus` is 0 when the GPUs were refused.
fn reserved_gpus(reader: &mut Reader<'_>, gpus: usize) -> usize {
    let reserved = reader.get(&RESERVED_GPUS);
    if reserved > gpus && gpus > 0 {
        reader.refuse(
            &RESERVED_GPUS.spec,
            format!("at most the number of GPUs, which is {gpus}"),
        );
    }
    reserved
}

/// Returns the count by either of FastVideo's two names for it; the one of the streaming server takes precedence.
fn gpu_count(reader: &Reader<'_>) -> (u32, Origin) {
    for key in [&NUM_WORKERS, &NUM_GPUS] {
        if let Some(count) = reader.get(key) {
            return (count, reader.origin(&key.spec));
        }
    }
    (1, Origin::Default)
}

fn recycle(reader: &Reader<'_>) -> Recycle {
    let mib = reader.get(&RECYCLE_ABOVE_MIB);
    Recycle {
        after_segments: Some(reader.get(&RECYCLE_AFTER_SEGMENTS)).filter(|&segments| segments > 0),
        above_bytes: Some(mib << 20).filter(|&bytes| bytes > 0),
        overlap: reader.get(&RECYCLE_OVERLAP),
    }
}

pub(crate) fn encoder(reader: &Reader<'_>) -> EncoderSpec {
    EncoderSpec {
        video_codec: reader.get(&VIDEO_CODEC),
        crf: reader.get(&CRF),
        fragment: reader.get(&FRAGMENT),
        audio_bit_rate: reader.get(&AUDIO_BIT_RATE),
        jpeg_quality: reader.get(&JPEG_QUALITY),
    }
}
