//! Adapters (LoRA): small changes of a model's linear layers, which are loaded beside the weights and combined anew for
//! each request.
//!
//! For a layer with the matrix W, an adapter has the matrices `down` `[rank, in]` and `up` `[out, rank]`, and the layer
//! computes with W + strength · factor · up · down. Several adapters of a layer are one product of their joined ranks.
//! Adapters can also be added to the weights while these are loaded, for good.
//!
//! - `file`: the forms that adapters are published in.

mod file;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tch::{Device, Kind, Tensor};

pub use self::file::{AdapterFile, LayerName};
use crate::checkpoint::Component;
use crate::low_rank::{Down, Layer, Layers, LowRank};

/// The largest strength of an adapter, in either direction.
pub const MAX_STRENGTH: f64 = 2.0;
/// The number of names in a message about several layers.
const TOLD: usize = 3;

/// The reason why an adapter cannot be used. The model stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error("adapter {}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error("adapter {}: `{layer}` is {given:?}, but the model's layer is {expected:?}", path.display())]
    Shape {
        path: PathBuf,
        layer: String,
        expected: [i64; 2],
        given: [i64; 2],
    },
    #[error("adapter {}: the model has no layer {layers}", path.display())]
    NoLayer { path: PathBuf, layers: String },
    #[error("adapter `{0}` is not loaded")]
    NotLoaded(String),
    #[error("adapter `{0}` is loaded already")]
    Loaded(String),
    #[error(
        "adapter `{name}`: expected a strength of -{MAX_STRENGTH} to {MAX_STRENGTH}, given {given}"
    )]
    Strength { name: String, given: f64 },
    #[error("adapter `{0}` is named twice")]
    Twice(String),
    #[error("adapters: expected {what} of at most {limit}, given {given}")]
    Limit {
        what: &'static str,
        limit: u64,
        given: u64,
    },
}

/// What the adapters of one model may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The memory of all that are loaded, in bytes.
    pub loaded_bytes: u64,
    /// The size of a file that is copied, in bytes.
    pub file_bytes: u64,
    /// The ranks of a request's adapters together, in any layer.
    pub rank: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            loaded_bytes: 8 << 30,
            file_bytes: 8 << 30,
            rank: 128,
        }
    }
}

/// An adapter and its strength.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub name: String,
    pub strength: f64,
}

/// The adapters of one model: those that are loaded, and those that act.
#[derive(Debug)]
pub struct Adapters {
    layers: BTreeMap<LayerName, Layer>,
    loaded: BTreeMap<String, Adapter>,
    /// What acts now, by name, without those of strength 0.
    active: Vec<Choice>,
    /// The number of adapters that were ever loaded.
    serial: u64,
    limits: Limits,
    kind: Kind,
    device: Device,
}

#[derive(Debug)]
struct Adapter {
    /// `down` and `factor · up` of each layer.
    matrices: BTreeMap<LayerName, [Tensor; 2]>,
    rank: i64,
    bytes: u64,
    path: PathBuf,
    metadata: BTreeMap<String, String>,
    /// Tells it from another one that has the same name later.
    serial: u64,
}

/// A loaded adapter, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterReport {
    pub name: String,
    pub path: PathBuf,
    /// The memory that it takes.
    pub bytes: u64,
    /// The number of layers that it changes.
    pub layers: usize,
    /// The largest rank of a layer.
    pub rank: i64,
    /// What its author says about it.
    pub metadata: BTreeMap<String, String>,
}

impl Adapters {
    /// Creates the adapters of a model with these parts, none of which are loaded.
    pub fn new(
        parts: impl IntoIterator<Item = (Component, Layers)>,
        limits: Limits,
        kind: Kind,
        device: Device,
    ) -> Self {
        let named = |(component, layers): (Component, Layers)| {
            layers
                .into_iter()
                .map(move |(name, layer)| ((component, name), layer))
        };
        Self {
            layers: parts.into_iter().flat_map(named).collect(),
            loaded: BTreeMap::new(),
            active: Vec::new(),
            serial: 0,
            limits,
            kind,
            device,
        }
    }

    /// Loads an adapter under a name. It acts once it is chosen.
    ///
    /// # Errors
    /// Returns an error when the name is taken, when the adapter does not fit the model, when a value is not a finite
    /// number, or when a limit is reached.
    pub fn load(&mut self, name: &str, file: &AdapterFile) -> Result<AdapterReport, AdapterError> {
        if self.loaded.contains_key(name) {
            return Err(AdapterError::Loaded(name.to_owned()));
        }
        let layers = self.layers.iter().map(|(name, layer)| (name, layer.shape));
        check(file, &layers.collect())?;
        let mut adapter = Adapter {
            matrices: BTreeMap::new(),
            rank: 0,
            bytes: 0,
            path: file.path.clone(),
            metadata: file.metadata().clone(),
            serial: self.serial,
        };
        let bytes = self.kind.elt_size_in_bytes() as u64;
        for layer in file.layers() {
            let change = file.change(layer)?;
            let [outputs, inputs] = change.shape;
            adapter.rank = adapter.rank.max(change.rank);
            adapter.bytes += bytes * (change.rank * (outputs + inputs)).unsigned_abs();
        }
        let limits = &self.limits;
        let all: u64 = self.loaded.values().map(|other| other.bytes).sum();
        limit(
            "memory in bytes (`loras_max_mib`)",
            limits.loaded_bytes,
            all + adapter.bytes,
        )?;
        limit(
            "a rank (`loras_max_rank`)",
            limits.rank.unsigned_abs(),
            adapter.rank.unsigned_abs(),
        )?;
        for layer in file.layers() {
            let matrices = file.matrices(&file.change(layer)?, self.kind, self.device)?;
            adapter.matrices.insert(layer.clone(), matrices);
        }
        let report = adapter.report(name);
        self.serial += 1;
        self.loaded.insert(name.to_owned(), adapter);
        Ok(report)
    }

    /// Drops an adapter. A later request that names it is refused.
    ///
    /// # Errors
    /// Returns an error when it is not loaded.
    pub fn unload(&mut self, name: &str) -> Result<(), AdapterError> {
        if !self.loaded.contains_key(name) {
            return Err(AdapterError::NotLoaded(name.to_owned()));
        }
        if self.active.iter().any(|choice| choice.name == name) {
            self.choose(&[])?;
        }
        self.loaded.remove(name);
        Ok(())
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn reports(&self) -> Vec<AdapterReport> {
        let report = |(name, adapter): (&String, &Adapter)| adapter.report(name);
        self.loaded.iter().map(report).collect()
    }

    /// Checks that these adapters can act together.
    ///
    /// # Errors
    /// Returns an error when one is not loaded or is named twice, when a strength is out of range, or when their ranks
    /// are too large together.
    pub fn check(&self, choices: &[Choice]) -> Result<(), AdapterError> {
        let mut names = BTreeSet::new();
        let mut ranks: BTreeMap<&LayerName, i64> = BTreeMap::new();
        for Choice { name, strength } in choices {
            if !names.insert(name) {
                return Err(AdapterError::Twice(name.clone()));
            }
            if !(-MAX_STRENGTH..=MAX_STRENGTH).contains(strength) {
                return Err(AdapterError::Strength {
                    name: name.clone(),
                    given: *strength,
                });
            }
            let Some(adapter) = self.loaded.get(name) else {
                return Err(AdapterError::NotLoaded(name.clone()));
            };
            for (layer, [down, _]) in adapter.matrices.iter().filter(|_| *strength != 0.0) {
                *ranks.entry(layer).or_default() += down.size()[0];
            }
        }
        let rank = ranks.values().max().copied().unwrap_or_default();
        limit(
            "ranks (`loras_max_rank`)",
            self.limits.rank.unsigned_abs(),
            rank.unsigned_abs(),
        )
    }

    /// Lets these adapters act, and no others. Their order does not matter; those of strength 0 do not act.
    ///
    /// # Errors
    /// Returns the errors of [`Self::check`]; what acted before then still does.
    pub fn choose(&mut self, choices: &[Choice]) -> Result<(), AdapterError> {
        self.check(choices)?;
        let mut choices = choices.to_vec();
        choices.retain(|choice| choice.strength != 0.0);
        choices.sort_by(|a, b| a.name.cmp(&b.name));
        if choices == self.active {
            return Ok(());
        }
        for layers in self.layers_by_input() {
            let (mut downs, mut parts) = (Vec::new(), Vec::new());
            let mut at = 0;
            for (name, layer) in layers {
                let mut ups = Vec::new();
                let begin = at;
                for choice in &choices {
                    if let Some([down, up]) = self.loaded[&choice.name].matrices.get(name) {
                        at += down.size()[0];
                        downs.push(down.shallow_clone());
                        ups.push(up * choice.strength);
                    }
                }
                parts.push((layer, begin, ups));
            }
            let shared = (!downs.is_empty()).then(|| joined(downs, 0));
            for (layer, at, ups) in parts {
                let product = shared.as_ref().filter(|_| !ups.is_empty());
                layer.slot.set(product.map(|shared| LowRank {
                    down: Down {
                        shared: shared.shallow_clone(),
                        at,
                    },
                    up: joined(ups, 1),
                }));
            }
        }
        self.active = choices;
        Ok(())
    }

    /// Returns the layers in groups that take the same input.
    fn layers_by_input(&self) -> impl Iterator<Item = Vec<(&LayerName, &Layer)>> {
        let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (name, layer) in &self.layers {
            let (component, path) = name;
            let group = (component, input(path), layer.shape[1]);
            groups.entry(group).or_default().push((name, layer));
        }
        groups.into_values()
    }

    /// Returns a key for everything that depends on the adapters that act: different choices have different keys.
    pub fn key(&self) -> String {
        self.key_of(self.active.iter())
    }

    /// Returns a key for what depends on the text encoder's connectors only.
    pub fn key_of_text(&self) -> String {
        let changes_text = |choice: &&Choice| {
            let layers = self.loaded[&choice.name].matrices.keys();
            layers
                .into_iter()
                .any(|(component, _)| *component == Component::Connectors)
        };
        self.key_of(self.active.iter().filter(changes_text))
    }

    fn key_of<'a>(&self, choices: impl Iterator<Item = &'a Choice>) -> String {
        let one = |choice: &Choice| {
            let serial = self.loaded[&choice.name].serial;
            format!("{serial}@{:x};", choice.strength.to_bits())
        };
        choices.map(one).collect()
    }
}

impl Adapter {
    fn report(&self, name: &str) -> AdapterReport {
        AdapterReport {
            name: name.to_owned(),
            path: self.path.clone(),
            bytes: self.bytes,
            layers: self.matrices.len(),
            rank: self.rank,
            metadata: self.metadata.clone(),
        }
    }
}

/// Checks that a model with these layers has all that an adapter changes, in the same sizes.
fn check(file: &AdapterFile, layers: &BTreeMap<&LayerName, [i64; 2]>) -> Result<(), AdapterError> {
    let missing: Vec<&LayerName> = file.layers().filter(|l| !layers.contains_key(l)).collect();
    if !missing.is_empty() {
        let told = missing
            .iter()
            .take(TOLD)
            .map(|(_, name)| format!("`{name}`"));
        let mut told = told.collect::<Vec<_>>().join(", ");
        if missing.len() > TOLD {
            told = format!("{told} and {} more", missing.len() - TOLD);
        }
        return Err(AdapterError::NoLayer {
            path: file.path.clone(),
            layers: told,
        });
    }
    for layer in file.layers() {
        let (expected, given) = (layers[layer], file.change(layer)?.shape);
        if expected != given {
            return Err(AdapterError::Shape {
                path: file.path.clone(),
                layer: layer.1.clone(),
                expected,
                given,
            });
        }
    }
    Ok(())
}

/// Returns a name of what a layer takes. The queries, keys and values of a self-attention take the same, and the keys and
/// values of any other.
fn input(layer: &str) -> (&str, bool) {
    let Some((attention, part)) = layer.rsplit_once('.') else {
        return (layer, false);
    };
    match part {
        "to_k" | "to_v" => (attention, true),
        "to_q" | "to_gate_logits" => (attention, attention.ends_with("attn1")),
        _ => (layer, false),
    }
}

/// Puts matrices behind each other along an axis.
fn joined(mut matrices: Vec<Tensor>, axis: i64) -> Tensor {
    match matrices.len() {
        1 => matrices.remove(0),
        _ => Tensor::cat(&matrices, axis),
    }
}

fn limit(what: &'static str, limit: u64, given: u64) -> Result<(), AdapterError> {
    if given <= limit {
        return Ok(());
    }
    Err(AdapterError::Limit { what, limit, given })
}

/// Adapters that are added to the weights while these are loaded, each with its strength.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fused<'a>(pub &'a [(AdapterFile, f64)]);

impl Fused<'_> {
    /// Adds the changes of a layer to its matrix, `[out, in]`, and rounds once.
    ///
    /// # Errors
    /// Returns an error when an adapter's matrices have another size or values that are no finite numbers.
    pub fn apply(
        &self,
        component: Component,
        layer: &str,
        weight: Tensor,
    ) -> Result<Tensor, AdapterError> {
        let name = (component, layer.to_owned());
        let (kind, device) = (weight.kind(), weight.device());
        let mut sum: Option<Tensor> = None;
        for (file, strength) in self.0 {
            if !file.has(&name) {
                continue;
            }
            let change = file.change(&name)?;
            if change.shape[..] != weight.size()[..] {
                return Err(AdapterError::Shape {
                    path: file.path.clone(),
                    layer: name.1,
                    expected: [weight.size()[0], weight.size()[1]],
                    given: change.shape,
                });
            }
            let [down, up] = file.matrices(&change, Kind::Float, device)?;
            let added = (up * *strength).matmul(&down);
            sum = Some(match sum {
                None => weight.to_kind(Kind::Float) + added,
                Some(sum) => sum + added,
            });
        }
        Ok(sum.map_or(weight, |sum| sum.to_kind(kind)))
    }

    /// Checks that every adapter fits a model with these layers.
    ///
    /// # Errors
    /// Returns an error that names the first layer that does not fit.
    pub fn check(&self, adapters: &Adapters) -> Result<(), AdapterError> {
        let layers: BTreeMap<_, _> = adapters
            .layers
            .iter()
            .map(|(name, layer)| (name, layer.shape))
            .collect();
        self.0.iter().try_for_each(|(file, _)| check(file, &layers))
    }
}
