//! Bounds the memory of the prefix codes in a lossless WebP picture.
//!
//! A picture may have 65,536 groups of codes, also a small one, and a decoder makes tables of all of them: a gigabyte for a
//! few megabytes of file. How many there are is known only from the picture of the groups, which is compressed itself. So
//! this reads a file as far as its pixels, as the decoder does, and adds up its tables instead of making them. It follows
//! the [WebP lossless bitstream specification](https://www.rfc-editor.org/rfc/rfc9649#section-3).

/// What the decoder's tables take: their entries, the nodes of longer codes, and the values that hold them.
const TABLE_BITS: u32 = 10;
const ENTRY_BYTES: u64 = 4;
const NODE_BYTES: u64 = 16;
const CODE_BYTES: u64 = 80;

const MAX_LENGTH: usize = 15;
const CODES_IN_GROUP: usize = 5;
const LITERALS: usize = 256;
const LENGTHS: usize = 24;
/// The order in which the lengths of the codes for lengths come.
const LENGTH_ORDER: [usize; 19] = [
    17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
];
/// The first distances are places close by: so far to the left, and so far up.
#[rustfmt::skip]
const NEAR: [(i64, i64); 120] = [
    (0, 1), (1, 0), (1, 1), (-1, 1), (0, 2), (2, 0), (1, 2), (-1, 2), (2, 1), (-2, 1), (2, 2), (-2, 2), (0, 3),
    (3, 0), (1, 3), (-1, 3), (3, 1), (-3, 1), (2, 3), (-2, 3), (3, 2), (-3, 2), (0, 4), (4, 0), (1, 4), (-1, 4),
    (4, 1), (-4, 1), (3, 3), (-3, 3), (2, 4), (-2, 4), (4, 2), (-4, 2), (0, 5), (3, 4), (-3, 4), (4, 3), (-4, 3),
    (5, 0), (1, 5), (-1, 5), (5, 1), (-5, 1), (2, 5), (-2, 5), (5, 2), (-5, 2), (4, 4), (-4, 4), (3, 5), (-3, 5),
    (5, 3), (-5, 3), (0, 6), (6, 0), (1, 6), (-1, 6), (6, 1), (-6, 1), (2, 6), (-2, 6), (6, 2), (-6, 2), (4, 5),
    (-4, 5), (5, 4), (-5, 4), (3, 6), (-3, 6), (6, 3), (-6, 3), (0, 7), (7, 0), (1, 7), (-1, 7), (5, 5), (-5, 5),
    (7, 1), (-7, 1), (4, 6), (-4, 6), (6, 4), (-6, 4), (2, 7), (-2, 7), (7, 2), (-7, 2), (3, 7), (-3, 7), (7, 3),
    (-7, 3), (5, 6), (-5, 6), (6, 5), (-6, 5), (8, 0), (4, 7), (-4, 7), (7, 4), (-7, 4), (8, 1), (8, 2), (6, 6),
    (-6, 6), (8, 3), (5, 7), (-5, 7), (7, 5), (-7, 5), (8, 4), (6, 7), (-6, 7), (7, 6), (-7, 6), (8, 5), (7, 7),
    (-7, 7), (8, 6), (8, 7),
];

/// The bytes that a decoder needs for the codes of a picture, counted up to somewhat above `most`; `None` when the data
/// are damaged. The data begin with the picture's header.
pub(super) fn bytes(data: &[u8], most: u64) -> Option<u64> {
    let mut bits = Bits { data, at: 8 };
    let mut width = bits.read(14)? + 1;
    let height = bits.read(14)? + 1;
    bits.read(4)?;
    width = transforms(&mut bits, width, height)?;
    let cache = cache_bits(&mut bits)?;
    let mut groups = 1;
    if bits.read(1)? == 1 {
        let scale = bits.read(3)? + 2;
        let picture = picture(&mut bits, scaled(width, scale), scaled(height, scale))?;
        // Red and green are the number of the group.
        let last = picture.iter().map(|pixel| (pixel >> 8) & 0xffff).max();
        groups = last.unwrap_or(0) + 1;
    }
    let mut needed = 0;
    for _ in 0..groups {
        for size in alphabets(cache) {
            needed += Code::read(&mut bits, size)?.bytes();
        }
        if needed > most {
            break;
        }
    }
    Some(needed)
}

/// Passes over the transforms, and returns the width of the picture that is left to be coded.
fn transforms(bits: &mut Bits<'_>, mut width: u32, height: u32) -> Option<u32> {
    let mut seen = [false; 4];
    while bits.read(1)? == 1 {
        let kind = bits.read(2)?;
        if std::mem::replace(&mut seen[kind as usize], true) {
            return None;
        }
        match kind {
            0 | 1 => {
                let scale = bits.read(3)? + 2;
                picture(bits, scaled(width, scale), scaled(height, scale))?;
            }
            2 => {}
            _ => {
                let colours = bits.read(8)? + 1;
                picture(bits, colours, 1)?;
                let scale = match colours {
                    0..=2 => 3,
                    3..=4 => 2,
                    5..=16 => 1,
                    _ => 0,
                };
                width = scaled(width, scale);
            }
        }
    }
    Some(width)
}

fn scaled(size: u32, bits: u32) -> u32 {
    size.div_ceil(1 << bits)
}

fn cache_bits(bits: &mut Bits<'_>) -> Option<u32> {
    if bits.read(1)? == 0 {
        return Some(0);
    }
    Some(bits.read(4)?).filter(|size| (1..=11).contains(size))
}

/// The sizes of the alphabets of a group: green with lengths and places in the cache, red, blue, alpha, distances.
fn alphabets(cache: u32) -> [usize; CODES_IN_GROUP] {
    let cached = if cache == 0 { 0 } else { 1 << cache };
    let green = LITERALS + LENGTHS + cached;
    [green, LITERALS, LITERALS, LITERALS, 40]
}

/// Decodes a picture that helps to decode another one: it has one group of codes.
fn picture(bits: &mut Bits<'_>, width: u32, height: u32) -> Option<Vec<u32>> {
    let cache_size = cache_bits(bits)?;
    let mut codes = Vec::with_capacity(CODES_IN_GROUP);
    for size in alphabets(cache_size) {
        codes.push(Code::read(bits, size)?);
    }
    let count = width as usize * height as usize;
    let mut pixels: Vec<u32> = Vec::with_capacity(count);
    let mut cache = vec![0; 1 << cache_size];
    let place = |pixel: u32| (0x1e35_a7bd_u32.wrapping_mul(pixel) >> (32 - cache_size)) as usize;
    while pixels.len() < count {
        let green = codes[0].symbol(bits)?;
        let from = pixels.len();
        if green < LITERALS {
            let [red, blue, alpha] = [
                codes[1].symbol(bits)?,
                codes[2].symbol(bits)?,
                codes[3].symbol(bits)?,
            ];
            pixels.push(u32::try_from((alpha << 24) | (red << 16) | (green << 8) | blue).ok()?);
        } else if green < LITERALS + LENGTHS {
            let length = number(bits, green - LITERALS)?;
            let symbol = codes[4].symbol(bits)?;
            let back = distance(number(bits, symbol)?, width);
            if back > from || length > count - from {
                return None;
            }
            for at in from..from + length {
                pixels.push(pixels[at - back]);
            }
        } else {
            pixels.push(*cache.get(green - LITERALS - LENGTHS)?);
        }
        if cache_size > 0 {
            for &pixel in &pixels[from..] {
                cache[place(pixel)] = pixel;
            }
        }
    }
    Some(pixels)
}

/// Reads a length or a distance: its symbol, and the bits that belong to it.
fn number(bits: &mut Bits<'_>, symbol: usize) -> Option<usize> {
    if symbol < 4 {
        return Some(symbol + 1);
    }
    let extra = (symbol - 2) >> 1;
    let offset = (2 + (symbol & 1)) << extra;
    let rest = bits.read(u32::try_from(extra).ok()?)? as usize;
    Some(offset + rest + 1)
}

fn distance(code: usize, width: u32) -> usize {
    match NEAR.get(code - 1) {
        Some((left, up)) => usize::try_from(left + up * i64::from(width))
            .unwrap_or(0)
            .max(1),
        None => code - NEAR.len(),
    }
}

/// A canonical prefix code.
#[derive(Debug)]
struct Code {
    /// The number of symbols for each length.
    counts: [u32; MAX_LENGTH + 1],
    /// The symbols, by length; a code of one symbol has no bits.
    symbols: Vec<usize>,
}

impl Code {
    fn read(bits: &mut Bits<'_>, alphabet: usize) -> Option<Self> {
        if bits.read(1)? == 1 {
            let has_two = bits.read(1)? == 1;
            let size = 1 + 7 * bits.read(1)?;
            let mut symbols = vec![bits.read(size)? as usize];
            if has_two {
                symbols.push(bits.read(8)? as usize);
            }
            if symbols.iter().any(|&symbol| symbol >= alphabet) {
                return None;
            }
            let mut counts = [0; MAX_LENGTH + 1];
            counts[1] = if has_two { 2 } else { 0 };
            return Some(Self { counts, symbols });
        }
        let mut lengths = [0; LENGTH_ORDER.len()];
        let given = 4 + bits.read(4)? as usize;
        for &symbol in &LENGTH_ORDER[..given] {
            lengths[symbol] = bits.read(3)? as usize;
        }
        let of_lengths = Self::canonical(&lengths)?;
        let mut left = alphabet;
        if bits.read(1)? == 1 {
            let size = 2 + 2 * bits.read(3)?;
            left = 2 + bits.read(size)? as usize;
        }
        if left > alphabet {
            return None;
        }
        let mut lengths = Vec::with_capacity(alphabet);
        let mut before = 8;
        while lengths.len() < alphabet && left > 0 {
            left -= 1;
            let (length, times) = match of_lengths.symbol(bits)? {
                16 => (before, 3 + bits.read(2)?),
                17 => (0, 3 + bits.read(3)?),
                18 => (0, 11 + bits.read(7)?),
                length => {
                    if length > 0 {
                        before = length;
                    }
                    (length, 1)
                }
            };
            lengths.extend(std::iter::repeat_n(length, times as usize));
        }
        if lengths.len() > alphabet {
            return None;
        }
        Self::canonical(&lengths)
    }

    /// Makes the code of the lengths of its symbols; zero means that a symbol is not used.
    fn canonical(lengths: &[usize]) -> Option<Self> {
        let mut counts = [0; MAX_LENGTH + 1];
        for &length in lengths.iter().filter(|&&length| length > 0) {
            counts[length] += 1;
        }
        let mut symbols: Vec<usize> = (0..lengths.len()).filter(|&s| lengths[s] > 0).collect();
        symbols.sort_by_key(|&symbol| lengths[symbol]);
        let used: u32 = (1..=MAX_LENGTH)
            .map(|length| counts[length] << (MAX_LENGTH - length))
            .sum();
        match symbols.len() {
            0 => return None,
            1 => counts = [0; MAX_LENGTH + 1],
            // Every sequence of bits is a symbol, and no two are the same.
            _ if used != 1 << MAX_LENGTH => return None,
            _ => {}
        }
        Some(Self { counts, symbols })
    }

    fn symbol(&self, bits: &mut Bits<'_>) -> Option<usize> {
        if let [symbol] = self.symbols[..] {
            return Some(symbol);
        }
        // The first code of this length, and where its symbol is.
        let (mut code, mut first, mut index) = (0, 0, 0);
        let mut window = bits.peek()?;
        for (length, count) in (1..).zip(&self.counts[1..]) {
            code |= window & 1;
            window >>= 1;
            if code < first + count {
                bits.skip(length)?;
                return self.symbols.get((index + code - first) as usize).copied();
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }

    /// What the decoder's table for this code takes.
    fn bytes(&self) -> u64 {
        let longest = (0..=MAX_LENGTH).rfind(|&length| self.counts[length] > 0);
        let bits = u32::try_from(longest.unwrap_or(0))
            .unwrap_or(0)
            .min(TABLE_BITS);
        let long: u32 = self.counts[TABLE_BITS as usize + 1..].iter().sum();
        CODE_BYTES + (ENTRY_BYTES << bits) + 2 * u64::from(long) * NODE_BYTES
    }
}

/// Reads bits, the least significant one of each byte first.
#[derive(Debug)]
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// Returns at least 24 bits from here on; those after the end are zero.
    fn peek(&self) -> Option<u32> {
        let rest = self.data.get(self.at / 8..)?;
        let mut window = [0; 4];
        let available = rest.len().min(4);
        window[..available].copy_from_slice(&rest[..available]);
        Some(u32::from_le_bytes(window) >> (self.at % 8))
    }

    /// Passes over bits; `None` when there are not so many.
    fn skip(&mut self, count: usize) -> Option<()> {
        self.at += count;
        (self.at <= self.data.len() * 8).then_some(())
    }

    /// Reads up to 24 bits as a number.
    fn read(&mut self, count: u32) -> Option<u32> {
        let window = self.peek()?;
        self.skip(count as usize)?;
        Some(window & ((1 << count) - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes bits, the least significant one first.
    #[derive(Default)]
    struct Writer {
        bits: Vec<bool>,
    }

    impl Writer {
        fn put(&mut self, value: u32, count: u32) {
            self.bits
                .extend((0..count).map(|bit| (value >> bit) & 1 == 1));
        }

        /// A code of one symbol below 256.
        fn one_symbol(&mut self, symbol: u32) {
            self.put(0b101, 3);
            self.put(symbol, 8);
        }

        /// A code of eleven symbols, of lengths from 1 to 10.
        fn deep_code(&mut self) {
            self.put(0, 1);
            self.put(15, 4);
            for symbol in LENGTH_ORDER {
                self.put(if symbol < 16 { 4 } else { 0 }, 3);
            }
            self.put(1, 1);
            self.put(1, 3);
            self.put(9, 4);
            for length in (1..=10).chain([10_u32]) {
                self.put(length.reverse_bits() >> 28, 4);
            }
        }

        fn bytes(&self) -> Vec<u8> {
            let byte = |bits: &[bool]| {
                bits.iter()
                    .rev()
                    .fold(0, |byte, bit| (byte << 1) | u8::from(*bit))
            };
            self.bits.chunks(8).map(byte).collect()
        }
    }

    /// A picture of 4x4 pixels whose groups are numbered up to `last`, of which `written` are there.
    fn groups(last: u32, written: usize) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.put(0x2f, 8);
        writer.put(3 | (3 << 14), 32);
        // No transform, no cache, and a picture of one pixel that says which group each pixel is of.
        writer.put(0b100, 3);
        writer.put(0, 3);
        writer.put(0, 1);
        for symbol in [last & 0xff, last >> 8, 0, 0, 0] {
            writer.one_symbol(symbol);
        }
        for _ in 0..written * CODES_IN_GROUP {
            writer.deep_code();
        }
        writer.bytes()
    }

    #[test]
    fn tables_are_counted() {
        let deep = CODE_BYTES + 4096;
        assert_eq!(bytes(&groups(0, 1), 1 << 30), Some(5 * deep));
        assert_eq!(bytes(&groups(299, 300), 1 << 30), Some(1500 * deep));
        assert_eq!(bytes(&groups(299, 299), 1 << 30), None);
        // Counting stops where there are too many.
        assert_eq!(bytes(&groups(65_535, 11), 50 * deep), Some(55 * deep));
    }

    #[test]
    fn damaged_data_are_seen() {
        let whole = groups(3, 4);
        for length in 0..whole.len() - 1 {
            assert_eq!(bytes(&whole[..length], 1 << 30), None);
        }
    }
}
