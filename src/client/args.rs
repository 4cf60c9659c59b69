//! The arguments of the `client` subcommand, as typed and as checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use fastvideo_proto::adapter::AdapterChoice;
use fastvideo_proto::state::ContinuationState;
use fastvideo_proto::stream_v1::{Resume, SegmentRequest};
use fastvideo_supervisor_core::tls;
use rustls::ClientConfig;
use serde_json::{Map, Value, json};
use tokio_tungstenite::tungstenite::http::HeaderValue;

mod job;

pub(super) use job::{JobOrder, ValidJob};

use job::JobArgs;

/// The largest image file that the server accepts.
const MAX_IMAGE_BYTES: usize = 32 << 20;
const STREAM_PATH: &str = "/v1/stream";
/// The variable that has the key where no other one is named.
pub(crate) const API_KEY: &str = "FASTVIDEO_API_KEY";
/// The flag that names a file of certificate authorities.
pub(super) const CA_FILE: &str = "--ca-file";
/// How many attempts in a row to reconnect may fail where the user does not say.
const RETRIES: u32 = 5;

const TEACHING: &str = "\
When the connection is lost, the client reconnects and continues after the last finished segment. It
drops the unfinished segment from the file and requests it again. The server keeps the session for a
while (streaming.resume_ttl_seconds). When the client gives up, it prints the argument for --resume.
--keep ends the client but not the session.

With --job the server makes one whole video of one prompt, as a job of /v1/videos: while viewers
come first, and whatever dies meanwhile. When the server restarts, the client waits and goes on,
for as long as the job exists; --retries and --timeout limit that. Ctrl-C cancels the job; a second
one leaves at once, and the job goes on. --job --resume VIDEO_ID follows a job that was left.

With wss:// the server's certificate must be from an authority that this system trusts, or from one in
--ca-file. The variables SSL_CERT_FILE and SSL_CERT_DIR name other places for the system's authorities.

Examples:
  fastvideo-supervisor client --prompt 'A red fox in the snow' --prompt 'It runs away' -o fox.mp4
      Two segments in one file.
  fastvideo-supervisor client --prompt 'A red fox in the snow' -o one.mp4 --keep
      One segment; prints SESSION_ID:TOKEN.
  fastvideo-supervisor client --resume SESSION_ID:TOKEN --prompt 'It runs away' -o two.mp4
      The next segment of that session, which begins where the first one ended.
  fastvideo-supervisor client --curated-prompt 'A calm sea' --curated-prompt 'A storm' --loop --segments 6 -o sea.mp4
      Six segments, the two prompts in turn.
  fastvideo-supervisor client --job --prompt 'A red fox in the snow' --seconds 8 --size 1280x720 -o fox.mp4
      A video of 8 s in one file, which may be made while nobody watches.

Exit codes: 0 the video is there, 1 something failed, 2 wrong arguments.";

/// The arguments as they were typed.
#[derive(Clone, Debug)]
pub(crate) struct Args {
    url: String,
    prompts: Vec<String>,
    curated_prompts: Vec<String>,
    loops: bool,
    auto_extends: bool,
    enhances: bool,
    segments: Option<usize>,
    output: Option<PathBuf>,
    /// What `--job` has alone; `None` without it.
    job: Option<JobArgs>,
    /// The request for each segment, with an empty prompt.
    request: SegmentRequest,
    adapters: Vec<String>,
    image: Option<PathBuf>,
    state: Option<PathBuf>,
    save_state: Option<PathBuf>,
    resume: Option<String>,
    ca_file: Option<PathBuf>,
    /// The variable that has the key, and whether it was named.
    api_key_env: (String, bool),
    keep: bool,
    retries: Option<u32>,
    timeout: Option<f64>,
    json: bool,
}

/// The checked arguments.
#[derive(Debug)]
pub(super) enum Valid {
    /// To generate in a session.
    Session(Box<ValidArgs>),
    /// To have a job made.
    Job(ValidJob),
}

/// How the server is reached.
#[derive(Debug)]
pub(super) struct Access {
    /// The WebSocket's address.
    pub(super) url: String,
    /// The TLS configuration; `None` for a connection in plain text.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// What is shown to a server that asks for a key.
    pub(super) authorization: Option<HeaderValue>,
}

/// The checked arguments of a session, with the contents of the files.
#[derive(Debug)]
pub(super) struct ValidArgs {
    pub(super) access: Access,
    /// The requests for segments.
    pub(super) requests: Vec<SegmentRequest>,
    /// How many segments the client takes, at least one and at least as many as it requests. The server chooses the
    /// prompts of the others.
    pub(super) segments: usize,
    /// The prompts that the server's loop runs through.
    pub(super) curated_prompts: Vec<String>,
    /// Whether the server goes on with the curated prompts.
    pub(super) loops: bool,
    /// Whether a language model writes what comes next.
    pub(super) auto_extends: bool,
    /// Whether a language model writes prompts out.
    pub(super) enhances: bool,
    pub(super) output: Option<PathBuf>,
    pub(super) adapters: Vec<AdapterChoice>,
    pub(super) initial_image: Option<Map<String, Value>>,
    pub(super) state: Option<ContinuationState>,
    pub(super) save_state: Option<PathBuf>,
    /// The session to resume.
    pub(super) resume: Option<Resume>,
    /// Whether the client leaves the session without ending it.
    pub(super) keep: bool,
    /// How many attempts in a row to reconnect may fail.
    pub(super) retries: u32,
    pub(super) timeout: Option<Duration>,
    pub(super) json: bool,
}

impl Args {
    pub(crate) fn command() -> Command {
        let text = |name: &'static str, placeholder: &'static str| {
            Arg::new(name).long(name).value_name(placeholder)
        };
        let file = |name: &'static str| text(name, "FILE").value_parser(value_parser!(PathBuf));
        Command::new("client")
            .about("Generates a video from a running server")
            .after_help(TEACHING)
            .args([
                text("url", "URL")
                    .default_value("ws://127.0.0.1:8000")
                    .help("The server, as ws://, wss://, http:// or https://"),
                text("prompt", "TEXT")
                    .action(ArgAction::Append)
                    .required_unless_present("curated-prompt")
                    .required_unless_present_all(["job", "resume"])
                    .help("What the next segment shows; repeat it for more segments"),
                text("curated-prompt", "TEXT")
                    .action(ArgAction::Append)
                    .requires("loop")
                    .help("Prompt of the loop; repeat it for more"),
                text("loop", "")
                    .action(ArgAction::SetTrue)
                    .requires("segments")
                    .requires("curated-prompt")
                    .help("Run through the curated prompts, over and over, while no --prompt waits"),
                text("auto-extend", "")
                    .action(ArgAction::SetTrue)
                    .requires("segments")
                    .conflicts_with("loop")
                    .help("Let the server's language model write what comes after the last --prompt"),
                text("enhance", "")
                    .action(ArgAction::SetTrue)
                    .help("Let the server's language model write prompts out"),
                text("segments", "N")
                    .value_parser(value_parser!(u32).range(1..))
                    .help("Segments in all, for --loop and --auto-extend [default: one for each --prompt]"),
                file("output")
                    .short('o')
                    .help("Where the video (MP4) goes; without it the video is only counted"),
                text("seed", "N")
                    .value_parser(value_parser!(u64))
                    .help("Seed of every segment [default: the server's]"),
                text("steps", "N")
                    .value_parser(value_parser!(u32))
                    .help("Denoise steps of every segment [default: the server's]"),
                text("guidance-scale", "NUMBER")
                    .value_parser(value_parser!(f64))
                    .help("Guidance scale of every segment [default: the server's]"),
                text("negative-prompt", "TEXT")
                    .help("What the video should not show [default: the server's]"),
                text("adapter", "NAME[=STRENGTH]")
                    .action(ArgAction::Append)
                    .help("Adapter (LoRA) of the server that acts on all segments, -2 to 2 [default strength: the server's]; repeat it for more"),
                file("image").help("Picture that the first segment starts from (PNG, JPEG, WebP)"),
                file("state").help("Continuation state (JSON) that the first segment goes on from"),
                file("save-state").help("Where the continuation state after the last segment goes"),
                text("resume", "SESSION_ID:TOKEN")
                    .conflicts_with("state")
                    .help("Go on with a session, or with --job follow the job VIDEO_ID; the client that left it has printed this"),
                file("ca-file").help(
                    "Certificate authorities (PEM) to trust instead of the system's, for wss://",
                ),
                text("api-key-env", "NAME")
                    .default_value(API_KEY)
                    .help("Environment variable with the key that lets the client in, where the server asks for one"),
                text("keep", "")
                    .action(ArgAction::SetTrue)
                    .help("Leave the session without ending it, and print what --resume takes"),
                text("retries", "N")
                    .value_parser(value_parser!(u32))
                    .help("Tries in a row to connect again after the connection was lost; 0 = none [default: 5; no limit once a job exists]"),
                text("timeout", "SECONDS")
                    .value_parser(value_parser!(f64))
                    .help("Give up after this time [default: never]"),
                text("json", "")
                    .action(ArgAction::SetTrue)
                    .help("Print a summary with all latencies as JSON on stdout"),
            ])
            .args(JobArgs::flags())
    }

    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        let texts = |name: &str| {
            let given = matches.get_many(name).unwrap_or_default();
            given.cloned().collect()
        };
        let path = |name: &str| matches.get_one::<PathBuf>(name).cloned();
        Self {
            url: text("url").unwrap_or_default(),
            prompts: texts("prompt"),
            curated_prompts: texts("curated-prompt"),
            loops: matches.get_flag("loop"),
            auto_extends: matches.get_flag("auto-extend"),
            enhances: matches.get_flag("enhance"),
            segments: (matches.get_one::<u32>("segments")).map(|&segments| segments as usize),
            output: path("output"),
            job: JobArgs::from_matches(matches),
            request: SegmentRequest {
                negative_prompt: text("negative-prompt"),
                seed: matches.get_one("seed").copied(),
                num_inference_steps: matches.get_one("steps").copied(),
                guidance_scale: matches.get_one("guidance-scale").copied(),
                ..SegmentRequest::default()
            },
            adapters: texts("adapter"),
            image: path("image"),
            state: path("state"),
            save_state: path("save-state"),
            resume: text("resume"),
            ca_file: path("ca-file"),
            api_key_env: (
                text("api-key-env").unwrap_or_default(),
                matches.value_source("api-key-env") == Some(ValueSource::CommandLine),
            ),
            keep: matches.get_flag("keep"),
            retries: matches.get_one("retries").copied(),
            timeout: matches.get_one("timeout").copied(),
            json: matches.get_flag("json"),
        }
    }

    /// Checks the arguments and reads the files. The server checks the limits of a request.
    ///
    /// # Errors
    /// Returns an error that names the argument when a value is not valid or a file cannot be used.
    pub(super) fn check(mut self) -> anyhow::Result<Valid> {
        match self.job.take() {
            Some(job) => self.check_job(job).map(Valid::Job),
            None => self.check_session().map(Box::new).map(Valid::Session),
        }
    }

    fn access(&self) -> anyhow::Result<Access> {
        let url = stream_url(&self.url).context("--url")?;
        let ca_file = self.ca_file.as_deref();
        let tls = match url.starts_with("wss://") {
            true => Some(encryption(ca_file)?),
            false => None,
        };
        ensure!(
            tls.is_some() || ca_file.is_none(),
            "--ca-file: must come with a wss:// address, given `{}`",
            self.url
        );
        let (name, is_named) = &self.api_key_env;
        Ok(Access {
            url,
            tls,
            authorization: authorization(name, *is_named).context("--api-key-env")?,
        })
    }

    fn limit(&self) -> anyhow::Result<Option<Duration>> {
        let limit = self.timeout.map(positive).transpose();
        limit.context("--timeout")
    }

    fn initial_image(&self) -> anyhow::Result<Option<Map<String, Value>>> {
        let image = self.image.as_deref().map(read_image).transpose();
        image.context("--image")
    }

    fn check_session(self) -> anyhow::Result<ValidArgs> {
        let request = |prompt| SegmentRequest {
            prompt,
            ..self.request.clone()
        };
        let access = self.access()?;
        let timeout = self.limit()?;
        let initial_image = self.initial_image()?;
        let prompts = self.prompts.len();
        let segments = self.segments.unwrap_or(prompts);
        let goes_on = self.loops || self.auto_extends;
        ensure!(
            segments == prompts && !goes_on || segments > prompts && goes_on,
            "--segments: must be above the number of prompts with --loop or --auto-extend, else equal to it, given \
             {segments} and {prompts} prompts"
        );
        Ok(ValidArgs {
            access,
            segments,
            curated_prompts: self.curated_prompts,
            loops: self.loops,
            auto_extends: self.auto_extends,
            enhances: self.enhances,
            requests: self.prompts.into_iter().map(request).collect(),
            output: self.output,
            adapters: (self.adapters.iter())
                .map(|text| read_adapter(text))
                .collect::<anyhow::Result<_>>()
                .context("--adapter")?,
            initial_image,
            state: self
                .state
                .as_deref()
                .map(read_state)
                .transpose()
                .context("--state")?,
            save_state: self.save_state,
            resume: self
                .resume
                .as_deref()
                .map(read_resume)
                .transpose()
                .context("--resume")?,
            keep: self.keep,
            retries: self.retries.unwrap_or(RETRIES),
            timeout,
            json: self.json,
        })
    }
}

/// Completes the address of the stream: `http` means `ws`, `https` means `wss`, and the path may be left out.
pub(crate) fn stream_url(url: &str) -> anyhow::Result<String> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("ws", url));
    let scheme = match scheme {
        "ws" | "http" => "ws",
        "wss" | "https" => "wss",
        _ => bail!("must begin with ws://, wss://, http:// or https://, given `{url}`"),
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    ensure!(!host.is_empty(), "must name a host, given `{url}`");
    let path = match path {
        "" | "/" => STREAM_PATH,
        path => path,
    };
    Ok(format!("{scheme}://{host}{path}"))
}

fn read_adapter(text: &str) -> anyhow::Result<AdapterChoice> {
    let (name, strength) = match text.split_once('=') {
        None => (text, None),
        Some((name, strength)) => {
            let strength = strength.parse::<f64>().ok().filter(|s| s.is_finite());
            let number = || format!("must be NAME or NAME=NUMBER, given `{text}`");
            (name, Some(strength.with_context(number)?))
        }
    };
    ensure!(!name.is_empty(), "must name an adapter, given `{text}`");
    Ok(AdapterChoice {
        name: name.to_owned(),
        strength,
    })
}

fn read_resume(text: &str) -> anyhow::Result<Resume> {
    // The token is a secret, so the message does not repeat the argument.
    match text.split_once(':') {
        Some((session_id, token)) if !session_id.is_empty() && !token.is_empty() => Ok(Resume {
            session_id: session_id.to_owned(),
            token: token.to_owned(),
            have: None,
        }),
        _ => bail!("must be SESSION_ID:TOKEN as a client has printed it"),
    }
}

fn read_image(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let bytes = read(path)?;
    let mime = match bytes.as_slice() {
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [0xff, 0xd8, 0xff, ..] => "image/jpeg",
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => "image/webp",
        _ => bail!("{} is not a PNG, JPEG or WebP picture", path.display()),
    };
    ensure!(
        bytes.len() <= MAX_IMAGE_BYTES,
        "{} is {} bytes, limit is {MAX_IMAGE_BYTES}",
        path.display(),
        bytes.len()
    );
    let mut image = Map::new();
    image.insert("mime".to_owned(), json!(mime));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    image.insert("name".to_owned(), json!(name));
    image.insert("data".to_owned(), json!(STANDARD.encode(bytes)));
    Ok(image)
}

fn read_state(path: &Path) -> anyhow::Result<ContinuationState> {
    serde_json::from_slice(&read(path)?)
        .with_context(|| format!("{} is not a continuation state", path.display()))
}

/// Reads a key from an environment variable. One that was named has to be there.
pub(crate) fn authorization(variable: &str, is_named: bool) -> anyhow::Result<Option<HeaderValue>> {
    let key = std::env::var(variable).unwrap_or_default();
    let key = key.trim();
    if key.is_empty() {
        ensure!(!is_named, "the environment variable {variable} is not set");
        return Ok(None);
    }
    let value = HeaderValue::from_str(&format!("Bearer {key}"));
    let value = value.with_context(|| format!("{variable}: a key has printable characters only"));
    let mut value = value?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// Returns the TLS configuration that trusts the authorities in the file, or those of the system when there is none.
pub(crate) fn encryption(ca_file: Option<&Path>) -> anyhow::Result<Arc<ClientConfig>> {
    let authorities = match ca_file {
        Some(path) => tls::file_authorities(path)
            .with_context(|| format!("cannot use the certificates in {}", path.display())),
        None => tls::system_authorities(CA_FILE).map_err(Into::into),
    };
    let authorities = authorities.context(CA_FILE)?;
    Ok(Arc::new(tls::config(authorities)))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn positive(seconds: f64) -> anyhow::Result<Duration> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => bail!("must be a number of seconds above 0, given {seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lead_to_the_stream() {
        let check = |url: &str, expected: Option<&str>| {
            assert_eq!(stream_url(url).ok().as_deref(), expected, "{url}");
        };
        check("ws://host:8000", Some("ws://host:8000/v1/stream"));
        check("http://host:8000/", Some("ws://host:8000/v1/stream"));
        check("ws://[::1]:80/v1/stream", Some("ws://[::1]:80/v1/stream"));
        check(
            "http://host/proxy/v1/stream",
            Some("ws://host/proxy/v1/stream"),
        );
        check("localhost:8000", Some("ws://localhost:8000/v1/stream"));
        check("wss://host", Some("wss://host/v1/stream"));
        check("https://host:8443/", Some("wss://host:8443/v1/stream"));
        check("ftp://host", None);
        check("ws://", None);
    }

    #[test]
    fn pictures_are_known_by_their_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let check = |bytes: &[u8], expected: Option<&str>| {
            let path = folder.path().join("picture.dat");
            std::fs::write(&path, bytes).unwrap();
            let image = read_image(&path).ok();
            let mime = image.as_ref().and_then(|image| image["mime"].as_str());
            assert_eq!(mime, expected);
        };
        check(b"\x89PNG\r\n\x1a\n", Some("image/png"));
        check(b"\xff\xd8\xff\xe0", Some("image/jpeg"));
        check(b"RIFF\x10\0\0\0WEBPVP8 ", Some("image/webp"));
        check(b"GIF89a", None);
        check(b"", None);
    }

    #[test]
    fn sessions_are_resumed_by_id_and_token() {
        let resume = read_resume("id:token").unwrap();
        assert_eq!((&*resume.session_id, &*resume.token), ("id", "token"));
        for bad in ["", "id", "id:", ":token"] {
            assert!(read_resume(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn timeouts_are_positive() {
        assert!(positive(0.5).is_ok());
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(positive(bad).is_err(), "{bad}");
        }
    }
}
