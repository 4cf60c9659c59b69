//! The tensors of one part: a single `*.safetensors` file, or shards with an index, memory-mapped.
//!
//! A tensor is copied only on request, and then once, directly to its device, so that a model of 60 GiB has no second
//! copy in the host's memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::is_hidden;
use super::layout::{Component, Layout};
use super::names::{Name, Names};

/// The reason why a part's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TensorFileError {
    #[error("{}: expected one *.safetensors file or an index of shards, found {found}", folder.display())]
    NoFile { folder: PathBuf, found: String },
    #[error("cannot read {}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is not an index of shards: {reason}", path.display())]
    Index { path: PathBuf, reason: String },
    #[error("{} is truncated or damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("{}: tensor `{name}` belongs to no part of the model", path.display())]
    NoPart { path: PathBuf, name: String },
    #[error("{}: tensor `{name}` is no scale: {reason}", path.display())]
    Scale {
        path: PathBuf,
        name: String,
        reason: String,
    },
    #[error("{}: tensors `{first}` and `{second}` are the same one, `{name}`", folder.display())]
    Twice {
        folder: PathBuf,
        name: String,
        first: String,
        second: String,
    },
}

/// All tensors of one part by their library names.
#[derive(Debug)]
pub struct Files {
    shards: Vec<Shard>,
    /// The tensors that the engine may request, by library name.
    entries: BTreeMap<String, Entry>,
    /// The factors of tensors that are stored in 8 bits, by the library names of those.
    scales: BTreeMap<String, f64>,
}

#[derive(Debug)]
pub(crate) struct Shard {
    path: PathBuf,
    data: Data,
}

/// The bytes of a file.
#[derive(Debug)]
enum Data {
    Mapped(Mmap),
    Copied(Vec<u8>),
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    /// The name of the type in the file, for messages.
    stored: String,
    dtype: Dtype,
    shape: Vec<i64>,
    /// The offset of the tensor's bytes in the shard's mapping.
    begin: usize,
    end: usize,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Files {
    /// Returns whether a folder has any file that [`Self::open`] would use.
    pub(super) fn are_in(folder: &Path) -> bool {
        matches!(find(folder), Ok(found) if found != Found::Nothing)
    }

    /// Maps the files of a folder into memory and reads which tensors they have.
    ///
    /// # Errors
    /// Returns an error when there are no files or too many, when one is truncated, or when an index and its shards do
    /// not agree.
    pub(super) fn open(
        folder: &Path,
        component: Component,
        layout: Layout,
    ) -> Result<Self, TensorFileError> {
        let (paths, index) = match find(folder)? {
            Found::Nothing => {
                return Err(TensorFileError::NoFile {
                    folder: folder.to_owned(),
                    found: "none".to_owned(),
                });
            }
            Found::Single(path) => (vec![path], None),
            Found::Index(path) => {
                let index = read_index(&path)?;
                let mut names: Vec<&String> = index.weight_map.values().collect();
                names.sort();
                names.dedup();
                let paths = names.into_iter().map(|name| folder.join(name)).collect();
                (paths, Some((path, index)))
            }
        };
        Self::of_paths(folder, paths, index, component, layout)
    }

    /// Maps one file into memory and reads which tensors of a part it has.
    ///
    /// # Errors
    /// Returns an error when the file is truncated.
    pub(super) fn open_file(
        path: &Path,
        component: Component,
        layout: Layout,
    ) -> Result<Self, TensorFileError> {
        Self::of_paths(path, vec![path.to_owned()], None, component, layout)
    }

    /// `place` is the folder or the file, for messages.
    fn of_paths(
        place: &Path,
        paths: Vec<PathBuf>,
        index: Option<(PathBuf, Index)>,
        component: Component,
        layout: Layout,
    ) -> Result<Self, TensorFileError> {
        let mut shards = Vec::new();
        let mut stored = Vec::new();
        for path in paths {
            let shard = Shard::open(path)?;
            let (start, metadata) = shard.metadata()?;
            for (name, info) in metadata.tensors() {
                stored.push((name, Entry::new(shards.len(), start, info)));
            }
            shards.push(shard);
        }
        if let Some((path, index)) = index {
            check_index(&path, &index, &shards, &stored)?;
        }
        let names = Names::new(
            component,
            layout,
            stored.iter().map(|(name, _)| name.as_str()),
        );
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        let mut scales = BTreeMap::new();
        for (stored, mut entry) in stored {
            let Name::Library(name) = names.of(&stored) else {
                continue;
            };
            entry.stored = stored;
            // The scale of a layer's input is for programs that quantize by fixed ranges.
            if name.ends_with(".input_scale") {
                continue;
            }
            if let Some(layer) = name.strip_suffix("_scale")
                && layer.ends_with(".weight")
            {
                scales.insert(layer.to_owned(), scale(&shards[entry.shard], &entry)?);
                continue;
            }
            if let Some(first) = entries.get(&name) {
                return Err(TensorFileError::Twice {
                    folder: place.to_owned(),
                    first: first.stored.clone(),
                    second: entry.stored,
                    name,
                });
            }
            entries.insert(name, entry);
        }
        let is_8_bits = |name: &String| {
            let entry = entries.get(name);
            entry.is_some_and(|entry| entry.dtype == Dtype::F8_E4M3)
        };
        if let Some(name) = scales.keys().find(|name| !is_8_bits(name)) {
            return Err(TensorFileError::Scale {
                path: place.to_owned(),
                name: format!("{name}_scale"),
                reason: format!("`{name}` is not stored in 8 bits"),
            });
        }
        Ok(Self {
            shards,
            entries,
            scales,
        })
    }

    /// Returns the library names, each with the name in the file.
    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.stored.as_str()))
    }

    pub(crate) fn stored_name(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(|entry| entry.stored.as_str())
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Returns the size in bytes as stored.
    pub fn bytes(&self) -> u64 {
        self.entries.values().map(Entry::bytes).sum()
    }

    pub fn parameters(&self) -> u64 {
        self.entries.values().map(Entry::elements).sum()
    }

    /// Copies a matrix that is stored in 8-bit floats to a device as it is, and returns its scale; `None` for any other
    /// tensor.
    pub(crate) fn float8(&self, name: &str, device: Device) -> Option<(Tensor, f64)> {
        let stored = self.stored(name).ok()?;
        let is_matrix = stored.kind == Kind::Float8e4m3fn && stored.shape.len() == 2;
        let values = is_matrix.then(|| stored.values(Kind::Float8e4m3fn, device))?;
        Some((values, stored.scale.unwrap_or(1.0)))
    }

    /// Returns a tensor to load.
    ///
    /// # Errors
    /// Returns an error when the tensor is missing, or is not of a floating-point type that the engine reads.
    pub(crate) fn stored(&self, name: &str) -> Result<Stored<'_>, String> {
        let entry = self.entries.get(name).ok_or("is not there")?;
        let Some(kind) = float(entry.dtype) else {
            let given = entry.dtype;
            return Err(format!(
                "expected type BF16, F16, F32 or F8_E4M3, given {given:?}"
            ));
        };
        Ok(Stored {
            bytes: &self.shards[entry.shard].data[entry.begin..entry.end],
            shape: &entry.shape,
            kind,
            scale: self.scales.get(name).copied(),
        })
    }
}

/// A tensor in a mapped file.
#[derive(Debug)]
pub(crate) struct Stored<'a> {
    bytes: &'a [u8],
    shape: &'a [i64],
    kind: Kind,
    /// The factor by which the values are multiplied.
    scale: Option<f64>,
}

impl Stored<'_> {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Copies the tensor to a device once, and converts it there.
    pub(crate) fn load(&self, kind: Kind, device: Device) -> Tensor {
        match self.scale {
            None => self.values(kind, device),
            Some(scale) => (self.values(Kind::Float, device) * scale).to_kind(kind),
        }
    }

    fn values(&self, kind: Kind, device: Device) -> Tensor {
        if !self
            .bytes
            .as_ptr()
            .addr()
            .is_multiple_of(self.kind.elt_size_in_bytes())
        {
            // In files of old writers, a tensor may begin at any address.
            let tensor = Tensor::from_data_size(self.bytes, self.shape, self.kind);
            return tensor.to_device(device).to_kind(kind);
        }
        let view = view(self.bytes, self.shape, self.kind);
        if device == Device::Cpu && kind == self.kind {
            return view.copy();
        }
        // The tensor is converted on the device, because converting it first would make a second copy in host memory.
        view.to_device(device).to_kind(kind)
    }
}

impl Entry {
    /// Creates the entry of a tensor. `data` is the offset of the tensors in the file.
    fn new(shard: usize, data: usize, info: &TensorInfo) -> Self {
        let size = |&size: &usize| i64::try_from(size).unwrap_or(i64::MAX);
        Self {
            shard,
            stored: String::new(),
            dtype: info.dtype,
            shape: info.shape.iter().map(size).collect(),
            begin: data + info.data_offsets.0,
            end: data + info.data_offsets.1,
        }
    }

    fn bytes(&self) -> u64 {
        (self.end - self.begin) as u64
    }

    fn elements(&self) -> u64 {
        self.shape.iter().map(|size| size.unsigned_abs()).product()
    }
}

impl Shard {
    pub(crate) fn open(path: PathBuf) -> Result<Self, TensorFileError> {
        match File::open(&path).and_then(|file| map(&file)) {
            Ok(map) => Ok(Self {
                path,
                data: Data::Mapped(map),
            }),
            Err(source) => Err(TensorFileError::Io { path, source }),
        }
    }

    /// Copies a file into memory, at most so many bytes of it, so that nothing depends on what becomes of it.
    pub(crate) fn copy(path: PathBuf, most: u64) -> Result<Self, TensorFileError> {
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(most).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Self {
                path,
                data: Data::Copied(bytes),
            }),
            Err(source) => Err(TensorFileError::Io { path, source }),
        }
    }

    /// Returns the offset of the tensors, and their metadata. The tensors' offsets have been checked against the file's
    /// size.
    pub(crate) fn metadata(&self) -> Result<(usize, Metadata), TensorFileError> {
        match SafeTensors::read_metadata(&self.data) {
            // The file begins with the header's length, a u64.
            Ok((header, metadata)) => Ok((8 + header, metadata)),
            Err(error) => Err(TensorFileError::Damaged {
                path: self.path.clone(),
                reason: error.to_string(),
            }),
        }
    }
}

impl Shard {
    /// Copies a tensor to a device, by its name in the file.
    ///
    /// # Errors
    /// Returns an error when the tensor is missing or of a type that the engine does not read.
    pub(crate) fn load(&self, name: &str, kind: Kind, device: Device) -> Result<Tensor, String> {
        let (start, metadata) = self.metadata().map_err(|error| error.to_string())?;
        let info = metadata.info(name).ok_or("is not there")?;
        let entry = Entry::new(0, start, info);
        let stored = Stored {
            bytes: &self.data[entry.begin..entry.end],
            shape: &entry.shape,
            kind: float(entry.dtype).ok_or_else(|| format!("is of type {:?}", entry.dtype))?,
            scale: None,
        };
        Ok(stored.load(kind, device))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.data
    }
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Copied(bytes) => bytes,
        }
    }
}

/// The contents of a folder.
#[derive(PartialEq)]
enum Found {
    Nothing,
    Single(PathBuf),
    Index(PathBuf),
}

fn find(folder: &Path) -> Result<Found, TensorFileError> {
    let io = |source| TensorFileError::Io {
        path: folder.to_owned(),
        source,
    };
    if !folder.is_dir() {
        return Ok(Found::Nothing);
    }
    let (mut files, mut indexes) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_hidden(&name) {
            continue;
        }
        if name.ends_with(".safetensors.index.json") {
            indexes.push(path);
        } else if name.ends_with(".safetensors") {
            files.push(path);
        }
    }
    match (indexes.len(), files.len()) {
        (1, _) => Ok(indexes.pop().map_or(Found::Nothing, Found::Index)),
        (0, 0) => Ok(Found::Nothing),
        (0, 1) => Ok(files.pop().map_or(Found::Nothing, Found::Single)),
        (indexes, files) => Err(TensorFileError::NoFile {
            folder: folder.to_owned(),
            found: format!("{files} files and {indexes} indexes"),
        }),
    }
}

fn read_index(path: &Path) -> Result<Index, TensorFileError> {
    let wrong = |reason: String| TensorFileError::Index {
        path: path.to_owned(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|source| TensorFileError::Io {
        path: path.to_owned(),
        source,
    })?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    // A shard must lie beside the index, so that an index cannot name other files of this machine.
    let outside =
        |file: &&String| Path::new(file.as_str()).file_name() != Some(file.as_str().as_ref());
    match index.weight_map.values().find(outside) {
        Some(file) => Err(wrong(format!("`{file}` is no file beside it"))),
        None if index.weight_map.is_empty() => Err(wrong("it names no tensor".to_owned())),
        None => Ok(index),
    }
}

/// Checks that every tensor is where the index says, and that there is no other.
fn check_index(
    path: &Path,
    index: &Index,
    shards: &[Shard],
    stored: &[(String, Entry)],
) -> Result<(), TensorFileError> {
    let wrong = |reason: String| {
        Err(TensorFileError::Index {
            path: path.to_owned(),
            reason,
        })
    };
    let mut found = BTreeMap::new();
    for (name, entry) in stored {
        let file = shards[entry.shard].path.file_name();
        let file = file.unwrap_or_default().to_string_lossy();
        found.insert(name, file);
    }
    for (name, file) in &index.weight_map {
        match found.remove(name) {
            Some(holder) if holder == file.as_str() => {}
            Some(holder) => {
                return wrong(format!(
                    "tensor `{name}` must be in {file}, found in {holder}"
                ));
            }
            None => return wrong(format!("tensor `{name}` must be in {file}, found nowhere")),
        }
    }
    match found.first_key_value() {
        Some((name, file)) => wrong(format!(
            "{file} has tensor `{name}`, which it does not name"
        )),
        None => Ok(()),
    }
}

/// Returns the kind of a stored float; `None` for types that this engine does not read.
fn float(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F16 => Some(Kind::Half),
        Dtype::F32 => Some(Kind::Float),
        Dtype::F8_E4M3 => Some(Kind::Float8e4m3fn),
        _ => None,
    }
}

/// Reads the scale of a tensor in 8 bits: one float32.
fn scale(shard: &Shard, entry: &Entry) -> Result<f64, TensorFileError> {
    let refused = |reason: String| TensorFileError::Scale {
        path: shard.path.clone(),
        name: entry.stored.clone(),
        reason,
    };
    let bytes: Option<[u8; 4]> = shard.data[entry.begin..entry.end].try_into().ok();
    let (Some(bytes), Dtype::F32) = (bytes, entry.dtype) else {
        let given = format!("{:?} {:?}", entry.dtype, entry.shape);
        return Err(refused(format!("expected one F32, given {given}")));
    };
    let scale = f64::from(f32::from_le_bytes(bytes));
    if !scale.is_finite() {
        return Err(refused(format!("expected a finite number, given {scale}")));
    }
    Ok(scale)
}

#[expect(
    unsafe_code,
    reason = "a map is the only way to read a file without a copy of it"
)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: requires that the file is not changed or shortened while it is mapped. A checkpoint is written once and
    // then only read, and a replacement is written to new files. If a file is shortened all the same, reading it ends
    // this process with SIGBUS, which costs one worker and nothing else.
    unsafe { Mmap::map(file) }
}

/// Creates a tensor over bytes that it does not own. Neither it nor anything that shares its storage may outlive them.
#[expect(unsafe_code, reason = "libtorch does not know lifetimes")]
fn view(bytes: &[u8], shape: &[i64], kind: Kind) -> Tensor {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    let elements: i64 = shape.iter().product();
    assert_eq!(
        bytes.len(),
        usize::try_from(elements).unwrap_or(usize::MAX) * kind.elt_size_in_bytes(),
        "the reader has checked shapes against sizes"
    );
    // SAFETY: requires that `bytes` holds `shape` elements of `kind`, aligned, for as long as the tensor lives. The size was
    // compared above, the only caller checks the alignment and drops the view, having copied from it, while it still borrows
    // the bytes. Nothing writes through it.
    unsafe { Tensor::from_blob(bytes.as_ptr(), shape, &strides, kind, Device::Cpu) }
}
