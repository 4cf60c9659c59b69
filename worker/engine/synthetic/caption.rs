//! The caption in the picture: the prompt, the counter, and the warning that a state was lost.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes of text are small and positive"
)]

use font8x8::UnicodeFonts;

use super::colour::Rgb;
use super::draw::{Canvas, Mask};

const PROMPT_LINES: usize = 2;
/// The number of characters of a prompt that are laid out; more would not fit.
const PROMPT_CHARS: usize = 600;
/// A blank as wide as a digit, so that nothing moves when a number gets longer.
const FIGURE_SPACE: char = '\u{2007}';
const LOST: &str = "STATE LOST";

/// The values that the counter shows besides the frame's number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counter {
    pub(super) segment_idx: u32,
    pub(super) num_frames: u32,
    pub(super) seed: u64,
}

#[derive(Debug)]
pub(super) struct Caption {
    counter: Option<CounterMasks>,
    line: f32,
    prompt: Vec<Mask>,
    /// The panel: its left and right border, and its rows.
    panel: Option<([f32; 2], [i32; 2])>,
    padding: i32,
    lost: Option<Mask>,
}

/// The counter's text before, instead of, and after the frame's number, which is drawn anew in each frame.
type CounterText = [String; 3];

/// The forms of the counter; the longest one that fits is used.
const FORMS: [fn(Counter) -> CounterText; 3] = [
    |c| {
        [
            format!("segment {} · frame ", c.number()),
            c.blank(),
            format!("/{} · seed {}", c.num_frames, c.seed),
        ]
    },
    |c| {
        [
            format!("segment {} · ", c.number()),
            c.blank(),
            format!("/{}", c.num_frames),
        ]
    },
    |c| [format!("{}:", c.number()), c.blank(), String::new()],
];

impl Counter {
    /// Returns the number of the segment, counted from 1 as on the web page.
    fn number(self) -> u64 {
        u64::from(self.segment_idx) + 1
    }

    /// Returns blanks as wide as the largest frame number.
    fn blank(self) -> String {
        let digits = self.num_frames.to_string().len();
        FIGURE_SPACE.to_string().repeat(digits)
    }
}

#[derive(Debug)]
struct CounterMasks {
    before: Mask,
    digits: [Mask; 10],
    after: Mask,
    /// The position of the digits and the distance between them.
    from: f32,
    to: f32,
    pitch: f32,
}

impl CounterMasks {
    fn new([before, blank, after]: &CounterText, font: &Font) -> Self {
        let from = font.width(before);
        Self {
            before: font.mask(before),
            digits: std::array::from_fn(|digit| font.mask(&digit.to_string())),
            after: font.mask(after),
            from,
            to: from + font.width(blank),
            pitch: font.width("0"),
        }
    }

    fn paint(&self, mut number: u32, [left, top]: [i32; 2], canvas: &mut Canvas<'_>) {
        let colour = Rgb::hex(0xb8c4d6);
        canvas.stamp([left, top], &self.before, colour);
        canvas.stamp([left + self.to as i32, top], &self.after, colour);
        let mut right = self.to;
        while number > 0 && right > self.from {
            right -= self.pitch;
            let digit = &self.digits[(number % 10) as usize];
            canvas.stamp([left + right as i32, top], digit, colour);
            number /= 10;
        }
    }
}

impl Caption {
    pub(super) fn new(
        prompt: &str,
        counter: Counter,
        lost: bool,
        width: usize,
        height: usize,
    ) -> Self {
        let font = Font::new((height as f32 / 34.0).clamp(8.0, 44.0));
        let padding = (font.line() * 0.5) as i32;
        let room = width as f32 - 4.0 * padding as f32;
        let counter = FORMS
            .iter()
            .map(|form| form(counter))
            .find(|text| font.width(&text.concat()) <= room);
        let lines_that_fit = ((height as f32 * 0.42 - 2.0 * padding as f32) / font.line()) as usize;
        let counter = counter.filter(|_| lines_that_fit > 0);
        let counted = usize::from(counter.is_some());
        let wrapped = wrap(
            prompt,
            &font,
            room,
            PROMPT_LINES.min(lines_that_fit - counted),
        );
        let mut longest = counter
            .as_ref()
            .map_or(0.0, |text| font.width(&text.concat()));
        for line in &wrapped {
            longest = font.width(line).max(longest);
        }
        let rows = ((wrapped.len() + counted) as f32 * font.line()) as i32;
        let bottom = height as i32 - padding;
        let panel = (rows > 0).then_some((
            [padding as f32, longest + 3.0 * padding as f32],
            [bottom - rows - 2 * padding, bottom],
        ));
        Self {
            counter: counter.map(|text| CounterMasks::new(&text, &font)),
            prompt: wrapped.iter().map(|line| font.mask(line)).collect(),
            line: font.line(),
            panel,
            padding,
            lost: lost.then(|| {
                let plain = Font::new(8.0).width(LOST);
                let scale = (width as f32 * 0.8 / plain).min(height as f32 * 0.3 / 8.0);
                Font::new(8.0 * scale).mask(LOST)
            }),
        }
    }

    pub(super) fn paint(&self, frame: u32, canvas: &mut Canvas<'_>) {
        if let Some(lost) = &self.lost {
            warn(lost, canvas);
        }
        let Some((x, y)) = self.panel else { return };
        canvas.panel(x, y, self.padding as f32 * 0.9, Rgb::hex(0x0a0d14), 0.5);
        let left = x[0] as i32 + self.padding;
        let mut top = y[0] + self.padding;
        // Letters are in the upper part of their cells.
        top += (self.line * 0.12) as i32;
        for mask in &self.prompt {
            canvas.stamp([left, top], mask, Rgb::hex(0xffffff));
            top += self.line as i32;
        }
        if let Some(counter) = &self.counter {
            counter.paint(frame + 1, [left, top], canvas);
        }
    }
}

fn warn(lost: &Mask, canvas: &mut Canvas<'_>) {
    let rows = (lost.cover.len() / lost.width.max(1)) as i32;
    let middle = canvas.height as i32 * 2 / 5;
    let band = [(middle - rows) as f32, (middle + rows) as f32];
    canvas.rect([0.0, canvas.width as f32], band, Rgb::hex(0x180408), 0.78);
    let left = (canvas.width as i32 - lost.width as i32) / 2;
    canvas.stamp([left, middle - rows / 2], lost, Rgb::hex(0xff2424));
}

/// Wraps a text, between words if possible; a text that does not fit ends in dots.
fn wrap(text: &str, font: &Font, room: f32, lines: usize) -> Vec<String> {
    let text: String = text.chars().take(PROMPT_CHARS).collect();
    let mut wrapped = vec![String::new()];
    for word in text.split_whitespace() {
        let last = wrapped.last_mut().expect("begins with one line");
        let joined = if last.is_empty() {
            word.to_owned()
        } else {
            format!("{last} {word}")
        };
        if last.is_empty() || font.width(&joined) <= room {
            *last = joined;
        } else {
            wrapped.push(word.to_owned());
        }
    }
    wrapped.retain(|line| !line.is_empty());
    let cut = wrapped.len() > lines;
    wrapped.truncate(lines);
    let count = wrapped.len();
    for (i, line) in wrapped.iter_mut().enumerate() {
        let more = cut && i + 1 == count;
        if more || font.width(line) > room {
            shorten(line, font, room);
        }
    }
    wrapped.retain(|line| !line.is_empty());
    wrapped
}

fn shorten(line: &mut String, font: &Font, room: f32) {
    const DOTS: &str = "...";
    while !line.is_empty() && font.width(line) + font.width(DOTS) > room {
        line.pop();
    }
    if !line.is_empty() {
        let kept = line.trim_end_matches([' ', ',', '.']).len();
        line.truncate(kept);
        line.push_str(DOTS);
    }
}

/// An 8x8 font at any size, whose corners are rounded by interpolation.
#[derive(Debug)]
struct Font {
    /// The number of pixels of one dot of the font.
    scale: f32,
}

/// The dots of a letter, one byte per row; the lowest bit is the leftmost dot.
type Dots = [u8; 8];

impl Font {
    fn new(height: f32) -> Self {
        Self {
            scale: height / 8.0,
        }
    }

    fn line(&self) -> f32 {
        (self.scale * 10.5).floor()
    }

    fn width(&self, text: &str) -> f32 {
        text.chars()
            .map(|c| advance(c, dots(c)) as f32 * self.scale)
            .sum()
    }

    fn mask(&self, text: &str) -> Mask {
        let width = self.width(text).ceil() as usize + 1;
        let height = (self.scale * 8.0).ceil() as usize;
        let mut mask = Mask {
            width,
            cover: vec![0; width * height],
        };
        let mut left = 0.0;
        for c in text.chars() {
            let dots = dots(c);
            self.draw(dots, columns(c, dots).0, left, &mut mask);
            left += advance(c, dots) as f32 * self.scale;
        }
        mask
    }

    /// Draws a letter from its column `first` on with its left border at `left`.
    fn draw(&self, dots: Dots, first: u32, left: f32, mask: &mut Mask) {
        let reach = (self.scale * 8.0).ceil() as usize;
        let x0 = left.floor() as usize;
        for (y, row) in mask.cover.chunks_exact_mut(mask.width).enumerate() {
            let v = (y as f32 + 0.5) / self.scale - 0.5;
            for (x, cover) in row.iter_mut().enumerate().skip(x0).take(reach) {
                let u = (x as f32 + 0.5 - left) / self.scale - 0.5 + first as f32;
                let field = smooth(dots, u, v);
                let part = (field - 0.5) * self.scale.max(1.0) * 1.25 + 0.5;
                *cover = (*cover).max((part.clamp(0.0, 1.0) * 255.0) as u8);
            }
        }
    }
}

/// Interpolates between the four dots around a place.
fn smooth(dots: Dots, u: f32, v: f32) -> f32 {
    let (column, row) = (u.floor(), v.floor());
    let dot = |dx: f32, dy: f32| {
        let (x, y) = (column + dx, row + dy);
        let inside = (0.0..8.0).contains(&x) && (0.0..8.0).contains(&y);
        f32::from(u8::from(inside && dots[y as usize] >> (x as u32) & 1 == 1))
    };
    let (fu, fv) = (u - column, v - row);
    let upper = dot(0.0, 0.0) * (1.0 - fu) + dot(1.0, 0.0) * fu;
    let lower = dot(0.0, 1.0) * (1.0 - fu) + dot(1.0, 1.0) * fu;
    upper * (1.0 - fv) + lower * fv
}

/// Returns the dots of a character. A character that the font lacks becomes an empty box.
fn dots(c: char) -> Dots {
    const UNKNOWN: Dots = [0, 0x7e, 0x42, 0x42, 0x42, 0x42, 0x7e, 0];
    if c.is_whitespace() || c.is_control() {
        return [0; 8];
    }
    font8x8::BASIC_FONTS
        .get(c)
        .or_else(|| font8x8::LATIN_FONTS.get(c))
        .or_else(|| font8x8::GREEK_FONTS.get(c))
        .or_else(|| font8x8::HIRAGANA_FONTS.get(c))
        .unwrap_or(UNKNOWN)
}

/// Returns the first column with a dot, and the number of columns. All digits have the same width, so that counters do
/// not jitter.
fn columns(c: char, dots: Dots) -> (u32, u32) {
    let used = dots.iter().fold(0, |used, row| used | row);
    if c.is_ascii_digit() || c == FIGURE_SPACE {
        (0, 7)
    } else if used == 0 {
        (0, 3)
    } else {
        let first = used.trailing_zeros();
        (first, 8 - used.leading_zeros() - first)
    }
}

fn advance(c: char, dots: Dots) -> u32 {
    columns(c, dots).1 + 1
}
