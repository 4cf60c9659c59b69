//! JPEG, baseline and progressive.
//!
//! The decoder reads all sorts of metadata, some of it at a cost that is the square of its amount, and repeats its work for
//! each scan that a file has. So the file is reduced to what its pixels need and its scans are counted before.

use image::metadata::Orientation;
use image::{ImageFormat, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Limits, Unfit, check_memory, check_size, orientation, shrinker, upright};

/// The limit on the blocks of 8x8 values that are decoded, counted once for each scan that they are in.
const MAX_BLOCK_VISITS: u64 = 16 << 20;
const MAX_SCANS: usize = 100;
/// The limit on the tables of a file, in bytes. A table has 250 bytes at most, and a scan uses eight.
const MAX_TABLE_BYTES: usize = 128 << 10;
/// How many bytes that belong to nothing are tolerated before a marker.
const MAX_STRAY_BYTES: usize = 3;
const BYTES_PER_COEFFICIENT: u64 = 2;

pub(super) fn read(mut bytes: Vec<u8>, limits: &Limits) -> Result<RgbImage, Unfit> {
    let outline = reduce(&mut bytes).map_err(damaged)?;
    let size = outline.size;
    check_size(size, limits)?;
    outline.check_cost(&bytes)?;
    // In its lenient mode, the decoder fills missing parts with grey.
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_max_scans(MAX_SCANS)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(&bytes), options);
    let pixels = decoder.decode().map_err(damaged)?;
    let seen = decoder.info();
    if seen.map(|info| (u32::from(info.width), u32::from(info.height))) != Some(size) {
        return Err(damaged("two sizes"));
    }
    let mut kept = shrinker(size, outline.orientation, limits);
    for row in pixels.chunks_exact(size.0 as usize * 3) {
        kept.push(row, 3);
    }
    let kept = kept.finish().ok_or_else(|| damaged("rows are missing"))?;
    Ok(upright(kept, outline.orientation))
}

fn damaged(error: impl std::fmt::Display) -> Unfit {
    Unfit::damaged(ImageFormat::Jpeg, error)
}

/// What a file's markers tell of it.
#[derive(Debug)]
struct Outline {
    size: (u32, u32),
    is_progressive: bool,
    components: Vec<Component>,
    /// The components of each scan, as places in `components`.
    scans: Vec<Vec<usize>>,
    table_bytes: usize,
    orientation: Orientation,
}

#[derive(Clone, Copy, Debug)]
struct Component {
    id: u8,
    horizontal: u32,
    vertical: u32,
}

impl Outline {
    fn check_cost(&self, file: &[u8]) -> Result<(), Unfit> {
        if self.scans.len() > MAX_SCANS {
            let expected = format!("at most {MAX_SCANS} scans");
            return Err(Unfit::new(expected, self.scans.len().to_string()));
        }
        if self.table_bytes > MAX_TABLE_BYTES {
            return Err(Unfit::new(
                format!("at most {MAX_TABLE_BYTES} bytes of tables"),
                format!("{} bytes", self.table_bytes),
            ));
        }
        let blocks = self.blocks();
        let visits: u64 = self.scans.iter().flatten().map(|&at| blocks[at]).sum();
        if visits > MAX_BLOCK_VISITS {
            return Err(Unfit::new(
                format!("at most {MAX_BLOCK_VISITS} blocks in all scans"),
                format!("{visits} ({} scans)", self.scans.len()),
            ));
        }
        let pixels = u64::from(self.size.0) * u64::from(self.size.1) * 3;
        let first_has_all = self
            .scans
            .first()
            .is_some_and(|scan| scan.len() == self.components.len());
        if !self.is_progressive && first_has_all {
            return check_memory(pixels, file, "JPEG", self.size);
        }
        // All coefficients are kept until the last scan.
        let kept = blocks.iter().sum::<u64>() * 64 * BYTES_PER_COEFFICIENT;
        check_memory(pixels + kept, file, "progressive JPEG", self.size)
    }

    /// Returns the number of blocks of each component.
    fn blocks(&self) -> Vec<u64> {
        let widest = |side: fn(&Component) -> u32| self.components.iter().map(side).max();
        let across = self
            .size
            .0
            .div_ceil(8 * widest(|c| c.horizontal).unwrap_or(1));
        let down = self
            .size
            .1
            .div_ceil(8 * widest(|c| c.vertical).unwrap_or(1));
        let units = u64::from(across) * u64::from(down);
        self.components
            .iter()
            .map(|c| units * u64::from(c.horizontal * c.vertical))
            .collect()
    }
}

/// Removes in place what the pixels do not need: metadata, and what comes after the picture's end.
fn reduce(bytes: &mut Vec<u8>) -> Result<Outline, &'static str> {
    let mut outline = Outline {
        size: (0, 0),
        is_progressive: false,
        components: Vec::new(),
        scans: Vec::new(),
        table_bytes: 0,
        orientation: Orientation::NoTransforms,
    };
    let mut has_exif = false;
    // The start of the image.
    let mut from = 2;
    let mut to = 2;
    while let Some((start, marker)) = next_marker(bytes, from)? {
        // Only the last one of the bytes that fill up to a marker is kept.
        let end = match marker {
            0x01 | 0xd0..=0xd7 => start + 2,
            0xd8 => return Err("a picture within the picture"),
            0xd9 => {
                to = keep(bytes, start..start + 2, to);
                bytes.truncate(to);
                return outline.complete();
            }
            _ => segment_end(bytes, start)?,
        };
        let data = &bytes[(start + 4).min(end)..end];
        // Tables, frame and scans. Of the applications' segments, that of JFIF also tells that tables are missing, and Adobe's
        // tells the colours.
        let is_kept = matches!(marker, 0xc0..=0xcf | 0xda..=0xdd | 0xe0 | 0xee);
        if marker == 0xe1
            && !has_exif
            && let Some(exif) = data.strip_prefix(b"Exif\0\0")
        {
            has_exif = true;
            outline.orientation = orientation(Some(exif));
        }
        match marker {
            0xc4 | 0xdb => outline.table_bytes += data.len(),
            0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                outline.frame(marker, data)?;
            }
            0xda => outline.scan(data)?,
            _ => {}
        }
        let end = match marker {
            0xda => end_of_scan(bytes, end),
            _ => end,
        };
        if is_kept {
            to = keep(bytes, start..end, to);
        }
        from = end;
    }
    bytes.truncate(to);
    outline.complete()
}

/// Moves a part of the file to its place in the reduced one, and returns where that ends.
fn keep(bytes: &mut [u8], part: std::ops::Range<usize>, to: usize) -> usize {
    let end = to + part.len();
    if part.start != to {
        bytes.copy_within(part, to);
    }
    end
}

/// Finds the next marker: where its `0xff` is, and its code. Returns `None` at the end of the file.
fn next_marker(bytes: &[u8], from: usize) -> Result<Option<(usize, u8)>, &'static str> {
    let rest = bytes.get(from..).unwrap_or_default();
    let Some(stray) = rest.iter().position(|&byte| byte == 0xff) else {
        return Ok(None);
    };
    if stray > MAX_STRAY_BYTES {
        return Err("bytes that belong to no segment");
    }
    let Some(fill) = rest[stray..].iter().position(|&byte| byte != 0xff) else {
        return Ok(None);
    };
    let at = from + stray + fill;
    Ok(Some((at - 1, bytes[at])))
}

fn segment_end(bytes: &[u8], start: usize) -> Result<usize, &'static str> {
    let length = bytes.get(start + 2..start + 4).ok_or("a cut segment")?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let end = start + 2 + length;
    if length < 2 || end > bytes.len() {
        return Err("a cut segment");
    }
    Ok(end)
}

/// Returns where the coded data that begin here end: at the next marker that is no restart.
fn end_of_scan(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    loop {
        let Some(found) = bytes[at..].iter().position(|&byte| byte == 0xff) else {
            return bytes.len();
        };
        at += found;
        match bytes.get(at + 1) {
            None => return bytes.len(),
            Some(0x00 | 0xd0..=0xd7) => at += 2,
            Some(0xff) => at += 1,
            Some(_) => return at,
        }
    }
}

impl Outline {
    fn frame(&mut self, marker: u8, data: &[u8]) -> Result<(), &'static str> {
        if !self.components.is_empty() {
            return Err("two frames");
        }
        let header = data.first_chunk::<6>().ok_or("a cut frame header")?;
        let side = |at: usize| u32::from(u16::from_be_bytes([header[at], header[at + 1]]));
        self.size = (side(3), side(1));
        self.is_progressive = marker == 0xc2;
        let components = data[6..].chunks_exact(3);
        self.components = components
            .map(|c| Component {
                id: c[0],
                horizontal: u32::from(c[1] >> 4),
                vertical: u32::from(c[1] & 0x0f),
            })
            .collect();
        let sampling_fits =
            |c: &Component| (1..=4).contains(&c.horizontal) && (1..=4).contains(&c.vertical);
        if !matches!(self.components.len(), 1 | 3 | 4)
            || usize::from(header[5]) != self.components.len()
        {
            return Err("not one, three or four colours");
        }
        if !self.components.iter().all(sampling_fits) {
            return Err("a sampling that is not 1 to 4");
        }
        Ok(())
    }

    fn scan(&mut self, data: &[u8]) -> Result<(), &'static str> {
        let (&count, rest) = data.split_first().ok_or("a cut scan header")?;
        let ids = rest.chunks_exact(2).take(usize::from(count)).map(|c| c[0]);
        let places = ids.map(|id| self.components.iter().position(|c| c.id == id));
        let places: Option<Vec<usize>> = places.collect();
        self.scans.push(places.ok_or("a scan of no component")?);
        Ok(())
    }

    fn complete(self) -> Result<Self, &'static str> {
        if self.size.0 == 0 || self.size.1 == 0 {
            return Err("no size");
        }
        if self.scans.is_empty() {
            return Err("no pixels");
        }
        Ok(self)
    }
}
