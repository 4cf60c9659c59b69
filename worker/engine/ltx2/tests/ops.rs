//! The element-wise hot spots where no reference tensor reaches.

use fastvideo_ltx2::ops::{Kernels, Padding, Runs, pad};
use tch::{Device, Kind, Tensor};

fn counting(shape: &[i64]) -> Tensor {
    let count = shape.iter().product::<i64>();
    Tensor::arange(count, (Kind::Float, Device::Cpu)).view(shape)
}

#[test]
fn runs_of_tokens_take_their_own_rows() {
    let x = counting(&[2, 5, 3]) - 10.0;
    let (scale, shift) = (counting(&[1, 2, 3]), -counting(&[1, 2, 3]));
    let runs = Runs::new(vec![2, 3]);
    let actual = Kernels::Plain.rms_norm_modulate(&x, 1e-6, &scale, &shift, &runs);
    let each = |rows: &Tensor| {
        let row = |run: i64, tokens: i64| rows.narrow(1, run, 1).expand([2, tokens, 3], false);
        Tensor::cat(&[row(0, 2), row(1, 3)], 1)
    };
    let rms = (x.square().mean_dim([-1i64].as_slice(), true, None::<Kind>) + 1e-6).sqrt();
    let expected = &x / rms * (each(&scale) + 1.0) + each(&shift);
    assert!(actual.allclose(&expected, 1e-6, 1e-6, false));

    let (mut sum, y) = (x.copy(), counting(&[2, 5, 3]));
    Kernels::Plain.add_gated(&mut sum, y.copy(), &scale, &runs);
    assert!(sum.equal(&(&x + y * each(&scale))));
}

#[test]
fn volumes_are_padded_with_copies_and_borders() {
    let x = counting(&[1, 2, 2, 3, 3]);
    let causal = Padding {
        before: 2,
        after: 0,
        border: 1,
        reflect: false,
    };
    let padded = pad(&x, causal);
    assert_eq!(padded.size(), [1, 2, 4, 5, 5]);
    let inside = padded.narrow(3, 1, 3).narrow(4, 1, 3);
    for (frame, copied) in [(0, 0), (1, 0), (2, 0), (3, 1)] {
        assert!(
            inside.select(2, frame).equal(&x.select(2, copied)),
            "frame {frame}"
        );
    }
    let zeros = Tensor::zeros([1, 2, 4, 5], (Kind::Float, Device::Cpu));
    assert!(padded.select(3, 0).equal(&zeros) && padded.select(4, 4).equal(&zeros));

    let mirrored = Padding {
        before: 1,
        after: 1,
        border: 1,
        reflect: true,
    };
    let padded = pad(&x, mirrored);
    assert_eq!(padded.size(), [1, 2, 4, 5, 5]);
    assert!(padded.select(2, 3).equal(&padded.select(2, 2)));
    assert!(padded.select(3, 0).equal(&padded.select(3, 2)));
    assert!(padded.select(4, 4).equal(&padded.select(4, 2)));
    let whole = padded.narrow(2, 1, 2);
    assert!(whole.equal(&x.reflection_pad3d([1, 1, 1, 1, 0, 0])));
}

#[test]
fn pixels_are_normed_over_their_channels() {
    let x = counting(&[1, 4, 1, 2, 2]) - 7.0;
    let padding = Padding {
        before: 0,
        after: 0,
        border: 1,
        reflect: false,
    };
    let actual = Kernels::Plain.pixel_norm_silu_pad(&x, 1e-8, padding);
    let rms = (x.square().mean_dim([1i64].as_slice(), true, None::<Kind>) + 1e-8).sqrt();
    let expected = (&x / rms).silu();
    assert!(actual.narrow(3, 1, 2).narrow(4, 1, 2).equal(&expected));
}

#[test]
fn starts_leave_out_the_first_run() {
    assert!(Runs::new(vec![7]).starts().is_empty());
    assert_eq!(Runs::new(vec![2, 3, 4]).starts(), [2, 5]);
}
