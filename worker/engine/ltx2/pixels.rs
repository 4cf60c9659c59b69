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

/// Converts rgb8 frames `[F, h, w, 3]` to pixels `[1, 3, F, height, width]` in −1…1, float32. The frames are scaled to
/// cover that size, without smoothing, and cropped to its middle.
pub fn from_rgb8(frames: &Tensor, height: i64, width: i64) -> Tensor {
    let [_, rows, columns, _] = sizes(frames);
    let pixels = frames.to_kind(Kind::Float).permute([0, 3, 1, 2]); // f c h w
    let [new_rows, new_columns] = covering([rows, columns], [height, width]);
    let pixels = if [new_rows, new_columns] == [rows, columns] {
        pixels
    } else {
        pixels.upsample_bilinear2d([new_rows, new_columns], false, None, None)
    };
    let (top, left) = ((new_rows - height) / 2, (new_columns - width) / 2);
    let pixels = pixels.narrow(2, top, height).narrow(3, left, width);
    pixels.permute([1, 0, 2, 3]).unsqueeze(0) / 127.5 - 1.0
}

/// Returns the smallest size of the same proportions that covers `wanted`, in whole pixels.
fn covering([rows, columns]: [i64; 2], [height, width]: [i64; 2]) -> [i64; 2] {
    // The larger one of height / rows and width / columns is the scale.
    if height * columns >= width * rows {
        [height, (columns * height + rows - 1) / rows]
    } else {
        [(rows * width + columns - 1) / columns, width]
    }
}
