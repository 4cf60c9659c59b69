//! The configuration keys: one table from which come the flags, the environment variables, the checks of the file and
//! `--help`.

use super::kind::{Kind, decimal, even, whole};

/// One thing that can be configured.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its place in the file and, behind `--`, its flag.
    pub(crate) path: &'static str,
    /// A shorter flag for the keys that are used most.
    pub(crate) short: Option<&'static str>,
    pub(crate) kind: Kind,
    /// As a flag would give it; the help text tells what holds where there is none.
    pub(crate) default: Option<&'static str>,
    pub(crate) help: &'static str,
}

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
/// Seconds.
const MINUTE: f64 = 60.0;
const HOUR: f64 = 60.0 * MINUTE;
const DAY: f64 = 24.0 * HOUR;
/// Sixteen GPUs split into seven MIG instances each, with room to spare.
pub(super) const MAX_GPUS: u64 = 128;
/// No sampler in use takes more.
const MAX_STEPS: u64 = 1000;

/// In the order in which `--help` and `check` show them: sections stay together.
pub(crate) const KEYS: &[Key] = &[
    Key {
        path: "generator.engine.name",
        short: Some("engine"),
        kind: Kind::Choice(&["synthetic", "ltx2"]),
        default: None,
        help: "The model's engine; synthetic makes test pictures and sound without a GPU [default: ltx2 with a model, else synthetic]",
    },
    Key {
        path: "generator.engine.num_gpus",
        short: None,
        kind: whole(1, MAX_GPUS, "GPUs"),
        default: None,
        help: "Number of GPUs where neither --gpus nor streaming.pool.num_workers says so [default: 1]",
    },
    Key {
        path: "generator.model_path",
        short: Some("model"),
        kind: Kind::Text,
        default: None,
        help: "The model: a folder or a Hugging Face id",
    },
    Key {
        path: "generator.ltx2.device",
        short: Some("device"),
        kind: Kind::Choice(&["auto", "cpu", "cuda"]),
        default: Some("auto"),
        help: "Where workers compute; auto takes the GPU that they have, or else the CPU",
    },
    Key {
        path: "generator.ltx2.precision",
        short: None,
        kind: Kind::Choice(&["auto", "bfloat16", "float32"]),
        default: Some("auto"),
        help: "What the model computes in; auto is bfloat16 on a GPU and float32 on the CPU",
    },
    Key {
        path: "generator.ltx2.stages",
        short: None,
        kind: Kind::Choice(&["auto", "one", "two"]),
        default: Some("auto"),
        help: "Whether a segment is made at half the size first; auto does so where the model has an upsampler",
    },
    Key {
        path: "generator.ltx2.refine_steps",
        short: None,
        kind: whole(1, 3, "steps"),
        default: Some("2"),
        help: "Denoise steps of the second stage",
    },
    Key {
        path: "generator.ltx2.audio_conditioning_num_frames",
        short: None,
        kind: whole(0, 1000, "frames"),
        default: Some("49"),
        help: "Frames' worth of sound that a segment takes over from the one before",
    },
    Key {
        path: "generator.ltx2.draw_order",
        short: None,
        kind: Kind::Choice(&["channels", "tokens"]),
        default: Some("channels"),
        help: "How a seed's random numbers are laid out: as diffusers' text-to-video does, or token by token as FastVideo does",
    },
    Key {
        path: "generator.ltx2.positions",
        short: None,
        kind: Kind::Choice(&["float32", "bfloat16"]),
        default: Some("float32"),
        help: "What positions in the picture are rounded to: bfloat16 as FastVideo does",
    },
    Key {
        path: "generator.ltx2.vae_tiling",
        short: None,
        kind: Kind::Choice(&["whole", "grouped", "library", "fastvideo"]),
        default: Some("grouped"),
        help: "How frames are decoded: all at once, a few at a time with the same result, or in blended tiles as diffusers or FastVideo cut them",
    },
    Key {
        path: "generator.ltx2.kernels",
        short: None,
        kind: Kind::Switch,
        default: Some("true"),
        help: "Use this program's own CUDA kernels on a GPU; without, libtorch's alone",
    },
    Key {
        path: "generator.ltx2.check_weights",
        short: None,
        kind: Kind::Switch,
        default: Some("false"),
        help: "Look for weights that are no numbers while the model is loaded",
    },
    Key {
        path: "generator.synthetic.step_ms",
        short: None,
        kind: decimal(0.0, HOUR * 1e3, "ms"),
        default: Some("0"),
        help: "Time that each denoise step takes",
    },
    Key {
        path: "generator.synthetic.frame_ms",
        short: None,
        kind: decimal(0.0, HOUR * 1e3, "ms"),
        default: Some("0"),
        help: "Time that each frame takes to come out",
    },
    Key {
        path: "generator.synthetic.load_ms",
        short: None,
        kind: decimal(0.0, HOUR * 1e3, "ms"),
        default: Some("0"),
        help: "Time that loading takes",
    },
    Key {
        path: "generator.synthetic.audio_latent_frames",
        short: None,
        kind: whole(0, 1024, "latents"),
        default: Some("51"),
        help: "Audio latents in the continuation state",
    },
    Key {
        path: "generator.synthetic.prerender",
        short: None,
        kind: Kind::Switch,
        default: Some("false"),
        help: "For benchmarks: draw some frames at load and repeat them",
    },
    Key {
        path: "generator.synthetic.faults",
        short: None,
        kind: Kind::Text,
        default: None,
        help: "For tests only: faults to inject, such as `exit@step2,segment=1,max_attempt=1;garbage@boot,gpu=0`",
    },
    Key {
        path: "server.host",
        short: Some("host"),
        kind: Kind::Text,
        default: Some("0.0.0.0"),
        help: "Address to listen on",
    },
    Key {
        path: "server.port",
        short: Some("port"),
        kind: whole(0, 65_535, ""),
        default: Some("8000"),
        help: "Port to listen on, 0 for any free one",
    },
    Key {
        path: "server.service_name",
        short: None,
        kind: Kind::Text,
        default: Some("ltx2-streaming-backend"),
        help: "The `service` that /healthz and /readyz name; the default is what FastVideo's server answers",
    },
    Key {
        path: "server.grace_seconds",
        short: Some("grace-seconds"),
        kind: decimal(0.0, HOUR, "seconds"),
        default: Some("30"),
        help: "Time that running segments have to finish after the first SIGTERM",
    },
    Key {
        path: "server.realtime",
        short: None,
        kind: Kind::Switch,
        default: Some("true"),
        help: "Let the threads between workers and clients run before others, so that busy cores delay no fragment: with real-time priority where the system allows it, in short time slices elsewhere",
    },
    Key {
        path: "server.log_format",
        short: Some("log-format"),
        kind: Kind::Choice(&["text", "json"]),
        default: Some("text"),
        help: "How the log on stderr is written",
    },
    Key {
        path: "server.log_level",
        short: Some("log-level"),
        kind: Kind::Text,
        default: None,
        help: "What is logged: error, warn, info, debug, trace, or a filter as in RUST_LOG [default: RUST_LOG, or info]",
    },
    Key {
        path: "default_request.negative_prompt",
        short: None,
        kind: Kind::Text,
        default: None,
        help: "What the video should not show",
    },
    Key {
        path: "default_request.sampling.width",
        short: None,
        kind: even(64, 4096, "pixels"),
        default: Some("768"),
        help: "Width of the video",
    },
    Key {
        path: "default_request.sampling.height",
        short: None,
        kind: even(64, 2176, "pixels"),
        default: Some("512"),
        help: "Height of the video",
    },
    Key {
        path: "default_request.sampling.num_frames",
        short: None,
        kind: whole(1, 1000, "frames"),
        default: Some("121"),
        help: "Frames of one segment",
    },
    Key {
        path: "default_request.sampling.fps",
        short: None,
        kind: whole(1, 120, "frames per second"),
        default: Some("24"),
        help: "Frames per second",
    },
    Key {
        path: "default_request.sampling.num_inference_steps",
        short: None,
        kind: whole(1, MAX_STEPS, "steps"),
        default: Some("8"),
        help: "Denoise steps of one segment",
    },
    Key {
        path: "default_request.sampling.seed",
        short: None,
        kind: whole(0, u64::MAX, ""),
        default: Some("10"),
        help: "Seed of a request that brings none",
    },
    Key {
        path: "default_request.sampling.guidance_scale",
        short: None,
        kind: decimal(0.0, 100.0, ""),
        default: Some("1"),
        help: "Guidance scale; 1 is without guidance",
    },
    Key {
        path: "streaming.session_timeout_seconds",
        short: None,
        kind: decimal(0.01, DAY, "seconds"),
        default: Some("300"),
        help: "A session without a message from its client and without a running segment ends after this time",
    },
    Key {
        path: "streaming.resume_ttl_seconds",
        short: None,
        kind: decimal(0.1, 30.0 * DAY, "seconds"),
        default: Some("300"),
        help: "A session whose client is gone can be resumed for this long",
    },
    Key {
        path: "streaming.generation_segment_cap",
        short: None,
        kind: whole(1, 1_000_000, "segments"),
        default: Some("6"),
        help: "Segments after which a session is complete",
    },
    Key {
        path: "streaming.warmup.enabled",
        short: None,
        kind: Kind::Switch,
        default: Some("true"),
        help: "Generate two segments before a worker counts as ready: small ones, or for a model such as the default request asks for",
    },
    Key {
        path: "streaming.warmup.prompt",
        short: None,
        kind: Kind::Text,
        default: Some("A paper lantern drifts over a quiet lake at dusk, slow camera, soft light"),
        help: "Prompt of the warm-up segments",
    },
    Key {
        path: "streaming.warmup.timeout_seconds",
        short: None,
        kind: decimal(0.1, DAY, "seconds"),
        default: Some("2400"),
        help: "Time that a worker has from its start to its readiness, loading and warm-up together",
    },
    Key {
        path: "streaming.warmup.width",
        short: None,
        kind: even(64, 4096, "pixels"),
        default: Some("256"),
        help: "Width of the warm-up segments",
    },
    Key {
        path: "streaming.warmup.height",
        short: None,
        kind: even(64, 2176, "pixels"),
        default: Some("256"),
        help: "Height of the warm-up segments",
    },
    Key {
        path: "streaming.warmup.num_frames",
        short: None,
        kind: whole(1, 1000, "frames"),
        default: Some("8"),
        help: "Frames of each warm-up segment",
    },
    Key {
        path: "streaming.warmup.num_inference_steps",
        short: None,
        kind: whole(1, MAX_STEPS, "steps"),
        default: Some("1"),
        help: "Denoise steps of each warm-up segment",
    },
    Key {
        path: "streaming.pool.gpus",
        short: Some("gpus"),
        kind: Kind::Gpus,
        default: None,
        help: "GPUs to use: a count, `all`, or a list of ordinals, GPU UUIDs and MIG ids (`0,2`; one alone: `2,`) [default: 1]",
    },
    Key {
        path: "streaming.pool.num_workers",
        short: None,
        kind: whole(1, MAX_GPUS, "GPUs"),
        default: None,
        help: "Number of GPUs where --gpus does not say so; FastVideo's name",
    },
    Key {
        path: "streaming.pool.sessions_per_gpu",
        short: Some("sessions-per-gpu"),
        kind: whole(1, 10_000, "sessions"),
        default: Some("1"),
        help: "Sessions that share one GPU, segment by segment",
    },
    Key {
        path: "streaming.pool.keep_up",
        short: None,
        kind: Kind::Switch,
        default: Some("true"),
        help: "Let a GPU take another session only while it makes video for all of them in time; the others wait",
    },
    Key {
        path: "streaming.pool.recycle_after_segments",
        short: None,
        kind: whole(0, 1_000_000_000, "segments"),
        default: Some("0"),
        help: "Segments after which a worker is replaced by a fresh one, 0 for never",
    },
    Key {
        path: "streaming.pool.recycle_above_mib",
        short: None,
        kind: whole(0, 1 << 24, "MiB"),
        default: Some("0"),
        help: "Resident memory above which a worker is replaced by a fresh one, 0 for never",
    },
    Key {
        path: "streaming.pool.recycle_overlap",
        short: None,
        kind: Kind::Switch,
        default: Some("false"),
        help: "Make the fresh worker ready before the old one leaves, where a GPU's memory holds two",
    },
    Key {
        path: "streaming.pool.max_attempts",
        short: Some("max-attempts"),
        kind: whole(1, 100, "workers"),
        default: Some("5"),
        help: "Workers that one segment may cost before it is refused",
    },
    Key {
        path: "streaming.pool.worker_bin",
        short: Some("worker-bin"),
        kind: Kind::Text,
        default: None,
        help: "The worker program [default: fastvideo-worker beside this program]",
    },
    Key {
        path: "streaming.pool.conditioning_num_frames",
        short: None,
        kind: whole(0, 64, "frames"),
        default: Some("9"),
        help: "Last frames of a segment that the next one continues from",
    },
    Key {
        path: "streaming.pool.conditioning_end_offset",
        short: None,
        kind: whole(0, 1000, "frames"),
        default: Some("0"),
        help: "Frames at the end of a segment, behind those that the next one takes over",
    },
    Key {
        path: "streaming.pool.enable_audio_reencode",
        short: None,
        kind: Kind::Switch,
        default: Some("false"),
        help: "Continue from the sound as it was played, encoded again, and not from the latents it was made of",
    },
    Key {
        path: "streaming.pool.heartbeat_interval_ms",
        short: None,
        kind: decimal(10.0, MINUTE * 1e3, "ms"),
        default: Some("1000"),
        help: "How often a worker says that it lives",
    },
    Key {
        path: "streaming.pool.heartbeat_timeout_ms",
        short: None,
        kind: decimal(20.0, HOUR * 1e3, "ms"),
        default: Some("5000"),
        help: "A worker that is silent for this long is stuck and is replaced",
    },
    Key {
        path: "streaming.pool.min_step_timeout_ms",
        short: None,
        kind: decimal(10.0, DAY * 1e3, "ms"),
        default: Some("30000"),
        help: "Least time that a denoise step may take before its worker is stuck; ten times the median step when that is more",
    },
    Key {
        path: "streaming.pool.min_backoff_ms",
        short: None,
        kind: decimal(1.0, HOUR * 1e3, "ms"),
        default: Some("500"),
        help: "Pause before a worker is started again; doubles with each exit in a row",
    },
    Key {
        path: "streaming.pool.max_backoff_ms",
        short: None,
        kind: decimal(1.0, HOUR * 1e3, "ms"),
        default: Some("60000"),
        help: "Longest pause before a worker is started again",
    },
    Key {
        path: "streaming.pool.quarantine_after",
        short: None,
        kind: whole(1, 1000, "exits"),
        default: Some("5"),
        help: "Exits in a row, without a finished segment between, after which a GPU is left alone",
    },
    Key {
        path: "streaming.pool.quarantine_lift_seconds",
        short: None,
        kind: decimal(0.01, DAY, "seconds"),
        default: Some("60"),
        help: "With no worker left, GPUs that were left alone are tried again after this time",
    },
    Key {
        path: "streaming.encoder.video_codec",
        short: None,
        kind: Kind::Choice(&["libx264", "h264_nvenc"]),
        default: Some("libx264"),
        help: "Video encoder",
    },
    Key {
        path: "streaming.encoder.crf",
        short: None,
        kind: whole(0, 51, ""),
        default: Some("23"),
        help: "Constant rate factor: smaller looks better and takes more bytes",
    },
    Key {
        path: "streaming.encoder.fragment_ms",
        short: None,
        kind: decimal(20.0, MINUTE * 1e3, "ms"),
        default: Some("250"),
        help: "Length of one media fragment",
    },
    Key {
        path: "streaming.encoder.audio_bit_rate",
        short: None,
        kind: whole(8_000, 512_000, "bit/s"),
        default: Some("128000"),
        help: "Bit rate of the sound",
    },
    Key {
        path: "streaming.encoder.jpeg_quality",
        short: None,
        kind: whole(1, 100, ""),
        default: Some("85"),
        help: "Quality of the pictures of a legacy_jpeg session",
    },
    Key {
        path: "streaming.store.sessions",
        short: Some("store"),
        kind: Kind::Text,
        default: Some("memory:"),
        help: "Where sessions are kept: memory: until this process ends; file:///FOLDER through restarts; redis://HOST:PORT/DB, rediss:// with TLS, for several servers",
    },
    Key {
        path: "streaming.store.blobs",
        short: Some("blobs"),
        kind: Kind::Text,
        default: None,
        help: "Where the frames and latents of their states are kept: memory:, file:///FOLDER, or s3://BUCKET/PREFIX with the usual AWS_* variables [default: with the sessions; to be named with Redis]",
    },
    Key {
        path: "streaming.store.max_sessions",
        short: None,
        kind: whole(1, 10_000_000, "sessions"),
        default: Some("10000"),
        help: "Sessions that a store in memory keeps; when it is full, those that nobody runs leave, the oldest first",
    },
    Key {
        path: "streaming.store.max_mib",
        short: None,
        kind: whole(1, 1 << 30, "MiB"),
        default: Some("4096"),
        help: "States that a store in memory keeps",
    },
    Key {
        path: "streaming.store.lease_seconds",
        short: None,
        kind: decimal(0.1, HOUR, "seconds"),
        default: Some("6"),
        help: "The sessions of a server that is silent for this long count as left alone",
    },
    Key {
        path: "streaming.store.timeout_ms",
        short: None,
        kind: decimal(10.0, MINUTE * 1e3, "ms"),
        default: Some("2000"),
        help: "Time that the store has for one operation; a session goes on without it",
    },
    Key {
        path: "streaming.prompt.enabled",
        short: None,
        kind: Kind::Switch,
        default: Some("false"),
        help: "Let a language model enhance, extend and rewrite prompts",
    },
    Key {
        path: "streaming.prompt.provider",
        short: None,
        kind: Kind::Choice(&["cerebras", "groq", "openai_compatible"]),
        default: None,
        help: "Whose model; openai_compatible is any server with an OpenAI-like API, such as vLLM, Ollama or llama.cpp [default: cerebras]",
    },
    Key {
        path: "streaming.prompt.base_url",
        short: None,
        kind: Kind::Text,
        default: None,
        help: "Where `chat/completions` is found [default: that of the provider]",
    },
    Key {
        path: "streaming.prompt.api_key_env",
        short: None,
        kind: Kind::Text,
        default: None,
        help: "The environment variable that holds the key [default: CEREBRAS_API_KEY or GROQ_API_KEY; openai_compatible needs none]",
    },
    Key {
        path: "streaming.prompt.api_key_file",
        short: None,
        kind: Kind::Text,
        default: None,
        help: "A file that holds the key, instead of a variable [default: none]",
    },
    Key {
        path: "streaming.prompt.model",
        short: None,
        kind: Kind::Text,
        default: None,
        help: "The model [default: cerebras: gpt-oss-120b, groq: openai/gpt-oss-120b]",
    },
    Key {
        path: "streaming.prompt.timeout_ms",
        short: None,
        kind: decimal(1.0, HOUR * 1e3, "ms"),
        default: Some("20000"),
        help: "Time that a provider has for one answer",
    },
    Key {
        path: "streaming.prompt.operation_timeout_ms",
        short: None,
        kind: decimal(1.0, HOUR * 1e3, "ms"),
        default: Some("30000"),
        help: "Time for one prompt over all providers; then it is used as it was written",
    },
    Key {
        path: "streaming.prompt.providers",
        short: None,
        kind: Kind::Providers,
        default: None,
        help: "Several providers, asked in this order: each with `provider`, and where needed `base_url`, `api_key_env`, `api_key_file`, `model`, `models` (`{enhance, auto_extend, rewrite}`) and `timeout_ms` [default: the one of `provider`]",
    },
    Key {
        path: "streaming.prompt.system_prompt_dir",
        short: None,
        kind: Kind::Text,
        default: None,
        help: "Folder with enhance.txt, auto_extend.txt and rewrite.txt [default: built-in system prompts]",
    },
    Key {
        path: "streaming.prompt.enhance.model",
        short: None,
        kind: Kind::Text,
        default: None,
        help: "The model that enhances a prompt [default: that of the provider]",
    },
    Key {
        path: "streaming.prompt.enhance.temperature",
        short: None,
        kind: decimal(0.0, 2.0, ""),
        default: Some("0.7"),
        help: "Temperature of the model that enhances a prompt",
    },
    Key {
        path: "streaming.prompt.enhance.max_tokens",
        short: None,
        kind: whole(1, 100_000, "tokens"),
        default: Some("256"),
        help: "Most tokens of the model that enhances a prompt",
    },
    Key {
        path: "streaming.prompt.auto_extend.model",
        short: None,
        kind: Kind::Text,
        default: None,
        help: "The model that writes the next prompt [default: that of the provider]",
    },
    Key {
        path: "streaming.prompt.auto_extend.temperature",
        short: None,
        kind: decimal(0.0, 2.0, ""),
        default: Some("0.7"),
        help: "Temperature of the model that writes the next prompt",
    },
    Key {
        path: "streaming.prompt.auto_extend.max_tokens",
        short: None,
        kind: whole(1, 100_000, "tokens"),
        default: Some("256"),
        help: "Most tokens of the model that writes the next prompt",
    },
    Key {
        path: "streaming.prompt.rewrite.model",
        short: None,
        kind: Kind::Text,
        default: None,
        help: "The model that rewrites a prompt [default: that of the provider]",
    },
    Key {
        path: "streaming.prompt.rewrite.temperature",
        short: None,
        kind: decimal(0.0, 2.0, ""),
        default: Some("0.7"),
        help: "Temperature of the model that rewrites a prompt",
    },
    Key {
        path: "streaming.prompt.rewrite.max_tokens",
        short: None,
        kind: whole(1, 100_000, "tokens"),
        default: Some("1024"),
        help: "Most tokens of the model that rewrites a prompt",
    },
    Key {
        path: "streaming.prompt.max_parallel",
        short: None,
        kind: whole(1, 1000, "prompts"),
        default: Some("4"),
        help: "Curated prompts of one session that are enhanced at the same time",
    },
    Key {
        path: "streaming.prompt.cache_entries",
        short: None,
        kind: whole(0, 100_000, "prompts"),
        default: Some("256"),
        help: "Enhanced prompts that are kept and not asked for again",
    },
    Key {
        path: "streaming.prompt.breaker_failures",
        short: None,
        kind: whole(1, 1000, "failures"),
        default: Some("3"),
        help: "Failures in a row after which a provider is left alone for a while",
    },
    Key {
        path: "streaming.prompt.breaker_rest_seconds",
        short: None,
        kind: decimal(0.01, DAY, "seconds"),
        default: Some("30"),
        help: "How long it is left alone before it is tried again",
    },
    Key {
        path: "streaming.safety.enabled",
        short: None,
        kind: Kind::Switch,
        default: Some("false"),
        help: "Block prompts that a classifier calls unsafe",
    },
    Key {
        path: "streaming.safety.classifier_path",
        short: None,
        kind: Kind::Text,
        default: None,
        help: "The classifier: a supervised fastText model (.bin or .ftz) with the label __label__unsafe [default: none, and every prompt passes]",
    },
    Key {
        path: "streaming.safety.block_threshold",
        short: None,
        kind: decimal(0.0, 1.0, ""),
        default: Some("0.5"),
        help: "Score of that label from which a prompt is blocked",
    },
    Key {
        path: "streaming.safety.required",
        short: None,
        kind: Kind::Switch,
        default: Some("false"),
        help: "Do not start without the classifier; otherwise it is loaded when the first prompt comes, and every prompt passes when that fails",
    },
    Key {
        path: "streaming.safety.log_prompts",
        short: None,
        kind: Kind::Switch,
        default: Some("false"),
        help: "Show blocked prompts in the log",
    },
    Key {
        path: "streaming.session_log.dir",
        short: Some("session-log-dir"),
        kind: Kind::Text,
        default: None,
        help: "Folder in which each session has a file with what happened when, prompts included; see `sessions show` [default: none is kept]",
    },
    Key {
        path: "streaming.session_log.max_file_mib",
        short: None,
        kind: whole(1, 1 << 20, "MiB"),
        default: Some("16"),
        help: "At which a session's file is set aside and a new one begun; only the last one set aside is kept",
    },
    Key {
        path: "streaming.session_log.max_total_mib",
        short: None,
        kind: whole(1, 1 << 30, "MiB"),
        default: Some("1024"),
        help: "All files of session logs together; above it the oldest are removed",
    },
    Key {
        path: "streaming.session_log.max_age_days",
        short: None,
        kind: decimal(0.0001, 36_500.0, "days"),
        default: Some("30"),
        help: "Files of session logs to which nothing was added for so long are removed",
    },
    Key {
        path: "streaming.limits.max_sessions",
        short: Some("max-sessions"),
        kind: whole(1, 1_000_000, "sessions"),
        default: None,
        help: "Sessions at once, waiting ones included [default: the GPUs that can serve, plus 64]",
    },
    Key {
        path: "streaming.limits.max_sessions_per_client",
        short: Some("max-sessions-per-client"),
        kind: whole(1, 1_000_000, "sessions"),
        default: None,
        help: "Sessions at once from one address [default: no limit, since all clients of a proxy share its address]",
    },
    Key {
        path: "streaming.limits.max_message_bytes",
        short: None,
        kind: whole(64 * KIB, GIB, "bytes"),
        default: Some("50331648"),
        help: "Largest message accepted from a client",
    },
    Key {
        path: "streaming.limits.max_waiting_requests",
        short: None,
        kind: whole(1, 10_000, "requests"),
        default: Some("8"),
        help: "Requests that may wait in one session",
    },
    Key {
        path: "streaming.limits.max_prompt_chars",
        short: None,
        kind: whole(1, 1_000_000, "characters"),
        default: Some("4000"),
        help: "Longest prompt",
    },
    Key {
        path: "streaming.limits.max_image_pixels",
        short: None,
        kind: whole(4096, 1 << 30, "pixels"),
        default: Some("64000000"),
        help: "Largest initial image",
    },
    Key {
        path: "streaming.limits.max_inference_steps",
        short: None,
        kind: whole(1, MAX_STEPS, "steps"),
        default: Some("200"),
        help: "Most denoise steps that a client may ask for",
    },
    Key {
        path: "streaming.limits.max_unsent_bytes",
        short: None,
        kind: whole(64 * KIB, GIB, "bytes"),
        default: Some("16777216"),
        help: "Media that may wait for a client that does not read",
    },
    Key {
        path: "streaming.limits.slow_client_timeout_seconds",
        short: None,
        kind: decimal(0.01, HOUR, "seconds"),
        default: Some("30"),
        help: "How long a client may leave that much unread",
    },
    Key {
        path: "streaming.limits.opening_timeout_seconds",
        short: None,
        kind: decimal(0.01, HOUR, "seconds"),
        default: Some("30"),
        help: "Time that a client has for its opening message",
    },
    Key {
        path: "streaming.limits.ping_interval_seconds",
        short: None,
        kind: decimal(0.01, HOUR, "seconds"),
        default: Some("20"),
        help: "How often clients are pinged; one that answers nothing for two intervals is gone",
    },
];

impl Key {
    /// The flag by which messages and `--help` name this key.
    pub(crate) fn flag(&self) -> &'static str {
        self.short.unwrap_or(self.path)
    }

    /// `server.port` is `FASTVIDEO_SERVER__PORT`.
    pub(crate) fn variable(&self) -> String {
        format!("FASTVIDEO_{}", self.path.replace('.', "__").to_uppercase())
    }

    /// The path without its last part.
    pub(crate) fn section(&self) -> &'static str {
        self.path
            .rsplit_once('.')
            .map_or("", |(section, _)| section)
    }
}

pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// # Panics
/// When there is no such key: only for paths that are written in this program.
pub(super) fn index(path: &str) -> usize {
    KEYS.iter()
        .position(|key| key.path == path)
        .unwrap_or_else(|| unreachable!("`{path}` is not in the table"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_default_fits_its_key() {
        for key in KEYS {
            if let Some(text) = key.default {
                assert!(key.kind.read_text(text).is_some(), "{}", key.path);
            }
        }
    }

    #[test]
    fn every_key_says_what_holds_without_a_default() {
        for key in KEYS {
            let told = key.help.contains("[default");
            let silent = ["generator.model_path", "generator.synthetic.faults"];
            let optional = key.default.is_none()
                && !silent.contains(&key.path)
                && !key.path.ends_with("negative_prompt")
                && !key.path.ends_with("num_workers");
            assert_eq!(told, optional, "{}", key.path);
        }
    }

    #[test]
    fn paths_and_flags_are_unique() {
        let mut seen = HashSet::new();
        for key in KEYS {
            assert!(seen.insert(key.path), "{}", key.path);
            assert!(
                key.short.is_none_or(|short| seen.insert(short)),
                "{}",
                key.path
            );
        }
    }
}
