use std::path::Path;
use std::time::Duration;

use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::EncoderSpec;

use fastvideo_supervisor_core::prompt::enhancer;
use fastvideo_supervisor_core::prompt::provider::Key;
use fastvideo_supervisor_core::settings::Kind;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::Value;

use super::*;

/// A machine without GPUs; this test's own program stands in for the worker.
fn surroundings(variables: &[(&str, &str)]) -> Surroundings {
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Surroundings {
        variables: variables.collect(),
        program_folder: PathBuf::from("/nonexistent"),
        root: PathBuf::from("/nonexistent"),
    }
}

/// Loads a file given as text, variables and flags (`--` left out, `=` between key and value).
fn load_layers(
    file: impl AsRef<[u8]>,
    variables: &[(&str, &str)],
    flags: &[&str],
) -> Result<Loaded, ConfigErrors> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serve.yaml");
    std::fs::write(&path, file).unwrap();
    let worker = format!(
        "streaming.pool.worker_bin={}",
        std::env::current_exe().unwrap().display()
    );
    let flags = std::iter::once(worker.as_str())
        .chain(flags.iter().copied())
        .map(|flag| {
            let (path, value) = flag.split_once('=').unwrap();
            (keys::SERVER.find(path).unwrap(), value.to_owned())
        });
    let options = Options {
        table: &keys::SERVER,
        file: Some(path),
        flags: flags.collect(),
    };
    load(&options, &surroundings(variables))
}

fn load_file(file: &str) -> Result<Loaded, ConfigErrors> {
    load_layers(file, &[], &[])
}

fn load_flags(flags: &[&str]) -> Result<Loaded, ConfigErrors> {
    load_layers("", &[], flags)
}

/// The messages of all errors, with the file's folder left out.
#[track_caller]
fn errors(result: Result<Loaded, ConfigErrors>) -> Vec<String> {
    let ConfigErrors(errors) = result.unwrap_err();
    let message = |error: ConfigError| {
        let message = error.to_string();
        match (message.find('/'), message.find("serve.yaml")) {
            (Some(start), Some(end)) if start < end => {
                format!("{}{}", &message[..start], &message[end..])
            }
            _ => message,
        }
    };
    errors.into_iter().map(message).collect()
}

#[test]
fn defaults_are_those_of_the_design() {
    let config = load_file("").unwrap().config;
    assert_eq!(config.http.host, "0.0.0.0");
    assert_eq!(config.http.port, 8000);
    assert_eq!(config.http.ingress.max_message_bytes, 48 << 20);
    assert_eq!(config.grace, Duration::from_secs(30));
    assert_eq!(config.pool.encoder, EncoderSpec::default());
    assert_eq!(config.pool.gpus.len(), 1);
    assert_eq!(config.pool.boot_timeout, Duration::from_secs(2400));
    assert_eq!(config.pool.min_backoff, Duration::from_millis(500));
    assert_eq!(config.session.max_unsent_bytes, 16 << 20);
    assert_eq!(config.session.limits.max_sessions, None);
    assert_eq!(config.session.negative_prompt, None);
    assert_eq!(config.store.location.to_string(), "memory with memory");
    assert_eq!(config.store.sessions.resume_ttl, Duration::from_secs(300));
    assert_eq!(config.store.sessions.lease, Duration::from_secs(6));
    assert_eq!(config.store.sessions.timeout, Duration::from_secs(2));
    assert!(config.prompt.safety.is_none());
    let format = VideoFormat {
        width: 768,
        height: 512,
        num_frames: 121,
        fps: 24,
    };
    assert_eq!(config.session.format, format);
    assert_eq!(config.pool.format, format);
    let warmup = config.pool.warmup.unwrap();
    assert_eq!((warmup.format.width, warmup.format.num_frames), (256, 8));
    assert_eq!(config.pool.engine.name, "synthetic");
    let options: Value = serde_json::from_str(&config.pool.engine.options).unwrap();
    assert_eq!(options["conditioning_num_frames"], 9);
    assert_eq!(options["audio_latent_frames"], 51);
}

#[test]
fn later_layers_win() {
    let file = "server: {port: 1001}";
    let variable = [("FASTVIDEO_SERVER__PORT", "1002")];
    let empty = [("FASTVIDEO_SERVER__PORT", "")];
    let flag = ["server.port=1003"];
    let check = |file, variables: &[(&str, &str)], flags: &[&str], port| {
        let loaded = load_layers(file, variables, flags).unwrap();
        assert_eq!(loaded.config.http.port, port);
    };
    check("", &[], &[], 8000);
    check(file, &[], &[], 1001);
    check("server: {port: null}", &[], &[], 8000);
    check(file, &variable, &[], 1002);
    check(file, &empty, &[], 1001);
    check(file, &variable, &flag, 1003);
    check("", &[], &flag, 1003);
}

#[test]
fn a_wrong_value_names_key_limit_value_and_place() {
    let check = |result, expected: &[&str]| assert_eq!(errors(result), expected);
    check(
        load_flags(&["default_request.sampling.width=255"]),
        &[
            "`default_request.sampling.width` must be an even number from 64 to 4096 pixels, given \"255\" (--default_request.sampling.width)",
        ],
    );
    check(
        load_layers("", &[("FASTVIDEO_SERVER__PORT", "65536")], &[]),
        &[
            "`server.port` must be a whole number from 0 to 65535, given \"65536\" (FASTVIDEO_SERVER__PORT)",
        ],
    );
    check(
        load_file("server:\n  host: x\n  port: \"80\"\n"),
        &["`server.port` must be a whole number from 0 to 65535, given \"80\" (serve.yaml:3)"],
    );
    check(
        load_file("streaming:\n  warmup:\n    enabled: yes please\n  encoder: {crf: 52.0}\n"),
        &[
            "`streaming.warmup.enabled` must be true or false, given \"yes please\" (serve.yaml:3)",
            "`streaming.encoder.crf` must be a whole number from 0 to 51, given 52 (serve.yaml:4)",
        ],
    );
    check(
        load_file("streaming: 5"),
        &["`streaming` must be a section of keys, given 5 (serve.yaml:1)"],
    );
    check(
        load_file("- server"),
        &["serve.yaml: must hold sections of keys, given a list"],
    );
    check(
        load_flags(&["server.host="]),
        &["`server.host` must be an address or a host name, given \"\" (--host)"],
    );
}

#[test]
fn every_number_of_the_table_keeps_its_limits() {
    for key in keys::SERVER.all() {
        let (below, above) = match key.kind {
            Kind::Whole { min, max, .. } => (
                min.checked_sub(1)
                    .map_or("-1".to_owned(), |n| n.to_string()),
                (u128::from(max) + 1).to_string(),
            ),
            Kind::Decimal { min, max, .. } | Kind::Time { min, max, .. } => {
                ((min - 0.001).to_string(), (max + 1.0).to_string())
            }
            _ => continue,
        };
        for bad in [below.as_str(), above.as_str(), "NaN", "many", ""] {
            assert!(key.kind.read_text(bad).is_none(), "{} {bad}", key.path);
        }
    }
}

#[test]
fn an_unknown_key_leads_to_the_known_one() {
    let check = |result, expected: &[&str]| assert_eq!(errors(result), expected);
    check(
        load_file("streaming:\n  warm_up:\n    enabled: false\n"),
        &["unknown key `streaming.warm_up` (serve.yaml:2); did you mean `streaming.warmup`?"],
    );
    check(
        load_file("\nserver:\n  prot: 80\nquux: 1\n"),
        &[
            "unknown key `server.prot` (serve.yaml:3); did you mean `server.port`?",
            "unknown key `quux` (serve.yaml:4)",
        ],
    );
    check(
        load_layers(
            "",
            &[
                ("FASTVIDEO_SERVER__PROT", "80"),
                ("FASTVIDEO_ATTENTION_BACKEND", "X"),
            ],
            &[],
        ),
        &["unknown key `server.prot` (FASTVIDEO_SERVER__PROT); did you mean `server.port`?"],
    );
}

#[test]
fn broken_yaml_and_duplicate_keys_are_errors() {
    for file in [
        "server: [",
        "server: {port: 1, port: 2}",
        "server:\n\tport: 1",
    ] {
        let errors = errors(load_file(file));
        assert_eq!(errors.len(), 1, "{file}: {errors:?}");
        assert!(errors[0].starts_with("serve.yaml: "), "{}", errors[0]);
    }
}

#[test]
fn gpus_win_over_num_workers_and_num_gpus() {
    let file = "generator: {engine: {num_gpus: 2}}\nstreaming: {pool: {num_workers: 3}}";
    let check = |file, flags: &[&str], expected: &[&str]| {
        let gpus = load_layers(file, &[], flags).unwrap().config.pool.gpus;
        let devices: Vec<String> = gpus.into_iter().map(|gpu| gpu.visible_device).collect();
        assert_eq!(devices, expected);
    };
    check("generator: {engine: {num_gpus: 2}}", &[], &["0", "1"]);
    check(file, &[], &["0", "1", "2"]);
    check(file, &["streaming.pool.gpus=1"], &["0"]);
    check("streaming: {pool: {gpus: 2}}", &[], &["0", "1"]);
    check("streaming: {pool: {gpus: [2]}}", &[], &["2"]);
    check(
        "streaming: {pool: {gpus: [0, GPU-8a]}}",
        &[],
        &["0", "GPU-8a"],
    );
}

#[test]
fn values_that_contradict_each_other_are_refused_together() {
    let errors = errors(load_layers(
        "streaming: {pool: {heartbeat_timeout_ms: 500, min_backoff_ms: 90000}}",
        &[],
        &[
            "streaming.limits.max_inference_steps=4",
            "streaming.pool.gpus=all",
            "generator.synthetic.faults=exit@begin",
            "streaming.pool.worker_bin=/nonexistent/worker",
        ],
    ));
    let expected = [
        "`streaming.pool.heartbeat_interval_ms` must not be above `streaming.pool.heartbeat_timeout_ms`, given 1000 (default) and 500",
        "`streaming.pool.min_backoff_ms` must not be above `streaming.pool.max_backoff_ms`, given 90000",
        "`default_request.sampling.num_inference_steps` must not be above `streaming.limits.max_inference_steps`, given 8 (default) and 4 (--streaming.limits.max_inference_steps)",
        "`generator.synthetic.faults`: unknown point `begin`",
        "the worker program /nonexistent/worker is not there",
        "`streaming.pool.gpus` is `all`, but this machine shows no GPU",
    ];
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn no_more_gpus_are_reserved_for_video_jobs_than_there_are() {
    let reserve = |count| {
        let file = format!("streaming: {{pool: {{gpus: 2}}, videos: {{reserved_gpus: {count}}}}}");
        load_file(&file)
    };
    assert_eq!(reserve(2).unwrap().config.pool.reserved_gpus, 2);
    let errors = errors(reserve(3));
    let expected =
        "`streaming.videos.reserved_gpus` must be at most the number of GPUs, which is 2, given 3";
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].contains(expected), "{}", errors[0]);
}

#[test]
fn a_webhook_needs_an_address_and_a_secret_which_is_not_shown() {
    const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    let variables = [
        ("SECRET", SECRET),
        ("SHORT", "whsec_AAEC"),
        ("BARE", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"),
    ];
    let load = |webhook: &str| {
        let file = format!("streaming: {{videos: {{webhook: {{{webhook}}}}}}}");
        load_layers(&file, &variables, &[])
    };
    let given = load("url: \"https://example.org/jobs\", secret_env: SECRET").unwrap();
    let webhook = given.config.video.webhook.expect("both are given");
    assert_eq!(
        format!("{webhook:?}"),
        "Webhook(\"https://example.org/jobs\")"
    );
    assert!(load("").unwrap().config.video.webhook.is_none());
    let check = |webhook: &str, expected: &str| {
        let errors = load(webhook).unwrap_err().to_string();
        assert!(errors.contains(expected), "{errors}");
        assert!(!errors.contains("AAEC"), "{errors}");
    };
    let url = "url: \"https://example.org\"";
    check(
        "secret_env: SECRET",
        "`streaming.videos.webhook.url` must be an http:// or https:// address without user and password, given nothing",
    );
    check("url: \"ftp://x\", secret_env: SECRET", "given \"ftp://x\"");
    check(
        url,
        "`streaming.videos.webhook.secret_env` must be the name of an environment variable in capital letters, given nothing",
    );
    check(
        &format!("{url}, secret_env: {SECRET}"),
        "given something else",
    );
    check(
        &format!("{url}, secret_env: ABSENT"),
        "given ABSENT, which is not set",
    );
    check(
        &format!("{url}, secret_env: SHORT"),
        "given SHORT, which holds 3 bytes",
    );
    check(
        &format!("{url}, secret_env: BARE"),
        "given BARE, which holds something else",
    );
}

#[test]
fn urls_of_the_store_are_checked_together() {
    let check = |flags: &[&str], expected: Result<&str, &str>| match (load_flags(flags), expected) {
        (Ok(loaded), Ok(place)) => {
            assert_eq!(loaded.config.store.location.to_string(), place);
            assert!(!loaded.settings.to_string().contains("hunter2"));
        }
        (Err(error), Err(expected)) => {
            let error = error.to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        (Ok(loaded), Err(_)) => panic!("{flags:?} is {}", loaded.config.store.location),
        (Err(error), Ok(_)) => panic!("{error}"),
    };
    let sessions = |url: &str| format!("streaming.store.sessions={url}");
    let blobs = |url: &str| format!("streaming.store.blobs={url}");
    check(
        &[&sessions("file:///var/lib/x")],
        Ok("/var/lib/x with /var/lib/x/blobs"),
    );
    check(
        &[&sessions("redis://u:hunter2@h:1/2"), &blobs("s3://b/p")],
        Ok("h:1 with s3://b/p"),
    );
    check(
        &[&sessions("redis://:hunter2@h:1/2"), &blobs("memory:")],
        Err("`streaming.store.sessions` and `streaming.store.blobs` do not fit together, given"),
    );
    check(
        &[&sessions("redis://:hunter2@h/x"), &blobs("file:///a")],
        Err("`streaming.store.sessions` must be a Redis, but it is no address of a Redis"),
    );
    check(
        &[&sessions("http://u:hunter2@h/")],
        Err(
            "`streaming.store.sessions` must be memory:, file:///folder, redis://host:port/database",
        ),
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    let from_file = format!("streaming.store.sessions_file={}", file.path().display());
    std::fs::write(file.path(), "redis://u:hunter2@h:1/2\n").unwrap();
    check(&[&from_file, &blobs("s3://b/p")], Ok("h:1 with s3://b/p"));
    check(
        &[&from_file, &blobs("memory:")],
        Err("`streaming.store.sessions` and `streaming.store.blobs` do not fit together, given"),
    );
    check(
        &[&from_file, &sessions("memory:")],
        Err("`streaming.store.sessions_file` must be left out where"),
    );
    std::fs::write(file.path(), "http://u:hunter2@h").unwrap();
    check(
        &[&from_file],
        Err("`streaming.store.sessions_file` must be a file that holds memory:, file:///folder"),
    );
    check(
        &["streaming.store.sessions_file=/nonexistent"],
        Err("`streaming.store.sessions_file` must be a file that can be read (No such file"),
    );
    check(
        &[&blobs("s3://bucket")],
        Err("given \"memory:\" (default) and \"s3://bucket\" (--blobs): with sessions in memory"),
    );
    check(
        &[&blobs("/var/lib/x")],
        Err(
            "`streaming.store.blobs` must be memory:, file:///folder or s3://bucket/prefix, given \"/var/lib/x\" (--blobs)",
        ),
    );
}

#[test]
fn a_model_needs_an_engine() {
    let check = |flags: &[&str], expected: Option<&str>| match (load_flags(flags), expected) {
        (Ok(_), None) => {}
        (result, Some(expected)) => {
            let errors = errors(result);
            assert!(errors[0].starts_with(expected), "{errors:?}");
        }
        (Err(errors), None) => panic!("{errors}"),
    };
    check(&[], None);
    check(&["generator.model_path=m"], None);
    check(
        &["generator.engine.name=ltx2"],
        Some("engine ltx2 needs a model (--engine)"),
    );
    check(
        &["generator.model_path=m", "generator.engine.name=synthetic"],
        None,
    );
}

#[test]
fn a_model_s_sizes_are_checked_and_its_warm_up_is_the_default_request() {
    let load = |flags: &[&str]| load_flags(&[&["generator.model_path=m"], flags].concat());
    let warmup = load(&[]).unwrap().config.pool.warmup.unwrap();
    assert_eq!((warmup.format.width, warmup.format.num_frames), (768, 121));
    assert!(load(&[]).unwrap().config.pool.warmup_is_typical);
    let given = load(&["streaming.warmup.num_frames=17"]).unwrap();
    assert_eq!(given.config.pool.warmup.unwrap().format.num_frames, 17);
    assert!(!given.config.pool.warmup_is_typical);

    let errors = errors(load(&[
        "default_request.sampling.width=720",
        "default_request.sampling.num_frames=120",
        "streaming.warmup.num_frames=9",
        "streaming.warmup.height=100",
        "streaming.pool.conditioning_num_frames=8",
    ]));
    let expected = [
        "`streaming.pool.conditioning_num_frames` must be 0 or one more than a multiple of 8",
        "`default_request.sampling.width` must be a multiple of 32 for engine ltx2, given 720",
        "`default_request.sampling.num_frames` must be one more than a multiple of 8",
        "`streaming.warmup.height` must be a multiple of 32 for engine ltx2, given 100",
    ];
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
    for (error, expected) in errors.iter().zip(expected) {
        assert!(error.starts_with(expected), "{error}");
    }
    let two = [
        "generator.ltx2.stages=two",
        "default_request.sampling.width=736",
    ];
    assert!(load(&two).is_err());

    // What makes previews comes between two stages.
    let decoder = "generator.ltx2.preview_decoder=taeltx_2.safetensors";
    assert!(load(&[decoder]).unwrap().config.session.previews);
    assert!(!load(&[]).unwrap().config.session.previews);
    let error = load(&[decoder, "generator.ltx2.stages=one"]).unwrap_err();
    let expected = "`generator.ltx2.preview_decoder` must be none, as generator.ltx2.stages is one";
    assert!(error.to_string().contains(expected), "{error}");
    for (frames, fits) in [(0, false), (1, true), (32, true), (33, false)] {
        let key = format!("generator.ltx2.preview_frames={frames}");
        assert_eq!(load(&[decoder, &key]).is_ok(), fits, "{frames}");
    }
}

/// The shape of the files that people have for FastVideo: all four sections, keys that mean nothing here.
const FASTVIDEO_FILE: &str = "
generator:
  model_path: some/ltx2-model
  engine:
    num_gpus: 1
    offload: {dit: false, text_encoder: true}
    compile: {enabled: true, mode: default, extras: {anything: [1]}}
    quantization: {transformer_quant: null}
  pipeline:
    workload_type: t2v
    preset_overrides: {refine: {enabled: true, guidance_scale: 1.0}}
server: {host: 127.0.0.1, port: 8009, output_dir: out/}
default_request:
  sampling: {num_frames: 121, height: 1088, width: 1920, num_inference_steps: 5, fps: 24}
streaming:
  session_timeout_seconds: 120
  stream_mode: av_fmp4
  pool: {num_workers: 2, enable_audio_reencode: true, conditioning_end_offset: 0}
  prompt: {enabled: true, provider: groq}
  safety: {enabled: false, classifier_path: null}
";

#[test]
fn fastvideo_file_loads_and_says_what_has_no_effect() {
    let loaded = load_layers(FASTVIDEO_FILE, &[], &["generator.engine.name=synthetic"]).unwrap();
    let config = loaded.config;
    assert_eq!(config.session.format.width, 1920);
    assert_eq!(config.session.num_inference_steps, 5);
    assert_eq!(config.session.session_timeout, Duration::from_secs(120));
    assert_eq!(config.pool.gpus.len(), 2);
    assert_eq!(
        loaded.warnings,
        [
            "prompts are not enhanced by groq: `GROQ_API_KEY` holds no key",
            "without effect: generator.engine.offload.dit, generator.engine.offload.text_encoder, \
             generator.engine.compile.enabled, generator.engine.compile.mode, \
             generator.engine.compile.extras, generator.pipeline.workload_type, \
             generator.pipeline.preset_overrides, server.output_dir, streaming.stream_mode, \
             generator.model_path",
        ]
    );
}

#[test]
fn safety_filter_is_configured_as_in_fastvideos_file() {
    let file = "streaming: {safety: {enabled: true, classifier_path: some/model.ftz, block_threshold: 0.75}}";
    let loaded = load_layers(file, &[], &["generator.engine.name=synthetic"]).unwrap();
    let safety = loaded.config.prompt.safety.unwrap();
    assert_eq!(
        safety.classifier_path.as_deref(),
        Some(Path::new("some/model.ftz"))
    );
    assert_eq!(safety.block_threshold.to_string(), "0.75");
    assert!(!safety.required && !safety.log_prompts);
    assert_eq!(loaded.warnings, Vec::<String>::new());
}

#[test]
fn test_pictures_that_nobody_asked_for_are_a_warning() {
    let check = |flags: &[&str], is_warned: bool| {
        let warnings = load_flags(flags).unwrap().warnings;
        let found = warnings
            .iter()
            .any(|warning| warning.contains("`generator.model_path` names no model"));
        assert_eq!(found, is_warned, "{flags:?}: {warnings:?}");
    };
    check(&[], true);
    check(&["generator.engine.name=synthetic"], false);
    check(&["generator.model_path=m"], false);
}

#[test]
fn a_level_that_does_not_exist_is_refused_wherever_it_is_given() {
    let expected = "`server.log_level` must be a level (off, error, warn, info, debug or trace), or directives such as";
    let check = |result, origin: &str| {
        let errors = errors(result);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with(expected), "{errors:?}");
        assert!(errors[0].contains("`inof` is neither"), "{errors:?}");
        assert!(errors[0].ends_with(origin), "{errors:?}");
    };
    check(load_flags(&["server.log_level=inof"]), "(--log-level)");
    check(load_flags(&["server.log_level=info,inof"]), "(--log-level)");
    check(load_file("server: {log_level: inof}"), "(serve.yaml:1)");
    check(load_layers("", &[("RUST_LOG", "inof")], &[]), "(RUST_LOG)");
    // Workers read the variable, whatever the supervisor's own level is.
    let level = ["server.log_level=debug"];
    check(
        load_layers("", &[("RUST_LOG", "inof")], &level),
        "(RUST_LOG)",
    );
    assert!(load_layers("", &[("RUST_LOG", "")], &level).is_ok());
}

#[test]
fn required_safety_filter_must_be_configured() {
    let required = "streaming.safety.required=true";
    assert_eq!(
        errors(load_flags(&[required])),
        [
            "`streaming.safety.required` must be false where `streaming.safety.enabled` is, given true \
             (--streaming.safety.required)"
        ]
    );
    assert_eq!(
        errors(load_flags(&[required, "streaming.safety.enabled=true"])),
        [
            "`streaming.safety.classifier_path` must be set where `streaming.safety.required` is true, given nothing \
             (default)"
        ]
    );
}

#[test]
fn example_file_of_the_package_loads_without_a_warning() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/serve.yaml");
    let loaded = load_file(&std::fs::read_to_string(example).unwrap()).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
}

#[test]
fn unit_of_the_package_waits_for_the_grace_period() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/fastvideo-supervisor.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    let stop = unit
        .lines()
        .find_map(|line| line.strip_prefix("TimeoutStopSec="))
        .unwrap();
    let grace = load_file("").unwrap().config.grace;
    assert!(Duration::from_secs(stop.parse().unwrap()) >= grace + Duration::from_secs(10));
}

#[test]
fn unit_of_the_package_has_every_folder_and_is_never_given_up() {
    let unit = include_str!("../../deploy/fastvideo-supervisor.service");
    let has = |line: &str| unit.lines().any(|other| other == line);
    for kind in ["State", "Cache", "Logs", "Runtime"] {
        let line = format!("{kind}Directory=fastvideo-supervisor");
        assert!(has(&line), "{line}");
    }
    assert!(has("OOMPolicy=continue"));
    assert!(has("StartLimitIntervalSec=0") && !unit.contains("StartLimitBurst"));
    assert!(has(
        "Environment=HF_HOME=%C/fastvideo-supervisor/huggingface"
    ));
    // What the documentation names must be writable under the unit.
    for text in [
        include_str!("../../README.md"),
        include_str!("../../docs/operations.md"),
        include_str!("../../docs/session-log.md"),
        include_str!("../../deploy/serve.yaml"),
    ] {
        for (at, _) in text.match_indices("/var/") {
            let path = &text[at..];
            let is_ours = ["lib", "log", "cache"]
                .iter()
                .any(|folder| path.starts_with(&format!("/var/{folder}/fastvideo-supervisor")));
            assert!(
                is_ours,
                "{}",
                path.split_whitespace().next().unwrap_or_default()
            );
        }
    }
}

#[test]
fn sessions_are_kept_in_the_state_folder_unless_a_store_is_named() {
    let state = [(
        "STATE_DIRECTORY",
        "/var/lib/fastvideo-supervisor:/var/lib/other",
    )];
    let check = |file: &str, flags: &[&str], expected: &str| {
        let loaded = load_layers(file, &state, flags).unwrap();
        assert_eq!(loaded.config.store.location.to_string(), expected);
    };
    let folder = "/var/lib/fastvideo-supervisor/sessions";
    check("", &[], &format!("{folder} with {folder}/blobs"));
    check(
        "streaming: {store: {sessions: \"memory:\"}}",
        &[],
        "memory with memory",
    );
    check(
        "",
        &["streaming.store.sessions=file:///x"],
        "/x with /x/blobs",
    );
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/serve.yaml");
    let example = std::fs::read_to_string(example).unwrap();
    check(&example, &[], &format!("{folder} with {folder}/blobs"));
}

fn enhancer(file: &str, variables: &[(&str, &str)]) -> enhancer::Config {
    let file = format!("streaming: {{prompt: {{enabled: true, {file}}}}}");
    let loaded = load_layers(&file, variables, &[]).unwrap();
    loaded.config.prompt.enhancer.unwrap()
}

#[test]
fn one_provider_comes_from_single_keys() {
    assert!(load_file("").unwrap().config.prompt.enhancer.is_none());
    let config = enhancer("", &[("CEREBRAS_API_KEY", "sk-1\n")]);
    let [provider] = config.providers.as_slice() else {
        panic!("{config:?}");
    };
    assert_eq!(provider.name, "cerebras");
    assert_eq!(provider.base_url.as_str(), "https://api.cerebras.ai/v1");
    assert_eq!(provider.key, Key::Given("sk-1".to_owned()));
    assert_eq!(provider.models.rewrite, "gpt-oss-120b");
    assert_eq!(provider.models.rollout, "gpt-oss-120b");
    assert_eq!(
        (config.rollout.temperature, config.rollout.max_tokens),
        (1.0, 3000)
    );
    assert_eq!(provider.timeout, Duration::from_secs(20));
    assert_eq!(config.timeout, Duration::from_secs(30));

    let config = enhancer(
        "provider: openai_compatible, base_url: \"http://localhost:11434/v1\", model: a, rewrite: {model: b, \
         temperature: 1, max_tokens: 9}, timeout_ms: 500",
        &[],
    );
    let provider = &config.providers[0];
    assert_eq!(provider.key, Key::NotNeeded);
    assert_eq!(
        (
            provider.models.enhance.as_str(),
            provider.models.rewrite.as_str()
        ),
        ("a", "b")
    );
    assert_eq!(provider.timeout, Duration::from_millis(500));
    assert_eq!(
        (config.rewrite.temperature, config.rewrite.max_tokens),
        (1.0, 9)
    );
}

#[test]
fn several_providers_come_in_the_order_of_their_list() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "sk-file\n").unwrap();
    let list = format!(
        "timeout_ms: 7000, providers: [{{provider: groq, timeout_ms: 1500.5, models: {{rewrite: big, rollout: bigger}}}}, \
         {{provider: openai_compatible, base_url: \"http://gpu:8000/v1\", model: m, api_key_file: {file}}}, \
         {{provider: cerebras, api_key_env: OTHER}}]",
        file = file.display()
    );
    let config = enhancer(&list, &[("GROQ_API_KEY", "gsk-1"), ("OTHER", "sk-other")]);
    let given: Vec<_> = (config.providers.iter())
        .map(|p| (p.name.as_str(), p.key.clone(), p.timeout.as_millis()))
        .collect();
    let key = |key: &str| Key::Given(key.to_owned());
    assert_eq!(
        given,
        [
            ("groq", key("gsk-1"), 1500),
            ("openai_compatible", key("sk-file"), 7000),
            ("cerebras", key("sk-other"), 7000),
        ]
    );
    assert_eq!(config.providers[0].models.enhance, "openai/gpt-oss-120b");
    assert_eq!(config.providers[0].models.rewrite, "big");
    assert_eq!(config.providers[0].models.rollout, "bigger");
}

#[test]
fn a_key_can_be_a_credential_of_systemd() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("groq"), "gsk-credential\n").unwrap();
    let file = "provider: groq, api_key_file: groq";
    let credentials = folder.path().to_str().unwrap();
    let config = enhancer(file, &[("CREDENTIALS_DIRECTORY", credentials)]);
    let key = Key::Given("gsk-credential".to_owned());
    assert_eq!(config.providers[0].key, key);
}

#[test]
fn what_is_wrong_with_a_provider_is_named_and_a_secret_is_not_shown() {
    let check = |file: &str, expected: &str| {
        let file = format!("streaming: {{prompt: {{enabled: true, {file}}}}}");
        let loaded = load_layers(&file, &[("SPACED", "sk secret")], &[]);
        let errors = loaded.unwrap_err().to_string();
        assert!(errors.contains(expected), "{errors}");
        assert!(!errors.contains("secret"), "{errors}");
    };
    check(
        "provider: openai_compatible, model: m",
        "`streaming.prompt.base_url` must be an http:// or https:// address",
    );
    check(
        "provider: openai_compatible, base_url: \"http://x\"",
        "`streaming.prompt.model` must be the name of a model, given nothing",
    );
    check("base_url: \"ftp://x\"", "given \"ftp://x\"");
    check(
        "base_url: \"https://u:secret@x\"",
        "`streaming.prompt.base_url`",
    );
    check(
        "api_key_env: sk-secret",
        "`streaming.prompt.api_key_env` must be the name of an environment variable",
    );
    check("api_key_env: SPACED", "must be a key in printable ASCII");
    check(
        "api_key_file: /nonexistent",
        "`streaming.prompt.api_key_file` must be a file that can be read",
    );
    check("providers: []", "at least one provider");
    check(
        "providers: [{provider: groq}, {provider: groq, api_key: secret}]",
        "`streaming.prompt.providers[1].api_key` must be",
    );
    check("providers: [{provider: gork}]", "unknown variant `gork`");
    check("providers: [{model: m}]", "missing field `provider`");
    check(
        "providers: [{provider: groq, timeout_ms: 0}]",
        "`streaming.prompt.providers[0].timeout_ms` must be a number from 1 to 3600000 ms, given 0",
    );
    check(
        "provider: groq, providers: [{provider: groq}]",
        "`streaming.prompt.provider` must be left out where `streaming.prompt.providers` is given",
    );
    check("system_prompt_dir: /nonexistent", "an existing folder");
}

#[test]
fn printed_settings_are_a_file_that_means_the_same() {
    let settings = load_layers(
        "server: {port: 1001}\nstreaming: {prompt: {providers: [{provider: groq, timeout_ms: 20}]}}",
        &[],
        &["default_request.negative_prompt=a \"blurry\" # picture"],
    )
    .unwrap()
    .settings;
    let printed = settings.to_string();
    let again = load_file(&printed).unwrap().settings;
    for key in keys::SERVER.all() {
        let value = |settings: &Settings| settings.setting(key).map(|s| s.value.clone());
        assert_eq!(value(&again), value(&settings), "{}", key.path);
    }
}

#[test]
fn a_file_that_grows_while_it_is_read_is_refused() {
    let check = |file: &str, expected: &str| {
        let errors = errors(load_file(file));
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].contains(expected), "{expected} in {errors:?}");
    };
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..10 {
        let item = format!("*a{}", n - 1);
        laughs += &format!("a{n}: &a{n} [{}]\n", [item.as_str(); 9].join(", "));
    }
    check(&laughs, "serve.yaml: budget breached: Nodes");
    let mut long = format!("a: &a {}\n", "x".repeat(1 << 19));
    for n in 0..1000 {
        long += &format!("b{n}: [&b{n} x, *a]\n");
    }
    check(&long, "serve.yaml: budget breached: ");
    check(&"[".repeat(100_000), "serve.yaml: ");
    check(&"a: ".repeat(100_000), "serve.yaml: ");
    let mut deep = String::new();
    for depth in 0..1000 {
        deep += &format!("{}a:\n", " ".repeat(depth));
    }
    check(&deep, "serve.yaml: ");
    check(&"#".repeat(2 << 20), "at most 1048576 bytes are allowed");
}

/// One change of a file.
#[derive(Clone, Debug)]
enum Change {
    /// Bytes are overwritten, lost, or come from elsewhere.
    Bytes {
        at: Index,
        lost: usize,
        new: Vec<u8>,
    },
    /// What is after a line's colon is another text.
    Value { line: Index, new: &'static str },
    /// A line has another indentation.
    Indent { line: Index, spaces: usize },
    /// A line stands again elsewhere.
    Line { from: Index, to: Index },
}

/// Texts that mean something in YAML, or are at the edge of what a key takes.
const ODD_TEXTS: &[&str] = &[
    "",
    "~",
    "null",
    "true",
    "no",
    "0",
    "-1",
    "1e308",
    "-1e308",
    ".inf",
    ".nan",
    "0x7fffffff",
    "0o17",
    "18446744073709551616",
    "99999999999999999999999999999999999999999",
    "1_000",
    "2001-12-14",
    "[",
    "]",
    "{",
    "}",
    "[]",
    "{}",
    "[{}]",
    "{a: [1]}",
    "&a",
    "*a",
    "&a [*a]",
    "<<: *a",
    "!!binary aGk=",
    "!!int x",
    "!x y",
    "|",
    ">-",
    "'",
    "\"",
    "\"\\u0000\"",
    "\"\\e[31m\"",
    "%TAG",
    "---",
    "...",
    "? a",
    ": b",
    "- c",
    "\t",
    "# comment",
    "@",
    "`",
    "\u{feff}",
    "\u{2028}",
    "\u{85}",
    "file:///x",
    "redis://:secret@h",
    "s3://b",
    "memory:",
    "all",
    "[0, 2]",
    "GPU-5c89",
    "gibberish",
    "\u{202e}x",
];

fn change() -> impl Strategy<Value = Change> {
    let bytes = prop_oneof![
        vec(any::<u8>(), 0..6),
        select(ODD_TEXTS).prop_map(|text| text.as_bytes().to_vec()),
    ];
    let bytes = (any::<Index>(), 0..30_usize, bytes);
    let value = (any::<Index>(), select(ODD_TEXTS));
    let indent = (any::<Index>(), 0..12_usize);
    let line = (any::<Index>(), any::<Index>());
    prop_oneof![
        2 => bytes.prop_map(|(at, lost, new)| Change::Bytes { at, lost, new }),
        4 => value.prop_map(|(line, new)| Change::Value { line, new }),
        1 => indent.prop_map(|(line, spaces)| Change::Indent { line, spaces }),
        1 => line.prop_map(|(from, to)| Change::Line { from, to }),
    ]
}

fn apply(change: &Change, file: &mut Vec<u8>) {
    let mut lines: Vec<Vec<u8>> = (file.split(|&byte| byte == b'\n'))
        .map(<[u8]>::to_vec)
        .collect();
    match change {
        Change::Bytes { at, lost, new } => {
            let at = at.index(file.len() + 1);
            let end = file.len().min(at + lost);
            file.splice(at..end, new.iter().copied());
            return;
        }
        Change::Value { line, new } => {
            let line = line.index(lines.len());
            let line = &mut lines[line];
            if let Some(colon) = line.iter().position(|&byte| byte == b':') {
                line.truncate(colon + 1);
                line.extend([b" ", new.as_bytes()].concat());
            }
        }
        Change::Indent { line, spaces } => {
            let line = line.index(lines.len());
            let text = lines[line].trim_ascii_start();
            lines[line] = [&b" ".repeat(*spaces), text].concat();
        }
        Change::Line { from, to } => {
            let line = lines[from.index(lines.len())].clone();
            lines.insert(to.index(lines.len() + 1), line);
        }
    }
    *file = lines.join(&b'\n');
}

/// The example file without its comments, and with the keys that are comments there.
fn example() -> Vec<u8> {
    let example = include_str!("../../deploy/serve.yaml");
    let lines = example.lines().map(|line| {
        let text = line.trim_start();
        match text.strip_prefix("# ") {
            Some(key)
                if key
                    .split_once(": ")
                    .is_some_and(|(name, _)| !name.contains(' ')) =>
            {
                format!("{}{key}\n", &line[..line.len() - text.len()])
            }
            Some(_) => String::new(),
            None => format!("{line}\n"),
        }
    });
    lines.collect::<String>().into_bytes()
}

/// Reads a file. Fails if it is refused without a reason, or if what was read would be printed as another file.
#[track_caller]
fn is_read_or_refused(file: &[u8]) {
    match load_layers(file, &[], &[]) {
        Ok(loaded) => {
            let again = load_file(&loaded.settings.to_string()).unwrap().settings;
            for key in keys::SERVER.all() {
                let value = |settings: &Settings| settings.setting(key).map(|s| s.value.clone());
                assert_eq!(value(&again), value(&loaded.settings), "{}", key.path);
            }
        }
        Err(refused) => {
            assert!(!refused.0.is_empty());
            assert!(refused.0.iter().all(|error| !error.to_string().is_empty()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..300)) {
        is_read_or_refused(&bytes);
    }

    #[test]
    fn any_text_is_read_or_refused(texts in vec(select(ODD_TEXTS), 0..12), separators in vec(select(&[" ", "\n", "\n  ", ": ", ", "][..]), 12)) {
        let text: String = texts.iter().zip(separators).flat_map(|(text, separator)| [*text, separator]).collect();
        is_read_or_refused(text.as_bytes());
    }

    #[test]
    fn any_change_of_the_example_is_read_or_refused(changes in vec(change(), 1..6)) {
        let mut file = example();
        for change in &changes {
            apply(change, &mut file);
        }
        is_read_or_refused(&file);
    }
}
