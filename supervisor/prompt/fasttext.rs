//! Reads supervised fastText models (`.bin`, and quantised ones, `.ftz`) and tells how likely a label is for a text, with
//! the scores that `fasttext predict-prob` prints.
//!
//! Called by `safety`. It trains nothing. A file is never trusted: all that is taken from it is checked while it is read,
//! so that nothing can go wrong later, and memory is asked for only after the file was seen to be long enough for it.
//!
//! `source` reads the file, `dictionary` knows which rows of the model a text consists of, `matrix` holds them, `loss`
//! makes a score of their mean.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use dictionary::Dictionary;
use loss::Loss;
use matrix::Matrix;
use source::Source;

mod dictionary;
mod loss;
mod matrix;
mod source;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) mod trained;

const MAGIC: i32 = 793_712_314;
/// Versions 11 and 12 differ in one thing: supervised models of the older one know no subwords.
const OLD_VERSION: i32 = 11;
const VERSION: i32 = 12;
const SUPERVISED: i32 = 3;
/// Of characters or words; more than five are hardly ever used. Keeps the time bounded that a text takes.
const MAX_NGRAM: i32 = 64;

/// Why a file is no model that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("cannot read it")]
    Read(#[from] io::Error),
    #[error("not a file")]
    NotAFile,
    #[error("not a fastText model: it begins with {0:#010x}, expected {MAGIC:#010x}")]
    NotAModel(i32),
    #[error("a fastText model of version {0}, expected {OLD_VERSION} or {VERSION}")]
    Version(i32),
    #[error("not a classifier but a model of words, made by `fasttext skipgram` or `cbow`")]
    NotSupervised,
    #[error("cut off or damaged: {what} takes {needed} bytes and {left} are left")]
    Short {
        what: &'static str,
        needed: u64,
        left: u64,
    },
    #[error("damaged: {what} is {given}, expected {expected}")]
    Damaged {
        what: &'static str,
        given: i64,
        expected: String,
    },
    #[error("damaged: {0} holds a value that is not a finite number")]
    NotFinite(&'static str),
}

/// A supervised model in memory.
#[derive(Debug)]
pub struct Classifier {
    dictionary: Dictionary,
    /// A row for each word and each bucket of n-grams.
    input: Matrix,
    /// A row for each label; with hierarchical softmax, for each inner node of the tree of labels.
    output: Matrix,
    loss: Loss,
}

/// A label of one [`Classifier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// What the file says about how the model was trained, as far as it matters for using it.
struct Args {
    dim: usize,
    loss: i32,
    ngrams: Ngrams,
}

/// Which n-grams a text is split into.
#[derive(Debug)]
struct Ngrams {
    /// Characters of the shortest and the longest subword; no subwords when `max_chars` is 0.
    min_chars: usize,
    max_chars: usize,
    /// Words of the longest n-gram of words; none when below 2.
    max_words: usize,
    /// N-grams are hashed to so many rows.
    buckets: u32,
}

impl Ngrams {
    fn are_used(&self) -> bool {
        self.max_chars > 0 || self.max_words > 1
    }
}

impl Classifier {
    /// Reads a model from a file. Takes seconds when it is large.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a whole supervised model.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        // Before it is opened: that would wait for whoever writes to a pipe.
        if !path.metadata()?.is_file() {
            return Err(ModelError::NotAFile);
        }
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Self::read(BufReader::with_capacity(1 << 16, file), len)
    }

    /// Reads a model of `len` bytes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn read(bytes: impl BufRead, len: u64) -> Result<Self, ModelError> {
        let mut source = Source::new(bytes, len);
        let version = read_version(&mut source)?;
        let args = Args::read(&mut source, version)?;
        let loss = args.loss;
        let dictionary = Dictionary::read(&mut source, args.ngrams)?;

        let is_quantised = source.flag("the mark of a quantised model")?;
        let input = Matrix::read(&mut source, is_quantised, "the input matrix")?;
        if dictionary.is_pruned() && !is_quantised {
            return Err(damaged("pruning of a model that is not quantised", 1, "0"));
        }
        let is_quantised = source.flag("the mark of a quantised output")? && is_quantised;
        let output = Matrix::read(&mut source, is_quantised, "the output matrix")?;

        check_equal("columns of the input matrix", input.cols(), args.dim)?;
        check_equal("columns of the output matrix", output.cols(), args.dim)?;
        let labels = dictionary.labels().len();
        check_equal("rows of the output matrix", output.rows(), labels)?;
        if input.rows() < dictionary.rows() {
            let expected = format!("at least {}", dictionary.rows());
            return Err(damaged("rows of the input matrix", input.rows(), &expected));
        }
        let counts = dictionary.labels().iter().map(|label| label.count);
        Ok(Self {
            loss: Loss::new(loss, counts)?,
            dictionary,
            input,
            output,
        })
    }

    /// The label of that name, such as `__label__unsafe`.
    pub fn label(&self, name: &str) -> Option<Label> {
        let labels = self.dictionary.labels();
        let position = labels.iter().position(|l| *l.name == *name.as_bytes());
        position.map(Label)
    }

    /// How likely the label is for the text, from 0 to about 1.00001, as `fasttext predict-prob` has it; `None` when no
    /// part of the text is known to the model. A line feed ends the text, and so does the word `</s>`.
    pub fn score(&self, text: &str, label: Label) -> Option<f32> {
        let hidden = self.mean_row(text)?;
        Some(self.loss.score(&self.output, &hidden, label.0))
    }

    /// The mean of the rows that the text consists of, `[dim]`.
    fn mean_row(&self, text: &str) -> Option<Vec<f32>> {
        let mut sum = vec![0.0; self.input.cols()];
        let mut rows = 0u32;
        self.dictionary.for_each_row(text, |row| {
            self.input.add_row(row, &mut sum);
            rows += 1;
        });
        if rows == 0 {
            return None;
        }
        let share = narrowed(1.0 / f64::from(rows));
        for value in &mut sum {
            *value *= share;
        }
        Some(sum)
    }
}

fn read_version(source: &mut Source<impl BufRead>) -> Result<i32, ModelError> {
    let magic = source.i32("the magic number")?;
    if magic != MAGIC {
        return Err(ModelError::NotAModel(magic));
    }
    match source.i32("the version")? {
        version @ (OLD_VERSION | VERSION) => Ok(version),
        version => Err(ModelError::Version(version)),
    }
}

impl Args {
    fn read(source: &mut Source<impl BufRead>, version: i32) -> Result<Self, ModelError> {
        let mut field = |what| source.i32(what);
        let dim = field("dim")?;
        for what in ["ws", "epoch", "minCount", "neg"] {
            field(what)?;
        }
        let max_words = field("wordNgrams")?;
        let loss = field("loss")?;
        let model = field("model")?;
        let buckets = field("bucket")?;
        let min_chars = field("minn")?;
        let max_chars = match (field("maxn")?, version) {
            (_, OLD_VERSION) => 0,
            (max_chars, _) => max_chars,
        };
        field("lrUpdateRate")?;
        source.f64("t")?;

        if model != SUPERVISED {
            return Err(ModelError::NotSupervised);
        }
        let ngrams = Ngrams {
            min_chars: within("minn", min_chars, 0, i32::MAX)?,
            max_chars: within("maxn", max_chars, 0, MAX_NGRAM)?,
            max_words: within("wordNgrams", max_words, 0, MAX_NGRAM)?,
            buckets: within("bucket", buckets, 0, i32::MAX)?,
        };
        if ngrams.are_used() && ngrams.buckets == 0 {
            return Err(damaged("bucket", 0, "1 or more, as there are n-grams"));
        }
        Ok(Self {
            dim: within("dim", dim, 1, i32::MAX)?,
            loss,
            ngrams,
        })
    }
}

/// A number of the file, as the type that a count has here.
fn within<T: TryFrom<i32>>(
    what: &'static str,
    given: i32,
    min: i32,
    max: i32,
) -> Result<T, ModelError> {
    let fits = (min..=max).contains(&given);
    let value = T::try_from(given).ok().filter(|_| fits);
    value.ok_or_else(|| damaged(what, given, &format!("{min} to {max}")))
}

fn check_equal(what: &'static str, given: usize, expected: usize) -> Result<(), ModelError> {
    match given == expected {
        true => Ok(()),
        false => Err(damaged(what, given, &expected.to_string())),
    }
}

fn damaged(what: &'static str, given: impl TryInto<i64>, expected: &str) -> ModelError {
    ModelError::Damaged {
        what,
        given: given.try_into().unwrap_or(i64::MAX),
        expected: expected.to_owned(),
    }
}

/// fastText calculates some things in double precision and keeps the result in single.
#[expect(clippy::cast_possible_truncation, reason = "rounds to the nearest")]
fn narrowed(value: f64) -> f32 {
    value as f32
}
