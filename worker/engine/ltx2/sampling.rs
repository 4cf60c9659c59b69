//! Sampling: the steps from noise to latents that do not depend on the network.
//!
//! - `schedule`: the noise levels that a stage visits;
//! - `noise`: the random numbers that a request starts from;
//! - `latents`: latents as grids and as tokens, and what a stage starts from;
//! - `guidance`: combines several predictions.
//!
//! Latents are normalized and float32 here, whatever type the network computes in. A velocity `v` at noise level `sigma`
//! means the clean latents `x - sigma v`.

pub mod guidance;
pub mod latents;
pub mod noise;
pub mod schedule;

use tch::Tensor;

/// Returns the latents after one Euler step from noise level `sigma` to `next`, given the clean latents predicted at
/// `sigma`.
pub fn euler(x: &Tensor, x0: &Tensor, sigma: f32, next: f32) -> Tensor {
    let velocity = (x - x0) / f64::from(sigma);
    x + velocity * f64::from(next - sigma)
}
