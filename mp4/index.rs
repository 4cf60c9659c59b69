//! What is known of a segment.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::kind::Kind;

/// The most samples of a segment, in all its tracks. This is far more than a segment has (at 120 frames per second, it
/// would last for two hours), and few enough that the index of a hostile one stays below 64 MiB.
pub(crate) const MAX_SAMPLES: usize = 1 << 20;

/// The last time that is taken for one, in ticks. The products of times and timescales stay below 2^127.
pub(crate) const MAX_TIME: u64 = 1 << 56;

/// The most that a composition offset can be, which has 32 bits with or without a sign.
const MAX_OFFSET: u64 = 1 << 32;

/// The most sample entries of a segment's track; it needs one.
pub(crate) const MAX_ENTRIES: usize = 16;

/// The size of a sample entry in bytes: at least a box's header, six reserved bytes and the number of its data
/// reference; at most a thousand times of what H.264 needs.
pub(crate) const ENTRY_SIZES: RangeInclusive<usize> = 16..=1 << 16;

/// Where the samples of a segment are, and when each is shown. It holds a few bytes per sample and none of the media,
/// so it can be kept, or stored with serde, while the segment's bytes lie elsewhere.
///
/// An index that comes from a store need not be trusted: [`Layout::new`](crate::Layout::new) checks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentIndex {
    /// The length of the segment in bytes.
    pub(crate) size: u64,
    /// At most one of each kind.
    pub(crate) tracks: Vec<Track>,
}

/// One track of a segment. Times are in ticks of its timescale.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Track {
    pub(crate) kind: Kind,
    /// Ticks per second.
    pub(crate) timescale: NonZeroU32,
    /// Width and height of the presentation in pixels, as 16.16 fixed point numbers; 0 for sound.
    pub(crate) dimensions: [u32; 2],
    pub(crate) edit: Edit,
    /// The sample entries of `stsd`, byte for byte.
    pub(crate) entries: Vec<Bytes>,
    /// In decode order.
    pub(crate) chunks: Vec<Chunk>,
    /// The size of each sample in bytes, in decode order.
    pub(crate) sizes: Vec<u32>,
    /// The times of all samples, in decode order.
    pub(crate) runs: Vec<Run>,
}

/// The edit list: what is composed at `media_time` is presented at `delay`, and nothing earlier is presented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Edit {
    pub(crate) media_time: u64,
    pub(crate) delay: u64,
}

/// Samples that lie behind one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chunk {
    /// The place of its first byte in the segment.
    pub(crate) offset: u64,
    /// The decode time of its first sample.
    pub(crate) time: u64,
    pub(crate) samples: u32,
    /// The place of its sample entry in `entries`.
    pub(crate) entry: u32,
}

/// Samples behind one another that differ in size alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) samples: u32,
    pub(crate) timing: Timing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Timing {
    pub(crate) duration: u32,
    /// The composition time minus the decode time.
    pub(crate) offset: i64,
    /// Whether decoding can begin with the sample.
    pub(crate) sync: bool,
}

/// What one message of a segment plays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// How long its samples are presented.
    pub duration: Duration,
    /// Whether decoding can begin with its first sample.
    pub is_independent: bool,
}

/// What a segment's init segment says of its tracks: segments of one form can be decoded with each other's init segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form(Vec<TrackForm>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct TrackForm {
    kind: Kind,
    timescale: NonZeroU32,
    dimensions: [u32; 2],
    edit: Edit,
    entries: Vec<Bytes>,
}

impl SegmentIndex {
    /// The length of the segment in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns about how many bytes it takes where it is stored.
    pub fn stored_bytes(&self) -> usize {
        let tracks = self.tracks.iter().map(|track| {
            let entries: usize = track.entries.iter().map(Bytes::len).sum();
            64 + entries + 3 * track.sizes.len() + 12 * track.chunks.len() + 8 * track.runs.len()
        });
        tracks.sum()
    }

    /// Returns what the init segment says of the tracks.
    pub fn form(&self) -> Form {
        let forms = self.tracks.iter().map(|track| TrackForm {
            kind: track.kind,
            timescale: track.timescale,
            dimensions: track.dimensions,
            edit: track.edit,
            entries: track.entries.clone(),
        });
        Form(forms.collect())
    }

    /// Returns whether the segment has a sample of a kind.
    pub fn has(&self, kind: Kind) -> bool {
        self.track(kind).is_some()
    }

    /// Returns what each of the segment's messages plays, which end at these places in the segment. A message without a
    /// picture, as the init segment, plays nothing; in a segment without pictures, the same holds for sound. Nothing
    /// does in an index from elsewhere that is none.
    pub fn messages(&self, ends: impl IntoIterator<Item = u64>) -> Vec<Message> {
        let sound = || self.track(Kind::Sound);
        let track = self.track(Kind::Video).or_else(sound);
        let track = track.filter(|_| self.check().is_ok());
        let mut timings = track.into_iter().flat_map(Track::timings);
        let mut chunks = (track.map_or(&[] as &[Chunk], |track| &track.chunks))
            .iter()
            .peekable();
        let of_message = |end: u64| {
            let mut message = Message::default();
            let mut ticks = 0_u64;
            while let Some(chunk) = chunks.next_if(|chunk| chunk.offset < end) {
                for timing in timings.by_ref().take(chunk.samples as usize) {
                    message.is_independent |= ticks == 0 && timing.sync;
                    ticks += u64::from(timing.duration);
                }
            }
            if let Some(track) = track {
                message.duration = ticks_to_time(ticks, track.timescale);
            }
            message
        };
        ends.into_iter().map(of_message).collect()
    }

    /// Returns the track of a kind if there is a sample in it.
    pub(crate) fn track(&self, kind: Kind) -> Option<&Track> {
        let mut tracks = self.tracks.iter();
        tracks.find(|track| track.kind == kind && !track.chunks.is_empty())
    }

    /// Checks what holds for all indexes that were read, so that an index from elsewhere does no harm.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let mut bytes = 0_u64;
        let mut samples = 0;
        for (index, track) in self.tracks.iter().enumerate() {
            let mut others = self.tracks[..index].iter();
            if others.any(|other| other.kind == track.kind) {
                return Err("two tracks of one kind");
            }
            track.check(self.size)?;
            bytes = bytes.saturating_add(track.sizes.iter().copied().map(u64::from).sum());
            samples += track.sizes.len();
        }
        if samples > MAX_SAMPLES {
            return Err("more than 2^20 samples");
        }
        // So that what a film has of a segment is never longer than the segment.
        if bytes > self.size {
            return Err("samples of more bytes than the segment");
        }
        Ok(())
    }
}

impl Track {
    /// Checks the track of a segment of `size` bytes.
    fn check(&self, size: u64) -> Result<(), &'static str> {
        let entries = &self.entries;
        if entries.len() > MAX_ENTRIES {
            return Err("more than 16 sample entries");
        }
        if !entries.iter().all(is_entry) {
            return Err("a sample entry of another length than it says");
        }
        let Edit { media_time, delay } = self.edit;
        if media_time > MAX_TIME || delay > MAX_TIME {
            return Err("an edit after 2^56 ticks");
        }
        let mut sizes = &self.sizes[..];
        for chunk in &self.chunks {
            if chunk.entry as usize >= entries.len() {
                return Err("a sample without a sample entry");
            }
            if chunk.time > MAX_TIME {
                return Err("a sample after 2^56 ticks");
            }
            let (own, rest) = sizes
                .split_at_checked(chunk.samples as usize)
                .filter(|(own, _)| !own.is_empty())
                .ok_or("samples without a size")?;
            let bytes: u64 = own.iter().copied().map(u64::from).sum();
            let end = chunk.offset.checked_add(bytes);
            if own.contains(&0) || end.is_none_or(|end| end > size) {
                return Err("a sample without bytes");
            }
            sizes = rest;
        }
        let timed: u64 = self.runs.iter().map(|run| u64::from(run.samples)).sum();
        if !sizes.is_empty() || self.sizes.len() as u64 != timed {
            return Err("other sizes than samples");
        }
        let mut offsets = self.runs.iter().map(|run| run.timing.offset.unsigned_abs());
        if offsets.any(|offset| offset > MAX_OFFSET) {
            return Err("a composition offset above 2^32");
        }
        Ok(())
    }

    /// Returns the times of all samples in decode order.
    pub(crate) fn timings(&self) -> impl Iterator<Item = Timing> {
        let runs = self.runs.iter();
        runs.flat_map(|run| std::iter::repeat_n(run.timing, run.samples as usize))
    }
}

/// Returns a time in ticks, to the nanosecond below.
fn ticks_to_time(ticks: u64, timescale: NonZeroU32) -> Duration {
    let timescale = u64::from(timescale.get());
    let part = ticks % timescale * 1_000_000_000 / timescale;
    Duration::from_secs(ticks / timescale) + Duration::from_nanos(part)
}

/// Returns whether bytes are one box with room for the fields of a sample entry.
fn is_entry(bytes: &Bytes) -> bool {
    let size = bytes.first_chunk().map(|size| u32::from_be_bytes(*size));
    ENTRY_SIZES.contains(&bytes.len()) && size.is_some_and(|size| size as usize == bytes.len())
}
