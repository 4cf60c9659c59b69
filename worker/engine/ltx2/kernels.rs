//! The package's own CUDA kernels, for operations that libtorch computes in several passes over memory.
//! [`ops`](crate::ops) chooses between them and the equivalent plain operators; nothing else calls them.
//!
//! The sources in `kernels/` are compiled at start by NVRTC for the installed GPU. They run in libtorch's context and
//! on its default stream, in order with its operators, so that memory of a dropped tensor is not reused before they are
//! done.
//!
//! Tests compile the same sources for the CPU (`tests/kernels`), where [`CudaKernels::on_host`] loads them: their logic and
//! their launches are checked without a GPU.
//!
//! A kernel takes bfloat16 or float32, sixteen bytes at a time. Where types, sizes or strides do not allow that, the
//! functions here return `None`, and the caller uses the plain operators. Like libtorch's operators they panic when the
//! GPU fails.

#![expect(unsafe_code, reason = "launches kernels on the memory of tensors")]

mod launch;

use std::path::Path;

use cudarc::driver::{DeviceRepr, DriverError, LaunchConfig};
use cudarc::nvrtc::{self, CompileError, CompileOptions, Ptx};
use tch::{Device, Kind, Tensor};

use self::launch::{HostLibrary, Kernel};
use crate::activations::{Activations, Form, flat};
use crate::device::{self, Gpu, Refused};
use crate::float8::Rows;
use crate::ops::arguments::{Padding, PositionTable, Runs};

const TRANSFORMER: &str = concat!(
    include_str!("kernels/device.cuh"),
    include_str!("kernels/common.cuh"),
    include_str!("kernels/transformer.cu")
);
const VIDEO_VAE: &str = concat!(
    include_str!("kernels/device.cuh"),
    include_str!("kernels/common.cuh"),
    include_str!("kernels/video_vae.cu")
);

/// The number of bytes that a thread loads at once.
const VECTOR: i64 = 16;
/// `PARTS` of `transformer.cu`, and what its rotation keeps of each half.
const ROW_PARTS: i64 = 4;
const HALF_PARTS: i64 = 2;
/// The number of threads of a block. Rows of the full-size model keep a block of this size busy.
const THREADS: i64 = 256;
/// The same for rows that are too wide for it.
const MOST_THREADS: i64 = 512;
/// The number of threads of a warp, which can sum together without a barrier.
const WARP: i64 = 32;
/// The first compute capability with 8-bit floats.
const FLOAT8_GPU: (i32, i32) = (8, 9);
/// The highest number of axes of a grid of tokens.
const AXES: usize = 3;
/// The highest number of runs of tokens, unless each token is its own run.
const RUNS: usize = 4;

/// The reason why there are no kernels; the plain operators are used instead.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("no NVRTC library (libnvrtc.so.13); it comes with CUDA and with PyTorch for CUDA")]
    NoCompiler,
    #[error("NVRTC did not compile the kernels for {arch}: {log}")]
    Compile { arch: String, log: String },
    #[error("compute capability {}.{}: the kernels need 8.0", .0.0, .0.1)]
    OldGpu((i32, i32)),
    #[error("libtorch does not compute on the default stream")]
    Stream,
    #[error("the driver did not load the kernels")]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Libtorch(#[from] Refused),
    #[error("the kernels for the CPU cannot be loaded")]
    Host(#[from] libloading::Error),
}

/// The kernels, loaded for one GPU.
#[derive(Debug)]
pub struct CudaKernels {
    device: Device,
    bfloat16: Functions,
    float32: Functions,
    /// None on GPUs that do not have 8-bit floats.
    float8: Option<Float8Functions>,
}

/// The kernels for one type.
#[derive(Debug)]
struct Functions {
    rms_norm_modulate: Kernel,
    add_gated: Kernel,
    norm_rotate: Kernel,
    /// The kernel's variants for 1, 2, 4 and 8 parts per thread.
    pixel_norm_silu_pad: [Kernel; 4],
    pad: [Kernel; 4],
    rgb8: Kernel,
}

/// The kernels from bfloat16 to 8-bit floats.
#[derive(Debug)]
struct Float8Functions {
    modulated: Kernel,
    gelu: Kernel,
    gate: Kernel,
}

/// The struct `Runs` of `transformer.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct RunsArg {
    batch_stride: i64,
    run_stride: i64,
    tokens: i32,
    starts: [i32; RUNS - 1],
    per_token: i32,
}

// SAFETY: plain numbers, laid out as the struct of the same fields in the kernels' source.
unsafe impl DeviceRepr for RunsArg {}

/// The struct `Float8` of `transformer.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Float8Arg {
    values: u64,
    scales: u64,
    dense: u64,
}

// SAFETY: plain numbers, laid out as the struct of the same fields in the kernels' source.
unsafe impl DeviceRepr for Float8Arg {}

/// The struct `Grid` of `transformer.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct GridArg {
    axes: i32,
    sizes: [i32; AXES],
    strides: [i32; AXES],
    frequencies: i32,
    still: i32,
}

// SAFETY: plain numbers, laid out as the struct of the same fields in the kernels' source.
unsafe impl DeviceRepr for GridArg {}

/// The struct `Padding` of `video_vae.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct PaddingArg {
    frames: i32,
    rows: i32,
    columns: i32,
    before: i32,
    after: i32,
    border: i32,
    reflect: i32,
}

// SAFETY: plain numbers, laid out as the struct of the same fields in the kernels' source.
unsafe impl DeviceRepr for PaddingArg {}

impl CudaKernels {
    /// Compiles and loads all kernels, in about two seconds.
    ///
    /// # Errors
    /// Returns an error when the kernels cannot be compiled on this machine or for this GPU.
    pub fn load(gpu: &Gpu) -> Result<Self, KernelError> {
        let (major, minor) = gpu.compute_capability();
        if major < 8 {
            return Err(KernelError::OldGpu((major, minor)));
        }
        if !device::libtorch::on_default_stream(gpu.index())? {
            return Err(KernelError::Stream);
        }
        let arch = format!("compute_{major}{minor}");
        let transformer = gpu.context().load_module(compile(TRANSFORMER, &arch)?)?;
        let video_vae = gpu.context().load_module(compile(VIDEO_VAE, &arch)?)?;
        let stream = gpu.context().default_stream();
        let float8 = (major, minor) >= FLOAT8_GPU;
        Self::load_with(Device::Cuda(gpu.index()), float8, &|name| {
            let function = transformer.load_function(name);
            let function = function.or_else(|_| video_vae.load_function(name))?;
            Ok(Kernel::Gpu(stream.clone(), function))
        })
    }

    /// Loads kernels that tests have compiled for the CPU. They take tensors there, and are slow.
    ///
    /// # Errors
    /// Returns an error when the library lacks a kernel.
    pub fn on_host(library: &Path) -> Result<Self, KernelError> {
        let library = HostLibrary::open(library)?;
        Self::load_with(Device::Cpu, true, &|name| {
            Ok(Kernel::Host(library.kernel(name)?))
        })
    }

    fn load_with(
        device: Device,
        float8: bool,
        load: &dyn Fn(&str) -> Result<Kernel, KernelError>,
    ) -> Result<Self, KernelError> {
        Ok(Self {
            device,
            bfloat16: Functions::load(load, "bf16")?,
            float32: Functions::load(load, "float")?,
            float8: float8.then(|| Float8Functions::load(load)).transpose()?,
        })
    }

    /// Computes `rms(x) (1 + scale) + shift`: `[B, N, D]` to a new `[B, N, D]`, rows `[B or 1, runs, D]`.
    pub fn rms_norm_modulate(
        &self,
        x: &Tensor,
        eps: f64,
        scale: &Tensor,
        shift: &Tensor,
        runs: &Runs,
    ) -> Option<Tensor> {
        let (batch, tokens, width) = x.size3().ok()?;
        let functions = self.functions(x)?;
        let runs = runs_arg(x, &[scale, shift], runs)?;
        let threads = row_threads(x, width, ROW_PARTS)?;
        let config = grid(batch * tokens, threads)?;
        let x = x.contiguous();
        let out = x.empty_like();
        let [out_at, x_at, scale_at, shift_at] = [&out, &x, scale, shift].map(address);
        let (width, eps) = (small(width)?, single(eps));
        let mut launch = functions.rms_norm_modulate.arguments();
        launch.arg(&out_at).arg(&x_at).arg(&scale_at).arg(&shift_at);
        launch.arg(&runs).arg(&width).arg(&eps);
        // SAFETY: the arguments are the kernel's. All rows are of one type, device and width, contiguous, aligned and
        // inside of their tensors: `runs_arg` and `row_threads` have checked it.
        unsafe { launch.launch(config) };
        Some(out)
    }

    /// Computes what [`Self::rms_norm_modulate`] does, as the input of layers that take 8-bit floats. The values are those
    /// of its result, quantized.
    pub fn modulated(
        &self,
        x: &Tensor,
        eps: f64,
        scale: &Tensor,
        shift: &Tensor,
        runs: &Runs,
        form: Form,
    ) -> Option<Activations> {
        let kernel = &self.float8(x, form)?.modulated;
        let runs = runs_arg(x, &[scale, shift], runs)?;
        let rows = FlatRows::of(x)?;
        let (out, written) = rows.quantized(x, form);
        let [x_at, scale_at, shift_at] = [&rows.x, scale, shift].map(address);
        let eps = single(eps);
        let mut launch = kernel.arguments();
        launch
            .arg(&written)
            .arg(&x_at)
            .arg(&scale_at)
            .arg(&shift_at);
        launch.arg(&runs).arg(&rows.width).arg(&eps);
        // SAFETY: the arguments are the kernel's. `runs_arg` and `FlatRows` have checked and allocated what it reads and
        // writes.
        unsafe { launch.launch(rows.config) };
        Some(out)
    }

    /// Computes GELU in its tanh form, as the input of layers that take 8-bit floats.
    pub fn gelu(&self, x: &Tensor, form: Form) -> Option<Activations> {
        let kernel = &self.float8(x, form)?.gelu;
        let rows = FlatRows::of(x)?;
        let (out, written) = rows.quantized(x, form);
        let x_at = address(&rows.x);
        let mut launch = kernel.arguments();
        launch.arg(&written).arg(&x_at).arg(&rows.width);
        // SAFETY: the arguments are the kernel's. `FlatRows` has checked and allocated what it reads and writes.
        unsafe { launch.launch(rows.config) };
        Some(out)
    }

    /// Scales each head by its gate, if there are gates: `[B, N, heads, d]` by `[B, N, heads]` to `[B, N, heads · d]`, as
    /// the input of layers that take 8-bit floats.
    pub fn gate(&self, x: &Tensor, gates: Option<&Tensor>, form: Form) -> Option<Activations> {
        self.float8(x, form)?;
        let (batch, tokens, heads, head_width) = x.size4().ok()?;
        let fits = gates.is_none_or(|gates| {
            gates.size() == [batch, tokens, heads]
                && alike(x, gates)
                && gates.is_contiguous()
                && vector(x).is_some_and(|vector| head_width % vector == 0)
        });
        if !fits {
            return None;
        }
        self.gated(&x.flatten(2, 3), gates, head_width, form)
    }

    /// Converts `x` to the input of layers that take 8-bit floats.
    pub fn input(&self, x: &Tensor, form: Form) -> Option<Activations> {
        self.gated(x, None, 1, form)
    }

    /// Computes `[…, k]` times the gates `[…, k / head_width]`, which the caller has checked.
    fn gated(
        &self,
        x: &Tensor,
        gates: Option<&Tensor>,
        head_width: i64,
        form: Form,
    ) -> Option<Activations> {
        let kernel = &self.float8(x, form)?.gate;
        let rows = FlatRows::of(x)?;
        let head_width = small(head_width)?;
        let (out, written) = rows.quantized(x, form);
        let (x_at, gates_at) = (address(&rows.x), gates.map_or(0, address));
        let mut launch = kernel.arguments();
        launch.arg(&written).arg(&x_at).arg(&gates_at);
        launch.arg(&rows.width).arg(&head_width);
        // SAFETY: the arguments are the kernel's. `FlatRows` has checked and allocated what it reads and writes, the caller
        // has checked the gates.
        unsafe { launch.launch(rows.config) };
        Some(out)
    }

    /// Computes `x += gate · y`, both `[B, N, D]`, rows `[B or 1, runs, D]`. Returns `None`, with nothing done, where
    /// the kernel does not apply.
    pub fn add_gated(&self, x: &mut Tensor, y: &Tensor, gate: &Tensor, runs: &Runs) -> Option<()> {
        let (batch, tokens, width) = x.size3().ok()?;
        let functions = self.functions(x)?;
        let runs = runs_arg(x, &[gate], runs)?;
        let threads = row_threads(x, width, ROW_PARTS)?;
        let config = grid(batch * tokens, threads)?;
        if !x.is_contiguous() || !alike(x, y) || y.size() != x.size() {
            return None;
        }
        let y = y.contiguous();
        let [x_at, y_at, gate_at] = [&*x, &y, gate].map(address);
        let width = small(width)?;
        let mut launch = functions.add_gated.arguments();
        launch
            .arg(&x_at)
            .arg(&y_at)
            .arg(&gate_at)
            .arg(&runs)
            .arg(&width);
        // SAFETY: as in `rms_norm_modulate`; x and y are contiguous and of one size, x is borrowed mutably.
        unsafe { launch.launch(config) };
        Some(())
    }

    /// Computes the RMS norm with gain `[D]` over the whole width, then the rotation of each head's halves: `[B, N, D]`
    /// to a new `[B, N, D]`.
    pub fn norm_rotate(
        &self,
        x: &Tensor,
        gain: &Tensor,
        eps: f64,
        heads: i64,
        table: &PositionTable,
    ) -> Option<Tensor> {
        let (batch, tokens, width) = x.size3().ok()?;
        let functions = self.functions(x)?;
        let half = width / heads / 2;
        let threads = row_threads(x, width / 2, HALF_PARTS)?;
        let config = grid(batch * tokens, threads)?;
        let grid = grid_arg(x, table)?;
        let fits = table.tokens == tokens
            && table.pairs() == width / 2
            && heads * 2 * half == width
            && half % vector(x)? == 0
            && gain.size() == [width]
            && alike(x, gain)
            && gain.is_contiguous()
            && aligned(gain);
        if !fits {
            return None;
        }
        let x = x.contiguous();
        let out = x.empty_like();
        let [out_at, x_at, gain_at, table_at] = [&out, &x, gain, &table.values].map(address);
        let [tokens, heads, half] = [small(tokens)?, small(heads)?, small(half)?];
        let eps = single(eps);
        let mut launch = functions.norm_rotate.arguments();
        launch.arg(&out_at).arg(&x_at).arg(&gain_at).arg(&table_at);
        launch.arg(&grid).arg(&tokens).arg(&heads);
        launch.arg(&half).arg(&eps);
        // SAFETY: the arguments are the kernel's; types, sizes, alignment and devices were checked above.
        unsafe { launch.launch(config) };
        Some(out)
    }

    /// Computes `silu(x / √(mean over channels of x² + eps))` with padding: `[B, C, F, H, W]` to
    /// `[B, C, before + F + after, H + 2 border, W + 2 border]`. The output is in channels-last memory format, which
    /// convolutions on GPUs prefer and also produce; an `x` in another format is copied first.
    pub fn pixel_norm_silu_pad(&self, x: &Tensor, eps: f64, padding: Padding) -> Option<Tensor> {
        self.pad_with(&self.functions(x)?.pixel_norm_silu_pad, x, eps, padding)
    }

    /// Pads `x` only.
    pub fn pad(&self, x: &Tensor, padding: Padding) -> Option<Tensor> {
        self.pad_with(&self.functions(x)?.pad, x, 0.0, padding)
    }

    fn pad_with(
        &self,
        functions: &[Kernel; 4],
        x: &Tensor,
        eps: f64,
        padding: Padding,
    ) -> Option<Tensor> {
        let (batch, channels, frames, rows, columns) = x.size5().ok()?;
        let Padding {
            before,
            after,
            border,
            reflect,
        } = padding;
        let vectors = channels / vector(x)?;
        if channels % vector(x)? != 0 || (reflect && rows.min(columns) <= border) {
            return None;
        }
        let lanes = 1i64 << vectors.trailing_zeros().min(WARP.trailing_zeros());
        let parts = u64::try_from(vectors / lanes).ok()?;
        if !parts.is_power_of_two() {
            return None;
        }
        let function = functions.get(parts.trailing_zeros() as usize)?;
        let padded_frames = before + frames + after;
        let padded_rows = rows + 2 * border;
        let config = grid(batch * padded_frames * padded_rows, THREADS)?;
        // There is no copy if the memory format is channels-last already.
        let x = x.permute([0, 2, 3, 4, 1]).contiguous();
        if !aligned(&x) {
            return None;
        }
        let out = Tensor::empty(
            [
                batch,
                padded_frames,
                padded_rows,
                columns + 2 * border,
                channels,
            ],
            (x.kind(), x.device()),
        );
        let padding = PaddingArg {
            frames: small(frames)?,
            rows: small(rows)?,
            columns: small(columns)?,
            before: small(before)?,
            after: small(after)?,
            border: small(border)?,
            reflect: i32::from(reflect),
        };
        let [out_at, x_at] = [&out, &x].map(address);
        let [channels, lanes] = [small(channels)?, small(lanes)?];
        let eps = single(eps);
        let mut launch = function.arguments();
        launch.arg(&out_at).arg(&x_at).arg(&padding);
        launch.arg(&channels).arg(&lanes).arg(&eps);
        // SAFETY: the arguments are the kernel's; both tensors are contiguous, the output of the padded size, and a
        // reflected border is narrower than the picture.
        unsafe { launch.launch(config) };
        Some(out.permute([0, 4, 1, 2, 3]))
    }

    /// Converts pictures in [-1, 1] to bytes: `x` `[1, 3, frames, rows, columns]` to `[frames, rows, columns, 3]`.
    pub fn rgb8(&self, x: &Tensor) -> Option<Tensor> {
        let (batch, colours, frames, rows, columns) = x.size5().ok()?;
        let functions = self.functions(x)?;
        let vector = vector(x)?;
        let pixels = frames * rows * columns;
        if (batch, colours) != (1, 3) || pixels % vector != 0 {
            return None;
        }
        let config = grid((pixels / vector + THREADS - 1) / THREADS, THREADS)?;
        let x = x.contiguous();
        if !aligned(&x) {
            return None;
        }
        let out = Tensor::empty([frames, rows, columns, 3], (Kind::Uint8, x.device()));
        let [out_at, x_at] = [&out, &x].map(address);
        let mut launch = functions.rgb8.arguments();
        launch.arg(&out_at).arg(&x_at).arg(&pixels);
        // SAFETY: the arguments are the kernel's; both tensors are contiguous and hold `pixels` times three values.
        unsafe { launch.launch(config) };
        Some(out)
    }

    /// Returns the kernels to 8-bit floats if the layers want those and the tensor is of the type that they take.
    fn float8(&self, x: &Tensor, form: Form) -> Option<&Float8Functions> {
        let fits = form.scales_rows()
            && x.device() == self.device
            && x.kind() == Kind::BFloat16
            && x.numel() > 0;
        self.float8.as_ref().filter(|_| fits)
    }

    /// Returns the kernels for a tensor's type, if there are any.
    fn functions(&self, x: &Tensor) -> Option<&Functions> {
        if x.device() != self.device || x.numel() == 0 {
            return None;
        }
        match x.kind() {
            Kind::BFloat16 => Some(&self.bfloat16),
            Kind::Float => Some(&self.float32),
            _ => None,
        }
    }
}

impl Functions {
    fn load(
        load: &dyn Fn(&str) -> Result<Kernel, KernelError>,
        kind: &str,
    ) -> Result<Self, KernelError> {
        let by_parts = |name: &str| -> Result<[Kernel; 4], KernelError> {
            let load = |parts| load(&format!("{name}_{kind}_{parts}"));
            Ok([load(1)?, load(2)?, load(4)?, load(8)?])
        };
        Ok(Self {
            rms_norm_modulate: load(&format!("rms_norm_modulate_{kind}"))?,
            add_gated: load(&format!("add_gated_{kind}"))?,
            norm_rotate: load(&format!("norm_rotate_{kind}"))?,
            pixel_norm_silu_pad: by_parts("pixel_norm_silu_pad")?,
            pad: by_parts("pad")?,
            rgb8: load(&format!("rgb8_{kind}"))?,
        })
    }
}

impl Float8Functions {
    fn load(load: &dyn Fn(&str) -> Result<Kernel, KernelError>) -> Result<Self, KernelError> {
        Ok(Self {
            modulated: load("rms_norm_modulate_float8")?,
            gelu: load("gelu_float8")?,
            gate: load("gate_float8")?,
        })
    }
}

/// Compiles one source for an architecture such as `compute_90`.
fn compile(source: &str, arch: &str) -> Result<Ptx, KernelError> {
    open_compiler();
    // SAFETY: NVRTC may be opened from any thread at any time. Without it, all other calls would panic.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        return Err(KernelError::NoCompiler);
    }
    let options = CompileOptions {
        options: vec![format!("--gpu-architecture={arch}")],
        ..CompileOptions::default()
    };
    nvrtc::compile_ptx_with_opts(source, options).map_err(|error| KernelError::Compile {
        arch: arch.to_owned(),
        log: match error {
            CompileError::CompileError { log, .. } => log.to_string_lossy().into_owned(),
            other => other.to_string(),
        },
    })
}

/// Opens the NVRTC that was installed with the libtorch in use, so that it is found by name later. If there is none,
/// the library path is searched later.
fn open_compiler() {
    let Some(libtorch) = device::libtorch_folder() else {
        return;
    };
    for folder in [libtorch.join("../../nvidia/cu13/lib"), libtorch] {
        // NVRTC opens the second library by name only.
        for name in ["libnvrtc.so.13", "libnvrtc-builtins.so.13.0"] {
            let path = folder.join(name);
            if Path::exists(&path)
                && let Err(error) = device::open_library(&path)
            {
                tracing::warn!(path = %path.display(), %error, "could not be opened");
            }
        }
    }
}

/// A tensor as the rows that the kernels to 8-bit floats take, a block a row.
struct FlatRows {
    /// `[n, width]`, contiguous and aligned.
    x: Tensor,
    width: i32,
    config: LaunchConfig,
}

impl FlatRows {
    fn of(x: &Tensor) -> Option<Self> {
        let x = flat(x).contiguous();
        let (rows, width) = x.size2().ok()?;
        let threads = row_threads(&x, width, ROW_PARTS)?;
        Some(Self {
            config: grid(rows, threads)?,
            width: small(width)?,
            x,
        })
    }

    /// Allocates what a kernel writes for these rows of the tensor `like`.
    fn quantized(&self, like: &Tensor, form: Form) -> (Activations, Float8Arg) {
        let (size, device) = (self.x.size(), self.x.device());
        let rows = Rows {
            values: Tensor::empty(&size, (Kind::Float8e4m3fn, device)),
            scales: Tensor::empty([size[0], 1], (Kind::Float, device)),
        };
        let dense = form.dense.then(|| self.x.empty_like());
        let written = Float8Arg {
            values: address(&rows.values),
            scales: address(&rows.scales),
            dense: dense.as_ref().map_or(0, address),
        };
        let size = like.size();
        let dense = dense.map(|dense| dense.view(size.as_slice()));
        (
            Activations::quantized(rows, dense, size, like.kind()),
            written,
        )
    }
}

/// Returns how many of a tensor's values are loaded at once.
fn vector(x: &Tensor) -> Option<i64> {
    let bytes = i64::try_from(x.kind().elt_size_in_bytes()).ok()?;
    Some(VECTOR / bytes)
}

/// Returns the number of threads, in whole warps, that hold `width` values in at most `parts` vectors each.
fn row_threads(x: &Tensor, width: i64, parts: i64) -> Option<i64> {
    let vector = vector(x)?;
    let vectors = width / vector;
    let most = if vectors <= THREADS * parts {
        THREADS
    } else {
        MOST_THREADS
    };
    let threads = ((vectors + WARP - 1) / WARP * WARP).min(most);
    (width % vector == 0 && aligned(x) && vectors <= threads * parts).then_some(threads)
}

/// Checks rows of modulation `[B or 1, runs, D]`, which have the same memory layout, against `x` `[B, N, D]`.
fn runs_arg(x: &Tensor, rows: &[&Tensor], runs: &Runs) -> Option<RunsArg> {
    let (batch, tokens, width) = x.size3().ok()?;
    let lengths = runs.lengths();
    let count = i64::try_from(lengths.len()).ok()?;
    let (rows_batch, vector) = (*rows.first()?.size().first()?, vector(x)?);
    let strides = rows.first()?.stride();
    let fits = runs.tokens() == tokens
        && (rows_batch == batch || rows_batch == 1)
        && strides[..2].iter().all(|stride| stride % vector == 0)
        && strides[2] == 1
        && rows.iter().all(|rows| {
            rows.size() == [rows_batch, count, width]
                && rows.stride() == strides
                && alike(x, rows)
                && aligned(rows)
        });
    let per_token = count == tokens;
    if !fits || (!per_token && lengths.len() > RUNS) {
        return None;
    }
    let mut starts = [small(tokens)?; RUNS - 1];
    if !per_token {
        for (known, start) in starts.iter_mut().zip(runs.starts()) {
            *known = small(start)?;
        }
    }
    Some(RunsArg {
        batch_stride: if rows_batch == 1 { 0 } else { strides[0] },
        run_stride: strides[1],
        tokens: small(tokens)?,
        starts,
        per_token: i32::from(per_token),
    })
}

/// Checks a table of rotations on the device of `x`.
fn grid_arg(x: &Tensor, table: &PositionTable) -> Option<GridArg> {
    let (positions, frequencies, _) = table.values.size3().ok()?;
    let sizes: i64 = table.axes.iter().map(|axis| axis.size).sum();
    let fits = table.values.size() == [sizes, frequencies, 2]
        && positions == sizes
        && table.values.kind() == Kind::Float
        && table.values.device() == x.device()
        && table.values.is_contiguous()
        && (1..=AXES).contains(&table.axes.len())
        && table
            .axes
            .iter()
            .all(|axis| axis.size > 0 && axis.stride > 0);
    if !fits {
        return None;
    }
    // The axes that are not there do not divide by zero.
    let mut grid = GridArg {
        axes: small(i64::try_from(table.axes.len()).ok()?)?,
        sizes: [1; AXES],
        strides: [1; AXES],
        frequencies: small(frequencies)?,
        still: small(table.still)?,
    };
    for (i, axis) in table.axes.iter().enumerate() {
        grid.sizes[i] = small(axis.size)?;
        grid.strides[i] = small(axis.stride)?;
    }
    Some(grid)
}

fn alike(one: &Tensor, other: &Tensor) -> bool {
    one.kind() == other.kind() && one.device() == other.device()
}

/// Returns whether vectors can be loaded from a tensor's first value on.
fn aligned(x: &Tensor) -> bool {
    x.data_ptr().cast::<u128>().is_aligned()
}

/// Returns the address of a tensor's first value on its device. The tensor must live until the kernel that gets the
/// address is launched; from then on the stream's order protects its memory.
fn address(x: &Tensor) -> u64 {
    x.data_ptr() as u64
}

fn small(number: i64) -> Option<i32> {
    i32::try_from(number).ok()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "kernels compute in float32"
)]
fn single(number: f64) -> f32 {
    number as f32
}

fn grid(blocks: i64, threads: i64) -> Option<LaunchConfig> {
    Some(LaunchConfig {
        grid_dim: (u32::try_from(blocks).ok()?, 1, 1),
        block_dim: (u32::try_from(threads).ok()?, 1, 1),
        shared_mem_bytes: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For real architectures: their instructions are then assembled, too.
    #[test]
    fn kernels_compile() {
        for arch in ["sm_80", "sm_89", "sm_90", "sm_100"] {
            for source in [TRANSFORMER, VIDEO_VAE] {
                match compile(source, arch) {
                    Ok(ptx) => {
                        let ptx = ptx.to_src();
                        assert!(ptx.contains(&format!(".target {arch}")));
                        let float8 = source == TRANSFORMER && arch != "sm_80";
                        assert_eq!(ptx.contains(".entry gelu_float8"), float8, "{arch}");
                    }
                    Err(KernelError::NoCompiler) => {
                        return eprintln!("no NVRTC here: kernels not compiled");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}
