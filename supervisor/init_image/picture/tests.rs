use std::io::Cursor;
use std::sync::LazyLock;
use std::time::Instant;

use image::{ImageBuffer, Rgb, Rgba};
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const LIMITS: Limits = Limits {
    max_pixels: 64_000_000,
    frame: (64, 64),
};

fn file(format: ImageFormat, picture: &RgbImage) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, format).unwrap();
    file.into_inner()
}

fn read_any(bytes: &[u8], limits: &Limits) -> Result<RgbImage, Unfit> {
    read(bytes.to_vec(), format(bytes)?, limits)
}

#[track_caller]
fn check_refused(bytes: &[u8], expected: &str) {
    assert_eq!(
        read_any(bytes, &LIMITS).unwrap_err().to_string(),
        format!("expected {expected}")
    );
}

fn png_chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    let checksum = crc32fast::hash(&[kind, data].concat()).to_be_bytes();
    [&length, kind.as_slice(), data, &checksum].concat()
}

/// A PNG without pixels: 16 bits, RGBA.
fn png_header(width: u32, height: u32, is_interlaced: bool) -> Vec<u8> {
    let sizes = [width.to_be_bytes(), height.to_be_bytes()].concat();
    let header = [sizes.as_slice(), &[16, 6, 0, 0, u8::from(is_interlaced)]].concat();
    [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        png_chunk(b"IHDR", &header),
        png_chunk(b"IDAT", &[]),
    ]
    .concat()
}

fn jpeg_segment(marker: u8, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len() + 2).unwrap().to_be_bytes();
    [&[0xff, marker], length.as_slice(), data].concat()
}

/// A JPEG with as many scans of nothing. `frame` is the marker of the frame: baseline or progressive.
fn jpeg_header(width: u16, height: u16, frame: u8, scans: usize) -> Vec<u8> {
    let [width, height] = [width, height].map(u16::to_be_bytes);
    let sizes = [&[8], height.as_slice(), &width, &[3]].concat();
    let components = [1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0];
    let scan = jpeg_segment(0xda, &[3, 1, 0, 2, 0, 3, 0, 0, 63, 0]);
    [
        vec![0xff, 0xd8],
        jpeg_segment(frame, &[sizes, components.to_vec()].concat()),
        scan.repeat(scans),
        vec![0xff, 0xd9],
    ]
    .concat()
}

fn riff(chunks: &[u8]) -> Vec<u8> {
    let length = u32::try_from(chunks.len() + 4).unwrap().to_le_bytes();
    [b"RIFF", length.as_slice(), b"WEBP", chunks].concat()
}

fn riff_chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap().to_le_bytes();
    let padding = vec![0; data.len() % 2];
    [kind, length.as_slice(), data, &padding].concat()
}

/// The chunk of the picture in a simple WebP file.
fn webp_chunk(picture: &RgbImage) -> Vec<u8> {
    file(ImageFormat::WebP, picture).split_off(12)
}

#[test]
fn a_thin_picture_is_refused() {
    for (width, height) in [(1, 17), (1, 16_000), (16_000, 1), (1601, 100)] {
        check_refused(
            &file(ImageFormat::Png, &RgbImage::new(width, height)),
            &format!("a picture at most 16 times as long as wide, got {width}x{height}"),
        );
    }
    for (width, height) in [(1, 16), (1600, 100)] {
        let picture = file(ImageFormat::Png, &RgbImage::new(width, height));
        assert!(read_any(&picture, &LIMITS).is_ok());
    }
}

#[test]
fn what_is_large_is_refused_from_its_header() {
    check_refused(
        &png_header(8001, 8000, false),
        "at most 64000000 pixels, got 8001x8000",
    );
    check_refused(
        &png_header(7900, 8000, true),
        "at most 240 MiB to decode, got 242 MiB (interlaced, 7900x8000)",
    );
    check_refused(
        &jpeg_header(6500, 6500, 0xc2, 1),
        "at most 240 MiB to decode, got 243 MiB (progressive JPEG, 6500x6500)",
    );
    let mut lossless = webp_chunk(&RgbImage::new(4, 4));
    // 14 bits each for the width and the height, less one.
    lossless[9..13].copy_from_slice(&(5999_u32 | (5999 << 14)).to_le_bytes());
    check_refused(
        &riff(&lossless),
        "at most 240 MiB to decode, got 275 MiB (lossless WebP, 6000x6000)",
    );
    let lossy = [
        &[0, 0, 0, 0x9d, 1, 0x2a],
        7000_u16.to_le_bytes().repeat(2).as_slice(),
    ]
    .concat();
    check_refused(
        &riff(&riff_chunk(b"VP8 ", &lossy)),
        "at most 240 MiB to decode, got 281 MiB (lossy WebP, 7000x7000)",
    );
}

#[test]
fn a_jpeg_of_many_scans_is_refused() {
    check_refused(
        &jpeg_header(64, 64, 0xc2, 101),
        "at most 100 scans, got 101",
    );
    check_refused(
        &jpeg_header(4000, 4000, 0xc2, 50),
        "at most 16777216 blocks in all scans, got 18750000 (50 scans)",
    );
    let tables = jpeg_segment(0xc4, &[0; 60_000]).repeat(3);
    let mut jpeg = jpeg_header(64, 64, 0xc0, 1);
    jpeg.splice(2..2, tables);
    check_refused(&jpeg, "at most 131072 bytes of tables, got 180000 bytes");
}

#[test]
fn metadata_of_a_jpeg_never_reach_the_decoder() {
    let picture = RgbImage::from_fn(40, 30, |x, y| {
        Rgb([x, y, x + y].map(|n| n.to_le_bytes()[0] * 3))
    });
    let plain = file(ImageFormat::Jpeg, &picture);
    let expected = read_any(&plain, &LIMITS).unwrap();
    // Extended XMP: a decoder that joins the parts at each of them takes minutes for these.
    let part = jpeg_segment(
        0xe1,
        b"http://ns.adobe.com/xmp/extension/\0ffffffffffffffffffffffffffffffff\0\x10\0\0\0\0\0\0x",
    );
    let mut jpeg = plain;
    jpeg.splice(2..2, part.repeat(50_000));
    // Phones put a film after the picture.
    jpeg.extend([0xff; 1000]);
    assert!(read_any(&jpeg, &LIMITS).unwrap() == expected);
}

#[test]
fn the_first_picture_of_an_animation_is_taken() {
    let red = RgbImage::from_pixel(8, 8, Rgb([250, 0, 0]));
    let blue = RgbImage::from_pixel(8, 8, Rgb([0, 0, 250]));
    let frame = |picture| riff_chunk(b"ANMF", &[[0; 16].to_vec(), webp_chunk(picture)].concat());
    let webp = riff(
        &[
            riff_chunk(b"VP8X", &[2, 0, 0, 0, 7, 0, 0, 7, 0, 0]),
            riff_chunk(b"ANIM", &[0; 6]),
            frame(&red),
            frame(&blue),
        ]
        .concat(),
    );
    assert_eq!(read_any(&webp, &LIMITS).unwrap(), red);
    // Frames in frames are no pictures.
    let mut nested = frame(&red);
    for _ in 0..1000 {
        nested = riff_chunk(b"ANMF", &[[0; 16].to_vec(), nested].concat());
    }
    check_refused(
        &riff(&nested),
        "a whole image/webp, got a damaged one (no picture)",
    );
}

/// Exif data with one entry.
fn exif(orientation: u8, is_big: bool) -> Vec<u8> {
    if is_big {
        let head = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0";
        [head.as_slice(), &[orientation, 0, 0, 0, 0, 0, 0]].concat()
    } else {
        let head = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0";
        [head.as_slice(), &[orientation, 0, 0, 0, 0, 0, 0, 0]].concat()
    }
}

/// The same picture, as files that tell an orientation in each way that there is.
fn turned(picture: &RgbImage, orientation: u8) -> Vec<(&'static str, Vec<u8>)> {
    let mut files = Vec::new();
    for is_big in [true, false] {
        let exif = exif(orientation, is_big);
        let segment = jpeg_segment(0xe1, &[b"Exif\0\0", exif.as_slice()].concat());
        let mut jpeg = file(ImageFormat::Jpeg, picture);
        jpeg.splice(2..2, segment);
        files.push(("JPEG", jpeg));
        let chunk = png_chunk(b"eXIf", &exif);
        let png = file(ImageFormat::Png, picture);
        for at in [33, png.len() - 12] {
            let mut png = png.clone();
            png.splice(at..at, chunk.clone());
            files.push(("PNG", png));
        }
        for data in [exif.clone(), [b"Exif\0\0", exif.as_slice()].concat()] {
            let chunks = [
                riff_chunk(b"VP8X", &[8, 0, 0, 0, 95, 0, 0, 31, 0, 0]),
                webp_chunk(picture),
                riff_chunk(b"EXIF", &data),
            ];
            files.push(("WebP", riff(&chunks.concat())));
        }
    }
    files
}

#[test]
fn a_picture_is_turned_as_its_exif_data_say() {
    // As it is stored: red, green, blue, from left to right; the upper half is dark.
    let stored = RgbImage::from_fn(96, 32, |x, y| {
        let mut pixel = [0; 3];
        pixel[x as usize / 32] = if y < 16 { 120 } else { 240 };
        Rgb(pixel)
    });
    let at = |picture: &RgbImage, x: u32, y: u32| {
        let [red, green, blue] = picture.get_pixel(x, y).0;
        let colour = match red.max(green).max(blue) {
            max if max == red => 'r',
            max if max == green => 'g',
            _ => 'b',
        };
        let is_dark = red.max(green).max(blue) < 180;
        (colour, is_dark)
    };
    // What is in the corners at the top left and at the bottom right when the picture is looked at.
    for (orientation, expected) in [
        (1, (('r', true), ('b', false))),
        (2, (('b', true), ('r', false))),
        (3, (('b', false), ('r', true))),
        (4, (('r', false), ('b', true))),
        (5, (('r', true), ('b', false))),
        (6, (('r', false), ('b', true))),
        (7, (('b', false), ('r', true))),
        (8, (('b', true), ('r', false))),
        // None that there is.
        (0, (('r', true), ('b', false))),
        (9, (('r', true), ('b', false))),
    ] {
        let lies = orientation < 5 || orientation == 9;
        let (width, height) = if lies { (96, 32) } else { (32, 96) };
        // Large enough, too small, and of another shape, so that it is cropped.
        for (frame, size) in [
            ((96, 96), (32, 32)),
            ((width, height), (width, height)),
            ((width / 2, height / 2), (width / 2, height / 2)),
        ] {
            let limits = Limits { frame, ..LIMITS };
            for (kind, bytes) in turned(&stored, orientation) {
                let picture = read_any(&bytes, &limits).unwrap();
                assert_eq!(picture.dimensions(), size, "{kind} {orientation}");
                if frame == (96, 96) {
                    // Only the middle is left.
                    let middle = at(&picture, 16, 16);
                    assert_eq!(middle.0, 'g', "{kind} {orientation}");
                    continue;
                }
                let corners = (at(&picture, 1, 1), at(&picture, size.0 - 2, size.1 - 2));
                assert_eq!(corners, expected, "{kind} {orientation}");
            }
        }
    }
}

static SMALL_FILES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let picture = RgbImage::from_fn(24, 16, |x, y| {
        Rgb([x * 9, y * 11, x ^ y].map(|n| n.to_le_bytes()[0]))
    });
    let deep = ImageBuffer::from_fn(24, 16, |x, y| {
        Rgba([x * 900, y * 900, x ^ y, 9].map(|n| n.to_le_bytes()[0].into()))
    });
    let mut deep_file = Cursor::new(Vec::new());
    DynamicImage::ImageRgba16(deep)
        .write_to(&mut deep_file, ImageFormat::Png)
        .unwrap();
    let mut files = vec![
        deep_file.into_inner(),
        include_bytes!("progressive.jpg").to_vec(),
        include_bytes!("interlaced.png").to_vec(),
        include_bytes!("lossy.webp").to_vec(),
    ];
    files.extend(
        [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP]
            .map(|format| file(format, &picture)),
    );
    files.extend(turned(&picture, 6).into_iter().map(|(_, bytes)| bytes));
    files
});

#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, value)| Damage::Set(at, value)),
        1 => (any::<Index>(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (any::<Index>(), 1..40_usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        1 => (any::<Index>(), 1..40_usize).prop_map(|(at, count)| Damage::Repeat(at, count)),
    ]
}

fn inflict(bytes: &mut Vec<u8>, damage: Damage) {
    match damage {
        Damage::Set(at, value) => {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        Damage::Insert(at, new) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, new);
        }
        Damage::Remove(at, count) => {
            let at = at.index(bytes.len());
            let end = (at + count).min(bytes.len() - 1).max(at);
            bytes.drain(at..end);
        }
        Damage::Repeat(at, count) => {
            let at = at.index(bytes.len());
            let end = (at + count).min(bytes.len());
            bytes.extend_from_within(at..end);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_damaged_file_is_refused_or_a_picture_for_the_frame(
        which in any::<Index>(),
        damages in prop::collection::vec(damage(), 0..6),
    ) {
        let mut bytes = which.get(SMALL_FILES.as_slice()).clone();
        for damage in damages {
            inflict(&mut bytes, damage);
        }
        let limits = Limits { max_pixels: 1 << 20, ..LIMITS };
        let begun = Instant::now();
        if let Ok(picture) = read_any(&bytes, &limits) {
            prop_assert!(picture.width() <= 64 && picture.height() <= 64);
        }
        prop_assert!(begun.elapsed().as_secs() < 5);
    }
}
