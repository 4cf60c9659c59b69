//! Copies bytes from the GPU to pinned host memory while the GPU continues to compute.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, DriverError, PinnedHostSlice, result};
use tch::{Kind, Tensor};

use super::{DeviceError, Gpu};

/// A buffer of pinned host memory for one copy at a time. Allocating such memory is slow, so the buffer should be kept.
#[derive(Debug)]
pub struct Download {
    default_stream: Arc<CudaStream>,
    stream: Arc<CudaStream>,
    memory: Option<PinnedHostSlice<u8>>,
    /// The number of bytes in the buffer.
    length: usize,
    /// The copy in progress. The tensor must live until its bytes have been copied.
    under_way: Option<(Tensor, CudaEvent)>,
}

impl Download {
    /// # Errors
    /// Returns an error when the driver fails.
    pub fn new(gpu: &Gpu) -> Result<Self, DeviceError> {
        let stream = gpu.context().new_stream().map_err(failed)?;
        Ok(Self {
            default_stream: gpu.context().default_stream(),
            stream,
            memory: None,
            length: 0,
            under_way: None,
        })
    }

    /// Starts to copy a tensor of bytes on the GPU as soon as it is computed. A copy in progress is finished first.
    ///
    /// # Errors
    /// Returns an error when the driver fails, or cannot allocate pinned memory.
    ///
    /// # Panics
    /// Panics when the tensor is not contiguous, not on a GPU, or not of bytes.
    pub fn start(&mut self, bytes: Tensor) -> Result<(), DeviceError> {
        assert!(
            bytes.kind() == Kind::Uint8 && bytes.is_contiguous() && bytes.device().is_cuda(),
            "expected contiguous bytes on a GPU, given {bytes:?}"
        );
        self.finish()?;
        self.start_copy(bytes).map_err(failed)
    }

    /// Waits for the copy in progress, and returns the bytes that were copied last.
    ///
    /// # Errors
    /// Returns an error when the GPU failed.
    pub fn wait(&mut self) -> Result<&[u8], DeviceError> {
        self.finish()?;
        let Some(memory) = &self.memory else {
            return Ok(&[]);
        };
        let bytes = memory.as_slice().map_err(failed)?;
        Ok(&bytes[..self.length])
    }

    fn start_copy(&mut self, bytes: Tensor) -> Result<(), DriverError> {
        let length = bytes.numel();
        if self
            .memory
            .as_ref()
            .is_none_or(|memory| memory.len() < length)
        {
            self.memory = None;
            // SAFETY: the memory is read only where a finished copy has written it.
            let memory = unsafe { self.stream.context().alloc_pinned_with_flags(length, 0) }?;
            self.memory = Some(memory);
        }
        self.stream.join(&self.default_stream)?;
        if let Some(memory) = &mut self.memory {
            let to = &mut memory.as_mut_slice()?[..length];
            let from = bytes.data_ptr() as u64;
            // SAFETY: both sides are `length` bytes long. The tensor lives until the event below has passed, and
            // no code reads the memory before.
            unsafe { result::memcpy_dtoh_async(to, from, self.stream.cu_stream()) }?;
        }
        let done = self.stream.record_event(None)?;
        self.length = length;
        self.under_way = Some((bytes, done));
        Ok(())
    }

    /// Waits for the copy in progress.
    fn finish(&mut self) -> Result<(), DeviceError> {
        match self.under_way.take() {
            Some((_, done)) => done.synchronize().map_err(failed),
            None => Ok(()),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::warn!(%error, "a copy from the GPU did not end");
        }
    }
}

fn failed(source: DriverError) -> DeviceError {
    DeviceError::Driver {
        what: "copy from the GPU",
        source,
    }
}
