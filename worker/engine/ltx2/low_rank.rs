//! The products of small matrices that adapters add to linear layers, and the slot for one in each layer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::Tensor;

use crate::activations::Activations;

/// The product `up · down` that is added to a layer's matrix, `[out, in]`.
#[derive(Debug)]
pub struct LowRank {
    pub down: Down,
    /// `[out, rank]`, with all factors.
    pub up: Tensor,
}

/// A layer's `down`, `[rank, in]`: some rows of one matrix of all layers that take the same input, so that one product serves them
/// all.
#[derive(Debug)]
pub struct Down {
    /// `[ranks of all these layers, in]`.
    pub shared: Tensor,
    /// The layer's first row.
    pub at: i64,
}

/// The place in a layer where the product of the active adapters is. A layer without any computes as if there were no
/// slot.
#[derive(Clone, Debug, Default)]
pub struct Slot(Arc<Mutex<Option<LowRank>>>);

impl Slot {
    pub fn set(&self, product: Option<LowRank>) {
        *self.0.lock().expect("no holder of this lock panics") = product;
    }

    /// Returns whether no adapter changes the layer.
    pub(crate) fn is_empty(&self) -> bool {
        self.product().is_none()
    }

    /// Adds the adapters' part to the layer's result: `y + up · (down · x)`, in place. `x` is `[…, in]`, `y` `[…, out]`.
    pub(crate) fn add_to(&self, y: &mut Tensor, x: &Activations) {
        let product = self.product();
        let Some(LowRank { down, up }) = &*product else {
            return;
        };
        let (width, rank) = up.size2().expect("a matrix has two axes");
        let hidden = x.times(&down.shared).narrow(1, down.at, rank);
        let _ = y.view([-1, width]).addmm_(&hidden, &up.transpose(0, 1));
    }

    fn product(&self) -> MutexGuard<'_, Option<LowRank>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A linear layer that adapters may change.
#[derive(Clone, Debug)]
pub struct Layer {
    pub slot: Slot,
    /// The size of its matrix, `[out, in]`.
    pub shape: [i64; 2],
}

/// The linear layers of a part, by their library names.
pub type Layers = BTreeMap<String, Layer>;
