//! On a GPU: what comes with it, and the parts against the reference's tensors. Each test returns where there is none.
//! `kernels` compares our kernels with plain operators.

use std::sync::OnceLock;
use std::time::Instant;

use fastvideo_ltx2::activations::{Activations, Form};
use fastvideo_ltx2::device::{Attention, Compute, DeviceError, Download, Wanted};
use fastvideo_ltx2::float8::Products;
use fastvideo_ltx2::ops::{Kernels, Runs};
use fastvideo_ltx2::video_vae::Tiling;
use tch::{Device, Kind, Tensor};

use crate::kernels::assert_near;
use crate::reference::{Reference, relative_error};
use crate::transformer::Case;
use crate::video_vae::{check_rgb8, vae_on};

/// A GPU sums in another order than the reference did.
const NETWORK_FLOAT32: f64 = 1e-5;

pub(crate) struct Cuda {
    pub(crate) compute: Compute,
    pub(crate) kernels: Kernels,
}

impl Cuda {
    /// None, and a line that says why, without a GPU.
    pub(crate) fn open() -> Option<&'static Self> {
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

    fn randn(&self, size: &[i64], kind: Kind) -> Tensor {
        Tensor::randn(size, (Kind::Float, self.compute.device)).to_kind(kind)
    }
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
fn bytes_reach_the_host() {
    let Some(cuda) = Cuda::open() else { return };
    let gpu = cuda.compute.gpu.as_ref().unwrap();
    let mut download = Download::new(gpu).unwrap();
    for columns in [40, 12, 20] {
        let frames = cuda
            .kernels
            .rgb8(&cuda.randn(&[1, 3, 5, 6, columns], Kind::Float));
        let expected = Vec::<u8>::try_from(frames.flatten(0, 3)).unwrap();
        download.start(frames).unwrap();
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

/// Prints what inputs of layers cost in 8-bit floats, with each choice of kernels: the tokens of the second stage at full size,
/// the hidden values of the first.
#[test]
fn inputs_in_8_bit_floats_are_timed() {
    let Some(cuda) = Cuda::open() else { return };
    let Ok(products) = Products::probe(cuda.compute.device) else {
        return eprintln!("no products in 8-bit floats on this GPU");
    };
    let form = Form {
        dense: false,
        float8: Some(products),
    };
    let x = cuda.randn(&[1, 32640, 4096], Kind::BFloat16);
    let [scale, shift] = [(); 2].map(|()| cuda.randn(&[1, 2, 4096], Kind::BFloat16));
    let runs = Runs::new(vec![4080, 28560]);
    let attended = x.view([1, 32640, 32, 128]);
    let gates = cuda.randn(&[1, 32640, 32], Kind::BFloat16);
    let hidden = cuda.randn(&[1, 8160, 16384], Kind::BFloat16);
    for (choice, kernels) in choices(cuda) {
        let time = |what: &str, run: &dyn Fn() -> Activations| {
            drop(run());
            cuda.compute.synchronize();
            let start = Instant::now();
            for _ in 0..10 {
                drop(run());
            }
            cuda.compute.synchronize();
            let milliseconds = start.elapsed().as_secs_f64() * 100.0;
            eprintln!("{what} in 8-bit floats, {choice}: {milliseconds:.3} ms");
        };
        time("norm and modulate", &|| {
            kernels.modulated(&x, 1e-6, &scale, &shift, &runs, form)
        });
        // Operators gate and apply GELU in place, so the values grow or shrink: they cost the same.
        time("gate", &|| {
            kernels.gate(attended.shallow_clone(), Some(&gates), form)
        });
        time("attention's result", &|| {
            kernels.input(x.shallow_clone(), form)
        });
        time("GELU", &|| kernels.gelu(hidden.shallow_clone(), form));
    }
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
