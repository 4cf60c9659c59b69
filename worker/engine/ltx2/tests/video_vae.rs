//! Video autoencoder, upsampler and pixels against the reference.

use fastvideo_ltx2::ops::Kernels;
use fastvideo_ltx2::pixels::{from_rgb8, to_rgb8};
use fastvideo_ltx2::video_vae::{Config, Tile, Tiling, TilingError, VideoVae};
use tch::{Device, Kind, Tensor};

use crate::reference::{Golden, Reference, check};

const TOLERANCE: f64 = 2e-6;

fn vae() -> VideoVae {
    vae_on(Device::Cpu, Kind::Float, &Kernels::Plain)
}

pub(crate) fn vae_on(device: Device, kind: Kind, kernels: &Kernels) -> VideoVae {
    let reference = Reference::open();
    let config = Config::library(&reference.config("vae")).unwrap();
    let store = reference.store_on("vae", kind, device);
    let vae = VideoVae::new(&config, &store.root(), kernels);
    store.finish().unwrap();
    vae
}

fn golden() -> Golden {
    Reference::open().golden("video_vae")
}

/// rgb8 may differ by one where a value lies between two, in fewer than one of a thousand values.
#[track_caller]
pub(crate) fn check_rgb8(actual: &Tensor, expected: &Tensor) {
    assert_eq!(actual.size(), expected.size());
    let actual = actual.to_device(Device::Cpu);
    let apart = (actual.to_kind(Kind::Int) - expected.to_kind(Kind::Int)).abs();
    assert!(apart.max().int64_value(&[]) <= 1);
    let differing = apart.ne(0).to_kind(Kind::Double).mean(Kind::Double);
    assert!(differing.double_value(&[]) < 1e-3);
}

#[test]
fn frames_are_cropped_to_the_middle_and_scaled() {
    // Thirds in red, green and blue.
    let column = Tensor::eye(3, (Kind::Uint8, Device::Cpu)) * 255;
    let wide = column
        .repeat_interleave_self_int(8, 0, None)
        .view([1, 1, 24, 3]);
    let check = |frames: &Tensor| {
        let pixels = from_rgb8(frames, 16, 16);
        assert_eq!(pixels.size(), [1, 3, 1, 16, 16]);
        let green = Tensor::from_slice(&[-1_f32, 1.0, -1.0]).view([1, 3, 1, 1, 1]);
        assert!((pixels - green).abs().max().double_value(&[]) < 1e-6);
    };
    check(&wide.expand([1, 8, 24, 3], false));
    check(&wide.transpose(1, 2).expand([1, 24, 8, 3], false));
    // Scaled before they are cropped, these would have 16 million pixels.
    let green = Tensor::from_slice(&[0_u8, 255, 0]);
    check(&green.expand([1, 64_000, 1, 3], false));
    check(&green.expand([1, 1, 64_000, 3], false));
}

#[test]
fn encodes_like_the_reference() {
    let (vae, golden) = (vae(), golden());
    let frames = golden.get("encode.rgb8");
    let [_, height, width, _] = frames.size()[..] else {
        panic!()
    };
    let pixels = from_rgb8(frames, height, width);
    let latents = vae.encode(&pixels);
    check(
        "normalized",
        &latents,
        golden.get("encode.latents_normalized"),
        TOLERANCE,
    );
    check(
        "latents",
        &vae.unnormalize(&latents),
        golden.get("encode.latents"),
        TOLERANCE,
    );
    let single = vae.unnormalize(&vae.encode(&pixels.narrow(2, 0, 1)));
    check(
        "single frame",
        &single,
        golden.get("encode.single_frame"),
        TOLERANCE,
    );
}

#[test]
fn decodes_like_the_reference() {
    let (vae, golden) = (vae(), golden());
    let latents = vae.normalize(golden.get("decode.latents"));
    let sample = vae.decode(&latents, &Tiling::Whole).unwrap();
    check("sample", &sample, golden.get("decode.sample"), TOLERANCE);
    check_rgb8(&to_rgb8(&sample), golden.get("decode.rgb8"));
}

/// As far from the reference as bfloat16 rounds, in a network without norms at its end.
#[test]
fn decodes_in_bfloat16_nearly_like_the_reference() {
    let reference = Reference::open();
    let config = Config::library(&reference.config("vae")).unwrap();
    let store = reference.store("vae", Kind::BFloat16);
    let vae = VideoVae::new(&config, &store.root(), &Kernels::Plain);
    let golden = golden();
    let latents = vae.normalize(golden.get("decode.latents"));
    let sample = vae.decode(&latents, &Tiling::Whole).unwrap();
    assert_eq!(sample.kind(), Kind::BFloat16);
    check("sample", &sample, golden.get("decode.sample"), 3e-2);
    let grouped = vae
        .decode(&latents, &Tiling::Grouped { frames: 3 })
        .unwrap();
    check("in groups", &grouped, golden.get("decode.sample"), 3e-2);
}

#[test]
fn decodes_in_groups_exactly_like_the_whole() {
    let (vae, golden) = (vae(), golden());
    let latents = vae.normalize(golden.get("decode.latents"));
    let whole = golden.get("decode.sample");
    for frames in [1, 2, 3, 5, 100] {
        let sample = vae.decode(&latents, &Tiling::Grouped { frames }).unwrap();
        check(&format!("groups of {frames}"), &sample, whole, TOLERANCE);
    }
}

#[test]
fn decodes_in_the_librarys_tiles_like_the_reference() {
    let (vae, golden) = (vae(), golden());
    let latents = vae.normalize(golden.get("tiled.latents"));
    let even_frames = |sample: Tensor| sample.slice(2, 0, None, 2);
    let tile = Tile {
        size: 96,
        overlap: 32,
    };
    let space = Some([tile, tile]);
    let sample = vae
        .decode(&latents, &Tiling::Library { space, time: None })
        .unwrap();
    check(
        "spatial",
        &even_frames(sample),
        golden.get("tiled.spatial.even_frames"),
        TOLERANCE,
    );
    let time = Some(Tile {
        size: 16,
        overlap: 8,
    });
    let sample = vae
        .decode(&latents, &Tiling::Library { space, time })
        .unwrap();
    let expected = golden.get("tiled.spatial_temporal.even_frames");
    check(
        "spatial and temporal",
        &even_frames(sample),
        expected,
        TOLERANCE,
    );
}

/// FastVideo's tiles, summed and divided as its code says, one after the other.
fn weighted_by_hand(vae: &VideoVae, latents: &Tensor, [time, space]: [[i64; 2]; 2]) -> Tensor {
    let [_, _, f, h, w] = latents.size()[..] else {
        panic!()
    };
    let (mut sum, mut weights) = (Tensor::new(), Tensor::new());
    let spans = |[size, overlap]: [i64; 2], length: i64| {
        let starts = (0..)
            .map(move |i| i * (size - overlap))
            .take_while(move |s| *s == 0 || *s + overlap < length);
        starts
            .map(|start| (start, (start + size).min(length)))
            .collect::<Vec<_>>()
    };
    // Rises by 1 / steps a place from `first` / steps on, where another tile comes before; falls likewise.
    let ramp = |length: i64, steps: i64, rises_from: Option<i64>, falls: bool| {
        let place = Tensor::arange(length, (Kind::Float, latents.device()));
        let mut ramp = Tensor::ones_like(&place);
        if let Some(first) = rises_from {
            ramp *= ((&place + first) / steps).clamp_max(1);
        }
        if falls {
            ramp *= ((-&place + length) / steps).clamp_max(1);
        }
        ramp
    };
    let (temporal, spatial) = (vae.config().temporal_ratio(), vae.config().spatial_ratio());
    let (time_steps, space_steps) = (temporal * time[1] + 1, spatial * space[1] + 1);
    for (i, &(t0, t1)) in spans(time, f).iter().enumerate() {
        for &(y0, y1) in &spans(space, h) {
            for &(x0, x1) in &spans(space, w) {
                let t = if i > 0 { t0 - 1 } else { 0 };
                let tile =
                    latents
                        .narrow(2, t, t1 - t)
                        .narrow(3, y0, y1 - y0)
                        .narrow(4, x0, x1 - x0);
                let tile = vae.decode(&tile, &Tiling::Whole).unwrap();
                let [_, c, tf, th, tw] = tile.size()[..] else {
                    panic!()
                };
                if sum.numel() == 0 {
                    let options = (Kind::Float, latents.device());
                    sum = Tensor::zeros(
                        [1, c, temporal * (f - 1) + 1, spatial * h, spatial * w],
                        options,
                    );
                    weights = sum.zeros_like();
                }
                let in_time = ramp(tf, time_steps, (i > 0).then_some(0), t1 < f);
                let in_rows = ramp(th, space_steps, (y0 > 0).then_some(1), y1 < h);
                let in_columns = ramp(tw, space_steps, (x0 > 0).then_some(1), x1 < w);
                let weight = in_time.view([1, 1, -1, 1, 1])
                    * in_rows.view([1, 1, 1, -1, 1])
                    * in_columns.view([1, 1, 1, 1, -1]);
                let place = |x: &Tensor| {
                    x.narrow(2, temporal * t, tf)
                        .narrow(3, spatial * y0, th)
                        .narrow(4, spatial * x0, tw)
                };
                let _ = place(&sum).g_add_(&(tile * &weight));
                let _ = place(&weights).g_add_(&weight.expand_as(&place(&weights)));
            }
        }
    }
    sum / weights
}

#[test]
fn decodes_in_weighted_tiles() {
    let (vae, golden) = (vae(), golden());
    let latents = vae.normalize(&Tensor::cat(
        &[golden.get("tiled.latents"), golden.get("tiled.latents")],
        2,
    ));
    let tile = Tile {
        size: 96,
        overlap: 32,
    };
    let tiling = Tiling::Weighted {
        space: Some([tile, tile]),
        time: Some(Tile {
            size: 24,
            overlap: 8,
        }),
    };
    let sample = vae.decode(&latents, &tiling).unwrap();
    check(
        "weighted",
        &sample,
        &weighted_by_hand(&vae, &latents, [[3, 1], [3, 1]]),
        TOLERANCE,
    );
}

#[test]
fn streamed_frames_are_those_of_the_same_tiles_at_once() {
    let (vae, golden) = (vae(), golden());
    let latents = vae.normalize(&Tensor::cat(
        &[golden.get("tiled.latents"), golden.get("tiled.latents")],
        2,
    ));
    let time = Some(Tile {
        size: 24,
        overlap: 8,
    });
    let tilings = [
        Tiling::Whole,
        Tiling::Grouped { frames: 3 },
        Tiling::Library { space: None, time },
        Tiling::Weighted { space: None, time },
    ];
    for tiling in tilings {
        let mut pieces = Vec::new();
        let result: Result<(), TilingError> =
            vae.decode_streaming(&latents, &tiling, &mut |frames| {
                pieces.push(frames.shallow_clone());
                Ok(())
            });
        result.unwrap();
        assert_eq!(pieces.len() > 1, tiling != Tiling::Whole, "{tiling:?}");
        let at_once = to_rgb8(&vae.decode(&latents, &tiling).unwrap());
        assert!(Tensor::cat(&pieces, 0) == at_once, "{tiling:?}");
    }
}

#[test]
fn a_refused_frame_ends_the_decoding() {
    #[derive(Debug)]
    enum Refused {
        Frames,
        Tiling,
    }
    impl From<TilingError> for Refused {
        fn from(_: TilingError) -> Self {
            Self::Tiling
        }
    }
    let (vae, golden) = (vae(), golden());
    let latents = vae.normalize(golden.get("decode.latents"));
    let mut calls = 0;
    let result = vae.decode_streaming(&latents, &Tiling::Grouped { frames: 2 }, &mut |_| {
        calls += 1;
        Err(Refused::Frames)
    });
    assert!(matches!(result, Err(Refused::Frames)));
    assert_eq!(calls, 1);
}

#[test]
fn tiles_that_leave_a_single_cell_are_avoided_or_refused() {
    let (vae, golden) = (vae(), golden());
    let latents = vae.normalize(golden.get("tiled.latents"));
    // 5 cells in tiles of 3 that share 1: the library would decode cell 4 alone.
    let wide = Tensor::cat(&[&latents, &latents.narrow(4, 0, 1)], 4);
    let tile = Tile {
        size: 96,
        overlap: 32,
    };
    let space = Some([tile, tile]);
    let sample = vae
        .decode(&wide, &Tiling::Library { space, time: None })
        .unwrap();
    assert_eq!(sample.size()[4], 5 * 32);
    assert!(
        vae.decode(&wide, &Tiling::Weighted { space, time: None })
            .is_ok()
    );
    let apart = Tile {
        size: 96,
        overlap: 0,
    };
    let error = vae
        .decode(
            &wide,
            &Tiling::Weighted {
                space: Some([tile, apart]),
                time: None,
            },
        )
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("columns: expected tiles and overlaps"),
        "{error}"
    );
    let error = vae
        .decode(&latents.narrow(3, 0, 1), &Tiling::Whole)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("rows: expected at least two cells, given 1"),
        "{error}"
    );
}
