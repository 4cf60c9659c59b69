//! One track of the film: its tables, from the tracks of all segments.

use std::num::NonZeroU32;

use bytes::Bytes;
use mp4_atom::{Ctts, CttsEntry, Stsc, StscEntry, Stss, Stsz, StszSamples, Stts, SttsEntry};

use crate::error::LayoutError;
use crate::index::{SegmentIndex, Timing, Track};
use crate::kind::Kind;

/// A track of the film. All its times are in ticks of `timescale`, and counted from where the film's time line begins,
/// which is not where the file begins. None is above 2^90.
#[derive(Debug)]
pub(crate) struct FilmTrack {
    pub(crate) kind: Kind,
    /// Ticks per second: the least common multiple of the segments' own.
    pub(crate) timescale: NonZeroU32,
    /// Of the first segment.
    pub(crate) dimensions: [u32; 2],
    /// When its first sample is decoded.
    pub(crate) decode_start: i128,
    pub(crate) decode_end: i128,
    /// When it is first presented.
    pub(crate) start: i128,
    /// When the last of its samples has been presented.
    pub(crate) end: i128,
    pub(crate) tables: Tables,
}

/// What the film's sample tables say, except for the places of the chunks. The times of samples count from the first
/// one.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(crate) entries: Vec<Bytes>,
    pub(crate) stts: Stts,
    /// The composition time minus the decode time.
    pub(crate) ctts: Ctts,
    /// How much later the samples are composed than their decode times and `ctts` before [`Self::lift`] say.
    pub(crate) lift: i128,
    pub(crate) stss: Stss,
    pub(crate) stsc: Stsc,
    pub(crate) stsz: Stsz,
}

impl Tables {
    /// Returns whether decoding can begin with each sample.
    pub(crate) fn all_sync(&self) -> bool {
        let samples = match &self.stsz.samples {
            StszSamples::Identical { count, .. } => *count as usize,
            StszSamples::Different { sizes } => sizes.len(),
        };
        self.stss.entries.len() == samples
    }
}

impl FilmTrack {
    /// Joins the segments' tracks of one kind. Returns `None` when there is no sample in them.
    ///
    /// # Errors
    /// Returns an error when the tables cannot say what the segments say.
    pub(crate) fn join(kind: Kind, film: &[&SegmentIndex]) -> Result<Option<Self>, LayoutError> {
        let tracks = film.iter().enumerate();
        let tracks: Vec<(usize, &Track)> = tracks
            .filter_map(|(segment, index)| Some((segment, index.track(kind)?)))
            .collect();
        let Some((_, first)) = tracks.first() else {
            return Ok(None);
        };
        let timescales = tracks.iter().map(|(_, track)| track.timescale);
        let timescale = least_common_multiple(timescales).ok_or(LayoutError::Timescale { kind })?;
        let mut join = Join::default();
        for &(segment, track) in &tracks {
            let factor = i128::from(timescale.get() / track.timescale.get());
            join.segment(track, factor)
                .map_err(|refusal| refusal.at(segment, kind))?;
            join.first_presented(track, factor);
        }
        let too_long = |refusal: Refusal| refusal.at(0, kind);
        let decode_end = join.end().map_err(too_long)?;
        let decode_start = join.decode_start.unwrap_or_default();
        let start = join.start.unwrap_or_default();
        join.lift(decode_start).map_err(too_long)?;
        Ok(Some(Self {
            kind,
            timescale,
            dimensions: first.dimensions,
            decode_start,
            decode_end,
            start,
            end: join.composition_end.unwrap_or(decode_end),
            tables: join.tables,
        }))
    }

    /// The media time that is presented first, for the edit list.
    pub(crate) fn media_time(&self) -> i128 {
        self.start - self.decode_start + self.tables.lift
    }
}

/// Returns the least common multiple of the segments' timescales, if it is below 2^32.
pub(crate) fn least_common_multiple(
    numbers: impl IntoIterator<Item = NonZeroU32>,
) -> Option<NonZeroU32> {
    let mut multiple = NonZeroU32::MIN;
    for number in numbers {
        let [mut divisor, mut rest] = [multiple.get(), number.get()];
        while rest != 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        multiple = multiple.checked_mul(NonZeroU32::new(number.get() / divisor)?)?;
    }
    Some(multiple)
}

/// Why segments cannot be joined.
#[derive(Debug)]
enum Refusal {
    Overlap,
    TooLong,
}

impl Refusal {
    fn at(self, segment: usize, kind: Kind) -> LayoutError {
        match self {
            Self::Overlap => LayoutError::Overlap { segment, kind },
            Self::TooLong => LayoutError::TooLong(None),
        }
    }
}

/// Joins tracks, sample by sample.
#[derive(Debug, Default)]
struct Join {
    tables: Tables,
    chunks: u32,
    samples: u32,
    /// The last sample. Its duration is not in the tables yet, since it depends on the next sample.
    last: Option<Placed>,
    decode_start: Option<i128>,
    start: Option<i128>,
    composition_start: Option<i128>,
    composition_end: Option<i128>,
}

/// A sample on the film's time line.
#[derive(Clone, Copy, Debug)]
struct Placed {
    time: i128,
    duration: i128,
    composition: i128,
}

impl Join {
    /// Adds the track of a segment. `factor` is the number of the film's ticks in a tick of it.
    fn segment(&mut self, track: &Track, factor: i128) -> Result<(), Refusal> {
        let shift = i128::from(track.edit.delay) - i128::from(track.edit.media_time);
        let mut timings = track.timings().zip(track.sizes.iter().copied());
        for chunk in &track.chunks {
            self.chunk(chunk.samples, &track.entries[chunk.entry as usize])?;
            let mut time = i128::from(chunk.time) + shift;
            let samples = chunk.samples as usize;
            for (
                Timing {
                    duration,
                    offset,
                    sync,
                },
                size,
            ) in timings.by_ref().take(samples)
            {
                let [offset, duration] = [i128::from(offset), i128::from(duration)];
                self.sample(
                    Placed {
                        time: time * factor,
                        duration: duration * factor,
                        composition: (time + offset) * factor,
                    },
                    size,
                    sync,
                )?;
                time += duration;
            }
        }
        Ok(())
    }

    /// Notes when the first segment is first presented.
    fn first_presented(&mut self, track: &Track, factor: i128) {
        let start = self.composition_start.unwrap_or_default();
        let visible = i128::from(track.edit.delay) * factor;
        self.start.get_or_insert(start.max(visible));
    }

    /// Begins a chunk.
    fn chunk(&mut self, samples: u32, entry: &Bytes) -> Result<(), Refusal> {
        let entries = &mut self.tables.entries;
        let known = entries.iter().position(|known| known == entry);
        let index = known.unwrap_or_else(|| {
            entries.push(entry.clone());
            entries.len() - 1
        });
        let sample_description_index = u32::try_from(index + 1).map_err(|_| Refusal::TooLong)?;
        self.chunks = self.chunks.checked_add(1).ok_or(Refusal::TooLong)?;
        let same = |last: &StscEntry| {
            last.samples_per_chunk == samples
                && last.sample_description_index == sample_description_index
        };
        let runs = &mut self.tables.stsc.entries;
        if !runs.last().is_some_and(same) {
            runs.push(StscEntry {
                first_chunk: self.chunks,
                samples_per_chunk: samples,
                sample_description_index,
            });
        }
        Ok(())
    }

    fn sample(&mut self, sample: Placed, size: u32, sync: bool) -> Result<(), Refusal> {
        if let Some(last) = self.last {
            // Samples of no duration may share their time.
            if sample.time < last.time || (sample.time == last.time && last.duration > 0) {
                return Err(Refusal::Overlap);
            }
            self.end_last(sample.time - last.time)?;
        }
        self.last = Some(sample);
        self.decode_start.get_or_insert(sample.time);
        let composition_start = self.composition_start.get_or_insert(sample.composition);
        *composition_start = sample.composition.min(*composition_start);

        self.samples = self.samples.checked_add(1).ok_or(Refusal::TooLong)?;
        if sync {
            self.tables.stss.entries.push(self.samples);
        }
        let StszSamples::Different { sizes } = &mut self.tables.stsz.samples else {
            unreachable!("sizes are different by default");
        };
        sizes.push(size);
        let sample_offset = sample.composition - sample.time;
        let sample_offset = i64::try_from(sample_offset).map_err(|_| Refusal::TooLong)?;
        match self.tables.ctts.entries.last_mut() {
            Some(run) if run.sample_offset == sample_offset => run.sample_count += 1,
            _ => self.tables.ctts.entries.push(CttsEntry {
                sample_count: 1,
                sample_offset,
            }),
        }
        Ok(())
    }

    /// Gives the last sample its duration.
    fn end_last(&mut self, duration: i128) -> Result<(), Refusal> {
        let Some(last) = self.last else {
            return Ok(());
        };
        let sample_delta = u32::try_from(duration).map_err(|_| Refusal::TooLong)?;
        match self.tables.stts.entries.last_mut() {
            Some(run) if run.sample_delta == sample_delta => run.sample_count += 1,
            _ => self.tables.stts.entries.push(SttsEntry {
                sample_count: 1,
                sample_delta,
            }),
        }
        let end = last.composition + duration;
        let composition_end = self.composition_end.get_or_insert(end);
        *composition_end = end.max(*composition_end);
        Ok(())
    }

    /// Ends the track and returns its end.
    fn end(&mut self) -> Result<i128, Refusal> {
        let Some(last) = self.last else {
            return Ok(0);
        };
        self.end_last(last.duration)?;
        self.last = None;
        if let StszSamples::Different { sizes } = &self.tables.stsz.samples
            && let [size, rest @ ..] = &sizes[..]
            && rest.iter().all(|other| other == size)
        {
            self.tables.stsz.samples = StszSamples::Identical {
                size: *size,
                count: self.samples,
            };
        }
        Ok(last.time + last.duration)
    }

    /// Composes all samples later when some would be composed before the media begin.
    fn lift(&mut self, decode_start: i128) -> Result<(), Refusal> {
        let composition_start = self.composition_start.unwrap_or(decode_start);
        let lift = (decode_start - composition_start).max(0);
        let by = i64::try_from(lift).map_err(|_| Refusal::TooLong)?;
        for run in &mut self.tables.ctts.entries {
            let offset = run.sample_offset.checked_add(by);
            run.sample_offset = offset.ok_or(Refusal::TooLong)?;
        }
        self.tables.lift = lift;
        Ok(())
    }
}
