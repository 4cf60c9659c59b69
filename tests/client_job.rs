//! The `client` subcommand with `--job`: a whole video is made and fetched, whatever happens to the server and the connection.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::Running;
use crate::cuts::Network;
use crate::durable;
use crate::harness::Server;
use crate::tls::{TlsProxy, tls_file};
use crate::videos::{ONE_GPU, completed, create, ended, probe, retrieve};

/// A video of three segments whose making can be interrupted.
const SLOW: &[&str] = &[
    "--gpus=1",
    "--streaming.warmup.enabled=false",
    "--default_request.sampling.num_inference_steps=5",
    "--generator.synthetic.step_ms=100",
];
const ORDER: &[&str] = &["--job", "--prompt=a red fox", "--frames=36", "--seed=7"];

impl Running {
    fn interrupt(&self) {
        let pid = self.child.id().expect("the client runs").cast_signed();
        kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    }
}

/// The order with an output file.
fn to(file: &Path) -> Vec<&str> {
    [ORDER, &["-o", file.to_str().unwrap()]].concat()
}

/// The arguments of a server that keeps its jobs in a folder.
fn kept_in(folder: &TempDir) -> Vec<String> {
    let pace = SLOW.iter().map(|arg| (*arg).to_owned());
    pace.chain([durable::folder("--store", folder.path())])
        .collect()
}

/// The only job of a server.
async fn only_job(server: &Server) -> Value {
    let (_, list) = server.get("/v1/videos").await;
    let jobs = list["data"].as_array().unwrap();
    assert_eq!(jobs.len(), 1, "{list}");
    jobs[0].clone()
}

/// The names of the files of a folder.
fn files(folder: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_video_is_made_followed_and_fetched() {
    let server = Server::start(ONE_GPU);
    let folder = TempDir::new().unwrap();
    let image = folder.path().join("start.png");
    image::RgbImage::new(64, 64).save(&image).unwrap();
    let out = folder.path().join("fox.mp4");
    let args = [
        "--job",
        "--prompt=a red fox",
        "--seconds=1.5",
        "--size=160x96",
        "--fps=16",
        "--seed=5",
        "--steps=3",
        "--guidance-scale=1.5",
        "--negative-prompt=snow",
        "--image",
        image.to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
    ];
    let (code, report, said) = Running::start(&server, &args).end().await;
    assert_eq!(code, Some(0), "{said}");
    let video = only_job(&server).await;
    assert_eq!(report["job"], video);
    for (field, expected) in [
        ("prompt", json!("a red fox")),
        ("negative_prompt", json!("snow")),
        ("seconds", json!("1.5")),
        ("size", json!("160x96")),
        ("fps", json!(16)),
        ("seed", json!(5)),
        ("num_inference_steps", json!(3)),
        ("guidance_scale", json!(1.5)),
    ] {
        assert_eq!(video[field], expected, "{field}");
    }
    let (_, content) = completed(&server, video["id"].as_str().unwrap()).await;
    assert!(std::fs::read(&out).unwrap() == content);
    assert_eq!(report["bytes"], content.len());
    assert_eq!(probe(&out, "v")["nb_read_frames"], "24");
    assert_eq!(report["output"], out.to_str().unwrap());
    assert!(report["e2e_ms"].as_f64().unwrap() > 0.0, "{report}");
    for words in ["completed after", "wrote "] {
        assert!(said.contains(words), "{words} in {said}");
    }

    // The image is part of the request.
    let plain = json!({
        "prompt": "a red fox", "seconds": "1.5", "size": "160x96", "fps": 16, "seed": 5, "num_inference_steps": 3,
        "guidance_scale": 1.5, "negative_prompt": "snow",
    });
    let plain = create(&server, plain).await;
    assert!(completed(&server, &plain).await.1 != content);
}

#[tokio::test]
async fn a_server_that_is_killed_does_not_end_the_client() {
    let (store, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let args = kept_in(&store);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut server = Server::start(&args);
    let out = folder.path().join("out.mp4");
    let mut client = Running::start(&server, &to(&out));
    client.says("segment 2 of 3").await;
    server.kill().await;
    // It is waited for, however long it is away.
    for _ in 0..2 {
        client.says("trying again in").await;
    }
    let server = Server::start_at(&server.address, &args);
    let (code, report, said) = client.end().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(report["reconnects"].as_u64().unwrap() >= 2, "{report}");
    let id = only_job(&server).await["id"].as_str().unwrap().to_owned();
    assert_eq!(report["job"]["id"], *id);
    let request = json!({"prompt": "a red fox", "num_frames": 36, "seed": 7});
    let again = create(&server, request).await;
    assert!(completed(&server, &again).await.1 == std::fs::read(&out).unwrap());
}

#[tokio::test]
async fn a_request_whose_answer_is_lost_is_repeated_and_makes_one_job() {
    let server = Server::start(ONE_GPU);
    // It cuts the first answer, which is longer, after 400 bytes.
    let network = Network::start(&server.address, 1, 401).await;
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out.mp4");
    let url = format!("http://{}", network.address);
    let (code, report, said) = Running::start_at(&url, "", &to(&out)).end().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(report["reconnects"], 1, "{said}");
    let video = only_job(&server).await;
    assert_eq!(report["job"]["id"], video["id"]);
}

#[tokio::test]
async fn a_video_whose_connection_is_cut_is_fetched_to_its_end() {
    let server = Server::start(ONE_GPU);
    let request = json!({"prompt": "a red fox", "num_frames": 48, "seed": 7});
    let id = create(&server, request).await;
    let (_, content) = completed(&server, &id).await;
    let most = content.len() as u64 / 2;
    let network = Network::start(&server.address, 4, most).await;
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out.mp4");
    let url = format!("http://{}", network.address);
    let args = ["--job", "--resume", &id, "-o", out.to_str().unwrap()];
    let (code, report, said) = Running::start_at(&url, "", &args).end().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(report["reconnects"].as_u64().unwrap() >= 1, "{said}");
    assert!(std::fs::read(&out).unwrap() == content);
    assert_eq!(files(&folder), ["out.mp4"]);
}

#[tokio::test]
async fn an_interruption_cancels_the_job() {
    let server = Server::start(SLOW);
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out.mp4");
    let mut client = Running::start(&server, &to(&out));
    client.says("segment 1 of 3").await;
    client.interrupt();
    let (code, report, said) = client.end().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the job is cancelled"), "{said}");
    assert_eq!(report["error"], "interrupted");
    assert_eq!(report["resume"], Value::Null);
    let video = only_job(&server).await;
    let failure = (&video["status"], &video["error"]["code"]);
    assert_eq!(failure, (&json!("failed"), &json!("cancelled")));
    assert!(files(&folder).is_empty(), "{:?}", files(&folder));
}

#[tokio::test]
async fn a_second_interruption_leaves_the_job_to_the_server() {
    let (store, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let args = kept_in(&store);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut server = Server::start(&args);
    let out = folder.path().join("out.mp4");
    let mut client = Running::start(&server, &to(&out));
    client.says("segment 1 of 3").await;
    server.kill().await;
    client.interrupt();
    client.says("interrupted").await;
    client.says("trying again in").await;
    client.interrupt();
    let (code, report, said) = client.end().await;
    assert_eq!(code, Some(1), "{said}");
    let id = report["resume"].as_str().unwrap().to_owned();
    assert!(said.contains(&format!("--job --resume {id}")), "{said}");
    assert!(files(&folder).is_empty(), "{:?}", files(&folder));

    let server = Server::start_at(&server.address, &args);
    let args = ["--job", "--resume", &id, "-o", out.to_str().unwrap()];
    let (code, _, said) = Running::start(&server, &args).end().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(probe(&out, "v")["nb_read_frames"], "36");
}

#[tokio::test]
async fn a_refused_request_names_the_field() {
    let server = Server::start(ONE_GPU);
    for (argument, param) in [
        ("--size=63x64", "size"),
        ("--seconds=1e9", "seconds"),
        ("--fps=61", "fps"),
        ("--prompt= ", "prompt"),
    ] {
        let mut args = vec!["--job", argument];
        if param != "prompt" {
            args.push("--prompt=a red fox");
        }
        let (code, report, said) = Running::start(&server, &args).end().await;
        assert_eq!(code, Some(1), "{argument}: {said}");
        let error = report["error"].as_str().unwrap();
        assert!(
            error.starts_with(&format!("`{param}`: expected ")),
            "{error}"
        );
        let end = format!("(invalid_value, param `{param}`)");
        assert!(error.ends_with(&end), "{error}");
        assert!(said.contains(&format!("error: {error}\n")), "{said}");
        assert!(!said.contains("trying again"), "{said}");
    }
    let (_, list) = server.get("/v1/videos").await;
    assert_eq!(list["data"], json!([]));
}

#[tokio::test]
async fn arguments_that_a_job_has_no_use_for_are_refused() {
    let server = Server::start(ONE_GPU);
    let id = "video_0123456789ab7fffbfffffffffffffff";
    for (args, words) in [
        (
            &["--job", "--prompt=one", "--prompt=two"][..],
            "one video of one prompt, given 2",
        ),
        (&["--job"], "--prompt"),
        (&["--prompt=x", "--seconds=2"], "--job"),
        (&["--job", "--prompt=x", "--keep"], "--keep"),
        (&["--job", "--prompt=x", "--adapter=toon"], "--adapter"),
        (
            &["--job", "--prompt=x", "--seconds=2", "--frames=2"],
            "--frames",
        ),
        (
            &["--job", "--prompt=x", "--no-wait", "-o", "x.mp4"],
            "--no-wait",
        ),
        (&["--job", "--resume", "id:token"], "VIDEO_ID"),
        (&["--job", "--resume", id, "--fps=24"], "asked for already"),
        (
            &["--job", "--resume", id, "--prompt=x"],
            "asked for already",
        ),
    ] {
        let (code, _, said) = Running::start(&server, args).end().await;
        assert_eq!(code, Some(2), "{args:?}: {said}");
        assert!(said.contains(words), "{words} in {said}");
    }
    let args = ["--job", "--resume", id];
    let (code, report, said) = Running::start(&server, &args).end().await;
    assert_eq!(code, Some(1), "{said}");
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("video_not_found"), "{error}");
    assert_eq!(report["resume"], Value::Null);
}

#[tokio::test]
async fn a_failed_job_ends_the_client_with_its_code() {
    let faults = "--generator.synthetic.faults=oom@step2";
    let server = Server::start(&[ONE_GPU, &[faults]].concat());
    let (code, report, said) = Running::start(&server, ORDER).end().await;
    assert_eq!(code, Some(1), "{said}");
    let failure = &report["job"]["error"];
    assert_eq!(failure["code"], "out_of_memory", "{report}");
    let expected = format!(
        "the job failed: {} (out_of_memory)",
        failure["message"].as_str().unwrap()
    );
    assert_eq!(report["error"], expected);
    assert_eq!(report["resume"], Value::Null);
}

#[tokio::test]
async fn a_job_that_is_not_waited_for_is_followed_later() {
    let server = Server::start(SLOW);
    let proxy = TlsProxy::start(&server, "server.pem").await;
    let url = format!("https://127.0.0.1:{}", proxy.port);
    let (ca, other) = (tls_file("ca.pem"), tls_file("server.pem"));
    let (ca, other) = (ca.to_str().unwrap(), other.to_str().unwrap());
    let args = [ORDER, &["--no-wait", "--ca-file", ca]].concat();
    let (code, report, said) = Running::start_at(&url, other, &args).end().await;
    assert_eq!(code, Some(0), "{said}");
    let id = report["resume"].as_str().unwrap().to_owned();
    assert!(said.contains(&format!("--job --resume {id}")), "{said}");
    assert_eq!(retrieve(&server, &id).await["id"], *id);

    // Who gives up leaves the job to the server, too.
    let args = ["--job", "--resume", &id, "--timeout=0.1"];
    let (code, report, said) = Running::start(&server, &args).end().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("not finished within 0.1 s"), "{said}");
    assert_eq!(report["resume"], *id);

    let args = ["--job", "--resume", &id, "--ca-file", ca];
    let (code, report, said) = Running::start_at(&url, other, &args).end().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(report["job"]["status"], "completed");
    // Without an output the video is only made.
    assert_eq!(
        (&report["bytes"], &report["resume"]),
        (&json!(0), &json!(id))
    );
    ended(&server, &id).await;

    let args = [ORDER, &["--no-wait"]].concat();
    let (code, _, said) = Running::start_at(&url, other, &args).end().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("not from a trusted authority"), "{said}");
    assert!(!said.contains("trying again"), "{said}");
}
