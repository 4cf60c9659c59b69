//! `check`: it opens what the server would open, and says what it did not try.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use crate::cli::run;
use crate::harness::command;

/// Runs `check` with a configuration in which nothing else is wrong. Returns its exit code and what it found.
async fn check(args: &[&str]) -> (Option<i32>, String) {
    let base = [
        "check",
        "--host=127.0.0.1",
        "--port=0",
        "--engine=synthetic",
    ];
    let (code, stdout, stderr) = run(&[&base, args].concat()).await;
    let found: Vec<&str> = (stdout.lines())
        .filter_map(|line| line.strip_prefix("# "))
        .collect();
    (code, found.join("\n") + &stderr)
}

/// What is wrong must be found, with these words in one line.
async fn fails(args: &[&str], words: &[&str]) {
    let (code, found) = check(args).await;
    assert_eq!(code, Some(1), "{args:?}: {found}");
    let is_told = |line: &str| words.iter().all(|word| line.contains(word));
    let told = found
        .lines()
        .any(|line| line.starts_with("failed: ") && is_told(line));
    assert!(told, "{words:?} in {found}");

    let offline = [args, &["--offline"]].concat();
    let (code, found) = check(&offline).await;
    assert_eq!(code, Some(0), "{args:?}: {found}");
}

#[tokio::test]
async fn a_server_that_could_serve_is_found_so() {
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("log");
    let store = folder.path().join("store");
    let args = [
        format!("--session-log-dir={}", log.display()),
        format!("--store=file://{}", store.display()),
        "--gpus=0,2".to_owned(),
    ];
    let args = args.each_ref().map(String::as_str);
    let (code, found) = check(&args).await;
    assert_eq!(code, Some(0), "{found}");
    for expected in [
        "ok: address 127.0.0.1:0: can be bound",
        "ok: temporary folder: can be made in /",
        "ok: worker program ",
        "ok: engine synthetic: needs no model",
        "ok: encoder libx264: opens with 768x512",
        "ok: GPUs: workers compute on the CPU",
        "not tried: warm-up: ",
    ] {
        assert!(found.contains(expected), "{expected} in {found}");
    }
    assert!(
        found.contains(&format!("session log {}: will be created", log.display())),
        "{found}"
    );
    assert!(
        found.contains(&format!(
            "store {0} with {0}/blobs: will be created",
            store.display()
        )),
        "{found}"
    );
    assert!(found.ends_with("ok; workers on GPU 0, 2"), "{found}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

    std::fs::create_dir(&log).unwrap();
    std::fs::create_dir_all(store.join("blobs")).unwrap();
    let (code, found) = check(&args).await;
    assert_eq!(code, Some(0), "{found}");
    assert!(
        found.contains(&format!("session log {}: can be written", log.display())),
        "{found}"
    );
    assert!(found.contains("blobs: can be opened"), "{found}");
}

#[test]
fn a_temporary_folder_that_cannot_be_written_is_found_well_when_the_server_takes_another() {
    let base = [
        "check",
        "--host=127.0.0.1",
        "--port=0",
        "--engine=synthetic",
    ];
    let output = command()
        .args(base)
        .env_remove("RUNTIME_DIRECTORY")
        .env_remove("XDG_RUNTIME_DIR")
        .env("TMPDIR", "/proc")
        .output()
        .unwrap();
    let found = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{found}");
    let expected = "# ok: temporary folder: can be made in /tmp";
    assert!(found.contains(expected), "{found}");
}

#[tokio::test]
async fn what_the_server_could_not_open_is_found() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("--port={}", taken.local_addr().unwrap().port());
    fails(&[&port], &["address 127.0.0.1:", "in use"]).await;
    fails(&["--host=192.0.2.1"], &["address 192.0.2.1:0"]).await;

    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    fails(&["--session-log-dir", file], &["session log", file]).await;
    fails(
        &["--session-log-dir=/proc/nowhere"],
        &["session log /proc/nowhere"],
    )
    .await;
    fails(&[&format!("--store=file://{file}")], &["store", file]).await;
    fails(&["--store=file:///proc/nowhere"], &["store /proc/nowhere"]).await;
    let blobs = format!("--blobs=file://{}", folder.path().display());
    fails(
        &["--store=redis://127.0.0.1:1", &blobs],
        &["store 127.0.0.1:1", "refused"],
    )
    .await;
    let blobs = format!("{blobs}/new");
    fails(
        &["--store=redis://127.0.0.1:1", &blobs],
        &["store 127.0.0.1:1", "refused"],
    )
    .await;
    assert!(!folder.path().join("new").exists());
    fails(
        &[&format!("--blobs=file://{file}")],
        &["store memory with", file],
    )
    .await;
}

#[tokio::test]
async fn a_missing_classifier_is_found() {
    let args = [
        "--streaming.safety.enabled=true",
        "--streaming.safety.classifier_path=/nowhere/safety.ftz",
    ];
    fails(&args, &["safety filter", "/nowhere/safety.ftz"]).await;
    let required = [&args[..], &["--streaming.safety.required=true"]].concat();
    fails(&required, &["safety filter", "/nowhere/safety.ftz"]).await;
}

#[tokio::test]
async fn every_cause_is_told_once() {
    let folder = TempDir::new().unwrap();
    std::fs::create_dir(folder.path().join("enhance.txt")).unwrap();
    let prompts = format!(
        "--streaming.prompt.system_prompt_dir={}",
        folder.path().display()
    );
    let args = [
        "--streaming.prompt.enabled=true",
        "--streaming.prompt.provider=groq",
        &prompts,
    ];
    let words = ["system prompts", "enhance.txt", "Is a directory"];
    fails(&args, &words).await;
    let (_, found) = check(&args).await;
    assert_eq!(found.matches("Is a directory").count(), 1, "{found}");
}

#[tokio::test]
async fn the_worker_program_is_asked() {
    fails(
        &["--engine=ltx2", "--model=/nowhere/ltx2"],
        &["engine ltx2", "built without"],
    )
    .await;
    fails(
        &["--streaming.encoder.video_codec=h264_nvenc"],
        &["encoder h264_nvenc"],
    )
    .await;
    fails(&["--worker-bin=/bin/true"], &["worker program /bin/true"]).await;
    fails(
        &["--worker-bin=/bin/false"],
        &["worker program /bin/false", "exit status: 1"],
    )
    .await;
}

#[tokio::test]
async fn gpus_that_are_not_there_are_found() {
    let tools = TempDir::new().unwrap();
    let tool = tools.path().join("nvidia-smi");
    let script = "#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-5c89)'\necho 'GPU 1: NVIDIA H100 (UUID: GPU-77aa)'\n";
    std::fs::write(&tool, script).unwrap();
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    let check = |path: &Path, gpus: &str| {
        let output = command()
            .args(["check", "--port=0", "--model=/nowhere/ltx2", "--gpus", gpus])
            .env("PATH", path)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let found = check(tools.path(), "0,GPU-77");
    assert!(found.contains("# ok: GPUs: all are there"), "{found}");
    let found = check(tools.path(), "0,7,GPU-99");
    assert!(
        found.contains("# failed: GPUs: 7, GPU-99 not found"),
        "{found}"
    );
    let found = check(Path::new("/nowhere"), "0,");
    assert!(
        found.contains("# not tried: GPUs: cannot run nvidia-smi"),
        "{found}"
    );
}

#[tokio::test]
async fn a_wrong_configuration_is_status_2_with_and_without_looking() {
    for more in [&[][..], &["--offline"]] {
        let args = [&["check", "--default_request.sampling.width=65"], more].concat();
        let (code, stdout, stderr) = run(&args).await;
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
    }
}
