//! Continues a sound after its end by linear prediction.
//!
//! The tail of a segment has to be encoded before the sound of the next segment is known. Silence or a mirror image
//! would be audible at the seam; a prediction keeps tones and their phase.

/// The number of reflection coefficients: enough for many voices at once at 24 kHz. With 48 such a sound dies away within
/// 20 ms, which is heard as a gap at the seam.
const ORDER: usize = 384;

/// Continues `known` by `count` samples within -1 to 1. Tones continue, noise dies away.
///
/// The same input gives the same bits on every machine: the arithmetic is plain `f64`, without functions for which the
/// C library chooses an implementation by processor.
pub(super) fn extrapolate(known: &[f32], count: usize) -> Vec<f32> {
    let mut signal: Vec<f64> = known.iter().copied().map(f64::from).collect();
    let coefficients = predictor(&signal);
    let mut continuation = Vec::with_capacity(count);
    for _ in 0..count {
        let predicted: f64 = signal
            .iter()
            .rev()
            .zip(&coefficients)
            .map(|(sample, coefficient)| sample * coefficient)
            .sum();
        let sample = if predicted.is_finite() {
            predicted.clamp(-1.0, 1.0)
        } else {
            0.0
        };
        signal.push(sample);
        #[expect(clippy::cast_possible_truncation, reason = "between -1 and 1")]
        continuation.push(sample as f32);
    }
    continuation
}

/// Returns the weights of the last samples, latest first, that best predict the next one.
///
/// This is Burg's method (J. P. Burg, "Maximum entropy spectral analysis", 1975), which always yields a stable filter.
/// Errors count less towards both ends (M. Kaveh and G. A. Lippert, "An optimum tapered Burg algorithm", 1983):
/// otherwise the pitch of low tones is off and their phase drifts.
fn predictor(signal: &[f64]) -> Vec<f64> {
    let mut forward = signal.to_vec();
    let mut backward = signal.to_vec();
    let mut weights: Vec<f64> = Vec::with_capacity(ORDER);
    for order in 1..=ORDER.min(signal.len() / 2) {
        let window = parabola(signal.len() - order);
        let mut cross = 0.0;
        let mut power = 0.0;
        for n in order..signal.len() {
            let weight = window[n - order];
            cross += weight * forward[n] * backward[n - 1];
            power += weight * (forward[n] * forward[n] + backward[n - 1] * backward[n - 1]);
        }
        // Everything is predicted already, or the signal is silent.
        if power < 1e-12 {
            break;
        }
        let reflection = 2.0 * cross / power;
        let mirrored: Vec<f64> = weights.iter().rev().copied().collect();
        for (weight, mirror) in weights.iter_mut().zip(mirrored) {
            *weight -= reflection * mirror;
        }
        weights.push(reflection);
        for n in (order..signal.len()).rev() {
            let before = forward[n];
            forward[n] -= reflection * backward[n - 1];
            backward[n] = backward[n - 1] - reflection * before;
        }
    }
    weights
}

/// Returns Welch's window function: 0 at both ends, 1 in the middle.
fn parabola(len: usize) -> Vec<f64> {
    (0..len)
        .map(|n| (n as f64 + 0.5) / len as f64)
        .map(|place| 4.0 * place * (1.0 - place))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sine(hz: f32, n: usize) -> f32 {
        0.5 * (n as f32 * hz * std::f32::consts::TAU / 24_000.0).sin()
    }

    fn check(signal: impl Fn(usize) -> f32, tolerance: f32) {
        let known: Vec<f32> = (0..2048).map(&signal).collect();
        for (n, sample) in extrapolate(&known, 3072).into_iter().enumerate() {
            let expected = signal(2048 + n);
            assert!(
                (sample - expected).abs() < tolerance,
                "sample {n} is {sample}, expected {expected}"
            );
        }
    }

    #[test]
    fn tones_go_on_with_their_phase() {
        check(|n| sine(440.0, n), 0.05);
        check(
            |n| sine(220.0, n) + 0.5 * sine(660.0, n) + 0.3 * sine(1_234.5, n),
            0.1,
        );
    }

    #[test]
    fn a_rich_sound_keeps_its_level() {
        // Many voices that are no multiples of one another, with vibrato and some noise.
        let mut seed = 7_u32;
        let mut noise = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let known: Vec<f32> = (0..2048)
            .map(|n| {
                let voices = (0..24).map(|voice| {
                    let hz = 110.0 * 1.19_f32.powi(voice) * (1.0 + 0.002 * sine(5.0, n));
                    sine(hz, n) / (3.0 + voice as f32)
                });
                0.4 * (voices.sum::<f32>() + 0.02 * noise())
            })
            .collect();
        let level = |sound: &[f32]| {
            let power: f32 = sound.iter().map(|sample| sample * sample).sum();
            (power / sound.len() as f32).sqrt()
        };
        let before = level(&known[1024..]);
        // 20 ms at a time, for as long as what follows the seam is heard.
        for (n, after) in extrapolate(&known, 1440).chunks(480).enumerate() {
            let share = level(after) / before;
            assert!((0.5..2.0).contains(&share), "{share} after {} ms", n * 20);
        }
    }

    #[test]
    fn silence_stays_silent() {
        check(|_| 0.0, f32::MIN_POSITIVE);
        assert_eq!(extrapolate(&[], 4), [0.0; 4]);
    }

    #[test]
    fn wild_sound_stays_in_range() {
        let mut seed = 1_u32;
        let noise: Vec<f32> = (0..2048)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 8) as f32 / 8_388_608.0 - 1.0
            })
            .collect();
        let after = extrapolate(&noise, 3072);
        assert!(after.iter().all(|sample| (-1.0..=1.0).contains(sample)));
    }
}
