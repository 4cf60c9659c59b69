//! Writes the first bytes of the file: `ftyp`, `moov` and the header of `mdat`.

use std::num::NonZeroU32;
use std::time::Duration;

use mp4_atom::{
    BufMut, Co64, Dinf, Dref, Edts, Elst, ElstEntry, Encode, Error, FixedPoint, FourCC, Ftyp, Hdlr,
    Header, Mdhd, Mvhd, Smhd, Stco, Tkhd, Url, Vmhd,
};

use crate::kind::Kind;
use crate::track::{FilmTrack, Tables, least_common_multiple};

/// Players know these brands for an ordinary file. `iso4` is for composition offsets with a sign.
const BRANDS: [&[u8; 4]; 5] = [b"isom", b"iso2", b"iso4", b"avc1", b"mp41"];

/// What the head says.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    pub(crate) movie: Movie,
    pub(crate) tracks: &'a [FilmTrack],
    /// For each track, the places of its chunks in the body of `mdat`.
    pub(crate) chunks: &'a [Vec<u64>],
    /// The size of the body of `mdat` in bytes.
    pub(crate) media_size: u64,
}

/// The time line of the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Movie {
    /// Ticks per second. Where possible, times of all tracks are whole ticks.
    timescale: NonZeroU32,
    /// What is at the file's start, in ticks from the start of the film's time line.
    start: i128,
    /// Ticks.
    duration: u64,
}

/// When a track is presented, in ticks of the movie.
#[derive(Clone, Copy, Debug)]
struct Presentation {
    delay: u64,
    duration: u64,
}

/// The boxes of the places of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offsets {
    Stco,
    Co64,
}

impl Movie {
    /// # Errors
    /// Returns an error when the film is too long.
    pub(crate) fn of(tracks: &[FilmTrack]) -> Result<Self, Error> {
        let timescales = tracks.iter().map(|track| track.timescale);
        let exact = least_common_multiple(timescales.clone());
        let finest = timescales.max().unwrap_or(NonZeroU32::MIN);
        let mut movie = Self {
            timescale: exact.unwrap_or(finest),
            start: 0,
            duration: 0,
        };
        let starts = tracks.iter().map(|track| movie.ticks(track, track.start));
        movie.start = starts.min().unwrap_or(0);
        for track in tracks {
            let Presentation { delay, duration } = movie.presentation(track)?;
            let end = delay.checked_add(duration).ok_or(Error::InvalidSize)?;
            movie.duration = end.max(movie.duration);
        }
        Ok(movie)
    }

    /// How long the file plays.
    pub(crate) fn length(&self) -> Duration {
        let timescale = u64::from(self.timescale.get());
        let nanos = self.duration % timescale * 1_000_000_000 / timescale;
        Duration::from_secs(self.duration / timescale) + Duration::from_nanos(nanos)
    }

    /// Converts a time of a track, to the nearest tick.
    fn ticks(&self, track: &FilmTrack, time: i128) -> i128 {
        let [from, to] = [track.timescale, self.timescale].map(|scale| i128::from(scale.get()));
        (time * to + from / 2).div_euclid(from)
    }

    fn presentation(&self, track: &FilmTrack) -> Result<Presentation, Error> {
        let [start, end] = [track.start, track.end].map(|time| self.ticks(track, time));
        Ok(Presentation {
            delay: fit(start - self.start)?,
            // Where all samples are composed before the presentation begins, nothing is presented.
            duration: fit((end - start).max(0))?,
        })
    }
}

impl Head<'_> {
    /// # Errors
    /// Returns an error when a number has no room in its field.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, Error> {
        for (offsets, limit) in [
            (Offsets::Stco, u64::from(u32::MAX)),
            (Offsets::Co64, u64::MAX),
        ] {
            if self.media_size > limit {
                continue;
            }
            // The places of the media depend on the head's length, which does not depend on them.
            let size = self.encode_before(0, offsets)?.len() as u64;
            if self.media_size <= limit - size {
                return self.encode_before(size, offsets);
            }
        }
        Err(Error::InvalidSize)
    }

    /// Writes the head of a file whose media begin at `media`.
    fn encode_before(&self, media: u64, offsets: Offsets) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        let [major_brand, ..] = BRANDS.map(FourCC::from);
        let file = Ftyp {
            major_brand,
            minor_version: 512,
            compatible_brands: BRANDS.map(FourCC::from).to_vec(),
        };
        file.encode(&mut out)?;
        out.encode_atom(b"moov", |out| {
            movie_head(&self.movie, self.tracks.len())?.encode(out)?;
            for (track_id, (track, chunks)) in (1..).zip(self.tracks.iter().zip(self.chunks)) {
                let places = chunks.iter().map(|chunk| chunk + media);
                out.encode_atom(b"trak", |out| {
                    self.track(out, track_id, track)?;
                    media_box(out, track, |out| match offsets {
                        Offsets::Stco => {
                            let entries = places.map(u32::try_from).collect::<Result<_, _>>();
                            let entries = entries.map_err(|_| Error::InvalidSize)?;
                            Stco { entries }.encode(out)
                        }
                        Offsets::Co64 => {
                            let entries = places.collect();
                            Co64 { entries }.encode(out)
                        }
                    })
                })?;
            }
            Ok(())
        })?;
        let size = usize::try_from(self.media_size).map_err(|_| Error::InvalidSize)?;
        let media = Header {
            kind: FourCC::new(b"mdat"),
            size: Some(size),
        };
        media.encode(&mut out)?;
        Ok(out)
    }

    /// Writes what comes in a track before its media.
    fn track(&self, out: &mut Vec<u8>, track_id: u32, track: &FilmTrack) -> Result<(), Error> {
        let Presentation { delay, duration } = self.movie.presentation(track)?;
        let [width, height] = track.dimensions.map(fixed);
        let volume = match track.kind {
            Kind::Video => 0,
            Kind::Sound => 1,
        };
        let head = Tkhd {
            track_id,
            duration: delay.checked_add(duration).ok_or(Error::InvalidSize)?,
            enabled: true,
            in_movie: true,
            volume: volume.into(),
            width,
            height,
            ..Tkhd::default()
        };
        head.encode(out)?;
        let media_time = fit(track.media_time())?;
        if delay == 0 && media_time == 0 {
            return Ok(());
        }
        let edit = |segment_duration, media_time| ElstEntry {
            segment_duration,
            media_time,
            media_rate: 1.into(),
        };
        let mut entries = vec![edit(duration, Some(media_time))];
        if delay > 0 {
            entries.insert(0, edit(delay, None));
        }
        let edits = Edts {
            elst: Some(Elst { entries }),
        };
        edits.encode(out)
    }
}

fn movie_head(movie: &Movie, tracks: usize) -> Result<Mvhd, Error> {
    Ok(Mvhd {
        creation_time: 0,
        modification_time: 0,
        timescale: movie.timescale.get(),
        duration: movie.duration,
        rate: 1.into(),
        volume: 1.into(),
        matrix: mp4_atom::Matrix::default(),
        next_track_id: fit::<u32>(tracks as i128)? + 1,
    })
}

/// Writes the `mdia` of a track. `offsets` writes the places of its chunks.
fn media_box(
    out: &mut Vec<u8>,
    track: &FilmTrack,
    offsets: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>,
) -> Result<(), Error> {
    let (handler, name) = match track.kind {
        Kind::Video => (b"vide", "VideoHandler"),
        Kind::Sound => (b"soun", "SoundHandler"),
    };
    out.encode_atom(b"mdia", |out| {
        let head = Mdhd {
            timescale: track.timescale.get(),
            duration: fit(track.decode_end - track.decode_start)?,
            language: "und".to_owned(),
            ..Mdhd::default()
        };
        head.encode(out)?;
        let handler = Hdlr {
            handler: handler.into(),
            name: name.to_owned(),
        };
        handler.encode(out)?;
        out.encode_atom(b"minf", |out| {
            match track.kind {
                Kind::Video => Vmhd::default().encode(out)?,
                Kind::Sound => Smhd::default().encode(out)?,
            }
            let here = Url::default();
            let dref = Dref {
                entries: vec![here.into()],
            };
            Dinf { dref }.encode(out)?;
            out.encode_atom(b"stbl", |out| {
                sample_tables(out, &track.tables)?;
                offsets(out)
            })
        })
    })
}

fn sample_tables(out: &mut Vec<u8>, tables: &Tables) -> Result<(), Error> {
    out.encode_atom(b"stsd", |out| {
        0_u32.encode(out)?;
        fit::<u32>(tables.entries.len() as i128)?.encode(out)?;
        for entry in &tables.entries {
            out.append_slice(entry);
        }
        Ok(())
    })?;
    tables.stts.encode(out)?;
    if tables.ctts.entries.iter().any(|run| run.sample_offset != 0) {
        tables.ctts.encode(out)?;
    }
    // Without the box, all samples are sync samples.
    if !tables.all_sync() {
        tables.stss.encode(out)?;
    }
    tables.stsc.encode(out)?;
    tables.stsz.encode(out)
}

/// Fits a number into a field.
fn fit<T: TryFrom<i128>>(number: i128) -> Result<T, Error> {
    T::try_from(number).map_err(|_| Error::InvalidSize)
}

/// Reads a 16.16 fixed point number.
fn fixed(bits: u32) -> FixedPoint<u16> {
    let [a, b, c, d] = bits.to_be_bytes();
    FixedPoint::new(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}
