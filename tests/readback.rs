//! Reads media back with other people's programs: boxes with `mp4-atom`, streams with `ffprobe`, pictures and sound
//! with `ffmpeg`.

use std::process::Command;

use mp4_atom::{Any, Codec, Decode, Moof, Moov, Traf};
use serde_json::Value;

use crate::harness::Segment;

pub(crate) const VIDEO: u32 = 1;
pub(crate) const SOUND: u32 = 2;

/// A segment's messages, parsed.
pub(crate) struct Parsed {
    pub(crate) moov: Moov,
    pub(crate) fragments: Vec<Fragment>,
}

pub(crate) struct Fragment {
    moof: Moof,
    bytes: Vec<u8>,
}

/// A picture, or a block of sound. Times are in ticks of its track.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) time: u64,
    pub(crate) duration: u64,
    /// The presentation time minus `time`.
    pub(crate) offset: i64,
    pub(crate) sync: bool,
    pub(crate) data: Vec<u8>,
}

impl Parsed {
    /// Parses a segment. Asserts that the first message is `ftyp` and `moov`, and each other message `moof` and `mdat`.
    pub(crate) fn of(segment: &Segment) -> Self {
        let (init, fragments) = segment.media.split_first().expect("a segment has media");
        let moov = match <[Any; 2]>::try_from(atoms(init)) {
            Ok([Any::Ftyp(_), Any::Moov(moov)]) => moov,
            other => panic!("an init segment of {other:?}"),
        };
        let fragments = fragments
            .iter()
            .map(|bytes| match <[Any; 2]>::try_from(atoms(bytes)) {
                Ok([Any::Moof(moof), Any::Mdat(_)]) => Fragment {
                    moof,
                    bytes: bytes.clone(),
                },
                other => panic!("a fragment of {other:?}"),
            })
            .collect();
        Self { moov, fragments }
    }

    /// Ticks per second of a track.
    pub(crate) fn timescale(&self, track: u32) -> u64 {
        let trak = self.moov.trak.iter().find(|t| t.tkhd.track_id == track);
        u64::from(trak.expect("the track is there").mdia.mdhd.timescale)
    }

    pub(crate) fn samples(&self, track: u32) -> Vec<Sample> {
        self.fragments
            .iter()
            .flat_map(|fragment| fragment.samples(track))
            .collect()
    }

    /// The `codecs` parameter of the MIME type, as the init segment requires it.
    pub(crate) fn codecs(&self) -> String {
        let codec = |index: usize| &self.moov.trak[index].mdia.minf.stbl.stsd.codecs[..];
        let [Codec::Avc1(avc1)] = codec(0) else {
            panic!("the first track is not H.264");
        };
        let [Codec::Mp4a(mp4a)] = codec(1) else {
            panic!("the second track is not AAC");
        };
        let avcc = &avc1.avcc;
        let config = &mp4a.esds.es_desc.dec_config;
        assert_eq!(config.object_type_indication, 0x40);
        format!(
            "avc1.{:02x}{:02x}{:02x}, mp4a.40.{}",
            avcc.avc_profile_indication,
            avcc.profile_compatibility,
            avcc.avc_level_indication,
            config.dec_specific.as_ref().unwrap().profile
        )
    }
}

impl Fragment {
    pub(crate) fn samples(&self, track: u32) -> Vec<Sample> {
        let trafs = self.moof.traf.iter();
        trafs
            .filter(|traf| traf.tfhd.track_id == track)
            .flat_map(|traf| self.of_traf(traf))
            .collect()
    }

    fn of_traf(&self, traf: &Traf) -> Vec<Sample> {
        let head = &traf.tfhd;
        assert!(head.default_base_is_moof);
        let tfdt = traf.tfdt.as_ref();
        let mut time = tfdt.expect("each has its time").base_media_decode_time;
        let mut samples = Vec::new();
        for run in &traf.trun {
            let mut at = usize::try_from(run.data_offset.expect("each has its place")).unwrap();
            for entry in &run.samples {
                let either = |own: Option<u32>, default: Option<u32>| own.or(default).unwrap();
                let size = either(entry.size, head.default_sample_size) as usize;
                let duration = u64::from(either(entry.duration, head.default_sample_duration));
                let flags = either(entry.flags, head.default_sample_flags);
                samples.push(Sample {
                    time,
                    duration,
                    offset: entry.cts.unwrap_or(0),
                    sync: flags & 0x1_0000 == 0,
                    data: self.bytes[at..at + size].to_vec(),
                });
                time += duration;
                at += size;
            }
        }
        samples
    }
}

impl Sample {
    pub(crate) fn end(&self) -> u64 {
        self.time + self.duration
    }

    /// Whether the picture can be decoded without another one: it holds a NAL unit of type 5.
    pub(crate) fn is_idr(&self) -> bool {
        let mut rest = &self.data[..];
        let mut idr = false;
        while let Some((length, unit)) = rest.split_at_checked(4) {
            let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
            idr |= unit[0] & 0x1f == 5;
            rest = &unit[length..];
        }
        assert!(rest.is_empty());
        idr
    }
}

fn atoms(mut bytes: &[u8]) -> Vec<Any> {
    let mut atoms = Vec::new();
    while !bytes.is_empty() {
        atoms.push(Any::decode(&mut bytes).expect("whole boxes"));
    }
    atoms
}

/// The output of `ffprobe -show_streams -show_format` with more `args`.
pub(crate) fn ffprobe(media: &[u8], args: &[&str]) -> Value {
    let args = [&["-show_streams", "-show_format", "-of", "json"], args].concat();
    serde_json::from_slice(&run("ffprobe", &args, media, &[])).unwrap()
}

/// Decodes all streams; asserts that the decoder does not complain.
pub(crate) fn decode(media: &[u8]) {
    run("ffmpeg", &["-i"], media, &["-f", "null", "-"]);
}

/// Decodes all pictures as RGB.
pub(crate) fn pictures(media: &[u8], width: usize, height: usize) -> Vec<Vec<u8>> {
    let rgb = ["-map", "0:v", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"];
    let all = run("ffmpeg", &["-i"], media, &rgb);
    let pictures = all.chunks_exact(width * height * 3);
    assert!(pictures.remainder().is_empty());
    pictures.map(<[u8]>::to_vec).collect()
}

/// Decodes the sound of the first channel.
pub(crate) fn sound(media: &[u8]) -> Vec<f32> {
    let first = "pan=mono|c0=c0";
    let pcm = ["-map", "0:a", "-af", first, "-f", "f32le", "-"];
    run("ffmpeg", &["-i"], media, &pcm)
        .chunks_exact(4)
        .map(|raw| f32::from_le_bytes(raw.try_into().unwrap()))
        .collect()
}

/// Runs a program on a file of these bytes and returns what it writes. Asserts that it writes nothing to stderr.
fn run(program: &str, before: &[&str], media: &[u8], after: &[&str]) -> Vec<u8> {
    let file = tempfile::Builder::new().suffix(".mp4").tempfile().unwrap();
    std::fs::write(file.path(), media).unwrap();
    #[expect(
        clippy::disallowed_methods,
        reason = "tests read media back with other programs"
    )]
    let output = Command::new(program)
        .args(["-v", "error"])
        .args(before)
        .arg(file.path())
        .args(after)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error} (make test installs it)"));
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && complaints.is_empty(),
        "{program}: {complaints}"
    );
    output.stdout
}
