//! FastVideo's layout from the library's, by the recipe that `make_goldens.py` wrote and not by the engine's own names.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{SafeTensors, serialize_to_file};
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
