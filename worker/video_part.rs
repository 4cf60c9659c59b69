//! Checks what a video job asks of a segment, before anything is generated.

use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::{MAX_TILES, VideoPart, tile_size};

/// The shortest side of a picture that is encoded, in pixels.
const MIN_SIDE: u32 = 64;

/// The reason why a segment cannot be a part of a video.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected}, given {given}")]
pub(crate) struct BadPart {
    what: &'static str,
    expected: String,
    given: String,
}

/// Checks a part of a video. `made` is the format of the segment that it is cut out of, with the number of frames that the
/// engine gives.
///
/// # Errors
/// Returns the first thing that does not fit.
pub(crate) fn check(part: &VideoPart, made: VideoFormat) -> Result<(), BadPart> {
    check_side("width", part.width, made.width)?;
    check_side("height", part.height, made.height)?;
    if !(1..=made.num_frames).contains(&part.frames) {
        let expected = format!("1 to {}", made.num_frames);
        return Err(bad("frames", expected, part.frames));
    }
    check_pictures(part)
}

/// Returns the format of the frames that are encoded.
pub(crate) fn shown_format(part: &VideoPart, fps: u32) -> VideoFormat {
    VideoFormat {
        width: part.width,
        height: part.height,
        num_frames: part.frames,
        fps,
    }
}

/// Returns the size of a tile in bytes, for frames of this size.
pub(crate) fn tile_bytes(width: u32, height: u32) -> usize {
    let (width, height) = tile_size(width, height);
    3 * width as usize * height as usize
}

fn check_side(what: &'static str, shown: u32, made: u32) -> Result<(), BadPart> {
    match (MIN_SIDE..=made).contains(&shown) && shown.is_multiple_of(2) {
        true => Ok(()),
        false => {
            let expected = format!("an even number from {MIN_SIDE} to {made}");
            Err(bad(what, expected, shown))
        }
    }
}

fn check_pictures(part: &VideoPart) -> Result<(), BadPart> {
    let frames = || format!("a frame from 0 to {}", part.frames - 1);
    let shown = part.tiles.iter().chain(&part.thumbnail);
    if let Some(beyond) = shown.into_iter().find(|frame| **frame >= part.frames) {
        return Err(bad("picture", frames(), beyond));
    }
    if !part.tiles.is_sorted_by(|a, b| a < b) {
        let given = format!("{:?}", part.tiles);
        return Err(bad("tiles", "ascending frames".to_owned(), given));
    }
    let tile = tile_bytes(part.width, part.height);
    let before = part.sheet_after.as_ref().map_or(0, |tiles| tiles.len());
    if !before.is_multiple_of(tile) {
        let expected = format!("a multiple of {tile} bytes");
        return Err(bad("tiles before", expected, before));
    }
    let tiles = before / tile + part.tiles.len();
    if tiles > MAX_TILES as usize {
        return Err(bad("tiles", format!("at most {MAX_TILES}"), tiles));
    }
    Ok(())
}

fn bad(what: &'static str, expected: String, given: impl ToString) -> BadPart {
    BadPart {
        what,
        expected,
        given: given.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADE: VideoFormat = VideoFormat {
        width: 128,
        height: 96,
        num_frames: 9,
        fps: 24,
    };

    fn part() -> VideoPart {
        VideoPart {
            width: 128,
            height: 72,
            frames: 9,
            tiles: vec![0, 4, 8],
            thumbnail: Some(8),
            sheet_after: Some(vec![0; 22 * 3 * 160 * 90].into()),
        }
    }

    #[test]
    fn whatever_fits_is_accepted() {
        let check = |change: fn(&mut VideoPart)| {
            let mut part = part();
            change(&mut part);
            assert_eq!(check(&part, MADE), Ok(()), "{part:?}");
        };
        check(|_| {});
        check(|part| part.tiles.clear());
        check(|part| part.thumbnail = None);
        check(|part| part.sheet_after = None);
        check(|part| part.sheet_after = Some(Default::default()));
        check(|part| {
            *part = VideoPart {
                width: 64,
                height: 64,
                frames: 1,
                tiles: vec![0],
                thumbnail: Some(0),
                sheet_after: None,
            }
        });
        check(|part| {
            part.height = 96;
            part.sheet_after = Some(vec![0; 3 * 160 * 120].into());
        });
    }

    #[test]
    fn whatever_does_not_fit_is_refused_by_name() {
        let check = |change: fn(&mut VideoPart), refused: &str| {
            let mut part = part();
            change(&mut part);
            let given = check(&part, MADE).unwrap_err().to_string();
            assert_eq!(given, refused);
        };
        check(
            |part| part.width = 130,
            "width: expected an even number from 64 to 128, given 130",
        );
        check(
            |part| part.width = 127,
            "width: expected an even number from 64 to 128, given 127",
        );
        check(
            |part| part.height = 62,
            "height: expected an even number from 64 to 96, given 62",
        );
        check(|part| part.frames = 0, "frames: expected 1 to 9, given 0");
        check(|part| part.frames = 10, "frames: expected 1 to 9, given 10");
        check(
            |part| part.tiles = vec![0, 9],
            "picture: expected a frame from 0 to 8, given 9",
        );
        check(
            |part| part.thumbnail = Some(9),
            "picture: expected a frame from 0 to 8, given 9",
        );
        check(
            |part| part.frames = 8,
            "picture: expected a frame from 0 to 7, given 8",
        );
        check(
            |part| part.tiles = vec![1, 1],
            "tiles: expected ascending frames, given [1, 1]",
        );
        check(
            |part| part.sheet_after = Some(vec![0; 3 * 160 * 90 + 1].into()),
            "tiles before: expected a multiple of 43200 bytes, given 43201",
        );
        check(
            |part| part.height = 64,
            "tiles before: expected a multiple of 38400 bytes, given 950400",
        );
        check(
            |part| part.tiles.push(7),
            "tiles: expected ascending frames, given [0, 4, 8, 7]",
        );
        check(
            |part| part.tiles = vec![0, 1, 2, 3],
            "tiles: expected at most 25, given 26",
        );
    }
}
