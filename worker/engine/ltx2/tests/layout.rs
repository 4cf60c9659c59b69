//! FastVideo's layout and the authors' single file from the library's layout, by the recipes that the scripts wrote and not
//! by the engine's own names.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Recipe {
    /// By folder.
    parts: BTreeMap<String, Part>,
    /// From, to.
    copies: BTreeMap<String, String>,
    model_index: Value,
}

#[derive(Deserialize)]
struct Part {
    from: String,
    config: Value,
    /// Library, original.
    names: BTreeMap<String, String>,
}

pub(crate) fn make_original(library: &Path, recipe: &Path, target: &Path) {
    let recipe: Recipe = serde_json::from_slice(&fs::read(recipe).unwrap()).unwrap();
    for (folder, part) in &recipe.parts {
        let folder = target.join(folder);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("config.json"), part.config.to_string()).unwrap();
        rename_tensors(
            &library.join(&part.from),
            &part.names,
            &folder.join("model.safetensors"),
        );
    }
    for (from, to) in &recipe.copies {
        copy_folder(&library.join(from), &target.join(to));
    }
    fs::write(
        target.join("model_index.json"),
        recipe.model_index.to_string(),
    )
    .unwrap();
}

fn rename_tensors(folder: &Path, names: &BTreeMap<String, String>, target: &Path) {
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files: Vec<Vec<u8>> = files
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .map(|path| fs::read(path).unwrap())
        .collect();
    let views = files.iter().flat_map(|bytes| {
        let views = SafeTensors::deserialize(bytes).unwrap().tensors();
        views
            .into_iter()
            .map(|(name, view)| (names[&name].clone(), view))
    });
    serialize_to_file(views, None, target).unwrap();
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[derive(Deserialize)]
struct SingleFileRecipe {
    metadata: BTreeMap<String, String>,
    /// By part; library, original.
    parts: BTreeMap<String, BTreeMap<String, String>>,
    upsampler_metadata: BTreeMap<String, BTreeMap<String, String>>,
}

/// Makes the authors' single file, with the text encoder and the upsampler beside it. Returns the file.
pub(crate) fn make_single_file(library: &Path, recipe: &Path, target: &Path) -> PathBuf {
    let recipe: SingleFileRecipe = serde_json::from_slice(&fs::read(recipe).unwrap()).unwrap();
    let mut tensors = BTreeMap::new();
    for (part, names) in &recipe.parts {
        for (name, tensor) in tensors_of(&library.join(part)) {
            tensors.insert(names[&name].clone(), tensor);
        }
    }
    let path = target.join("model.safetensors");
    write_file(&path, &tensors, recipe.metadata);
    copy_folder(&library.join("text_encoder"), &target.join("gemma"));
    copy_folder(&library.join("tokenizer"), &target.join("tokenizer"));
    for (part, metadata) in recipe.upsampler_metadata {
        let tensors = tensors_of(&library.join(&part)).into_iter().collect();
        // One that doubles rows and columns is found, and the others are told apart by their metadata.
        if part != "latent_upsampler_plain" {
            let path = target.join(format!("{part}.safetensors"));
            write_file(&path, &tensors, metadata);
        }
    }
    path
}

/// A tensor's type, shape and bytes.
pub(crate) type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// Returns all tensors of a folder.
pub(crate) fn tensors_of(folder: &Path) -> Vec<(String, Stored)> {
    let files = fs::read_dir(folder).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let mut tensors = Vec::new();
    for path in files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")) {
        let bytes = fs::read(path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let stored = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            tensors.push((name.to_owned(), stored));
        }
    }
    tensors
}

pub(crate) fn write_file(
    path: &Path,
    tensors: &BTreeMap<String, Stored>,
    metadata: BTreeMap<String, String>,
) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let metadata: HashMap<String, String> = metadata.into_iter().collect();
    serialize_to_file(views, Some(metadata), path).unwrap();
}
