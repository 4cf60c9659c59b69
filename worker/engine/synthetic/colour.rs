//! Colours, and how palettes mix and shift them.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "channels are clamped to a byte"
)]

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rgb(pub(super) [u8; 3]);

impl Rgb {
    /// Creates a colour from `0xRRGGBB`.
    pub(super) const fn hex(rgb: u32) -> Self {
        let [_, r, g, b] = rgb.to_be_bytes();
        Self([r, g, b])
    }

    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(self.0.map(|c| byte(f(f32::from(c)))))
    }

    /// Mixes two colours: `self` at 0, `other` at 1.
    pub(super) fn mix(self, other: Self, amount: f32) -> Self {
        let mut mixed = self.0;
        for (c, o) in mixed.iter_mut().zip(other.0) {
            *c = byte(f32::from(*c) + (f32::from(o) - f32::from(*c)) * amount);
        }
        Self(mixed)
    }

    pub(super) fn scaled(self, factor: f32) -> Self {
        self.map(|c| c * factor)
    }

    pub(super) fn luma(self) -> f32 {
        let [r, g, b] = self.0.map(f32::from);
        0.299 * r + 0.587 * g + 0.114 * b
    }

    /// Returns the colour with the hue of `tint` and its own brightness.
    pub(super) fn tinted(self, tint: Self, amount: f32) -> Self {
        let brightness = (self.luma() + 12.0) / (tint.luma() + 12.0);
        let room = 255.0 / f32::from(tint.0.into_iter().max().unwrap_or(255).max(1));
        self.mix(tint.scaled(brightness.min(room * 1.15)), amount)
    }

    /// Changes the saturation: 1 keeps the colour, 0 makes it grey.
    pub(super) fn saturated(self, amount: f32) -> Self {
        let grey = self.luma();
        self.map(|c| grey + (c - grey) * amount)
    }

    /// Turns the hue by a part of the circle, -1 to 1, and roughly keeps the brightness.
    pub(super) fn hue_turned(self, part: f32) -> Self {
        let [r, g, b] = self.0.map(f32::from);
        let third = (part.abs() * 3.0).min(1.0);
        let turned = if part >= 0.0 {
            Self([byte(b), byte(r), byte(g)])
        } else {
            Self([byte(g), byte(b), byte(r)])
        };
        let mixed = self.mix(turned, third);
        mixed.scaled((self.luma() + 1.0) / (mixed.luma() + 1.0))
    }
}

fn byte(value: f32) -> u8 {
    (value + 0.5).clamp(0.0, 255.0) as u8
}
