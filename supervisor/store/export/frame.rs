//! Encodes one frame from raw RGB as PNG, and decodes it.

use std::io::Cursor;

use png::{BitDepth, ColorType, Compression, Decoder, Encoder, Transformations};

/// Why bytes are not the PNG of a frame.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a picture of {width}x{height}")]
    Size { width: u32, height: u32 },
    #[error("a damaged PNG ({0})")]
    Damaged(#[from] png::DecodingError),
    #[error("a PNG with {0} bytes after its end")]
    Trailing(usize),
}

/// Appends a frame, RGB uint8 `[height, width, 3]`, as PNG.
///
/// # Errors
/// Returns an error when the size is zero or is not that of `rgb`.
pub(super) fn encode(
    rgb: &[u8],
    width: u32,
    height: u32,
    png: &mut Vec<u8>,
) -> Result<(), png::EncodingError> {
    let mut encoder = Encoder::new(png, width, height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(rgb)?;
    writer.finish()
}

/// Reads a PNG of exactly this size into `rgb`, `height * width * 3` bytes.
///
/// Takes every kind of PNG and makes it RGB as Pillow does: palettes and grey are spread out, transparency is ignored.
/// Of 16 bits the upper 8 are kept, also in grey, where Pillow saturates instead.
///
/// # Errors
/// Returns an error when the PNG has another size (which its header tells before any pixel is decoded), is damaged or
/// truncated, or something follows it.
///
/// # Panics
/// Panics when `rgb` has another length.
pub(super) fn decode(
    bytes: &[u8],
    width: u32,
    height: u32,
    rgb: &mut [u8],
) -> Result<(), FrameError> {
    let mut source = Cursor::new(bytes);
    let mut decoder = Decoder::new(&mut source);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_transformations(Transformations::normalize_to_color8());
    let info = decoder.read_header_info()?;
    if (info.width, info.height) != (width, height) {
        let (width, height) = (info.width, info.height);
        return Err(FrameError::Size { width, height });
    }
    let mut reader = decoder.read_info()?;
    let (color, _) = reader.output_color_type();
    if color == ColorType::Rgb {
        reader.next_frame(rgb)?;
    } else {
        let mut pixels = vec![0; rgb.len() / 3 * color.samples()];
        reader.next_frame(&mut pixels)?;
        for (rgb, pixel) in rgb
            .chunks_exact_mut(3)
            .zip(pixels.chunks_exact(color.samples()))
        {
            match *pixel {
                [r, g, b, _] => rgb.copy_from_slice(&[r, g, b]),
                [grey, ..] => rgb.fill(grey),
                [] => {}
            }
        }
    }
    // Reads up to the very end, so that no truncated file passes.
    reader.finish()?;
    drop(reader);
    let read = usize::try_from(source.position()).expect("at most the bytes that there are");
    match bytes.len() - read {
        0 => Ok(()),
        trailing => Err(FrameError::Trailing(trailing)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(color: ColorType, depth: BitDepth, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 2, 1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == ColorType::Indexed {
            encoder.set_palette(&[9, 8, 7, 60, 70, 80][..]);
            encoder.set_trns(&[0, 255][..]);
        }
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(data).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn encoded(rgb: &[u8], width: u32, height: u32) -> Vec<u8> {
        let mut png = Vec::new();
        encode(rgb, width, height, &mut png).unwrap();
        png
    }

    #[test]
    fn every_kind_of_png_becomes_rgb() {
        let check = |color, depth, data: &[u8], expected: [u8; 6]| {
            let mut rgb = [0; 6];
            decode(&png(color, depth, data), 2, 1, &mut rgb).unwrap();
            assert_eq!(rgb, expected, "{color:?} {depth:?}");
        };
        use BitDepth::{Eight, Four, One, Sixteen};
        use ColorType::{Grayscale, GrayscaleAlpha, Indexed, Rgb, Rgba};
        check(Rgb, Eight, &[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]);
        check(Rgba, Eight, &[1, 2, 3, 0, 4, 5, 6, 9], [1, 2, 3, 4, 5, 6]);
        check(Grayscale, Eight, &[10, 200], [10, 10, 10, 200, 200, 200]);
        check(Grayscale, One, &[0b0100_0000], [0, 0, 0, 255, 255, 255]);
        check(Grayscale, Four, &[0x1f], [17, 17, 17, 255, 255, 255]);
        check(
            GrayscaleAlpha,
            Eight,
            &[10, 0, 20, 1],
            [10, 10, 10, 20, 20, 20],
        );
        check(Indexed, Eight, &[1, 0], [60, 70, 80, 9, 8, 7]);
        check(
            Rgb,
            Sixteen,
            &[1, 255, 2, 255, 3, 255, 4, 0, 5, 0, 6, 0],
            [1, 2, 3, 4, 5, 6],
        );
    }

    #[test]
    fn every_truncation_is_refused() {
        let rgb: Vec<u8> = (0..=255).cycle().step_by(37).take(16 * 16 * 3).collect();
        let png = encoded(&rgb, 16, 16);
        let mut read = vec![0; rgb.len()];
        decode(&png, 16, 16, &mut read).unwrap();
        assert_eq!(read, rgb);
        for n in 0..png.len() {
            let cut = decode(&png[..n], 16, 16, &mut read);
            assert!(matches!(cut, Err(FrameError::Damaged(_))), "{n} bytes");
        }
    }

    #[test]
    fn another_size_is_refused_from_the_header_alone() {
        let png = encoded(&[0; 12], 2, 2);
        let header_only = &png[..8 + 25];
        let refused = decode(header_only, 1, 2, &mut [0; 6]).unwrap_err();
        assert_eq!(refused.to_string(), "a picture of 2x2");
    }

    #[test]
    fn what_follows_the_png_is_refused() {
        let png = [&encoded(&[7; 12], 2, 2)[..], b"more"].concat();
        let refused = decode(&png, 2, 2, &mut [0; 12]).unwrap_err();
        assert_eq!(refused.to_string(), "a PNG with 4 bytes after its end");
    }

    #[test]
    fn pixels_beyond_the_picture_are_not_decoded() {
        // 48 MiB of pixels under the header of a small picture.
        let mut png = encoded(&vec![0; 4096 * 4096 * 3], 4096, 4096);
        for side in [16, 20] {
            png[side..side + 4].copy_from_slice(&8_u32.to_be_bytes());
        }
        let checksum = crc32fast::hash(&png[12..29]);
        png[29..33].copy_from_slice(&checksum.to_be_bytes());
        let mut rgb = [7; 8 * 8 * 3];
        decode(&png, 8, 8, &mut rgb).unwrap();
        assert_eq!(rgb, [0; 8 * 8 * 3]);
    }
}
