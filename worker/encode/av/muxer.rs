//! The MP4 muxer of libavformat.

use std::ffi::c_int;
use std::ptr::{self, NonNull};
use std::slice;

use ffmpeg_sys_next as ffi;

use super::codec::Codec;
use super::error::{AvError, check};
use super::options::Options;
use super::packet::Packet;

/// Muxes packets into fragmented MP4, in memory.
///
/// libav writes into a growing buffer of its own, which is taken away whole at each cut: no C code calls back into
/// Rust.
#[derive(Debug)]
pub(crate) struct Muxer {
    context: Context,
    tracks: Vec<Track>,
}

#[derive(Debug)]
struct Track {
    /// The time base of the incoming packets.
    codec: ffi::AVRational,
    /// The time base of the file's track.
    stream: ffi::AVRational,
}

impl Muxer {
    /// Writes the head of a file with one track for each codec. The next [`Self::take`] gives the init segment.
    ///
    /// # Errors
    /// Returns an error when the MP4 muxer is missing or does not take these codecs or options, or there is no memory.
    pub(crate) fn open(codecs: &[&Codec], mut options: Options) -> Result<Self, AvError> {
        let mut context = Context::new()?;
        for codec in codecs {
            context.add_track(codec)?;
        }
        context.open_buffer()?;
        // SAFETY: requires a context with all streams and its output set, and a dictionary, of which it takes out the
        // entries that it knows.
        let status =
            unsafe { ffi::avformat_write_header(context.format.as_ptr(), options.as_mut_ptr()) };
        check("avformat_write_header", status)?;
        if let Some(option) = options.unknown() {
            return Err(AvError::UnknownOption {
                name: "mp4".to_owned(),
                option,
            });
        }
        let tracks = codecs
            .iter()
            .zip(context.streams())
            .map(|(codec, stream)| Track {
                codec: codec.time_base(),
                // SAFETY: requires a stream of a context that is not being written; `context` is not shared.
                stream: unsafe { stream.as_ref() }.time_base,
            })
            .collect();
        Ok(Self { context, tracks })
    }

    /// Adds a packet to the current fragment, at the time set on it. `track` is the place of the packet's codec in the
    /// list given to [`Self::open`]. Times within a track must rise.
    ///
    /// # Errors
    /// Returns an error when the muxer refuses the packet or there is no memory.
    ///
    /// # Panics
    /// Panics when there is no such track.
    pub(crate) fn write(&mut self, track: usize, packet: &mut Packet) -> Result<(), AvError> {
        let Track { codec, stream } = self.tracks[track];
        // SAFETY: requires a packet; time bases are plain numbers.
        unsafe { ffi::av_packet_rescale_ts(packet.as_ptr(), codec, stream) };
        packet.get_mut().stream_index =
            c_int::try_from(track).expect("there are at most two tracks");
        // SAFETY: requires a context whose head is written, which `open` did, and a packet of one of its streams.
        let status = unsafe { ffi::av_write_frame(self.context.format.as_ptr(), packet.as_ptr()) };
        check("av_write_frame", status)?;
        Ok(())
    }

    /// Ends the current fragment and returns its bytes, one `moof` and one `mdat`; empty when nothing was written.
    ///
    /// # Errors
    /// Returns an error when there is no memory.
    pub(crate) fn cut(&mut self) -> Result<Vec<u8>, AvError> {
        // SAFETY: requires a context whose head is written, which `open` did; null means to write out the fragment.
        let status = unsafe { ffi::av_write_frame(self.context.format.as_ptr(), ptr::null_mut()) };
        check("av_write_frame", status)?;
        self.take()
    }

    /// Returns the bytes that were written since the last call.
    ///
    /// # Errors
    /// Returns an error when there is no memory.
    pub(crate) fn take(&mut self) -> Result<Vec<u8>, AvError> {
        let bytes = self.context.close_buffer();
        self.context.open_buffer()?;
        Ok(bytes)
    }
}

#[derive(Debug)]
struct Context {
    format: NonNull<ffi::AVFormatContext>,
}

// SAFETY: a muxer may be used from any thread, by one at a time. `self` is its only owner, its output is memory, and
// all use goes through it.
unsafe impl Send for Context {}

impl Context {
    fn new() -> Result<Self, AvError> {
        let mut format = ptr::null_mut();
        // SAFETY: requires a place for the context, null or a format, and C strings or null.
        let status = unsafe {
            ffi::avformat_alloc_output_context2(
                &raw mut format,
                ptr::null_mut(),
                c"mp4".as_ptr(),
                ptr::null(),
            )
        };
        check("avformat_alloc_output_context2", status)?;
        let format =
            NonNull::new(format).ok_or(AvError::out_of_memory("avformat_alloc_output_context2"))?;
        let mut context = Self { format };
        context.get_mut().flags |= ffi::AVFMT_FLAG_BITEXACT;
        Ok(context)
    }

    fn add_track(&mut self, codec: &Codec) -> Result<(), AvError> {
        // SAFETY: requires a context whose head is not written yet; the codec may be null.
        let stream = unsafe { ffi::avformat_new_stream(self.format.as_ptr(), ptr::null()) };
        // SAFETY: requires null or a stream that no other code uses; it was made just now and belongs to `self`.
        let stream =
            unsafe { stream.as_mut() }.ok_or(AvError::out_of_memory("avformat_new_stream"))?;
        stream.time_base = codec.time_base();
        // SAFETY: requires the parameters of a stream, which every stream has, and an open codec.
        let status =
            unsafe { ffi::avcodec_parameters_from_context(stream.codecpar, codec.as_ptr()) };
        check("avcodec_parameters_from_context", status)?;
        Ok(())
    }

    fn streams(&self) -> Vec<NonNull<ffi::AVStream>> {
        let context = self.get();
        // SAFETY: requires as many readable pointers as said; a context has `nb_streams` of them, and more than none
        // here.
        let streams =
            unsafe { slice::from_raw_parts(context.streams, context.nb_streams as usize) };
        streams.iter().copied().filter_map(NonNull::new).collect()
    }

    /// Sets a new memory buffer as output. There must be none.
    fn open_buffer(&mut self) -> Result<(), AvError> {
        let mut io = ptr::null_mut();
        // SAFETY: requires a place for the buffer.
        let status = unsafe { ffi::avio_open_dyn_buf(&raw mut io) };
        check("avio_open_dyn_buf", status)?;
        self.get_mut().pb = io;
        Ok(())
    }

    /// Takes the memory buffer away and returns what is in it.
    fn close_buffer(&mut self) -> Vec<u8> {
        let io = std::mem::replace(&mut self.get_mut().pb, ptr::null_mut());
        if io.is_null() {
            return Vec::new();
        }
        let mut data = ptr::null_mut();
        // SAFETY: requires a buffer made by avio_open_dyn_buf, frees it, and hands over the memory with its content.
        // Only `open_buffer` sets `pb`, which was cleared above.
        let len = unsafe { ffi::avio_close_dyn_buf(io, &raw mut data) };
        let bytes = match usize::try_from(len) {
            Ok(len) if !data.is_null() => {
                // SAFETY: requires `len` readable bytes; that is what was handed over.
                unsafe { slice::from_raw_parts(data, len) }.to_vec()
            }
            _ => Vec::new(),
        };
        // SAFETY: requires null or memory that libav allocated and that is no longer used; the bytes were copied.
        unsafe { ffi::av_free(data.cast()) };
        bytes
    }

    fn get(&self) -> &ffi::AVFormatContext {
        // SAFETY: requires a valid context that is not being written. It is allocated by `new`, freed by `drop`, and
        // written only by calls that borrow `self` mutably.
        unsafe { self.format.as_ref() }
    }

    fn get_mut(&mut self) -> &mut ffi::AVFormatContext {
        // SAFETY: as for `get`, and `self` is borrowed mutably for as long as the reference lives.
        unsafe { self.format.as_mut() }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.close_buffer();
        // SAFETY: requires a context that is no longer used; `self` is its only owner. What the muxer holds of an
        // unfinished fragment goes with it.
        unsafe { ffi::avformat_free_context(self.format.as_ptr()) };
    }
}
