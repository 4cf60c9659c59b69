//! The picture after decoding: its colours, its size, its quality.

use super::*;

/// Large areas of plain colours, so that neither compression nor the smaller chroma planes hide a wrong matrix.
const COLOURS: Content = Content {
    picture: |x, y, _| match (x / 16 + 3 * (y / 16)) % 8 {
        0 => [255, 0, 0],
        1 => [0, 255, 0],
        2 => [0, 0, 255],
        3 => [255, 255, 255],
        4 => [0, 0, 0],
        5 => [200, 120, 40],
        6 => [30, 90, 160],
        _ => [128, 128, 128],
    },
    ..MOVING
};

fn check_colours(width: u32, height: u32) {
    let mut params = params(width, height, 3);
    params.spec.crf = 10;
    let segment = encode(&params, 0, &[], &COLOURS);
    let shown = decode_pictures(&segment.bytes());
    let source = frame(&params, 0, &COLOURS);
    assert_eq!(shown.len(), 3 * source.len(), "{width}x{height}");
    for (index, (shown, source)) in shown
        .chunks_exact(3)
        .zip(source.chunks_exact(3).cycle())
        .enumerate()
    {
        let index = u32::try_from(index).unwrap();
        let x = index % width;
        let y = index / width % height;
        // Within a plain area, away from its edges.
        if (3..13).contains(&(x % 16))
            && (3..13).contains(&(y % 16))
            && x < width / 16 * 16
            && y < height / 16 * 16
        {
            let off = shown.iter().zip(source).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(
                off <= Some(8),
                "{width}x{height} at {x},{y}: {shown:?} for {source:?}"
            );
        }
    }
}

#[test]
fn colours_come_back_at_any_even_size() {
    for (width, height) in [(64, 64), (66, 70), (176, 130), (98, 222)] {
        check_colours(width, height);
    }
}

#[test]
fn largest_and_longest_sizes_encode() {
    for (width, height) in [(4096, 2176), (4096, 64), (64, 2176)] {
        let params = params(width, height, 2);
        let segment = encode(&params, 0, &[], &MOVING);
        let size = ffprobe(&segment.bytes(), "stream=width,height");
        assert_eq!(size[0], format!("{width},{height}"));
        assert_eq!(segment.samples(1).len(), 2);
    }
}

#[test]
fn stream_says_that_it_is_bt709_in_video_range() {
    let segment = encode(&params(64, 64, 1), 0, &[], &MOVING);
    let colours = "stream=color_range,color_space,color_transfer,color_primaries";
    assert_eq!(
        ffprobe(&segment.bytes(), colours)[0],
        "tv,bt709,bt709,bt709"
    );
}

#[test]
fn lower_crf_gives_a_better_picture() {
    let size = |crf| {
        let mut params = params(128, 128, 4);
        params.spec.crf = crf;
        encode(&params, 0, &[], &MOVING).bytes().len()
    };
    assert!(size(15) > size(40));
}
