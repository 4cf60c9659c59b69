//! The media agree with the messages about them, and the segments of a session are one stream.

use serde_json::{Value, json};

use crate::harness::{Heard, Segment, Server};
use crate::readback::{self, Parsed, SOUND, Sample, VIDEO};

mod content;

/// The video format that a server is asked for.
#[derive(Clone, Copy, Debug)]
struct Format {
    width: u32,
    height: u32,
    num_frames: u32,
    fps: u32,
}

const SMALLEST: Format = Format {
    width: 64,
    height: 64,
    num_frames: 12,
    fps: 24,
};

impl Format {
    /// A server whose engine takes no time.
    fn server(self) -> Server {
        self.server_with(&[])
    }

    fn server_with(self, args: &[&str]) -> Server {
        let Self {
            width,
            height,
            num_frames,
            fps,
        } = self;
        let own = [
            format!("--default_request.sampling.width={width}"),
            format!("--default_request.sampling.height={height}"),
            format!("--default_request.sampling.num_frames={num_frames}"),
            format!("--default_request.sampling.fps={fps}"),
            "--default_request.sampling.num_inference_steps=1".to_owned(),
            "--generator.synthetic.step_ms=0".to_owned(),
            "--generator.synthetic.frame_ms=0".to_owned(),
        ];
        Server::start(&[&own.each_ref().map(String::as_str), args].concat())
    }

    /// The number of frames in each fragment: one in the first, so that it is there early, then 250 ms.
    fn fragments(self) -> Vec<usize> {
        let quarter = ((self.fps + 2) / 4).max(1);
        let mut counts = vec![1];
        let mut left = self.num_frames - 1;
        while left > 0 {
            let next = left.min(quarter);
            counts.push(next as usize);
            left -= next;
        }
        counts
    }

    fn seconds(self, segments: usize) -> f64 {
        f64::from(self.num_frames) / f64::from(self.fps) * segments as f64
    }
}

/// Makes segments of one session, one after the other.
async fn segments(server: &Server, count: usize) -> Vec<Segment> {
    let mut client = server.active(json!({})).await;
    let mut segments = Vec::new();
    for _ in 0..count {
        segments.push(client.segment("a red fox in the snow").await);
    }
    segments
}

fn bytes(segments: &[Segment]) -> Vec<u8> {
    segments.iter().flat_map(Segment::bytes).collect()
}

/// Checks the boxes, their numbers and the messages about them, segment by segment.
fn check_boxes(segments: &[Segment], format: Format) {
    let mut picture_end = 0;
    let mut sound_end = 0;
    let first = &segments[0].media[0];
    for (index, segment) in segments.iter().enumerate() {
        assert!(segment.media[0] == *first, "the init segment changed");
        let parsed = Parsed::of(segment);
        check_pictures(&parsed, format);

        let pictures = parsed.samples(VIDEO);
        picture_end = check_continuous(&pictures, picture_end);
        let sound = parsed.samples(SOUND);
        sound_end = check_continuous(&sound, sound_end);
        let [ticks, rate] = [VIDEO, SOUND].map(|track| parsed.timescale(track));
        // Both in units of 1 / (ticks * rate) seconds.
        assert!(
            sound_end * ticks >= picture_end * rate,
            "the sound of segment {index} is shorter than its pictures"
        );
        if let [block, ..] = &sound[..] {
            let late = block.time * ticks - pictures[0].time * rate;
            assert!(late < block.duration * ticks, "sound begins late");
        }

        check_messages(segment, &parsed, index, format);
    }
    let all = picture_end as f64 / Parsed::of(&segments[0]).timescale(VIDEO) as f64;
    assert!((all - format.seconds(segments.len())).abs() < 1e-9);
}

/// Checks what a player needs of the pictures of one segment.
fn check_pictures(parsed: &Parsed, format: Format) {
    let counts = parsed.fragments.iter().map(|f| f.samples(VIDEO).len());
    assert_eq!(counts.collect::<Vec<_>>(), format.fragments());

    let pictures = parsed.samples(VIDEO);
    let sync: Vec<bool> = pictures.iter().map(|picture| picture.sync).collect();
    let idr: Vec<bool> = pictures.iter().map(Sample::is_idr).collect();
    let only_first: Vec<bool> = (0..pictures.len()).map(|index| index == 0).collect();
    assert_eq!(sync, only_first, "sync samples");
    assert_eq!(idr, only_first, "IDR pictures");

    let ticks = parsed.timescale(VIDEO) / u64::from(format.fps);
    for picture in &pictures {
        assert_eq!((picture.offset, picture.duration), (0, ticks));
    }
}

/// Checks that the samples begin where the last segment ended, and returns where they end. A short segment may have no
/// block of sound.
fn check_continuous(samples: &[Sample], mut end: u64) -> u64 {
    for sample in samples {
        assert_eq!(sample.time, end);
        end = sample.end();
    }
    end
}

/// Checks that the numbers in the messages are those of the boxes.
fn check_messages(segment: &Segment, parsed: &Parsed, index: usize, format: Format) {
    let init = segment.only("media_init");
    let mime = format!("video/mp4; codecs=\"{}\"", parsed.codecs());
    assert_eq!(
        (&init["mime"], &init["segment_idx"]),
        (&json!(mime), &json!(index))
    );

    let complete = segment.only("media_segment_complete");
    assert_eq!(complete["stream_id"], init["stream_id"]);
    assert_eq!(complete["segment_idx"], index);
    assert_eq!(complete["chunks"], parsed.fragments.len());
    let pictures = parsed.samples(VIDEO);
    let millis = |ticks: u64| ticks as f64 * 1000.0 / parsed.timescale(VIDEO) as f64;
    let duration = pictures.iter().map(|picture| picture.duration).sum();
    for (field, expected) in [
        ("duration_ms", millis(duration)),
        ("pts_base_ms", millis(pictures[0].time)),
    ] {
        let given = complete[field].as_f64().unwrap();
        assert!(
            (given - expected).abs() < 0.01,
            "{field}: {given} for {expected} ({format:?})"
        );
    }
}

/// Checks the whole session with ffmpeg.
fn check_stream(segments: &[Segment], format: Format) {
    let all = bytes(segments);
    readback::decode(&all);
    let probe = readback::ffprobe(&all, &["-count_frames"]);
    let of = |kind: &str| {
        let streams = probe["streams"].as_array().unwrap();
        let mut streams = streams.iter().filter(|s| s["codec_type"] == kind);
        let stream = streams.next().unwrap();
        assert_eq!(streams.next(), None);
        stream
    };
    let video = of("video");
    let fields = ["codec_name", "width", "height", "pix_fmt", "avg_frame_rate"];
    assert_eq!(
        fields.map(|field| &video[field]),
        [
            &json!("h264"),
            &json!(format.width),
            &json!(format.height),
            &json!("yuv420p"),
            &json!(format!("{}/1", format.fps))
        ]
    );
    let colours = [
        "color_range",
        "color_space",
        "color_transfer",
        "color_primaries",
    ];
    assert_eq!(
        colours.map(|field| &video[field]),
        [
            &json!("tv"),
            &json!("bt709"),
            &json!("bt709"),
            &json!("bt709")
        ]
    );
    let frames = format.num_frames as usize * segments.len();
    assert_eq!(video["nb_read_frames"], frames.to_string());

    let sound = of("audio");
    assert_eq!(
        (&sound["codec_name"], &sound["profile"]),
        (&json!("aac"), &json!("LC"))
    );
    assert_eq!(number(&video["start_time"]), 0.0);
    assert_eq!(number(&sound["start_time"]), 0.0);
    let excess = number(&probe["format"]["duration"]) - format.seconds(segments.len());
    assert!((-0.001..0.06).contains(&excess), "{excess} s too long");
}

fn number(text: &Value) -> f64 {
    text.as_str().unwrap().parse().unwrap()
}

async fn check(format: Format, count: usize) {
    let server = format.server();
    let segments = segments(&server, count).await;
    check_boxes(&segments, format);
    check_stream(&segments, format);
}

#[tokio::test]
async fn segments_are_one_stream_at_any_size_and_rate() {
    for (width, height, num_frames, fps) in [
        (64, 64, 12, 24),
        (130, 66, 25, 30),
        (66, 130, 9, 24),
        (64, 64, 3, 1),
        (320, 176, 31, 60),
    ] {
        let format = Format {
            width,
            height,
            num_frames,
            fps,
        };
        check(format, 3).await;
    }
}

/// At 24 frames per second a frame lasts for 1000 samples of sound and a block of AAC for 1024.
#[tokio::test]
async fn segments_of_one_frame_are_one_stream() {
    for fps in [24, 1, 30] {
        let format = Format {
            num_frames: 1,
            fps,
            ..SMALLEST
        };
        check(format, 12).await;
    }
}

#[tokio::test]
async fn hundred_segments_play_without_a_gap() {
    let format = Format {
        num_frames: 5,
        ..SMALLEST
    };
    check(format, 100).await;
}

#[tokio::test]
async fn each_segment_plays_alone() {
    let server = SMALLEST.server();
    for segment in segments(&server, 3).await {
        let pictures = readback::pictures(&segment.bytes(), 64, 64);
        assert_eq!(pictures.len(), 12);
    }
}

#[tokio::test]
async fn jpeg_frames_come_one_by_one() {
    let format = Format {
        width: 130,
        height: 66,
        ..SMALLEST
    };
    let server = format.server();
    let mut client = server.active(json!({"stream_mode": "legacy_jpeg"})).await;
    let segment = client.segment("a red fox in the snow").await;
    let init = segment.only("media_init");
    assert_eq!(
        (&init["mime"], &init["mode"]),
        (&json!("image/jpeg"), &json!("legacy_jpeg"))
    );
    assert_eq!(segment.media.len(), 12);
    for picture in &segment.media {
        let jpeg = image::ImageFormat::Jpeg;
        let picture = image::load_from_memory_with_format(picture, jpeg).unwrap();
        assert_eq!((picture.width(), picture.height()), (130, 66));
    }
}

/// The engine never makes the second frame here.
#[tokio::test]
async fn first_fragment_does_not_wait_for_the_others() {
    let fault = "--generator.synthetic.faults=spin@frame1,segment=0";
    let server = Server::start(&[fault]);
    let mut client = server.active(json!({})).await;
    client.prompt("a red fox in the snow").await;
    client.until_type("media_init").await;
    for kind in [b"ftyp", b"moof"] {
        match client.next().await {
            Heard::Media(bytes) => assert_eq!(&bytes[4..8], kind),
            other => panic!("{other:?}"),
        }
    }
}
