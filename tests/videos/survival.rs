//! Jobs whose workers and servers die.

use super::*;

const FRAMES: u64 = 36;

/// Steps of 20 ms, so that there is something to interrupt.
const PACE: &[&str] = &[
    "--gpus=1",
    "--streaming.warmup.enabled=false",
    "--default_request.sampling.num_inference_steps=5",
    "--generator.synthetic.step_ms=20",
    "--generator.synthetic.frame_ms=5",
    "--max-attempts=100",
];

fn request() -> Value {
    json!({"prompt": "a red fox", "num_frames": FRAMES, "seed": 7})
}

/// The video of an undisturbed run.
async fn expected() -> Vec<u8> {
    let server = Server::start(PACE);
    let id = create(&server, request()).await;
    completed(&server, &id).await.1
}

/// Arguments of a server that keeps its jobs in a folder.
fn kept_in(folder: &TempDir) -> Vec<String> {
    let path = folder.path().join("store");
    std::fs::create_dir_all(&path).unwrap();
    let sessions = crate::durable::folder("--store", &path);
    let pace = PACE.iter().map(|arg| (*arg).to_owned());
    pace.chain([sessions]).collect()
}

#[tokio::test]
async fn a_worker_that_is_killed_changes_nothing() {
    let expected = expected().await;
    let server = Server::start(&[PACE, WATCHFUL].concat());
    let id = create(&server, request()).await;
    for kills in 1..=3 {
        video_until(&server, &id, "the job goes on", |it| {
            it["progress"].as_u64() >= Some(kills * 20)
        })
        .await;
        kill(server.worker_pid(0).await, Signal::SIGKILL).unwrap();
    }
    assert_eq!(completed(&server, &id).await.1, expected);
}

#[tokio::test]
async fn a_server_that_is_killed_at_any_instant_goes_on_with_its_jobs() {
    let expected = expected().await;
    let folder = TempDir::new().unwrap();
    let args = kept_in(&folder);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut server = Server::start(&args);
    let mut created = Vec::new();
    for _ in 0..3 {
        created.push(create(&server, request()).await);
    }
    let before = retrieve(&server, &created[2]).await;
    for n in 0..12_u32 {
        // Long enough for a segment now and then: five servers in a row that end within one give a job up.
        sleep(Duration::from_millis(u64::from(400 + n * 137 % 500))).await;
        let address = server.address.clone();
        server.kill().await;
        server = Server::start_at(&address, &args);
    }
    for id in &created {
        let (video, content) = completed(&server, id).await;
        assert_eq!(content, expected, "{video}");
    }
    let after = retrieve(&server, &created[2]).await;
    for field in ["id", "created_at", "seed", "num_frames", "prompt"] {
        assert_eq!(before[field], after[field]);
    }
    // What is deleted leaves no blob behind.
    for id in &created {
        server
            .call("DELETE", &format!("/v1/videos/{id}"), None)
            .await;
    }
    until("no blob is left", async || {
        let blobs = blobs(&folder.path().join("store"));
        (blobs == 0).then_some(())
    })
    .await;
}

/// Number of files in the folders below a store's, which has its records itself.
fn blobs(folder: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count += files(&path);
        }
    }
    count
}

fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap();
    let counts = entries.map(|entry| {
        let entry = entry.unwrap();
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        match entry.path() {
            folder if folder.is_dir() => files(&folder),
            // The store's lock.
            _ => usize::from(!is_hidden),
        }
    });
    counts.sum()
}

#[tokio::test]
async fn a_server_that_leaves_keeps_its_jobs_for_the_next_one() {
    let expected = expected().await;
    let folder = TempDir::new().unwrap();
    let args = kept_in(&folder);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut server = Server::start(&args);
    let first = create(&server, request()).await;
    let second = create(&server, request()).await;
    video_until(&server, &first, "the job runs", |it| {
        it["status"] == "in_progress"
    })
    .await;
    server.signal(Signal::SIGTERM);
    assert!(server.exit().await.success());
    let server = Server::start(&args);
    for id in [first, second] {
        assert_eq!(completed(&server, &id).await.1, expected);
    }
}

#[tokio::test]
async fn a_video_whose_time_is_over_is_gone() {
    // A hundredth of an hour is 36 s; this is 1.8 s.
    let server = Server::start(&[ONE_GPU, &["--streaming.videos.retention_hours=0.0005"]].concat());
    let id = create(&server, json!({"prompt": "a red fox", "num_frames": 12})).await;
    ended(&server, &id).await;
    until("the video is gone", async || {
        let (status, _) = server.get(&format!("/v1/videos/{id}")).await;
        (status == 404).then_some(())
    })
    .await;
}
