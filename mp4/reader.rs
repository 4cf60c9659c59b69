//! Reads a segment's boxes. They come from a worker and are not trusted: what is kept is bounded by their length.

use std::num::NonZeroU32;
use std::ops::Range;

use bytes::Bytes;
use mp4_atom::{Elst, FixedPoint, Mdhd, Mvhd, Tfdt, Tfhd, Tkhd, Trex, Trun, TrunEntry};

use crate::boxes::{Boxes, RawBox};
use crate::error::IndexError;
use crate::index::{
    Chunk, ENTRY_SIZES, Edit, MAX_ENTRIES, MAX_SAMPLES, Run, SegmentIndex, Timing, Track,
};
use crate::kind::Kind;

/// The bit of a sample's flags that says that decoding cannot begin with it.
const NON_SYNC: u32 = 1 << 16;

impl SegmentIndex {
    /// Reads a whole segment: its init segment, then its fragments. Samples are not looked into.
    ///
    /// Every fragment must say its decode time (`tfdt`). Boxes that carry no sample are ignored.
    ///
    /// # Errors
    /// Returns an error when the bytes are no such segment, or one that an ordinary file cannot hold: more than one
    /// track of a kind, tracks of other kinds, more than 2^20 samples, samples of no bytes, encrypted samples, turned
    /// pictures, edits other than a shift.
    pub fn read(bytes: &[u8]) -> Result<Self, IndexError> {
        Self::read_messages([bytes])
    }

    /// As [`Self::read`], of a segment in messages. Each holds whole boxes, and the segment is all of them in order.
    ///
    /// # Errors
    /// As [`Self::read`], and when a box is spread over messages.
    pub fn read_messages<'a>(
        messages: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, IndexError> {
        let mut reader = Reader::default();
        for message in messages {
            reader.message(message)?;
        }
        reader.finish()
    }
}

/// Reads a segment, message by message.
#[derive(Debug, Default)]
struct Reader {
    /// The length of the messages so far.
    size: u64,
    /// The tracks, after the init segment was read.
    tracks: Option<Vec<InitTrack>>,
    /// The bodies of `mdat` so far.
    media: Vec<Range<u64>>,
    samples: usize,
}

/// A track and what only the reading of its fragments needs.
#[derive(Debug)]
struct InitTrack {
    defaults: Trex,
    track: Track,
}

/// Where the samples of a fragment are, in bytes from the segment's start.
#[derive(Debug)]
struct Position {
    moof: u64,
    /// Where the samples of the track fragment before this one end.
    previous_end: u64,
}

impl Reader {
    /// Reads the next message.
    ///
    /// # Errors
    /// Returns an error when it does not go on with a segment.
    fn message(&mut self, bytes: &[u8]) -> Result<(), IndexError> {
        for raw in Boxes::new(bytes, self.size) {
            let raw = raw?;
            match raw.kind.as_ref() {
                b"moov" if self.tracks.is_some() => return Err(raw.invalid("a second `moov`")),
                b"moov" => self.tracks = Some(tracks(&raw)?),
                b"moof" => self.fragment(&raw)?,
                b"mdat" => self.media.push(raw.body_at..raw.end()),
                _ => {}
            }
        }
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Returns the index of the segment that has been read.
    ///
    /// # Errors
    /// Returns an error when the segment has no init segment, or a sample is not in an `mdat` of its own.
    fn finish(self) -> Result<SegmentIndex, IndexError> {
        let missing = |kind: &[u8; 4]| IndexError::Missing {
            kind: kind.into(),
            at: 0,
        };
        let tracks = self.tracks.ok_or_else(|| missing(b"moov"))?;
        let tracks: Vec<_> = tracks.into_iter().map(|track| track.track).collect();
        for track in &tracks {
            let mut sizes = track.sizes.iter();
            for chunk in &track.chunks {
                let sizes = sizes.by_ref().take(chunk.samples as usize);
                let length: u64 = sizes.copied().map(u64::from).sum();
                let place = self
                    .media
                    .partition_point(|media| media.end <= chunk.offset);
                let media = self.media.get(place).ok_or_else(|| missing(b"mdat"))?;
                if chunk.offset < media.start || length > media.end - chunk.offset {
                    let at = chunk.offset;
                    let what = "a sample outside of `mdat`";
                    return Err(IndexError::Invalid { what, at });
                }
            }
        }
        let index = SegmentIndex {
            size: self.size,
            tracks,
        };
        index
            .check()
            .map_err(|what| IndexError::Invalid { what, at: 0 })?;
        Ok(index)
    }

    fn fragment(&mut self, moof: &RawBox<'_>) -> Result<(), IndexError> {
        let mut position = Position {
            moof: moof.at,
            previous_end: moof.at,
        };
        for traf in moof.all(b"traf") {
            self.track_fragment(&traf?, &mut position)?;
        }
        Ok(())
    }

    fn track_fragment(
        &mut self,
        traf: &RawBox<'_>,
        position: &mut Position,
    ) -> Result<(), IndexError> {
        let head: Tfhd = traf.required(b"tfhd")?.decode()?;
        let tracks = self.tracks.as_mut().ok_or(IndexError::Missing {
            kind: b"moov".into(),
            at: 0,
        })?;
        let track = tracks
            .iter_mut()
            .find(|track| track.defaults.track_id == head.track_id)
            .ok_or_else(|| traf.invalid("a fragment of no track"))?;
        let base = match head.base_data_offset {
            Some(base) => base,
            None if head.default_base_is_moof => position.moof,
            None => position.previous_end,
        };
        let mut runs = traf.all(b"trun").peekable();
        if runs.peek().is_none() {
            return Ok(());
        }
        let time = traf.required(b"tfdt")?.decode::<Tfdt>()?;
        let mut place = Place {
            base,
            offset: base,
            time: time.base_media_decode_time,
        };
        for run in runs {
            let run = run?;
            // Before it is read, since what is read takes ten times the room.
            self.samples = self.samples.saturating_add(run.number(4)? as usize);
            if self.samples > MAX_SAMPLES {
                return Err(run.unsupported("more than 2^20 samples"));
            }
            track.run(&run, &head, &mut place)?;
        }
        position.previous_end = place.offset;
        Ok(())
    }
}

/// Where the next sample of a track fragment is.
#[derive(Debug)]
struct Place {
    /// What the places of runs are relative to.
    base: u64,
    offset: u64,
    time: u64,
}

impl InitTrack {
    /// Adds the samples of a `trun`.
    fn run(&mut self, raw: &RawBox<'_>, head: &Tfhd, place: &mut Place) -> Result<(), IndexError> {
        let run: Trun = raw.decode()?;
        if let Some(offset) = run.data_offset {
            let offset = place.base.checked_add_signed(offset.into());
            place.offset = offset.ok_or_else(|| raw.invalid("samples outside of the segment"))?;
        }
        let count = u32::try_from(run.samples.len()).expect("samples were counted");
        if count == 0 {
            return Ok(());
        }
        let entry = head
            .sample_description_index
            .unwrap_or(self.defaults.default_sample_description_index)
            .checked_sub(1)
            .ok_or_else(|| raw.invalid("a sample without a sample entry"))?;
        self.track.chunks.push(Chunk {
            offset: place.offset,
            time: place.time,
            samples: count,
            entry,
        });
        for sample in &run.samples {
            let Sample { size, timing } = self.sample(sample, head);
            self.track.sizes.push(size);
            match self.track.runs.last_mut() {
                Some(run) if run.timing == timing => run.samples += 1,
                _ => self.track.runs.push(Run { samples: 1, timing }),
            }
            let offset = place.offset.checked_add(size.into());
            place.offset = offset.ok_or_else(|| raw.invalid("samples outside of the segment"))?;
            let time = place.time.checked_add(timing.duration.into());
            place.time = time.ok_or_else(|| raw.invalid("a sample after the end of time"))?;
        }
        Ok(())
    }

    /// Fills in what a sample leaves to the defaults of its fragment or its track.
    fn sample(&self, entry: TrunEntry, head: &Tfhd) -> Sample {
        let defaults = &self.defaults;
        let or = |own: Option<u32>, fragment: Option<u32>, track| own.or(fragment).unwrap_or(track);
        let flags = or(
            entry.flags,
            head.default_sample_flags,
            defaults.default_sample_flags,
        );
        Sample {
            size: or(
                entry.size,
                head.default_sample_size,
                defaults.default_sample_size,
            ),
            timing: Timing {
                duration: or(
                    entry.duration,
                    head.default_sample_duration,
                    defaults.default_sample_duration,
                ),
                offset: entry.cts.unwrap_or(0),
                sync: flags & NON_SYNC == 0,
            },
        }
    }
}

struct Sample {
    size: u32,
    timing: Timing,
}

/// Reads the tracks of an init segment.
fn tracks(moov: &RawBox<'_>) -> Result<Vec<InitTrack>, IndexError> {
    let movie: Mvhd = moov.required(b"mvhd")?.decode()?;
    let extends = moov.required(b"mvex")?;
    let mut tracks = Vec::new();
    for trak in moov.all(b"trak") {
        let trak = trak?;
        let head: Tkhd = trak.required(b"tkhd")?.decode()?;
        let track = track(&trak, &head, movie.timescale)?;
        let defaults = extends
            .all(b"trex")
            .map(|trex| trex?.decode::<Trex>())
            .find(|trex| match trex {
                Ok(trex) => trex.track_id == head.track_id,
                Err(_) => true,
            })
            .ok_or(IndexError::Missing {
                kind: b"trex".into(),
                at: moov.at,
            })??;
        let same = |other: &InitTrack| {
            other.track.kind == track.kind || other.defaults.track_id == head.track_id
        };
        if tracks.iter().any(same) {
            return Err(trak.unsupported("two tracks of one kind"));
        }
        tracks.push(InitTrack { defaults, track });
    }
    Ok(tracks)
}

fn track(trak: &RawBox<'_>, head: &Tkhd, movie_timescale: u32) -> Result<Track, IndexError> {
    let media = trak.required(b"mdia")?;
    let handler = media.required(b"hdlr")?;
    let kind = match &handler.number(8)?.to_be_bytes() {
        b"vide" => Kind::Video,
        b"soun" => Kind::Sound,
        _ => return Err(handler.unsupported("a track that is neither video nor sound")),
    };
    if head.matrix != mp4_atom::Matrix::default() {
        return Err(trak.unsupported("a turned picture"));
    }
    let media_head = media.required(b"mdhd")?;
    let timescale = NonZeroU32::new(media_head.decode::<Mdhd>()?.timescale)
        .ok_or_else(|| media_head.invalid("a timescale of 0"))?;
    let table = media.required(b"minf")?.required(b"stbl")?;
    if table.required(b"stsz")?.number(8)? != 0 {
        return Err(table.unsupported("samples outside of the fragments"));
    }
    Ok(Track {
        kind,
        timescale,
        dimensions: [head.width, head.height].map(bits),
        edit: edit(trak, timescale, movie_timescale)?,
        entries: entries(&table.required(b"stsd")?)?,
        chunks: Vec::new(),
        sizes: Vec::new(),
        runs: Vec::new(),
    })
}

/// Copies the sample entries of an `stsd`.
fn entries(table: &RawBox<'_>) -> Result<Vec<Bytes>, IndexError> {
    let head = 8;
    let count = table.number(4)? as usize;
    if count > MAX_ENTRIES {
        return Err(table.unsupported("more than 16 sample entries"));
    }
    let body = table.body.get(head..).unwrap_or_default();
    let entries = Boxes::new(body, table.body_at + head as u64);
    let entries = entries
        .take(MAX_ENTRIES + 1)
        .map(|entry| {
            let entry = entry?;
            let start = usize::try_from(entry.at - table.body_at).expect("within the body");
            let end = usize::try_from(entry.end() - table.body_at).expect("within the body");
            let bytes = &table.body[start..end];
            if entry.is(b"encv") || entry.is(b"enca") {
                return Err(entry.unsupported("encrypted samples"));
            }
            if !ENTRY_SIZES.contains(&bytes.len()) || bytes[..4] == 1_u32.to_be_bytes() {
                return Err(entry.invalid("a sample entry that is too short or too long"));
            }
            if bytes[14..16] != 1_u16.to_be_bytes() {
                return Err(entry.unsupported("samples in another file"));
            }
            // A copy, since a slice would keep the segment's media in memory.
            Ok(Bytes::copy_from_slice(bytes))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if entries.len() != count {
        return Err(table.invalid("another number of sample entries than it says"));
    }
    Ok(entries)
}

/// Reads the edit list: an empty edit at most, and an edit without an end.
fn edit(
    trak: &RawBox<'_>,
    timescale: NonZeroU32,
    movie_timescale: u32,
) -> Result<Edit, IndexError> {
    let list = match trak.optional(b"edts")? {
        Some(edits) => edits.optional(b"elst")?,
        None => None,
    };
    let Some(list) = list else {
        return Ok(Edit::default());
    };
    let unsupported = || list.unsupported("an edit list that does more than shift the track");
    let entries = list.decode::<Elst>()?.entries;
    let (empty, edit) = match &entries[..] {
        [] => return Ok(Edit::default()),
        [edit] => (None, edit),
        [empty, edit] if empty.media_time.is_none() => (Some(empty), edit),
        _ => return Err(unsupported()),
    };
    let whole = edit.segment_duration == 0 && edit.media_rate == FixedPoint::from(1);
    let media_time = edit.media_time.filter(|_| whole).ok_or_else(unsupported)?;
    let delay = empty.map_or(0, |empty| empty.segment_duration);
    let delay = u128::from(delay) * u128::from(timescale.get());
    let delay = (delay + u128::from(movie_timescale / 2))
        .checked_div(movie_timescale.into())
        .and_then(|delay| u64::try_from(delay).ok())
        .ok_or_else(unsupported)?;
    Ok(Edit { media_time, delay })
}

fn bits(number: FixedPoint<u16>) -> u32 {
    (u32::from(number.integer()) << 16) | u32::from(number.decimal())
}
