//! The reference checkpoints and their tensors, as `tests/reference/make_goldens.py` and `make_goldens_23.py` write them;
//! `LTX2_REFERENCE` and `LTX23_REFERENCE` name other such folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Mutex;

use fastvideo_ltx2::sampling::latents::{AudioGrid, VideoGrid};
use fastvideo_ltx2::weights::Store;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::layout;

pub(crate) struct Reference {
    root: PathBuf,
    checkpoint: PathBuf,
}

impl Reference {
    /// The one of LTX-2.0.
    pub(crate) fn open() -> Self {
        Self::at("data", "LTX2_REFERENCE")
    }

    /// The one of LTX-2.3.
    pub(crate) fn v2_3() -> Self {
        Self::at("data-2.3", "LTX23_REFERENCE")
    }

    fn at(stored: &str, variable: &str) -> Self {
        let all = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../../tests/reference"
        ));
        let root = std::env::var_os(variable).map_or_else(|| all.join(stored), PathBuf::from);
        let checkpoint = root.join("checkpoint/diffusers");
        Self { root, checkpoint }
    }

    /// A checkpoint in the library's layout without reference tensors beside it.
    pub(crate) fn of_checkpoint(checkpoint: &Path) -> Self {
        let root = checkpoint.to_owned();
        let checkpoint = root.clone();
        Self { root, checkpoint }
    }

    /// `settings` of the manifest: prompt, sizes, seed and so on.
    pub(crate) fn settings(&self) -> Value {
        let manifest = std::fs::read(self.root.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        manifest["settings"].clone()
    }

    /// The checkpoint in the library's layout.
    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.checkpoint.clone()
    }

    /// A component's configuration in FastVideo's layout.
    pub(crate) fn original_config(&self, component: &str) -> Value {
        let path = self
            .original_checkpoint()
            .join(component)
            .join("config.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// The same weights as FastVideo's converter lays them out: those of the folder, or made from the library's layout.
    pub(crate) fn original_checkpoint(&self) -> PathBuf {
        static MADE: Mutex<BTreeMap<PathBuf, tempfile::TempDir>> = Mutex::new(BTreeMap::new());
        let stored = self.root.join("checkpoint/fastvideo");
        if stored.is_dir() {
            return stored;
        }
        let recipe = self.root.join("checkpoint/fastvideo.json");
        let mut made = MADE.lock().unwrap();
        let made = made.entry(self.root.clone()).or_insert_with(|| {
            let folder = tempfile::tempdir().unwrap();
            layout::make_original(&self.checkpoint(), &recipe, folder.path());
            folder
        });
        made.path().to_owned()
    }

    /// The same weights as the authors' single file, in a folder of its own with what belongs beside it.
    pub(crate) fn single_file(&self) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let recipe = self.root.join("checkpoint/original.json");
        let file = layout::make_single_file(&self.checkpoint(), &recipe, folder.path());
        (folder, file)
    }

    /// A component's configuration in the library's layout.
    pub(crate) fn config(&self, component: &str) -> Value {
        let path = self.checkpoint().join(component).join("config.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// The scheduler's configuration in the library's layout.
    pub(crate) fn scheduler(&self) -> Value {
        let path = self.checkpoint().join("scheduler/scheduler_config.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// A component's tensors in the library's layout.
    pub(crate) fn store(&self, component: &str, kind: Kind) -> Rc<Store> {
        self.store_on(component, kind, Device::Cpu)
    }

    pub(crate) fn store_on(&self, component: &str, kind: Kind, device: Device) -> Rc<Store> {
        let tensors = self.tensors(component, |name| Some(name.to_owned()));
        Store::new(component, tensors, kind, device)
    }

    /// The same under the names that `rename` gives, without those that it gives none.
    pub(crate) fn renamed(
        &self,
        component: &str,
        kind: Kind,
        rename: fn(&str) -> Option<String>,
    ) -> Rc<Store> {
        Store::new(
            component,
            self.tensors(component, rename),
            kind,
            Device::Cpu,
        )
    }

    /// A component's tensors as they are stored, under the names that `rename` gives.
    pub(crate) fn tensors(
        &self,
        component: &str,
        rename: fn(&str) -> Option<String>,
    ) -> BTreeMap<String, Tensor> {
        let mut tensors = BTreeMap::new();
        for entry in std::fs::read_dir(self.checkpoint().join(component)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let read = Tensor::read_safetensors(path).unwrap();
                tensors.extend(
                    read.into_iter()
                        .filter_map(|(name, t)| Some((rename(&name)?, t))),
                );
            }
        }
        tensors
    }

    pub(crate) fn golden(&self, section: &str) -> Golden {
        let path = self
            .root
            .join("golden")
            .join(format!("{section}.safetensors"));
        let tensors = Tensor::read_safetensors(path).unwrap();
        Golden(tensors.into_iter().collect())
    }
}

/// The small trained model in the folder that `TINY_MODEL` names, and its tensors; none, and a line that says so, where it
/// is not there.
#[expect(
    clippy::print_stdout,
    reason = "a test that checks nothing should say so"
)]
pub(crate) fn tiny_model() -> Option<(Reference, Golden)> {
    let Some(folder) = std::env::var_os("TINY_MODEL").map(PathBuf::from) else {
        println!("skipped: TINY_MODEL names no folder");
        return None;
    };
    let golden = Golden::read(&folder.join("goldens.safetensors"));
    Some((Reference::of_checkpoint(&folder.join("checkpoint")), golden))
}

/// The tensors of one section.
pub(crate) struct Golden(BTreeMap<String, Tensor>);

impl Golden {
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn read(path: &Path) -> Self {
        Self(
            Tensor::read_safetensors(path)
                .unwrap()
                .into_iter()
                .collect(),
        )
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    pub(crate) fn get(&self, name: &str) -> &Tensor {
        self.0
            .get(name)
            .unwrap_or_else(|| panic!("no golden `{name}`"))
    }
}

/// `‖a − b‖ / ‖b‖` in float64.
pub(crate) fn relative_error(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.size(), expected.size());
    let double = |t: &Tensor| t.to_device(Device::Cpu).to_kind(Kind::Double);
    let (a, b) = (double(actual), double(expected));
    let norm = |t: &Tensor| t.square().sum(Kind::Double).sqrt().double_value(&[]);
    norm(&(a - &b)) / norm(&b).max(f64::MIN_POSITIVE)
}

/// Panics where the relative error is above `tolerance`, or is not a number.
#[track_caller]
pub(crate) fn check(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    let error = relative_error(actual, expected);
    assert!(
        error <= tolerance,
        "{what}: relative error {error:e}, accepted {tolerance:e}"
    );
}

/// The grids of video latents `[B, C, f, h, w]` and audio latents `[B, C, T, M]`.
pub(crate) fn grids_of(video: &Tensor, audio: &Tensor) -> (VideoGrid, AudioGrid) {
    let (v, a) = (video.size(), audio.size());
    let video = VideoGrid {
        channels: v[1],
        frames: v[2],
        height: v[3],
        width: v[4],
    };
    (
        video,
        AudioGrid {
            channels: a[1],
            frames: a[2],
            bins: a[3],
        },
    )
}
