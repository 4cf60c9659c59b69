//! The real model's engine in the whole program, with the tiny reference checkpoint on the CPU: what a viewer gets, what
//! dies on the way, and checkpoints that are not what they should be. Where the worker was built without the engine, these
//! tests say so and pass.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::cli::run;
use crate::harness::{Client, Segment, Server, merge};
use crate::page::browser::Browser;
use crate::previews;
use crate::readback::{self, Parsed, SOUND, VIDEO};
use crate::step_snapshots::metric;

/// A decoder that `tests/reference/make_preview.py` has made.
const PREVIEW_DECODER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/reference/data-preview/decoder.safetensors"
);

/// What the reference was made with.
struct Reference {
    root: PathBuf,
    settings: Value,
}

impl Reference {
    /// LTX-2.0.
    fn open() -> Self {
        Self::at("data", "LTX2_REFERENCE")
    }

    /// LTX-2.3.
    fn v2_3() -> Self {
        Self::at("data-2.3", "LTX23_REFERENCE")
    }

    fn at(stored: &str, variable: &str) -> Self {
        let all = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference"));
        let root = std::env::var_os(variable).map_or_else(|| all.join(stored), PathBuf::from);
        let manifest: Value = read_json(&root.join("manifest.json"));
        let settings = manifest["settings"].clone();
        Self { root, settings }
    }

    fn checkpoint(&self) -> PathBuf {
        self.root.join("checkpoint/diffusers")
    }

    fn number(&self, key: &str) -> u32 {
        let number = self.settings[key].as_f64().unwrap();
        format!("{number:.0}").parse().unwrap()
    }

    /// Of the second stage, which doubles what the settings say.
    fn size(&self) -> (u32, u32) {
        (2 * self.number("width"), 2 * self.number("height"))
    }

    fn prompt(&self) -> &str {
        self.settings["prompt"].as_str().unwrap()
    }

    /// Flags of a supervisor that serves a checkpoint in the reference's sizes.
    fn flags(&self, checkpoint: &Path) -> Vec<String> {
        let (width, height) = self.size();
        vec![
            format!("--model={}", checkpoint.display()),
            format!("--worker-bin={}", worker_bin().display()),
            "--device=cpu".to_owned(),
            format!("--default_request.sampling.width={width}"),
            format!("--default_request.sampling.height={height}"),
            format!(
                "--default_request.sampling.num_frames={}",
                self.number("num_frames")
            ),
            format!("--default_request.sampling.fps={}", self.number("fps")),
            "--default_request.sampling.num_inference_steps=3".to_owned(),
            "--streaming.pool.keep_up=false".to_owned(),
            "--streaming.generation_segment_cap=1000".to_owned(),
        ]
    }

    fn start(&self, more: &[&str]) -> Server {
        self.start_with(&self.checkpoint(), more)
    }

    fn start_with(&self, checkpoint: &Path, more: &[&str]) -> Server {
        let flags = self.flags(checkpoint);
        let flags: Vec<&str> = flags
            .iter()
            .map(String::as_str)
            // A client that goes away leaves its GPU at once.
            .chain(["--streaming.hold_seconds=0"])
            .chain(more.iter().copied())
            .collect();
        Server::start_exactly(&flags)
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The worker with the engine, which `make` puts into a folder of its own: the other tests start hundreds of workers, and
/// libtorch takes a third of a second to load.
fn worker_bin() -> PathBuf {
    let supervisor = PathBuf::from(env!("CARGO_BIN_EXE_fastvideo-supervisor"));
    let profile = supervisor.parent().unwrap();
    profile.with_file_name("ltx2").join("fastvideo-worker")
}

/// That worker, if it was built.
#[expect(
    clippy::disallowed_methods,
    reason = "tests start the program under test"
)]
fn worker() -> Option<Command> {
    let worker = worker_bin();
    if !worker.exists() {
        eprintln!("skipped: `make test` builds a worker with the engine ltx2");
        return None;
    }
    Some(Command::new(worker))
}

async fn segments(client: &mut Client, prompts: &[&str]) -> Vec<Segment> {
    let mut segments = Vec::new();
    for prompt in prompts {
        segments.push(client.segment(prompt).await);
    }
    segments
}

#[tokio::test]
async fn ltx2_serves_a_prompt_as_video_with_sound_and_continues_it() {
    if worker().is_none() {
        return;
    }
    let reference = Reference::open();
    let server = reference.start(&[]);
    let mut client = server.active(json!({})).await;
    let segments = segments(&mut client, &[reference.prompt(), "a quiet lake"]).await;
    let gpu = server.gpu(0).await;
    assert_eq!(gpu["current_model_id"], "diffusers");
    assert_eq!(gpu["device"]["name"], "CPU");

    // Two stages; the second segment begins with nine frames of the first, which are not shown again.
    let (long, fps) = (reference.number("num_frames"), reference.number("fps"));
    let frames = [long, long - 9];
    let (width, height) = reference.size();
    let mut start_frame = 0;
    for (segment, frames) in segments.iter().zip(frames) {
        let steps = segment.of("step_complete");
        let stages: Vec<_> = steps
            .iter()
            .map(|step| step["stage"].as_str().unwrap())
            .collect();
        assert_eq!(
            stages,
            ["denoise", "denoise", "denoise", "refine", "refine"]
        );
        let parsed = Parsed::of(segment);
        let video = parsed.samples(VIDEO);
        assert_eq!(video.len(), frames as usize);
        let start = u64::from(start_frame) * parsed.timescale(VIDEO) / u64::from(fps);
        assert_eq!(video[0].time, start);
        assert!(!parsed.samples(SOUND).is_empty());
        let pictures = readback::pictures(&segment.bytes(), width as usize, height as usize);
        assert_eq!(pictures.len(), frames as usize);
        start_frame += frames;
    }
    client.send(json!({"type": "snapshot_state"})).await;
    let state = client.expect("continuation_state_snapshot").await["state"].clone();
    assert_eq!(state["payload"]["segment_index"], 1);
    assert_eq!(
        state["payload"]["video"]["frames_b64"]
            .as_array()
            .unwrap()
            .len(),
        9
    );
}

/// The sound has twice the sample rate, and a state of one generation is none for the other.
#[tokio::test]
async fn ltx2_serves_the_next_generation_and_tells_their_states_apart() {
    if worker().is_none() {
        return;
    }
    let state_of = async |reference: &Reference, checkpoint: &Path, rate: u64| {
        let server = reference.start_with(checkpoint, &[]);
        let mut client = server.active(json!({})).await;
        let segments = segments(&mut client, &[reference.prompt(), "a quiet lake"]).await;
        for segment in &segments {
            let parsed = Parsed::of(segment);
            assert_eq!(parsed.timescale(SOUND), rate);
            assert!(!parsed.samples(VIDEO).is_empty());
        }
        client.send(json!({"type": "snapshot_state"})).await;
        let snapshot = client.expect("continuation_state_snapshot").await;
        snapshot["state"].clone()
    };
    let (older, newer) = (Reference::open(), Reference::v2_3());
    let older_state = state_of(&older, &older.checkpoint(), 24_000).await;
    let newer_state = state_of(&newer, &newer.checkpoint(), 48_000).await;
    for (reference, state, told) in [
        (&older, newer_state, "state's model: expected LTX-2.0"),
        (&newer, older_state, "state's model: expected LTX-2.3"),
    ] {
        let server = reference.start(&[]);
        let opening = json!({ "continuation_state": state });
        let mut client = server.active(opening).await;
        client.prompt("a storm at sea").await;
        let error = client.until_type("error").await;
        assert_eq!(error["code"], "state_incompatible", "{error}");
        assert!(error["message"].as_str().unwrap().contains(told), "{error}");
    }
}

/// By each session for itself, from a segment on, and with the same bytes after a kill.
#[tokio::test]
async fn ltx2_adapters_are_chosen_by_sessions() {
    if worker().is_none() {
        return;
    }
    let reference = Reference::v2_3();
    let file = |name: &str| {
        reference
            .root
            .join(format!("checkpoint/lora/{name}.safetensors"))
    };
    let loras = json!([
        {"name": "style", "path": file("style"), "strength": 0.7, "trigger": "TOON"},
        {"name": "tone", "path": file("tone")},
        {"name": "base", "path": file("scaled"), "fused": true, "strength": 0.5},
    ]);
    let loras = format!("--generator.ltx2.loras={loras}");
    let server = reference.start(&["--gpus=2", &loras, "--streaming.pool.min_backoff_ms=20"]);
    server.ready(2).await;
    let media = async |adapters: Value, second: Value| {
        let mut client = server.open(json!({ "adapters": adapters })).await;
        let start = client.until_type("ltx2_stream_start").await;
        let offered =
            json!([{"name": "style", "strength": 0.7}, {"name": "tone", "strength": 1.0}]);
        assert_eq!(start["features"]["adapters"], offered);
        let mut media = Vec::new();
        for adapters in [Value::Null, second] {
            let mut request = json!({
                "type": "segment_prompt_source",
                "prompt": reference.prompt(),
                "seed": 3,
            });
            if !adapters.is_null() {
                request["adapters"] = adapters;
            }
            client.send(request).await;
            media.push(client.collect_until("ltx2_segment_complete").await.media);
        }
        media
    };
    let none = media(json!([]), Value::Null).await;
    let style = media(json!([{"name": "style"}]), Value::Null).await;
    assert_eq!(
        style,
        media(json!([{"name": "style", "strength": 0.7}]), Value::Null).await
    );
    assert!(style[0] != none[0] && style[1] != none[1]);
    // The first segment has none, the second one both.
    let both = json!([{"name": "tone", "strength": -1.0}, {"name": "style", "strength": 0.2}]);
    let later = media(json!([]), both).await;
    assert!(later[0] == none[0] && later[1] != none[1]);
    assert_eq!(media(Value::Null, Value::Null).await, none);

    // What the server does not offer is refused, and the session goes on.
    let mut client = server.active(json!({})).await;
    for (adapters, told) in [
        (
            json!([{"name": "base"}]),
            "`base` is not one of this server's adapters (style, tone)",
        ),
        (
            json!([{"name": "/etc/x.safetensors"}]),
            "is not one of this server's adapters",
        ),
        (
            json!([{"name": "tone", "strength": 2.5}]),
            "must be from -2 to 2, got 2.5",
        ),
    ] {
        client
            .send(json!({"type": "segment_prompt_source", "prompt": "a fox", "adapters": adapters}))
            .await;
        let error = client.expect("error").await;
        assert_eq!(error["code"], "invalid_message", "{error}");
        assert!(error["message"].as_str().unwrap().contains(told), "{error}");
    }
    client.segment("a fox").await;
    let mut refused = server.open(json!({"adapters": [{"name": "other"}]})).await;
    let error = refused.until_type("error").await;
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("`other` is not one"),
        "{error}"
    );
}

/// Between two segments, into all workers; a session that has chosen one goes on without it when it is gone.
#[tokio::test]
async fn ltx2_adapters_are_loaded_and_unloaded_while_workers_serve() {
    if worker().is_none() {
        return;
    }
    let reference = Reference::v2_3();
    let folder = tempfile::tempdir().unwrap();
    let stored = reference.root.join("checkpoint/lora");
    for name in ["style", "tone"] {
        let file = format!("{name}.safetensors");
        fs::copy(stored.join(&file), folder.path().join(&file)).unwrap();
    }
    fs::write(folder.path().join("bad.safetensors"), "no tensors").unwrap();
    let tone = folder.path().join("tone.safetensors");
    let loras = json!([{"name": "tone", "path": tone}]);
    let server = reference.start(&[
        "--gpus=2",
        &format!("--generator.ltx2.loras={loras}"),
        &format!("--generator.ltx2.loras_folder={}", folder.path().display()),
    ]);
    server.ready(2).await;
    let load = async |body: Value| server.call("POST", "/v1/workers/loras", Some(body)).await;
    let unload = async |path: &str| {
        let path = format!("/v1/workers/loras/{path}");
        let (status, body) = server.call("DELETE", &path, None).await;
        (
            status,
            body["error"]["code"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        )
    };
    let media = async |client: &mut Client, adapters: Value| {
        client
            .send(json!({
                "type": "segment_prompt_source", "prompt": reference.prompt(), "seed": 3, "adapters": adapters,
            }))
            .await;
        client.collect_until("ltx2_segment_complete").await.media
    };
    let mut before = server.active(json!({})).await;
    let plain = media(&mut before, json!([])).await;

    // What is wrong with an order is told, and nothing is loaded.
    let style =
        json!({"name": "style", "file": "style.safetensors", "strength": 0.7, "trigger": "TOON"});
    for (change, status, code, told) in [
        (
            json!({"name": "tone"}),
            409,
            "adapter_exists",
            "`tone` already",
        ),
        (
            json!({"file": "../x"}),
            400,
            "invalid_body",
            "`file` must be",
        ),
        (
            json!({"file": "none.safetensors"}),
            400,
            "invalid_body",
            "no file",
        ),
        (json!({"strength": 3}), 400, "invalid_body", "got 3"),
        (
            json!({"scale": 3}),
            400,
            "invalid_body",
            "unknown field `scale`",
        ),
        (
            json!({"file": "bad.safetensors"}),
            422,
            "adapter_refused",
            "bad.safetensors",
        ),
    ] {
        let mut order = style.clone();
        merge(&mut order, change);
        let (given, body) = load(order).await;
        assert_eq!(
            (given, &body["error"]["code"]),
            (status, &json!(code)),
            "{body}"
        );
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(told), "{message}");
    }
    let (_, list) = server.get("/v1/workers/loras").await;
    assert_eq!(list["adapters"].as_array().unwrap().len(), 1, "{list}");

    let (status, loaded) = load(style.clone()).await;
    assert_eq!(status, 201, "{loaded}");
    let bytes = loaded["workers"]["1"]["bytes"].as_u64().unwrap();
    assert!(bytes > 0 && loaded["offered"] == true && loaded["configured"] == false);
    assert_eq!(server.gpu(0).await["adapters"]["style"]["bytes"], bytes);
    assert_eq!(load(style.clone()).await.0, 409);

    // A session that was there before can choose it, and so can one that begins.
    let mut after = server.open(json!({"adapters": [{"name": "style"}]})).await;
    let start = after.until_type("ltx2_stream_start").await;
    let offered = json!([{"name": "tone", "strength": 1.0}, {"name": "style", "strength": 0.7}]);
    assert_eq!(start["features"]["adapters"], offered);
    let styled = media(&mut after, Value::Null).await;
    assert!(styled != plain);
    // A restarted worker loads it, too.
    assert_eq!(server.post("/v1/workers/0/restart").await.0, 202);
    assert_eq!(server.post("/v1/workers/1/restart").await.0, 202);
    for gpu in 0..2 {
        let holds = |gpu: &Value| {
            gpu["adapters"]["style"]["state"] == "loaded"
                && gpu["worker_id"] != format!("gpu{gpu}-1")
        };
        server
            .gpu_until(gpu, "a later worker holds it", holds)
            .await;
    }
    before.close(Some(1000)).await;
    let mut again = server.active(json!({})).await;
    assert_eq!(media(&mut again, json!([{"name": "style"}])).await, styled);

    // It stays while sessions have chosen it, unless it is forced away.
    assert_eq!(unload("tone").await, (409, "adapter_configured".to_owned()));
    assert_eq!(unload("other").await, (404, "not_found".to_owned()));
    assert_eq!(unload("style").await, (409, "adapter_in_use".to_owned()));
    assert_eq!(unload("style?force=true").await.0, 204);
    again.prompt(reference.prompt()).await;
    let error = again.until_type("error").await;
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("`style` any more"),
        "{error}"
    );
    again.until_type("ltx2_segment_complete").await;
    for gpu in 0..2 {
        let dropped = |gpu: &Value| gpu["adapters"].get("style").is_none();
        server
            .gpu_until(gpu, "the adapter is dropped", dropped)
            .await;
    }
    // The name is free once no session has that adapter chosen.
    let other = json!({"name": "style", "file": "other.safetensors"});
    let file = folder.path().join("other.safetensors");
    fs::copy(stored.join("tone.safetensors"), &file).unwrap();
    let (status, body) = load(other.clone()).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (409, &json!("adapter_in_use"))
    );
    after.close(Some(1000)).await;
    server.sessions(1).await;
    assert_eq!(load(other).await.0, 201);

    // A worker that cannot load it again goes on without it, and so do the sessions that it serves. One that comes back and
    // names it is not turned away.
    let chosen = json!({"adapters": [{"name": "style"}]});
    let mut session = server.open(chosen.clone()).await;
    let assigned = session.until_type("gpu_assigned").await;
    let gpu = assigned["gpu_id"].as_u64().unwrap();
    session.until_type("ltx2_stream_start").await;
    fs::remove_file(&file).unwrap();
    for gpu in 0..2 {
        let path = format!("/v1/workers/{gpu}/restart");
        assert_eq!(server.post(&path).await.0, 202);
        let failed = |gpu: &Value| gpu["adapters"]["style"]["state"] == "failed";
        server.gpu_until(gpu, "it has failed", failed).await;
    }
    session.prompt(reference.prompt()).await;
    let error = session.until_type("error").await;
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("no `style` any more"), "{gpu}: {message}");
    session.until_type("ltx2_segment_complete").await;
    let (_, list) = server.get("/v1/workers/loras").await;
    let entry = list["adapters"].as_array().unwrap();
    let entry = entry.iter().find(|entry| entry["name"] == "style").unwrap();
    assert_eq!(entry["offered"], false, "{entry}");
    let mut refused = server.open(chosen.clone()).await;
    refused.until_type("error").await;
    drop(session);
    let mut resumed = chosen;
    resumed["resume"] =
        json!({"session_id": assigned["session_id"], "token": assigned["resume_token"]});
    let mut session = server.open(resumed).await;
    session.until_type("ltx2_stream_start").await;
    session.prompt(reference.prompt()).await;
    session.until_type("error").await;
    session.until_type("ltx2_segment_complete").await;
}

/// The first stage's result, at half the size, of a tiny decoder whose pictures mean nothing.
#[tokio::test]
async fn ltx2_previews_come_between_the_stages_to_those_who_ask() {
    if worker().is_none() {
        return;
    }
    let reference = Reference::open();
    let decoder = format!("--generator.ltx2.preview_decoder={PREVIEW_DECODER}");
    let server = reference.start(&[&decoder, "--generator.ltx2.preview_frames=3"]);
    let prompts = [reference.prompt(), "a quiet lake"];
    let mut made = Vec::new();
    for asks in [false, true] {
        let mut client = server.open(json!({ "preview": asks })).await;
        let start = client.until_type("ltx2_stream_start").await;
        assert_eq!(start["features"]["preview"], true);
        let mut media = Vec::new();
        // Nine frames of 25 are those of the segment before.
        for (prompt, num_frames, frames) in
            [(prompts[0], 25, [7, 15, 24]), (prompts[1], 16, [4, 9, 15])]
        {
            let (segment, previews) = previews::segment(&mut client, prompt).await;
            media.push(segment.media);
            let shown: Vec<_> = previews.iter().map(|preview| &preview["frame"]).collect();
            if !asks {
                assert!(shown.is_empty());
                continue;
            }
            assert_eq!(shown, frames);
            for preview in &previews {
                assert_eq!(preview["num_frames"], num_frames);
                let picture = previews::picture(preview);
                let (width, height) = (reference.number("width"), reference.number("height"));
                assert_eq!(picture.dimensions(), (width, height));
            }
        }
        made.push(media);
    }
    assert!(made[0] == made[1], "previews have changed the media");
}

/// A decoder of another kind is told with its file, and no worker is tried again; `check` tells it, too.
#[tokio::test]
async fn ltx2_preview_decoders_that_do_not_fit_are_told_in_status() {
    if worker().is_none() {
        return;
    }
    let reference = Reference::open();
    let folder = tempfile::tempdir().unwrap();
    let short = folder.path().join("short.safetensors");
    fs::write(&short, &fs::read(PREVIEW_DECODER).unwrap()[..100_000]).unwrap();
    let none = folder.path().join("none.safetensors");
    for (file, told) in [
        (Path::new("taeltx_2.pth"), "convert it to safetensors"),
        (&short, "short.safetensors is truncated or damaged"),
        (&none, "none.safetensors: No such file"),
    ] {
        let decoder = format!("--generator.ltx2.preview_decoder={}", file.display());
        let server = reference.start(&[&decoder]);
        let quarantined = |gpu: &Value| gpu["state"] == "quarantined";
        let gpu = server
            .gpu_until(0, "the worker is quarantined", quarantined)
            .await;
        let error = gpu["warmup_error"].as_str().unwrap();
        assert!(error.contains(told), "{error}");
        assert_eq!(gpu["last_exit"]["permanent"], true);
    }
    let decoder = format!("--generator.ltx2.preview_decoder={}", none.display());
    let flags = reference.flags(&reference.checkpoint());
    let mut args = vec!["check", "--port=0", &decoder];
    args.extend(flags.iter().map(String::as_str));
    let (code, stdout, stderr) = run(&args).await;
    assert_eq!(code, Some(1));
    let found = stdout + &stderr;
    assert!(found.contains("none.safetensors: No such file"), "{found}");
}

/// An adapter that cannot be applied is told with its file, and no worker is tried again.
#[tokio::test]
async fn ltx2_adapters_that_do_not_fit_are_told_in_status() {
    if worker().is_none() {
        return;
    }
    let (older, newer) = (Reference::open(), Reference::v2_3());
    let tone = newer.root.join("checkpoint/lora/tone.safetensors");
    for fused in [false, true] {
        let loras = json!([{"name": "tone", "path": tone, "fused": fused}]);
        let server = older.start(&[&format!("--generator.ltx2.loras={loras}")]);
        let quarantined = |gpu: &Value| gpu["state"] == "quarantined";
        let gpu = server
            .gpu_until(0, "the worker is quarantined", quarantined)
            .await;
        let told = gpu["warmup_error"].as_str().unwrap();
        assert!(
            told.contains("tone.safetensors: the model has no layer `prompt_adaln.linear`"),
            "{told}"
        );
        assert_eq!(gpu["last_exit"]["permanent"], true);
    }
}

#[tokio::test]
async fn ltx2_plays_in_a_browser() {
    if worker().is_none() {
        return;
    }
    let reference = Reference::open();
    let server = reference.start(&[]);
    let page = Browser::open(&server).await;
    page.prompt(reference.prompt()).await;
    page.until_state("segment-0", "done").await;
    page.play_out().await;
    let (width, height) = reference.size();
    let size = page.get("[video.videoWidth, video.videoHeight]").await;
    assert_eq!(size, json!([width, height]));
    let shown = page
        .get("video.getVideoPlaybackQuality().totalVideoFrames")
        .await;
    assert_eq!(shown, reference.number("num_frames"));
    page.has_no_complaints().await;
    drop(page);

    let folder = tempfile::tempdir().unwrap();
    let server = reference.start_with(folder.path(), &[]);
    let page = Browser::open(&server).await;
    page.until_says("#board", "is not a checkpoint of LTX-2.0 or LTX-2.3")
        .await;
    page.until_says("#board", "left alone until an operator restarts it")
        .await;
}

#[tokio::test]
async fn ltx2_segment_continued_on_another_worker_after_a_kill_equals_an_undisturbed_one() {
    if worker().is_none() {
        return;
    }
    for reference in [Reference::open(), Reference::v2_3()] {
        let flags = [
            "--gpus=2",
            "--streaming.pool.min_backoff_ms=20",
            "--streaming.pool.step_snapshot_min_ms=0",
        ];
        let server = reference.start(&flags);
        server.ready(2).await;
        let prompts = [reference.prompt(), "a quiet lake", "a storm at sea"];
        let mut client = server.active(json!({})).await;
        let expected = segments(&mut client, &prompts).await;
        drop(client);
        server.sessions(0).await;

        let mut client = server.open(json!({})).await;
        let assigned = client.until_type("gpu_assigned").await;
        client.until_type("ltx2_stream_start").await;
        let gpu = u32::try_from(assigned["gpu_id"].as_u64().unwrap()).unwrap();
        let first = client.segment(prompts[0]).await;
        let pid = server.worker_pid(gpu).await;
        client.prompt(prompts[1]).await;
        // The second step is said after the snapshot of the first one.
        client.until_type("step_complete").await;
        client.until_type("step_complete").await;
        kill(pid, Signal::SIGKILL).unwrap();
        let second = client.collect_until("ltx2_segment_complete").await;
        assert_eq!(second.only("gpu_assigned")["gpu_id"], 1 - gpu);
        let resumed = metric(&server, "fastvideo_segment_attempts_resumed_total").await;
        assert_eq!(resumed, 1.0);
        let refused = metric(&server, "fastvideo_step_snapshots_refused_total").await;
        assert_eq!(refused, 0.0);
        let third = client.segment(prompts[2]).await;
        for (idx, (segment, expected)) in [first, second, third].iter().zip(&expected).enumerate() {
            assert!(segment.media == expected.media, "segment {idx}");
        }
    }
}

#[test]
fn ltx2_frames_before_encoding_equal_the_reference() {
    let Some(mut worker) = worker() else { return };
    let reference = Reference::open();
    let folder = tempfile::tempdir().unwrap();
    let (video, raw) = (folder.path().join("out.mp4"), folder.path().join("out.rgb"));
    let (width, height) = reference.size();
    let flag = |name: &str, value: u32| format!("--{name}={value}");
    let output = worker
        .arg("generate")
        .args([
            "--device=cpu",
            "--precision=float32",
            "--steps=8",
            "--refine-steps=3",
        ])
        .arg("--model")
        .arg(reference.checkpoint())
        .args(["--prompt", reference.prompt()])
        .args([flag("width", width), flag("height", height)])
        .args(
            ["num_frames", "fps", "seed"]
                .map(|key| flag(&key.replace('_', "-"), reference.number(key))),
        )
        .arg("--raw")
        .arg(&raw)
        .arg("-o")
        .arg(&video)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let golden = fs::read(reference.root.join("golden/generate.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let expected = golden.tensor("stage2.rgb8").unwrap();
    let frames = fs::read(&raw).unwrap();
    assert_eq!(frames.len(), expected.data().len());
    let differences = frames
        .iter()
        .zip(expected.data())
        .map(|(a, b)| a.abs_diff(*b));
    let (mut most, mut different) = (0, 0);
    for difference in differences {
        most = most.max(difference);
        different += usize::from(difference > 0);
    }
    assert!(
        most <= 1 && different * 1000 < frames.len(),
        "{different} values differ, by {most} at most"
    );
    let seen = readback::pictures(&fs::read(&video).unwrap(), width as usize, height as usize);
    assert_eq!(seen.len(), reference.number("num_frames") as usize);
}

#[tokio::test]
async fn ltx2_checkpoints_that_are_wrong_are_told_in_status_and_not_tried_again() {
    if worker().is_none() {
        return;
    }
    let reference = Reference::open();
    // Each damage is made of what the checkpoint has, and returns what must be told.
    let check = async |damage: fn(&Path) -> String| {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&reference.checkpoint(), folder.path());
        let expected = &*damage(folder.path());
        let more = [
            "--generator.ltx2.check_weights=true",
            "--streaming.pool.min_backoff_ms=1",
        ];
        let server = reference.start_with(folder.path(), &more);
        let quarantined = |gpu: &Value| gpu["state"] == "quarantined";
        let gpu = server
            .gpu_until(0, "the worker is quarantined", quarantined)
            .await;
        let told = gpu["warmup_error"].as_str().unwrap();
        assert!(told.contains(expected), "expected `{expected}`: {told}");
        assert_eq!(gpu["restarts"], 1);
        assert_eq!(gpu["last_exit"]["kind"], "boot");
        assert_eq!(gpu["last_exit"]["permanent"], true);
        assert_eq!(server.get("/healthz").await.0, 200);
    };
    check(|root| {
        let shard = tensor_file(&root.join("transformer"));
        let file = fs::File::options().write(true).open(shard).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        "is truncated or damaged".to_owned()
    })
    .await;
    check(|root| {
        fs::remove_dir_all(root.join("vocoder")).unwrap();
        "part `vocoder` is missing".to_owned()
    })
    .await;
    check(|root| {
        let file = tensor_file(&root.join("connectors"));
        let mut bytes = fs::read(&file).unwrap();
        let end = bytes.len();
        // Not a number, whether the last tensor is of bfloat16 or of float32.
        bytes[end - 4..].copy_from_slice(&[0xc0, 0x7f, 0xc0, 0x7f]);
        fs::write(file, bytes).unwrap();
        "no finite numbers".to_owned()
    })
    .await;
    check(|root| {
        let config = root.join("latent_upsampler/config.json");
        edit_json(&config, "mid_channels", |channels| json!(2 * channels));
        "expected shape".to_owned()
    })
    .await;
    check(|root| {
        let config = root.join("transformer/config.json");
        let last = edit_json(&config, "num_layers", |layers| json!(layers - 1)) - 1;
        format!("unexpected tensor `transformer_blocks.{last}.")
    })
    .await;
    check(|root| {
        let config = root.join("text_encoder/config.json");
        let mut json = read_json(&config);
        json["model_type"] = json!("t5");
        fs::write(config, json.to_string()).unwrap();
        "must be `gemma3`".to_owned()
    })
    .await;
    check(|root| {
        // One token more than the language model knows.
        let config = read_json(&root.join("text_encoder/config.json"));
        let text = config.get("text_config").unwrap_or(&config);
        // The default of the configuration's class.
        let known = text["vocab_size"].as_u64().unwrap_or(262_208);
        let file = root.join("tokenizer/tokenizer.json");
        let mut tokenizer = read_json(&file);
        tokenizer["model"]["vocab"]["unheard-of"] = json!(known);
        fs::write(file, tokenizer.to_string()).unwrap();
        "tokenizer does not fit the text encoder".to_owned()
    })
    .await;
}

#[tokio::test]
async fn ltx2_refuses_what_the_model_cannot_do_and_serves_the_next_request() {
    if worker().is_none() {
        return;
    }
    let reference = Reference::open();
    let server = reference.start(&[]);
    let mut client = server.active(json!({})).await;
    let guided =
        json!({"type": "segment_prompt_source", "prompt": "a fox", "num_inference_steps": 9});
    client.send(guided).await;
    let error = client.error().await;
    assert_eq!(error["retryable"], false, "{error}");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("num_inference_steps"),
        "{error}"
    );
    client.segment(reference.prompt()).await;
}

#[tokio::test]
async fn without_its_model_ltx2_says_so_at_once() {
    if worker().is_none() {
        return;
    }
    let reference = Reference::open();
    let server = reference.start_with(Path::new("/nowhere/ltx2"), &[]);
    let quarantined = |gpu: &Value| gpu["state"] == "quarantined";
    let gpu = server
        .gpu_until(0, "the worker is quarantined", quarantined)
        .await;
    let told = gpu["warmup_error"].as_str().unwrap();
    assert!(
        told.contains("`/nowhere/ltx2` is neither a folder, a file nor a repository's id"),
        "{told}"
    );
}

/// After the first segments, in which caches fill up.
const SETTLED: usize = 40;
const SEGMENTS: usize = 200;

#[tokio::test]
#[ignore = "takes minutes: make test-ltx2-memory runs it"]
async fn memory_of_an_ltx2_worker_is_flat_over_200_segments() {
    if worker().is_none() {
        return;
    }
    let reference = Reference::open();
    let server = reference.start(&["--default_request.sampling.num_inference_steps=1"]);
    let mut client = server.active(json!({})).await;
    let mut resident = Vec::new();
    for n in 0..SEGMENTS {
        client
            .segment(&format!("{} {}", reference.prompt(), n % 10))
            .await;
        let gpu = server.gpu(0).await;
        resident.push(gpu["resident_bytes"].as_f64().unwrap());
    }
    // It goes up and down within a segment, and the heartbeat sees it anywhere: the floor is what must not rise.
    let floor = |part: &[f64]| part.iter().copied().fold(f64::INFINITY, f64::min);
    let (early, late) = (
        floor(&resident[SETTLED..2 * SETTLED]),
        floor(&resident[SEGMENTS - SETTLED..]),
    );
    eprintln!(
        "resident: {:.1} MiB early, {:.1} MiB late",
        early / 1048576.0,
        late / 1048576.0
    );
    assert!(
        (late / early - 1.0).abs() < 0.02,
        "{early} then {late} bytes"
    );
}

#[test]
fn ltx2_repository_ids_are_looked_up_in_the_cache() {
    if worker().is_none() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--lab--tiny");
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), "0a1b").unwrap();
    copy_folder(
        &Reference::open().checkpoint(),
        &repository.join("snapshots/0a1b"),
    );
    let inspect = |id: &str| {
        let mut worker = worker().unwrap();
        worker
            .args(["inspect", id])
            .env("HF_HUB_CACHE", cache.path())
            .env("HF_HUB_OFFLINE", "1");
        let output = worker.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let (found, text) = inspect("lab/tiny");
    assert!(
        found && text.contains("all tensors of LTX-2.0 are there"),
        "{text}"
    );
    let (found, text) = inspect("lab/other");
    assert!(!found && text.contains("holds no complete copy"), "{text}");
    fs::remove_file(repository.join("snapshots/0a1b/vae/config.json")).unwrap();
    let (found, text) = inspect("lab/tiny");
    assert!(!found && text.contains("vae/config.json"), "{text}");
}

#[test]
fn ltx2_says_what_to_do_with_a_cache_that_is_not_complete_and_cannot_be_written() {
    if worker().is_none() {
        return;
    }
    // Nobody may write there, not even root.
    let mut worker = worker().unwrap();
    worker
        .args(["inspect", "lab/tiny"])
        .env("HF_HUB_CACHE", "/proc/cache");
    let output = worker.output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!output.status.success());
    for word in [
        "/proc/cache holds no complete copy of `lab/tiny`",
        "never been downloaded",
        "HF_HUB_CACHE",
    ] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[tokio::test]
async fn ltx2_models_are_looked_at_by_check() {
    if worker().is_none() {
        return;
    }
    let reference = Reference::open();
    let look = async |model: &Path| {
        let flags = reference.flags(model);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let (code, stdout, stderr) = run(&[&["check", "--port=0"], &flags[..]].concat()).await;
        (code, stdout + &stderr)
    };
    let (code, found) = look(&reference.checkpoint()).await;
    assert_eq!(code, Some(0), "{found}");
    assert!(found.contains("# ok: engine ltx2: "), "{found}");
    let (code, found) = look(Path::new("/nowhere/ltx2")).await;
    assert_eq!(code, Some(1), "{found}");
    assert!(
        found.contains("# failed: engine ltx2: `/nowhere/ltx2` is neither a folder"),
        "{found}"
    );
}

/// Changes a number of a configuration, and returns what it was.
fn edit_json(path: &Path, key: &str, edit: fn(u64) -> Value) -> u64 {
    let mut json = read_json(path);
    let before = json[key].as_u64().unwrap();
    json[key] = edit(before);
    fs::write(path, json.to_string()).unwrap();
    before
}

/// The last of a part's files of tensors.
fn tensor_file(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_tensors = |path: &PathBuf| path.extension().is_some_and(|end| end == "safetensors");
    files.filter(is_tensors).max().unwrap()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
