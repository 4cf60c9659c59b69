//! What is found on disk: both layouts, and what is wrong with damaged ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use fastvideo_ltx2::checkpoint::{Checkpoint, Component, Layout, gemma_names, hub};
use fastvideo_ltx2::load;
use fastvideo_ltx2::nn::Precision;
use fastvideo_ltx2::weights::Reading;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use tch::{Device, Tensor};

use crate::layout::copy_folder;
use crate::reference::Reference;

/// All tensors of a part by their library names.
fn tensors(checkpoint: &Checkpoint, component: Component) -> BTreeMap<String, Tensor> {
    let part = checkpoint.part(component).unwrap();
    let store = part.store(Precision::Bfloat16, Device::Cpu, Reading::default());
    let weights = store.root();
    let names: Vec<String> = part
        .files
        .names()
        .map(|(name, _)| name.to_owned())
        .collect();
    let load = |name: String| {
        let shape = weights.shape(&name).unwrap();
        let tensor = weights.tensor(&name, &shape);
        (name, tensor)
    };
    let tensors = names.into_iter().map(load).collect();
    store.finish().unwrap();
    tensors
}

#[test]
fn both_layouts_hold_the_same_tensors_under_the_library_s_names() {
    let reference = Reference::open();
    let library = Checkpoint::open(&reference.checkpoint()).unwrap();
    let original = Checkpoint::open(&reference.original_checkpoint()).unwrap();
    assert_eq!(library.layout(), Layout::Library);
    assert_eq!(original.layout(), Layout::Original);
    assert_eq!(library.stored_bytes(), original.stored_bytes());
    for component in Component::ALL {
        let (library, original) = (tensors(&library, component), tensors(&original, component));
        assert!(library.keys().eq(original.keys()), "{component:?}");
        for (name, tensor) in &library {
            assert_eq!(tensor, &original[name], "{component:?} {name}");
        }
    }
}

#[test]
fn tensors_are_those_of_the_files() {
    let reference = Reference::open();
    let checkpoint = Checkpoint::open(&reference.checkpoint()).unwrap();
    let loaded = tensors(&checkpoint, Component::Transformer);
    let mut count = 0;
    for entry in fs::read_dir(&checkpoint.part(Component::Transformer).unwrap().folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            for (name, tensor) in Tensor::read_safetensors(path).unwrap() {
                assert_eq!(tensor, loaded[&name], "{name}");
                count += 1;
            }
        }
    }
    assert_eq!(count, loaded.len());
}

#[test]
fn every_byte_that_is_loaded_is_told_and_values_are_looked_at_on_request() {
    let copy = Copy::of_reference();
    let bytes = std::cell::Cell::new(0);
    let bytes = Rc::new(bytes);
    let told = bytes.clone();
    let reading = Reading {
        watch: Some(Rc::new(move |more| told.set(told.get() + more))),
        check_values: true,
        ..Reading::default()
    };
    let part = |folder: &Path| {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let part = checkpoint.part(Component::Connectors).unwrap();
        let store = part.store(Precision::Float32, Device::Cpu, reading.clone());
        for (name, _) in part.files.names() {
            let shape = store.root().shape(name).unwrap();
            drop(store.root().tensor(name, &shape));
        }
        (part.files.bytes(), store.finish())
    };
    let (size, outcome) = part(copy.path());
    outcome.unwrap();
    assert_eq!(bytes.get(), size);

    copy.edit_tensor("connectors/diffusion_pytorch_model.safetensors", |data| {
        data[..2].copy_from_slice(&0x7fc0_u16.to_le_bytes());
    });
    let error = part(copy.path()).1.unwrap_err().to_string();
    assert!(error.contains("no finite numbers"), "{error}");
}

#[test]
fn what_is_wrong_with_a_checkpoint_is_told_in_words() {
    let check = |damage: &dyn Fn(&Copy), expected: &[&str]| {
        let copy = Copy::of_reference();
        damage(&copy);
        let error = Checkpoint::open(copy.path()).unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "{error}: expected `{part}`");
        }
    };
    check(
        &|copy| {
            let path = copy.tensor_file("vocoder");
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 100).unwrap();
        },
        &["vocoder/", "is truncated or damaged"],
    );
    check(
        &|copy| fs::remove_file(copy.tensor_file("transformer")).unwrap(),
        &["cannot read", "transformer/", ".safetensors"],
    );
    check(
        &|copy| fs::remove_dir_all(copy.path().join("vocoder")).unwrap(),
        &["part `vocoder` is missing", "expected in vocoder/"],
    );
    check(
        &|copy| fs::remove_file(copy.path().join("tokenizer/tokenizer.json")).unwrap(),
        &["part `tokenizer` is missing"],
    );
    check(
        &|copy| fs::write(copy.path().join("vae/config.json"), "{").unwrap(),
        &["vae/config.json is not JSON"],
    );
    check(
        &|copy| copy.edit_json("model_index.json", "_class_name", json!("WanPipeline")),
        &["is not a checkpoint of LTX-2.0 or LTX-2.3", "`WanPipeline`"],
    );
    check(
        &|copy| copy.edit_json("text_encoder/config.json", "model_type", json!("t5")),
        &["must be `gemma3`, given `t5`"],
    );
    check(
        &|copy| {
            let index = "vae/diffusion_pytorch_model.safetensors.index.json";
            let map = json!({"latents_mean": "../../secret.safetensors"});
            copy.edit_json(index, "weight_map", map);
        },
        &["`../../secret.safetensors` is no file beside it"],
    );
}

#[test]
fn missing_misshapen_and_unexpected_tensors_are_told_together() {
    let copy = Copy::of_reference();
    copy.edit_tensors(
        "connectors/diffusion_pytorch_model.safetensors",
        |tensors| {
            let (_, tensor) = tensors.remove_entry("text_proj_in.weight").unwrap();
            tensors.insert("text_proj_out.weight".to_owned(), tensor);
        },
    );
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    let part = checkpoint.part(Component::Connectors).unwrap();
    let dry = Reading {
        dry: true,
        ..Reading::default()
    };
    let store = part.store(Precision::Float32, Device::Cpu, dry);
    let registers = "video_connector.learnable_registers";
    let stand_in = store.root().tensor("text_proj_in.weight", &[7, 5]);
    assert_eq!(stand_in.size(), [7, 5]);
    drop(store.root().tensor(registers, &[1, 1]));
    for (name, _) in part
        .files
        .names()
        .filter(|(name, _)| *name != registers && *name != "text_proj_out.weight")
    {
        drop(
            store
                .root()
                .tensor(name, &store.root().shape(name).unwrap()),
        );
    }
    let error = store.finish().unwrap_err();
    assert_eq!(error.problems.len(), 3, "{error}");
    assert_eq!(
        error.problems[0],
        "no tensor `text_proj_in.weight` of shape [7, 5]"
    );
    assert!(error.problems[1].starts_with(
        "tensor `video_connector.learnable_registers`: expected shape [1, 1], given ["
    ));
    assert_eq!(
        error.problems[2],
        "unexpected tensor `text_proj_out.weight`"
    );
}

#[test]
fn a_folder_of_something_else_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("neither model_index.json nor transformer/config.json"),
        "{error}"
    );
    let error = hub::resolve("/nowhere/ltx2", &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("neither a folder, a file nor a repository's id"),
        "{error}"
    );
}

#[test]
fn hidden_files_beside_those_of_the_model_are_left_alone() {
    fn hide_beside_all(folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                hide_beside_all(&entry.path());
            }
            // As macOS writes them on disks of other systems.
            fs::write(
                folder.join(format!("._{name}")),
                b"\0\x05\x16\x07\0\x02\0\0Mac OS X",
            )
            .unwrap();
        }
        fs::write(folder.join(".DS_Store"), b"\0\0\0\x01Bud1").unwrap();
        fs::write(folder.join(".hidden.safetensors.index.json"), "{}").unwrap();
    }
    let copy = Copy::of_reference();
    hide_beside_all(copy.path());
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    load::check(&checkpoint).unwrap();
}

#[test]
fn the_text_encoder_may_be_saved_by_itself() {
    for prefix in ["", "model.", "language_model."] {
        let copy = Copy::of_reference();
        let config = copy.path().join("text_encoder/config.json");
        let whole: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        let mut text = whole["text_config"].clone();
        text["model_type"] = json!("gemma3_text");
        fs::write(&config, text.to_string()).unwrap();
        copy.edit_tensors("text_encoder/model.safetensors", |tensors| {
            let renamed = std::mem::take(tensors).into_iter().map(|(stored, tensor)| {
                let name = gemma_names::library_name(&stored);
                (
                    name.map_or(stored, |name| format!("{prefix}{name}")),
                    tensor,
                )
            });
            *tensors = renamed.collect();
        });
        let checkpoint = Checkpoint::open(copy.path()).unwrap();
        load::check(&checkpoint).unwrap_or_else(|error| panic!("`{prefix}`: {error}"));
    }
}

#[test]
fn a_model_in_one_file_is_named_and_the_form_that_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let check = |file: &str, form: &str| {
        let path = folder.path().join(file);
        fs::write(&path, "").unwrap();
        let error = hub::resolve(path.to_str().unwrap(), &mut |_| {})
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(form) && error.contains("a part in each subfolder"),
            "{error}"
        );
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(form), "{error}");
        fs::remove_file(path).unwrap();
    };
    check(
        "ltx-2-19b-dev.ckpt",
        "a model in one file as Python's pickle",
    );
    check(
        "ltx-2-19b-Q4_K_M.gguf",
        "a quantized model in one file (GGUF)",
    );
}

/// The reference's checkpoint, to be damaged.
struct Copy(tempfile::TempDir);

impl Copy {
    fn of_reference() -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&Reference::open().checkpoint(), folder.path());
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// The last of a part's files of tensors.
    fn tensor_file(&self, part: &str) -> PathBuf {
        let files = fs::read_dir(self.path().join(part)).unwrap();
        let files = files.map(|entry| entry.unwrap().path());
        let is_tensors = |path: &PathBuf| path.extension().is_some_and(|end| end == "safetensors");
        files.filter(is_tensors).max().unwrap()
    }

    fn edit_json(&self, file: &str, key: &str, value: Value) {
        let path = self.path().join(file);
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        json[key] = value;
        fs::write(path, json.to_string()).unwrap();
    }

    /// Changes the bytes behind a file's header.
    fn edit_tensor(&self, file: &str, edit: impl FnOnce(&mut [u8])) {
        let path = self.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        let (header, _) = SafeTensors::read_metadata(&bytes).unwrap();
        edit(&mut bytes[8 + header..]);
        fs::write(path, bytes).unwrap();
    }

    fn edit_tensors(
        &self,
        file: &str,
        edit: impl FnOnce(&mut BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>),
    ) {
        let path = self.path().join(file);
        let bytes = fs::read(&path).unwrap();
        let mut tensors: BTreeMap<_, _> = SafeTensors::deserialize(&bytes)
            .unwrap()
            .iter()
            .map(|(name, view)| {
                let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
                (name.to_owned(), tensor)
            })
            .collect();
        edit(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}
