//! Models for tests, trained with the fastText tool on made-up sentences.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

/// A model and the labels that it was trained with.
pub(in crate::prompt) struct Trained {
    pub(super) folder: TempDir,
    pub(in crate::prompt) model: PathBuf,
    /// The labels; `__label__unsafe` is the first one.
    pub(super) labels: Vec<String>,
}

pub(super) const QUICK: &str = "-epoch 5 -lr 0.5 -thread 1 -verbose 0";

impl Trained {
    /// Trains a model with options of `fasttext supervised`. `__label__unsafe` goes with blood, weapons and explosions; the
    /// second label goes with gardens, kittens and picnics.
    pub(in crate::prompt) fn new(options: &str, labels: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let labels: Vec<String> = ["__label__unsafe".to_owned()]
            .into_iter()
            .chain((1..labels).map(|i| format!("__label__kind{i}")))
            .collect();
        let examples = folder.path().join("examples.txt");
        fs::write(&examples, training_text(&labels)).unwrap();
        let trained = Self {
            model: folder.path().join("model.bin"),
            folder,
            labels,
        };
        trained.tool("supervised", &format!("{QUICK} {options}"));
        trained
    }

    /// Quantises the model with options of `fasttext quantize`.
    pub(super) fn quantised(mut self, options: &str) -> Self {
        self.tool("quantize", &format!("{options} {QUICK}"));
        self.model.set_extension("ftz");
        self
    }

    pub(super) fn tool(&self, command: &str, options: &str) {
        let path = |name| self.folder.path().join(name);
        run(fasttext()
            .arg(command)
            .arg("-input")
            .arg(path("examples.txt"))
            .arg("-output")
            .arg(path("model"))
            .args(options.split_whitespace()));
    }
}

#[expect(clippy::disallowed_methods, reason = "the tool that is compared with")]
pub(super) fn fasttext() -> Command {
    Command::new("fasttext")
}

pub(super) fn run(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .expect("Debian's package fasttext is installed, as by `make test`");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub(super) const COMMON: &[&str] = &[
    "the",
    "a",
    "slow",
    "camera",
    "over",
    "lake",
    "city",
    "night",
    "rain",
    "forest",
    "bird",
    "walks",
    "light",
    "soft",
    "glass",
    "harbour",
    "winter",
    "train",
    "señor",
    "naïve",
    "über",
    "東京",
    "夜の街",
    "снег",
    "🦊",
    "🌊🌊",
    "👩‍🚀",
];
/// Words that lean to a label: three for each of the first four labels.
pub(super) const LEANING: &[&str] = &[
    "blood", "weapon", "explode", "garden", "kitten", "picnic", "tax", "meeting", "chart", "goal",
    "stadium", "keeper",
];

/// Makes lines that consist of a label and words, some of which lean to it.
fn training_text(labels: &[String]) -> String {
    let mut rng = StdRng::seed_from_u64(1);
    let mut text = String::new();
    for i in 0..600.max(labels.len() * 3) {
        let label = i % labels.len();
        let mut words = vec![labels[label].clone()];
        for _ in 0..rng.random_range(3..14) {
            words.push(match rng.random_ratio(1, 3) {
                true => LEANING[(label * 3 + rng.random_range(0..3)) % LEANING.len()].to_owned(),
                false => (*COMMON.choose(&mut rng).unwrap()).to_owned(),
            });
        }
        text += &words.join(" ");
        text += "\n";
    }
    text
}
