//! The picture and the sound at the seam between two segments.

use serde_json::{Value, json};

use super::{Format, bytes, segments};
use crate::harness::{Segment, Server, merge};
use crate::readback;

const FORMAT: Format = Format {
    width: 256,
    height: 144,
    num_frames: 24,
    fps: 24,
};

async fn opening(server: &Server, request: Value) -> Segment {
    let mut client = server.active(json!({})).await;
    let mut message = json!({"type": "segment_prompt_source", "prompt": "a red fox in the snow"});
    merge(&mut message, request);
    client.send(message).await;
    client.collect_until("ltx2_segment_complete").await
}

#[tokio::test]
async fn same_seed_gives_the_same_bytes() {
    let server = FORMAT.server();
    let first = opening(&server, json!({"seed": 7})).await;
    let again = opening(&server, json!({"seed": 7})).await;
    let other = opening(&server, json!({"seed": 8})).await;
    assert!(first.media == again.media);
    assert!(first.media != other.media);
}

fn pictures(segment: &Segment) -> Vec<Vec<u8>> {
    readback::pictures(&segment.bytes(), 256, 144)
}

/// The mean difference of two pictures, 0 to 255.
fn difference(one: &[u8], other: &[u8]) -> f64 {
    let sum: u64 = one
        .iter()
        .zip(other)
        .map(|(a, b)| u64::from(a.abs_diff(*b)))
        .sum();
    sum as f64 / one.len() as f64
}

#[tokio::test]
async fn motion_goes_on_across_a_seam() {
    let server = FORMAT.server_with(&["--streaming.encoder.crf=1"]);
    let session = segments(&server, 3).await;
    let shown: Vec<_> = session.iter().map(pictures).collect();
    let other = pictures(&opening(&server, json!({"seed": 11})).await);
    for seam in shown.windows(2) {
        let [before, after] = seam else {
            unreachable!("windows of two");
        };
        let last = &before[23];
        let steps = before.windows(2).map(|pair| difference(&pair[0], &pair[1]));
        let step = steps.fold(0.0, f64::max);
        let seam = difference(last, &after[0]);
        // The caption counts segments, which no step within a segment changes.
        assert!(seam < 1.5 * step, "{seam} at the seam, {step} at a step");
        let again = difference(last, &shown[0][0]);
        assert!(again > 1.5 * seam, "{again} to the session's start");
        let elsewhere = difference(last, &other[0]);
        assert!(elsewhere > 4.0 * seam, "{elsewhere} to another session");
    }
}

#[tokio::test]
async fn nothing_clicks_at_a_seam() {
    let server = FORMAT.server();
    let heard = readback::sound(&bytes(&segments(&server, 4).await));
    let curve: Vec<f32> = heard
        .windows(3)
        .map(|s| (s[2] - 2.0 * s[1] + s[0]).abs())
        .collect();
    let most = |values: &[f32]| {
        values
            .iter()
            .fold(0.0_f32, |most, value| most.max(value.abs()))
    };
    for seam in [24_000, 48_000, 72_000] {
        let around = seam - 1_200..seam + 1_200;
        let (near, far) = (
            most(&curve[around.clone()]),
            most(&curve[seam + 2_400..seam + 20_000]),
        );
        assert!(
            near < 2.0 * far,
            "bends by {near} at {seam}, {far} after it"
        );
        let level = most(&heard[around]);
        assert!(level > 0.02, "nothing is heard at {seam}: {level}");
    }
}
