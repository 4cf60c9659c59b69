//! PNG, decoded row by row.

use std::io::Cursor;

use image::{ImageFormat, RgbImage};
use png::{Decoder, Transformations};

use super::{Limits, Unfit, check_memory, check_size, orientation, shrinker, upright};

/// What the decoder may allocate for rows and chunks, in bytes.
const CHUNK_BYTES: usize = 16 << 20;
/// The limit on the unpacked pixels of a file, which bounds the time that they take.
const MAX_UNPACKED_BYTES: u64 = 512 << 20;
const SIGNATURE_BYTES: usize = 8;

pub(super) fn read(bytes: &[u8], limits: &Limits) -> Result<RgbImage, Unfit> {
    let damaged = |error| Unfit::damaged(ImageFormat::Png, error);
    let orientation = orientation(exif(bytes));
    let chunk_limits = png::Limits { bytes: CHUNK_BYTES };
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), chunk_limits);
    decoder.set_transformations(Transformations::normalize_to_color8());
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let info = decoder.read_header_info().map_err(damaged)?;
    let size = info.size();
    let is_interlaced = info.interlaced;
    check_size(size, limits)?;
    let unpacked = info.raw_bytes() as u64;
    if unpacked > MAX_UNPACKED_BYTES {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        return Err(Unfit::new(
            format!("at most {} MiB of pixels", mib(MAX_UNPACKED_BYTES)),
            format!("{} MiB ({}x{})", mib(unpacked), size.0, size.1),
        ));
    }

    let mut reader = decoder.read_info().map_err(damaged)?;
    let channels = reader.output_color_type().0.samples();
    let row_bytes = size.0 as usize * channels;
    let mut kept = shrinker(size, orientation, limits);
    if is_interlaced {
        let whole = row_bytes * size.1 as usize;
        check_memory(whole as u64, bytes, "interlaced", size)?;
        let mut pixels = vec![0; whole];
        reader.next_frame(&mut pixels).map_err(damaged)?;
        for row in pixels.chunks_exact(row_bytes) {
            kept.push(row, channels);
        }
    } else {
        while let Some(row) = reader.next_row().map_err(damaged)? {
            if row.data().len() != row_bytes {
                return Err(Unfit::damaged(ImageFormat::Png, "a row of another length"));
            }
            kept.push(row.data(), channels);
        }
    }
    reader.finish().map_err(damaged)?;
    let kept = kept.finish();
    let kept = kept.ok_or_else(|| Unfit::damaged(ImageFormat::Png, "rows are missing"))?;
    Ok(upright(kept, orientation))
}

/// Finds the Exif data, which may also come after the pixels.
fn exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(SIGNATURE_BYTES..)?;
    loop {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        if kind == b"eXIf" {
            return after.get(..length);
        }
        // The checksum comes after the data.
        rest = after.get(length.checked_add(4)?..)?;
    }
}
