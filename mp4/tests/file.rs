//! Reads an assembled file.

use mp4_atom::{Any, Codec, Decode, Header, Moov, StszSamples, Trak};

use crate::Kind;

/// An ordinary MP4 file.
#[derive(Debug)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) moov: Moov,
    /// The place of the body of `mdat`.
    pub(super) media: usize,
}

/// A sample with its times in seconds. The test films have times that are exact in floating point numbers to far less
/// than a tick.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// When it is presented; before 0 or at the track's edit if it is not.
    pub(super) presented: f64,
    pub(super) decoded: u64,
    pub(super) duration: u32,
    pub(super) sync: bool,
    pub(super) data: Vec<u8>,
    pub(super) codec: Codec,
    /// Its place in the file.
    pub(super) at: u64,
}

impl File {
    /// Asserts that the file is `ftyp`, `moov` and `mdat`, and that nothing is left of fragments.
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        let mut rest = &bytes[..];
        let Any::Ftyp(_) = Any::decode(&mut rest).unwrap() else {
            panic!("no ftyp");
        };
        let Any::Moov(moov) = Any::decode(&mut rest).unwrap() else {
            panic!("no moov");
        };
        let head = Header::decode(&mut rest).unwrap();
        assert_eq!((head.kind, head.size), (b"mdat".into(), Some(rest.len())));
        assert_eq!(moov.mvex, None);
        let media = bytes.len() - rest.len();
        Self { bytes, moov, media }
    }

    pub(super) fn kinds(&self) -> Vec<Kind> {
        self.moov.trak.iter().map(kind).collect()
    }

    pub(super) fn trak(&self, of: Kind) -> &Trak {
        let mut traks = self.moov.trak.iter();
        traks
            .find(|trak| kind(trak) == of)
            .expect("the track is there")
    }

    /// The edit list of a track: delay in ticks of the movie, and media time.
    pub(super) fn edit(&self, kind: Kind) -> Option<(u64, u64)> {
        let list = self.trak(kind).edts.as_ref()?.elst.as_ref()?;
        match &list.entries[..] {
            [edit] => Some((0, edit.media_time.unwrap())),
            [empty, edit] => {
                assert_eq!(empty.media_time, None);
                Some((empty.segment_duration, edit.media_time.unwrap()))
            }
            other => panic!("{other:?}"),
        }
    }

    /// Returns the samples of a track in decode order. Asserts that its tables agree.
    pub(super) fn samples(&self, kind: Kind) -> Vec<Sample> {
        let trak = self.trak(kind);
        let table = &trak.mdia.minf.stbl;
        let sizes = match &table.stsz.samples {
            StszSamples::Identical { count, size } => vec![*size; *count as usize],
            StszSamples::Different { sizes } => sizes.clone(),
        };
        let runs = table.stts.entries.iter();
        let mut durations = runs.flat_map(|run| vec![run.sample_delta; run.sample_count as usize]);
        let runs = table.ctts.iter().flat_map(|ctts| &ctts.entries);
        let offsets: Vec<i64> = runs
            .flat_map(|run| vec![run.sample_offset; run.sample_count as usize])
            .collect();
        assert!(offsets.is_empty() || offsets.len() == sizes.len());
        let places = self.places(trak, &sizes);
        let timescale = f64::from(trak.mdia.mdhd.timescale);
        let (delay, media_time) = self.edit(kind).unwrap_or_default();
        let delay = delay as f64 / f64::from(self.moov.mvhd.timescale);
        let mut time = 0;
        let mut samples = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let (at, codec) = places[index].clone();
            let duration = durations.next().expect("each has its duration");
            let offset = offsets.get(index).copied().unwrap_or(0);
            let number = u32::try_from(index).unwrap() + 1;
            let sync = table.stss.as_ref();
            let composed = time as i64 + offset - media_time as i64;
            samples.push(Sample {
                presented: composed as f64 / timescale + delay,
                decoded: time,
                duration,
                sync: sync.is_none_or(|stss| stss.entries.contains(&number)),
                data: self.bytes[usize::try_from(at).unwrap()..][..*size as usize].to_vec(),
                codec,
                at,
            });
            time += u64::from(duration);
        }
        assert_eq!(durations.next(), None);
        assert_eq!(trak.mdia.mdhd.duration, time);
        samples
    }

    /// The place and the sample entry of each sample.
    fn places(&self, trak: &Trak, sizes: &[u32]) -> Vec<(u64, Codec)> {
        let table = &trak.mdia.minf.stbl;
        let offsets: Vec<u64> = match (&table.stco, &table.co64) {
            (Some(stco), None) => stco.entries.iter().copied().map(u64::from).collect(),
            (None, Some(co64)) => co64.entries.clone(),
            other => panic!("{other:?}"),
        };
        let mut places = Vec::new();
        for (chunk, offset) in (1..).zip(offsets) {
            let runs = table.stsc.entries.iter();
            let run = runs
                .take_while(|run| run.first_chunk <= chunk)
                .last()
                .unwrap();
            let codec = &table.stsd.codecs[run.sample_description_index as usize - 1];
            let mut at = offset;
            assert!(at >= self.media as u64);
            for _ in 0..run.samples_per_chunk {
                let size = sizes[places.len()];
                places.push((at, codec.clone()));
                at += u64::from(size);
            }
        }
        assert_eq!(places.len(), sizes.len());
        places
    }
}

fn kind(trak: &Trak) -> Kind {
    match trak.mdia.hdlr.handler.as_ref() {
        b"vide" => Kind::Video,
        b"soun" => Kind::Sound,
        other => panic!("{other:?}"),
    }
}
