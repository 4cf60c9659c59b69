//! The pictures of a video job's segment: tiles, the thumbnail and the sheet, made from the frames as they are encoded.

use fastvideo_proto::job::VideoFormat;
use fastvideo_proto::link::{MAX_PICTURE_BYTES, VideoPart, VideoPictures};

use crate::encode::{EncodeError, sheet, tile, video_thumbnail};
use crate::video_part::tile_bytes;

/// Makes the pictures of one segment. A picture that cannot be made is left out, which costs the segment nothing.
#[derive(Debug)]
pub(crate) struct PictureMaker {
    part: Box<VideoPart>,
    format: VideoFormat,
    /// The tiles so far, as in [`VideoPictures::tiles`].
    tiles: Vec<u8>,
    thumbnail: Option<Vec<u8>>,
}

impl PictureMaker {
    /// Creates the maker of a part whose encoded frames have this format.
    pub(crate) fn new(part: Box<VideoPart>, format: VideoFormat) -> Self {
        Self {
            part,
            format,
            tiles: Vec::new(),
            thumbnail: None,
        }
    }

    /// Takes frame `n` of those that are encoded, RGB uint8 `[height, width, 3]` of the size that is shown.
    pub(crate) fn frame(&mut self, n: u32, rgb: &[u8]) {
        if self.part.tiles.contains(&n)
            && let Some(tile) = made("a tile", tile(rgb, self.format))
        {
            self.tiles.extend_from_slice(&tile);
        }
        if self.part.thumbnail == Some(n) {
            self.thumbnail = small("the thumbnail", video_thumbnail(rgb, self.format));
        }
    }

    /// Returns the pictures. The segment has the sheet only where all tiles are there.
    pub(crate) fn finish(self) -> VideoPictures {
        let tile_bytes = tile_bytes(self.part.width, self.part.height);
        let mut pictures = VideoPictures {
            thumbnail: self.thumbnail.map(Into::into),
            ..VideoPictures::default()
        };
        if self.tiles.len() != self.part.tiles.len() * tile_bytes {
            return pictures;
        }
        if let Some(before) = &self.part.sheet_after {
            let tiles = [before, self.tiles.as_slice()];
            let tiles = tiles.map(|tiles| tiles.chunks_exact(tile_bytes));
            let tiles: Vec<&[u8]> = tiles.into_iter().flatten().collect();
            if !tiles.is_empty() {
                pictures.sheet = small("the sheet", sheet(&tiles, self.format)).map(Into::into);
            }
        }
        pictures.tiles = self.tiles.into();
        pictures
    }
}

/// Returns the picture, or logs why there is none.
fn made(what: &str, picture: Result<Vec<u8>, EncodeError>) -> Option<Vec<u8>> {
    picture
        .inspect_err(|error| tracing::warn!(what, %error, "video lacks a picture"))
        .ok()
}

/// Returns the picture unless it is larger than the supervisor takes.
fn small(what: &str, picture: Result<Vec<u8>, EncodeError>) -> Option<Vec<u8>> {
    let picture = made(what, picture)?;
    let bytes = picture.len();
    if bytes > MAX_PICTURE_BYTES {
        tracing::warn!(what, bytes, "video lacks a picture, which is too large");
        return None;
    }
    Some(picture)
}

#[cfg(test)]
mod tests {
    use fastvideo_proto::link::tile_size;
    use image::RgbImage;

    use super::*;
    use crate::video_part::shown_format;

    fn part() -> VideoPart {
        VideoPart {
            width: 128,
            height: 72,
            frames: 6,
            tiles: vec![1, 4],
            thumbnail: Some(3),
            sheet_after: None,
        }
    }

    fn grey(n: u32) -> u8 {
        u8::try_from(40 * n + 20).unwrap()
    }

    /// The pictures of so many frames, each of which is brighter than the one before.
    fn pictures(part: VideoPart, frames: u32) -> VideoPictures {
        let mut maker = maker(part);
        let bytes = maker.format.frame_bytes();
        for n in 0..frames {
            maker.frame(n, &vec![grey(n); bytes]);
        }
        maker.finish()
    }

    fn maker(part: VideoPart) -> PictureMaker {
        let format = shown_format(&part, 24);
        PictureMaker::new(Box::new(part), format)
    }

    fn decode(jpeg: &[u8]) -> RgbImage {
        image::load_from_memory(jpeg).unwrap().to_rgb8()
    }

    #[test]
    fn tiles_are_those_that_are_asked_for_in_their_order() {
        let made = pictures(part(), 6);
        let tile = |n| vec![grey(n); tile_bytes(128, 72)];
        assert!(made.tiles == [tile(1), tile(4)].concat());
        assert_eq!(made.sheet, None);
        let thumbnail = decode(&made.thumbnail.unwrap());
        assert_eq!(thumbnail.dimensions(), (128, 72));
        assert!(thumbnail.iter().all(|value| value.abs_diff(grey(3)) <= 2));
    }

    #[test]
    fn thumbnail_of_a_large_frame_is_smaller() {
        for ((width, height), expected) in [((960, 544), (640, 362)), ((544, 960), (362, 640))] {
            let part = VideoPart {
                width,
                height,
                ..part()
            };
            let made = pictures(part, 6);
            assert_eq!(decode(&made.thumbnail.unwrap()).dimensions(), expected);
        }
    }

    #[test]
    fn sheet_has_the_tiles_before_and_then_its_own() {
        let before: Vec<u8> = (0..4)
            .flat_map(|n| vec![200 + 10 * n; tile_bytes(128, 72)])
            .collect();
        let made = pictures(
            VideoPart {
                sheet_after: Some(before.into()),
                ..part()
            },
            6,
        );
        let (width, height) = tile_size(128, 72);
        let sheet = decode(&made.sheet.unwrap());
        assert_eq!(sheet.dimensions(), (5 * width, 2 * height));
        let cells = [200, 210, 220, 230, grey(1), grey(4), 0, 0, 0, 0];
        for (n, expected) in (0..).zip(cells) {
            let (x, y) = (n % 5 * width + width / 2, n / 5 * height + height / 2);
            let given = sheet.get_pixel(x, y).0[0];
            assert!(given.abs_diff(expected) <= 3, "cell {n}: {given}");
        }
    }

    #[test]
    fn other_pictures_do_not_depend_on_the_sheet() {
        let plain = pictures(part(), 6);
        let with_sheet = pictures(
            VideoPart {
                sheet_after: Some(Default::default()),
                ..part()
            },
            6,
        );
        assert!(with_sheet.sheet.is_some());
        assert_eq!(with_sheet.tiles, plain.tiles);
        assert_eq!(with_sheet.thumbnail, plain.thumbnail);
    }

    #[test]
    fn part_without_tiles_has_none() {
        let made = pictures(
            VideoPart {
                tiles: Vec::new(),
                thumbnail: None,
                sheet_after: Some(Default::default()),
                ..part()
            },
            6,
        );
        assert_eq!(made, VideoPictures::default());
    }

    #[test]
    fn pictures_of_frames_that_did_not_come_are_left_out() {
        let made = pictures(
            VideoPart {
                sheet_after: Some(Default::default()),
                ..part()
            },
            4,
        );
        assert!(made.tiles.is_empty() && made.sheet.is_none());
        assert!(made.thumbnail.is_some());
    }

    #[test]
    fn pictures_that_cannot_be_made_are_left_out() {
        let mut maker = maker(part());
        for n in 0..6 {
            maker.frame(n, &[7; 5]);
        }
        assert_eq!(maker.finish(), VideoPictures::default());
    }
}
