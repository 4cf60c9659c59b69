//! Packs the frames of a state into one blob: a count, then for each frame a length and the PNG. All numbers are 4
//! bytes, big-endian.

use fastvideo_proto::state::{FramesLayout, MAX_FRAMES};

use super::format::rgb_frames;
use super::frame;

const NUMBER_BYTES: usize = 4;

/// A blob of packed frames.
pub(super) struct PackedFrames {
    bytes: Vec<u8>,
    count: u32,
}

impl PackedFrames {
    /// Packs frames that lie one after another in `raw`.
    pub(super) fn encode(layout: &FramesLayout, raw: &[u8]) -> Result<Self, png::EncodingError> {
        let mut bytes = layout.count.to_be_bytes().to_vec();
        for rgb in rgb_frames(layout, raw) {
            let at = bytes.len();
            bytes.extend_from_slice(&[0; NUMBER_BYTES]);
            frame::encode(rgb, layout.width, layout.height, &mut bytes)?;
            let length = u32::try_from(bytes.len() - at - NUMBER_BYTES)
                .map_err(|_| png::EncodingError::LimitsExceeded)?;
            bytes[at..at + NUMBER_BYTES].copy_from_slice(&length.to_be_bytes());
        }
        let count = layout.count;
        Ok(Self { bytes, count })
    }

    /// Returns the sum of the sizes of the PNGs, without the count and the lengths.
    pub(super) fn png_bytes(&self) -> usize {
        self.bytes.len() - NUMBER_BYTES * (1 + self.count as usize)
    }

    pub(super) fn pngs(&self) -> impl Iterator<Item = &[u8]> {
        let pngs = unpack(&self.bytes).expect("written above");
        pngs.into_iter()
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Why bytes are not a blob of packed frames: what was expected, and what was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PackError {
    pub(super) expected: String,
    pub(super) given: String,
}

/// Finds the PNGs in a blob, without looking into them.
///
/// # Errors
/// Returns an error when there are no frames or more than [`MAX_FRAMES`], or the blob ends early or late.
pub(super) fn unpack(blob: &[u8]) -> Result<Vec<&[u8]>, PackError> {
    let wrong = |expected: String, given: String| PackError { expected, given };
    let ends = |what: String, needed: usize, left: usize| {
        wrong(
            format!("{needed} bytes {what}"),
            format!("{left} bytes up to the blob's end"),
        )
    };
    let Some((count, mut rest)) = blob.split_first_chunk::<NUMBER_BYTES>() else {
        return Err(ends("of frame count".to_owned(), NUMBER_BYTES, blob.len()));
    };
    let count = u32::from_be_bytes(*count);
    if !(1..=MAX_FRAMES).contains(&count) {
        return Err(wrong(
            format!("1 to {MAX_FRAMES} frames"),
            count.to_string(),
        ));
    }
    let mut pngs = Vec::with_capacity(count as usize);
    for i in 0..count {
        let Some((length, after)) = rest.split_first_chunk::<NUMBER_BYTES>() else {
            let what = format!("of length of frame {i}");
            return Err(ends(what, NUMBER_BYTES, rest.len()));
        };
        let length = u32::from_be_bytes(*length) as usize;
        let Some((png, after)) = after.split_at_checked(length) else {
            return Err(ends(format!("of frame {i}"), length, after.len()));
        };
        pngs.push(png);
        rest = after;
    }
    if !rest.is_empty() {
        return Err(wrong(
            format!("the blob's end after {count} frames"),
            format!("{} more bytes", rest.len()),
        ));
    }
    Ok(pngs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(pngs: &[&[u8]]) -> Vec<u8> {
        let mut bytes = u32::try_from(pngs.len()).unwrap().to_be_bytes().to_vec();
        for png in pngs {
            bytes.extend_from_slice(&u32::try_from(png.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(png);
        }
        bytes
    }

    #[test]
    fn written_frames_are_found_again() {
        let raw: Vec<u8> = (0..2 * 2 * 3 * 3).collect();
        let layout = FramesLayout {
            count: 3,
            height: 2,
            width: 2,
        };
        let written = PackedFrames::encode(&layout, &raw).unwrap();
        let pngs: Vec<&[u8]> = written.pngs().collect();
        assert_eq!(written.png_bytes(), pngs.concat().len());
        assert_eq!(packed(&pngs), written.bytes);
        for (png, expected) in pngs.iter().zip(raw.chunks(12)) {
            let mut rgb = [0; 12];
            frame::decode(png, 2, 2, &mut rgb).unwrap();
            assert_eq!(rgb, expected);
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let bytes = packed(&[b"one", b"", b"three"]);
        assert_eq!(unpack(&bytes).unwrap(), [&b"one"[..], b"", b"three"]);
        for n in 0..bytes.len() {
            assert!(unpack(&bytes[..n]).is_err(), "{n} of {} bytes", bytes.len());
        }
    }

    #[test]
    fn damage_is_named() {
        let check = |blob: &[u8], expected: &str, given: &str| {
            let error = unpack(blob).unwrap_err();
            assert_eq!((&error.expected[..], &error.given[..]), (expected, given));
        };
        let whole = packed(&[b"one", b"two"]);
        let end = "bytes up to the blob's end";
        check(&whole[..3], "4 bytes of frame count", &format!("3 {end}"));
        check(&[0; 4], "1 to 64 frames", "0");
        check(&[0xff; 4], "1 to 64 frames", "4294967295");
        check(&packed(&[&b"x"[..]; 65]), "1 to 64 frames", "65");
        check(
            &whole[..13],
            "4 bytes of length of frame 1",
            &format!("2 {end}"),
        );
        check(&whole[..17], "3 bytes of frame 1", &format!("2 {end}"));
        let mut long = whole.clone();
        long[4] = 0xff;
        check(&long, "4278190083 bytes of frame 0", &format!("10 {end}"));
        check(
            &[&whole[..], b"!"].concat(),
            "the blob's end after 2 frames",
            "1 more bytes",
        );
    }
}
