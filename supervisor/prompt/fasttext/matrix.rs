//! A matrix of a model, dense or product-quantised.

use std::io::BufRead;

use super::error::{ModelError, check_equal, damaged};
use super::source::Source;

/// The number of centroids that a code of one byte chooses from.
const CODES: usize = 256;

#[derive(Debug)]
pub(super) enum Matrix {
    Dense(Dense),
    Quantised(Quantised),
}

#[derive(Debug)]
pub(super) struct Dense {
    rows: usize,
    cols: usize,
    /// `[rows, cols]`
    values: Vec<f32>,
}

/// A product-quantised matrix: a row is split into parts, and the code of a part chooses one of 256 centroids.
#[derive(Debug)]
pub(super) struct Quantised {
    rows: usize,
    /// `[rows, parts]`
    codes: Vec<u8>,
    quantiser: Quantiser,
    norms: Option<Norms>,
}

/// The norm of each row, for matrices whose rows were normalised before they were quantised.
#[derive(Debug)]
struct Norms {
    /// `[rows]`
    codes: Vec<u8>,
    /// `[256]`
    values: Vec<f32>,
}

#[derive(Debug)]
struct Quantiser {
    dim: usize,
    parts: usize,
    /// The number of values in each part except the last one.
    part_len: usize,
    /// The number of values in the last part, which may be shorter.
    last_len: usize,
    /// `[parts, 256, part_len]`
    centroids: Vec<f32>,
}

impl Matrix {
    pub(super) fn read(
        source: &mut Source<impl BufRead>,
        is_quantised: bool,
        what: &'static str,
    ) -> Result<Self, ModelError> {
        match is_quantised {
            true => Quantised::read(source, what).map(Self::Quantised),
            false => Dense::read(source, what).map(Self::Dense),
        }
    }

    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.rows,
            Self::Quantised(matrix) => matrix.rows,
        }
    }

    pub(super) fn cols(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.cols,
            Self::Quantised(matrix) => matrix.quantiser.dim,
        }
    }

    /// Adds a row to `sum`, `[cols]`.
    ///
    /// # Panics
    /// Panics when `row` is out of range.
    pub(super) fn add_row(&self, row: usize, sum: &mut [f32]) {
        match self {
            Self::Dense(matrix) => {
                for (sum, value) in sum.iter_mut().zip(matrix.row(row)) {
                    *sum += value;
                }
            }
            Self::Quantised(matrix) => {
                let norm = matrix.norm(row);
                let parts = sum.chunks_mut(matrix.quantiser.part_len);
                for (sum, centroid) in parts.zip(matrix.centroids(row)) {
                    for (sum, value) in sum.iter_mut().zip(centroid) {
                        *sum += norm * value;
                    }
                }
            }
        }
    }

    /// Computes the dot product of a row and `vector`, `[cols]`. It sums in the tool's order, although another order would be
    /// faster, so that the last digit is the same.
    ///
    /// # Panics
    /// Panics when `row` is out of range.
    pub(super) fn dot_row(&self, row: usize, vector: &[f32]) -> f32 {
        let product = |sum, (a, b): (&f32, &f32)| sum + a * b;
        match self {
            Self::Dense(matrix) => matrix.row(row).iter().zip(vector).fold(0.0, product),
            Self::Quantised(matrix) => {
                let values = matrix.centroids(row).flatten();
                values.zip(vector).fold(0.0, product) * matrix.norm(row)
            }
        }
    }
}

impl Dense {
    fn read(source: &mut Source<impl BufRead>, what: &'static str) -> Result<Self, ModelError> {
        let (rows, cols) = read_size(source, what)?;
        Ok(Self {
            rows,
            cols,
            values: source.floats(what, rows as u64, cols as u64)?,
        })
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.cols..][..self.cols]
    }
}

impl Quantised {
    fn read(source: &mut Source<impl BufRead>, what: &'static str) -> Result<Self, ModelError> {
        let has_norms = source.flag("the mark of quantised norms")?;
        let (rows, cols) = read_size(source, what)?;
        let len = source.i32("the number of codes")?;
        let codes = source.bytes("the codes", u64::try_from(len).unwrap_or(u64::MAX))?;
        let quantiser = Quantiser::read(source, cols)?;
        check_equal(
            "the number of codes",
            codes.len(),
            rows.saturating_mul(quantiser.parts),
        )?;
        let norms = match has_norms {
            true => Some(Norms {
                codes: source.bytes("the codes of norms", rows as u64)?,
                values: Quantiser::read(source, 1)?.centroids,
            }),
            false => None,
        };
        Ok(Self {
            rows,
            codes,
            quantiser,
            norms,
        })
    }

    /// Returns the centroids of a row's parts, in their order.
    fn centroids(&self, row: usize) -> impl Iterator<Item = &[f32]> {
        let codes = &self.codes[row * self.quantiser.parts..][..self.quantiser.parts];
        let parts = codes.iter().enumerate();
        parts.map(|(part, code)| self.quantiser.centroid(part, *code))
    }

    fn norm(&self, row: usize) -> f32 {
        match &self.norms {
            Some(norms) => norms.values[usize::from(norms.codes[row])],
            None => 1.0,
        }
    }
}

impl Quantiser {
    /// Reads a quantiser for rows of `dim` values.
    ///
    /// # Errors
    /// Returns an error when the file is too short, or the quantiser is for rows of another length.
    fn read(source: &mut Source<impl BufRead>, dim: usize) -> Result<Self, ModelError> {
        let mut count = |what| {
            let count = source.i32(what)?;
            usize::try_from(count).map_err(|_| damaged(what, count, "0 or more"))
        };
        check_equal("the dimension of a quantiser", count("a dimension")?, dim)?;
        let parts = count("the number of parts of a row")?;
        let part_len = count("the length of a part")?;
        let last_len = count("the length of the last part")?;
        if part_len == 0 {
            return Err(damaged("the length of a part", part_len, "1 or more"));
        }
        check_equal(
            "the number of parts of a row",
            parts,
            dim.div_ceil(part_len),
        )?;
        check_equal(
            "the length of the last part",
            last_len,
            dim - (parts - 1) * part_len,
        )?;
        Ok(Self {
            dim,
            parts,
            part_len,
            last_len,
            centroids: source.floats("the centroids", dim as u64, CODES as u64)?,
        })
    }

    fn centroid(&self, part: usize, code: u8) -> &[f32] {
        let len = match part + 1 == self.parts {
            true => self.last_len,
            false => self.part_len,
        };
        let start = part * CODES * self.part_len + usize::from(code) * len;
        &self.centroids[start..start + len]
    }
}

/// Reads the number of rows and columns, neither of which may be 0.
fn read_size(
    source: &mut Source<impl BufRead>,
    what: &'static str,
) -> Result<(usize, usize), ModelError> {
    let mut count = || {
        let count = source.i64(what)?;
        let positive = usize::try_from(count).ok().filter(|count| *count > 0);
        positive.ok_or_else(|| damaged(what, count, "1 or more rows and columns"))
    };
    Ok((count()?, count()?))
}
