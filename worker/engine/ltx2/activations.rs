//! The inputs of linear layers, in the forms that their matrices take.

use std::cell::RefCell;

use tch::{Kind, Tensor};

use crate::float8::{Products, Rows};

/// The forms in which layers take an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Whether they take it as it is: for a dense matrix, or for adapters beside a matrix.
    pub dense: bool,
    /// The products for which they take it in 8-bit floats, if they do.
    pub float8: Option<Products>,
}

/// An input of linear layers, `[…, in]`.
#[derive(Debug)]
pub struct Activations {
    dense: Option<Tensor>,
    /// `[n, in]`.
    rows: Option<Rows>,
    size: Vec<i64>,
    kind: Kind,
    /// The last matrix that adapters have multiplied it with, and the product.
    product: RefCell<Option<(Tensor, Tensor)>>,
}

impl Form {
    pub const DENSE: Self = Self {
        dense: true,
        float8: None,
    };

    /// Returns the form for the layers of both.
    pub fn and(self, other: Self) -> Self {
        Self {
            dense: self.dense || other.dense,
            float8: self.float8.or(other.float8),
        }
    }

    /// Returns whether the input has a scale for each row, which kernels compute.
    pub fn scales_rows(self) -> bool {
        self.float8.is_some_and(Products::scale_rows)
    }
}

impl Activations {
    /// Converts `x` with libtorch's operators.
    pub fn new(x: Tensor, form: Form) -> Self {
        let rows = form.float8.map(|products| products.quantize(&flat(&x)));
        Self {
            size: x.size(),
            kind: x.kind(),
            dense: (form.dense || rows.is_none()).then_some(x),
            rows,
            product: RefCell::default(),
        }
    }

    /// Takes the rows of a tensor of this size and type, and the tensor itself where it is wanted, too.
    pub fn quantized(rows: Rows, dense: Option<Tensor>, size: Vec<i64>, kind: Kind) -> Self {
        Self {
            dense,
            rows: Some(rows),
            size,
            kind,
            product: RefCell::default(),
        }
    }

    /// Returns the input as it is.
    ///
    /// # Panics
    /// Panics when it was made for matrices in 8-bit floats alone.
    pub fn dense(&self) -> &Tensor {
        let dense = self.dense.as_ref();
        dense.expect("an input has the forms that its layers have asked for")
    }

    /// Returns the input in 8-bit floats, which it may have already.
    pub fn rows(&self, products: Products) -> Rows {
        match &self.rows {
            Some(rows) => rows.shallow_clone(),
            None => products.quantize(&flat(self.dense())),
        }
    }

    /// Returns the product `[n, out]` with a matrix `[out, in]` of adapters. Layers that share the matrix share the product.
    pub fn times(&self, matrix: &Tensor) -> Tensor {
        let mut product = self.product.borrow_mut();
        if let Some((of, product)) = &*product
            && of.data_ptr() == matrix.data_ptr()
        {
            return product.shallow_clone();
        }
        let made = flat(self.dense()).matmul(&matrix.transpose(0, 1));
        *product = Some((matrix.shallow_clone(), made.shallow_clone()));
        made
    }

    /// Returns a product `[n, out]` with the axes of this input.
    pub fn unflat(&self, product: &Tensor) -> Tensor {
        let mut size = self.size.clone();
        if let (Some(last), Some(width)) = (size.last_mut(), product.size().last()) {
            *last = *width;
        }
        product.view(size.as_slice())
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// `[…, k]` as `[n, k]`.
pub fn flat(x: &Tensor) -> Tensor {
    x.reshape([-1, x.size().last().copied().unwrap_or(1)])
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn layers_that_share_a_matrix_share_its_product() {
        let random = |size: [i64; 2]| Tensor::randn(size, (Kind::Float, Device::Cpu));
        let input = Activations::new(random([5, 8]), Form::DENSE);
        let [shared, other] = [6, 3].map(|rows| random([rows, 8]));
        let made = input.times(&shared);
        assert_eq!(made.size(), [5, 6]);
        assert_eq!(input.times(&shared).data_ptr(), made.data_ptr());
        assert_eq!(input.times(&other).size(), [5, 3]);
        assert!(input.times(&shared).equal(&made));
    }
}
