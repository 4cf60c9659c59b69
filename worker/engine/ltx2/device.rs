//! The device that the engine computes on: the CPU, or a GPU whose backend is opened on request.
//!
//! The program links libtorch without CUDA, so that it starts on any machine. [`Compute::open`] looks for a driver and
//! a GPU, opens `libtorch_cuda.so`, and reports what is missing. It must be called before any other query about CUDA,
//! because libtorch keeps its first answer.
//!
//! - `libtorch`: functions of libtorch that `tch` lacks;
//! - `pinned`: copies bytes from the GPU to pinned host memory.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use cudarc::driver::{CudaContext, DriverError, sys};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Cuda, Device, Kind, TchError, Tensor};

use crate::nn::Precision;

pub use libtorch::{Allocated, Attention, Refused};
pub use pinned::Download;

#[expect(unsafe_code, reason = "calls C++")]
pub(crate) mod libtorch;
#[expect(unsafe_code, reason = "the driver writes to memory")]
mod pinned;

/// The CUDA backend of libtorch.
const BACKEND: &str = "libtorch_cuda.so";

/// The requested device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The first GPU if there is one, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// The GPU with this index among those that CUDA shows to this process.
    Cuda(usize),
}

/// The reason why the requested device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("device `{0}`: expected auto, cpu, cuda or cuda:INDEX")]
    Name(String),
    #[error("no NVIDIA driver on this machine (no libcuda.so.1)")]
    NoDriver,
    #[error("no GPU {index}: CUDA shows {count} to this process")]
    NoGpu { index: usize, count: usize },
    #[error(
        "the driver is there, {BACKEND} could not be opened: {0}; it comes with a PyTorch or libtorch built for CUDA, and its folder must be that of libtorch_cpu.so or on the library path"
    )]
    NoBackend(#[source] libloading::Error),
    #[error(
        "libtorch finds no GPU that it can use; most often its CUDA needs a newer driver than this one"
    )]
    Unusable,
    #[error("libtorch could not begin on the GPU")]
    Begin(#[source] TchError),
    #[error("the driver could not {what}")]
    Driver {
        what: &'static str,
        #[source]
        source: DriverError,
    },
    #[error(transparent)]
    Libtorch(#[from] Refused),
}

/// The device that everything is computed on.
#[derive(Debug)]
pub struct Compute {
    pub device: Device,
    /// The GPU; `None` on the CPU.
    pub gpu: Option<Gpu>,
}

/// A GPU in use, with libtorch's own context and stream.
#[derive(Debug)]
pub struct Gpu {
    context: Arc<CudaContext>,
    index: usize,
    name: String,
    compute_capability: (i32, i32),
}

/// The memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    /// The memory that any process can still allocate.
    pub free: u64,
    pub allocated: Allocated,
}

impl FromStr for Wanted {
    type Err = DeviceError;

    fn from_str(name: &str) -> Result<Self, DeviceError> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| DeviceError::Name(name.to_owned())),
        }
    }
}

impl Compute {
    /// Opens the requested device, with float32 kept exact (no TF32).
    ///
    /// # Errors
    /// Returns an error that says what is missing for a requested GPU. `Auto` takes the CPU in that case, and fails
    /// only when a GPU and its backend are present but do not work.
    pub fn open(wanted: Wanted) -> Result<Self, DeviceError> {
        match wanted {
            Wanted::Cpu => Ok(Self::cpu()),
            Wanted::Cuda(index) => Ok(Self::on(Gpu::open(index)?)),
            Wanted::Auto => match Gpu::open(0) {
                Ok(gpu) => Ok(Self::on(gpu)),
                Err(DeviceError::NoDriver | DeviceError::NoGpu { .. }) => Ok(Self::cpu()),
                Err(missing @ DeviceError::NoBackend(_)) => {
                    tracing::warn!(%missing, "this machine has a GPU; computing on the CPU");
                    Ok(Self::cpu())
                }
                Err(error) => Err(error),
            },
        }
    }

    fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            gpu: None,
        }
    }

    fn on(gpu: Gpu) -> Self {
        Self {
            device: Device::Cuda(gpu.index),
            gpu: Some(gpu),
        }
    }

    /// Returns the type that suits the device when none is requested: CPUs are slow in bfloat16.
    pub fn default_precision(&self) -> Precision {
        match self.gpu {
            Some(_) => Precision::Bfloat16,
            None => Precision::Float32,
        }
    }

    /// Waits until all operations that were started have been computed.
    pub fn synchronize(&self) {
        if let Device::Cuda(index) = self.device {
            Cuda::synchronize(i64::try_from(index).expect("a device's index is small"));
        }
    }
}

impl Gpu {
    fn open(index: usize) -> Result<Self, DeviceError> {
        let count = gpu_count()?;
        if index >= count {
            return Err(DeviceError::NoGpu { index, count });
        }
        open_backend()?;
        if !Cuda::is_available() {
            return Err(DeviceError::Unusable);
        }
        let driver = |what| move |source| DeviceError::Driver { what, source };
        let context = CudaContext::new(index).map_err(driver("open the GPU"))?;
        let name = context.name().map_err(driver("tell the GPU's name"))?;
        let compute_capability = context
            .compute_capability()
            .map_err(driver("tell the GPU's compute capability"))?;
        // The allocator cannot be queried before its first allocation.
        let first = (Kind::Float, Device::Cuda(index));
        drop(Tensor::f_zeros([1], first).map_err(DeviceError::Begin)?);
        // By default matrices are exact, but convolutions are not. The documented environment variable would have to be
        // set before the process has threads.
        libtorch::allow_tf32(false)?;
        Ok(Self {
            context,
            index,
            name,
            compute_capability,
        })
    }

    pub fn index(&self) -> usize {
        self.index
    }

    /// Returns the driver's name of the GPU, such as `NVIDIA H100 80GB HBM3`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the name by which monitoring knows the GPU, as `nvidia-smi -L` prints it; `None` when the driver does not
    /// tell it.
    pub fn uuid(&self) -> Option<String> {
        let bytes = self.context.uuid().ok()?.bytes;
        let mut name = "GPU".to_owned();
        for (i, byte) in bytes.into_iter().enumerate() {
            if matches!(i, 0 | 4 | 6 | 8 | 10) {
                name.push('-');
            }
            let byte = u8::from_ne_bytes(byte.to_ne_bytes());
            name.push_str(&format!("{byte:02x}"));
        }
        Some(name)
    }

    /// Returns the compute capability as major and minor version, such as (9, 0).
    pub fn compute_capability(&self) -> (i32, i32) {
        self.compute_capability
    }

    /// Returns the device's primary context, which libtorch uses too.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// # Errors
    /// Returns an error when the driver or libtorch refuses the query, as after a failure of the GPU.
    pub fn memory(&self) -> Result<Memory, DeviceError> {
        let (free, total) = self
            .context
            .mem_get_info()
            .map_err(|source| DeviceError::Driver {
                what: "tell the GPU's memory",
                source,
            })?;
        Ok(Memory {
            total: total as u64,
            free: free as u64,
            allocated: libtorch::allocated(self.index)?,
        })
    }

    /// Resets the peaks in [`Gpu::memory`].
    ///
    /// # Errors
    /// Returns an error when libtorch refuses, as after a failure of the GPU.
    pub fn reset_peak_memory(&self) -> Result<(), DeviceError> {
        Ok(libtorch::reset_peaks(self.index)?)
    }

    /// Releases memory that no tensor uses to the driver, for example after a job that ran out of memory.
    ///
    /// # Errors
    /// Returns an error when the driver fails.
    pub fn empty_cache(&self) -> Result<(), DeviceError> {
        Ok(libtorch::empty_cache()?)
    }

    /// Sets which attention kernels libtorch tries first, and in which order. An empty list sets the order that libtorch is
    /// built with, which begins with flash: on Hopper and later GPUs that is not the one that it chooses by itself, which
    /// begins with cuDNN, so a process that leaves the order alone computes fastest there.
    ///
    /// # Errors
    /// Returns an error when libtorch refuses.
    pub fn set_attention_order(&self, first: &[Attention]) -> Result<(), DeviceError> {
        // The first attention of a process sets libtorch's own choice, over any that was set before.
        let device = Device::Cuda(self.index);
        let x = Tensor::ones([1, 1, 16, 64], (Kind::BFloat16, device));
        let none = None::<&Tensor>;
        drop(Tensor::scaled_dot_product_attention(
            &x, &x, &x, none, 0.0, false, None, false,
        ));
        Ok(libtorch::attention_order(first)?)
    }
}

/// Returns the folder of the libtorch that this process has loaded.
pub(crate) fn libtorch_folder() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let library = maps.lines().find_map(|line| {
        let path = Path::new(&line[line.find('/')?..]);
        path.ends_with("libtorch_cpu.so").then(|| path.to_owned())
    })?;
    library.parent().map(Path::to_owned)
}

/// Opens a library for the life of the process. Libraries that are opened later see its symbols and its name.
#[expect(unsafe_code, reason = "opens a library")]
pub(crate) fn open_library(path: &Path) -> Result<(), libloading::Error> {
    // SAFETY: NVIDIA's and libtorch's libraries may be opened from any thread at any time.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }?;
    std::mem::forget(library);
    Ok(())
}

/// Returns how many GPUs CUDA shows to this process.
#[expect(unsafe_code, reason = "opens the driver's library")]
fn gpu_count() -> Result<usize, DeviceError> {
    // SAFETY: the driver's library may be opened from any thread at any time. Without it, all other calls would panic.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        // The library is present but the kernel's driver is not, as in containers that were given no GPU.
        Err(DriverError(
            sys::CUresult::CUDA_ERROR_STUB_LIBRARY | sys::CUresult::CUDA_ERROR_SYSTEM_NOT_READY,
        )) => Err(DeviceError::NoDriver),
        Err(source) => Err(DeviceError::Driver {
            what: "begin",
            source,
        }),
    }
}

/// Opens libtorch's CUDA backend: that of the libtorch in use, or one on the library path.
fn open_backend() -> Result<(), DeviceError> {
    static OPENED: OnceLock<()> = OnceLock::new();
    if OPENED.get().is_some() {
        return Ok(());
    }
    let beside = libtorch_folder().map(|folder| folder.join(BACKEND));
    let path = beside
        .filter(|path| path.exists())
        .unwrap_or_else(|| BACKEND.into());
    open_library(&path).map_err(DeviceError::NoBackend)?;
    OPENED.get_or_init(|| ());
    Ok(())
}
