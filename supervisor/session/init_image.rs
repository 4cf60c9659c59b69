//! The initial image that a client may send for its first segment. It is untrusted input.
//!
//! The picture is decoded in full, within limits, and written out again as a PNG of its pixels: a worker never reads
//! bytes that a client made.

use std::io::{self, BufWriter, Cursor, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::{DynamicImage, ImageDecoder as _, ImageFormat, ImageReader, RgbImage};
use serde_json::{Map, Value};
use tempfile::TempPath;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// The largest image file that is accepted, in bytes.
pub(super) const MAX_BYTES: usize = 32 << 20;

const MAX_NAME_CHARS: usize = 100;
/// The largest kind of pixel is RGBA with 16 bits each.
const MAX_BYTES_PER_PIXEL: u64 = 8;
/// Number of bytes that a decoder may allocate for its tables and for an ICC profile.
const DECODER_BYTES: u64 = 16 << 20;

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The limit on the file's size, decoded from base64.
    pub(super) max_bytes: usize,
    /// The limit on width times height.
    pub(super) max_pixels: u64,
}

/// A picture as a PNG file that only this user can read. The file is removed when this is dropped.
#[derive(Debug)]
pub(super) struct InitImage {
    path: TempPath,
    name: String,
}

impl InitImage {
    /// Returns the path of the file, which is an RGB PNG with 8 bits per channel.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the client's name for the picture, for the log: reduced to a plain file name of at most 100 characters.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// Why there is no initial image.
#[derive(Debug, thiserror::Error)]
pub(super) enum InitImageError {
    /// The client sent something that is not a picture of its type, or that is too large. The text is safe to show to
    /// it.
    #[error("`initial_image.{field}`: expected {expected}, got {given}")]
    Refused {
        field: &'static str,
        expected: String,
        given: String,
    },
    /// The server cannot write the file.
    #[error("initial image cannot be kept in a temporary file")]
    Keep(#[source] io::Error),
}

/// Checks `{mime, name, data}` and puts the picture into a temporary file. Returns `None` for an empty object, which
/// means no image.
///
/// Decodes the picture and encodes it again, so this belongs on a blocking thread. EXIF orientation is not applied, and
/// transparency is dropped.
///
/// A truncated file is refused, except that a few last bytes may be missing, which decoders do not need: a PNG may lack
/// the checksum of its end chunk; a JPEG may lack its last 8 bytes and a WebP its last 4, which may cost the last block
/// of pixels.
///
/// # Errors
/// Returns an error when the object is not a whole picture of its type within the limits, or the file cannot be
/// written.
pub(super) fn accept(
    object: &Map<String, Value>,
    limits: &Limits,
) -> Result<Option<InitImage>, InitImageError> {
    if object.is_empty() {
        return Ok(None);
    }
    let format = format(object)?;
    let bytes = bytes(object, limits)?;
    let pixels = decode(&bytes, format, limits)?;
    let path = keep(&pixels).map_err(InitImageError::Keep)?;
    let name = plain_name(object.get("name"))
        .unwrap_or_else(|| format!("init.{}", format.extensions_str()[0]));
    Ok(Some(InitImage { path, name }))
}

fn format(object: &Map<String, Value>) -> Result<ImageFormat, InitImageError> {
    match object.get("mime").and_then(Value::as_str) {
        Some("image/png") => Ok(ImageFormat::Png),
        // FastVideo's server accepts the second name, too.
        Some("image/jpeg" | "image/jpg") => Ok(ImageFormat::Jpeg),
        Some("image/webp") => Ok(ImageFormat::WebP),
        Some(other) => {
            let given = other.chars().take(64).collect::<String>();
            Err(wrong_mime(format!("{given:?}")))
        }
        None => Err(wrong_mime("none".to_owned())),
    }
}

fn wrong_mime(given: String) -> InitImageError {
    refused("mime", "image/png, image/jpeg or image/webp", given)
}

fn bytes(object: &Map<String, Value>, limits: &Limits) -> Result<Vec<u8>, InitImageError> {
    let Some(text) = object.get("data").and_then(Value::as_str) else {
        return Err(refused("data", "a base64 text", "none"));
    };
    let padding = text.bytes().rev().take(2).filter(|&b| b == b'=').count();
    let size = (text.len() / 4 * 3).saturating_sub(padding);
    if size > limits.max_bytes {
        return Err(refused(
            "data",
            format!("at most {} bytes", limits.max_bytes),
            format!("{size} bytes"),
        ));
    }
    let bytes = BASE64
        .decode(text)
        .map_err(|error| refused("data", "strict base64", error.to_string()))?;
    if bytes.is_empty() {
        return Err(refused("data", "an image", "0 bytes"));
    }
    Ok(bytes)
}

/// Decodes the picture to the pixels that a model sees.
fn decode(bytes: &[u8], format: ImageFormat, limits: &Limits) -> Result<RgbImage, InitImageError> {
    let mime = format.to_mime_type();
    match image::guess_format(bytes) {
        Ok(found) if found == format => {}
        Ok(found) => return Err(refused("data", mime, found.to_mime_type())),
        Err(_) => return Err(refused("data", mime, "bytes of no known image type")),
    }
    match format {
        ImageFormat::Jpeg => decode_jpeg(bytes, limits),
        _ => decode_png_or_webp(bytes, format, limits),
    }
}

fn decode_png_or_webp(
    bytes: &[u8],
    format: ImageFormat,
    limits: &Limits,
) -> Result<RgbImage, InitImageError> {
    let max_bytes = limits.max_pixels.saturating_mul(MAX_BYTES_PER_PIXEL);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut decoder_limits = image::Limits::default();
    decoder_limits.max_alloc = Some(max_bytes.saturating_add(DECODER_BYTES));
    reader.limits(decoder_limits);
    let decoder = reader.into_decoder().map_err(|e| damaged(format, e))?;
    let size = match format {
        ImageFormat::WebP => larger(decoder.dimensions(), largest_vp8_frame(bytes)),
        _ => decoder.dimensions(),
    };
    check_size(size, limits)?;
    let picture = DynamicImage::from_decoder(decoder).map_err(|e| damaged(format, e))?;
    Ok(picture.into_rgb8())
}

/// Decodes with the decoder that `image` uses, but in its strict mode: otherwise it fills missing parts with grey.
fn decode_jpeg(bytes: &[u8], limits: &Limits) -> Result<RgbImage, InitImageError> {
    let format = ImageFormat::Jpeg;
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| damaged(format, e))?;
    let (width, height) = decoder
        .info()
        .map(|info| (u32::from(info.width), u32::from(info.height)))
        .ok_or_else(|| damaged(format, "no size"))?;
    check_size((width, height), limits)?;
    let pixels = decoder.decode().map_err(|e| damaged(format, e))?;
    RgbImage::from_raw(width, height, pixels).ok_or_else(|| damaged(format, "pixels are missing"))
}

fn damaged(format: ImageFormat, error: impl std::fmt::Display) -> InitImageError {
    let expected = format!("a whole {}", format.to_mime_type());
    refused("data", expected, format!("a damaged one ({error})"))
}

/// Refuses a picture by the size in its header, before its pixels are decoded.
fn check_size((width, height): (u32, u32), limits: &Limits) -> Result<(), InitImageError> {
    if pixels((width, height)) <= limits.max_pixels {
        return Ok(());
    }
    Err(refused(
        "data",
        format!("at most {} pixels", limits.max_pixels),
        format!("{width}x{height}"),
    ))
}

fn pixels((width, height): (u32, u32)) -> u64 {
    u64::from(width) * u64::from(height)
}

fn larger(one: (u32, u32), other: (u32, u32)) -> (u32, u32) {
    if pixels(one) >= pixels(other) {
        one
    } else {
        other
    }
}

/// Returns the size of the largest lossy frame anywhere in a WebP file: the decoder allocates memory for it before it
/// compares it with the size of the picture.
fn largest_vp8_frame(bytes: &[u8]) -> (u32, u32) {
    // A chunk's type and length, then the frame tag, the start code, and two sizes of 14 bits.
    bytes
        .windows(18)
        .filter(|frame| frame.starts_with(b"VP8 ") && frame[11..14] == [0x9d, 0x01, 0x2a])
        .map(|frame| {
            let size = |at| u32::from(u16::from_le_bytes([frame[at], frame[at + 1]]) & 0x3fff);
            (size(14), size(16))
        })
        .fold((0, 0), larger)
}

/// Writes the picture as PNG, with little compression, into a temporary file. Such files are made with mode 0600.
///
/// Rows are written as they are compressed, so that no second copy of the picture is in memory.
fn keep(picture: &RgbImage) -> io::Result<TempPath> {
    let mut file = tempfile::Builder::new()
        .prefix("fastvideo-init-")
        .suffix(".png")
        // The default is the folder of the workers' sockets, see `LinkFolder`.
        .tempfile_in(std::env::temp_dir())?;
    let output = BufWriter::new(&mut file);
    let mut encoder = png::Encoder::new(output, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fastest);
    let mut writer = encoder.write_header()?;
    let mut rows = writer.stream_writer()?;
    rows.write_all(picture)?;
    rows.finish()?;
    // Writes the end chunk and flushes the buffer: a full disk shows here at the latest.
    writer.finish()?;
    Ok(file.into_temp_path())
}

/// Returns the last part of a path, with anything but letters, digits and plain punctuation replaced, or `None` when
/// nothing is left.
fn plain_name(name: Option<&Value>) -> Option<String> {
    let name = name?.as_str()?;
    let (_, last) = name.rsplit_once(['/', '\\']).unwrap_or(("", name));
    let plain: String = last
        .trim()
        .trim_start_matches('.')
        .chars()
        .take(MAX_NAME_CHARS)
        .map(|c| match c {
            c if c.is_alphanumeric() || " ._-()".contains(c) => c,
            _ => '_',
        })
        .collect();
    (!plain.is_empty()).then_some(plain)
}

fn refused(
    field: &'static str,
    expected: impl Into<String>,
    given: impl Into<String>,
) -> InitImageError {
    InitImageError::Refused {
        field,
        expected: expected.into(),
        given: given.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use image::RgbImage;
    use serde_json::json;

    use super::*;

    const LIMITS: Limits = Limits {
        max_bytes: 64 << 10,
        max_pixels: 10_000,
    };

    /// 16x16, lossy (the encoder in `image` writes lossless WebP only).
    const LOSSY_WEBP: &str = "UklGRkoAAABXRUJQVlA4ID4AAACwAQCdASoQABAABABoJbACdAEOtOvAAP70nGT2QISAwudE9f3Xa7JN+qUzZBO0yxZM/bA/LjzfHo4lxAAAAA==";
    /// 16x16, progressive.
    const PROGRESSIVE_JPEG: &str = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDACgcHiMeGSgjISMtKygwPGRBPDc3PHtYXUlkkYCZlo+AjIqgtObDoKrarYqMyP/L2u71////m8H////6/+b9//j/2wBDASstLTw1PHZBQXb4pYyl+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj4+Pj/wgARCAAQABADASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAAAwIE/8QAFQEBAQAAAAAAAAAAAAAAAAAAAAL/2gAMAwEAAhADEAAAAc62kP/EABUQAQEAAAAAAAAAAAAAAAAAAAAR/9oACAEBAAEFAoiI/8QAFREBAQAAAAAAAAAAAAAAAAAAAgD/2gAIAQMBAT8BCv/EABcRAAMBAAAAAAAAAAAAAAAAAAABAhH/2gAIAQIBAT8BdYf/xAAUEAEAAAAAAAAAAAAAAAAAAAAg/9oACAEBAAY/Ah//xAAVEAEBAAAAAAAAAAAAAAAAAAAAAf/aAAgBAQABPyGMYx//2gAMAwEAAgADAAAAEKf/xAAUEQEAAAAAAAAAAAAAAAAAAAAA/9oACAEDAQE/ED//xAAUEQEAAAAAAAAAAAAAAAAAAAAA/9oACAECAQE/EA//xAAVEAEBAAAAAAAAAAAAAAAAAAAAYf/aAAgBAQABPxCSSST/2Q==";

    fn picture(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
        let picture = RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([x * 7, y * 5, x ^ y].map(|n| n.to_le_bytes()[0]))
        });
        let mut file = Cursor::new(Vec::new());
        picture.write_to(&mut file, format).unwrap();
        file.into_inner()
    }

    fn every_picture() -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("image/png", picture(ImageFormat::Png, 16, 16)),
            ("image/jpeg", picture(ImageFormat::Jpeg, 16, 16)),
            ("image/jpeg", BASE64.decode(PROGRESSIVE_JPEG).unwrap()),
            ("image/webp", picture(ImageFormat::WebP, 16, 16)),
            ("image/webp", BASE64.decode(LOSSY_WEBP).unwrap()),
        ]
    }

    fn accept_json(object: Value) -> Result<Option<InitImage>, InitImageError> {
        accept(object.as_object().unwrap(), &LIMITS)
    }

    fn accept_bytes(mime: &str, bytes: &[u8]) -> Result<Option<InitImage>, InitImageError> {
        accept_json(json!({ "mime": mime, "name": "a.b", "data": BASE64.encode(bytes) }))
    }

    #[track_caller]
    fn check_refused(result: Result<Option<InitImage>, InitImageError>, expected: &str) {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }

    #[test]
    fn empty_object_is_no_image() {
        assert!(accept_json(json!({})).unwrap().is_none());
    }

    #[test]
    fn picture_lies_in_a_private_file_until_it_is_dropped() {
        for (mime, bytes) in every_picture() {
            let image = accept_bytes(mime, &bytes).unwrap().unwrap();
            assert_eq!(image.name(), "a.b");
            let mode = fs::metadata(image.path()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let path = image.path().to_owned();
            drop(image);
            assert!(!path.exists(), "{path:?}");
        }
    }

    /// The picture in the file that a worker gets.
    fn kept(image: &InitImage) -> DynamicImage {
        let file = fs::read(image.path()).unwrap();
        image::load_from_memory_with_format(&file, ImageFormat::Png).unwrap()
    }

    #[test]
    fn file_is_a_png_of_the_pixels_and_of_nothing_else() {
        for (mime, mut bytes) in every_picture() {
            let pixels = image::load_from_memory(&bytes).unwrap().into_rgb8();
            if mime == "image/png" {
                // A text chunk, before the end chunk.
                let text = b"tEXtComment\0made by a client";
                let length = u32::try_from(text.len() - 4).unwrap().to_be_bytes();
                let crc = crc32fast::hash(text).to_be_bytes();
                let chunk = [&length, text.as_slice(), &crc].concat();
                let end = bytes.len() - 12;
                bytes.splice(end..end, chunk);
            }
            let image = accept_bytes(mime, &bytes).unwrap().unwrap();
            let file = fs::read(image.path()).unwrap();
            assert!(!file.windows(6).any(|text| text == b"client"), "{mime}");
            assert_eq!(kept(&image), DynamicImage::ImageRgb8(pixels), "{mime}");
        }
    }

    #[test]
    fn every_kind_of_pixel_becomes_what_its_conversion_to_rgb_is() {
        let rgba = image::RgbaImage::from_fn(16, 16, |x, y| {
            image::Rgba([x * 9, y * 11, x ^ y, x * y].map(|n| n.to_le_bytes()[0]))
        });
        let rgba = DynamicImage::ImageRgba8(rgba);
        let grey = DynamicImage::ImageLuma8(rgba.to_luma8());
        let deep = DynamicImage::ImageRgba16(rgba.to_rgba16());
        for (picture, mime, format) in [
            (&rgba, "image/png", ImageFormat::Png),
            (&rgba, "image/webp", ImageFormat::WebP),
            (&grey, "image/png", ImageFormat::Png),
            (&grey, "image/jpeg", ImageFormat::Jpeg),
            (&deep, "image/png", ImageFormat::Png),
        ] {
            let mut file = Cursor::new(Vec::new());
            picture.write_to(&mut file, format).unwrap();
            let file = file.into_inner();
            let expected = image::load_from_memory(&file).unwrap().into_rgb8();
            let image = accept_bytes(mime, &file).unwrap().unwrap();
            assert_eq!(kept(&image), DynamicImage::ImageRgb8(expected), "{mime}");
        }
    }

    #[test]
    fn orientation_is_not_applied() {
        // Exif with one entry, orientation 6: a quarter turn.
        let exif = b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let mut jpeg = picture(ImageFormat::Jpeg, 24, 16);
        jpeg.splice(2..2, exif.iter().copied());
        let mut decoder = image::codecs::jpeg::JpegDecoder::new(Cursor::new(&jpeg)).unwrap();
        let turned = image::metadata::Orientation::Rotate90;
        assert_eq!(decoder.orientation().unwrap(), turned);
        let image = accept_bytes("image/jpeg", &jpeg).unwrap().unwrap();
        assert_eq!((kept(&image).width(), kept(&image).height()), (24, 16));
    }

    #[test]
    fn truncation_is_refused_but_for_the_last_bytes() {
        for (mime, bytes) in every_picture() {
            let whole = kept(&accept_bytes(mime, &bytes).unwrap().unwrap());
            for n in 1..bytes.len() {
                let at = format!("{n} of {} bytes of {mime}", bytes.len());
                match accept_bytes(mime, &bytes[..n]) {
                    Ok(image) => {
                        let (limit, lossless) = match mime {
                            "image/png" => (4, true),
                            "image/webp" => (4, false),
                            _ => (8, false),
                        };
                        assert!(bytes.len() - n <= limit, "{at}");
                        assert!(!lossless || kept(&image.unwrap()) == whole, "{at}");
                    }
                    Err(error) => {
                        let refused =
                            matches!(error, InitImageError::Refused { field: "data", .. });
                        assert!(refused, "{at}: {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn truncation_is_told_as_damage() {
        for (mime, bytes) in every_picture() {
            let error = accept_bytes(mime, &bytes[..bytes.len() - 20]).unwrap_err();
            let expected =
                format!("`initial_image.data`: expected a whole {mime}, got a damaged one (");
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn other_types_are_refused() {
        let check = |mime: Value, given: &str| {
            check_refused(
                accept_json(json!({ "mime": mime, "data": "" })),
                &format!(
                    "`initial_image.mime`: expected image/png, image/jpeg or image/webp, got {given}"
                ),
            );
        };
        check(json!("image/gif"), r#""image/gif""#);
        check(json!("IMAGE/PNG\n"), r#""IMAGE/PNG\n""#);
        check(json!(7), "none");
        check(json!(null), "none");

        let png = picture(ImageFormat::Png, 4, 4);
        check_refused(
            accept_bytes("image/jpg", &png),
            "`initial_image.data`: expected image/jpeg, got image/png",
        );
        check_refused(
            accept_bytes("image/webp", b"GIF89a\x01\x00\x01\x00"),
            "`initial_image.data`: expected image/webp, got image/gif",
        );
        check_refused(
            accept_bytes("image/png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
            "`initial_image.data`: expected image/png, got bytes of no known image type",
        );
    }

    #[test]
    fn bad_data_are_refused() {
        let check = |data: Value, expected: &str| {
            check_refused(
                accept_json(json!({ "mime": "image/png", "data": data })),
                &format!("`initial_image.data`: expected {expected}"),
            );
        };
        check(json!(null), "a base64 text, got none");
        check(json!([1, 2]), "a base64 text, got none");
        check(json!(""), "an image, got 0 bytes");
        check(
            json!("%%%%"),
            "strict base64, got Invalid symbol 37, offset 0.",
        );
        check(
            json!("QUJD\nQUJD"),
            "strict base64, got Invalid symbol 10, offset 4.",
        );
        check(json!("QUI"), "strict base64, got Invalid padding");
        check(
            json!("data:image/png;base64,QUJD"),
            "strict base64, got Invalid symbol 58, offset 4.",
        );
    }

    #[test]
    fn size_limit_is_exact_and_checked_before_decoding() {
        let check = |bytes: usize, expected: &str| {
            let data = BASE64.encode(vec![b'x'; bytes]);
            check_refused(
                accept_json(json!({ "mime": "image/png", "data": data })),
                &format!("`initial_image.data`: expected {expected}"),
            );
        };
        for fine in 65_533..=65_536 {
            check(fine, "image/png, got bytes of no known image type");
        }
        for large in 65_537..=65_540 {
            check(large, &format!("at most 65536 bytes, got {large} bytes"));
        }
    }

    #[test]
    fn picture_with_too_many_pixels_is_refused_from_its_header() {
        let check = |mime: &str, bytes: &[u8], size: &str| {
            check_refused(
                accept_bytes(mime, bytes),
                &format!("`initial_image.data`: expected at most 10000 pixels, got {size}"),
            );
        };
        check("image/png", &picture(ImageFormat::Png, 101, 100), "101x100");

        let mut png = picture(ImageFormat::Png, 4, 4);
        png[16..24].copy_from_slice(&[0x00, 0x01, 0x86, 0xa0].repeat(2));
        let crc = crc32fast::hash(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        check("image/png", &png, "100000x100000");

        let mut jpeg = picture(ImageFormat::Jpeg, 4, 4);
        let frame = jpeg.windows(2).position(|m| m == [0xff, 0xc0]).unwrap();
        jpeg[frame + 5..frame + 9].fill(0xff);
        check("image/jpeg", &jpeg, "65535x65535");

        let mut webp = picture(ImageFormat::WebP, 4, 4);
        assert_eq!(&webp[12..16], b"VP8L");
        webp[21..25].copy_from_slice(&0x0ffb_fffe_u32.to_le_bytes());
        check("image/webp", &webp, "16383x16368");

        // The size of the picture and that of its only frame disagree.
        let lossy = BASE64.decode(LOSSY_WEBP).unwrap();
        let mut chunks = b"WEBPVP8X\x0a\0\0\0\0\0\0\0\x0f\0\0\x0f\0\0".to_vec();
        chunks.extend_from_slice(&lossy[12..]);
        chunks[30 - 8 + 14..][..4].copy_from_slice(&[0xff, 0x3f, 0xff, 0x3f]);
        let length = u32::try_from(chunks.len()).unwrap().to_le_bytes();
        let webp = [b"RIFF".as_slice(), &length, &chunks].concat();
        check("image/webp", &webp, "16383x16383");
    }

    #[test]
    fn names_become_plain() {
        let png = BASE64.encode(picture(ImageFormat::Png, 4, 4));
        let check = |name: Value, expected: &str| {
            let object = json!({ "mime": "image/png", "name": name, "data": png });
            let image = accept_json(object).unwrap().unwrap();
            assert_eq!(image.name(), expected);
            assert_eq!(image.path().extension().unwrap(), "png");
        };
        check(json!("holiday (2).png"), "holiday (2).png");
        check(json!("../../etc/passwd"), "passwd");
        check(json!(r"C:\Users\me\cat.png"), "cat.png");
        check(json!("C:cat.png"), "C_cat.png");
        check(json!("a\u{0}b\r\n\u{1b}[31m\u{202e}c"), "a_b____31m_c");
        check(json!("été.png"), "été.png");
        check(json!(".."), "init.png");
        check(json!("dir/"), "init.png");
        check(json!("  "), "init.png");
        check(json!(null), "init.png");
        check(json!(5), "init.png");
        check(json!("é".repeat(300)), &"é".repeat(100));
    }
}
