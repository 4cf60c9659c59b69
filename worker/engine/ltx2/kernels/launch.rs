//! A kernel and its launch: on a GPU, or on the CPU, where tests run the same sources compiled by a C++ compiler.

use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::{
    CudaFunction, CudaStream, DeviceRepr, LaunchArgs, LaunchConfig, PushKernelArg,
};
use libloading::Library;

/// A kernel that is loaded.
#[derive(Debug)]
pub(super) enum Kernel {
    /// A kernel for launches on this stream.
    Gpu(Arc<CudaStream>, CudaFunction),
    Host(HostKernel),
}

/// Runs a kernel to its end, with the addresses of its arguments and the numbers of blocks and of threads of a block.
pub(super) type HostKernel =
    unsafe extern "C" fn(arguments: *const *const c_void, blocks: u32, threads: u32);

/// The arguments of one launch.
pub(super) enum Launch<'a> {
    Gpu(LaunchArgs<'a>),
    Host(HostKernel, Vec<*const c_void>),
}

impl Kernel {
    pub(super) fn arguments(&self) -> Launch<'_> {
        match self {
            Self::Gpu(stream, function) => Launch::Gpu(stream.launch_builder(function)),
            Self::Host(kernel) => Launch::Host(*kernel, Vec::new()),
        }
    }
}

impl<'a> Launch<'a> {
    pub(super) fn arg<T: DeviceRepr>(&mut self, argument: &'a T) -> &mut Self {
        match self {
            Self::Gpu(launch) => {
                launch.arg(argument);
            }
            Self::Host(_, arguments) => arguments.push(std::ptr::from_ref(argument).cast()),
        }
        self
    }

    /// # Panics
    /// Panics when the GPU fails.
    ///
    /// # Safety
    /// The arguments must be the kernel's, in number, order and type, and the memory that they name must hold what the
    /// kernel reads and writes with so many blocks and threads.
    pub(super) unsafe fn launch(self, config: LaunchConfig) {
        match self {
            Self::Gpu(mut launch) => {
                // SAFETY: the caller has checked the arguments.
                if let Err(error) = unsafe { launch.launch(config) } {
                    panic!("a CUDA kernel could not be launched: {error}");
                }
            }
            Self::Host(kernel, arguments) => {
                let (blocks, threads) = (config.grid_dim.0, config.block_dim.0);
                // SAFETY: the caller has checked the arguments, whose addresses are still borrowed.
                unsafe { kernel(arguments.as_ptr(), blocks, threads) };
            }
        }
    }
}

/// A library with kernels for the CPU, which stays open until the process ends.
pub(super) struct HostLibrary(&'static Library);

impl HostLibrary {
    pub(super) fn open(path: &Path) -> Result<Self, libloading::Error> {
        // SAFETY: the library of the tests does nothing when it is opened.
        let library = unsafe { Library::new(path) }?;
        Ok(Self(Box::leak(Box::new(library))))
    }

    pub(super) fn kernel(&self, name: &str) -> Result<HostKernel, libloading::Error> {
        let symbol = format!("{name}_on_host");
        // SAFETY: the library of the tests has functions of this type under such names, and is never closed.
        unsafe { self.0.get::<HostKernel>(symbol.as_bytes()) }.map(|kernel| *kernel)
    }
}
