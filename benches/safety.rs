//! Prompts through the safety filter, one after the other, as many as one core gets through: on a model of the usual
//! size, with everything that costs time (subwords, pairs of words, 100 dimensions), trained here on made-up words.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use fastvideo_supervisor_core::prompt::safety::{Config, SafetyFilter, SafetyState};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::figures::Figures;
use crate::report::{Row, Target};

const WORDS: usize = 5000;
const EXAMPLES: usize = 4000;
const TRAINING: &str =
    "-dim 100 -minn 3 -maxn 6 -wordNgrams 2 -bucket 200000 -epoch 1 -thread 2 -verbose 0";
const PROMPTS: usize = 2000;
const WORDS_PER_PROMPT: usize = 40;

pub(crate) async fn measure(runs: usize) -> anyhow::Result<Vec<Row>> {
    let mut rng = StdRng::seed_from_u64(1);
    let words: Vec<String> = (0..WORDS).map(|_| word(&mut rng)).collect();
    let folder = tempfile::tempdir()?;
    let model = train(folder.path(), &words, &mut rng)?;
    let prompts: Vec<String> = (0..PROMPTS)
        .map(|_| sentence(&words, WORDS_PER_PROMPT, &mut rng))
        .collect();
    let filter = SafetyFilter::new(Config {
        classifier_path: Some(model.clone()),
        block_threshold: 0.5,
        required: true,
        log_prompts: false,
    });
    let begun = Instant::now();
    filter.load_if_required().await?;
    let loaded = begun.elapsed();
    let (mut per_second, mut per_core_second) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let (begun, used_before) = (Instant::now(), processor_seconds()?);
        for prompt in &prompts {
            // Whether it is blocked is of no interest.
            let _ = filter.screen(prompt).await;
        }
        per_second.push(PROMPTS as f64 / begun.elapsed().as_secs_f64());
        per_core_second.push(PROMPTS as f64 / (processor_seconds()? - used_before));
    }
    let status = filter.status();
    ensure!(
        status.state == SafetyState::Ready && status.screened == (PROMPTS * runs) as u64,
        "the filter did not judge all prompts: {status:?}"
    );
    let rates = Figures::of(per_second)?;
    Ok(vec![Row {
        key: "safety",
        what: "prompts through the safety filter, one after the other",
        unit: "1/s",
        python: "-",
        target: Target::AtLeast(1000.0),
        measured: rates.p50,
        note: format!(
            "{WORDS_PER_PROMPT} words each; {:.0} per second of processor time; model of {:.0} MB, loaded in {:.0} ms",
            Figures::of(per_core_second)?.p50,
            fs::metadata(&model)?.len() as f64 / 1e6,
            loaded.as_secs_f64() * 1e3,
        ),
        figures: Some(rates),
    }])
}

#[expect(
    clippy::disallowed_methods,
    reason = "trains a model, which is no worker"
)]
fn train(folder: &Path, words: &[String], rng: &mut StdRng) -> anyhow::Result<PathBuf> {
    let mut examples = String::new();
    for i in 0..EXAMPLES {
        let label = ["unsafe", "safe"][i % 2];
        writeln!(examples, "__label__{label} {}", sentence(words, 20, rng))?;
    }
    let (file, model) = (folder.join("examples.txt"), folder.join("model"));
    fs::write(&file, examples)?;
    let status = Command::new("fasttext")
        .arg("supervised")
        .arg("-input")
        .arg(&file)
        .arg("-output")
        .arg(&model)
        .args(TRAINING.split(' '))
        .stdout(Stdio::null())
        .status()
        .context("fasttext is not installed (make bench does that)")?;
    ensure!(status.success(), "fasttext: {status}");
    Ok(model.with_extension("bin"))
}

fn sentence(words: &[String], len: usize, rng: &mut StdRng) -> String {
    let words = (0..len).map(|_| words[rng.random_range(0..words.len())].as_str());
    words.collect::<Vec<_>>().join(" ")
}

fn word(rng: &mut StdRng) -> String {
    (0..rng.random_range(3..10))
        .map(|_| rng.random_range('a'..='z'))
        .collect()
}

/// Of this process, all threads.
fn processor_seconds() -> anyhow::Result<f64> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
    Ok(time.num_microseconds() as f64 / 1e6)
}
