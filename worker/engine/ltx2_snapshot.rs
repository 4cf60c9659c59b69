//! Converts the latents of a denoise step to a step snapshot and back: video tokens `[1, N, C]` and audio tokens
//! `[1, L, D]`, in float32, so that the segment that goes on from them is the same in every bit.

use fastvideo_ltx2::pipeline::{Latents, Stage};
use fastvideo_proto::job;
use fastvideo_proto::state::{Dtype, TensorLayout};
use tch::{Device, Kind, Tensor};

use super::{EngineError, StepLatents, StepSnapshot};

/// The latents after a step, on the model's device.
pub(super) struct AfterStep<'a>(pub(super) &'a Latents);

/// The step that a segment goes on from.
#[derive(Debug)]
pub(super) struct Resumed {
    pub(super) stage: Stage,
    pub(super) step: usize,
    pub(super) latents: Latents,
}

impl AfterStep<'_> {
    fn tensors(&self) -> [&Tensor; 2] {
        [&self.0.video, &self.0.audio]
    }
}

impl StepLatents for AfterStep<'_> {
    fn layout(&self) -> Vec<TensorLayout> {
        let layout = |tensor: &Tensor| TensorLayout {
            dtype: Dtype::F32,
            shape: tensor
                .size()
                .iter()
                .map(|size| size.unsigned_abs())
                .collect(),
        };
        self.tensors().map(layout).to_vec()
    }

    fn write(&self, to: &mut [u8]) -> Result<(), EngineError> {
        let mut rest = to;
        for tensor in self.tensors() {
            let tensor = tensor
                .to_device(Device::Cpu)
                .to_kind(Kind::Float)
                .contiguous();
            let bytes = tensor.numel() * Kind::Float.elt_size_in_bytes();
            let room = rest.len();
            let Some((part, behind)) = rest.split_at_mut_checked(bytes) else {
                let message = format!("latents of {bytes} bytes have room for {room}");
                return Err(EngineError::Failed(message));
            };
            tensor.copy_data_u8(part, tensor.numel());
            rest = behind;
        }
        Ok(())
    }
}

/// Reads a snapshot into tensors on the CPU. The model checks whether they fit the request.
///
/// # Errors
/// Returns [`EngineError::SnapshotRefused`] when it is not what this engine leaves.
pub(super) fn read(snapshot: &StepSnapshot<'_>) -> Result<Resumed, EngineError> {
    let refused = |what: String| Err(EngineError::SnapshotRefused(format!("it has {what}")));
    let [video, audio] = snapshot.layout else {
        return refused(format!("{} tensors", snapshot.layout.len()));
    };
    let mut rest = snapshot.latents;
    let mut tensor = |layout: &TensorLayout| {
        let bytes = usize::try_from(layout.bytes()).unwrap_or(usize::MAX);
        let (part, behind) = rest.split_at_checked(bytes)?;
        rest = behind;
        let shape: Vec<i64> = layout.shape.iter().map(|size| size.cast_signed()).collect();
        let is_ours = layout.dtype == Dtype::F32 && shape.len() == 3;
        is_ours.then(|| Tensor::from_data_size(part, &shape, Kind::Float))
    };
    let (Some(video), Some(audio)) = (tensor(video), tensor(audio)) else {
        return refused("latents of another type or size".to_owned());
    };
    let stage = match snapshot.at.stage {
        job::Stage::Denoise => Stage::Denoise,
        job::Stage::Refine => Stage::Refine,
        job::Stage::Decode => return refused("a stage without steps".to_owned()),
    };
    Ok(Resumed {
        stage,
        step: snapshot.at.step as usize,
        latents: Latents { video, audio },
    })
}

#[cfg(test)]
mod tests {
    use fastvideo_proto::step_snapshot::StepPoint;

    use super::*;

    #[test]
    fn latents_that_are_read_again_are_what_was_written() {
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let latents = Latents {
            video: random(&[1, 6, 4]),
            audio: random(&[1, 5, 3]),
        };
        let after = AfterStep(&latents);
        let layout = after.layout();
        let bytes: u64 = layout.iter().map(TensorLayout::bytes).sum();
        assert_eq!(bytes, (24 + 15) * 4);
        let mut blob = vec![0; usize::try_from(bytes).unwrap()];
        after.write(&mut blob).unwrap();
        let snapshot = StepSnapshot {
            at: StepPoint {
                stage: job::Stage::Refine,
                step: 2,
                steps_done: 7,
            },
            total_steps: 3,
            layout: &layout,
            latents: &blob,
        };
        let again = read(&snapshot).unwrap();
        assert_eq!((again.stage, again.step), (Stage::Refine, 2));
        assert!(again.latents.video == latents.video && again.latents.audio == latents.audio);
        let one = StepSnapshot {
            layout: &layout[..1],
            ..snapshot
        };
        assert!(matches!(read(&one), Err(EngineError::SnapshotRefused(_))));
        let short = StepSnapshot {
            latents: &blob[4..],
            ..snapshot
        };
        assert!(matches!(read(&short), Err(EngineError::SnapshotRefused(_))));
        assert!(after.write(&mut blob[4..]).is_err());
    }
}
