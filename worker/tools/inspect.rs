//! The tool that describes a checkpoint: its parts, its problems, and the memory that it needs.

use std::io::Write;

use anyhow::Context;
use clap::Args;
use fastvideo_ltx2::checkpoint::{Checkpoint, Component, Layout, hub};
use fastvideo_ltx2::load;

#[derive(Clone, Debug, Args)]
pub(crate) struct InspectArgs {
    /// A folder, a safetensors file, or the id of a Hugging Face repository.
    model: String,
}

const GIB: f64 = (1_u64 << 30) as f64;
/// Sizes of common GPUs, with the GiB of memory that a program can use.
const CARDS: [(&str, f64); 4] = [
    ("24 GB", 23.0),
    ("48 GB", 47.0),
    ("80 GB", 78.0),
    ("141 GB", 139.0),
];
/// The memory in GiB that is needed besides the weights at 1920x1088 and 121 frames: a pass of the second stage, with
/// room for the decoder's groups.
const WORKING_GIB: f64 = 8.0;

/// Prints the description.
///
/// # Errors
/// Returns an error that says why, when the model does not exist or is not one that this engine runs.
pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let folder = hub::resolve(&args.model, &mut |download| {
        tracing::info!(
            "downloading {}: {:.0} %",
            download.file,
            download.fraction * 100.0
        );
    })?;
    let checkpoint = Checkpoint::open(&folder)?;
    let mut out = std::io::stdout().lock();
    let layout = match checkpoint.layout() {
        Layout::Library => "the library's layout",
        Layout::Original => "FastVideo's layout",
        Layout::SingleFile => "one file",
    };
    writeln!(out, "LTX-2 in {layout}: {}", folder.display())?;
    writeln!(
        out,
        "{:18}{:>16}{:>14}  folder",
        "part", "parameters", "stored GiB"
    )?;
    for part in checkpoint.parts() {
        let name = part.component.name();
        let (count, bytes) = (part.parameters(), part.files.bytes() as f64 / GIB);
        let folder = part
            .folder
            .strip_prefix(checkpoint.root())
            .unwrap_or(&part.folder);
        writeln!(
            out,
            "{name:18}{count:>16}{bytes:>14.3}  {}",
            folder.display()
        )?;
    }
    if checkpoint.part(Component::Upsampler).is_none() {
        writeln!(out, "no latent upsampler: segments are made in one stage")?;
    }
    let stages = if checkpoint.scheduler().is_some() {
        "as its scheduler says"
    } else {
        "distilled"
    };
    writeln!(out, "schedule: {stages}")?;
    let parameters: u64 = checkpoint
        .parts()
        .iter()
        .map(|part| part.parameters())
        .sum();
    let weights = parameters as f64 * 2.0 / GIB;
    writeln!(
        out,
        "weights in bfloat16: {weights:.2} GiB; in float32: {:.2} GiB",
        2.0 * weights
    )?;
    let needed = weights + WORKING_GIB;
    let cards: Vec<&str> = CARDS
        .iter()
        .filter(|(_, room)| *room >= needed)
        .map(|(name, _)| *name)
        .collect();
    match cards.is_empty() {
        true => writeln!(
            out,
            "estimated {needed:.0} GiB at 1920x1088: more than any one card has"
        )?,
        false => writeln!(
            out,
            "estimated {needed:.0} GiB at 1920x1088, which cards with {} have",
            cards.join(", ")
        )?,
    }
    let generation = load::check(&checkpoint).context("it cannot be run")?;
    Ok(writeln!(
        out,
        "all tensors of {generation} are there, in the shapes that the configuration says"
    )?)
}
