//! The initial image: it is seen in the first segment, refused when it is no picture, and removed with its session.

use std::io::Cursor;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

use crate::harness::{Client, Heard, Server, until};

const FAST: &[&str] = &["--gpus", "1"];
const MAGENTA: Rgb<u8> = Rgb([230, 20, 220]);

/// The file of a picture of one colour.
fn file(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    RgbImage::from_pixel(width, height, MAGENTA)
        .write_to(&mut file, format)
        .unwrap();
    file.into_inner()
}

fn image(mime: &str, bytes: &[u8]) -> Value {
    json!({"mime": mime, "name": "../../etc/cat.png", "data": BASE64.encode(bytes)})
}

/// An initial image for tests of something else.
pub(crate) fn small() -> Value {
    image("image/png", &file(ImageFormat::Png, 64, 64))
}

/// The distance of a JPEG's mean colour from magenta, 0 to 255.
fn distance(jpeg: &[u8]) -> f64 {
    let picture = image::load_from_memory(jpeg).unwrap().into_rgb8();
    let pixels = f64::from(picture.width() * picture.height());
    let mut mean = [0.0; 3];
    for pixel in picture.pixels() {
        for (sum, value) in mean.iter_mut().zip(pixel.0) {
            *sum += f64::from(value) / pixels;
        }
    }
    let off = mean
        .iter()
        .zip(MAGENTA.0)
        .map(|(m, c)| (m - f64::from(c)).abs());
    off.fold(0.0, f64::max)
}

#[tokio::test]
async fn the_first_frame_shows_the_image_and_later_segments_do_not() {
    let server = Server::start(FAST);
    for (mime, format) in [
        ("image/png", ImageFormat::Png),
        ("image/jpeg", ImageFormat::Jpeg),
        ("image/webp", ImageFormat::WebP),
    ] {
        let image = image(mime, &file(format, 200, 150));
        let mut client = server
            .active(json!({"stream_mode": "legacy_jpeg", "initial_image": image}))
            .await;
        let first = client.segment("a green meadow").await;
        let second = client.segment("a green meadow").await;
        // A caption lies over the picture.
        assert!(distance(&first.media[0]) < 40.0, "{mime}");
        assert!(distance(&first.media[11]) > 60.0, "{mime}");
        assert!(distance(&second.media[0]) > 60.0, "{mime}");
        client.send(json!({"type": "leave"})).await;
        client.closed().await;
    }
}

/// The picture in the frame: what its left and its right half are, or its upper and its lower one.
fn halves(jpeg: &[u8], upright: bool) -> [char; 2] {
    let picture = image::load_from_memory(jpeg).unwrap().into_rgb8();
    let (width, height) = picture.dimensions();
    // A caption lies over the lower part.
    let places = match upright {
        false => [(width / 8, height / 2), (width * 7 / 8, height / 2)],
        true => [(width / 2, height / 8), (width / 2, height * 5 / 8)],
    };
    places.map(|(x, y)| match picture.get_pixel(x, y).0 {
        [red, _, blue] if red > blue => 'r',
        _ => 'b',
    })
}

#[tokio::test]
async fn a_photo_stands_upright_and_a_thin_picture_costs_nothing() {
    let server = Server::start(FAST);
    // Red on the left, blue on the right, with the orientation in Exif data.
    let photo = |orientation: u8| {
        let mut jpeg = Cursor::new(Vec::new());
        RgbImage::from_fn(96, 96, |x, _| match x < 48 {
            true => Rgb([220, 20, 20]),
            false => Rgb([20, 20, 220]),
        })
        .write_to(&mut jpeg, ImageFormat::Jpeg)
        .unwrap();
        let mut jpeg = jpeg.into_inner();
        let mut exif =
            b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        jpeg.splice(2..2, exif);
        jpeg
    };
    for (orientation, upright, expected) in [
        (1, false, ['r', 'b']),
        (2, false, ['b', 'r']),
        (3, false, ['b', 'r']),
        (6, true, ['r', 'b']),
        (8, true, ['b', 'r']),
    ] {
        // As a browser makes it of a file with a wrong name.
        let data = BASE64.encode(photo(orientation));
        let image = json!({"mime": "image/png", "data": format!("data:image/png;base64,{data}")});
        let mut client = server
            .active(json!({"stream_mode": "legacy_jpeg", "initial_image": image}))
            .await;
        let segment = client.segment("a green meadow").await;
        assert_eq!(
            halves(&segment.media[0], upright),
            expected,
            "{orientation}"
        );
        client.send(json!({"type": "leave"})).await;
        client.closed().await;
    }
    let pid = server.worker_pid(0).await;
    let image = image("image/png", &file(ImageFormat::Png, 1, 16));
    let mut client = server
        .active(json!({"stream_mode": "legacy_jpeg", "initial_image": image}))
        .await;
    let segment = client.segment("a green meadow").await;
    assert!(distance(&segment.media[0]) < 40.0);
    assert_eq!(server.worker_pid(0).await, pid);
}

#[tokio::test]
async fn a_client_that_leaves_while_its_image_waits_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_in(dir.path(), FAST);
    // Large enough that they are decoded one after the other, and most of their clients are gone by then.
    let large = image("image/png", &file(ImageFormat::Png, 4000, 3000));
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(server.open(json!({"initial_image": large})).await);
    }
    drop(clients);
    server.sessions(0).await;
    until("no image is kept", async || {
        kept(dir.path()).is_empty().then_some(())
    })
    .await;
    server.active(json!({})).await.segment("a fox").await;
}

#[tokio::test]
async fn many_large_images_cost_what_two_do() {
    // Its decoder keeps all pixels, and its file is small.
    let large = image("image/webp", &file(ImageFormat::WebP, 4000, 3000));
    let cost = async |clients: usize| {
        let patience = "--streaming.limits.opening_timeout_seconds=60";
        let server = Server::start(&[FAST, &[patience]].concat());
        server.ready(1).await;
        let before = server.peak_bytes();
        let mut waiting = Vec::new();
        for _ in 0..clients {
            waiting.push(server.open(json!({"initial_image": large})).await);
        }
        for client in &mut waiting {
            client.expect("queue_status").await;
        }
        server.peak_bytes() - before
    };
    let one = cost(1).await;
    assert!(one > 40 << 20, "{one} bytes");
    let many = cost(12).await;
    assert!(many < 4 * one, "{many} bytes, and {one} for one");
}

#[tokio::test]
async fn null_and_an_empty_object_are_no_image() {
    let server = Server::start(FAST);
    for image in [json!(null), json!({})] {
        let mut client = server.active(json!({"initial_image": image})).await;
        client.segment("a fox").await;
        client.send(json!({"type": "leave"})).await;
        client.closed().await;
    }
}

async fn refused(mut client: Client) -> String {
    let error = client.expect("error").await;
    assert_eq!(
        (&error["code"], &error["retryable"]),
        (&json!("invalid_message"), &json!(false))
    );
    assert_eq!(client.next().await, Heard::Closed(Some(1003)));
    error["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_bad_image_is_refused_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let limit: &[&str] = &["--streaming.limits.max_image_pixels", "10000"];
    let server = Server::start_in(dir.path(), &[FAST, limit].concat());
    let png = file(ImageFormat::Png, 50, 50);
    let large = file(ImageFormat::Png, 101, 100);
    for (image, expected) in [
        (json!("cat.png"), "initial_image: invalid type"),
        (json!({"mime": "image/png"}), "`initial_image.data`"),
        (json!({"data": BASE64.encode(&png)}), "`initial_image.mime`"),
        (image("image/gif", &png), "`initial_image.mime`"),
        (
            image("image/png", &file(ImageFormat::Png, 2, 40)),
            "at most 16 times as long as wide, got 2x40",
        ),
        (
            json!({"mime": "image/png", "data": "data:image/png,%89PNG"}),
            "data:image/png;base64,",
        ),
        (image("image/png", b""), "0 bytes"),
        (
            image("image/png", b"a picture of a cat"),
            "no known image type",
        ),
        (
            image("image/png", &png[..png.len() / 2]),
            "`initial_image.data`",
        ),
        (
            image("image/png", &large),
            "at most 10000 pixels, got 101x100",
        ),
        (
            json!({"mime": "image/png", "data": "AAAA AAAA"}),
            "strict base64",
        ),
    ] {
        let client = server.open(json!({"initial_image": image})).await;
        let said = refused(client).await;
        assert!(said.contains(expected), "{said}");
    }
    server.sessions(0).await;
    assert_eq!(kept(dir.path()).len(), 0);
}

/// The images in the private folder that the server has made in `dir`, and beside it.
fn kept(dir: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let beside = entries(dir);
    let is_private = |path: &&PathBuf| name(path).starts_with("fastvideo-link-");
    let within = beside.iter().filter(is_private).flat_map(|f| entries(f));
    let mut images: Vec<_> = within.chain(beside.clone()).collect();
    images.retain(|path| name(path).contains("init"));
    images
}

#[tokio::test]
async fn the_image_is_removed_however_the_session_ends() {
    let dir = tempfile::tempdir().unwrap();
    let args: &[&str] = &[
        "--generator.synthetic.step_ms",
        "20",
        "--streaming.generation_segment_cap",
        "1",
    ];
    let server = Server::start_in(dir.path(), &[&["--gpus", "1"], args].concat());
    let opening = json!({"initial_image": small()});
    let long =
        json!({"type": "segment_prompt_source", "prompt": "a fox", "num_inference_steps": 200});
    for end in [
        "leave",
        "cap",
        "gone",
        "gone in a segment",
        "gone in the queue",
        "binary",
    ] {
        let mut holder = None;
        if end == "gone in the queue" {
            holder = Some(server.active(json!({})).await);
        }
        let mut client = server.open(opening.clone()).await;
        client.expect("queue_status").await;
        let files = kept(dir.path());
        assert_eq!(files.len(), 1, "{end}");
        let mode = std::fs::metadata(&files[0]).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        if holder.is_none() {
            client.until_type("ltx2_stream_start").await;
        }
        match end {
            "leave" => client.send(json!({"type": "leave"})).await,
            "binary" => client.send_binary(b"x").await,
            "cap" => client.prompt("a fox").await,
            "gone in a segment" => {
                client.send(long.clone()).await;
                client.until_type("step_complete").await;
            }
            _ => {}
        }
        match end.starts_with("gone") {
            true => drop(client),
            false => drop(client.closed().await),
        }
        drop(holder);
        until("the image is gone", async || {
            kept(dir.path()).is_empty().then_some(())
        })
        .await;
        server.sessions(0).await;
    }
    // An opening that is refused for something else.
    let mut both = opening;
    both["continuation_state"] = json!({"kind": "ltx3.v1", "payload": {}});
    let mut client = server.open(both).await;
    assert_eq!(client.expect("error").await["code"], "state_incompatible");
    client.closed().await;
    assert_eq!(kept(dir.path()).len(), 0);
}

#[tokio::test]
async fn an_image_and_the_supervisor_that_holds_it_are_gone_after_a_drain() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start_in(dir.path(), FAST);
    let opening = json!({"initial_image": small()});
    let mut client = server.active(opening).await;
    assert_eq!(kept(dir.path()).len(), 1);
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(client.closed().await, Some(1001));
    assert!(server.exit().await.success());
    assert_eq!(kept(dir.path()).len(), 0);
}
