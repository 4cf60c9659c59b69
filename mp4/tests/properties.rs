//! Any film is the same after as before.

use proptest::prelude::*;

use super::file::Sample;
use super::segment::{TrackFragment, data};
use super::*;
use crate::Kind;

/// The seconds from a segment's start to the next one's. No segment lasts as long.
const PACE: u64 = 20;

fn track(kind: Kind, faster: bool, form: u16) -> segment::Track {
    let (track, timescale) = match kind {
        Kind::Video => (Video::TRACK, 30_000),
        Kind::Sound => (Sound::TRACK, 48_000),
    };
    let timescale = if faster { timescale } else { track.timescale };
    segment::Track {
        timescale,
        form,
        ..track
    }
}

/// A fragment's samples: the gap before them in ticks, and for each its duration, offset, size and whether it is a sync
/// sample.
type Samples = (u64, Vec<(u32, i64, u64, bool)>);

fn samples() -> impl Strategy<Value = Samples> {
    let sample = (1_u32..3000, -3000_i64..3000, 1_u64..40, any::<bool>());
    (0_u64..1000, prop::collection::vec(sample, 0..6))
}

fn segment() -> impl Strategy<Value = Segment> {
    let track = (any::<bool>(), 1_u16..3);
    let fragments = prop::collection::vec((samples(), samples()), 0..4);
    (
        track.clone(),
        prop::option::of(track),
        0_u64..2000,
        fragments,
    )
        .prop_map(|(video, sound, late, fragments)| {
            let mut tracks = vec![self::track(Kind::Video, video.0, video.1)];
            tracks.extend(sound.map(|sound| self::track(Kind::Sound, sound.0, sound.1)));
            let mut segment = Segment::new(&tracks);
            let mut times = [0, late];
            for fragment in fragments {
                let samples = [fragment.0, fragment.1];
                let tracks = tracks.iter().zip(times.iter_mut()).zip(samples);
                let fragments = tracks.map(|((track, time), (gap, samples))| {
                    *time += gap;
                    let start = *time;
                    let samples = samples.into_iter().map(|(duration, offset, size, sync)| {
                        *time += u64::from(duration);
                        segment::Sample {
                            duration,
                            offset,
                            sync,
                            data: data(b'p', *time, size),
                        }
                    });
                    TrackFragment {
                        kind: track.kind,
                        time: start,
                        samples: samples.collect(),
                    }
                });
                segment.fragment(&fragments.collect::<Vec<_>>());
            }
            segment
        })
}

/// Films whose segments begin [`PACE`] seconds after one another.
fn films() -> impl Strategy<Value = Vec<Segment>> {
    // Not at 0: what is composed before that is not presented.
    (1_u64..1000, prop::collection::vec(segment(), 1..5)).prop_map(|(start, mut film)| {
        for (segment, place) in film.iter_mut().zip(start..) {
            let tracks = segment.tracks.clone();
            for fragment in segment.fragments.iter_mut().flatten() {
                let track = tracks.iter().find(|track| track.kind == fragment.kind);
                fragment.time += place * PACE * u64::from(track.unwrap().timescale);
            }
        }
        film
    })
}

/// What a film has of a track: for each sample when it is decoded and presented in seconds, and it.
fn expected(film: &[Segment], kind: Kind) -> Vec<(f64, f64, segment::Sample, mp4_atom::Codec)> {
    let mut expected = Vec::new();
    for segment in film {
        let Some(track) = segment.tracks.iter().find(|track| track.kind == kind) else {
            continue;
        };
        let seconds = |ticks: i64| ticks as f64 / f64::from(track.timescale);
        for fragment in segment.fragments.iter().flatten() {
            let mut time = i64::try_from(fragment.time).unwrap();
            let samples = fragment.samples.iter().filter(|_| fragment.kind == kind);
            for sample in samples {
                let presented = seconds(time + sample.offset);
                expected.push((seconds(time), presented, sample.clone(), track.codec()));
                time += i64::from(sample.duration);
            }
        }
    }
    expected
}

/// What the file has of a track.
fn actual(file: &File, kind: Kind) -> Vec<Sample> {
    if file.kinds().contains(&kind) {
        file.samples(kind)
    } else {
        Vec::new()
    }
}

proptest! {
    #[test]
    fn samples_are_the_same_and_keep_their_distances(film in films()) {
        let both = [Kind::Video, Kind::Sound];
        let expected = both.map(|kind| expected(&film, kind));
        prop_assume!(expected.iter().any(|samples| !samples.is_empty()));
        let file = assemble(&film);
        // What is presented first is at 0.
        let presented = expected.iter().flatten().map(|(_, presented, ..)| *presented);
        let start = presented.fold(f64::MAX, f64::min);
        let mut order = Vec::new();
        for (kind, expected_samples) in both.into_iter().zip(expected) {
            let samples = actual(&file, kind);
            prop_assert_eq!(samples.len(), expected_samples.len());
            let timescale = samples.first().map_or(1.0, |_| {
                f64::from(file.trak(kind).mdia.mdhd.timescale)
            });
            for (index, (sample, expected)) in samples.iter().zip(&expected_samples).enumerate() {
                let (decoded, presented, made, codec) = expected;
                prop_assert!((sample.presented - (presented - start)).abs() < 1e-7);
                prop_assert_eq!(&sample.data, &made.data);
                prop_assert_eq!(sample.sync, made.sync);
                prop_assert_eq!(&sample.codec, codec);
                if let Some((next, ..)) = expected_samples.get(index + 1) {
                    let lasts = f64::from(sample.duration) / timescale;
                    prop_assert!((lasts - (next - decoded)).abs() < 1e-7);
                }
                order.push((sample.at, sample.data.len() as u64));
            }
        }
        // No sample lies in another, and nothing else is in the media.
        order.sort_unstable();
        let mut at = file.media as u64;
        for (place, size) in order {
            prop_assert_eq!(place, at);
            at += size;
        }
        prop_assert_eq!(at, file.bytes.len() as u64);
        prop_assert_eq!(assemble(&film).bytes, file.bytes);
    }
}
