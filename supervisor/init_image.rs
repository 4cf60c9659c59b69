//! The initial image that a client may send for the first segment of a session or of a video. It is untrusted input.
//!
//! The picture is decoded within limits (`picture`), a few at a time, and written out again as a PNG of its pixels: a
//! worker never reads bytes that a client made, and never a picture larger than a frame.

use std::fs;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::{ImageFormat, RgbImage};
use serde_json::{Map, Value};
use tempfile::{NamedTempFile, TempPath};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;

use picture::Unfit;

mod picture;

/// The largest image file that is accepted, in bytes.
pub(crate) const MAX_BYTES: usize = 32 << 20;

/// Number of images that the server decodes at once. Each takes a quarter of a GiB and two seconds at most.
const AT_ONCE: usize = 2;
static DECODERS: Semaphore = Semaphore::const_new(AT_ONCE);

const MAX_NAME_CHARS: usize = 100;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The limit on the file's size, decoded from base64.
    pub(crate) max_bytes: usize,
    /// The limit on width times height.
    pub(crate) max_pixels: u64,
    /// Width and height of the frames that the image is for.
    pub(crate) frame: (u32, u32),
}

/// A picture as a PNG file that only this user can read. The file is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct InitImage {
    path: TempPath,
    name: String,
}

impl InitImage {
    /// Returns the path of the file, which is an RGB PNG with 8 bits per channel, at most as large as a frame.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the client's name for the picture, for the log: reduced to a plain file name of at most 100 characters.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Why there is no initial image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitImageError {
    /// The client sent something that is not a picture, or that is too large. The text is safe to show to it.
    #[error("`initial_image.{field}`: expected {expected}, got {given}")]
    Refused {
        field: &'static str,
        expected: String,
        given: String,
    },
    /// Other clients' images were decoded for all of the time that this one could wait.
    #[error("too many images are being decoded")]
    Busy,
    /// The server cannot write the file.
    #[error("initial image cannot be kept in a temporary file")]
    Keep(#[source] io::Error),
    #[error("initial image could not be decoded")]
    Panicked(#[source] JoinError),
}

/// Checks `{mime, name, data}` and puts the picture into a temporary file. Returns `None` for an empty object, which
/// means no image.
///
/// `data` is base64, also as a data URL. The file's bytes tell its type. The picture is turned upright as its EXIF
/// orientation says, then cropped to the shape of the frames, then shrunk to their size if it is larger; transparency is
/// dropped.
///
/// A truncated file is refused, except that a few last bytes may be missing, which decoders do not need: a PNG may lack
/// the checksum of its end chunk; a JPEG may lack its last 8 bytes and a WebP its last 4, which may cost the last block
/// of pixels.
///
/// # Errors
/// Returns an error when the object is not a whole picture within the limits, when the file cannot be written, or when
/// other images keep the decoders busy for longer than `patience`.
pub(crate) async fn accept(
    object: Map<String, Value>,
    limits: Limits,
    patience: Duration,
) -> Result<Option<InitImage>, InitImageError> {
    decode_in_turn(&DECODERS, patience, move || check(object, &limits)).await
}

/// Like [`accept`], for the bytes of a picture's file, in which `limits.max_bytes` does not count. Returns a PNG file of its
/// pixels.
///
/// # Errors
/// As [`accept`].
pub(crate) async fn accept_file(
    bytes: Vec<u8>,
    limits: Limits,
    patience: Duration,
) -> Result<Vec<u8>, InitImageError> {
    decode_in_turn(&DECODERS, patience, move || {
        let (path, _) = decode(bytes, &limits)?;
        fs::read(&path).map_err(InitImageError::Keep)
    })
    .await
}

/// Puts a PNG file that [`accept_file`] has returned into a temporary file again. Blocks.
///
/// # Errors
/// Returns an error when the file cannot be written.
pub(crate) fn keep_again(png: &[u8]) -> io::Result<TempPath> {
    let mut file = temporary_file()?;
    file.write_all(png)?;
    Ok(file.into_temp_path())
}

/// Runs a check on a blocking thread when one of the decoders is free, which it holds to its end: whoever waits may give
/// up, but a check that has begun is not interrupted.
async fn decode_in_turn<T: Send + 'static>(
    decoders: &'static Semaphore,
    patience: Duration,
    check: impl FnOnce() -> Result<T, InitImageError> + Send + 'static,
) -> Result<T, InitImageError> {
    let Ok(Ok(turn)) = timeout(patience, decoders.acquire()).await else {
        return Err(InitImageError::Busy);
    };
    let checked = spawn_blocking(move || {
        let checked = check();
        drop(turn);
        checked
    });
    checked.await.map_err(InitImageError::Panicked)?
}

fn check(
    mut object: Map<String, Value>,
    limits: &Limits,
) -> Result<Option<InitImage>, InitImageError> {
    if object.is_empty() {
        return Ok(None);
    }
    check_mime(&object)?;
    // The text is dropped before the picture is decoded.
    let bytes = bytes(object.remove("data"), limits)?;
    let (path, format) = decode(bytes, limits)?;
    let name = plain_name(object.get("name"))
        .unwrap_or_else(|| format!("init.{}", format.extensions_str()[0]));
    Ok(Some(InitImage { path, name }))
}

/// Decodes a picture and puts it into a temporary file.
fn decode(bytes: Vec<u8>, limits: &Limits) -> Result<(TempPath, ImageFormat), InitImageError> {
    let format = picture::format(&bytes).map_err(unfit)?;
    let picture_limits = picture::Limits {
        max_pixels: limits.max_pixels,
        frame: limits.frame,
    };
    let pixels = picture::read(bytes, format, &picture_limits).map_err(unfit)?;
    let path = keep(&pixels).map_err(InitImageError::Keep)?;
    Ok((path, format))
}

/// Checks that the client meant to send one of the types. Which one it is, is told by the bytes: file names lie.
fn check_mime(object: &Map<String, Value>) -> Result<(), InitImageError> {
    let given = match object.get("mime").and_then(Value::as_str) {
        // FastVideo's server accepts the third name, too.
        Some("image/png" | "image/jpeg" | "image/jpg" | "image/webp") => return Ok(()),
        Some(other) => format!("{:?}", other.chars().take(64).collect::<String>()),
        None => "none".to_owned(),
    };
    let expected = "image/png, image/jpeg or image/webp";
    Err(refused("mime", expected, given))
}

fn bytes(data: Option<Value>, limits: &Limits) -> Result<Vec<u8>, InitImageError> {
    let Some(Value::String(text)) = data else {
        return Err(refused("data", "a base64 text", "none"));
    };
    let text = base64_part(&text)?;
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

/// Returns the base64 of a text that is all base64, or a data URL, as browsers make them of files.
fn base64_part(text: &str) -> Result<&str, InitImageError> {
    let scheme = text.get(..5).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("data:") {
        return Ok(text);
    }
    let (prefix, data) = text.split_once(',').unwrap_or((text, ""));
    match prefix.rsplit(';').next() {
        Some(last) if last.eq_ignore_ascii_case("base64") => Ok(data),
        _ => {
            let expected = "base64, alone or after \"data:image/png;base64,\"";
            let prefix: String = prefix.chars().take(64).collect();
            Err(refused("data", expected, format!("{prefix:?}")))
        }
    }
}

fn unfit(Unfit { expected, given }: Unfit) -> InitImageError {
    refused("data", expected, given)
}

/// Writes the picture as PNG, with little compression, into a temporary file.
///
/// Rows are written as they are compressed, so that no second copy of the picture is in memory.
fn keep(picture: &RgbImage) -> io::Result<TempPath> {
    let mut file = temporary_file()?;
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

/// Creates a temporary file, of mode 0600, in the server's private folder: see `LinkFolder::take_effect`.
fn temporary_file() -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("fastvideo-init-").suffix(".png").tempfile()
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
    use std::io::Cursor;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::mpsc;

    use image::DynamicImage;
    use serde_json::json;
    use tokio::task::{JoinSet, yield_now};
    use tokio::time::advance;

    use super::*;

    const LIMITS: Limits = Limits {
        max_bytes: 64 << 10,
        max_pixels: 10_000,
        frame: (64, 64),
    };

    /// 16x16, lossy (the encoder in `image` writes lossless WebP only).
    const LOSSY_WEBP: &[u8] = include_bytes!("init_image/picture/lossy.webp");
    /// 16x16, progressive.
    const PROGRESSIVE_JPEG: &[u8] = include_bytes!("init_image/picture/progressive.jpg");

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
            ("image/jpeg", PROGRESSIVE_JPEG.to_vec()),
            ("image/webp", picture(ImageFormat::WebP, 16, 16)),
            ("image/webp", LOSSY_WEBP.to_vec()),
        ]
    }

    fn accept_json(object: Value) -> Result<Option<InitImage>, InitImageError> {
        check(object.as_object().unwrap().clone(), &LIMITS)
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
    fn a_picture_is_cropped_and_shrunk_to_a_frame() {
        for (size, expected) in [
            ((100, 100), (64, 64)),
            ((100, 80), (64, 64)),
            ((100, 50), (50, 50)),
            ((10, 90), (10, 10)),
        ] {
            for (mime, format) in [
                ("image/png", ImageFormat::Png),
                ("image/jpeg", ImageFormat::Jpeg),
                ("image/webp", ImageFormat::WebP),
            ] {
                let image = accept_bytes(mime, &picture(format, size.0, size.1));
                let kept = kept(&image.unwrap().unwrap());
                assert_eq!((kept.width(), kept.height()), expected, "{mime} {size:?}");
            }
        }
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

        let expected = "`initial_image.data`: expected a PNG, JPEG or WebP file, got";
        check_refused(
            accept_bytes("image/webp", b"GIF89a\x01\x00\x01\x00"),
            &format!("{expected} image/gif"),
        );
        check_refused(
            accept_bytes("image/png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
            &format!("{expected} bytes of no known image type"),
        );
    }

    #[test]
    fn the_bytes_tell_the_type() {
        for (_, bytes) in every_picture() {
            let pixels = kept(&accept_bytes("image/png", &bytes).unwrap().unwrap());
            for mime in ["image/jpeg", "image/jpg", "image/webp"] {
                assert_eq!(kept(&accept_bytes(mime, &bytes).unwrap().unwrap()), pixels);
            }
        }
    }

    #[test]
    fn a_data_url_is_its_data() {
        let png = BASE64.encode(picture(ImageFormat::Png, 4, 4));
        for prefix in [
            "data:image/png;base64,",
            "data:;base64,",
            "DATA:image/png;charset=x;BASE64,",
        ] {
            let data = format!("{prefix}{png}");
            let image = accept_json(json!({ "mime": "image/png", "data": data }));
            assert!(image.unwrap().is_some(), "{prefix}");
        }
        for (data, given) in [
            ("data:image/png,%89PNG", "\"data:image/png\""),
            ("data:image/png;base64", "0 bytes"),
            ("data:", "\"data:\""),
        ] {
            let error = accept_json(json!({ "mime": "image/png", "data": data })).unwrap_err();
            let error = error.to_string();
            assert!(error.ends_with(&format!("got {given}")), "{error}");
        }
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
            json!("data:image/png;base64,%%%%"),
            "strict base64, got Invalid symbol 37, offset 0.",
        );
        check(
            json!("data:image/png,QUJD"),
            "base64, alone or after \"data:image/png;base64,\", got \"data:image/png\"",
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
            check(
                fine,
                "a PNG, JPEG or WebP file, got bytes of no known image type",
            );
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
        let mut chunks = b"WEBPVP8X\x0a\0\0\0\0\0\0\0\x0f\0\0\x0f\0\0".to_vec();
        chunks.extend_from_slice(&LOSSY_WEBP[12..]);
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

    #[tokio::test(start_paused = true)]
    async fn images_are_decoded_a_few_at_a_time() {
        static DECODERS: Semaphore = Semaphore::const_new(2);
        const PATIENCE: Duration = Duration::from_secs(30);
        let (begun, begins) = mpsc::channel();
        let mut decodes = JoinSet::new();
        // Decodes until it is released.
        let start = |decodes: &mut JoinSet<_>| {
            let begun = begun.clone();
            let (release, released) = mpsc::channel::<()>();
            let handle = decodes.spawn(decode_in_turn(&DECODERS, PATIENCE, move || {
                begun.send(()).unwrap();
                let _ = released.recv();
                Ok(())
            }));
            (release, handle)
        };
        let (first, _) = start(&mut decodes);
        let (second, _) = start(&mut decodes);
        yield_now().await;
        begins.recv().unwrap();
        begins.recv().unwrap();
        // Who gives up leaves the line, and nobody waits for longer than a client may.
        let (_, gone) = start(&mut decodes);
        let (_third, _) = start(&mut decodes);
        yield_now().await;
        gone.abort();
        assert!(decodes.join_next().await.unwrap().is_err());
        advance(PATIENCE).await;
        let third = decodes.join_next().await.unwrap().unwrap();
        assert!(matches!(third, Err(InitImageError::Busy)), "{third:?}");
        let (fourth, _) = start(&mut decodes);
        yield_now().await;
        assert!(begins.try_recv().is_err());
        drop(first);
        decodes.join_next().await.unwrap().unwrap().unwrap();
        yield_now().await;
        begins.recv().unwrap();
        drop((second, fourth));
        while let Some(decoded) = decodes.join_next().await {
            decoded.unwrap().unwrap();
        }
        assert_eq!(DECODERS.available_permits(), 2);
    }

    #[tokio::test]
    async fn a_decoder_stays_taken_when_whoever_waits_is_gone() {
        static DECODERS: Semaphore = Semaphore::const_new(1);
        let (release, released) = mpsc::channel::<()>();
        let mut decodes = JoinSet::new();
        let decode = decode_in_turn(&DECODERS, Duration::from_secs(30), move || {
            let _ = released.recv();
            Ok(())
        });
        decodes.spawn(decode);
        yield_now().await;
        decodes.shutdown().await;
        assert_eq!(DECODERS.available_permits(), 0);
        drop(release);
        drop(DECODERS.acquire().await.unwrap());
    }
}
