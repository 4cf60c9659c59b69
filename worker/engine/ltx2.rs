//! The engine for LTX-2: converts jobs to requests, passes the model's output to the sink, and converts continuation
//! states to tensors and back.
//!
//! The model itself is the package `fastvideo-ltx2`, which does not know about jobs or states. libtorch panics when an
//! operation fails; that is caught here, at the boundary of a job.
//!
//! `ltx2_options` has the options of the model, `ltx2_loras` its adapters, `ltx2_state` reads and writes continuation states,
//! `ltx2_snapshot` the latents after a step.

use std::any::Any;
use std::error::Error;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use fastvideo_ltx2::adapters::Choice;
use fastvideo_ltx2::checkpoint::{Checkpoint, hub};
use fastvideo_ltx2::device::{Compute, DeviceError, Download};
use fastvideo_ltx2::load;
use fastvideo_ltx2::memory::{Estimate, Size};
use fastvideo_ltx2::nn::{Precision, sizes};
use fastvideo_ltx2::ops::Kernels;
use fastvideo_ltx2::pipeline::{
    GenerateError, Output, OutputError, Pipeline, Previews, Request, Resume, Stage, Start, Step,
};
use fastvideo_ltx2::with_causes;
use fastvideo_proto::adapter::HeldAdapter;
use fastvideo_proto::job;
use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::DeviceReport;
use tch::{Device, Kind, Tensor};

use super::ltx2_loras::Lora;
use super::ltx2_options::Options;
use super::{
    AudioFormat, Engine, EngineError, GenerateRequest, LoadProgress, Loaded, ModelCheck, NewState,
    Preview, Sink, initial_image, ltx2_loras, ltx2_snapshot as snapshot, ltx2_state as state,
};
use crate::sound::{SOUND_TAIL_SAMPLES, predict};

/// The engine's name on the link.
pub(crate) const NAME: &str = "ltx2";

/// The engine; it has a model once it is loaded.
#[derive(Debug)]
pub(crate) struct Ltx2 {
    options: Options,
    format: VideoFormat,
    loaded: Option<Model>,
}

#[derive(Debug)]
struct Model {
    pipeline: Pipeline,
    compute: Compute,
    audio: AudioFormat,
    /// The download buffer for frames; `None` on the CPU.
    download: Option<Download>,
}

impl Ltx2 {
    /// Creates an engine that makes segments of this format.
    pub(crate) fn new(options: Options, format: VideoFormat) -> Self {
        Self {
            options,
            format,
            loaded: None,
        }
    }
}

impl Engine for Ltx2 {
    fn load(&mut self, mut progress: LoadProgress) -> Result<Loaded, EngineError> {
        let compute = Compute::open(self.options.wanted()).map_err(unusable)?;
        // This error is not permanent: the network may be back at the next attempt.
        let folder = hub::resolve(&self.options.model, &mut |download| {
            let hub::Download {
                file,
                fraction,
                done,
                files,
            } = download;
            progress(
                fraction,
                &format!("downloading file {} of {files}, {file}", done + 1),
            );
        });
        let folder = folder.map_err(|error| match error {
            hub::HubError::Neither(_) | hub::HubError::OneFile { .. } => unusable(error),
            error => EngineError::Failed(with_causes(&error)),
        })?;
        let companions = self.options.companions();
        let checkpoint = Checkpoint::open_with(&folder, &companions).map_err(unusable)?;
        let options = load::Options {
            fused: ltx2_loras::fused(self.options.loras()),
            check_values: self.options.check_weights,
            matrices: self.options.matrices(&compute).map_err(unusable)?,
            adapter_limits: self.options.adapter_limits(),
            preview_decoder: self.options.preview_decoder.clone(),
            ..load::Options::new(
                compute.device,
                self.options.precision(&compute),
                self.options.kernels(&compute),
            )
        };
        // The checkpoint is checked first, because loading takes minutes.
        load::check_with(&checkpoint, &options).map_err(unusable)?;
        let settings = self.options.settings();
        if let Some(gpu) = &compute.gpu {
            let size = Size {
                width: self.format.width,
                height: self.format.height,
                num_frames: self.format.num_frames,
            };
            let needed = Estimate::new(&checkpoint, &options, &settings.tiling, size);
            let memory = gpu.memory().map_err(unusable)?;
            needed.fits(memory.total).map_err(unusable)?;
        }
        let parts = catch(|| {
            let mut last = None;
            load::load(&checkpoint, &options, move |loaded| {
                let hundredth = loaded.bytes_done.saturating_mul(100) / loaded.bytes_total.max(1);
                if last.replace((loaded.part, hundredth)) != Some((loaded.part, hundredth)) {
                    progress(
                        hundredth as f32 / 100.0,
                        &format!("loading {}", loaded.part),
                    );
                }
            })
        });
        let mut parts = parts?.map_err(unusable)?;
        let adapters = catch(|| ltx2_loras::load_all(self.options.loras(), &mut parts.adapters));
        let adapters = adapters?.map_err(unusable)?;
        if parts.preview_decoder.is_some() && parts.upsampler.is_none() {
            tracing::warn!("the model has one stage, and makes no previews");
        }
        if let Some(schedule) = self.options.schedule() {
            parts.scheduler = schedule;
        }
        let pipeline = Pipeline::new(parts, settings).map_err(unusable)?;
        let audio = AudioFormat {
            sample_rate: whole(pipeline.sample_rate()),
            channels: whole(pipeline.audio_channels()),
        };
        let device = device_report(&compute);
        let download = compute.gpu.as_ref().map(Download::new);
        self.loaded = Some(Model {
            pipeline,
            download: download.transpose().map_err(unusable)?,
            compute,
            audio,
        });
        Ok(Loaded {
            model_id: model_id(&self.options.model),
            device,
            audio: Some(audio),
            adapters,
        })
    }

    fn load_adapter(&mut self, options: &str) -> Result<HeldAdapter, EngineError> {
        let lora: Lora = serde_json::from_str(options).map_err(|error| {
            EngineError::Failed(format!("the adapter's options are wrong: {error}"))
        })?;
        let not_loaded = || EngineError::Failed("the model is not loaded".to_owned());
        let model = self.loaded.as_mut().ok_or_else(not_loaded)?;
        let adapters = model.pipeline.adapters_mut();
        let held = catch(|| ltx2_loras::load(&lora, adapters))?;
        let held = held.map_err(|error| EngineError::Refused(with_causes(&error)))?;
        self.options.add_lora(lora);
        Ok(held)
    }

    fn unload_adapter(&mut self, name: &str) {
        self.options.remove_lora(name);
        if let Some(model) = &mut self.loaded
            && let Err(error) = model.pipeline.adapters_mut().unload(name)
        {
            tracing::debug!(%error, "adapter not unloaded");
        }
    }

    fn gpu_bytes(&self) -> Option<u64> {
        let gpu = self.loaded.as_ref()?.compute.gpu.as_ref()?;
        let memory = gpu.memory().ok()?;
        Some(memory.total.saturating_sub(memory.free))
    }

    fn check(&self) -> Result<ModelCheck, EngineError> {
        let folder = match hub::local(&self.options.model).map_err(unusable)? {
            hub::Local::Here(folder) => folder,
            hub::Local::Incomplete { missing } => {
                return Ok(ModelCheck::NotHere(format!(
                    "{} is not complete in the cache ({missing}); the first worker downloads it",
                    self.options.model
                )));
            }
        };
        let companions = self.options.companions();
        let checkpoint = Checkpoint::open_with(&folder, &companions).map_err(unusable)?;
        let options = load::Options {
            preview_decoder: self.options.preview_decoder.clone(),
            ..load::Options::new(Device::Cpu, Precision::Bfloat16, Kernels::default())
        };
        let checked = catch(|| load::check_with(&checkpoint, &options));
        let generation = checked?.map_err(unusable)?;
        let found = format!("{} has all tensors of {generation}", folder.display());
        Ok(ModelCheck::Usable(found))
    }

    fn frames(&self, request: &GenerateRequest<'_>) -> u32 {
        let kept = request.state.and_then(|state| state.header.frames);
        let kept = kept.map_or(0, |frames| frames.count);
        request.format.num_frames.saturating_sub(kept).max(1)
    }

    fn generate(
        &mut self,
        request: &GenerateRequest<'_>,
        sink: &mut dyn Sink,
    ) -> Result<NewState, EngineError> {
        let total_frames = self.frames(request);
        let model = self
            .loaded
            .as_mut()
            .expect("an engine generates once it is loaded");
        let before = request.state.map(|state| state::read(&state)).transpose()?;
        let image = match request.initial_image {
            Some(path) if before.is_none() => Some(image_tensor(path, request.format)?),
            _ => None,
        };
        let resumed = request.snapshot.as_ref().map(snapshot::read).transpose()?;
        let start = match (&before, &image) {
            (Some(before), _) => Start::Segment(before),
            (None, Some(image)) => Start::Image(image),
            (None, None) => Start::Noise,
        };
        let VideoFormat {
            width,
            height,
            num_frames,
            fps,
        } = request.format;
        let adapters: Vec<Choice> = request
            .adapters
            .iter()
            .map(|adapter| Choice {
                name: adapter.name.clone(),
                strength: adapter.strength,
            })
            .collect();
        let prompt = ltx2_loras::with_triggers(request.prompt, self.options.loras(), &adapters);
        let request_to_model = Request {
            prompt: &prompt,
            negative_prompt: request.negative_prompt,
            seed: request.seed,
            num_inference_steps: request.num_inference_steps as usize,
            guidance_scale: request.guidance_scale,
            height: height.into(),
            width: width.into(),
            num_frames: num_frames.into(),
            cut_frames: request.cut_frames.into(),
            fps: fps.into(),
            start,
            adapters: &adapters,
            resume: resumed.as_ref().map(|resumed| Resume {
                stage: resumed.stage,
                step: resumed.step,
                latents: &resumed.latents,
            }),
        };
        if resumed.is_some()
            && let Err(error) = model.pipeline.check(&request_to_model)
        {
            // What the request itself is refused for, the next attempt is refused for without a snapshot.
            return Err(EngineError::SnapshotRefused(error.to_string()));
        }
        let mut output = Handover {
            sink,
            audio: model.audio,
            fps,
            sound: Vec::new(),
            given: 0,
            frames: 0,
            total_frames,
            frame_bytes: request.format.frame_bytes(),
            download: model.download.as_mut(),
            under_way: false,
        };
        let pipeline = &mut model.pipeline;
        let made = catch(|| {
            let made = pipeline.generate(&request_to_model, &mut output)?;
            output.finish()?;
            Ok::<_, GenerateError>(made)
        });
        let continuation = match made {
            Ok(made) => made.map_err(refusal)?,
            Err(error) => {
                model.give_memory_back();
                return Err(error);
            }
        };
        let index = request
            .state
            .map_or(0, |state| state.header.segment_index.saturating_add(1));
        state::write(&continuation, index, model.audio.sample_rate)
    }
}

impl Model {
    /// Gives libtorch's cached memory back after a job that ran out of memory: the cached blocks are of the wrong
    /// sizes.
    fn give_memory_back(&self) {
        if let Some(gpu) = &self.compute.gpu
            && let Err(error) = gpu.empty_cache()
        {
            tracing::warn!(%error, "cannot give the GPU's unused memory back");
        }
    }
}

/// The number of samples by which the AAC encoder wants the sound to be ahead of the picture.
const SOUND_AHEAD: u32 = 4096;

/// Passes the model's output to the sink.
struct Handover<'a> {
    sink: &'a mut dyn Sink,
    audio: AudioFormat,
    fps: u32,
    /// All samples of the segment, interleaved.
    sound: Vec<f32>,
    /// The number of samples that have been passed on.
    given: usize,
    frames: u32,
    /// The number of frames that the segment will have.
    total_frames: u32,
    frame_bytes: usize,
    /// The download buffer for frames; `None` on the CPU.
    download: Option<&'a mut Download>,
    /// Whether frames have left the GPU that were not passed on yet.
    under_way: bool,
}

impl Handover<'_> {
    /// Returns the range of the sound that goes along with the next frame: a little more than the frame needs.
    fn sound_of_next_frame(&mut self) -> Range<usize> {
        let ahead = u64::from(SOUND_AHEAD);
        let end = self.audio.sample_at(u64::from(self.frames) + 1, self.fps) + ahead;
        let end = usize::try_from(end).unwrap_or(usize::MAX);
        let end = end
            .saturating_mul(self.audio.channels as usize)
            .min(self.sound.len());
        let next = self.given..end.max(self.given);
        self.given = next.end;
        next
    }
}

impl Handover<'_> {
    /// Passes on the frames of the download in progress.
    fn finish(&mut self) -> Result<(), OutputError> {
        if !std::mem::replace(&mut self.under_way, false) {
            return Ok(());
        }
        let Some(download) = self.download.take() else {
            return Ok(());
        };
        let passed = match download.wait() {
            Ok(bytes) => self.pass_on(bytes),
            Err(error) => Err(failed(error)),
        };
        self.download = Some(download);
        passed
    }

    fn pass_on(&mut self, frames: &[u8]) -> Result<(), OutputError> {
        for rgb in frames.chunks_exact(self.frame_bytes) {
            let mut frame = self.sink.blank_frame();
            frame.clear();
            frame.extend_from_slice(rgb);
            let sound = self.sound_of_next_frame();
            self.frames += 1;
            let passed = self.sink.frame(Arc::new(frame), &self.sound[sound]);
            passed.map_err(|error| match error {
                EngineError::Cancelled => OutputError::Cancelled,
                error => OutputError::Failed(error.to_string()),
            })?;
        }
        Ok(())
    }
}

fn job_stage(stage: Stage) -> job::Stage {
    match stage {
        Stage::Denoise => job::Stage::Denoise,
        Stage::Refine => job::Stage::Refine,
    }
}

fn failed(error: DeviceError) -> OutputError {
    OutputError::Failed(with_causes(&error))
}

impl Output for Handover<'_> {
    fn cancelled(&self) -> bool {
        self.sink.cancelled()
    }

    fn begin(&mut self, stage: Stage) {
        self.sink.begin(job_stage(stage));
    }

    fn begin_decoding(&mut self) {
        self.sink.begin(job::Stage::Decode);
    }

    fn step(&mut self, step: &Step<'_>) {
        let stage = job_stage(step.stage);
        let latents = snapshot::AfterStep(step.latents);
        self.sink.step(
            stage,
            count(step.step),
            count(step.total_steps),
            Some(&latents),
        );
    }

    fn takes_previews(&self) -> bool {
        self.sink.takes_previews()
    }

    fn previews(&mut self, previews: &Previews<'_>) {
        let rgb8 = previews.rgb8.contiguous().to_device(Device::Cpu);
        let [_, height, width, _] = sizes(&rgb8);
        let mut bytes = vec![0; rgb8.numel()];
        rgb8.copy_data_u8(&mut bytes, rgb8.numel());
        let picture_bytes = bytes.len() / previews.positions.len().max(1);
        let pictures = bytes.chunks_exact(picture_bytes.max(1));
        let previews = pictures
            .zip(previews.positions)
            .map(|(rgb, frame)| Preview {
                frame: whole(*frame),
                num_frames: whole(previews.num_frames),
                width: whole(width),
                height: whole(height),
                rgb: rgb.to_vec(),
            });
        self.sink.previews(previews.collect());
    }

    /// Takes the segment's sound. Latents end a few hundredths of a second before the frames do, so the missing end is
    /// predicted: silence would be heard at every seam.
    fn sound(&mut self, samples: &[f32]) -> Result<(), OutputError> {
        let channels = self.audio.channels as usize;
        let whole = self.audio.sample_at(self.total_frames.into(), self.fps);
        let whole = usize::try_from(whole).unwrap_or(0);
        let missing = whole.saturating_sub(samples.len() / channels);
        let tail = samples.len().saturating_sub(SOUND_TAIL_SAMPLES * channels);
        self.sound = samples.to_vec();
        self.sound
            .extend(predict(&samples[tail..], channels, missing));
        Ok(())
    }

    /// Takes frames. Those on a GPU are passed on when the next ones arrive, so that they are copied while the next
    /// ones are computed.
    fn frames(&mut self, rgb8: &Tensor) -> Result<(), OutputError> {
        self.finish()?;
        let rgb8 = rgb8.contiguous();
        match self.download.as_deref_mut() {
            Some(download) => {
                download.start(rgb8).map_err(failed)?;
                self.under_way = true;
                Ok(())
            }
            None => {
                let length = rgb8.numel();
                let mut bytes = vec![0; length];
                rgb8.to_device(Device::Cpu).copy_data_u8(&mut bytes, length);
                self.pass_on(&bytes)
            }
        }
    }
}

/// Runs code in which libtorch may panic.
///
/// # Errors
/// Returns [`EngineError::OutOfMemory`] when memory has run out, [`EngineError::Failed`] when the request is at fault, and
/// [`EngineError::Broken`] when the device has failed: nothing works in this process any more then.
fn catch<T>(run: impl FnOnce() -> T) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| broken(&text_of(&*panic)))
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap_or_else(|| "it panicked".to_owned())
}

/// Classifies a panic by the text of libtorch's message.
fn broken(text: &str) -> EngineError {
    const NO_MEMORY: [&str; 5] = [
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
    ];
    const BROKEN_DEVICE: [&str; 4] = ["CUDA error", "CUBLAS_STATUS", "cuDNN error", "CUDNN_STATUS"];
    let has = |signs: &[&str]| signs.iter().any(|sign| text.contains(sign));
    // libtorch's stack trace follows the first line.
    let told = text.lines().next().unwrap_or_default();
    if has(&NO_MEMORY) {
        EngineError::OutOfMemory(format!(
            "the device ran out of memory; a smaller video may fit: {told}"
        ))
    } else if has(&BROKEN_DEVICE) {
        EngineError::Broken(format!("the GPU failed, a new worker is needed: {told}"))
    } else {
        EngineError::Failed(format!("the model failed: {told}"))
    }
}

fn refusal(error: GenerateError) -> EngineError {
    match error {
        GenerateError::Cancelled => EngineError::Cancelled,
        GenerateError::Refused { .. } | GenerateError::Adapter(_) => {
            EngineError::Refused(error.to_string())
        }
        GenerateError::State { .. } => EngineError::StateIncompatible(error.to_string()),
        error => EngineError::Failed(with_causes(&error)),
    }
}

fn unusable(error: impl Error) -> EngineError {
    EngineError::Unusable(with_causes(&error))
}

fn image_tensor(path: &Path, format: VideoFormat) -> Result<Tensor, EngineError> {
    let image = initial_image::read(path, (format.width, format.height))?.into_rgb8();
    let shape = [1, image.height().into(), image.width().into(), 3];
    Ok(Tensor::from_data_size(image.as_raw(), &shape, Kind::Uint8))
}

fn device_report(compute: &Compute) -> DeviceReport {
    match &compute.gpu {
        None => DeviceReport {
            name: "CPU".to_owned(),
            memory_bytes: None,
            uuid: None,
        },
        Some(gpu) => DeviceReport {
            name: gpu.name().to_owned(),
            memory_bytes: gpu.memory().ok().map(|memory| memory.total),
            uuid: gpu.uuid(),
        },
    }
}

/// Returns a repository's id, or a folder's name.
fn model_id(model: &str) -> String {
    let path = Path::new(model);
    match path.canonicalize() {
        Ok(path) => path.file_name().map_or_else(
            || model.to_owned(),
            |name| name.to_string_lossy().into_owned(),
        ),
        Err(_) => model.to_owned(),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn whole(n: i64) -> u32 {
    u32::try_from(n).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_panic_of_libtorch_means_is_told_by_its_words() {
        let caught = |text: &'static str| catch(|| -> () { panic!("{text}") }).unwrap_err();
        let out = "CUDA out of memory. Tried to allocate 3.75 GiB. GPU 0 has a total capacity of 79 GiB\nException raised";
        assert!(
            matches!(caught(out), EngineError::OutOfMemory(text) if text.contains("3.75 GiB") && !text.contains("raised"))
        );
        for out in [
            "CUDA error: out of memory",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
            "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
        ] {
            assert!(matches!(caught(out), EngineError::OutOfMemory(_)), "{out}");
        }
        let broken = "CUDA error: an illegal memory access was encountered";
        assert!(matches!(caught(broken), EngineError::Broken(_)));
        assert!(matches!(
            caught("The size of tensor a (3)"),
            EngineError::Failed(_)
        ));
    }
}
