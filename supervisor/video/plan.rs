//! The segments of a video: how many there are, how many frames each has, and which pictures are made of them.

use bytes::Bytes;
use fastvideo_proto::link::{MAX_TILES, tile_size};
use fastvideo_proto::stored_video::{PlannedSegment, VideoPlan};

use crate::engines::Shapes;

/// The segments that a model makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    /// The number of frames of a whole segment, at least 1.
    pub(crate) segment_frames: u32,
    /// The number of frames with which a segment repeats the one before. They are no part of the video.
    pub(crate) repeated_frames: u32,
    pub(crate) shapes: Shapes,
}

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Width and height in pixels.
    pub(crate) size: (u32, u32),
    pub(crate) fps: u32,
    /// The number of frames to make, at least 1.
    pub(crate) frames: u64,
    /// The number of frames of the video that is extended; 0 for a new one.
    pub(crate) extended_frames: u64,
}

/// Plans the segments of a video. All but the last one are whole segments; the last one is the shortest that the model makes
/// and that reaches the video's end.
pub(crate) fn plan(wanted: &Wanted, model: &Model) -> VideoPlan {
    let mut segments = Vec::new();
    let mut missing = wanted.frames;
    let mut is_first = wanted.extended_frames == 0;
    while missing > 0 {
        let repeated = if is_first { 0 } else { model.repeated_frames };
        // A segment that gives nothing new would never end the video.
        let made_frames = model.segment_frames.max(repeated + 1);
        let segment = match u32::try_from(missing) {
            Ok(frames) if frames <= made_frames - repeated => PlannedSegment {
                made_frames: model.shapes.made_frames(repeated + frames),
                frames,
            },
            _ => PlannedSegment {
                made_frames,
                frames: made_frames - repeated,
            },
        };
        missing -= u64::from(segment.frames);
        segments.push(segment);
        is_first = false;
    }
    VideoPlan {
        made: model.shapes.made_size(wanted.size),
        shown: wanted.size,
        fps: wanted.fps,
        segments,
        extended_frames: wanted.extended_frames,
    }
}

/// Returns the frames of a video of so many frames of which its sheet has tiles, in order: each the middle one of an equal
/// part.
pub(crate) fn tile_frames(frames: u64) -> impl Iterator<Item = u64> {
    let tiles = frames.min(u64::from(MAX_TILES));
    (0..tiles).map(move |tile| (2 * tile + 1) * frames / (2 * tiles))
}

/// Returns the frame of a video of so many frames that its thumbnail shows.
pub(crate) fn thumbnail_frame(frames: u64) -> u64 {
    frames / 2
}

/// Returns the tiles of the frames of a video that come from the one that it extends, of which these are the tiles: for each
/// frame the nearest one of which there is a tile. `None` when there are not as many tiles as that video has.
pub(crate) fn nearest_tiles(tiles: &[u8], plan: &VideoPlan) -> Option<Bytes> {
    let (width, height) = tile_size(plan.shown.0, plan.shown.1);
    let tile_bytes = 3 * width as usize * height as usize;
    let known: Vec<u64> = tile_frames(plan.extended_frames).collect();
    if tiles.len() != known.len() * tile_bytes {
        return None;
    }
    let wanted = tile_frames(plan.frames()).filter(|frame| *frame < plan.extended_frames);
    let nearest = wanted.filter_map(|frame| {
        let places = known.iter().enumerate();
        let (place, _) = places.min_by_key(|(_, known)| known.abs_diff(frame))?;
        tiles.get(place * tile_bytes..(place + 1) * tile_bytes)
    });
    Some(nearest.collect::<Vec<_>>().concat().into())
}

/// Returns those of some frames of the video that lie in a segment which begins at `start`, as positions in it.
pub(crate) fn within(
    frames: impl Iterator<Item = u64>,
    start: u64,
    segment: PlannedSegment,
) -> impl Iterator<Item = u32> {
    let positions = frames.filter_map(move |frame| u32::try_from(frame.checked_sub(start)?).ok());
    positions.filter(move |position| *position < segment.frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LTX2: Shapes = Shapes {
        cell: 64,
        frame_step: 8,
        min_frames: 9,
    };

    fn model(segment_frames: u32, repeated_frames: u32, shapes: Shapes) -> Model {
        Model {
            segment_frames,
            repeated_frames,
            shapes,
        }
    }

    fn wanted(frames: u64, extended_frames: u64) -> Wanted {
        Wanted {
            size: (1280, 720),
            fps: 24,
            frames,
            extended_frames,
        }
    }

    /// The segments of a plan, as pairs of frames that are made and that are a part of the video.
    fn segments(plan: &VideoPlan) -> Vec<(u32, u32)> {
        let segments = plan.segments.iter();
        segments.map(|it| (it.made_frames, it.frames)).collect()
    }

    #[test]
    fn four_seconds_of_ltx2_are_one_segment() {
        let plan = plan(&wanted(96, 0), &model(121, 9, LTX2));
        assert_eq!(segments(&plan), [(97, 96)]);
        assert_eq!((plan.made, plan.shown), ((1280, 768), (1280, 720)));
    }

    #[test]
    fn later_segments_give_less_than_they_make() {
        let made = |frames| segments(&plan(&wanted(frames, 0), &model(121, 9, LTX2)));
        assert_eq!(made(1), [(9, 1)]);
        assert_eq!(made(121), [(121, 121)]);
        assert_eq!(made(122), [(121, 121), (17, 1)]);
        assert_eq!(made(129), [(121, 121), (17, 8)]);
        assert_eq!(made(130), [(121, 121), (25, 9)]);
        assert_eq!(made(345), [(121, 121), (121, 112), (121, 112)]);
    }

    #[test]
    fn an_extension_begins_with_a_segment_that_continues() {
        let plan = plan(&wanted(120, 96), &model(121, 9, LTX2));
        assert_eq!(segments(&plan), [(121, 112), (17, 8)]);
        assert_eq!((plan.own_frames(), plan.frames()), (120, 216));
    }

    #[test]
    fn frames_sum_up_to_what_is_wanted_for_every_model() {
        for (step, cell) in [(1, 2), (8, 32), (8, 64)] {
            let shapes = Shapes {
                cell,
                frame_step: step,
                min_frames: 1,
            };
            for whole in [1, 9, 17, 25, 121] {
                for repeated in [0, 1, 9, 17] {
                    for frames in 1..=1000 {
                        for extended in [0, 33] {
                            check(&wanted(frames, extended), &model(whole, repeated, shapes));
                        }
                    }
                }
            }
        }
    }

    fn check(wanted: &Wanted, model: &Model) {
        let plan = plan(wanted, model);
        assert_eq!(plan.own_frames(), wanted.frames, "{wanted:?} {model:?}");
        for (n, segment) in plan.segments.iter().enumerate() {
            let continues = n > 0 || wanted.extended_frames > 0;
            let repeated = u32::from(continues) * model.repeated_frames;
            let whole = model.segment_frames.max(repeated + 1);
            let given = segment.made_frames - repeated;
            let is_last = n + 1 == plan.segments.len();
            assert!(segment.frames >= 1 && segment.frames <= given);
            match is_last {
                true => assert!(given - segment.frames < model.shapes.frame_step),
                false => assert_eq!((segment.made_frames, segment.frames), (whole, given)),
            }
        }
    }

    #[test]
    fn an_extension_has_the_nearest_tiles_of_the_video_before() {
        let plan = plan(&wanted(100, 3), &model(121, 9, LTX2));
        let (width, height) = tile_size(1280, 720);
        let tile_bytes = (3 * width * height) as usize;
        // The video before has three frames, and a tile of each.
        let tiles: Vec<u8> = (1..=3).flat_map(|n| vec![n; tile_bytes]).collect();
        let nearest = nearest_tiles(&tiles, &plan).unwrap();
        assert_eq!(tile_frames(103).next(), Some(2));
        assert_eq!(nearest, vec![3; tile_bytes]);
        assert_eq!(nearest_tiles(&tiles[1..], &plan), None);
    }

    #[test]
    fn tiles_are_spread_evenly_and_lie_in_one_segment_each() {
        assert_eq!(tile_frames(1).collect::<Vec<_>>(), [0]);
        assert_eq!(tile_frames(3).collect::<Vec<_>>(), [0, 1, 2]);
        let tiles: Vec<u64> = tile_frames(100).collect();
        assert_eq!((tiles.len(), tiles[0], tiles[24]), (25, 2, 98));
        for frames in [1, 24, 25, 26, 96, 500, 14_400] {
            let plan = plan(&wanted(frames, 0), &model(121, 9, LTX2));
            let mut start = 0;
            let mut found = Vec::new();
            let mut thumbnails = 0;
            for segment in &plan.segments {
                let positions = within(tile_frames(frames), start, *segment);
                found.extend(positions.map(|position| start + u64::from(position)));
                let thumbnail = std::iter::once(thumbnail_frame(frames));
                thumbnails += within(thumbnail, start, *segment).count();
                start += u64::from(segment.frames);
            }
            assert_eq!(found, tile_frames(frames).collect::<Vec<_>>(), "{frames}");
            assert_eq!(thumbnails, 1, "{frames}");
        }
    }
}
