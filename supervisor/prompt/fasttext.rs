//! Reads supervised fastText models (`.bin`, and quantised ones, `.ftz`) and computes how likely a label is for a text. The
//! scores are those that `fasttext predict-prob` prints.
//!
//! `safety` calls it. It does not train models. A file is never trusted: every value is checked while it is read, so
//! that using the model cannot fail later, and memory is allocated only after the file has proved long enough for it.
//!
//! `source` reads the file, `dictionary` finds the rows of the model that a text consists of, `matrix` holds the rows,
//! `loss` turns their mean into a score, `error` is why a file cannot be used.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

pub use error::ModelError;

use dictionary::{Dictionary, Ngrams};
use error::{MAGIC, OLD_VERSION, VERSION, check_equal, damaged, within};
use loss::Loss;
use matrix::Matrix;
use source::Source;

mod dictionary;
mod error;
mod loss;
mod matrix;
mod source;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) mod trained;

/// The code of supervised models.
const SUPERVISED: i32 = 3;
/// The longest n-gram of characters or of words that is accepted. Models hardly ever use more than five; the limit bounds
/// the time that a text takes.
const MAX_NGRAM: i32 = 64;

/// A supervised model in memory.
#[derive(Debug)]
pub struct Classifier {
    dictionary: Dictionary,
    /// One row for each word and for each bucket of n-grams.
    input: Matrix,
    /// One row for each label or, with hierarchical softmax, for each inner node of the tree of labels.
    output: Matrix,
    loss: Loss,
}

/// A label of one [`Classifier`]; it must not be used with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// The training parameters in the file that matter when the model is used.
struct Args {
    dim: usize,
    loss: i32,
    ngrams: Ngrams,
}

impl Classifier {
    /// Reads a model from a file. A large model takes seconds.
    ///
    /// # Errors
    /// Returns an error when the file cannot be read, or is not a complete supervised model.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        // This must come first: opening a named pipe would wait for its writer.
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
    /// Returns an error in the same cases as [`Self::open`].
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

    /// Finds a label by its name, such as `__label__unsafe`.
    pub fn label(&self, name: &str) -> Option<Label> {
        let labels = self.dictionary.labels();
        let position = labels.iter().position(|l| *l.name == *name.as_bytes());
        position.map(Label)
    }

    /// Computes how likely the label is for the text, from 0 to about 1.00001, as `fasttext predict-prob` does. Returns
    /// `None` when the model knows no part of the text. The text ends at a line feed or at the word `</s>`.
    pub fn score(&self, text: &str, label: Label) -> Option<f32> {
        let hidden = self.mean_row(text)?;
        Some(self.loss.score(&self.output, &hidden, label.0))
    }

    /// Computes the mean of the rows that the text consists of, `[dim]`.
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
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounds to the nearest, as the tool does"
        )]
        let share = (1.0 / f64::from(rows)) as f32;
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
