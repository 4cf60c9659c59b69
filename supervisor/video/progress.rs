//! How much of a job is done.

/// The progress of a job whose frames are all made, but whose content cannot be fetched yet.
const ALMOST: u32 = 99;

/// The segment of a job that a worker makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InHand {
    /// Number of its frames that are a part of the video.
    pub(super) frames: u32,
    /// Denoise and refine steps that the GPU has ended.
    pub(super) steps_done: u32,
    /// All denoise and refine steps, at least `steps_done`.
    pub(super) steps: u32,
    /// Frames that were handed to the encoder, at most `frames`.
    pub(super) frames_encoded: u32,
}

/// Returns the progress of a job that has not completed: from 0 to 99. Denoising counts for nine tenths of a segment, encoding for
/// one. `done` is the number of frames that are committed, `all` that of all frames that the job makes.
pub(super) fn progress(done: u64, all: u64, in_hand: InHand) -> u32 {
    let steps = u128::from(in_hand.steps.max(1));
    let steps_done = u128::from(in_hand.steps_done).min(steps);
    let frames = u128::from(in_hand.frames);
    let encoded = u128::from(in_hand.frames_encoded).min(frames);
    // In tenths of a frame, times the number of steps, so that nothing is lost by rounding.
    let unit = 10 * steps;
    let made = u128::from(done) * unit + 9 * frames * steps_done + encoded * steps;
    let percent = u128::from(ALMOST) * made / (u128::from(all.max(1)) * unit);
    u32::try_from(percent).map_or(ALMOST, |percent| percent.min(ALMOST))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn progress_counts_frames() {
        let check = |done, all, (frames, steps_done, steps, frames_encoded), expected| {
            let in_hand = InHand {
                frames,
                steps_done,
                steps,
                frames_encoded,
            };
            assert_eq!(progress(done, all, in_hand), expected, "{done} {in_hand:?}");
        };
        check(0, 100, (0, 0, 0, 0), 0);
        check(0, 100, (50, 0, 8, 0), 0);
        // 0.9 of half of the frames.
        check(0, 100, (50, 8, 8, 0), 44);
        check(0, 100, (50, 8, 8, 25), 47);
        check(0, 100, (50, 8, 8, 50), 49);
        check(50, 100, (50, 4, 8, 0), 71);
        check(50, 100, (50, 8, 8, 50), 99);
        check(100, 100, (0, 0, 0, 0), 99);
        check(1, 1, (0, 0, 0, 0), 99);
        // More than there can be is no more than all.
        check(0, 10, (10, 9, 8, 11), 99);
        check(0, 0, (0, 0, 0, 0), 0);
        check(
            u64::MAX,
            u64::MAX,
            (u32::MAX, u32::MAX, u32::MAX, u32::MAX),
            99,
        );
    }

    proptest! {
        #[test]
        fn progress_is_the_floor_of_its_formula_and_never_falls(
            (frames, rest) in (1..500_u32, 0..2000_u64),
            done in 0..2000_u64,
            (steps, step) in (1..100_u32, 0..100_u32),
            encoded in 0..500_u32,
        ) {
            let all = done + u64::from(frames) + rest;
            let at = |steps_done: u32, frames_encoded: u32| {
                progress(done, all, InHand { frames, steps_done, steps, frames_encoded })
            };
            let (step, encoded) = (step.min(steps), encoded.min(frames));
            let share = 0.9 * f64::from(step) / f64::from(steps) + 0.1 * f64::from(encoded) / f64::from(frames);
            let exact = 99.0 * (done as f64 + share * f64::from(frames)) / all as f64;
            let got = f64::from(at(step, encoded));
            prop_assert!(got <= exact + 1e-9 && exact - 1e-9 < got + 1.0, "{got} {exact}");
            prop_assert!(at(step, encoded) <= at((step + 1).min(steps), encoded));
            prop_assert!(at(step, encoded) <= at(step, (encoded + 1).min(frames)));
            let next = progress(done + u64::from(frames), all, InHand::default());
            prop_assert!(at(steps, frames) == next);
        }
    }
}
