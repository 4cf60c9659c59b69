//! The encoders of libavcodec.

use std::ffi::{CString, c_int};
use std::ptr::{self, NonNull};
use std::slice;

use ffmpeg_sys_next as ffi;

use super::error::{AvError, check};
use super::frame::{PictureFrame, SoundFrame};
use super::global::set_up;
use super::options::Options;
use super::packet::Packet;

/// An open encoder of pictures or of sound.
#[derive(Debug)]
pub(crate) struct Codec {
    context: Context,
    packet: Packet,
}

/// The format of the pictures to encode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VideoSettings {
    pub(crate) width: c_int,
    pub(crate) height: c_int,
    /// Pictures per second. The time base is the duration of one picture.
    pub(crate) fps: c_int,
}

/// The format of the sound to encode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SoundSettings {
    /// Samples per second and channel. The time base is the duration of one sample.
    pub(crate) sample_rate: c_int,
    pub(crate) channels: c_int,
}

impl Codec {
    /// Opens an H.264 encoder for I420 pictures.
    ///
    /// # Errors
    /// Returns an error when libavcodec has no encoder of this name, when it encodes something else, or when it cannot
    /// be opened with these settings and options on this machine.
    pub(crate) fn open_video(
        name: &str,
        settings: VideoSettings,
        options: Options,
    ) -> Result<Self, AvError> {
        let codec = find(name)?;
        if codec.id != ffi::AVCodecID::AV_CODEC_ID_H264 {
            return Err(AvError::NotH264 {
                name: name.to_owned(),
            });
        }
        let mut context = Context::new(codec)?;
        let fields = context.get_mut();
        fields.width = settings.width;
        fields.height = settings.height;
        fields.pix_fmt = ffi::AVPixelFormat::AV_PIX_FMT_YUV420P;
        fields.time_base = ffi::AVRational {
            num: 1,
            den: settings.fps,
        };
        fields.framerate = ffi::AVRational {
            num: settings.fps,
            den: 1,
        };
        Self::open(name, codec, context, options)
    }

    /// Opens libavcodec's AAC encoder for planar float.
    ///
    /// # Errors
    /// Returns an error when it cannot be opened with these settings and options.
    pub(crate) fn open_aac(settings: SoundSettings, options: Options) -> Result<Self, AvError> {
        let name = "aac";
        let codec = find(name)?;
        let mut context = Context::new(codec)?;
        let fields = context.get_mut();
        fields.sample_fmt = ffi::AVSampleFormat::AV_SAMPLE_FMT_FLTP;
        fields.sample_rate = settings.sample_rate;
        fields.time_base = ffi::AVRational {
            num: 1,
            den: settings.sample_rate,
        };
        // SAFETY: requires a channel layout that owns nothing. That of a new context is empty.
        unsafe { ffi::av_channel_layout_default(&raw mut fields.ch_layout, settings.channels) };
        Self::open(name, codec, context, options)
    }

    fn open(
        name: &str,
        codec: &'static ffi::AVCodec,
        context: Context,
        mut options: Options,
    ) -> Result<Self, AvError> {
        let packet = Packet::new()?;
        // SAFETY: requires a context made for this codec and not opened yet, and a dictionary, of which it takes out
        // the entries that it knows.
        let status = unsafe { ffi::avcodec_open2(context.0.as_ptr(), codec, options.as_mut_ptr()) };
        if status < 0 {
            return Err(AvError::OpenCodec {
                name: name.to_owned(),
                status,
            });
        }
        match options.unknown() {
            Some(option) => Err(AvError::UnknownOption {
                name: name.to_owned(),
                option,
            }),
            None => Ok(Self { context, packet }),
        }
    }

    /// Sends the next picture to the encoder.
    ///
    /// # Errors
    /// Returns an error when the encoder fails, or when it has packets that were not received yet.
    pub(crate) fn send_picture(&mut self, frame: &PictureFrame) -> Result<(), AvError> {
        self.send(frame.as_ptr())
    }

    /// Sends the next sound to the encoder.
    ///
    /// # Errors
    /// Returns an error when the encoder fails, or when it has packets that were not received yet.
    pub(crate) fn send_sound(&mut self, frame: &SoundFrame) -> Result<(), AvError> {
        self.send(frame.as_ptr())
    }

    /// Tells the encoder that the input has ended, so that it returns the last packets.
    ///
    /// # Errors
    /// Returns an error when the encoder fails.
    pub(crate) fn send_end(&mut self) -> Result<(), AvError> {
        self.send(ptr::null())
    }

    /// Returns the next packet; `None` when the encoder needs more input, and after the last packet.
    ///
    /// # Errors
    /// Returns an error when the encoder fails.
    pub(crate) fn receive(&mut self) -> Result<Option<&mut Packet>, AvError> {
        const AGAIN: c_int = ffi::AVERROR(ffi::EAGAIN);
        // SAFETY: requires an open encoder, which every `Codec` is, and a packet, whose old content it frees.
        let status =
            unsafe { ffi::avcodec_receive_packet(self.context.0.as_ptr(), self.packet.as_ptr()) };
        match status {
            AGAIN | ffi::AVERROR_EOF => Ok(None),
            status => {
                check("avcodec_receive_packet", status)?;
                Ok(Some(&mut self.packet))
            }
        }
    }

    /// Returns the codec's global header: for H.264 its parameter sets, in avcC form or with start codes.
    pub(crate) fn extradata(&self) -> &[u8] {
        let context = self.context.get();
        match usize::try_from(context.extradata_size) {
            Ok(len) if !context.extradata.is_null() => {
                // SAFETY: requires `len` readable bytes that are not being written. The context has that many there,
                // keeps them until it is freed, and is borrowed for as long as the slice lives.
                unsafe { slice::from_raw_parts(context.extradata, len) }
            }
            _ => &[],
        }
    }

    pub(super) fn time_base(&self) -> ffi::AVRational {
        self.context.get().time_base
    }

    pub(super) fn as_ptr(&self) -> *const ffi::AVCodecContext {
        self.context.0.as_ptr()
    }

    fn send(&mut self, frame: *const ffi::AVFrame) -> Result<(), AvError> {
        // SAFETY: requires an open encoder, which every `Codec` is, and null or a frame, of which it keeps counted
        // references. The three callers pass just that.
        let status = unsafe { ffi::avcodec_send_frame(self.context.0.as_ptr(), frame) };
        check("avcodec_send_frame", status)?;
        Ok(())
    }
}

#[derive(Debug)]
struct Context(NonNull<ffi::AVCodecContext>);

// SAFETY: an encoder may be used from any thread, by one at a time; its own threads end in `drop`. `self` is its only
// owner, and all use goes through it.
unsafe impl Send for Context {}

impl Context {
    fn new(codec: &'static ffi::AVCodec) -> Result<Self, AvError> {
        // SAFETY: requires a codec of libavcodec's.
        let context = unsafe { ffi::avcodec_alloc_context3(codec) };
        NonNull::new(context)
            .map(Self)
            .ok_or(AvError::out_of_memory("avcodec_alloc_context3"))
    }

    fn get(&self) -> &ffi::AVCodecContext {
        // SAFETY: requires a valid context that is not being written. It is allocated by `new`, freed by `drop`,
        // written only by calls that borrow `self` mutably, and its fields that encoder threads write are not among the
        // public ones.
        unsafe { self.0.as_ref() }
    }

    fn get_mut(&mut self) -> &mut ffi::AVCodecContext {
        // SAFETY: as for `get`, and `self` is borrowed mutably for as long as the reference lives.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let mut context = self.0.as_ptr();
        // SAFETY: requires a context that is no longer used; `self` is its only owner.
        unsafe { ffi::avcodec_free_context(&raw mut context) };
    }
}

fn find(name: &str) -> Result<&'static ffi::AVCodec, AvError> {
    set_up();
    let unknown = || AvError::UnknownCodec {
        name: name.to_owned(),
    };
    let c_name = CString::new(name).map_err(|_| unknown())?;
    // SAFETY: requires a C string.
    let codec = unsafe { ffi::avcodec_find_encoder_by_name(c_name.as_ptr()) };
    // SAFETY: requires null or a valid codec. libavcodec's codecs are statics that are never written.
    unsafe { codec.as_ref() }.ok_or_else(unknown)
}
