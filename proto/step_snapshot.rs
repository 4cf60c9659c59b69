//! Step snapshots: the latents after a denoise step, which the next attempt of the segment goes on from.
//!
//! A worker leaves one after a step, and the supervisor keeps the newest of each running segment. When the worker is lost,
//! the next attempt is sent the snapshot and begins with the step after it. A snapshot is a header and one blob; it lives in
//! memory alone, and both ends of a link are of one build, so the header needs no version of its own.

use serde::{Deserialize, Serialize};

use crate::job::Stage;
use crate::state::{TensorLayout, blob_hash};

/// The largest blob of a snapshot: 256 MiB. LTX-2 needs 16 MiB for 121 frames of 1088x1920.
pub const MAX_BLOB_BYTES: u64 = 256 << 20;
/// The most tensors of a snapshot. LTX-2 has two, of picture and sound.
const MAX_TENSORS: usize = 8;
/// The most dimensions of a tensor.
const MAX_RANK: usize = 8;

/// Everything in a step snapshot except the latents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHeader {
    /// BLAKE3 hash of everything that the latents depend on: the build, the engine, the model, the request and the state
    /// that the segment continues from. The worker computes it; to the supervisor it is opaque.
    pub origin: [u8; 32],
    /// The step after which the latents were taken.
    pub at: StepPoint,
    /// The number of steps of that stage.
    pub total_steps: u32,
    /// The tensors in the blob, in order.
    pub latents: Vec<TensorLayout>,
    /// BLAKE3 hash of the blob.
    pub blob_hash: [u8; 32],
}

/// A step of a segment, of which everything up to its end is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepPoint {
    /// The stage of the step; it is not [`Stage::Decode`].
    pub stage: Stage,
    /// The number of the step in its stage, counted from 1.
    pub step: u32,
    /// The number of steps that are done, over all stages.
    pub steps_done: u32,
}

/// The reason why bytes are not the step snapshot that they are said to be.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("its field `{field}`: expected {expected}, got {given}")]
    Field {
        field: &'static str,
        expected: String,
        given: String,
    },
    #[error("it is {actual} bytes, its header says {expected}")]
    Size { expected: u64, actual: u64 },
    #[error("it is {0} bytes, limit is {MAX_BLOB_BYTES}")]
    Limit(u64),
    #[error("it is damaged: its hash is not the one in its header")]
    Hash,
}

impl SnapshotHeader {
    /// Returns the size that the blob must have in bytes; saturates.
    pub fn blob_bytes(&self) -> u64 {
        let sizes = self.latents.iter().map(TensorLayout::bytes);
        sizes.fold(0, u64::saturating_add)
    }

    /// Checks every field against its limits, and the size of the blob. It reads nothing of the blob.
    ///
    /// # Errors
    /// Returns an error that names the first field that is out of range, or the blob's size.
    pub fn check(&self, blob: &[u8]) -> Result<(), SnapshotError> {
        let StepPoint {
            stage,
            step,
            steps_done,
        } = self.at;
        if stage == Stage::Decode {
            return wrong("stage", "denoise or refine", "decode");
        }
        if !(1..=self.total_steps).contains(&step) {
            return wrong("step", format!("1 to {}", self.total_steps), step);
        }
        if steps_done < step {
            return wrong("steps_done", format!("{step} or more"), steps_done);
        }
        let tensors = self.latents.len();
        if !(1..=MAX_TENSORS).contains(&tensors) {
            return wrong("latents", format!("1 to {MAX_TENSORS} tensors"), tensors);
        }
        for tensor in &self.latents {
            let rank = tensor.shape.len();
            if !(1..=MAX_RANK).contains(&rank) || tensor.shape.contains(&0) {
                let expected = format!("1 to {MAX_RANK} dimensions, none of them 0");
                let given = match rank <= MAX_RANK {
                    true => format!("{:?}", tensor.shape),
                    false => format!("{rank} dimensions"),
                };
                return wrong("latents.shape", expected, given);
            }
        }
        let (expected, actual) = (self.blob_bytes(), blob.len() as u64);
        if expected.max(actual) > MAX_BLOB_BYTES {
            return Err(SnapshotError::Limit(expected.max(actual)));
        }
        match expected == actual {
            true => Ok(()),
            false => Err(SnapshotError::Size { expected, actual }),
        }
    }

    /// Checks the blob against the hash in the header.
    ///
    /// # Errors
    /// Returns [`SnapshotError::Hash`] when it is another one.
    pub fn check_hash(&self, blob: &[u8]) -> Result<(), SnapshotError> {
        match blob_hash(blob) == self.blob_hash {
            true => Ok(()),
            false => Err(SnapshotError::Hash),
        }
    }
}

fn wrong<T>(
    field: &'static str,
    expected: impl ToString,
    given: impl ToString,
) -> Result<T, SnapshotError> {
    Err(SnapshotError::Field {
        field,
        expected: expected.to_string(),
        given: given.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Dtype;

    fn header(blob: &[u8]) -> SnapshotHeader {
        SnapshotHeader {
            origin: [7; 32],
            at: StepPoint {
                stage: Stage::Denoise,
                step: 3,
                steps_done: 3,
            },
            total_steps: 8,
            latents: vec![TensorLayout {
                dtype: Dtype::F32,
                shape: vec![1, 2],
            }],
            blob_hash: blob_hash(blob),
        }
    }

    #[test]
    fn a_snapshot_fits_its_header() {
        let blob = [5; 8];
        header(&blob).check(&blob).unwrap();
        header(&blob).check_hash(&blob).unwrap();
        let damaged = header(&blob).check_hash(&[6; 8]);
        assert!(matches!(damaged, Err(SnapshotError::Hash)));
    }

    #[test]
    fn fields_out_of_range_are_refused_by_name() {
        let check = |change: fn(&mut SnapshotHeader), expected: &str| {
            let blob = [5; 8];
            let mut header = header(&blob);
            change(&mut header);
            let refused = header.check(&blob).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        };
        check(|header| header.at.stage = Stage::Decode, "`stage`");
        check(|header| header.at.step = 0, "expected 1 to 8, got 0");
        check(|header| header.at.step = 9, "expected 1 to 8, got 9");
        check(|header| header.at.steps_done = 2, "expected 3 or more");
        check(|header| header.latents.clear(), "got 0");
        check(|header| header.latents[0].shape.clear(), "got []");
        check(|header| header.latents[0].shape[0] = 0, "got [0, 2]");
        check(
            |header| header.latents[0].shape = vec![1; 9],
            "got 9 dimensions",
        );
        check(
            |header| header.latents[0].shape[0] = 2,
            "its header says 16",
        );
        check(|header| header.latents[0].shape[0] = u64::MAX, "limit is");
    }
}
