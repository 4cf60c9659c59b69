//! Tries what a worker would need: the engine with its model, and the encoder. It loads no model and opens no GPU, except
//! for an encoder that runs on one.

use std::io::Write;

use anyhow::{Context, ensure};
use fastvideo_proto::check::{CheckSpec, Finding};
use fastvideo_proto::job::MediaMode;
use fastvideo_proto::link::LINK_VERSION;

use crate::encode::{EncodeParams, Encoder};
use crate::engine::{ModelCheck, synthetic};
use crate::load;

/// Prints the findings as a JSON array.
///
/// # Errors
/// Returns an error when the specification cannot be read, or nobody reads the findings.
pub(crate) fn run(spec: &str) -> anyhow::Result<()> {
    let spec: CheckSpec = serde_json::from_str(spec).context("cannot read what to check")?;
    ensure!(
        spec.version == LINK_VERSION,
        "the supervisor speaks link version {}, this worker speaks {LINK_VERSION}",
        spec.version
    );
    let findings = [engine(&spec), encoder(&spec)];
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, &findings)?;
    Ok(writeln!(stdout)?)
}

fn engine(spec: &CheckSpec) -> Finding {
    let what = format!("engine {}", spec.engine.name);
    let created = load::engine(&spec.engine, spec.format);
    match created.and_then(|(engine, _)| engine.check()) {
        Ok(ModelCheck::Usable(found)) => Finding::ok(what, found),
        Ok(ModelCheck::NotHere(why)) => Finding::not_tried(what, why),
        Err(error) => Finding::failed(what, error),
    }
}

fn encoder(spec: &CheckSpec) -> Finding {
    let what = format!("encoder {}", spec.encoder.video_codec);
    let opened = Encoder::open(&EncodeParams {
        format: spec.format,
        mode: MediaMode::AvFmp4,
        audio: Some(synthetic::AUDIO),
        spec: spec.encoder.clone(),
    });
    let size = format!("{}x{}", spec.format.width, spec.format.height);
    match opened {
        Ok(_) => Finding::ok(what, format!("opens with {size}")),
        Err(error) => Finding::failed(what, format!("{:#}", anyhow::Error::from(error))),
    }
}
