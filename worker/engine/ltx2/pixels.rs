//! Converts between rgb8 frames and the pixels that the video VAE works with.

use tch::{Kind, Tensor};

use crate::nn::sizes;

/// The number of frames that are converted at once: a clip in float32 is several GiB at full size.
const FRAMES_AT_ONCE: i64 = 8;

/// Converts a sample `[1, 3, F, H, W]`, in −1…1 and slightly beyond, to rgb8 frames `[F, H, W, 3]`; values are
/// truncated, as in the reference.
pub fn to_rgb8(sample: &Tensor) -> Tensor {
    let [_, colours, frames, height, width] = sizes(sample);
    let rgb8 = Tensor::empty(
        [frames, height, width, colours],
        (Kind::Uint8, sample.device()),
    );
    let mut start = 0;
    while start < frames {
        let taken = FRAMES_AT_ONCE.min(frames - start);
        let pixels = sample
            .narrow(2, start, taken)
            .squeeze_dim(0)
            .to_kind(Kind::Float);
        let values = (pixels / 2 + 0.5).clamp(0, 1) * 255; // c f h w
        rgb8.narrow(0, start, taken)
            .copy_(&values.permute([1, 2, 3, 0]));
        start += taken;
    }
    rgb8
}

/// Converts rgb8 frames `[F, h, w, 3]` to pixels `[1, 3, F, height, width]` in −1…1, float32. The middle of the frames, in
/// the proportions of that size, is scaled to it, without smoothing.
///
/// Cropping comes first, so that the cost is that of the result, whatever the shape of the frames.
pub fn from_rgb8(frames: &Tensor, height: i64, width: i64) -> Tensor {
    let [_, rows, columns, _] = sizes(frames);
    let [kept_rows, kept_columns] = middle([rows, columns], [height, width]);
    let (top, left) = ((rows - kept_rows) / 2, (columns - kept_columns) / 2);
    let kept = frames
        .narrow(1, top, kept_rows)
        .narrow(2, left, kept_columns);
    let pixels = kept.to_kind(Kind::Float).permute([0, 3, 1, 2]); // f c h w
    let pixels = if [kept_rows, kept_columns] == [height, width] {
        pixels
    } else {
        pixels.upsample_bilinear2d([height, width], false, None, None)
    };
    pixels.permute([1, 0, 2, 3]).unsqueeze(0) / 127.5 - 1.0
}

/// Returns the largest size within `[rows, columns]` that has the proportions of `wanted`, in whole pixels.
fn middle([rows, columns]: [i64; 2], [height, width]: [i64; 2]) -> [i64; 2] {
    if columns * height > rows * width {
        let kept = (rows * width + height / 2) / height;
        [rows, kept.clamp(1, columns)]
    } else {
        let kept = (columns * height + width / 2) / width;
        [kept.clamp(1, rows), columns]
    }
}
