//! Quantiles of what was measured.

use std::time::Duration;

use serde::Serialize;

/// Several measurements of one thing.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) n: usize,
    pub(crate) min: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Figures {
    /// # Errors
    /// When there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> anyhow::Result<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            anyhow::bail!("nothing was measured");
        };
        let n = values.len();
        // The smallest value that so many per cent do not exceed.
        let quantile = |percent: usize| values[(n * percent).div_ceil(100).max(1) - 1];
        Ok(Self {
            n,
            min,
            p50: quantile(50),
            p99: quantile(99),
            max,
        })
    }
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
