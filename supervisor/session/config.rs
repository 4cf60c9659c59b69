//! The keys of sessions: `streaming.*` itself, `streaming.limits.*` and `streaming.session_log.*`.

use std::path::PathBuf;
use std::time::Duration;

use fastvideo_proto::job::frames_to_time;

use super::broadcast::SpectatorLimits;
use super::log::signature::Signer;
use super::{ClientLimits, Config, log};
use crate::causes::with_causes;
use crate::engines::default_request::{self, MAX_STEPS};
use crate::ingress;
use crate::pool;
use crate::pool::config::MAX_ATTEMPTS;
use crate::prompt::config::MAX_PROMPT_CHARS;
use crate::settings::{DAY, HOUR, Key, KeySpec, Origin, Reader, Reload};
use crate::store::config::RESUME_TTL;

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

/// The keys of `streaming` itself.
pub static KEYS: &[&KeySpec] = &[
    &SESSION_TIMEOUT.spec,
    &PAUSED_TIMEOUT.spec,
    &IDLE_WHILE_OTHERS_WAIT.spec,
    &HOLD.spec,
    &MAX_LEAD.spec,
    &RESUME_TTL.spec,
    &GENERATION_SEGMENT_CAP.spec,
    &CAP_EXTENSIONS.spec,
];

/// The name of the server, which `http` reads, too.
pub static SERVER_NAME: Key<Option<String>> = Key::text("server.name").help("What routers call this server, and what clients are told makes their pictures [default: its address, and nothing]");

/// The keys of `streaming.watch`.
pub static WATCH_KEYS: &[&KeySpec] = &[
    &WATCH.spec,
    &MAX_SPECTATORS_PER_SESSION.spec,
    &MAX_SPECTATORS.spec,
];

static SESSION_TIMEOUT: Key<Duration> = Key::seconds("streaming.session_timeout_seconds", 0.01, DAY)
    .reload(Reload::Later)
    .help("A session without a message from its client and without a running segment ends after this time")
    .default(300.0);

static PAUSED_TIMEOUT: Key<Duration> = Key::seconds("streaming.paused_timeout_seconds", 0.01, DAY)
    .reload(Reload::Later)
    .help("The same for a session that is paused and has requests waiting")
    .default(900.0);

static IDLE_WHILE_OTHERS_WAIT: Key<Duration> =
    Key::seconds("streaming.idle_while_others_wait_seconds", 0.01, DAY)
        .reload(Reload::Later)
        .help("The same while other sessions wait for a GPU; the client is warned before")
        .default(60.0);

static HOLD: Key<Duration> = Key::seconds("streaming.hold_seconds", 0.0, HOUR)
    .reload(Reload::Later)
    .help("How long a session whose connection was lost keeps its GPU, so that it can be resumed there; 0 frees it at once")
    .default(10.0);

static MAX_LEAD: Key<Duration> = Key::seconds("streaming.max_lead_seconds", 0.0, DAY)
    .reload(Reload::Later)
    .help("While the viewer is more than this behind what is finished, a loop or auto-extension waits; requests always run; 0 is no limit")
    .default(60.0);

static GENERATION_SEGMENT_CAP: Key<u32> =
    Key::u32("streaming.generation_segment_cap", 1, 1_000_000)
        .unit("segments")
        .reload(Reload::Later)
        .help("Segments after which a session is complete")
        .default(6);

static CAP_EXTENSIONS: Key<u32> = Key::u32("streaming.cap_extensions", 0, 1_000_000)
    .unit("times")
    .reload(Reload::Later)
    .help("How often a complete session may be continued for as many segments again, when its client asks for that")
    .default(0);

static WATCH: Key<bool> = Key::switch("streaming.watch.enabled")
    .short("watch")
    .reload(Reload::Later)
    .help("Whether a session's client may let others watch")
    .default(true);

static MAX_SPECTATORS_PER_SESSION: Key<usize> =
    Key::usize("streaming.watch.max_per_session", 1, 1_000_000)
        .unit("spectators")
        .reload(Reload::AtOnce)
        .help("Spectators of one session at once")
        .default(1000);

static MAX_SPECTATORS: Key<usize> = Key::usize("streaming.watch.max_total", 1, 1_000_000)
    .unit("spectators")
    .reload(Reload::AtOnce)
    .help("Spectators of all sessions at once")
    .default(10_000);

/// The keys of `streaming.session_log`.
pub static LOG_KEYS: &[&KeySpec] = &[
    &LOG_DIR.spec,
    &LOG_MAX_FILE_MIB.spec,
    &LOG_MAX_TOTAL_MIB.spec,
    &LOG_MAX_AGE.spec,
    &LOG_SIGNING_KEY.spec,
];

/// The folder of the session log, which `sessions list` reads, too.
pub static LOG_DIR: Key<Option<String>> = Key::text("streaming.session_log.dir")
    .short("session-log-dir")
    .help("Folder in which each session has a file with what happened when, prompts included; see `sessions show` [default: none is kept]");

static LOG_MAX_FILE_MIB: Key<u64> = Key::u64("streaming.session_log.max_file_mib", 1, 1 << 20)
    .unit("MiB")
    .help("At which a session's file is set aside and a new one begun; only the last one set aside is kept")
    .default(16);

static LOG_MAX_TOTAL_MIB: Key<u64> = Key::u64("streaming.session_log.max_total_mib", 1, 1 << 30)
    .unit("MiB")
    .help("All files of session logs together; above it the oldest are removed")
    .default(1024);

static LOG_MAX_AGE: Key<Duration> =
    Key::days("streaming.session_log.max_age_days", 0.0001, 36_500.0)
        .help("Files of session logs to which nothing was added for so long are removed")
        .default(30.0);

static LOG_SIGNING_KEY: Key<Option<String>> =
    Key::text("streaming.session_log.signing_key_file")
        .help("Ed25519 key (PEM) that signs the files, so that a changed one is told [default: signing.key in the folder, which is made]");

/// The keys of `streaming.limits`, some of which `http` reads and one `prompt`.
pub static LIMIT_KEYS: &[&KeySpec] = &[
    &MAX_SESSIONS.spec,
    &MAX_SESSIONS_PER_CLIENT.spec,
    &ingress::config::MAX_UNOPENED.spec,
    &ingress::config::MAX_UNOPENED_PER_CLIENT.spec,
    &ingress::config::MAX_MESSAGE_BYTES.spec,
    &ingress::config::MESSAGE_TIMEOUT.spec,
    &MAX_WAITING_REQUESTS.spec,
    &MAX_PROMPT_CHARS.spec,
    &MAX_IMAGE_PIXELS.spec,
    &MAX_INFERENCE_STEPS.spec,
    &MAX_UNSENT_BYTES.spec,
    &SLOW_CLIENT_TIMEOUT.spec,
    &OPENING_TIMEOUT.spec,
    &ingress::config::PING_INTERVAL.spec,
];

static MAX_SESSIONS: Key<Option<usize>> = Key::usize("streaming.limits.max_sessions", 1, 1_000_000)
    .short("max-sessions")
    .unit("sessions")
    .reload(Reload::AtOnce)
    .help("Sessions at once, waiting ones included [default: the GPUs that can serve, plus 64]");

static MAX_SESSIONS_PER_CLIENT: Key<Option<usize>> =
    Key::usize("streaming.limits.max_sessions_per_client", 1, 1_000_000)
        .short("max-sessions-per-client")
        .unit("sessions")
        .reload(Reload::AtOnce)
    .help("Sessions at once from one address (IPv6: one /64 network) [default: no limit, since all clients of a proxy share its address]");

static MAX_WAITING_REQUESTS: Key<usize> =
    Key::usize("streaming.limits.max_waiting_requests", 1, 10_000)
        .unit("requests")
        .reload(Reload::AtOnce)
        .help("Requests that may wait in one session")
        .default(8);

pub static MAX_IMAGE_PIXELS: Key<u64> = Key::u64(
    "streaming.limits.max_image_pixels",
    4096,
    1 << 30,
)
.unit("pixels")
.reload(Reload::AtOnce)
.help("Largest initial image; file formats that take much memory to decode have smaller limits")
.default(64_000_000);

pub static MAX_INFERENCE_STEPS: Key<u32> =
    Key::u32("streaming.limits.max_inference_steps", 1, MAX_STEPS)
        .unit("steps")
        .reload(Reload::AtOnce)
        .help("Most denoise steps that a client may ask for")
        .default(200);

static MAX_UNSENT_BYTES: Key<u64> = Key::u64("streaming.limits.max_unsent_bytes", 64 * KIB, GIB)
    .unit("bytes")
    .reload(Reload::Later)
    .help("Media that may wait for a client that does not read")
    .default(16_777_216);

static SLOW_CLIENT_TIMEOUT: Key<Duration> =
    Key::seconds("streaming.limits.slow_client_timeout_seconds", 0.01, HOUR)
        .reload(Reload::AtOnce)
        .help("How long a client may leave that much unread")
        .default(30.0);

pub static OPENING_TIMEOUT: Key<Duration> =
    Key::seconds("streaming.limits.opening_timeout_seconds", 0.01, HOUR)
        .reload(Reload::AtOnce)
        .help("Time that a client has for its opening message")
        .default(30.0);

/// Refuses values that contradict each other.
pub(crate) fn check(reader: &mut Reader<'_>) {
    reader.refuse_reversed(&default_request::NUM_INFERENCE_STEPS, &MAX_INFERENCE_STEPS);
}

/// `previews` says whether the engine makes some.
pub(crate) fn read(reader: &Reader<'_>, previews: bool) -> Config {
    Config {
        server_name: reader.non_empty(&SERVER_NAME),
        format: default_request::format(reader),
        fragment: fragment(reader),
        num_inference_steps: reader.get(&default_request::NUM_INFERENCE_STEPS),
        seed: reader.get(&default_request::SEED),
        guidance_scale: reader.get(&default_request::GUIDANCE_SCALE),
        negative_prompt: reader.non_empty(&default_request::NEGATIVE_PROMPT),
        previews,
        generation_segment_cap: reader.get(&GENERATION_SEGMENT_CAP),
        cap_extensions: reader.get(&CAP_EXTENSIONS),
        watch: reader.get(&WATCH),
        session_timeout: reader.get(&SESSION_TIMEOUT),
        paused_timeout: reader.get(&PAUSED_TIMEOUT),
        idle_while_others_wait: reader.get(&IDLE_WHILE_OTHERS_WAIT),
        hold: reader.get(&HOLD),
        max_lead: reader.get(&MAX_LEAD),
        max_message_bytes: reader.get(&ingress::config::MAX_MESSAGE_BYTES),
        max_attempts: reader.get(&MAX_ATTEMPTS),
        max_unsent_bytes: reader.get(&MAX_UNSENT_BYTES),
        limits: ClientLimits {
            max_inference_steps: reader.get(&MAX_INFERENCE_STEPS),
            spectators: SpectatorLimits {
                per_session: reader.get(&MAX_SPECTATORS_PER_SESSION),
                total: reader.get(&MAX_SPECTATORS),
            },
            opening_timeout: reader.get(&OPENING_TIMEOUT),
            max_waiting_requests: reader.get(&MAX_WAITING_REQUESTS),
            max_prompt_chars: reader.get(&MAX_PROMPT_CHARS),
            max_image_pixels: reader.get(&MAX_IMAGE_PIXELS),
            slow_client_timeout: reader.get(&SLOW_CLIENT_TIMEOUT),
            max_sessions: reader.get(&MAX_SESSIONS),
            max_sessions_per_client: reader.get(&MAX_SESSIONS_PER_CLIENT).unwrap_or(usize::MAX),
        },
    }
}

/// Returns how long a fragment is.
fn fragment(reader: &Reader<'_>) -> Duration {
    let fps = default_request::format(reader).fps;
    let frames = pool::config::encoder(reader).frames_per_fragment(fps);
    frames_to_time(u64::from(frames), fps)
}

#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason} ({origin})", LOG_SIGNING_KEY.spec.path)]
struct BadSigningKey {
    reason: String,
    origin: Origin,
}

/// Reads the session log's configuration; `None` means that no log is kept.
pub(crate) fn read_log(reader: &mut Reader<'_>, pool: &pool::Config) -> Option<log::Config> {
    reader.refuse_blank(&LOG_DIR, "a folder");
    let signing_key = reader.get(&LOG_SIGNING_KEY).map(PathBuf::from);
    if let Some(Err(error)) = signing_key.as_deref().map(Signer::read) {
        let origin = reader.origin(&LOG_SIGNING_KEY.spec);
        let reason = with_causes(&error);
        reader.refuse_because(BadSigningKey { reason, origin });
    }
    Some(log::Config {
        dir: PathBuf::from(reader.get(&LOG_DIR)?),
        max_file_bytes: reader.get(&LOG_MAX_FILE_MIB) << 20,
        max_total_bytes: reader.get(&LOG_MAX_TOTAL_MIB) << 20,
        max_age: reader.get(&LOG_MAX_AGE),
        signing_key,
        setup: log::Setup {
            engine: pool.engine.name.clone(),
            format: pool.format,
            encoder: (&pool.encoder).into(),
        },
    })
}
