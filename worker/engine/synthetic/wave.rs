//! Sines and hashes that are the same on every machine: no libm, only IEEE arithmetic and integers.
//!
//! Angles and positions that repeat are phases, one turn being 2^32, so that they wrap without losing precision.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "phases wrap and hashes are cut down on purpose"
)]

const TABLE_BITS: u32 = 10;
const TABLE_LEN: usize = 1 << TABLE_BITS;

/// The sine table, with one entry more than a turn, so that interpolation needs no wrap.
static SINE: [f32; TABLE_LEN + 1] = sine_table();

const fn sine_table() -> [f32; TABLE_LEN + 1] {
    let mut table = [0.0; TABLE_LEN + 1];
    let quarter = TABLE_LEN / 4;
    let mut i = 0;
    while i <= quarter {
        let x = i as f64 / TABLE_LEN as f64 * std::f64::consts::TAU;
        let value = sine_series(x) as f32;
        table[i] = value;
        table[2 * quarter - i] = value;
        table[2 * quarter + i] = -value;
        table[4 * quarter - i] = -value;
        i += 1;
    }
    table
}

/// Computes the Taylor series, which is exact to double precision in the first quarter turn.
const fn sine_series(x: f64) -> f64 {
    let mut sum = 0.0;
    let mut term = x;
    let mut n = 1.0;
    while n < 24.0 {
        sum += term;
        term = -term * x * x / ((n + 1.0) * (n + 2.0));
        n += 2.0;
    }
    sum
}

pub(super) fn sin(phase: u32) -> f32 {
    let at = (phase >> (32 - TABLE_BITS)) as usize;
    let rest = (phase << TABLE_BITS >> 8) as f32 * (1.0 / 16_777_216.0);
    SINE[at] + (SINE[at + 1] - SINE[at]) * rest
}

pub(super) fn cos(phase: u32) -> f32 {
    sin(phase.wrapping_add(1 << 30))
}

/// Returns the phase of this number of turns.
pub(super) fn turns(turns: f32) -> u32 {
    ((turns - turns.floor()) * 16_777_216.0) as u32 * 256
}

/// Returns the position of a phase within its turn, in 0..1.
pub(super) fn fraction(phase: u32) -> f32 {
    (phase >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Returns a phase that makes `rate` turns while `clock` (32.32 fixed point) advances by one.
pub(super) fn turned(clock: u64, rate: f32) -> u32 {
    let rate = (rate * 65_536.0) as i64 as u64;
    (clock.wrapping_mul(rate) >> 16) as u32
}

/// Scrambles all bits.
pub(super) fn scramble(value: u64) -> u64 {
    let mut x = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

pub(super) fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = scramble(bytes.len() as u64);
    for &byte in bytes {
        hash = scramble(hash ^ u64::from(byte));
    }
    hash
}

/// A pseudo-random number generator with a seed.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64, purpose: u64) -> Self {
        Self(scramble(seed ^ scramble(purpose)))
    }

    pub(super) fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(1);
        scramble(self.0) as u32
    }

    /// Returns a pseudo-random number in 0..1.
    pub(super) fn unit(&mut self) -> f32 {
        fraction(self.bits())
    }

    pub(super) fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// Returns a pseudo-random number in 0..n.
    pub(super) fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.bits()) * u64::from(n)) >> 32) as u32
    }

    pub(super) fn chance(&mut self, probability: f32) -> bool {
        self.unit() < probability
    }
}

/// Interpolates smoothly: 0 below 0, 1 above 1.
pub(super) fn smoothstep(x: f32) -> f32 {
    let x = x.clamp(0.0, 1.0);
    x * x * (3.0 - 2.0 * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sine_is_the_sine() {
        for i in 0..1000_u32 {
            let phase = i * 4_294_967;
            let exact = (f64::from(phase) / 4_294_967_296.0 * std::f64::consts::TAU).sin();
            assert!((f64::from(sin(phase)) - exact).abs() < 1e-5, "{phase}");
        }
        assert_eq!(sin(0), 0.0);
        assert_eq!(cos(0), 1.0);
    }

    #[test]
    fn phases_turn_backwards_too() {
        let clock = 5 << 32;
        assert_eq!(turned(clock, 0.25), 1 << 30);
        assert_eq!(turned(clock, -0.25), 3 << 30);
    }
}
