//! What is written into the picture: the prompt, the counter, and the warning that a state was lost.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes of text are small and positive"
)]

use font8x8::UnicodeFonts;

use super::colour::Rgb;
use super::draw::{Canvas, Mask};

const PROMPT_LINES: usize = 2;
/// Longer prompts could not be shown anyway.
const PROMPT_CHARS: usize = 600;
/// A blank as wide as a digit, so that a growing number moves nothing.
const FIGURE_SPACE: char = '\u{2007}';
const LOST: &str = "STATE LOST";

/// What the counter says besides the frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counter {
    pub(super) segment_idx: u32,
    pub(super) num_frames: u32,
    pub(super) seed: u64,
}

#[derive(Debug)]
pub(super) struct Caption {
    counter: Option<(Counter, CounterForm)>,
    font: Font,
    prompt: Vec<Mask>,
    /// Left, right, and the rows.
    panel: Option<([f32; 2], [i32; 2])>,
    padding: i32,
    lost: Option<Mask>,
}

#[derive(Clone, Copy, Debug)]
enum CounterForm {
    Long,
    NoSeed,
    Short,
}

impl Caption {
    pub(super) fn new(prompt: &str, counter: Counter, lost: bool, width: usize, height: usize) -> Self {
        let font = Font::new((height as f32 / 34.0).clamp(8.0, 44.0));
        let padding = (font.line() * 0.5) as i32;
        let room = width as f32 - 4.0 * padding as f32;
        let form = [CounterForm::Long, CounterForm::NoSeed, CounterForm::Short]
            .into_iter()
            .find(|&form| font.width(&counter_text(counter, form, counter.num_frames)) <= room);
        let lines_that_fit = ((height as f32 * 0.42 - 2.0 * padding as f32) / font.line()) as usize;
        let counted = usize::from(form.is_some() && lines_that_fit > 0);
        let wrapped = wrap(prompt, &font, room, PROMPT_LINES.min(lines_that_fit - counted));
        let mut longest = form.filter(|_| counted == 1).map_or(0.0, |form| {
            font.width(&counter_text(counter, form, counter.num_frames))
        });
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
            counter: form.filter(|_| counted == 1).map(|form| (counter, form)),
            prompt: wrapped.iter().map(|line| font.mask(line)).collect(),
            font,
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
        canvas.panel(x, y, self.padding as f32 * 0.9, Rgb::hex(0x0a_0d_14), 0.5);
        let left = x[0] as i32 + self.padding;
        let mut top = y[0] + self.padding;
        // Letters stand on the lower seventh of their cell: half of it is added above, for looks.
        let line = self.font.line();
        top += (line * 0.12) as i32;
        for mask in &self.prompt {
            canvas.stamp([left, top], mask, Rgb::hex(0xff_ff_ff));
            top += line as i32;
        }
        if let Some((counter, form)) = self.counter {
            let text = counter_text(counter, form, frame + 1);
            canvas.stamp([left, top], &self.font.mask(&text), Rgb::hex(0xb8_c4_d6));
        }
    }
}

fn warn(lost: &Mask, canvas: &mut Canvas<'_>) {
    let rows = (lost.cover.len() / lost.width.max(1)) as i32;
    let middle = canvas.height as i32 * 2 / 5;
    let band = [(middle - rows) as f32, (middle + rows) as f32];
    canvas.rect([0.0, canvas.width as f32], band, Rgb::hex(0x18_04_08), 0.78);
    let left = (canvas.width as i32 - lost.width as i32) / 2;
    canvas.stamp([left, middle - rows / 2], lost, Rgb::hex(0xff_24_24));
}

fn counter_text(counter: Counter, form: CounterForm, frame: u32) -> String {
    let total = counter.num_frames.to_string();
    let mut count = frame.to_string();
    while count.len() < total.len() {
        count.insert(0, ' ');
    }
    let count = count.replace(' ', &FIGURE_SPACE.to_string());
    let (segment, seed) = (counter.segment_idx, counter.seed);
    match form {
        CounterForm::Long => format!("segment {segment} · frame {count}/{total} · seed {seed}"),
        CounterForm::NoSeed => format!("segment {segment} · {count}/{total}"),
        CounterForm::Short => format!("{segment}:{count}"),
    }
}

/// Breaks between words where it can; what does not fit ends in dots.
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

/// An 8x8 font at any size, with its corners rounded by interpolation.
#[derive(Debug)]
struct Font {
    /// Pixels of one dot of the font.
    scale: f32,
}

/// Dots of a letter: the bits of a row have the leftmost dot lowest.
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

/// Between the four dots around a place.
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

/// What the font does not have is an empty box.
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

/// The first column with a dot and the number of columns. Digits keep one width, so that counters stand still.
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
