//! Named tensors, their sources, and the checks that a model has exactly the tensors that it expects.
//!
//! Parts traverse a [`Weights`] once, in their `new`, and request each tensor by its library name and shape. A request
//! never fails: missing and mismatched tensors are collected, and [`Store::finish`] reports all of them at once, with
//! those that were not requested. So nothing runs before every name, shape and type has been checked, and a damaged
//! checkpoint is described completely.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use crate::checkpoint::tensors::Files;
use crate::float8::{self, Products};
use crate::low_rank::{Layer, Layers, Slot};
use crate::sampling::noise::generator;

/// The tensors of one component, and the problems found with them so far.
pub struct Store {
    component: String,
    source: Source,
    kind: Kind,
    device: Device,
    found: RefCell<Found>,
    /// The linear layers that were requested.
    layers: RefCell<Layers>,
    reading: Reading,
}

/// How the tensors of files are read.
#[derive(Clone, Default)]
pub struct Reading {
    /// A callback for each tensor that was loaded.
    pub watch: Option<Watch>,
    /// Whether values are checked to be finite.
    pub check_values: bool,
    /// Whether nothing is read, and only names, shapes and types are checked. Nothing built from such a store may run.
    pub dry: bool,
    /// Changes the matrices of linear layers as they are loaded.
    pub fuse: Option<Fuse>,
    /// How the wide matrices of linear layers are kept in 8-bit floats; `None` keeps them as all others.
    pub float8: Option<Float8>,
}

/// Wide matrices in 8-bit floats.
#[derive(Clone, Debug)]
pub struct Float8 {
    pub products: Products,
    /// The blocks of the transformer whose matrices are kept as all others.
    pub dense_blocks: Vec<usize>,
}

/// The matrix of a linear layer, `[out, in]`.
#[derive(Debug)]
pub enum LayerMatrix {
    /// In the type that the model computes in.
    Dense(Tensor),
    Float8(float8::Matrix),
}

impl Float8 {
    fn is_dense(&self, layer: &str) -> bool {
        let block = layer
            .strip_prefix("transformer_blocks.")
            .and_then(|rest| rest.split('.').next()?.parse().ok());
        block.is_some_and(|block| self.dense_blocks.contains(&block))
    }
}

/// Changes the matrix of the layer with this library name, or says why it cannot.
pub type Fuse = Rc<dyn Fn(&str, Tensor) -> Result<Tensor, String>>;

/// A callback for each tensor that was loaded; it gets the tensor's size in bytes as stored.
pub type Watch = Rc<dyn Fn(u64)>;

/// The source of tensors.
enum Source {
    /// Tensors in memory, by library name.
    Tensors(BTreeMap<String, Tensor>),
    /// Memory-mapped files: a requested tensor is copied once, from there to the device.
    Files(Rc<Files>),
    /// Every requested tensor exists, with small random values: for benchmarks without a checkpoint.
    Random,
    /// Every requested tensor exists, without memory: the parameters of a model are counted.
    Counted,
}

#[derive(Debug, Default)]
struct Found {
    taken: BTreeSet<String>,
    problems: Vec<String>,
    parameters: i64,
}

/// The error for a checkpoint that is not what the model expects.
#[derive(Debug, thiserror::Error)]
#[error(
    "part `{component}` does not fit its configuration: {}",
    some(problems)
)]
pub struct WeightsError {
    pub component: String,
    pub problems: Vec<String>,
}

/// The number of problems in a message. A damaged checkpoint may have thousands, of which the first ones are enough.
const TOLD: usize = 8;

fn some(problems: &[String]) -> String {
    let told = problems.iter().take(TOLD).cloned().collect::<Vec<_>>();
    match problems.len().saturating_sub(TOLD) {
        0 => told.join("; "),
        more => format!("{}; and {more} more", told.join("; ")),
    }
}

impl Store {
    /// Creates a store of tensors by library name; they are converted to `kind` and copied to `device` when requested.
    pub fn new(
        component: &str,
        tensors: BTreeMap<String, Tensor>,
        kind: Kind,
        device: Device,
    ) -> Rc<Self> {
        let source = Source::Tensors(tensors);
        Self::of(component, source, kind, device, Reading::default())
    }

    /// Creates a store of the tensors in a part's files.
    pub(crate) fn files(
        component: &str,
        files: Rc<Files>,
        kind: Kind,
        device: Device,
        reading: Reading,
    ) -> Rc<Self> {
        let source = Source::Files(files);
        Self::of(component, source, kind, device, reading)
    }

    /// Creates a store of random tensors of any requested shape.
    pub fn random(component: &str, kind: Kind, device: Device) -> Rc<Self> {
        Self::of(component, Source::Random, kind, device, Reading::default())
    }

    /// Creates a store of random tensors, with wide matrices in 8-bit floats where those are asked for.
    pub fn random_with(
        component: &str,
        kind: Kind,
        device: Device,
        float8: Option<Float8>,
    ) -> Rc<Self> {
        let reading = Reading {
            float8,
            ..Reading::default()
        };
        Self::of(component, Source::Random, kind, device, reading)
    }

    /// Creates a store that counts the parameters of what is built from it, which may not run.
    pub fn counting(component: &str) -> Rc<Self> {
        let reading = Reading {
            dry: true,
            ..Reading::default()
        };
        let source = Source::Counted;
        Self::of(component, source, Kind::Float, Device::Cpu, reading)
    }

    /// Returns the number of parameters that were requested.
    pub fn counted(&self) -> i64 {
        self.found.borrow().parameters
    }

    fn of(
        component: &str,
        source: Source,
        kind: Kind,
        device: Device,
        reading: Reading,
    ) -> Rc<Self> {
        Rc::new(Self {
            component: component.to_owned(),
            source,
            kind,
            device,
            found: RefCell::default(),
            layers: RefCell::default(),
            reading,
        })
    }

    /// Returns the linear layers that were built from this store, by their names.
    pub fn layers(&self) -> Layers {
        self.layers.borrow().clone()
    }

    pub fn root(self: &Rc<Self>) -> Weights {
        Weights {
            store: self.clone(),
            prefix: String::new(),
        }
    }

    /// Reports tensors that were missing, of another shape or not requested.
    ///
    /// # Errors
    /// Returns an error when there was any such tensor; nothing built from this store may run then.
    pub fn finish(&self) -> Result<(), WeightsError> {
        let found = self.found.borrow();
        let mut problems = found.problems.clone();
        let mut leftover = |name: &str, stored: &str| {
            if !found.taken.contains(name) {
                problems.push(format!("unexpected tensor `{stored}`"));
            }
        };
        match &self.source {
            Source::Tensors(tensors) => tensors.keys().for_each(|name| leftover(name, name)),
            Source::Files(files) => files
                .names()
                .for_each(|(name, stored)| leftover(name, stored)),
            Source::Random | Source::Counted => {}
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(WeightsError {
            component: self.component.clone(),
            problems,
        })
    }

    fn take(&self, name: &str, shape: &[i64], kind: Kind) -> Tensor {
        let mut found = self.found.borrow_mut();
        found.taken.insert(name.to_owned());
        found.parameters += shape.iter().product::<i64>();
        match self.read(name, shape, kind) {
            Ok(tensor) => tensor,
            Err(problem) => {
                found.problems.push(problem);
                self.stand_in(shape, kind)
            }
        }
    }

    fn read(&self, name: &str, shape: &[i64], kind: Kind) -> Result<Tensor, String> {
        if let Source::Random = self.source {
            // This scale keeps the variance of values that pass through a matrix.
            let fan_in: i64 = shape.iter().skip(1).product();
            let scale = 1.0 / (fan_in.max(1) as f64).sqrt();
            let _alone = generator();
            return Ok(Tensor::randn(shape, (kind, self.device)) * scale);
        }
        if let Source::Counted = self.source {
            return Ok(self.stand_in(shape, kind));
        }
        match self.shape(name) {
            Some(given) if given == shape => {}
            Some(given) => {
                let name = self.stored_name(name);
                return Err(format!(
                    "tensor `{name}`: expected shape {shape:?}, given {given:?}"
                ));
            }
            None => return Err(format!("no tensor `{name}` of shape {shape:?}")),
        }
        match &self.source {
            Source::Files(files) => self.read_file(files, name, shape, kind),
            Source::Tensors(tensors) => Ok(tensors[name].to_device(self.device).to_kind(kind)),
            Source::Random | Source::Counted => unreachable!("answered above"),
        }
    }

    fn read_file(
        &self,
        files: &Files,
        name: &str,
        shape: &[i64],
        kind: Kind,
    ) -> Result<Tensor, String> {
        let named = |problem| format!("tensor `{}`: {problem}", self.stored_name(name));
        let stored = files.stored(name).map_err(named)?;
        if self.reading.dry {
            return Ok(self.stand_in(shape, kind));
        }
        let tensor = stored.load(kind, self.device);
        if let Some(watch) = &self.reading.watch {
            watch(stored.bytes());
        }
        if self.reading.check_values && tensor.isfinite().all().int64_value(&[]) == 0 {
            return Err(named("has values that are no finite numbers".to_owned()));
        }
        Ok(tensor)
    }

    /// Returns a placeholder with the shape and without memory, so that construction can continue until
    /// [`Self::finish`].
    fn stand_in(&self, shape: &[i64], kind: Kind) -> Tensor {
        Tensor::zeros([1], (kind, self.device)).expand(shape, false)
    }

    fn shape(&self, name: &str) -> Option<Vec<i64>> {
        match &self.source {
            Source::Tensors(tensors) => tensors.get(name).map(Tensor::size),
            Source::Files(files) => files.shape(name).map(<[i64]>::to_vec),
            Source::Random | Source::Counted => None,
        }
    }

    fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        match &self.source {
            Source::Files(files) => files.stored_name(name).unwrap_or(name),
            Source::Tensors(_) | Source::Random | Source::Counted => name,
        }
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading")
            .field("check_values", &self.check_values)
            .field("dry", &self.dry)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("component", &self.component)
            .finish_non_exhaustive()
    }
}

/// A prefix of the names in a [`Store`].
#[derive(Clone, Debug)]
pub struct Weights {
    store: Rc<Store>,
    prefix: String,
}

impl Weights {
    /// Returns the prefix extended by `name`.
    pub fn sub(&self, name: impl Display) -> Self {
        Self {
            store: self.store.clone(),
            prefix: self.name(name),
        }
    }

    /// Returns the tensor with that name below this prefix, in the working type. If it is missing or of another shape,
    /// this returns a placeholder, and [`Store::finish`] fails.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Tensor {
        self.tensor_as(name, shape, self.store.kind)
    }

    /// Returns the tensor as [`Self::tensor`] does, but in a type of its own.
    pub fn tensor_as(&self, name: &str, shape: &[i64], kind: Kind) -> Tensor {
        self.store.take(&self.name(name), shape, kind)
    }

    /// Returns the matrix `[out, in]` of a linear layer below this prefix, and the slot for adapters of it.
    pub fn matrix(&self, shape: [i64; 2]) -> (Tensor, Slot) {
        let slot = Slot::default();
        let layer = Layer {
            slot: slot.clone(),
            shape,
        };
        let store = &self.store;
        store.layers.borrow_mut().insert(self.prefix.clone(), layer);
        let weight = self.tensor("weight", &shape);
        let Some(fuse) = store.reading.fuse.as_ref().filter(|_| !store.reading.dry) else {
            return (weight, slot);
        };
        match fuse(&self.prefix, weight) {
            Ok(weight) => (weight, slot),
            Err(problem) => {
                store.found.borrow_mut().problems.push(problem);
                (store.stand_in(&shape, store.kind), slot)
            }
        }
    }

    /// Returns the matrix of a linear layer as [`Self::matrix`] does, in 8-bit floats where those are asked for. Values that
    /// are stored in that form are taken as they are, unless adapters are added to them.
    pub fn wide_matrix(&self, shape: [i64; 2]) -> (LayerMatrix, Slot) {
        let reading = &self.store.reading;
        let float8 = reading.float8.as_ref();
        let float8 = float8.filter(|float8| !reading.dry && !float8.is_dense(&self.prefix));
        let Some(Float8 { products, .. }) = float8 else {
            let (weight, slot) = self.matrix(shape);
            return (LayerMatrix::Dense(weight), slot);
        };
        let (weight, slot) = self.matrix(shape);
        let stored = match &self.store.source {
            Source::Files(files) if reading.fuse.is_none() => {
                files.float8(&self.name("weight"), self.store.device)
            }
            _ => None,
        };
        let matrix = match stored {
            Some((values, scale)) => float8::Matrix::stored(values, scale, *products),
            None => float8::Matrix::quantize(&weight, *products),
        };
        (LayerMatrix::Float8(matrix), slot)
    }

    /// Returns the stored shape of a tensor, for the few sizes that no configuration has; `None` where it is unknown.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.store.shape(&self.name(name))
    }

    /// Returns whether the tensors are known. Random weights have whatever is requested.
    pub fn is_known(&self) -> bool {
        !matches!(self.store.source, Source::Random | Source::Counted)
    }

    /// Returns the type that the model computes in.
    pub fn kind(&self) -> Kind {
        self.store.kind
    }

    pub fn device(&self) -> Device {
        self.store.device
    }

    fn name(&self, name: impl Display) -> String {
        if self.prefix.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }
}
