//! When samples of the file are presented.

use super::segment::{Sample, TrackFragment};
use super::*;
use crate::{Kind, LayoutError};

/// Presentation times and durations of a track, in ticks.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole numbers of ticks"
)]
fn times(file: &File, kind: Kind) -> Vec<(u64, u32)> {
    let timescale = f64::from(file.trak(kind).mdia.mdhd.timescale);
    let samples = file.samples(kind).into_iter();
    samples
        .map(|sample| {
            let ticks = sample.presented * timescale;
            assert!(
                (ticks - ticks.round()).abs() < 1e-6 && ticks > -1e-6,
                "{ticks}"
            );
            (ticks.round() as u64, sample.duration)
        })
        .collect()
}

fn picture_at(time: u64, duration: u32, offset: i64) -> TrackFragment {
    TrackFragment {
        kind: Kind::Video,
        time,
        samples: vec![Sample {
            duration,
            offset,
            sync: true,
            data: segment::data(b'v', time, 10),
        }],
    }
}

fn pictures(track: segment::Track, pictures: &[TrackFragment]) -> Segment {
    let mut segment = Segment::new(&[track]);
    for picture in pictures {
        segment.fragment(std::slice::from_ref(picture));
    }
    segment
}

fn refusal(segments: &[Segment]) -> LayoutError {
    let indexes: Vec<_> = segments
        .iter()
        .map(|segment| SegmentIndex::read(&segment.bytes()).unwrap())
        .collect();
    Layout::new(&indexes).unwrap_err()
}

#[test]
fn segments_become_one_time_line() {
    let file = assemble(&film(3));
    assert_eq!(file.kinds(), [Kind::Video, Kind::Sound]);
    let video: Vec<_> = (0..36).map(|picture| (picture * 1000, 1000)).collect();
    assert_eq!(times(&file, Kind::Video), video);
    let sound: Vec<_> = (0..36).map(|block| (block * 1024, 1024)).collect();
    assert_eq!(times(&file, Kind::Sound), sound);
    assert_eq!(
        [Kind::Video, Kind::Sound].map(|kind| file.edit(kind)),
        [None; 2]
    );
    let sync = file
        .samples(Kind::Video)
        .into_iter()
        .filter(|sample| sample.sync);
    assert_eq!(
        sync.map(|sample| sample.decoded).collect::<Vec<_>>(),
        [0, 12_000, 24_000]
    );
    // The sound ends last.
    let movie = &file.moov.mvhd;
    assert_eq!((movie.timescale, movie.duration), (24_000, 36 * 1024));
    assert_eq!(file.trak(Kind::Video).tkhd.duration, 36_000);
    assert_eq!(
        layout(&film(3).iter().map(Segment::bytes).collect::<Vec<_>>())
            .duration()
            .as_micros(),
        1_536_000
    );
}

/// The first block of sound of the second segment begins 288 samples after its first picture.
#[test]
fn a_resumed_film_starts_at_zero_and_its_sound_where_it_belongs() {
    let file = assemble(&film(3)[1..]);
    assert_eq!(times(&file, Kind::Video)[0], (0, 1000));
    assert_eq!(times(&file, Kind::Sound)[0], (288, 1024));
    assert_eq!(file.edit(Kind::Video), None);
    assert_eq!(file.edit(Kind::Sound), Some((288, 0)));
    assert_eq!(file.trak(Kind::Sound).tkhd.duration, 288 + 24 * 1024);
}

#[test]
fn a_gap_lengthens_the_sample_before_it() {
    let mut film = film(3);
    film.remove(1);
    let file = assemble(&film);
    let video = times(&file, Kind::Video);
    assert_eq!(video[11], (11_000, 13_000));
    assert_eq!(video[12], (24_000, 1000));
    let sound = times(&file, Kind::Sound);
    assert_eq!(sound[11], (11 * 1024, 1024 * 13));
    assert_eq!(sound[12], (24 * 1024, 1024));
    assert_eq!(file.edit(Kind::Sound), None);
}

#[test]
fn a_segment_without_sound_is_a_gap_in_the_sound() {
    let mut film = film(3);
    let mut mute = Segment::new(&[Video::TRACK]);
    mute.fragment(&[Video::samples(12..24)]);
    film[1] = mute;
    let file = assemble(&film);
    assert_eq!(times(&file, Kind::Video).len(), 36);
    assert_eq!(times(&file, Kind::Sound)[11], (11 * 1024, 1024 * 13));
    // And before the sound begins, it is a delay.
    let file = assemble(&film[1..]);
    assert_eq!(file.edit(Kind::Sound), Some((24 * 1024 - 12_000, 0)));
    assert_eq!(times(&file, Kind::Sound)[0], (24 * 1024 - 12_000, 1024));
}

#[test]
fn a_film_without_sound_has_one_track() {
    let mut segment = Segment::new(&[Video::TRACK]);
    segment.fragment(&[Video::samples(0..12)]);
    let file = assemble(&[segment]);
    assert_eq!(file.kinds(), [Kind::Video]);
}

#[test]
fn an_overlap_shortens_the_sample_before_it() {
    let first = pictures(
        Video::TRACK,
        &[picture_at(0, 1000, 0), picture_at(1000, 1000, 0)],
    );
    let second = |time| pictures(Video::TRACK, &[picture_at(time, 1000, 0)]);
    let file = assemble(&[first.clone(), second(1001)]);
    assert_eq!(
        times(&file, Kind::Video),
        [(0, 1000), (1000, 1), (1001, 1000)]
    );
    for time in [1000, 999, 0] {
        let refusal = refusal(&[first.clone(), second(time)]);
        let LayoutError::Overlap { segment, kind } = refusal else {
            panic!("{refusal:?}");
        };
        assert_eq!((segment, kind), (1, Kind::Video));
    }
}

#[test]
fn pictures_out_of_order_are_presented_when_they_were() {
    // Decoded as I P B B, and composed two pictures later than decoded, so that no offset is negative.
    let offsets = [2000, 4000, 1000, 1000];
    let group = |start: u64| {
        let pictures = (start..).step_by(1000).zip(offsets);
        pictures
            .map(|(time, offset)| picture_at(time, 1000, offset))
            .collect::<Vec<_>>()
    };
    let file = assemble(&[
        pictures(Video::TRACK, &group(7000)),
        pictures(Video::TRACK, &group(11_000)),
    ]);
    let shown: Vec<_> = times(&file, Kind::Video)
        .iter()
        .map(|(time, _)| *time)
        .collect();
    assert_eq!(shown, [0, 3000, 1000, 2000, 4000, 7000, 5000, 6000]);
    assert_eq!(file.edit(Kind::Video), Some((0, 2000)));
    assert_eq!(file.moov.mvhd.duration, 8000);
    assert_eq!(file.trak(Kind::Video).mdia.mdhd.duration, 8000);
}

#[test]
fn pictures_before_their_decode_time_are_presented_when_they_were() {
    let file = assemble(&[pictures(
        Video::TRACK,
        &[picture_at(5000, 1000, -3000), picture_at(6000, 1000, 500)],
    )]);
    assert_eq!(times(&file, Kind::Video), [(0, 1000), (4500, 1000)]);
    assert_eq!(file.edit(Kind::Video), None);
    assert_eq!(file.moov.mvhd.duration, 5500);
}

#[test]
fn priming_that_an_edit_list_hides_stays_hidden() {
    let edit = |delay, media_time| segment::Track {
        edit: Some((delay, media_time)),
        ..Sound::TRACK
    };
    let primed = |track, blocks| {
        let mut segment = Segment::new(&[Video::TRACK, track]);
        segment.fragment(&[Video::samples(0..12), Sound::samples(blocks)]);
        segment
    };
    let file = assemble(&[primed(edit(0, 1024), 0..13)]);
    assert_eq!(file.edit(Kind::Sound), Some((0, 1024)));
    let presented: Vec<_> = file
        .samples(Kind::Sound)
        .iter()
        .map(|s| s.presented)
        .collect();
    assert!((presented[0] + 1024.0 / 24_000.0).abs() < 1e-9 && presented[1].abs() < 1e-9);
    assert_eq!(file.trak(Kind::Sound).tkhd.duration, 12 * 1024);

    // 500 ms are 12000 ticks. What is hidden is hidden in the delay too.
    let file = assemble(&[primed(edit(500, 1024), 0..13)]);
    assert_eq!(file.edit(Kind::Sound), Some((12_000, 1024)));

    // In a segment that is not the first, the edit is a shift: there nothing is before the film's start.
    let mut later = Segment::new(&[edit(0, 1024)]);
    later.fragment(&[Sound::samples(1..3)]);
    let file = assemble(&[later]);
    assert_eq!(
        (file.edit(Kind::Sound), times(&file, Kind::Sound)[0].0),
        (None, 0)
    );
}

#[test]
fn segments_of_other_timescales_share_a_track() {
    let faster = segment::Track {
        timescale: 30_000,
        ..Video::TRACK
    };
    let file = assemble(&[
        pictures(Video::TRACK, &[picture_at(24_000, 1000, 0)]),
        // 1/24 s after one second; each lasts for 1/30 s.
        pictures(
            faster,
            &[picture_at(31_250, 1000, 0), picture_at(32_250, 1000, 0)],
        ),
    ]);
    assert_eq!(file.trak(Kind::Video).mdia.mdhd.timescale, 120_000);
    assert_eq!(
        times(&file, Kind::Video),
        [(0, 5000), (5000, 4000), (9000, 4000)]
    );
    assert_eq!(file.trak(Kind::Video).mdia.minf.stbl.stsd.codecs.len(), 1);
}

#[test]
fn timescales_without_a_small_multiple_are_refused() {
    let track = |timescale| segment::Track {
        timescale,
        ..Video::TRACK
    };
    let refusal = refusal(&[
        pictures(track(u32::MAX), &[picture_at(0, 1000, 0)]),
        pictures(track(u32::MAX - 1), &[picture_at(1000, 1000, 0)]),
    ]);
    assert!(
        matches!(refusal, LayoutError::Timescale { kind: Kind::Video }),
        "{refusal:?}"
    );
}

#[test]
fn a_gap_too_long_for_its_field_is_refused() {
    let film = |time| {
        [
            pictures(Video::TRACK, &[picture_at(0, 1000, 0)]),
            pictures(Video::TRACK, &[picture_at(time, 1000, 0)]),
        ]
    };
    let longest = u64::from(u32::MAX);
    assert_eq!(
        times(&assemble(&film(longest)), Kind::Video)[0],
        (0, u32::MAX)
    );
    let refusal = refusal(&film(longest + 1));
    assert!(matches!(refusal, LayoutError::TooLong(None)), "{refusal:?}");
}

#[test]
fn no_samples_are_no_film() {
    assert!(matches!(Layout::new([]), Err(LayoutError::Empty)));
    let empty = Segment::new(&[Video::TRACK, Sound::TRACK]);
    assert!(matches!(
        refusal(std::slice::from_ref(&empty)),
        LayoutError::Empty
    ));
    // Among others, a segment without samples adds nothing.
    let mut film = film(2);
    film.insert(1, empty);
    assert_eq!(times(&assemble(&film), Kind::Video).len(), 24);
}

#[test]
fn a_film_of_which_nothing_is_presented_has_no_duration() {
    let mut segment = Segment::new(&[Video::TRACK]);
    let sample = segment::Sample {
        duration: 1,
        offset: -2,
        sync: true,
        data: vec![b'p'; 9],
    };
    segment.fragment(&[segment::TrackFragment {
        kind: Kind::Video,
        time: 0,
        samples: vec![sample],
    }]);
    let layout = layout(&[segment.bytes()]);
    assert_eq!(layout.duration(), std::time::Duration::ZERO);
}
