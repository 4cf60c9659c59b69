//! Step snapshots in the worker: they are made of an engine's latents, and checked before an engine goes on from one.
//!
//! `job` checks the snapshot that came with a job, `sink` leaves new ones. Whether a step leaves one depends on how long it
//! took, since a quick step is sooner done again than its latents are copied.

use std::collections::BTreeMap;
use std::time::Duration;

use fastvideo_link::SharedMemory;
use fastvideo_proto::adapter::HeldAdapter;
use fastvideo_proto::link::{EngineSpec, JobSpec, LINK_VERSION};
use fastvideo_proto::state::blob_hash;
use fastvideo_proto::step_snapshot::{MAX_BLOB_BYTES, SnapshotError, SnapshotHeader, StepPoint};

use crate::engine::{EngineError, StepLatents, StepSnapshot};
use crate::held_states::SharedState;

/// What all requests of this process have in common that their latents depend on: the build, the engine, its options and
/// the model, with the adapters that were loaded by order.
#[derive(Clone, Debug)]
pub(crate) struct ModelIdentity {
    base: Vec<u8>,
    /// The hash of each adapter's file and the engine's options for it, by name.
    adapters: BTreeMap<String, Vec<u8>>,
}

impl ModelIdentity {
    /// `adapters` are those that belong to the engine's options.
    pub(crate) fn new(engine: &EngineSpec, model_id: &str, adapters: &[HeldAdapter]) -> Self {
        let mut fields = Fields::default();
        fields.text(env!("CARGO_PKG_VERSION"));
        fields.number(LINK_VERSION.into());
        fields.text(&engine.name);
        fields.text(&engine.options);
        fields.text(model_id);
        let mut identity = Self {
            base: fields.0,
            adapters: BTreeMap::new(),
        };
        for adapter in adapters {
            identity.add_adapter(adapter, "");
        }
        identity
    }

    /// Takes note of an adapter that requests can choose from now on.
    pub(crate) fn add_adapter(&mut self, adapter: &HeldAdapter, options: &str) {
        let mut fields = Fields::default();
        fields.bytes(&adapter.file_hash);
        fields.text(options);
        self.adapters.insert(adapter.name.clone(), fields.0);
    }

    /// Takes note of an adapter that is not there any more.
    pub(crate) fn forget_adapter(&mut self, name: &str) {
        self.adapters.remove(name);
    }
}

/// A step snapshot in shared memory.
#[derive(Clone, Debug)]
pub(crate) struct SharedSnapshot {
    header: SnapshotHeader,
    latents: SharedMemory,
}

/// The reason why a segment does not go on from a snapshot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("it came without its latents")]
    NoLatents,
    #[error(transparent)]
    Damaged(#[from] SnapshotError),
    #[error("it is of another request, model or build")]
    OtherOrigin,
}

impl SharedSnapshot {
    /// Checks the snapshot that came with a job: its fields, where it comes from, and the hash of its latents.
    ///
    /// # Errors
    /// Returns an error when the segment must not go on from it.
    pub(crate) fn check(
        header: &SnapshotHeader,
        latents: Option<SharedMemory>,
        origin: &[u8; 32],
    ) -> Result<Self, Unusable> {
        let latents = latents.ok_or(Unusable::NoLatents)?;
        header.check(&latents)?;
        if header.origin != *origin {
            return Err(Unusable::OtherOrigin);
        }
        header.check_hash(&latents)?;
        let header = header.clone();
        Ok(Self { header, latents })
    }

    /// Returns the snapshot as an engine reads it.
    pub(crate) fn as_engine_snapshot(&self) -> StepSnapshot<'_> {
        StepSnapshot {
            at: self.header.at,
            total_steps: self.header.total_steps,
            layout: &self.header.latents,
            latents: &self.latents,
        }
    }
}

/// Decides which steps of a segment leave a snapshot, and makes it.
#[derive(Debug)]
pub(crate) struct SnapshotMaker {
    /// A step that took at least this long leaves a snapshot; `None`: no step does.
    min_step: Option<Duration>,
    origin: [u8; 32],
    /// The latents of the last snapshot. Pages of new shared memory cost a fault each when they are written through a
    /// mapping, which takes three times as long as to write them with a system call from here.
    copy: Vec<u8>,
}

impl SnapshotMaker {
    /// Creates the maker of a job's snapshots.
    pub(crate) fn new(spec: &JobSpec, origin: [u8; 32]) -> Self {
        Self {
            min_step: spec.snapshot_min_step,
            origin,
            copy: Vec::new(),
        }
    }

    /// Makes no snapshot: nobody goes on from one.
    pub(crate) fn none() -> Self {
        Self {
            min_step: None,
            origin: [0; 32],
            copy: Vec::new(),
        }
    }

    /// Returns whether a step that took so long leaves a snapshot.
    pub(crate) fn is_due(&self, took: Duration) -> bool {
        self.min_step.is_some_and(|min_step| took >= min_step)
    }

    /// Makes a snapshot of the latents after a step, in sealed memory.
    ///
    /// # Errors
    /// Returns an error when the latents are larger than a snapshot may be, cannot be read, or find no memory.
    pub(crate) fn make(
        &mut self,
        at: StepPoint,
        total_steps: u32,
        latents: &dyn StepLatents,
    ) -> Result<(SnapshotHeader, SharedMemory), EngineError> {
        let mut header = SnapshotHeader {
            origin: self.origin,
            at,
            total_steps,
            latents: latents.layout(),
            blob_hash: [0; 32],
        };
        let bytes = header.blob_bytes();
        if bytes > MAX_BLOB_BYTES {
            return Err(failed(SnapshotError::Limit(bytes)));
        }
        let bytes = usize::try_from(bytes).map_err(failed)?;
        self.copy.resize(bytes, 0);
        latents.write(&mut self.copy)?;
        header.blob_hash = blob_hash(&self.copy);
        header.check(&self.copy).map_err(failed)?;
        let blob = SharedMemory::from_bytes(&self.copy).map_err(failed)?;
        Ok((header, blob))
    }
}

fn failed(error: impl std::error::Error) -> EngineError {
    EngineError::Failed(error.to_string())
}

/// Returns the hash of everything that the latents of a job depend on. `start` is the state that it continues from. What is
/// kept of the segment as a part of a video is not among it.
pub(crate) fn origin(
    model: &ModelIdentity,
    spec: &JobSpec,
    start: Option<&SharedState>,
) -> [u8; 32] {
    let mut fields = Fields(model.base.clone());
    fields.number(spec.segment_idx.into());
    fields.text(&spec.prompt);
    fields.optional(spec.negative_prompt.as_deref().map(str::as_bytes));
    fields.number(spec.seed);
    fields.number(spec.num_inference_steps.into());
    fields.number(spec.guidance_scale.to_bits());
    for adapter in &spec.adapters {
        fields.text(&adapter.name);
        fields.number(adapter.strength.to_bits());
        let held = model.adapters.get(&adapter.name);
        fields.optional(held.map(Vec::as_slice));
    }
    let format = spec.format;
    for number in [format.width, format.height, format.num_frames, format.fps] {
        fields.number(number.into());
    }
    // Each image has a file with a name of its own, which never changes.
    let image = spec.initial_image.as_deref();
    fields.optional(image.map(|path| path.as_os_str().as_encoded_bytes()));
    // The header has the hash of the state's blob.
    let state = start.map(|start| start.header.encode());
    fields.optional(state.as_deref());
    blob_hash(&fields.0)
}

/// Fields one after the other, each after its length, so that no two lists of fields have the same bytes.
#[derive(Debug, Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn optional(&mut self, bytes: Option<&[u8]>) {
        self.0.push(u8::from(bytes.is_some()));
        self.bytes(bytes.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use fastvideo_proto::job::Stage;
    use fastvideo_proto::state::{Dtype, TensorLayout};

    use super::*;

    /// Latents that are in memory already.
    struct Ready(Vec<u8>);

    impl StepLatents for Ready {
        fn layout(&self) -> Vec<TensorLayout> {
            vec![TensorLayout {
                dtype: Dtype::F32,
                shape: vec![1, self.0.len() as u64 / 4],
            }]
        }

        fn write(&self, to: &mut [u8]) -> Result<(), EngineError> {
            to.copy_from_slice(&self.0);
            Ok(())
        }
    }

    /// What a snapshot of 8 MiB costs its worker: `cargo test --release … -- --ignored --nocapture snapshot_cost`.
    #[test]
    #[ignore = "a measurement, not a fact"]
    fn snapshot_cost() {
        let latents = Ready(vec![7; 8 << 20]);
        let mut maker = SnapshotMaker {
            min_step: Some(Duration::ZERO),
            origin: [0; 32],
            copy: Vec::new(),
        };
        let at = StepPoint {
            stage: Stage::Denoise,
            step: 1,
            steps_done: 1,
        };
        for _ in 0..5 {
            let begun = Instant::now();
            let snapshot = maker.make(at, 1, &latents).unwrap();
            let made = begun.elapsed();
            let begun = Instant::now();
            snapshot.0.check_hash(&snapshot.1).unwrap();
            let hashed = begun.elapsed();
            let begun = Instant::now();
            drop(snapshot);
            let dropped = begun.elapsed();
            println!("made in {made:?}, of which the hash {hashed:?}; dropped in {dropped:?}");
        }
    }
}
