//! Frames: the pictures and sound that go into an encoder, in libav's memory.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::slice;

use ffmpeg_sys_next as ffi;

use super::error::{AvError, check};

/// A picture to encode: I420, BT.709 in video range.
#[derive(Debug)]
pub(crate) struct PictureFrame {
    frame: Frame,
}

/// One plane of a picture: rows of `stride` bytes. The picture fills the beginning of each row.
#[derive(Debug)]
pub(crate) struct Plane<'a> {
    pub(crate) bytes: &'a mut [u8],
    pub(crate) stride: usize,
}

impl PictureFrame {
    /// Allocates a picture.
    ///
    /// # Errors
    /// Returns an error when the size is invalid, or there is no memory.
    pub(crate) fn new(width: c_int, height: c_int) -> Result<Self, AvError> {
        let mut frame = Frame::new()?;
        let fields = frame.get_mut();
        fields.format = ffi::AVPixelFormat::AV_PIX_FMT_YUV420P as c_int;
        fields.width = width;
        fields.height = height;
        fields.color_range = ffi::AVColorRange::AVCOL_RANGE_MPEG;
        fields.colorspace = ffi::AVColorSpace::AVCOL_SPC_BT709;
        frame.allocate()?;
        Ok(Self { frame })
    }

    /// Returns the planes Y, U and V for writing the next picture.
    ///
    /// # Errors
    /// Returns an error when the encoder still holds the last picture and there is no memory for another.
    pub(crate) fn planes(&mut self) -> Result<[Plane<'_>; 3], AvError> {
        let frame = self.frame.writable()?;
        let height = positive(frame.height);
        Ok(
            [(0, height), (1, height / 2), (2, height / 2)].map(|(index, rows)| {
                let stride = positive(frame.linesize[index]);
                // SAFETY: requires memory of this length that no other code uses while the slice lives. The frame was
                // made writable, so it alone owns its planes; they do not overlap, have `rows` rows of `stride` bytes
                // each (the height is even), and the frame is borrowed for as long as the slices live.
                let bytes = unsafe { slice::from_raw_parts_mut(frame.data[index], rows * stride) };
                Plane { bytes, stride }
            }),
        )
    }

    /// Sets the time at which the picture is shown, in the codec's time base.
    pub(crate) fn set_time(&mut self, pts: i64) {
        self.frame.get_mut().pts = pts;
    }

    pub(super) fn as_ptr(&self) -> *const ffi::AVFrame {
        self.frame.0.as_ptr()
    }
}

/// A block of sound to encode, planar float.
#[derive(Debug)]
pub(crate) struct SoundFrame {
    frame: Frame,
}

impl SoundFrame {
    /// Allocates a block of `samples` samples per channel.
    ///
    /// # Errors
    /// Returns an error when there is no memory.
    pub(crate) fn new(
        samples: c_int,
        sample_rate: c_int,
        channels: c_int,
    ) -> Result<Self, AvError> {
        let mut frame = Frame::new()?;
        let fields = frame.get_mut();
        fields.format = ffi::AVSampleFormat::AV_SAMPLE_FMT_FLTP as c_int;
        fields.nb_samples = samples;
        fields.sample_rate = sample_rate;
        // SAFETY: requires a channel layout that owns nothing. That of a new frame is empty.
        unsafe { ffi::av_channel_layout_default(&raw mut fields.ch_layout, channels) };
        frame.allocate()?;
        Ok(Self { frame })
    }

    /// Returns the samples of one channel for writing the next sound.
    ///
    /// # Errors
    /// Returns an error when the encoder still holds the last sound and there is no memory for another.
    ///
    /// # Panics
    /// Panics when there is no such channel.
    pub(crate) fn channel(&mut self, channel: usize) -> Result<&mut [f32], AvError> {
        let frame = self.frame.writable()?;
        assert!(channel < positive(frame.ch_layout.nb_channels).min(frame.data.len()));
        // SAFETY: requires memory of this length that no other code uses while the slice lives. The frame was made
        // writable, so it alone owns its planes; a plane of planar float has `nb_samples` floats, aligned for vector
        // code, which were zeroed or written before; and the frame is borrowed for as long as the slice lives.
        Ok(unsafe {
            slice::from_raw_parts_mut(frame.data[channel].cast(), positive(frame.nb_samples))
        })
    }

    pub(super) fn as_ptr(&self) -> *const ffi::AVFrame {
        self.frame.0.as_ptr()
    }
}

#[derive(Debug)]
struct Frame(NonNull<ffi::AVFrame>);

// SAFETY: libav ties a frame to no thread; its planes are counted references with atomic counts.
unsafe impl Send for Frame {}

impl Frame {
    fn new() -> Result<Self, AvError> {
        // SAFETY: has no preconditions.
        let frame = unsafe { ffi::av_frame_alloc() };
        NonNull::new(frame)
            .map(Self)
            .ok_or(AvError::out_of_memory("av_frame_alloc"))
    }

    /// Allocates zeroed planes of the format and size in the frame's fields.
    fn allocate(&mut self) -> Result<(), AvError> {
        // SAFETY: requires a frame with format and size set and without planes; the two callers have just done so.
        let status = unsafe { ffi::av_frame_get_buffer(self.0.as_ptr(), 0) };
        check("av_frame_get_buffer", status)?;
        for buffer in self.get_mut().buf {
            // SAFETY: requires null or a valid buffer that is not being written. The frame's buffers were made just
            // now.
            let Some(buffer) = (unsafe { buffer.as_ref() }) else {
                break;
            };
            // SAFETY: requires `size` writable bytes at `data`; that is what a buffer is, and no other code has it yet.
            unsafe { buffer.data.write_bytes(0, buffer.size) };
        }
        Ok(())
    }

    fn get_mut(&mut self) -> &mut ffi::AVFrame {
        // SAFETY: requires a valid frame that no other code reads or writes. It is allocated by `new`, freed by `drop`,
        // and `self` is borrowed for as long as the reference lives.
        unsafe { self.0.as_mut() }
    }

    /// Returns the frame, with planes that no encoder holds a reference to.
    fn writable(&mut self) -> Result<&mut ffi::AVFrame, AvError> {
        // SAFETY: requires a frame with counted planes; `allocate` made them.
        let status = unsafe { ffi::av_frame_make_writable(self.0.as_ptr()) };
        check("av_frame_make_writable", status)?;
        Ok(self.get_mut())
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let mut frame = self.0.as_ptr();
        // SAFETY: requires a frame that is no longer used; `self` is its only owner.
        unsafe { ffi::av_frame_free(&raw mut frame) };
    }
}

fn positive(value: c_int) -> usize {
    usize::try_from(value).expect("sizes of allocated frames are positive")
}
