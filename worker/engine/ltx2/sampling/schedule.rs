//! The noise levels that a stage visits.
//!
//! Follows diffusers 0.42.1, `schedulers/scheduling_flow_match_euler_discrete.py` and `pipelines/ltx2/utils.py`.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{self, ConfigError};

const PART: &str = "scheduler";

/// The noise levels that distilled weights were trained on.
pub const DISTILLED: [f32; 9] = [
    1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0,
];
/// The noise levels of the second stage, which starts from the first stage's latents.
pub const REFINE: [f32; 4] = [0.909375, 0.725, 0.421875, 0.0];

/// The error for a number of steps that has no schedule.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{steps} steps: this model's schedule has 1 to {most}")]
pub struct StepsError {
    pub steps: usize,
    pub most: usize,
}

/// Returns the `steps + 1` levels of `full`, including both ends, whose largest drop is smallest; ties are decided by
/// the last drop, then by the sum of squared drops.
///
/// # Errors
/// Returns an error when `full` has fewer steps, or when `steps` is 0.
pub fn fewer(full: &[f32], steps: usize) -> Result<Vec<f32>, StepsError> {
    let most = full.len().saturating_sub(1);
    if !(1..=most).contains(&steps) {
        return Err(StepsError { steps, most });
    }
    let cost = |levels: &[f32]| {
        let drops = levels.windows(2).map(|pair| pair[0] - pair[1]);
        let largest = drops.clone().fold(0.0, f32::max);
        let last = drops.clone().next_back().unwrap_or(0.0);
        let squares: f32 = drops.map(|drop| drop * drop).sum();
        [largest, last, squares]
    };
    let choices = subsets(full, steps);
    let best = choices.into_iter().min_by(|a, b| {
        let (a, b) = (cost(a), cost(b));
        a.partial_cmp(&b).unwrap_or(std::cmp::Ordering::Equal)
    });
    Ok(best.unwrap_or_default())
}

/// Returns all choices of `steps + 1` levels that keep both ends, in order.
fn subsets(full: &[f32], steps: usize) -> Vec<Vec<f32>> {
    let Some((&last, rest)) = full.split_last() else {
        return Vec::new();
    };
    let mut partial: Vec<(Vec<f32>, usize)> = vec![(vec![rest[0]], 1)];
    for _ in 1..steps {
        let longer = |(levels, next): (Vec<f32>, usize)| {
            (next..rest.len()).map(move |i| ([&levels[..], &[rest[i]]].concat(), i + 1))
        };
        partial = partial.into_iter().flat_map(longer).collect();
    }
    let ended = |(levels, _): (Vec<f32>, usize)| [&levels[..], &[last]].concat();
    partial.into_iter().map(ended).collect()
}

/// The source of a checkpoint's schedules.
#[derive(Clone, Debug, PartialEq)]
pub enum Scheduler {
    /// Distilled weights: fixed levels, one pass a step.
    Distilled,
    /// Base weights: even levels, shifted towards noise.
    Base(Shift),
}

/// The parameters by which even levels are shifted.
#[derive(Clone, Debug, PartialEq)]
pub struct Shift {
    kind: TimeShift,
    /// The number of tokens and the shift at two points; the shift is linear in the number of tokens.
    few: (i64, f64),
    many: (i64, f64),
    /// The last level before 0, if it is fixed.
    terminal: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TimeShift {
    Exponential,
    Linear,
}

#[derive(Deserialize)]
struct Raw {
    use_dynamic_shifting: bool,
    base_shift: f64,
    max_shift: f64,
    base_image_seq_len: i64,
    max_image_seq_len: i64,
    shift_terminal: Option<f64>,
    time_shift_type: TimeShift,
}

impl Scheduler {
    /// Reads diffusers' `scheduler_config.json`: weights that use a dynamic shift are base weights.
    ///
    /// # Errors
    /// Returns an error that names the key that is missing, or has a value which this engine does not implement.
    pub fn library(json: &Value) -> Result<Self, ConfigError> {
        config::only(PART, json, "num_train_timesteps", &json!(1000))?;
        for switch in [
            "invert_sigmas",
            "stochastic_sampling",
            "use_beta_sigmas",
            "use_exponential_sigmas",
            "use_karras_sigmas",
        ] {
            config::only(PART, json, switch, &json!(false))?;
        }
        let raw: Raw = config::read(PART, json)?;
        if !raw.use_dynamic_shifting {
            config::only(PART, json, "shift", &json!(1.0))?;
            config::only(PART, json, "shift_terminal", &Value::Null)?;
            return Ok(Self::Distilled);
        }
        if raw.base_image_seq_len >= raw.max_image_seq_len {
            return Err(ConfigError::Value {
                part: PART,
                key: "max_image_seq_len".to_owned(),
                expected: format!("more than {}", raw.base_image_seq_len),
                given: raw.max_image_seq_len.to_string(),
            });
        }
        Ok(Self::Base(Shift {
            kind: raw.time_shift_type,
            few: (raw.base_image_seq_len, raw.base_shift),
            many: (raw.max_image_seq_len, raw.max_shift),
            // The reference treats 0 as absent.
            terminal: raw.shift_terminal.filter(|&terminal| terminal != 0.0),
        }))
    }

    /// Returns the schedule of base weights in the values that the model's authors publish, for a checkpoint without a
    /// scheduler.
    pub fn base() -> Self {
        Self::Base(Shift {
            kind: TimeShift::Exponential,
            few: (1024, 0.95),
            many: (4096, 2.05),
            terminal: Some(0.1),
        })
    }

    /// Returns the `steps + 1` levels, down to 0, of a stage that starts from noise and has this number of video
    /// tokens.
    ///
    /// # Errors
    /// Returns an error when the weights have no schedule of that many steps.
    pub fn sigmas(&self, steps: usize, tokens: i64) -> Result<Vec<f32>, StepsError> {
        match self {
            Self::Distilled => fewer(&DISTILLED, steps),
            Self::Base(_) if !(1..=MAX_BASE_STEPS).contains(&steps) => Err(StepsError {
                steps,
                most: MAX_BASE_STEPS,
            }),
            Self::Base(shift) => Ok(shift.sigmas(steps, tokens)),
        }
    }

    /// Returns the `steps + 1` levels of a second stage, which is the same for all weights.
    ///
    /// # Errors
    /// Returns an error when there are more steps than levels.
    pub fn refine(steps: usize) -> Result<Vec<f32>, StepsError> {
        fewer(&REFINE, steps)
    }
}

/// More steps would cost time without any benefit.
const MAX_BASE_STEPS: usize = 1000;

impl Shift {
    fn sigmas(&self, steps: usize, tokens: i64) -> Vec<f32> {
        let even = |i: usize| single(1.0 - i as f64 / steps as f64);
        let mut sigmas: Vec<f32> = (0..steps).map(|i| self.shifted(even(i), tokens)).collect();
        if let (Some(terminal), Some(&last)) = (self.terminal, sigmas.last()) {
            let scale = (1.0 - last) / single(1.0 - terminal);
            for sigma in &mut sigmas {
                *sigma = 1.0 - (1.0 - *sigma) / scale;
            }
        }
        sigmas.push(0.0);
        sigmas
    }

    fn shifted(&self, sigma: f32, tokens: i64) -> f32 {
        let mu = self.mu(tokens);
        let weight = match self.kind {
            TimeShift::Exponential => single(mu.exp()),
            TimeShift::Linear => single(mu),
        };
        weight / (weight + (1.0 / sigma - 1.0))
    }

    fn mu(&self, tokens: i64) -> f64 {
        let slope = (self.many.1 - self.few.1) / (self.many.0 - self.few.0) as f64;
        tokens as f64 * slope + (self.few.1 - slope * self.few.0 as f64)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the reference rounds levels to float32 too"
)]
fn single(x: f64) -> f32 {
    x as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(key: &str, value: Value) -> Value {
        let mut json = json!({
            "base_image_seq_len": 1024, "base_shift": 0.95, "invert_sigmas": false, "max_image_seq_len": 4096,
            "max_shift": 2.05, "num_train_timesteps": 1000, "shift": 1.0, "shift_terminal": null,
            "stochastic_sampling": false, "time_shift_type": "exponential", "use_dynamic_shifting": true
        });
        json[key] = value;
        json
    }

    #[test]
    fn service_takes_five_steps_and_two() {
        let five = Scheduler::Distilled.sigmas(5, 0).unwrap();
        assert_eq!(five, [1.0, 0.975, 0.909375, 0.725, 0.421875, 0.0]);
        assert_eq!(Scheduler::refine(2).unwrap(), [0.909375, 0.421875, 0.0]);
        assert_eq!(Scheduler::refine(1).unwrap(), [0.909375, 0.0]);
    }

    #[test]
    fn steps_that_the_weights_do_not_know_are_refused() {
        for steps in [0, 9] {
            let refused = Scheduler::Distilled.sigmas(steps, 0).unwrap_err();
            assert_eq!(refused, StepsError { steps, most: 8 });
        }
        assert_eq!(
            Scheduler::refine(4).unwrap_err().to_string(),
            "4 steps: this model's schedule has 1 to 3"
        );
        let base = Scheduler::library(&json("shift", json!(1.0))).unwrap();
        assert!(base.sigmas(0, 24).is_err());
        assert!(base.sigmas(200, 24).is_ok());
    }

    /// Both ends of the dynamic shift the same: the shift does not depend on the size.
    #[test]
    fn fixed_shift_of_three() {
        let mut config = json("base_shift", json!(3.0_f64.ln()));
        config["max_shift"] = json!(3.0_f64.ln());
        let scheduler = Scheduler::library(&config).unwrap();
        let expected = [1.0, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0.0];
        for tokens in [60, 32_640] {
            let sigmas = scheduler.sigmas(8, tokens).unwrap();
            for (sigma, expected) in sigmas.iter().zip(expected) {
                assert!((sigma - expected).abs() < 5e-5, "{sigma} {expected}");
            }
        }
    }

    #[test]
    fn switches_that_are_not_implemented_are_refused_by_name() {
        for (key, value) in [
            ("use_karras_sigmas", json!(true)),
            ("invert_sigmas", json!(true)),
            ("num_train_timesteps", json!(500)),
            ("max_image_seq_len", json!(1024)),
        ] {
            let refused = Scheduler::library(&json(key, value)).unwrap_err();
            assert!(
                refused.to_string().contains(&format!("`{key}`")),
                "{refused}"
            );
        }
        assert!(Scheduler::library(&json("time_shift_type", json!("cubic"))).is_err());
    }
}
