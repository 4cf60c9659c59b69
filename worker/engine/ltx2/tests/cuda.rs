//! On a GPU: our kernels against plain operators, and the parts against the reference's tensors. Each test returns where
//! there is none.

use std::sync::OnceLock;
use std::time::Instant;

use fastvideo_ltx2::device::{Attention, Compute, DeviceError, Download, Wanted};
use fastvideo_ltx2::kernels::CudaKernels;
use fastvideo_ltx2::ops::{Kernels, Padding, Rotation, Runs};
use fastvideo_ltx2::pixels::to_rgb8;
use fastvideo_ltx2::video_vae::Tiling;
use tch::{Device, Kind, Tensor};

use crate::reference::{Reference, relative_error};
use crate::transformer::Case;
use crate::video_vae::{check_rgb8, vae_on};

/// One rounding against several.
const BFLOAT16: f64 = 1e-2;
const FLOAT32: f64 = 1e-6;
/// A GPU sums in another order than the reference did.
const NETWORK_FLOAT32: f64 = 1e-5;

struct Cuda {
    compute: Compute,
    kernels: Kernels,
}

impl Cuda {
    /// None, and a line that says why, without a GPU.
    fn open() -> Option<&'static Self> {
        static CUDA: OnceLock<Option<Cuda>> = OnceLock::new();
        CUDA.get_or_init(|| match Compute::open(Wanted::Cuda(0)) {
            Ok(compute) => {
                let kernels = Kernels::on(&compute);
                Some(Cuda { compute, kernels })
            }
            Err(error) => {
                eprintln!("not tried on a GPU: {error}");
                None
            }
        })
        .as_ref()
    }

    fn own(&self) -> &CudaKernels {
        match &self.kernels {
            Kernels::Cuda(kernels) => kernels,
            Kernels::Plain => panic!("expected kernels where there is a GPU"),
        }
    }

    fn randn(&self, size: &[i64], kind: Kind) -> Tensor {
        Tensor::randn(size, (Kind::Float, self.compute.device)).to_kind(kind)
    }
}

fn tolerance(kind: Kind) -> f64 {
    match kind {
        Kind::BFloat16 => BFLOAT16,
        _ => FLOAT32,
    }
}

#[track_caller]
fn assert_near(what: &str, actual: &Tensor, expected: &Tensor, kind: Kind) {
    let error = relative_error(actual, expected);
    assert!(error <= tolerance(kind), "{what}, {kind:?}: {error:e}");
}

#[test]
fn a_machine_without_a_gpu_says_so_in_words() {
    match Compute::open(Wanted::Cuda(0)) {
        Ok(compute) => {
            let gpu = compute.gpu.as_ref().unwrap();
            eprintln!("{}: {:?}", gpu.name(), gpu.compute_capability());
            assert_eq!(compute.device, Device::Cuda(0));
        }
        Err(error) => {
            let words = error.to_string();
            assert!(words.contains("driver") || words.contains("GPU"), "{words}");
            let auto = Compute::open(Wanted::Auto).unwrap();
            assert_eq!(auto.device, Device::Cpu);
        }
    }
    let unknown = "tpu".parse::<Wanted>();
    assert!(matches!(unknown, Err(DeviceError::Name(name)) if name == "tpu"));
}

#[test]
fn modulated_norms_equal_plain_operators() {
    let Some(cuda) = Cuda::open() else { return };
    for kind in [Kind::BFloat16, Kind::Float] {
        for (batch, lengths, width) in [
            (1, vec![7], 4096),
            (1, vec![3, 6], 4096),
            (2, vec![1, 2, 30, 4], 2048),
            (1, vec![1, 1, 1], 256),
            (1, vec![5, 8], 96),
            (3, vec![17], 32),
        ] {
            let runs = Runs::new(lengths.clone());
            let x = cuda.randn(&[batch, runs.tokens(), width], kind);
            let y = cuda.randn(&[batch, runs.tokens(), width], kind);
            let rows = cuda.randn(&[3, batch, lengths.len() as i64, width], kind);
            let [scale, shift, gate] = [0, 1, 2].map(|row| rows.get(row));
            let what = format!("{batch} × {lengths:?} × {width}");

            let ours = cuda
                .own()
                .rms_norm_modulate(&x, 1e-6, &scale, &shift, &runs);
            let plain = Kernels::Plain.rms_norm_modulate(&x, 1e-6, &scale, &shift, &runs);
            assert_near(&what, &ours.unwrap(), &plain, kind);

            let (mut ours, mut plain) = (x.copy(), x.copy());
            cuda.own().add_gated(&mut ours, &y, &gate, &runs).unwrap();
            Kernels::Plain.add_gated(&mut plain, y, &gate, &runs);
            assert_near(&what, &ours, &plain, kind);
        }
    }
}

#[test]
fn rotated_norms_equal_plain_operators() {
    let Some(cuda) = Cuda::open() else { return };
    for kind in [Kind::BFloat16, Kind::Float] {
        for (batch, table_batch, tokens, heads, half) in [
            (1, 1, 77, 32, 64),
            (2, 1, 9, 32, 32),
            (2, 2, 5, 4, 8),
            (1, 1, 1, 3, 16),
        ] {
            let width = heads * 2 * half;
            let x = cuda.randn(&[batch, tokens, width], kind);
            let gain = cuda.randn(&[width], kind);
            let angles = cuda.randn(&[table_batch, heads, tokens, half], Kind::Float);
            let rotation = Rotation {
                cos: angles.cos(),
                sin: angles.sin(),
            };
            let ours = cuda.own().norm_rotate(&x, &gain, 1e-6, heads, &rotation);
            let ours = ours.unwrap().view([batch, tokens, heads, 2 * half]);
            let plain = Kernels::Plain.norm_rotate(x, &gain, 1e-6, heads, Some(&rotation));
            let what = format!("{batch} × {tokens} × {heads} × {half}");
            assert_near(&what, &ours.transpose(1, 2), &plain, kind);
        }
    }
}

#[test]
fn padded_norms_equal_plain_operators() {
    let Some(cuda) = Cuda::open() else { return };
    for kind in [Kind::BFloat16, Kind::Float] {
        for (channels, frames, rows, columns, before, after, reflect) in [
            (128, 3, 5, 7, 1, 1, true),
            (1024, 2, 3, 4, 1, 1, true),
            (512, 1, 2, 33, 2, 0, false),
            (16, 4, 3, 9, 0, 0, true),
        ] {
            let padding = Padding {
                before,
                after,
                border: 1,
                reflect,
            };
            let x = cuda.randn(&[2, channels, frames, rows, columns], kind);
            let what = format!("{channels} × {frames} × {rows} × {columns}");
            let ours = cuda.own().pixel_norm_silu_pad(&x, 1e-8, padding).unwrap();
            let plain = Kernels::Plain.pixel_norm_silu_pad(&x, 1e-8, padding);
            assert_near(&what, &ours, &plain, kind);
            let ours = cuda.own().pad(&x, padding).unwrap();
            assert!(ours.equal(&Kernels::Plain.pad(&x, padding)), "{what}");
        }
    }
}

#[test]
fn bytes_equal_plain_operators_and_reach_the_host() {
    let Some(cuda) = Cuda::open() else { return };
    let gpu = cuda.compute.gpu.as_ref().unwrap();
    let mut download = Download::new(gpu).unwrap();
    for (kind, columns) in [
        (Kind::BFloat16, 40),
        (Kind::Float, 12),
        (Kind::BFloat16, 20),
    ] {
        let sample = cuda.randn(&[1, 3, 5, 6, columns], kind);
        let ours = cuda.own().rgb8(&sample).unwrap();
        check_rgb8(&ours, &to_rgb8(&sample).to_device(Device::Cpu));
        let expected = Vec::<u8>::try_from(ours.flatten(0, 3)).unwrap();
        download.start(ours).unwrap();
        assert_eq!(download.wait().unwrap(), expected);
    }
}

#[test]
fn memory_is_counted() {
    let Some(cuda) = Cuda::open() else { return };
    let gpu = cuda.compute.gpu.as_ref().unwrap();
    let size = 64 << 20;
    let tensor = Tensor::zeros([size], (Kind::Uint8, cuda.compute.device));
    let memory = gpu.memory().unwrap();
    assert!(memory.allocated.now >= tensor.numel() as u64);
    assert!(memory.allocated.peak >= memory.allocated.now);
    assert!(memory.total > memory.free);
    gpu.reset_peak_memory().unwrap();
    gpu.empty_cache().unwrap();
    eprintln!("{memory:?}");
}

#[test]
fn attention_kernels_agree() {
    let Some(cuda) = Cuda::open() else { return };
    let gpu = cuda.compute.gpu.as_ref().unwrap();
    // One layer of the first stage at full size.
    let [q, k, v] = std::array::from_fn(|_| cuda.randn(&[1, 8160, 32, 128], Kind::BFloat16));
    let [q, k, v] = [q, k, v].map(|x| x.transpose(1, 2));
    let attend = || {
        let none = None::<&Tensor>;
        Tensor::scaled_dot_product_attention(&q, &k, &v, none, 0.0, false, None, false)
    };
    let expected = attend();
    for order in [&[][..], &[Attention::Flash], &[Attention::Cudnn]] {
        gpu.set_attention_order(order).unwrap();
        assert_near(&format!("{order:?}"), &attend(), &expected, Kind::BFloat16);
        cuda.compute.synchronize();
        let start = Instant::now();
        for _ in 0..10 {
            drop(attend());
        }
        cuda.compute.synchronize();
        let tflop = 10.0 * 4.0 * 8160.0 * 8160.0 * 4096.0 / 1e12;
        let rate = tflop / start.elapsed().as_secs_f64();
        eprintln!("attention, {order:?}: {rate:.0} TFLOP/s");
    }
    gpu.set_attention_order(&[]).unwrap();
}

/// Both choices, named.
fn choices(cuda: &Cuda) -> [(&'static str, Kernels); 2] {
    [("plain", Kernels::Plain), ("kernels", cuda.kernels.clone())]
}

#[test]
fn the_transformer_equals_the_reference_on_a_gpu() {
    let Some(cuda) = Cuda::open() else { return };
    for (choice, kernels) in choices(cuda) {
        for (kind, accepted) in [(Kind::Float, NETWORK_FLOAT32), (Kind::BFloat16, 1.5e-2)] {
            let case = Case::on(cuda.compute.device, kind, &kernels);
            for (name, velocities) in [("out", case.batch()), ("per_token.out", case.kept())] {
                let streams = [(&velocities.video, 0), (&velocities.audio, 1)];
                for (actual, stream) in streams {
                    let expected = case.golden.get(&format!("{name}.{stream}"));
                    let error = relative_error(actual, expected);
                    eprintln!("transformer, {choice}, {kind:?}, {name}.{stream}: {error:e}");
                    assert!(error < accepted, "{error:e}");
                }
            }
        }
    }
}

#[test]
fn the_video_decoder_equals_the_reference_on_a_gpu() {
    let Some(cuda) = Cuda::open() else { return };
    let golden = Reference::open().golden("video_vae");
    for (choice, kernels) in choices(cuda) {
        for (kind, accepted) in [(Kind::Float, NETWORK_FLOAT32), (Kind::BFloat16, 3e-2)] {
            let vae = vae_on(cuda.compute.device, kind, &kernels);
            let latents = golden.get("decode.latents").to_device(cuda.compute.device);
            let latents = vae.normalize(&latents);
            for tiling in [Tiling::Whole, Tiling::Grouped { frames: 3 }] {
                let sample = vae.decode(&latents, &tiling).unwrap();
                let error = relative_error(&sample, golden.get("decode.sample"));
                eprintln!("video decoder, {choice}, {kind:?}, {tiling:?}: {error:e}");
                assert!(error < accepted, "{error:e}");
                if kind == Kind::Float {
                    check_rgb8(&kernels.rgb8(&sample), golden.get("decode.rgb8"));
                }
            }
        }
    }
}
