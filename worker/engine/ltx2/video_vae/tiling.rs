//! Decoding in pieces, for clips that do not fit into memory as a whole and for early first frames.
//!
//! In the decoder, each pixel depends on the whole clip, so tiles are decoded slightly differently than the whole and
//! are blended where they overlap. Groups of frames are exact, because they pass on the frames that the next group
//! needs, and are the ones to use. The tilings exist to reproduce the results of other implementations.

use tch::{Kind, Tensor};

use super::config::{Config, Padding};
use super::decoder::{Decoder, Sink};
use crate::nn::sizes;

/// The way in which a clip is decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tiling {
    /// The whole clip is decoded at once.
    Whole,
    /// The result equals that of `Whole`, but each block of the decoder processes this number of its frames at once.
    /// Frames are returned in groups.
    Grouped { frames: i64 },
    /// Tiles as in the library (diffusers 0.42.1, `tiled_decode` and `_temporal_tiled_decode`): a tile is faded in
    /// linearly over its overlap with the one before. Frames are returned after each tile in time.
    Library {
        /// The tiles of rows and columns, in pixels.
        space: Option<[Tile; 2]>,
        /// The tiles in time, in frames.
        time: Option<Tile>,
    },
    /// Tiles as in FastVideo, weighted with trapezoids. Later tiles in time begin one latent frame earlier with weight
    /// zero, because the first frame of a clip is decoded differently. Frames are returned after each tile in time.
    Weighted {
        /// The tiles of rows and columns, in pixels.
        space: Option<[Tile; 2]>,
        /// The tiles in time, in frames.
        time: Option<Tile>,
    },
}

/// Tiles along one axis, in pixels or frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub size: i64,
    /// The overlap of each tile with the one before.
    pub overlap: i64,
}

/// The error for a tiling that does not fit the model or the size of the clip.
#[derive(Debug, thiserror::Error)]
#[error("decoding in pieces, {axis}: expected {expected}, given {given}")]
pub struct TilingError {
    pub axis: &'static str,
    pub expected: String,
    pub given: String,
}

/// The plan for decoding one clip.
#[derive(Debug)]
pub(super) enum Plan {
    Whole,
    Grouped(i64),
    Library(Grid),
    Weighted(Grid),
}

/// The tiles in time, and the tiles in space, which are the same for each of them. All sizes are in latents.
#[derive(Debug)]
pub(super) struct Grid {
    time: Vec<Span>,
    rows: Vec<Span>,
    columns: Vec<Span>,
    /// The number of frames, and of rows or columns of pixels, of a latent.
    ratios: [i64; 2],
    /// The overlaps in frames, rows and columns of pixels.
    overlaps: [i64; 3],
}

/// The range of a tile along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: i64,
    length: i64,
}

impl Span {
    fn of(self, x: &Tensor, axis: i64) -> Tensor {
        x.narrow(axis, self.start, self.length)
    }

    fn end(self) -> i64 {
        self.start + self.length
    }
}

impl Plan {
    /// # Errors
    /// Returns an error when `latents`, `[B, C, f, h, w]`, cannot be decoded that way.
    pub(super) fn new(
        tiling: &Tiling,
        config: &Config,
        latents: &Tensor,
    ) -> Result<Self, TilingError> {
        let [_, _, f, h, w] = sizes(latents);
        if config.decoder.padding == Padding::Reflect {
            for (axis, cells) in [("rows", h), ("columns", w)] {
                // A single cell has no neighbour to reflect.
                if cells < 2 {
                    return Err(wrong(axis, "at least two cells".to_owned(), cells));
                }
            }
        }
        let (space, time) = match tiling {
            Tiling::Whole => return Ok(Self::Whole),
            Tiling::Grouped { frames } if *frames < 1 => {
                return Err(wrong("frames", "at least 1 in a group".to_owned(), *frames));
            }
            Tiling::Grouped { frames } => return Ok(Self::Grouped(*frames)),
            Tiling::Library { space, time } | Tiling::Weighted { space, time } => (space, time),
        };
        let [temporal, spatial] = [config.temporal_ratio(), config.spatial_ratio()];
        let time = time
            .map(|tile| tile.cells("frames", temporal))
            .transpose()?;
        let rows = space
            .map(|[tile, _]| tile.cells("rows", spatial))
            .transpose()?;
        let columns = space
            .map(|[_, tile]| tile.cells("columns", spatial))
            .transpose()?;
        let overlap = |tile: Option<Tile>, ratio| tile.map_or(0, |tile| tile.overlap * ratio);
        let overlaps = [
            overlap(time, temporal),
            overlap(rows, spatial),
            overlap(columns, spatial),
        ];
        let ratios = [temporal, spatial];
        Ok(match tiling {
            Tiling::Library { .. } => {
                // A single tile is enough only if it covers both axes; otherwise the library cuts both.
                let is_cut = |tile: Option<Tile>, cells| tile.is_some_and(|tile| cells > tile.size);
                let is_cut = is_cut(rows, h) || is_cut(columns, w);
                let cut = |tile, cells| library_spans(if is_cut { tile } else { None }, cells);
                let (rows, columns) = (cut(rows, h), cut(columns, w));
                let time = library_time_spans(time, f);
                Self::Library(Grid {
                    time,
                    rows,
                    columns,
                    ratios,
                    overlaps,
                })
            }
            _ => {
                let mut time = weighted_spans(time, f);
                for span in time.iter_mut().skip(1) {
                    span.start -= 1;
                    span.length += 1;
                }
                let (rows, columns) = (weighted_spans(rows, h), weighted_spans(columns, w));
                Self::Weighted(Grid {
                    time,
                    rows,
                    columns,
                    ratios,
                    overlaps,
                })
            }
        })
    }

    /// Decodes latents of the size given to [`Plan::new`]; pieces are passed out in order as soon as they are decoded.
    pub(super) fn run<E>(
        &self,
        decoder: &Decoder,
        latents: &Tensor,
        sink: Sink<'_, E>,
    ) -> Result<(), E> {
        match self {
            Self::Whole => sink(decoder.forward(latents)),
            Self::Grouped(frames) => decoder.forward_in_groups(latents, *frames, sink),
            Self::Library(grid) => grid.run_library(decoder, latents, sink),
            Self::Weighted(grid) => grid.run_weighted(decoder, latents, sink),
        }
    }
}

impl Tile {
    /// Converts the tile to latents of `ratio` pixels or frames. An overlap of at least one avoids a last tile of a
    /// single cell, which cannot be decoded.
    fn cells(self, axis: &'static str, ratio: i64) -> Result<Self, TilingError> {
        let Self { size, overlap } = self;
        if size % ratio != 0 || overlap % ratio != 0 || overlap < ratio || size <= overlap {
            return Err(TilingError {
                axis,
                expected: format!(
                    "tiles and overlaps that are multiples of {ratio}, an overlap smaller than the tile"
                ),
                given: format!("tiles of {size} that overlap by {overlap}"),
            });
        }
        Ok(Self {
            size: size / ratio,
            overlap: overlap / ratio,
        })
    }
}

fn wrong(axis: &'static str, expected: String, given: i64) -> TilingError {
    TilingError {
        axis,
        expected,
        given: given.to_string(),
    }
}

/// Returns the library's tiles in space, without a last one of a single cell, which the one before covers.
fn library_spans(tile: Option<Tile>, cells: i64) -> Vec<Span> {
    let Some(Tile { size, overlap }) = tile else {
        return vec![Span {
            start: 0,
            length: cells,
        }];
    };
    let mut spans = Vec::new();
    let mut start = 0;
    while start < cells && (start == 0 || cells - start > 1) {
        spans.push(Span {
            start,
            length: size.min(cells - start),
        });
        start += size - overlap;
    }
    spans
}

/// Returns the library's tiles in time. Each has one more frame, and those that would yield no frame are left out.
fn library_time_spans(tile: Option<Tile>, frames: i64) -> Vec<Span> {
    match tile {
        Some(Tile { size, overlap }) if frames > size => library_spans(
            Some(Tile {
                size: size + 1,
                overlap: overlap + 1,
            }),
            frames,
        ),
        _ => vec![Span {
            start: 0,
            length: frames,
        }],
    }
}

/// Returns FastVideo's tiles. The last one has the rest of the cells, which is longer than the overlap.
fn weighted_spans(tile: Option<Tile>, cells: i64) -> Vec<Span> {
    let mut spans = Vec::new();
    let Tile { size, overlap } = tile.unwrap_or(Tile {
        size: cells,
        overlap: 0,
    });
    let mut start = 0;
    loop {
        let length = size.min(cells - start);
        spans.push(Span { start, length });
        if start + length == cells {
            return spans;
        }
        start += size - overlap;
    }
}

impl Grid {
    fn run_library<E>(
        &self,
        decoder: &Decoder,
        latents: &Tensor,
        sink: Sink<'_, E>,
    ) -> Result<(), E> {
        let mut before: Option<Tensor> = None;
        for (i, span) in self.time.iter().enumerate() {
            let mut tile = self.library_picture(decoder, &span.of(latents, 2));
            if let Some(before) = before.take() {
                tile = tile.narrow(2, 0, tile.size()[2] - 1);
                fade_in(&before, &tile, 2, self.overlaps[0]);
            }
            let frames = tile.size()[2];
            let finished = match self.time.get(i + 1) {
                Some(next) => (next.start - span.start) * self.ratios[0] + i64::from(i == 0),
                None => frames,
            };
            sink(tile.narrow(2, 0, finished.min(frames)))?;
            before = Some(tile);
        }
        Ok(())
    }

    /// Decodes one tile in time and combines its tiles in space.
    fn library_picture(&self, decoder: &Decoder, latents: &Tensor) -> Tensor {
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for (i, row) in self.rows.iter().enumerate() {
            let mut tiles: Vec<Tensor> = Vec::new();
            for (j, column) in self.columns.iter().enumerate() {
                let tile = decoder.forward(&column.of(&row.of(latents, 3), 4));
                if let Some(above) = above.get(j) {
                    fade_in(above, &tile, 3, self.overlaps[1]);
                }
                if let Some(left) = tiles.last() {
                    fade_in(left, &tile, 4, self.overlaps[2]);
                }
                tiles.push(tile);
            }
            let height = self.kept(&self.rows, i);
            let kept = tiles.iter().enumerate().map(|(j, tile)| {
                tile.narrow(3, 0, height)
                    .narrow(4, 0, self.kept(&self.columns, j))
            });
            rows.push(Tensor::cat(&kept.collect::<Vec<_>>(), 4));
            above = tiles;
        }
        Tensor::cat(&rows, 3)
    }

    /// Returns the number of pixels of a tile before the next one begins.
    fn kept(&self, spans: &[Span], i: usize) -> i64 {
        let end = spans.get(i + 1).map_or(spans[i].end(), |next| next.start);
        (end - spans[i].start) * self.ratios[1]
    }

    fn run_weighted<E>(
        &self,
        decoder: &Decoder,
        latents: &Tensor,
        sink: Sink<'_, E>,
    ) -> Result<(), E> {
        let [ratio, _] = self.ratios;
        let spans: Vec<Span> = self.time.iter().map(|span| frames(*span, ratio)).collect();
        let weights = trapezoids(&spans, self.overlaps[0], true);
        let mut begun: Option<Tensor> = None;
        for (i, span) in spans.iter().enumerate() {
            let picture = self.weighted_picture(decoder, &self.time[i].of(latents, 2));
            let picture = if spans.len() == 1 {
                picture
            } else {
                picture * along(&weights[i], 2, latents)
            };
            if let Some(begun) = begun.take() {
                let _ = picture.narrow(2, 0, begun.size()[2]).g_add_(&begun);
            }
            let finished = spans
                .get(i + 1)
                .map_or(span.length, |next| next.start - span.start);
            begun = Some(picture.narrow(2, finished, span.length - finished).copy());
            sink(picture.narrow(2, 0, finished))?;
        }
        Ok(())
    }

    /// Decodes one tile in time as the weighted sum of its tiles in space, in float32.
    fn weighted_picture(&self, decoder: &Decoder, latents: &Tensor) -> Tensor {
        if self.rows.len() == 1 && self.columns.len() == 1 {
            return decoder.forward(latents).to_kind(Kind::Float);
        }
        let pixels = |spans: &[Span]| -> Vec<Span> {
            let ratio = self.ratios[1];
            spans
                .iter()
                .map(|s| Span {
                    start: s.start * ratio,
                    length: s.length * ratio,
                })
                .collect()
        };
        let (rows, columns) = (pixels(&self.rows), pixels(&self.columns));
        let row_weights = trapezoids(&rows, self.overlaps[1], false);
        let column_weights = trapezoids(&columns, self.overlaps[2], false);
        let mut picture: Option<Tensor> = None;
        for (i, row) in self.rows.iter().enumerate() {
            for (j, column) in self.columns.iter().enumerate() {
                let tile = decoder.forward(&column.of(&row.of(latents, 3), 4));
                let tile = tile
                    * along(&row_weights[i], 3, latents)
                    * along(&column_weights[j], 4, latents);
                let picture = picture.get_or_insert_with(|| {
                    let [b, c, f, _, _] = sizes(&tile);
                    let size = [b, c, f, end(&rows), end(&columns)];
                    Tensor::zeros(size, (Kind::Float, tile.device()))
                });
                let _ = columns[j].of(&rows[i].of(picture, 3), 4).g_add_(&tile);
            }
        }
        picture.unwrap_or_else(|| decoder.forward(latents))
    }
}

fn end(spans: &[Span]) -> i64 {
    spans.last().map_or(0, |span| span.end())
}

/// Returns the frames that a tile of latents in time decodes to.
fn frames(span: Span, ratio: i64) -> Span {
    Span {
        start: span.start * ratio,
        length: 1 + (span.length - 1) * ratio,
    }
}

/// Mixes the end of `before` into the beginning of `tile` along an axis, over at most `extent`.
fn fade_in(before: &Tensor, tile: &Tensor, axis: usize, extent: i64) {
    let [available, own] = [before, tile].map(|x| x.size()[axis]);
    let extent = extent.min(available).min(own);
    let share: Vec<f64> = (0..extent).map(|i| i as f64 / extent as f64).collect();
    let rest: Vec<f64> = share.iter().map(|share| 1.0 - share).collect();
    let mut beginning = tile.narrow(axis as i64, 0, extent);
    let faded = before.narrow(axis as i64, available - extent, extent) * along(&rest, axis, tile)
        + &beginning * along(&share, axis, tile);
    beginning.copy_(&faded);
}

/// Returns the weights of tiles along one axis: rising over the overlap with the tile before, falling over that with
/// the next, and adding up to 1 everywhere. With `extra`, later tiles begin with one more cell, of weight zero.
fn trapezoids(spans: &[Span], overlap: i64, extra: bool) -> Vec<Vec<f64>> {
    let shape = |i: usize, place: i64| -> f64 {
        let steps = (overlap + 1) as f64;
        let (rising, falling) = (i > 0, i + 1 < spans.len());
        let from_start = if extra { place } else { place + 1 };
        let from_end = spans[i].length - place;
        let mut weight = 1.0;
        if rising && from_start <= overlap {
            weight *= from_start as f64 / steps;
        }
        if falling && from_end <= overlap {
            weight *= from_end as f64 / steps;
        }
        weight
    };
    let length = usize::try_from(end(spans)).unwrap_or(0);
    let mut sum = vec![0.0; length];
    let mut weights: Vec<Vec<f64>> = Vec::new();
    for (i, span) in spans.iter().enumerate() {
        weights.push((0..span.length).map(|place| shape(i, place)).collect());
        let covered = sum
            .iter_mut()
            .skip(usize::try_from(span.start).unwrap_or(0));
        covered
            .zip(&weights[i])
            .for_each(|(sum, weight)| *sum += weight);
    }
    for (span, weights) in spans.iter().zip(&mut weights) {
        let covered = sum.iter().skip(usize::try_from(span.start).unwrap_or(0));
        weights
            .iter_mut()
            .zip(covered)
            .for_each(|(weight, sum)| *weight /= sum);
    }
    weights
}

/// Creates a float32 tensor of values along one of five axes, on the device of `like`.
fn along(values: &[f64], axis: usize, like: &Tensor) -> Tensor {
    let mut size = [1; 5];
    size[axis] = -1;
    Tensor::from_slice(values)
        .to_kind(Kind::Float)
        .to_device(like.device())
        .view(size)
}
