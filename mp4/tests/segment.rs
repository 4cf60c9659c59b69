//! Makes segments.

use std::ops::Range;

use bytes::Bytes;
use mp4_atom::esds::{DecoderConfig, EsDescriptor, SLConfig};
use mp4_atom::{
    Audio, Avc1, Avcc, Codec, Dinf, Dref, Edts, Elst, ElstEntry, Encode, Esds, Ftyp, Hdlr, Mdat,
    Mdhd, Mdia, Mfhd, Minf, Moof, Moov, Mp4a, Mvex, Mvhd, Smhd, Stbl, Stsd, Tfdt, Tfhd, Tkhd, Traf,
    Trak, Trex, Trun, TrunEntry, Url, Visual, Vmhd,
};

use crate::Kind;

/// A segment as a worker makes it.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) tracks: Vec<Track>,
    pub(super) fragments: Vec<Vec<TrackFragment>>,
}

#[derive(Clone, Debug)]
pub(super) struct Track {
    pub(super) kind: Kind,
    pub(super) timescale: u32,
    /// The width of the picture or the number of channels: tells sample entries apart.
    pub(super) form: u16,
    /// Delay in ticks of 1/1000 s, and media time; without an edit list if `None`.
    pub(super) edit: Option<(u64, u64)>,
}

/// The samples of one track in a fragment.
#[derive(Clone, Debug)]
pub(super) struct TrackFragment {
    pub(super) kind: Kind,
    pub(super) time: u64,
    pub(super) samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) duration: u32,
    pub(super) offset: i64,
    pub(super) sync: bool,
    pub(super) data: Vec<u8>,
}

/// Pictures at 24 frames per second.
pub(super) struct Video;

/// Blocks of sound at 24 kHz.
pub(super) struct Sound;

impl Video {
    pub(super) const TRACK: Track = Track {
        kind: Kind::Video,
        timescale: 24_000,
        form: 64,
        edit: None,
    };

    /// Pictures of the film, counted from 0. Every twelfth is a sync sample.
    pub(super) fn samples(pictures: Range<u64>) -> TrackFragment {
        let sample = |picture: u64| Sample {
            duration: 1000,
            offset: 0,
            sync: picture.is_multiple_of(12),
            data: data(b'v', picture, 20 + picture % 7),
        };
        TrackFragment {
            kind: Kind::Video,
            time: pictures.start * 1000,
            samples: pictures.map(sample).collect(),
        }
    }
}

impl Sound {
    pub(super) const TRACK: Track = Track {
        kind: Kind::Sound,
        timescale: 24_000,
        form: 2,
        edit: None,
    };

    /// Blocks of the film, counted from 0.
    pub(super) fn samples(blocks: Range<u64>) -> TrackFragment {
        let sample = |block: u64| Sample {
            duration: 1024,
            offset: 0,
            sync: true,
            data: data(b's', block, 9),
        };
        TrackFragment {
            kind: Kind::Sound,
            time: blocks.start * 1024,
            samples: blocks.map(sample).collect(),
        }
    }
}

/// Bytes that no other sample has.
pub(super) fn data(kind: u8, number: u64, size: u64) -> Vec<u8> {
    let mut data = vec![kind];
    data.extend_from_slice(&number.to_be_bytes());
    data.resize(usize::try_from(size).unwrap().max(9), kind);
    data
}

impl Segment {
    pub(super) fn new(tracks: &[Track]) -> Self {
        Self {
            tracks: tracks.to_vec(),
            fragments: Vec::new(),
        }
    }

    /// Adds a fragment. What has no sample is left out.
    pub(super) fn fragment(&mut self, fragments: &[TrackFragment]) {
        let filled = |fragment: &&TrackFragment| !fragment.samples.is_empty();
        let filled = fragments.iter().filter(filled).cloned().collect();
        self.fragments.push(filled);
    }

    pub(super) fn bytes(&self) -> Bytes {
        self.messages().concat().into()
    }

    /// The init segment, and each fragment.
    pub(super) fn messages(&self) -> Vec<Vec<u8>> {
        let fragments = self.fragments.iter().zip(1..);
        let fragments = fragments.map(|(fragment, number)| self.encode_fragment(fragment, number));
        std::iter::once(self.init()).chain(fragments).collect()
    }

    fn init(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let ftyp = Ftyp {
            major_brand: b"iso5".into(),
            minor_version: 512,
            compatible_brands: vec![b"iso5".into()],
        };
        ftyp.encode(&mut out).unwrap();
        self.moov().encode(&mut out).unwrap();
        out
    }

    pub(super) fn moov(&self) -> Moov {
        let trex = (1..=self.tracks.len()).map(|id| Trex {
            track_id: u32::try_from(id).unwrap(),
            default_sample_description_index: 1,
            ..Trex::default()
        });
        Moov {
            mvhd: Mvhd {
                creation_time: 0,
                modification_time: 0,
                timescale: 1000,
                duration: 0,
                rate: 1.into(),
                volume: 1.into(),
                matrix: mp4_atom::Matrix::default(),
                next_track_id: 3,
            },
            mvex: Some(Mvex {
                mehd: None,
                trex: trex.collect(),
            }),
            trak: (1..)
                .zip(&self.tracks)
                .map(|(id, track)| track.trak(id))
                .collect(),
            meta: None,
            udta: None,
            ainf: None,
        }
    }

    /// Encodes a fragment with its first sample behind the head of `mdat`.
    fn encode_fragment(&self, fragment: &[TrackFragment], number: u32) -> Vec<u8> {
        // The places of samples depend on the size of the `moof`, which does not depend on them.
        let size = self.moof(fragment, number, 0).len();
        let mut out = self.moof(fragment, number, size + 8);
        let samples = fragment.iter().flat_map(|track| &track.samples);
        let media = Mdat {
            data: samples.flat_map(|sample| sample.data.clone()).collect(),
        };
        media.encode(&mut out).unwrap();
        out
    }

    fn moof(&self, fragment: &[TrackFragment], number: u32, media: usize) -> Vec<u8> {
        let mut place = i32::try_from(media).unwrap();
        let mut traf = Vec::new();
        for track in fragment {
            let mut tracks = self.tracks.iter();
            let index = tracks.position(|own| own.kind == track.kind).unwrap();
            let sizes = track.samples.iter().map(|sample| sample.data.len());
            let size: usize = sizes.sum();
            traf.push(track.traf(u32::try_from(index).unwrap() + 1, place));
            place += i32::try_from(size).unwrap();
        }
        let moof = Moof {
            mfhd: Mfhd {
                sequence_number: number,
            },
            traf,
        };
        let mut out = Vec::new();
        moof.encode(&mut out).unwrap();
        out
    }
}

impl TrackFragment {
    fn traf(&self, track_id: u32, place: i32) -> Traf {
        let entries = self.samples.iter().map(|sample| TrunEntry {
            duration: Some(sample.duration),
            size: Some(u32::try_from(sample.data.len()).unwrap()),
            flags: Some(if sample.sync { 0x200_0000 } else { 0x101_0000 }),
            cts: Some(sample.offset),
        });
        Traf {
            tfhd: Tfhd {
                track_id,
                default_base_is_moof: true,
                ..Tfhd::default()
            },
            tfdt: Some(Tfdt {
                base_media_decode_time: self.time,
            }),
            trun: vec![Trun {
                data_offset: Some(place),
                samples: entries.collect::<Vec<_>>().into(),
            }],
            ..Traf::default()
        }
    }
}

impl Track {
    pub(super) fn codec(&self) -> Codec {
        match self.kind {
            Kind::Video => Codec::Avc1(Avc1 {
                visual: Visual {
                    data_reference_index: 1,
                    width: self.form,
                    height: 48,
                    ..Visual::default()
                },
                avcc: Avcc::new(&[0x67, 66, 0, 30], &[0x68, 1]).unwrap(),
                ..Avc1::default()
            }),
            Kind::Sound => Codec::Mp4a(Mp4a {
                audio: Audio {
                    data_reference_index: 1,
                    channel_count: self.form,
                    sample_size: 16,
                    sample_rate: 24_000.into(),
                },
                esds: Esds {
                    es_desc: EsDescriptor {
                        es_id: 2,
                        dec_config: DecoderConfig {
                            object_type_indication: 0x40,
                            stream_type: 5,
                            ..DecoderConfig::default()
                        },
                        sl_config: SLConfig::default(),
                        ..EsDescriptor::default()
                    },
                },
                btrt: None,
                taic: None,
            }),
        }
    }

    fn trak(&self, track_id: u32) -> Trak {
        let (handler, vmhd, smhd) = match self.kind {
            Kind::Video => (b"vide", Some(Vmhd::default()), None),
            Kind::Sound => (b"soun", None, Some(Smhd::default())),
        };
        let dref = Dref {
            entries: vec![Url::default().into()],
        };
        Trak {
            tkhd: Tkhd {
                track_id,
                width: self.form.into(),
                height: 48.into(),
                ..Tkhd::default()
            },
            edts: self.edit.map(edts),
            mdia: Mdia {
                mdhd: Mdhd {
                    timescale: self.timescale,
                    language: "und".to_owned(),
                    ..Mdhd::default()
                },
                hdlr: Hdlr {
                    handler: handler.into(),
                    name: "one".to_owned(),
                },
                minf: Minf {
                    vmhd,
                    smhd,
                    dinf: Dinf { dref },
                    stbl: Stbl {
                        stsd: Stsd {
                            codecs: vec![self.codec()],
                        },
                        ..Stbl::default()
                    },
                    ..Minf::default()
                },
            },
            ..Trak::default()
        }
    }
}

fn edts((delay, media_time): (u64, u64)) -> Edts {
    let edit = |segment_duration, media_time| ElstEntry {
        segment_duration,
        media_time,
        media_rate: 1.into(),
    };
    let mut entries = vec![edit(0, Some(media_time))];
    if delay > 0 {
        entries.insert(0, edit(delay, None));
    }
    Edts {
        elst: Some(Elst { entries }),
    }
}
