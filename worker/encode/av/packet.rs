//! Packets, which an encoder produces and the muxer takes.

use std::ptr::NonNull;

use ffmpeg_sys_next as ffi;

use super::error::AvError;

/// Takes packets on their way from an encoder to the muxer. `E` is the error of the caller.
pub(crate) type PacketSink<'a, E> = dyn FnMut(&mut Packet) -> Result<(), E> + 'a;

/// The compressed data of one picture, or of one block of sound.
#[derive(Debug)]
pub(crate) struct Packet(NonNull<ffi::AVPacket>);

// SAFETY: libav ties a packet to no thread, and `self` is its only owner.
unsafe impl Send for Packet {}

impl Packet {
    /// Allocates an empty packet.
    ///
    /// # Errors
    /// Returns an error when there is no memory.
    pub(super) fn new() -> Result<Self, AvError> {
        // SAFETY: has no preconditions.
        let packet = unsafe { ffi::av_packet_alloc() };
        NonNull::new(packet)
            .map(Self)
            .ok_or(AvError::out_of_memory("av_packet_alloc"))
    }

    /// Places the packet on its track's time line, in the codec's time base. It is decoded and shown at the same time.
    pub(crate) fn set_time(&mut self, start: i64, duration: i64) {
        let packet = self.get_mut();
        packet.pts = start;
        packet.dts = start;
        packet.duration = duration;
    }

    pub(super) fn get_mut(&mut self) -> &mut ffi::AVPacket {
        // SAFETY: requires a valid packet that no other code reads or writes. It is allocated by `new`, freed by
        // `drop`, and `self` is borrowed for as long as the reference lives.
        unsafe { self.0.as_mut() }
    }

    pub(super) fn as_ptr(&mut self) -> *mut ffi::AVPacket {
        self.0.as_ptr()
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        let mut packet = self.0.as_ptr();
        // SAFETY: requires a packet that is no longer used; `self` is its only owner.
        unsafe { ffi::av_packet_free(&raw mut packet) };
    }
}
