//! The package's kernels against plain operators: on the CPU, for which a C++ compiler compiles the same sources, and on a
//! GPU where there is one.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use fastvideo_ltx2::activations::{Form, flat};
use fastvideo_ltx2::checkpoint::Checkpoint;
use fastvideo_ltx2::float8::{Products, Rows};
use fastvideo_ltx2::kernels::CudaKernels;
use fastvideo_ltx2::load::{self, Matrices};
use fastvideo_ltx2::nn::Precision;
use fastvideo_ltx2::ops::{GridAxis, Kernels, Padding, PositionTable, Rotation, Runs};
use fastvideo_ltx2::pixels::to_rgb8;
use fastvideo_ltx2::transformer::RotaryTables;
use tch::{Device, Kind, Tensor};

use crate::cuda::Cuda;
use crate::reference::{Reference, relative_error};
use crate::transformer::Case;
use crate::video_vae::check_rgb8;

/// One rounding against several.
const BFLOAT16: f64 = 1e-2;
const FLOAT32: f64 = 1e-6;
/// Kernels sum in another order than the reference did.
const NETWORK_FLOAT32: f64 = 1e-5;

/// Kernels, and where they run.
struct Machine {
    device: Device,
    kernels: Kernels,
}

impl Machine {
    fn all() -> Vec<Self> {
        let host = Self {
            device: Device::Cpu,
            kernels: Kernels::Cuda(on_host()),
        };
        let gpu = Cuda::open().map(|cuda| Self {
            device: cuda.compute.device,
            kernels: cuda.kernels.clone(),
        });
        [Some(host), gpu].into_iter().flatten().collect()
    }

    fn own(&self) -> &CudaKernels {
        match &self.kernels {
            Kernels::Cuda(kernels) => kernels,
            Kernels::Plain => panic!("expected kernels where there is a GPU"),
        }
    }

    fn randn(&self, size: &[i64], kind: Kind) -> Tensor {
        Tensor::randn(size, (Kind::Float, self.device)).to_kind(kind)
    }
}

/// Compiles the kernels for the CPU. Accesses that are not aligned, indices outside of an array and overflows end the
/// process.
#[expect(
    clippy::disallowed_methods,
    reason = "a test waits for the compiler that it starts"
)]
fn on_host() -> Arc<CudaKernels> {
    static KERNELS: OnceLock<Arc<CudaKernels>> = OnceLock::new();
    let compiled = KERNELS.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/kernels.cpp");
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("kernels.so");
        let status = Command::new("g++")
            .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall"])
            .args(["-Wno-unknown-pragmas", "-Wno-sign-compare"])
            .arg("-fsanitize=alignment,bounds,shift,signed-integer-overflow")
            .arg("-fsanitize-undefined-trap-on-error")
            .arg(source)
            .arg("-o")
            .arg(&library)
            .status();
        assert!(status.unwrap().success());
        Arc::new(CudaKernels::on_host(&library).unwrap())
    });
    compiled.clone()
}

fn tolerance(kind: Kind) -> f64 {
    match kind {
        Kind::BFloat16 => BFLOAT16,
        _ => FLOAT32,
    }
}

#[track_caller]
pub(crate) fn assert_near(what: &str, actual: &Tensor, expected: &Tensor, kind: Kind) {
    let error = relative_error(actual, expected);
    assert!(error <= tolerance(kind), "{what}, {kind:?}: {error:e}");
}

/// Each machine with each type that kernels take.
fn all_machines() -> impl Iterator<Item = (Machine, Kind)> {
    let kinds = [Kind::BFloat16, Kind::Float];
    kinds.into_iter().flat_map(|kind| {
        Machine::all()
            .into_iter()
            .map(move |machine| (machine, kind))
    })
}

#[test]
fn modulated_norms_equal_plain_operators() {
    for (machine, kind) in all_machines() {
        for (batch, lengths, width) in [
            (1, vec![7], 4096),
            (1, vec![3, 6], 4096),
            (2, vec![1, 2, 30, 4], 2048),
            (1, vec![1, 1, 1], 256),
            (1, vec![5, 8], 96),
            (3, vec![17], 32),
        ] {
            let runs = Runs::new(lengths.clone());
            let x = machine.randn(&[batch, runs.tokens(), width], kind);
            let y = machine.randn(&[batch, runs.tokens(), width], kind);
            let rows = machine.randn(&[3, batch, lengths.len() as i64, width], kind);
            let [scale, shift, gate] = [0, 1, 2].map(|row| rows.get(row));
            let what = format!("{batch} × {lengths:?} × {width}");

            let ours = machine
                .own()
                .rms_norm_modulate(&x, 1e-6, &scale, &shift, &runs);
            let plain = Kernels::Plain.rms_norm_modulate(&x, 1e-6, &scale, &shift, &runs);
            assert_near(&what, &ours.unwrap(), &plain, kind);

            let (mut ours, mut plain) = (x.copy(), x.copy());
            machine
                .own()
                .add_gated(&mut ours, &y, &gate, &runs)
                .unwrap();
            Kernels::Plain.add_gated(&mut plain, y, &gate, &runs);
            assert_near(&what, &ours, &plain, kind);
        }
    }
}

#[test]
fn rotated_norms_equal_plain_operators() {
    for (machine, kind) in all_machines() {
        for (batch, sizes, heads, half) in [
            (1, vec![3, 5, 4], 32, 64),
            (2, vec![3, 2, 1], 32, 32),
            (2, vec![5], 4, 8),
            (1, vec![2, 3], 3, 24),
            (1, vec![1], 1, 8),
        ] {
            let (width, count) = (heads * 2 * half, sizes.len() as i64);
            let axes: Vec<GridAxis> = (1..=sizes.len())
                .map(|after| GridAxis {
                    size: sizes[after - 1],
                    stride: sizes[after..].iter().product(),
                })
                .collect();
            let tokens: i64 = sizes.iter().product();
            let frequencies = width / 2 / count;
            let rotation = Rotation::OfPositions(PositionTable {
                values: machine.randn(&[sizes.iter().sum(), frequencies, 2], Kind::Float),
                axes,
                tokens,
                still: width / 2 - frequencies * count,
            });
            let x = machine.randn(&[batch, tokens, width], kind);
            let gain = machine.randn(&[width], kind);
            let Rotation::OfPositions(table) = &rotation else {
                unreachable!()
            };
            let ours = machine.own().norm_rotate(&x, &gain, 1e-6, heads, table);
            let ours = ours.unwrap().view([batch, tokens, heads, 2 * half]);
            let plain = Kernels::Plain.norm_rotate(x, &gain, 1e-6, heads, Some(&rotation));
            let what = format!("{batch} × {sizes:?} × {heads} × {half}");
            assert_near(&what, &ours.transpose(1, 2), &plain, kind);
        }
    }
}

#[test]
fn tables_of_positions_are_those_of_tokens() {
    for reference in [Reference::open(), Reference::v2_3()] {
        let case = Case::of(&reference, Device::Cpu, Kind::Float, &Kernels::Plain);
        let config = &case.config;
        for machine in Machine::all() {
            let [plain, ours] = [&Kernels::Plain, &machine.kernels]
                .map(|kernels| RotaryTables::new(config, &case.geometry, machine.device, kernels));
            for (plain, ours, heads) in [
                (&plain.video, &ours.video, config.num_attention_heads),
                (&plain.audio, &ours.audio, config.audio_num_attention_heads),
                (
                    &plain.cross_video,
                    &ours.cross_video,
                    config.audio_num_attention_heads,
                ),
                (
                    &plain.cross_audio,
                    &ours.cross_audio,
                    config.audio_num_attention_heads,
                ),
            ] {
                assert!(matches!(ours, Rotation::OfPositions(_)));
                let (plain, ours) = (plain.of_tokens(heads), ours.of_tokens(heads));
                for (plain, ours) in plain.iter().zip(&ours) {
                    assert!(plain.equal(ours), "{:?}", machine.device);
                }
            }
        }
    }
}

#[test]
fn padded_norms_equal_plain_operators() {
    for (machine, kind) in all_machines() {
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
            let x = machine.randn(&[2, channels, frames, rows, columns], kind);
            let what = format!("{channels} × {frames} × {rows} × {columns}");
            let ours = machine
                .own()
                .pixel_norm_silu_pad(&x, 1e-8, padding)
                .unwrap();
            let plain = Kernels::Plain.pixel_norm_silu_pad(&x, 1e-8, padding);
            assert_near(&what, &ours, &plain, kind);
            let ours = machine.own().pad(&x, padding).unwrap();
            assert!(ours.equal(&Kernels::Plain.pad(&x, padding)), "{what}");
        }
    }
}

#[test]
fn bytes_equal_plain_operators() {
    for machine in Machine::all() {
        for (kind, columns) in [
            (Kind::BFloat16, 40),
            (Kind::Float, 12),
            (Kind::BFloat16, 20),
        ] {
            let sample = machine.randn(&[1, 3, 5, 6, columns], kind);
            let ours = machine.own().rgb8(&sample).unwrap();
            check_rgb8(&ours, &to_rgb8(&sample).to_device(Device::Cpu));
        }
    }
}

const FLOAT8: Form = Form {
    dense: false,
    float8: Some(Products::Wide),
};

/// The same rows, bit for bit.
#[track_caller]
fn assert_same(what: &str, actual: &Rows, expected: &Rows) {
    let bits = |rows: &Rows| rows.values.view_dtype(Kind::Uint8);
    assert!(actual.scales == expected.scales, "{what}: scales");
    assert!(bits(actual) == bits(expected), "{what}: values");
}

#[test]
fn modulated_norms_in_8_bit_floats_are_those_of_the_other_kernel() {
    for machine in Machine::all() {
        for (batch, lengths, width) in [(1, vec![3, 6], 4096), (2, vec![5], 96), (1, vec![9], 32)] {
            let runs = Runs::new(lengths.clone());
            let x = machine.randn(&[batch, runs.tokens(), width], Kind::BFloat16);
            let rows = machine.randn(&[2, 1, lengths.len() as i64, width], Kind::BFloat16);
            let [scale, shift] = [0, 1].map(|row| rows.get(row));
            let own = machine.own();
            let dense = own.rms_norm_modulate(&x, 1e-6, &scale, &shift, &runs);
            let dense = dense.unwrap();
            let expected = Rows::quantize(&flat(&dense));
            let what = format!("{batch} × {lengths:?} × {width}");
            for form in [FLOAT8, FLOAT8.and(Form::DENSE)] {
                let input = own.modulated(&x, 1e-6, &scale, &shift, &runs, form);
                let input = input.unwrap();
                assert_same(&what, &input.rows(Products::Wide), &expected);
                assert!(!form.dense || input.dense().equal(&dense), "{what}");
            }
            let none = own.modulated(&x, 1e-6, &scale, &shift, &runs, Form::DENSE);
            assert!(none.is_none());
        }
    }
}

#[test]
fn gated_results_in_8_bit_floats_equal_plain_operators() {
    for machine in Machine::all() {
        for (batch, tokens, heads, width) in [(1, 9, 32, 128), (2, 5, 4, 16), (1, 3, 2, 8)] {
            // As attention returns it: heads come first.
            let size = [batch, heads, tokens, width];
            let x = machine.randn(&size, Kind::BFloat16).transpose(1, 2);
            let gates = machine.randn(&[batch, tokens, heads], Kind::BFloat16);
            for gates in [None, Some(&gates)] {
                let form = FLOAT8.and(Form::DENSE);
                let ours = machine.own().gate(&x, gates, form).unwrap();
                let plain = Kernels::Plain.gate(x.copy(), gates, form);
                let what = format!("{size:?}, gates: {}", gates.is_some());
                let [actual, expected] = [&ours, &plain].map(|input| input.rows(Products::Wide));
                assert_same(&what, &actual, &expected);
                assert!(ours.dense().equal(plain.dense()), "{what}");
            }
        }
    }
}

#[test]
fn gelu_in_8_bit_floats_equals_plain_operators() {
    for machine in Machine::all() {
        for (tokens, width) in [(3, 16384), (7, 256), (2, 8)] {
            let x = machine.randn(&[1, tokens, width], Kind::BFloat16) * 3.0;
            let form = FLOAT8.and(Form::DENSE);
            let ours = machine.own().gelu(&x, form).unwrap();
            let plain = Kernels::Plain.gelu(x.copy(), form);
            let what = format!("{tokens} × {width}");
            assert_near(&what, ours.dense(), plain.dense(), Kind::BFloat16);
            assert_same(
                &what,
                &ours.rows(Products::Wide),
                &Rows::quantize(&flat(ours.dense())),
            );
            // The last bit of tanh, rounded to bfloat16, seldom shows.
            let other = ours.dense().not_equal_tensor(plain.dense());
            let other = other
                .to_kind(Kind::Float)
                .mean(Kind::Float)
                .double_value(&[]);
            assert!(other < 1e-2, "{what}: {other}");
        }
    }
}

#[test]
fn unusual_rows_are_quantized_like_plain_operators() {
    for machine in Machine::all() {
        let rows = [0.0, -0.0, 1e-30, 1e-13, 1.0, 464.0, -3e4, 1e38];
        let rows = Tensor::from_slice(&rows)
            .view([8, 1])
            .to_device(machine.device);
        // All values of the format, halves of its steps and less, up to the row's largest.
        let steps = Tensor::arange(448, (Kind::Float, machine.device)) / -448.0;
        let small = Tensor::arange(64, (Kind::Float, machine.device)) / 64.0 / 448.0 / 16.0;
        let x = (rows * Tensor::cat(&[steps - 1.0 / 448.0, small], 0)).to_kind(Kind::BFloat16);
        let ours = machine.own().input(&x, FLOAT8).unwrap();
        assert_same("rows", &ours.rows(Products::Wide), &Rows::quantize(&x));
    }
}

#[test]
fn products_of_the_transformer_in_8_bit_floats_take_what_kernels_wrote() {
    let kernels = Kernels::Cuda(on_host());
    for reference in [Reference::open(), Reference::v2_3()] {
        let exact = Case::of(&reference, Device::Cpu, Kind::Float, &Kernels::Plain).batch();
        let errors = [&Kernels::Plain, &kernels].map(|kernels| {
            let options = load::Options {
                matrices: Matrices::Float8 {
                    dense_blocks: Vec::new(),
                },
                ..load::Options::new(Device::Cpu, Precision::Bfloat16, kernels.clone())
            };
            let checkpoint = Checkpoint::open(&reference.checkpoint()).unwrap();
            let parts = load::load(&checkpoint, &options, |_| {}).unwrap();
            let mut case = Case::of(&reference, Device::Cpu, Kind::BFloat16, kernels);
            case.model = parts.transformer;
            let coarse = case.batch();
            [(coarse.video, &exact.video), (coarse.audio, &exact.audio)]
                .map(|(coarse, exact)| relative_error(&coarse, exact))
        });
        let [plain, ours] = errors;
        println!("8-bit floats: {plain:?}, with kernels {ours:?}");
        assert!(ours != plain);
        for (ours, plain) in ours.into_iter().zip(plain) {
            assert!(
                ours < 1.2 * plain,
                "{ours:e}, with plain operators {plain:e}"
            );
        }
    }
}

#[test]
fn the_transformer_with_kernels_equals_the_one_without() {
    let kernels = Kernels::Cuda(on_host());
    for (reference, kind, accepted) in [
        (Reference::open(), Kind::Float, NETWORK_FLOAT32),
        (Reference::open(), Kind::BFloat16, 1.5e-2),
        (Reference::v2_3(), Kind::Float, NETWORK_FLOAT32),
    ] {
        let case = Case::of(&reference, Device::Cpu, kind, &kernels);
        let plain = Case::of(&reference, Device::Cpu, kind, &Kernels::Plain);
        let (ours, plain) = (case.batch(), plain.batch());
        for (ours, plain) in [(ours.video, plain.video), (ours.audio, plain.audio)] {
            let error = relative_error(&ours, &plain);
            assert!(error > 0.0 && error < accepted, "{kind:?}: {error:e}");
        }
    }
}
