//! What is read of a segment, and what is refused.

use mp4_atom::{Edts, Elst, ElstEntry, Encode, Moof, Moov, Trun, TrunEntry, TrunSamples};

use super::*;
use crate::{IndexError, Kind};

fn segment() -> Segment {
    film(1).remove(0)
}

#[test]
fn an_index_is_the_same_from_messages_and_after_serde() {
    let segment = segment();
    let index = SegmentIndex::read(&segment.bytes()).unwrap();
    assert_eq!(index.size(), segment.bytes().len() as u64);
    assert!(index.has(Kind::Video) && index.has(Kind::Sound));
    let messages = segment.messages();
    let of_messages = SegmentIndex::read_messages(messages.iter().map(|bytes| &bytes[..]));
    assert_eq!(of_messages.unwrap(), index);
    let json = serde_json::to_vec(&index).unwrap();
    assert_eq!(
        serde_json::from_slice::<SegmentIndex>(&json).unwrap(),
        index
    );
}

#[test]
fn a_segment_of_one_track_has_no_other() {
    let mut segment = Segment::new(&[Video::TRACK, Sound::TRACK]);
    segment.fragment(&[Video::samples(0..1)]);
    let index = SegmentIndex::read(&segment.bytes()).unwrap();
    assert!(index.has(Kind::Video) && !index.has(Kind::Sound));
}

#[test]
fn segments_of_one_form_differ_in_their_samples_only() {
    let form = |segment: &Segment| SegmentIndex::read(&segment.bytes()).unwrap().form();
    let segments = film(2);
    assert_eq!(form(&segments[0]), form(&segments[1]));
    let mut wide = segments[0].clone();
    wide.tracks[0].form = 128;
    assert_ne!(form(&segments[0]), form(&wide));
    let mut pictures = Segment::new(&[Video::TRACK]);
    pictures.fragment(&[Video::samples(0..1)]);
    assert_ne!(form(&segments[0]), form(&pictures));
}

#[test]
fn messages_play_for_as_long_as_their_pictures() {
    let ends = |segment: &Segment| {
        let messages = segment.messages();
        let lengths = messages.iter().map(|message| message.len() as u64);
        let sum = |sum: &mut u64, length| {
            *sum += length;
            Some(*sum)
        };
        lengths.scan(0, sum).collect::<Vec<_>>()
    };
    let played = |segment: &Segment| {
        let index = SegmentIndex::read(&segment.bytes()).unwrap();
        let messages = index.messages(ends(segment));
        let played = messages.iter();
        played
            .map(|message| (message.duration.as_micros(), message.is_independent))
            .collect::<Vec<_>>()
    };
    let segment = segment();
    let pictures = [
        (0, false),
        (41_666, true),
        (208_333, false),
        (250_000, false),
    ];
    assert_eq!(played(&segment), pictures);
    // What has been made of a segment that is not finished.
    let mut half = segment.clone();
    half.fragments.truncate(2);
    assert_eq!(played(&half), pictures[..3]);
    let mut sound = Segment::new(&[Video::TRACK, Sound::TRACK]);
    sound.fragment(&[Sound::samples(0..3)]);
    assert_eq!(played(&sound), [(0, false), (128_000, true)]);
    assert_eq!(played(&Segment::new(&[Video::TRACK])), [(0, false)]);

    let index = SegmentIndex::read(&segment.bytes()).unwrap();
    let mut json = serde_json::to_value(&index).unwrap();
    json["tracks"][0]["runs"][0]["samples"] = u32::MAX.into();
    let damaged: SegmentIndex = serde_json::from_value(json).unwrap();
    assert_eq!(damaged.messages([9]), [crate::Message::default()]);
}

/// The same samples, said in the other ways of the format.
#[test]
fn defaults_and_bases_are_understood() {
    let mut segment = Segment::new(&[Video::TRACK]);
    segment.fragment(&[Video::samples(0..1)]);
    let mut fragment = segment.fragments[0].clone();
    fragment[0].samples = vec![fragment[0].samples[0].clone(); 3];
    segment.fragments = vec![fragment];
    let expected = assemble(std::slice::from_ref(&segment));
    let init = segment.messages().remove(0);
    type Change = fn(&mut Moov, &mut Moof, u64);
    let changes: [Change; 5] = [
        // Defaults of the fragment.
        |_, moof, _| {
            let head = &mut moof.traf[0].tfhd;
            head.default_sample_duration = Some(1000);
            head.default_sample_size = Some(20);
            head.default_sample_flags = Some(0);
            moof.traf[0].trun[0].samples = inherited(3, None);
        },
        // Defaults of the track, but not for the flags of the first sample.
        |moov, moof, _| {
            let defaults = &mut moov.mvex.as_mut().unwrap().trex[0];
            defaults.default_sample_duration = 1000;
            defaults.default_sample_size = 20;
            defaults.default_sample_flags = 0;
            moof.traf[0].trun[0].samples = inherited(3, Some(0x200_0000));
        },
        // Places from the segment's start.
        |_, moof, at| {
            moof.traf[0].tfhd.base_data_offset = Some(at);
            moof.traf[0].tfhd.default_base_is_moof = false;
        },
        // The place of the first track fragment is relative to the `moof` anyway.
        |_, moof, _| moof.traf[0].tfhd.default_base_is_moof = false,
        // A second run lies behind the first.
        |_, moof, _| {
            let run = &mut moof.traf[0].trun[0];
            let entries: Vec<TrunEntry> = run.samples.iter().collect();
            run.samples = entries[..2].to_vec().into();
            moof.traf[0].trun.push(Trun {
                data_offset: None,
                samples: entries[2..].to_vec().into(),
            });
        },
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut moov = segment.moov();
        let mut bytes = segment.bytes().slice(init.len()..).to_vec();
        let moof = rewrite(&mut bytes, |moof| change(&mut moov, moof, 0));
        // The size of the init segment is known only after the change.
        let mut head = Vec::new();
        moov.encode(&mut head).unwrap();
        let at = head.len() as u64;
        let moof_again = rewrite(&mut bytes, |moof| {
            if let Some(base) = &mut moof.traf[0].tfhd.base_data_offset {
                *base = at;
            }
        });
        assert_eq!(moof, moof_again);
        let segment = Bytes::from([head, bytes].concat());
        let layout = layout(std::slice::from_ref(&segment));
        let file = File::of(read(&layout, &[segment], 0..layout.size()));
        for (sample, expected) in file
            .samples(Kind::Video)
            .iter()
            .zip(expected.samples(Kind::Video))
        {
            assert_eq!(
                (sample.decoded, sample.duration, sample.sync, &sample.data),
                (
                    expected.decoded,
                    expected.duration,
                    expected.sync,
                    &expected.data
                ),
                "change {number}"
            );
        }
        assert_eq!(file.samples(Kind::Video).len(), 3, "change {number}");
    }
}

fn inherited(count: u32, first_flags: Option<u32>) -> TrunSamples {
    TrunSamples::Inherited { count, first_flags }
}

/// Changes the `moof` at the start of `bytes`, keeps the places of its samples right, and returns its size.
fn rewrite(bytes: &mut Vec<u8>, change: impl FnOnce(&mut Moof)) -> usize {
    let mut rest = &bytes[..];
    let mut moof = <Moof as mp4_atom::Decode>::decode(&mut rest).unwrap();
    let (old_size, media) = (bytes.len() - rest.len(), rest.to_vec());
    change(&mut moof);
    let encode = |moof: &Moof| {
        let mut out = Vec::new();
        moof.encode(&mut out).unwrap();
        out
    };
    let size = encode(&moof).len();
    let longer = i32::try_from(size).unwrap() - i32::try_from(old_size).unwrap();
    for run in moof.traf.iter_mut().flat_map(|traf| &mut traf.trun) {
        run.data_offset = run.data_offset.map(|place| place + longer);
    }
    *bytes = encode(&moof);
    bytes.extend_from_slice(&media);
    size
}

/// Checks how a segment with a changed `moov` is refused.
fn check_moov(words: &str, change: impl FnOnce(&mut Moov)) {
    let segment = segment();
    let mut messages = segment.messages();
    let mut moov = segment.moov();
    change(&mut moov);
    messages[0].clear();
    moov.encode(&mut messages[0]).unwrap();
    check(words, &messages.concat());
}

/// Checks how a segment with a changed first `moof` is refused.
fn check_moof(words: &str, change: impl FnOnce(&mut Moof)) {
    let mut messages = segment().messages();
    let mut fragment = messages[1].clone();
    rewrite(&mut fragment, change);
    messages[1] = fragment;
    check(words, &messages.concat());
}

fn check(words: &str, bytes: &[u8]) {
    let Err(error) = SegmentIndex::read(bytes) else {
        panic!("not refused: {words}");
    };
    assert!(
        error.to_string().contains(words),
        "{error}, but not {words}"
    );
}

#[test]
fn what_a_file_cannot_hold_is_refused() {
    check_moov("two tracks of one kind", |moov| {
        let again = moov.trak[0].clone();
        moov.trak.push(again);
    });
    check_moov("neither video nor sound", |moov| {
        moov.trak[0].mdia.hdlr.handler = b"text".into();
    });
    check_moov("a turned picture", |moov| moov.trak[0].tkhd.matrix.a = 0);
    check_moov("a timescale of 0", |moov| {
        moov.trak[1].mdia.mdhd.timescale = 0
    });
    check_moov("`mvex` is missing", |moov| moov.mvex = None);
    check_moov("`trex` is missing", |moov| {
        moov.mvex.as_mut().unwrap().trex.pop();
    });
    check_moov("samples outside of the fragments", |moov| {
        moov.trak[0].mdia.minf.stbl.stsz.samples =
            mp4_atom::StszSamples::Identical { count: 1, size: 1 };
    });
    check_moov("in another file", |moov| {
        let mp4_atom::Codec::Avc1(avc1) = &mut moov.trak[0].mdia.minf.stbl.stsd.codecs[0] else {
            panic!("a picture");
        };
        avc1.visual.data_reference_index = 2;
    });
    let edit = |segment_duration, media_time| ElstEntry {
        segment_duration,
        media_time,
        media_rate: 1.into(),
    };
    for entries in [
        vec![edit(5, Some(0))],
        vec![edit(0, None)],
        vec![edit(0, Some(1)), edit(0, Some(2))],
        vec![edit(5, None), edit(5, None), edit(0, Some(0))],
    ] {
        check_moov("more than shift the track", |moov| {
            let elst = Some(Elst { entries });
            moov.trak[0].edts = Some(Edts { elst });
        });
    }
}

#[test]
fn fragments_that_lie_are_refused() {
    check_moof("a fragment of no track", |moof| {
        moof.traf[0].tfhd.track_id = 9
    });
    check_moof("`tfdt` is missing", |moof| moof.traf[0].tfdt = None);
    check_moof("after 2^56 ticks", |moof| {
        moof.traf[0].tfdt.as_mut().unwrap().base_media_decode_time = (1 << 56) + 1;
    });
    check_moof("without a sample entry", |moof| {
        moof.traf[0].tfhd.sample_description_index = Some(2);
    });
    check_moof("without a sample entry", |moof| {
        moof.traf[0].tfhd.sample_description_index = Some(0);
    });
    check_moof("more than 2^20 samples", |moof| {
        moof.traf[0].trun[0].samples = inherited(u32::MAX, None);
    });
    check_moof("a sample without bytes", |moof| {
        moof.traf[0].trun[0].samples = inherited(1, None);
    });
    // In its `moof`, and behind its `mdat`.
    check_moof("outside of `mdat`", |moof| {
        moof.traf[0].trun[0].data_offset = Some(8);
    });
    check_moof("outside of `mdat`", |moof| {
        moof.traf[0].tfhd.default_sample_size = Some(u32::MAX);
        moof.traf[0].trun[0].samples = inherited(1, None);
    });
    // A run takes 20 bytes, and a sample 29.
    check_moof("more bytes than the segment", |moof| {
        let run = &mut moof.traf[0].trun[0];
        run.samples = inherited(1, None);
        moof.traf[0].tfhd.default_sample_size = Some(29);
        moof.traf[0].trun = vec![moof.traf[0].trun[0].clone(); 1000];
    });
    check_moof("outside of the segment", |moof| {
        moof.traf[0].tfhd.base_data_offset = Some(u64::MAX);
    });
}

#[test]
fn boxes_that_end_elsewhere_are_refused() {
    let messages = segment().messages();
    let whole = messages.concat();
    for end in 1..whole.len() {
        let starts: Vec<usize> = starts(&whole);
        let result = SegmentIndex::read(&whole[..end]);
        let complete = starts.contains(&end) && end > messages[0].len() - 1;
        match result {
            // The samples of a `moof` need its `mdat`.
            Ok(index) => assert!(complete && index.size() == end as u64, "{end}"),
            Err(IndexError::Cut { .. }) => assert!(!starts.contains(&end), "{end}"),
            Err(IndexError::Missing { .. }) => assert!(starts.contains(&end), "{end}"),
            Err(other) => panic!("{other}"),
        }
    }
    // A box that is spread over messages.
    let (first, second) = whole.split_at(messages[0].len() + 10);
    let error = SegmentIndex::read_messages([first, second]).unwrap_err();
    assert!(matches!(error, IndexError::Cut { .. }), "{error}");
    check(
        "a second `moov`",
        &[&messages[0][..], &messages[0]].concat(),
    );
    check("`moov` is missing", &messages[1]);
    check("`moov` is missing", &[]);
}

/// The places at which top-level boxes start.
fn starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        starts.push(at);
        at += u32::from_be_bytes(*bytes[at..].first_chunk().unwrap()) as usize;
    }
    starts
}
