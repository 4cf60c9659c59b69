//! From settings to the configuration that the supervisor takes: what single keys cannot know.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::{
    DeviceChoice, DrawOrder, EncoderSpec, EngineSpec, FaultSpec, Ltx2Spec, Precision,
    SyntheticSpec, VaeTiling, WarmupSpec,
};
use fastvideo_supervisor_core::pool::{Gpu, Recycle};
use fastvideo_supervisor_core::prompt::enhancer::{self, BreakerConfig, Style};
use fastvideo_supervisor_core::prompt::safety;
use fastvideo_supervisor_core::store::open::{LocationError, StoreLocation};
use fastvideo_supervisor_core::store::records::ledger::Limits;
use fastvideo_supervisor_core::{Config, http, pool, prompt, session, store};

use super::gpus::GpuSpec;
use super::settings::{Origin, Settings};
use super::{ConfigError, Surroundings, faults, providers};
use crate::logging::{self, LogFormat};

/// Rows and columns of pixels that a latent of LTX-2 stands for, and frames.
const LTX2_CELL: u64 = 32;
const LTX2_FRAMES: u64 = 8;

/// Checks what depends on several keys or on the machine, and builds the configuration.
pub(super) fn build(
    settings: &Settings,
    surroundings: &Surroundings,
) -> Result<(Config, logging::Options), Vec<ConfigError>> {
    let mut checker = Checker {
        settings,
        surroundings,
        errors: Vec::new(),
    };
    checker.order();
    let logging = checker.logging();
    let config = Config {
        http: checker.http(),
        pool: checker.pool(),
        session: checker.session(),
        store: checker.store(),
        prompt: prompt::Config {
            enhancer: checker.enhancer(),
            safety: checker.safety(),
        },
        session_log: checker.session_log(),
        grace: settings.seconds("server.grace_seconds"),
    };
    match checker.errors {
        errors if errors.is_empty() => Ok((config, logging)),
        errors => Err(errors),
    }
}

/// Collects errors; a part that is wrong is built with a stand-in that nobody sees.
struct Checker<'a> {
    settings: &'a Settings,
    surroundings: &'a Surroundings,
    errors: Vec<ConfigError>,
}

impl Checker<'_> {
    fn order(&mut self) {
        let pairs = [
            (
                "streaming.pool.heartbeat_interval_ms",
                "streaming.pool.heartbeat_timeout_ms",
            ),
            (
                "streaming.pool.min_backoff_ms",
                "streaming.pool.max_backoff_ms",
            ),
        ];
        for (less, more) in pairs {
            if self.settings.decimal(less) > self.settings.decimal(more) {
                self.disordered(less, more);
            }
        }
        let steps = "default_request.sampling.num_inference_steps";
        let max_steps = "streaming.limits.max_inference_steps";
        if self.settings.whole(steps) > self.settings.whole(max_steps) {
            self.disordered(steps, max_steps);
        }
    }

    fn disordered(&mut self, less: &'static str, more: &'static str) {
        self.errors.push(ConfigError::Order {
            less,
            less_given: self.given(less),
            more,
            more_given: self.given(more),
        });
    }

    fn logging(&mut self) -> logging::Options {
        let level = "server.log_level";
        let from_environment = || {
            let variables = &self.surroundings.variables;
            let rust_log = variables.iter().find(|(name, _)| name == "RUST_LOG");
            rust_log.map(|(_, filter)| filter.as_str())
        };
        let filter = self
            .settings
            .text(level)
            .or_else(from_environment)
            .filter(|filter| !filter.is_empty())
            .unwrap_or(logging::DEFAULT_FILTER);
        let format = match self.settings.text("server.log_format") {
            Some("json") => LogFormat::Json,
            _ => LogFormat::Text,
        };
        logging::Options::new(format, filter).unwrap_or_else(|e| {
            self.errors.push(ConfigError::Value {
                key: level.to_owned(),
                expected: "a level or a filter such as `info,fastvideo_supervisor_core=debug`"
                    .to_owned(),
                given: format!("{filter:?}: {e}"),
                origin: match self.settings.get(level) {
                    Some(setting) => setting.origin.clone(),
                    None => Origin::Environment("RUST_LOG".to_owned()),
                },
            });
            logging::Options::default()
        })
    }

    fn http(&mut self) -> http::Config {
        let settings = self.settings;
        self.not_empty("server.host", "an address or a host name");
        self.not_empty("server.service_name", "a name");
        http::Config {
            host: settings.text("server.host").unwrap_or_default().to_owned(),
            port: settings.number("server.port"),
            service_name: (settings.text("server.service_name"))
                .unwrap_or_default()
                .to_owned(),
            max_message_bytes: settings.number("streaming.limits.max_message_bytes"),
            ping_interval: settings.seconds("streaming.limits.ping_interval_seconds"),
        }
    }

    fn session(&self) -> session::Config {
        let settings = self.settings;
        session::Config {
            format: self.format(),
            num_inference_steps: settings.number("default_request.sampling.num_inference_steps"),
            max_inference_steps: settings.number("streaming.limits.max_inference_steps"),
            seed: settings.whole("default_request.sampling.seed"),
            guidance_scale: settings.decimal("default_request.sampling.guidance_scale"),
            negative_prompt: settings
                .text("default_request.negative_prompt")
                .filter(|prompt| !prompt.is_empty())
                .map(str::to_owned),
            generation_segment_cap: settings.number("streaming.generation_segment_cap"),
            session_timeout: settings.seconds("streaming.session_timeout_seconds"),
            opening_timeout: settings.seconds("streaming.limits.opening_timeout_seconds"),
            max_waiting_requests: settings.number("streaming.limits.max_waiting_requests"),
            max_prompt_chars: settings.number("streaming.limits.max_prompt_chars"),
            max_image_pixels: settings.whole("streaming.limits.max_image_pixels"),
            max_attempts: settings.number("streaming.pool.max_attempts"),
            max_unsent_bytes: settings.whole("streaming.limits.max_unsent_bytes"),
            slow_client_timeout: settings.seconds("streaming.limits.slow_client_timeout_seconds"),
            max_sessions: settings
                .get("streaming.limits.max_sessions")
                .map(|_| settings.number("streaming.limits.max_sessions")),
            max_sessions_per_client: settings
                .get("streaming.limits.max_sessions_per_client")
                .map_or(usize::MAX, |_| {
                    settings.number("streaming.limits.max_sessions_per_client")
                }),
        }
    }

    fn store(&mut self) -> store::open::Config {
        let settings = self.settings;
        let (sessions, blobs) = ("streaming.store.sessions", "streaming.store.blobs");
        let limits = Limits {
            max_sessions: settings.number("streaming.store.max_sessions"),
            max_bytes: settings.whole("streaming.store.max_mib") << 20,
        };
        let url = settings.text(sessions).unwrap_or_default();
        let location = StoreLocation::parse(url, settings.text(blobs), limits);
        let location = location.unwrap_or_else(|error| {
            self.errors.push(match error {
                LocationError::Records(expected) => self.misplaced(sessions, expected.to_string()),
                LocationError::Blobs(expected) => self.misplaced(blobs, expected.to_string()),
                LocationError::Pair(problem) => ConfigError::Store {
                    sessions: self.given(sessions),
                    blobs: self.given(blobs),
                    problem,
                },
            });
            StoreLocation::memory(limits)
        });
        store::open::Config {
            location,
            sessions: store::handle::Config {
                resume_ttl: settings.seconds("streaming.resume_ttl_seconds"),
                lease: settings.seconds("streaming.store.lease_seconds"),
                timeout: settings.millis("streaming.store.timeout_ms"),
            },
        }
    }

    fn session_log(&mut self) -> Option<session::log::Config> {
        let settings = self.settings;
        let dir = "streaming.session_log.dir";
        self.not_empty(dir, "a folder");
        Some(session::log::Config {
            dir: PathBuf::from(settings.text(dir)?),
            max_file_bytes: settings.whole("streaming.session_log.max_file_mib") << 20,
            max_total_bytes: settings.whole("streaming.session_log.max_total_mib") << 20,
            max_age: settings.days("streaming.session_log.max_age_days"),
        })
    }

    fn enhancer(&mut self) -> Option<enhancer::Config> {
        let settings = self.settings;
        if !settings.switch("streaming.prompt.enabled") {
            return None;
        }
        let variables = &self.surroundings.variables;
        let providers = providers::build(settings, variables).unwrap_or_else(|errors| {
            self.errors.extend(errors);
            Vec::new()
        });
        let folder = "streaming.prompt.system_prompt_dir";
        let system_prompt_dir = settings.text(folder).map(PathBuf::from);
        if system_prompt_dir.as_ref().is_some_and(|dir| !dir.is_dir()) {
            let error = self.misplaced(folder, "a folder that is there".to_owned());
            self.errors.push(error);
        }
        let style = |operation: &str| Style {
            temperature: settings.decimal(&format!("streaming.prompt.{operation}.temperature")),
            max_tokens: settings.number(&format!("streaming.prompt.{operation}.max_tokens")),
        };
        Some(enhancer::Config {
            providers,
            system_prompt_dir,
            timeout: settings.millis("streaming.prompt.operation_timeout_ms"),
            enhance: style("enhance"),
            auto_extend: style("auto_extend"),
            rewrite: style("rewrite"),
            cache_entries: settings.number("streaming.prompt.cache_entries"),
            max_prompt_chars: settings.number("streaming.limits.max_prompt_chars"),
            breaker: BreakerConfig {
                failures: settings.number("streaming.prompt.breaker_failures"),
                rest: settings.seconds("streaming.prompt.breaker_rest_seconds"),
            },
            max_parallel: settings.number("streaming.prompt.max_parallel"),
        })
    }

    fn safety(&mut self) -> Option<safety::Config> {
        let settings = self.settings;
        let (path, required) = (
            "streaming.safety.classifier_path",
            "streaming.safety.required",
        );
        let is_enabled = settings.switch("streaming.safety.enabled");
        if settings.switch(required) && !is_enabled {
            let expected = "false where `streaming.safety.enabled` is";
            let error = self.misplaced(required, expected.to_owned());
            self.errors.push(error);
        }
        if !is_enabled {
            return None;
        }
        self.not_empty(path, "the path of a file");
        if settings.switch(required) && settings.get(path).is_none() {
            let expected = format!("set where `{required}` is true");
            let error = self.misplaced(path, expected);
            self.errors.push(error);
        }
        Some(safety::Config {
            classifier_path: settings.text(path).map(PathBuf::from),
            block_threshold: settings.decimal("streaming.safety.block_threshold"),
            required: settings.switch(required),
            log_prompts: settings.switch("streaming.safety.log_prompts"),
        })
    }

    fn misplaced(&self, key: &'static str, expected: String) -> ConfigError {
        let setting = self.settings.get(key);
        ConfigError::Value {
            key: key.to_owned(),
            expected,
            given: setting
                .map_or_else(|| "nothing".to_owned(), |setting| setting.value.to_string()),
            origin: setting.map_or(Origin::Default, |setting| setting.origin.clone()),
        }
    }

    /// A value and where it comes from.
    fn given(&self, path: &str) -> String {
        match self.settings.get(path) {
            Some(setting) => format!("{} ({})", setting.value, setting.origin),
            None => "nothing".to_owned(),
        }
    }

    fn pool(&mut self) -> pool::Config {
        let engine = self.engine();
        let settings = self.settings;
        pool::Config {
            worker_bin: self.worker_bin(),
            gpus: self.gpus(&engine),
            format: self.format(),
            new_frames: new_frames(self.format(), &engine),
            encoder: self.encoder(),
            warmup: self.warmup(&engine),
            warmup_is_typical: warmup_is_typical(settings, &engine),
            engine,
            sessions_per_gpu: settings.number("streaming.pool.sessions_per_gpu"),
            keep_up: settings.switch("streaming.pool.keep_up"),
            recycle: self.recycle(),
            boot_timeout: settings.seconds("streaming.warmup.timeout_seconds"),
            heartbeat_interval: settings.millis("streaming.pool.heartbeat_interval_ms"),
            heartbeat_timeout: settings.millis("streaming.pool.heartbeat_timeout_ms"),
            min_step_timeout: settings.millis("streaming.pool.min_step_timeout_ms"),
            min_backoff: settings.millis("streaming.pool.min_backoff_ms"),
            max_backoff: settings.millis("streaming.pool.max_backoff_ms"),
            quarantine_after: settings.number("streaming.pool.quarantine_after"),
            quarantine_lift: settings.seconds("streaming.pool.quarantine_lift_seconds"),
            realtime: settings.switch("server.realtime"),
        }
    }

    fn recycle(&self) -> Recycle {
        let limit = |path| Some(self.settings.whole(path)).filter(|&limit| limit > 0);
        Recycle {
            after_segments: limit("streaming.pool.recycle_after_segments")
                .map(|segments| u32::try_from(segments).unwrap_or(u32::MAX)),
            above_bytes: limit("streaming.pool.recycle_above_mib").map(|mib| mib << 20),
            overlap: self.settings.switch("streaming.pool.recycle_overlap"),
        }
    }

    fn format(&self) -> VideoFormat {
        VideoFormat {
            width: self.settings.number("default_request.sampling.width"),
            height: self.settings.number("default_request.sampling.height"),
            num_frames: self.settings.number("default_request.sampling.num_frames"),
            fps: self.settings.number("default_request.sampling.fps"),
        }
    }

    fn engine(&mut self) -> EngineSpec {
        let named = self.settings.get("generator.engine.name");
        let model = self.settings.text("generator.model_path");
        let origin = match (self.settings.text("generator.engine.name"), model) {
            (Some("ltx2"), None) => named.map(|setting| setting.origin.clone()),
            (Some("ltx2") | None, Some(model)) => {
                self.not_empty("generator.model_path", "a folder or the id of a repository");
                return EngineSpec::Ltx2(self.ltx2(model.to_owned()));
            }
            _ => return EngineSpec::Synthetic(self.synthetic()),
        };
        self.errors.push(ConfigError::NoModel {
            origin: origin.unwrap_or(Origin::Default),
        });
        EngineSpec::Ltx2(self.ltx2(String::new()))
    }

    fn gpus(&mut self, engine: &EngineSpec) -> Vec<Gpu> {
        let machine = &self.surroundings.machine;
        let (spec, origin) = match self.settings.get("streaming.pool.gpus") {
            Some(given) => (
                self.settings
                    .text("streaming.pool.gpus")
                    .unwrap_or_default()
                    .parse(),
                given.origin.clone(),
            ),
            None => self.gpu_count(),
        };
        let gpus = spec.and_then(|spec| match engine {
            EngineSpec::Ltx2(ltx2) if ltx2.device != DeviceChoice::Cpu => machine.gpus(&spec),
            EngineSpec::Synthetic(_) | EngineSpec::Ltx2(_) => machine.places(&spec),
        });
        gpus.unwrap_or_else(|source| {
            self.errors.push(ConfigError::Gpus { source, origin });
            Vec::new()
        })
    }

    /// FastVideo's two names for it, the one of the streaming server first.
    fn gpu_count(&self) -> (Result<GpuSpec, super::gpus::GpuError>, Origin) {
        for path in ["streaming.pool.num_workers", "generator.engine.num_gpus"] {
            if let Some(setting) = self.settings.get(path) {
                let count = GpuSpec::Count(self.settings.number(path));
                return (Ok(count), setting.origin.clone());
            }
        }
        (Ok(GpuSpec::Count(1)), Origin::Default)
    }

    fn ltx2(&mut self, model: String) -> Ltx2Spec {
        let settings = self.settings;
        let spec = Ltx2Spec {
            model,
            device: match settings.text("generator.ltx2.device") {
                Some("cpu") => DeviceChoice::Cpu,
                Some("cuda") => DeviceChoice::Cuda,
                _ => DeviceChoice::Auto,
            },
            precision: precision(settings.text("generator.ltx2.precision")),
            draw_order: match settings.text("generator.ltx2.draw_order") {
                Some("tokens") => DrawOrder::Tokens,
                _ => DrawOrder::Channels,
            },
            positions: precision(settings.text("generator.ltx2.positions"))
                .unwrap_or(Precision::Float32),
            vae_tiling: match settings.text("generator.ltx2.vae_tiling") {
                Some("whole") => VaeTiling::Whole,
                Some("library") => VaeTiling::Library,
                Some("fastvideo") => VaeTiling::Fastvideo,
                _ => VaeTiling::Grouped,
            },
            stages: match settings.text("generator.ltx2.stages") {
                Some("one") => Some(1),
                Some("two") => Some(2),
                _ => None,
            },
            refine_steps: settings.number("generator.ltx2.refine_steps"),
            kernels: settings.switch("generator.ltx2.kernels"),
            conditioning_num_frames: settings.number("streaming.pool.conditioning_num_frames"),
            conditioning_end_offset: settings.number("streaming.pool.conditioning_end_offset"),
            audio_conditioning_num_frames: settings
                .number("generator.ltx2.audio_conditioning_num_frames"),
            audio_reencode: settings.switch("streaming.pool.enable_audio_reencode"),
            check_weights: settings.switch("generator.ltx2.check_weights"),
        };
        self.ltx2_sizes(&spec);
        spec
    }

    /// What every checkpoint of this family refuses; the rest is known once it is loaded.
    fn ltx2_sizes(&mut self, spec: &Ltx2Spec) {
        let cell = match spec.stages {
            // The first stage is made at half the size.
            Some(2) => 2 * LTX2_CELL,
            _ => LTX2_CELL,
        };
        let kept = "streaming.pool.conditioning_num_frames";
        let frames = self.settings.whole(kept);
        if frames != 0 && frames % LTX2_FRAMES != 1 {
            self.unfit(kept, "0 or one more than a multiple of 8 for engine ltx2");
        }
        let taken = u64::from(spec.conditioning_num_frames + spec.conditioning_end_offset);
        for section in ["default_request.sampling", "streaming.warmup"] {
            for name in ["width", "height", "num_frames"] {
                let path = format!("{section}.{name}");
                // Where warm-up is not configured it is the default request.
                if section == "streaming.warmup" && !is_given(self.settings, &path) {
                    continue;
                }
                let given = self.settings.whole(&path);
                if name != "num_frames" {
                    if !given.is_multiple_of(cell) {
                        self.unfit(&path, &format!("a multiple of {cell} for engine ltx2"));
                    }
                } else if given % LTX2_FRAMES != 1 {
                    self.unfit(&path, "one more than a multiple of 8 for engine ltx2");
                } else if given <= taken {
                    let expected = format!("more than the {taken} that a segment takes over");
                    self.unfit(&path, &expected);
                }
            }
        }
    }

    fn unfit(&mut self, path: &str, expected: &str) {
        let setting = self.settings.get(path);
        self.errors.push(ConfigError::Value {
            key: path.to_owned(),
            expected: expected.to_owned(),
            given: setting.map_or_else(String::new, |setting| setting.value.to_string()),
            origin: setting.map_or(Origin::Default, |setting| setting.origin.clone()),
        });
    }

    fn synthetic(&mut self) -> SyntheticSpec {
        let settings = self.settings;
        SyntheticSpec {
            step: settings.millis("generator.synthetic.step_ms"),
            frame: settings.millis("generator.synthetic.frame_ms"),
            load: settings.millis("generator.synthetic.load_ms"),
            conditioning_num_frames: settings.number("streaming.pool.conditioning_num_frames"),
            audio_latent_frames: settings.number("generator.synthetic.audio_latent_frames"),
            prerender: settings.switch("generator.synthetic.prerender"),
            faults: self.faults(),
        }
    }

    fn faults(&mut self) -> Vec<FaultSpec> {
        let path = "generator.synthetic.faults";
        let (Some(setting), Some(text)) = (self.settings.get(path), self.settings.text(path))
        else {
            return Vec::new();
        };
        faults::parse(text).unwrap_or_else(|source| {
            self.errors.push(ConfigError::Faults {
                source,
                origin: setting.origin.clone(),
            });
            Vec::new()
        })
    }

    fn encoder(&self) -> EncoderSpec {
        let settings = self.settings;
        EncoderSpec {
            video_codec: settings
                .text("streaming.encoder.video_codec")
                .unwrap_or_default()
                .to_owned(),
            crf: settings.number("streaming.encoder.crf"),
            fragment: settings.millis("streaming.encoder.fragment_ms"),
            audio_bit_rate: settings.number("streaming.encoder.audio_bit_rate"),
            jpeg_quality: settings.number("streaming.encoder.jpeg_quality"),
        }
    }

    fn warmup(&mut self, engine: &EngineSpec) -> Option<WarmupSpec> {
        let settings = self.settings;
        if !settings.switch("streaming.warmup.enabled") {
            return None;
        }
        self.not_empty("streaming.warmup.prompt", "a text that is not empty");
        Some(WarmupSpec {
            prompt: settings
                .text("streaming.warmup.prompt")
                .unwrap_or_default()
                .to_owned(),
            format: VideoFormat {
                width: settings.number(&warmup_key(settings, engine, "width")),
                height: settings.number(&warmup_key(settings, engine, "height")),
                num_frames: settings.number(&warmup_key(settings, engine, "num_frames")),
                fps: settings.number("default_request.sampling.fps"),
            },
            num_inference_steps: settings.number(&warmup_key(
                settings,
                engine,
                "num_inference_steps",
            )),
        })
    }

    fn worker_bin(&mut self) -> PathBuf {
        let path = match self.settings.text("streaming.pool.worker_bin") {
            Some(path) => PathBuf::from(path),
            None => self.surroundings.folder.join("fastvideo-worker"),
        };
        let problem = match std::fs::metadata(&path) {
            Err(_) => Some("is not there"),
            Ok(file) if !file.is_file() => Some("is not a file"),
            Ok(file) if file.permissions().mode() & 0o111 == 0 => Some("is not executable"),
            Ok(_) => None,
        };
        if let Some(problem) = problem {
            self.errors.push(ConfigError::WorkerBin {
                path: path.clone(),
                problem,
            });
        }
        path
    }

    fn not_empty(&mut self, path: &'static str, expected: &str) {
        if let Some(setting) = self.settings.get(path)
            && self
                .settings
                .text(path)
                .is_none_or(|text| text.trim().is_empty())
        {
            self.errors.push(ConfigError::Value {
                key: path.to_owned(),
                expected: expected.to_owned(),
                given: setting.value.to_string(),
                origin: setting.origin.clone(),
            });
        }
    }
}

fn precision(name: Option<&str>) -> Option<Precision> {
    match name {
        Some("bfloat16") => Some(Precision::Bfloat16),
        Some("float32") => Some(Precision::Float32),
        _ => None,
    }
}

fn new_frames(format: VideoFormat, engine: &EngineSpec) -> u32 {
    let taken = match engine {
        EngineSpec::Synthetic(_) => 0,
        EngineSpec::Ltx2(ltx2) => ltx2.conditioning_num_frames,
    };
    format.num_frames.saturating_sub(taken).max(1)
}

fn is_given(settings: &Settings, path: &str) -> bool {
    (settings.get(path)).is_some_and(|setting| setting.origin != Origin::Default)
}

/// Which key says it of the warm-up. A model is warmed up with what it will be asked for, unless something else is given:
/// small segments would leave its kernels untried.
fn warmup_key(settings: &Settings, engine: &EngineSpec, name: &str) -> String {
    let own = format!("streaming.warmup.{name}");
    match engine {
        EngineSpec::Ltx2(_) if !is_given(settings, &own) => {
            format!("default_request.sampling.{name}")
        }
        EngineSpec::Ltx2(_) | EngineSpec::Synthetic(_) => own,
    }
}

fn warmup_is_typical(settings: &Settings, engine: &EngineSpec) -> bool {
    ["width", "height", "num_frames", "num_inference_steps"]
        .iter()
        .all(|name| {
            let usual = format!("default_request.sampling.{name}");
            settings.whole(&warmup_key(settings, engine, name)) == settings.whole(&usual)
        })
}
