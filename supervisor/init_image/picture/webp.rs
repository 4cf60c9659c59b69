//! WebP, lossy and lossless. Only the first picture of a file reaches the decoder: neither an alpha plane nor the canvas of
//! an animation is decoded.

use std::io::Cursor;
use std::ops::Range;

use image::codecs::webp::WebPDecoder;
use image::{ImageDecoder as _, ImageFormat, RgbImage};

use super::{
    Limits, MAX_BYTES, Unfit, check_memory, check_size, orientation, prefix_codes, shrinker,
    upright,
};

/// `RIFF`, the length of the rest, `WEBP`.
const HEADER_BYTES: usize = 12;
/// A chunk's type and the length of its data.
const CHUNK_HEADER_BYTES: usize = 8;
/// The limit on the data of a lossy picture, which bounds the time that they take: a second for these.
const MAX_LOSSY_BYTES: usize = 8 << 20;
/// What an animation's frame has before its own chunks.
const FRAME_HEADER_BYTES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Lossy,
    Lossless,
}

pub(super) fn read(mut bytes: Vec<u8>, limits: &Limits) -> Result<RgbImage, Unfit> {
    let damaged = |error: &dyn std::fmt::Display| Unfit::damaged(ImageFormat::WebP, error);
    let layout = Layout::of(&bytes);
    let orientation = orientation(layout.exif.and_then(|exif| bytes.get(exif)));
    let (kind, picture) = layout.picture.ok_or_else(|| damaged(&"no picture"))?;
    bytes.truncate(picture.end.min(bytes.len()));
    let size =
        size(kind, &bytes[picture.start.min(bytes.len())..]).ok_or_else(|| damaged(&"no size"))?;
    check_size(size, limits)?;
    let data = &bytes[picture.start.min(bytes.len())..];
    let pixels = u64::from(size.0) * u64::from(size.1);
    match kind {
        Kind::Lossy => {
            if data.len() > MAX_LOSSY_BYTES {
                let expected = format!("at most {MAX_LOSSY_BYTES} bytes of lossy WebP");
                return Err(Unfit::new(expected, format!("{} bytes", data.len())));
            }
            // Planes of 12 bits a pixel, the state of each macroblock, and the pixels.
            check_memory(pixels * 6, &bytes, "lossy WebP", size)?;
        }
        Kind::Lossless => {
            // The pixels with alpha, transforms, and the pixels without.
            let decoder = pixels * 8;
            check_memory(decoder, &bytes, "lossless WebP", size)?;
            let codes = prefix_codes::bytes(data, MAX_BYTES);
            let codes = codes.ok_or_else(|| damaged(&"its codes"))?;
            check_memory(decoder + codes, &bytes, "codes of a lossless WebP", size)?;
        }
    }

    // The chunk of the picture alone, as a file of its own.
    let chunk = picture.start - CHUNK_HEADER_BYTES;
    bytes.drain(..chunk - HEADER_BYTES);
    let rest = u32::try_from(bytes.len() - 8).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(b"RIFF");
    bytes[4..8].copy_from_slice(&rest.to_le_bytes());
    bytes[8..HEADER_BYTES].copy_from_slice(b"WEBP");
    let decoder = WebPDecoder::new(Cursor::new(&bytes)).map_err(|e| damaged(&e))?;
    if decoder.dimensions() != size {
        return Err(damaged(&"two sizes"));
    }
    let channels = usize::from(decoder.color_type().channel_count());
    let row_bytes = size.0 as usize * channels;
    let mut pixels = vec![0; row_bytes * size.1 as usize];
    decoder.read_image(&mut pixels).map_err(|e| damaged(&e))?;
    drop(bytes);
    let mut kept = shrinker(size, orientation, limits);
    for row in pixels.chunks_exact(row_bytes) {
        kept.push(row, channels);
    }
    let kept = kept.finish().ok_or_else(|| damaged(&"rows are missing"))?;
    Ok(upright(kept, orientation))
}

/// Where the parts of a file are.
#[derive(Debug, Default)]
struct Layout {
    /// The data of the first picture, which may end after the file.
    picture: Option<(Kind, Range<usize>)>,
    exif: Option<Range<usize>>,
}

impl Layout {
    fn of(bytes: &[u8]) -> Self {
        let mut layout = Self::default();
        for (kind, data) in chunks(bytes, HEADER_BYTES) {
            match &kind {
                b"ANMF" => {
                    let frame = &bytes[..data.end.min(bytes.len())];
                    for (kind, data) in chunks(frame, data.start + FRAME_HEADER_BYTES) {
                        layout.take_picture(kind, data);
                    }
                }
                b"EXIF" => {
                    layout.exif.get_or_insert(data);
                }
                _ => layout.take_picture(kind, data),
            }
        }
        layout
    }

    fn take_picture(&mut self, kind: [u8; 4], data: Range<usize>) {
        let kind = match &kind {
            b"VP8 " => Kind::Lossy,
            b"VP8L" => Kind::Lossless,
            _ => return,
        };
        self.picture.get_or_insert((kind, data));
    }
}

/// Returns the chunks from this place on: their types, and where their data are, which may end after the file.
fn chunks(bytes: &[u8], mut at: usize) -> impl Iterator<Item = ([u8; 4], Range<usize>)> {
    std::iter::from_fn(move || {
        let (kind, rest) = bytes.get(at..)?.split_first_chunk::<4>()?;
        let (length, _) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let start = at + CHUNK_HEADER_BYTES;
        let end = start.saturating_add(length);
        // Data of an odd length are padded.
        at = end.saturating_add(length & 1);
        Some((*kind, start..end))
    })
}

/// Reads the size from the first bytes of a picture's data.
fn size(kind: Kind, data: &[u8]) -> Option<(u32, u32)> {
    let size = match kind {
        Kind::Lossy => {
            // A frame tag of three bytes, a start code, and two sizes of 14 bits.
            let header = data.first_chunk::<10>()?;
            let side =
                |at: usize| u32::from(u16::from_le_bytes([header[at], header[at + 1]]) & 0x3fff);
            (header[3..6] == [0x9d, 0x01, 0x2a]).then(|| (side(6), side(8)))?
        }
        Kind::Lossless => {
            let (signature, header) = data.first_chunk::<5>()?.split_first()?;
            let bits = u32::from_le_bytes(header.try_into().ok()?);
            (*signature == 0x2f).then_some(((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1))?
        }
    };
    (size.0 > 0 && size.1 > 0).then_some(size)
}
