//! The arguments of `--job`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use fastvideo_proto::api::videos::VideoRequest;
use fastvideo_proto::ids::VideoId;
use serde_json::{Map, Value};

use super::{Access, Args, RETRIES, STREAM_PATH};

/// What a job has no use for: it is one video of one prompt, and nobody takes part in it.
const OF_SESSIONS: [&str; 8] = [
    "adapter",
    "auto-extend",
    "curated-prompt",
    "keep",
    "loop",
    "save-state",
    "segments",
    "state",
];

/// The arguments that `--job` has alone, as they were typed.
#[derive(Clone, Debug)]
pub(super) struct JobArgs {
    seconds: Option<String>,
    frames: Option<u64>,
    size: Option<String>,
    fps: Option<u32>,
    no_wait: bool,
}

/// The checked arguments, with the contents of the files.
#[derive(Debug)]
pub(in crate::client) struct ValidJob {
    pub(in crate::client) access: Access,
    pub(in crate::client) order: JobOrder,
    /// Whether the client follows the job to its end.
    pub(in crate::client) waits: bool,
    pub(in crate::client) output: Option<PathBuf>,
    /// How many attempts in a row may fail before there is a job.
    pub(in crate::client) retries_to_create: u32,
    /// How many attempts in a row may fail once there is one; `None` when there is no limit.
    pub(in crate::client) retries: Option<u32>,
    pub(in crate::client) timeout: Option<Duration>,
    pub(in crate::client) json: bool,
}

/// The job that is wanted.
#[derive(Debug)]
pub(in crate::client) enum JobOrder {
    Create(Box<VideoRequest>),
    /// One that exists.
    Follow(VideoId),
}

impl JobArgs {
    pub(super) fn flags() -> [Arg; 6] {
        let flag = |name: &'static str| Arg::new(name).long(name).help_heading("Whole videos");
        let value = |name, placeholder: &'static str| flag(name).value_name(placeholder);
        [
            flag("job")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(OF_SESSIONS)
                .help("Have one whole video made as a job of /v1/videos, follow it, and fetch it"),
            value("seconds", "SECONDS")
                .conflicts_with("frames")
                .help("Length of the video [default: the server's]"),
            value("frames", "N")
                .value_parser(value_parser!(u64))
                .help("Length of the video in frames"),
            value("size", "WxH").help("Width and height in pixels [default: the server's]"),
            value("fps", "N")
                .value_parser(value_parser!(u32))
                .help("Frames per second [default: the server's]"),
            flag("no-wait")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["output", "resume"])
                .help("Create the job, print its id, and leave it to the server"),
        ]
        .map(|flag| match flag.get_id() == "job" {
            true => flag,
            false => flag.requires("job"),
        })
    }

    /// Takes the arguments; `None` without `--job`.
    pub(super) fn from_matches(matches: &ArgMatches) -> Option<Self> {
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        matches.get_flag("job").then(|| Self {
            seconds: text("seconds"),
            frames: matches.get_one("frames").copied(),
            size: text("size"),
            fps: matches.get_one("fps").copied(),
            no_wait: matches.get_flag("no-wait"),
        })
    }
}

impl ValidJob {
    /// Returns the address of the jobs, which is beside that of the stream.
    pub(in crate::client) fn url(&self) -> String {
        let stream = &self.access.url;
        let below = stream.strip_suffix(STREAM_PATH);
        let below = below.unwrap_or_else(|| stream.trim_end_matches('/'));
        // `ws` is `http`, and `wss` is `https`.
        format!("{}/v1/videos", below.replacen("ws", "http", 1))
    }
}

impl Args {
    /// Checks the arguments of a job.
    ///
    /// # Errors
    /// Returns an error that names the argument when a value is not valid or a file cannot be used.
    pub(super) fn check_job(self, job: JobArgs) -> anyhow::Result<ValidJob> {
        Ok(ValidJob {
            access: self.access()?,
            timeout: self.limit()?,
            waits: !job.no_wait,
            retries_to_create: self.retries.unwrap_or(RETRIES),
            retries: self.retries,
            json: self.json,
            output: self.output.clone(),
            order: match self.resume.clone() {
                Some(id) => JobOrder::Follow(self.check_followed(&id, job)?),
                None => JobOrder::Create(Box::new(self.video_request(job)?)),
            },
        })
    }

    /// Checks that nothing is asked of a job that exists, and reads its id.
    fn check_followed(self, id: &str, job: JobArgs) -> anyhow::Result<VideoId> {
        ensure!(
            self.video_fields(job)? == VideoRequest::default(),
            "--resume: the job has been asked for already; prompts and other properties of a video do not go with it"
        );
        VideoId::parse(id).with_context(|| {
            format!(
                "--resume: must be VIDEO_ID as a client with --job has printed it, given `{id}`"
            )
        })
    }

    fn video_request(self, job: JobArgs) -> anyhow::Result<VideoRequest> {
        ensure!(
            self.prompts.len() == 1,
            "--prompt: a job is one video of one prompt, given {}; without --job, each prompt is a segment of one video",
            self.prompts.len()
        );
        self.video_fields(job)
    }

    fn video_fields(self, job: JobArgs) -> anyhow::Result<VideoRequest> {
        let image = self.initial_image()?;
        let request = self.request;
        Ok(VideoRequest {
            prompt: self.prompts.concat(),
            seconds: job.seconds,
            num_frames: job.frames,
            size: job.size,
            fps: job.fps,
            seed: request.seed,
            num_inference_steps: request.num_inference_steps,
            guidance_scale: request.guidance_scale,
            negative_prompt: request.negative_prompt,
            input_reference: image.as_ref().map(data_url),
            enhance_prompt: self.enhances.then_some(true),
            ..VideoRequest::default()
        })
    }
}

/// Returns an image as `data:image/png;base64,…`.
fn data_url(image: &Map<String, Value>) -> String {
    let text = |key: &str| image.get(key).and_then(Value::as_str).unwrap_or_default();
    format!("data:{};base64,{}", text("mime"), text("data"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::args::Valid;

    const ID: &str = "video_0123456789ab7fffbfffffffffffffff";

    fn job(arguments: &[&str]) -> anyhow::Result<ValidJob> {
        let all = ["client", "--job"].iter().chain(arguments);
        let matches = Args::command().try_get_matches_from(all)?;
        match Args::from_matches(&matches).check()? {
            Valid::Job(job) => Ok(job),
            Valid::Session(_) => panic!("a job was asked for"),
        }
    }

    #[test]
    fn jobs_are_beside_the_stream() {
        let check = |url: &str, expected: &str| {
            let job = job(&["--prompt=x", "--url", url]).unwrap();
            assert_eq!(job.url(), expected, "{url}");
        };
        check("ws://host:8000", "http://host:8000/v1/videos");
        check("http://host:8000/v1/stream", "http://host:8000/v1/videos");
        check("localhost:8000", "http://localhost:8000/v1/videos");
        check("http://ws/proxy/v1/stream", "http://ws/proxy/v1/videos");
        check("http://host/proxy/", "http://host/proxy/v1/videos");
    }

    #[test]
    fn flags_are_the_fields_of_a_request() {
        let given = job(&[
            "--prompt=a fox",
            "--frames=36",
            "--size=64x64",
            "--fps=24",
            "--seed=7",
            "--steps=8",
            "--guidance-scale=1.5",
            "--negative-prompt=snow",
            "--enhance",
        ]);
        let JobOrder::Create(request) = given.unwrap().order else {
            panic!("a job is created");
        };
        let expected = VideoRequest {
            prompt: "a fox".to_owned(),
            num_frames: Some(36),
            size: Some("64x64".to_owned()),
            fps: Some(24),
            seed: Some(7),
            num_inference_steps: Some(8),
            guidance_scale: Some(1.5),
            negative_prompt: Some("snow".to_owned()),
            enhance_prompt: Some(true),
            ..VideoRequest::default()
        };
        assert_eq!(*request, expected);
    }

    #[test]
    fn a_job_is_followed_by_its_id_alone() {
        let given = job(&["--resume", ID]).unwrap();
        assert!(matches!(given.order, JobOrder::Follow(id) if id.to_string() == ID));
        let check = |arguments: &[&str], words: &str| {
            let error = job(arguments).unwrap_err().to_string();
            assert!(error.contains(words), "{words} in {error}");
        };
        check(&["--resume", "id:token"], "VIDEO_ID");
        check(&["--resume", ID, "--prompt=x"], "asked for already");
        check(&["--resume", ID, "--seed=7"], "asked for already");
        check(&["--resume", ID, "--no-wait"], "--no-wait");
        check(&["--prompt=x", "--prompt=y"], "given 2");
        check(&[], "--prompt");
    }

    #[test]
    fn retries_have_no_limit_once_there_is_a_job() {
        let limits = |arguments: &[&str]| {
            let job = job(&[&["--prompt=x"], arguments].concat()).unwrap();
            (job.retries_to_create, job.retries)
        };
        assert_eq!(limits(&[]), (RETRIES, None));
        assert_eq!(limits(&["--retries=1"]), (1, Some(1)));
    }
}
