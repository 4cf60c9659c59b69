//! The dictionary of words and labels. It finds the rows of the input matrix that a text consists of: one for each known
//! word, and one for each n-gram of words or characters, whose row is found by hashing.

use std::collections::HashMap;
use std::io::BufRead;

use super::error::{ModelError, damaged};
use super::source::Source;

/// The word that stands for the end of a line. The model treats it like any other word.
const END_OF_LINE: &[u8] = b"</s>";
/// The default of the tool's option `-label`. A model does not contain the option's value, so the tool assumes the default
/// when it predicts.
const LABEL_PREFIX: &[u8] = b"__label__";
/// The size of the smallest entry: an empty text with its NUL, a count and a type.
const MIN_ENTRY_BYTES: u64 = 1 + 8 + 1;
const PRUNED_ENTRY_BYTES: u64 = 8;
const WORD: u8 = 0;
const LABEL: u8 = 1;

/// Which n-grams a text is split into.
#[derive(Debug)]
pub(super) struct Ngrams {
    /// The number of characters of the shortest subword.
    pub(super) min_chars: usize,
    /// The number of characters of the longest subword; 0 means that there are no subwords.
    pub(super) max_chars: usize,
    /// The number of words of the longest n-gram of words; below 2 there are none.
    pub(super) max_words: usize,
    /// The number of rows to which n-grams are hashed.
    pub(super) buckets: u32,
}

#[derive(Debug)]
pub(super) struct Dictionary {
    /// The id of each word and label. Ids of words are below `words` and are rows; the ids of labels follow.
    ids: HashMap<Box<[u8]>, u32>,
    words: u32,
    labels: Vec<LabelEntry>,
    ngrams: Ngrams,
    /// In a pruned model, the buckets that were kept, each with its row, counted from the first row after the words.
    kept: Option<HashMap<u32, u32>>,
}

#[derive(Debug)]
pub(super) struct LabelEntry {
    pub(super) name: Box<[u8]>,
    /// How often the label was seen in training.
    pub(super) count: i64,
}

impl Ngrams {
    pub(super) fn are_used(&self) -> bool {
        self.max_chars > 0 || self.max_words > 1
    }
}

impl Dictionary {
    pub(super) fn read(
        source: &mut Source<impl BufRead>,
        ngrams: Ngrams,
    ) -> Result<Self, ModelError> {
        let entries = source.i32("the number of entries")?;
        let words = source.i32("the number of words")?;
        let labels = source.i32("the number of labels")?;
        source.i64("the number of tokens")?;
        let pruned = source.i64("the number of n-grams that were kept")?;
        let (Ok(words), Ok(label_count)) = (u32::try_from(words), usize::try_from(labels)) else {
            return Err(damaged(
                "the number of labels or words",
                labels.min(words),
                "0 or more",
            ));
        };
        let expected = i64::from(words) + i64::from(labels);
        if label_count == 0 || i64::from(entries) != expected {
            let expected = format!("{words} words and at least one label");
            return Err(damaged("the number of entries", entries, &expected));
        }

        let entry_count = words as usize + label_count;
        source.check_left("the dictionary", entry_count, MIN_ENTRY_BYTES)?;
        let mut ids = HashMap::with_capacity(entry_count);
        let mut labels = Vec::with_capacity(label_count);
        for id in 0..words {
            let (word, _) = read_entry(source, WORD)?;
            ids.insert(word, id);
        }
        for id in (words..).take(label_count) {
            let (name, count) = read_entry(source, LABEL)?;
            ids.insert(name.clone(), id);
            labels.push(LabelEntry { name, count });
        }
        let kept = match pruned {
            ..0 => None,
            pruned => Some(read_kept(source, pruned)?),
        };
        Ok(Self {
            ids,
            words,
            labels,
            ngrams,
            kept,
        })
    }

    pub(super) fn labels(&self) -> &[LabelEntry] {
        &self.labels
    }

    pub(super) fn is_pruned(&self) -> bool {
        self.kept.is_some()
    }

    /// Returns the number of rows that the input matrix must have at least.
    pub(super) fn rows(&self) -> usize {
        let hashed = match &self.kept {
            Some(kept) => kept.values().max().map_or(0, |row| row + 1),
            None if self.ngrams.are_used() => self.ngrams.buckets,
            None => 0,
        };
        self.words as usize + hashed as usize
    }

    /// Calls `row` with each row of the text, in the order in which the tool sums them.
    pub(super) fn for_each_row(&self, text: &str, mut row: impl FnMut(usize)) {
        let mut hashes = Vec::new();
        let mut bracketed = Vec::new();
        for word in words_with_end(text) {
            let id = self.ids.get(word).copied();
            let is_label = id.map_or_else(|| word.starts_with(LABEL_PREFIX), |id| id >= self.words);
            if is_label {
                continue;
            }
            if let Some(id) = id {
                row(id as usize);
            }
            if word != END_OF_LINE {
                bracketed.clear();
                bracketed.push(b'<');
                bracketed.extend_from_slice(word);
                bracketed.push(b'>');
                self.for_each_subword(&bracketed, &mut row);
            }
            hashes.push(hashed(FNV_START, word));
        }
        self.for_each_word_ngram(&hashes, &mut row);
    }

    /// Calls `row` with the row of each subword. `word` is enclosed in `<` and `>`.
    fn for_each_subword(&self, word: &[u8], row: &mut impl FnMut(usize)) {
        let Ngrams {
            min_chars,
            max_chars,
            buckets,
            ..
        } = self.ngrams;
        if max_chars == 0 {
            return;
        }
        for (start, first) in word.iter().enumerate() {
            if is_inside_char(*first) {
                continue;
            }
            let mut hash = FNV_START;
            let mut end = start;
            for chars in 1..=max_chars {
                let Some(len) = char_len(&word[end..]) else {
                    break;
                };
                hash = hashed(hash, &word[end..end + len]);
                end += len;
                let is_bracket = chars == 1 && (start == 0 || end == word.len());
                if chars >= min_chars && !is_bracket {
                    self.hashed_row(hash % buckets, row);
                }
            }
        }
    }

    fn for_each_word_ngram(&self, hashes: &[u32], row: &mut impl FnMut(usize)) {
        // The tool sign-extends the hash of a word to 64 bits.
        let widened = |hash: u32| i64::from(hash.cast_signed()).cast_unsigned();
        for (start, first) in hashes.iter().enumerate() {
            let mut hash = widened(*first);
            let others = self.ngrams.max_words.saturating_sub(1);
            for next in hashes[start + 1..].iter().take(others) {
                hash = hash.wrapping_mul(116_049_371).wrapping_add(widened(*next));
                let bucket = hash % u64::from(self.ngrams.buckets);
                #[expect(clippy::cast_possible_truncation, reason = "below a u32")]
                self.hashed_row(bucket as u32, row);
            }
        }
    }

    fn hashed_row(&self, bucket: u32, row: &mut impl FnMut(usize)) {
        let behind_words = match &self.kept {
            None => Some(bucket),
            Some(kept) => kept.get(&bucket).copied(),
        };
        if let Some(behind_words) = behind_words {
            row(self.words as usize + behind_words as usize);
        }
    }
}

fn read_entry(
    source: &mut Source<impl BufRead>,
    expected_kind: u8,
) -> Result<(Box<[u8]>, i64), ModelError> {
    let text = source.text("a word or label")?;
    let count = source.i64("the count of a word or label")?;
    match source.u8("the type of an entry")? {
        kind if kind == expected_kind => Ok((text, count)),
        kind => {
            let expected = format!("{expected_kind}: all words come before all labels");
            Err(damaged("the type of an entry", kind, &expected))
        }
    }
}

fn read_kept(source: &mut Source<impl BufRead>, len: i64) -> Result<HashMap<u32, u32>, ModelError> {
    let what = "the n-grams that were kept";
    let len = usize::try_from(len).map_err(|_| damaged(what, len, "fewer"))?;
    source.check_left(what, len, PRUNED_ENTRY_BYTES)?;
    let mut number = || {
        let number = source.i32(what)?;
        u32::try_from(number).map_err(|_| damaged(what, number, "0 or more"))
    };
    (0..len).map(|_| Ok((number()?, number()?))).collect()
}

/// Splits the first line into words, followed by the word for the end of the line.
fn words_with_end(text: &str) -> impl Iterator<Item = &[u8]> {
    let line = text.as_bytes().split(|byte| *byte == b'\n').next();
    line.unwrap_or_default()
        .split(|byte| b" \r\t\x0b\x0c\0".contains(byte))
        .filter(|word| !word.is_empty())
        .take_while(|word| *word != END_OF_LINE)
        .chain([END_OF_LINE])
}

const FNV_START: u32 = 2_166_136_261;

/// Continues an FNV-1a hash. Bytes are sign-extended, since the tool reads them as signed characters.
fn hashed(start: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(start, |hash, byte| {
        let signed = i32::from(byte.cast_signed()).cast_unsigned();
        (hash ^ signed).wrapping_mul(16_777_619)
    })
}

/// Returns the length of the first character in bytes; `None` when the text is empty.
fn char_len(text: &[u8]) -> Option<usize> {
    let (_, rest) = text.split_first()?;
    Some(
        1 + rest
            .iter()
            .take_while(|byte| is_inside_char(**byte))
            .count(),
    )
}

/// Returns whether this is a continuation byte of UTF-8.
fn is_inside_char(byte: u8) -> bool {
    byte & 0xC0 == 0x80
}
