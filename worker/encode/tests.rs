//! Encoded segments are read back: boxes by `mp4-atom`, pictures and sound by the `ffmpeg` program.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fastvideo_proto::job::{MediaMode, VideoFormat};
use fastvideo_proto::link::EncoderSpec;
use mp4_atom::{Any, Decode, Moof, Moov};

use super::*;
use crate::sound::{AudioFormat, SOUND_TAIL_SAMPLES};

mod boxes;
mod misuse;
mod picture;
mod seam;
mod timeline;

/// 24 frames per second, stereo at 24 kHz, fragments of six frames.
pub(super) fn params(width: u32, height: u32, num_frames: u32) -> EncodeParams {
    EncodeParams {
        format: VideoFormat {
            width,
            height,
            num_frames,
            fps: 24,
        },
        mode: MediaMode::AvFmp4,
        audio: Some(AudioFormat {
            sample_rate: 24_000,
            channels: 2,
        }),
        spec: EncoderSpec {
            fragment: Duration::from_millis(250),
            ..EncoderSpec::default()
        },
    }
}

/// The content of a session: a picture and a sample for each place on the time line.
struct Content {
    /// Red, green and blue at x, y of a frame.
    picture: fn(u32, u32, u64) -> [u8; 3],
    /// A sample by its place and the sample rate; it is the same in all channels.
    sound: fn(u64, u32) -> f32,
}

/// A bright column that moves, and a tone.
const MOVING: Content = Content {
    picture: |x, y, frame| {
        let moved = (u64::from(x) + 4 * frame) % 64;
        if moved < 8 {
            [250, 240, 200]
        } else {
            [40, (y % 200) as u8, 90]
        }
    },
    sound: |sample, rate| {
        let turns = (sample % u64::from(rate)) as f32 * 440.0 / rate as f32;
        0.4 * (turns.fract() * std::f32::consts::TAU).sin()
    },
};

/// One encoded segment.
struct Encoded {
    media: Vec<Media>,
    /// The number of messages that were out after each frame.
    after_frame: Vec<usize>,
    tail: Vec<f32>,
}

impl Encoded {
    fn mime(&self) -> &str {
        match &self.media[0] {
            Media::Init { mime, .. } => mime,
            Media::Fragment { .. } => panic!("the first message is no init segment"),
        }
    }

    fn init(&self) -> &[u8] {
        match &self.media[0] {
            Media::Init { bytes, .. } => bytes,
            Media::Fragment { .. } => panic!("the first message is no init segment"),
        }
    }

    fn fragments(&self) -> impl Iterator<Item = &[u8]> {
        self.media[1..].iter().map(|media| match media {
            Media::Fragment { bytes } => bytes.as_slice(),
            Media::Init { .. } => panic!("a second init segment"),
        })
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.init().to_vec();
        self.fragments()
            .for_each(|fragment| bytes.extend_from_slice(fragment));
        bytes
    }

    fn moov(&self) -> Moov {
        let atoms = atoms(self.init());
        match atoms.as_slice() {
            [Any::Ftyp(_), Any::Moov(moov)] => moov.clone(),
            other => panic!("an init segment of {:?}", kinds(other)),
        }
    }

    fn moofs(&self) -> Vec<Moof> {
        self.fragments()
            .map(|fragment| match atoms(fragment).as_slice() {
                [Any::Moof(moof), Any::Mdat(_)] => (*moof).clone(),
                other => panic!("a fragment of {:?}", kinds(other)),
            })
            .collect()
    }

    /// Places and lengths of a track's samples, in its ticks; tracks count from 1.
    fn samples(&self, track: u32) -> Vec<(u64, u64)> {
        let moofs = self.moofs();
        let trafs = moofs.iter().flat_map(|moof| &moof.traf);
        let mut samples = Vec::new();
        for traf in trafs.filter(|traf| traf.tfhd.track_id == track) {
            let mut time = traf.tfdt.as_ref().unwrap().base_media_decode_time;
            for entry in traf.trun.iter().flat_map(|run| run.samples.iter()) {
                let duration = entry
                    .duration
                    .or(traf.tfhd.default_sample_duration)
                    .unwrap();
                samples.push((time, u64::from(duration)));
                time += u64::from(duration);
            }
        }
        samples
    }
}

fn atoms(mut bytes: &[u8]) -> Vec<Any> {
    let mut atoms = Vec::new();
    while !bytes.is_empty() {
        atoms.push(Any::decode(&mut bytes).unwrap());
    }
    atoms
}

fn kinds(atoms: &[Any]) -> Vec<String> {
    atoms.iter().map(|atom| atom.kind().to_string()).collect()
}

fn encode(params: &EncodeParams, start_frame: u64, before: &[f32], content: &Content) -> Encoded {
    let mut media = Vec::new();
    let mut after_frame = Vec::new();
    let mut encoder = Encoder::open(params).unwrap();
    encoder
        .begin(start_frame, before, &mut |m| media.push(m))
        .unwrap();
    for index in 0..u64::from(params.format.num_frames) {
        let rgb = frame(params, start_frame + index, content);
        let sound = sound(params, start_frame, index, content);
        encoder.frame(&rgb, &sound, &mut |m| media.push(m)).unwrap();
        after_frame.push(media.len());
    }
    let tail = encoder.finish(&mut |m| media.push(m)).unwrap();
    Encoded {
        media,
        after_frame,
        tail,
    }
}

/// Encodes segments that follow each other, from frame 0 on.
fn encode_session(params: &EncodeParams, segments: u64, content: &Content) -> Vec<Encoded> {
    let mut encoded: Vec<Encoded> = Vec::new();
    for index in 0..segments {
        let before = encoded.last().map_or(&[][..], |segment| &segment.tail);
        let start_frame = index * u64::from(params.format.num_frames);
        encoded.push(encode(params, start_frame, before, content));
    }
    encoded
}

fn frame(params: &EncodeParams, place: u64, content: &Content) -> Vec<u8> {
    let VideoFormat { width, height, .. } = params.format;
    let mut rgb = Vec::with_capacity(params.format.frame_bytes());
    for y in 0..height {
        for x in 0..width {
            rgb.extend((content.picture)(x, y, place));
        }
    }
    rgb
}

fn sound(params: &EncodeParams, start_frame: u64, index: u64, content: &Content) -> Vec<f32> {
    let Some(audio) = params.audio else {
        return Vec::new();
    };
    let fps = params.format.fps;
    let start = audio.sample_at(start_frame, fps);
    (audio.sample_at(index, fps)..audio.sample_at(index + 1, fps))
        .map(|sample| (content.sound)(start + sample, audio.sample_rate))
        .flat_map(|value| std::iter::repeat_n(value, audio.channels as usize))
        .collect()
}

fn concatenated(segments: &[Encoded]) -> Vec<u8> {
    segments.iter().flat_map(Encoded::bytes).collect()
}

/// Runs a program on a file with these bytes and returns what it writes to its output. It must not complain.
fn run(program: &str, before: &[&str], bytes: &[u8], after: &[&str]) -> Vec<u8> {
    let file = tempfile::Builder::new().suffix(".mp4").tempfile().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let path: &Path = file.path();
    #[expect(
        clippy::disallowed_methods,
        reason = "a test reads media back with another program"
    )]
    let output = Command::new(program)
        .args(["-v", "error"])
        .args(before)
        .arg(path)
        .args(after)
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    output.stdout
}

fn ffprobe(bytes: &[u8], entries: &str) -> Vec<String> {
    let out = run(
        "ffprobe",
        &["-show_entries", entries, "-of", "csv=p=0"],
        bytes,
        &[],
    );
    let text = String::from_utf8(out).unwrap();
    text.lines()
        .map(|line| line.trim_end_matches(',').to_owned())
        .collect()
}

/// The sound of the first channel as a player hears it, from the first packet on.
fn decode_sound(bytes: &[u8], channels: u32) -> Vec<f32> {
    let pcm = run(
        "ffmpeg",
        &["-i"],
        bytes,
        &["-map", "0:a", "-f", "f32le", "-"],
    );
    let samples = pcm
        .chunks_exact(4)
        .map(|raw| f32::from_le_bytes(raw.try_into().unwrap()));
    samples.step_by(channels as usize).collect()
}

/// Decodes the pictures as RGB.
fn decode_pictures(bytes: &[u8]) -> Vec<u8> {
    let after = [
        "-map",
        "0:v",
        "-sws_flags",
        "accurate_rnd+full_chroma_int",
        "-pix_fmt",
        "rgb24",
        "-f",
        "rawvideo",
        "-",
    ];
    run("ffmpeg", &["-i"], bytes, &after)
}
