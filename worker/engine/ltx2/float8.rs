//! Matrix products in 8-bit floats (e4m3) with one scale for each row of either side.
//!
//! Scales are dynamic: a row's largest value becomes the largest that the format has. On a GPU the products are libtorch's
//! own (`_scaled_mm`); elsewhere the values are widened and multiplied in float32, which tests compare.

use tch::{Device, Kind, TchError, Tensor};

/// The largest value of the format.
const LARGEST: f64 = 448.0;
/// The smallest amount that a row's largest value counts for, so that a row of zeros has a scale.
const FLOOR: f64 = 1e-12;
/// The size of the product that [`Products::probe`] tries: a multiple of what the kernels want.
const PROBE: i64 = 64;

/// A tensor in 8-bit floats with a scale for each row.
#[derive(Debug)]
pub struct Rows {
    /// `[n, k]`, e4m3.
    pub values: Tensor,
    /// `[n, 1]`, float32.
    pub scales: Tensor,
}

/// How products are computed on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// Widened to float32.
    Wide,
    /// By kernels that take a scale for each row.
    OfRows,
    /// By kernels that take one scale for all rows.
    OfTensors,
}

impl Products {
    /// Finds out what a device can do.
    ///
    /// # Errors
    /// Returns libtorch's error when a GPU can compute no such product.
    pub fn probe(device: Device) -> Result<Self, TchError> {
        if !device.is_cuda() {
            return Ok(Self::Wide);
        }
        let x = Tensor::ones([PROBE, PROBE], (Kind::BFloat16, device));
        let matrix = Matrix::quantize(&x, Self::OfRows);
        if matrix
            .try_forward(&Rows::quantize(&x), None, x.kind())
            .is_ok()
        {
            return Ok(Self::OfRows);
        }
        let matrix = Matrix::quantize(&x, Self::OfTensors);
        let rows = Products::OfTensors.quantize(&x);
        matrix
            .try_forward(&rows, None, x.kind())
            .map(|_| Self::OfTensors)
    }
}

impl Products {
    /// Quantizes the input of products, `[n, in]`. One result does for all matrices of the same device.
    pub fn quantize(self, x: &Tensor) -> Rows {
        if self.scale_rows() {
            Rows::quantize(x)
        } else {
            Rows::quantize_whole(x)
        }
    }

    /// Returns whether each row has a scale of its own.
    pub fn scale_rows(self) -> bool {
        match self {
            Self::Wide | Self::OfRows => true,
            Self::OfTensors => false,
        }
    }
}

impl Rows {
    /// Quantizes `[n, k]`, with a scale for each row.
    pub fn quantize(x: &Tensor) -> Self {
        let wide = x.to_kind(Kind::Float);
        let scales = wide.abs().amax([1].as_slice(), true);
        Self::with_scales(&wide, &of_largest(&scales))
    }

    /// Quantizes `[n, k]` with the same scale in all rows.
    fn quantize_whole(x: &Tensor) -> Self {
        let wide = x.to_kind(Kind::Float);
        let scale = of_largest(&wide.abs().max().view([1, 1]));
        Self::with_scales(&wide, &scale)
    }

    fn with_scales(wide: &Tensor, scales: &Tensor) -> Self {
        // Beyond the largest value, the conversion gives no number.
        let values = (wide / scales).clamp(-LARGEST, LARGEST);
        Self {
            values: values.to_kind(Kind::Float8e4m3fn),
            scales: scales.shallow_clone(),
        }
    }

    /// Returns what the values stand for, in float32.
    pub fn widen(&self) -> Tensor {
        self.values.to_kind(Kind::Float) * &self.scales
    }

    pub fn shallow_clone(&self) -> Self {
        Self {
            values: self.values.shallow_clone(),
            scales: self.scales.shallow_clone(),
        }
    }
}

/// Returns the scales of rows with these largest values. GPUs divide by a tensor exactly, but multiply by the reciprocal of a
/// number: that would be another result than the kernels' and than a CPU's.
fn of_largest(values: &Tensor) -> Tensor {
    let largest = Tensor::full([1, 1], LARGEST, (Kind::Float, values.device()));
    values.clamp_min(FLOOR) / largest
}

/// The matrix of a linear layer, `[out, in]`, in 8-bit floats.
#[derive(Debug)]
pub struct Matrix {
    rows: Rows,
    products: Products,
}

impl Matrix {
    /// Quantizes a matrix `[out, in]`.
    pub fn quantize(weight: &Tensor, products: Products) -> Self {
        Self {
            rows: products.quantize(weight),
            products,
        }
    }

    /// Takes values that are stored in this format, with the one scale that they have.
    pub fn stored(values: Tensor, scale: f64, products: Products) -> Self {
        let scales = Tensor::from_slice(&[scale]).to_kind(Kind::Float);
        let scales = scales.to_device(values.device()).view([1, 1]);
        let scales = if products.scale_rows() {
            scales.expand([values.size()[0], 1], false).contiguous()
        } else {
            scales
        };
        Self {
            rows: Rows { values, scales },
            products,
        }
    }

    pub fn products(&self) -> Products {
        self.products
    }

    /// Computes `x Wᵀ + b`: `[n, in]` to `[n, out]` in the given type.
    ///
    /// # Panics
    /// Panics where libtorch does.
    pub fn forward(&self, x: &Rows, bias: Option<&Tensor>, kind: Kind) -> Tensor {
        match self.try_forward(x, bias, kind) {
            Ok(product) => product,
            Err(error) => panic!("{error}"),
        }
    }

    fn try_forward(&self, x: &Rows, bias: Option<&Tensor>, kind: Kind) -> Result<Tensor, TchError> {
        let Rows { values, scales } = &self.rows;
        if self.products == Products::Wide {
            let wide = |values: &Tensor| values.to_kind(Kind::Float);
            let product = wide(&x.values).matmul(&wide(values).transpose(0, 1));
            let mut product = product * &x.scales * scales.transpose(0, 1);
            if let Some(bias) = bias {
                product += bias;
            }
            return Ok(product.to_kind(kind));
        }
        x.values.f_internal_scaled_mm(
            // The kernels want the second matrix column by column.
            &values.transpose(0, 1),
            &x.scales,
            &scales.transpose(0, 1),
            bias,
            None,
            kind,
            true,
        )
    }

    /// Returns the matrix that the values stand for, in float32.
    pub fn widen(&self) -> Tensor {
        self.rows.widen()
    }
}
