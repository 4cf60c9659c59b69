//! Workers that die, hang or fail while they make a job.

use super::*;

/// Segments of a long job, each with the fault that its first attempt meets.
const FAULTS: &[&str] = &[
    "exit@step2",
    "abort@frame0",
    "stop@step3",
    "spin@frame5",
    "garbage@frame9",
    "panic@end",
];

#[tokio::test]
async fn a_worker_that_is_stopped_changes_nothing() {
    let expected = expected().await;
    let server = Server::start(&[PACE, WATCHFUL].concat());
    let id = create(&server, request()).await;
    progress(&server, &id, 40).await;
    kill(server.worker_pid(0).await, Signal::SIGSTOP).unwrap();
    assert!(completed(&server, &id).await.1 == expected);
    let gpu = server.gpu(0).await;
    assert_eq!(
        (&gpu["last_exit"]["kind"], &gpu["restarts"]),
        (&json!("stuck"), &json!(1))
    );
}

#[tokio::test]
async fn a_job_that_loses_its_worker_in_every_segment_has_the_same_bytes() {
    let segments = FAULTS.len();
    let request = json!({"prompt": "a red fox", "num_frames": 12 * segments, "seed": 9});
    let faults = FAULTS.iter().enumerate();
    let faults = faults.map(|(n, fault)| format!("{fault},segment={n},max_attempt=1;"));
    let faults = format!(
        "--generator.synthetic.faults={}",
        faults.collect::<String>()
    );
    let server = Server::start(&[PACE, WATCHFUL, &[&faults]].concat());
    let id = create(&server, request.clone()).await;
    let (expected, (video, content)) = tokio::join!(undisturbed(request), completed(&server, &id));
    assert!(content == expected, "{video}");
    assert_eq!(server.gpu(0).await["restarts"], segments);
}

/// Jobs whose prompt names a fault: those fail, and the ones between are made.
async fn next_to(fault: &str, prompt: &str, args: &[&str], code: &str) -> Server {
    let expected = expected().await;
    // A process injects each fault once, and two jobs are to meet it.
    let fault = format!("{fault},prompt={prompt}");
    let faults = format!("--generator.synthetic.faults={fault};{fault}");
    let server = Server::start(&[PACE, WATCHFUL, args, &[&faults]].concat());
    let faulty = json!({"prompt": prompt, "num_frames": 24});
    let first = create(&server, faulty.clone()).await;
    let next = create(&server, request()).await;
    assert_eq!(failed(&server, &first).await, code);
    let message = retrieve(&server, &first).await["error"]["message"].clone();
    assert!(!message.as_str().unwrap().contains('/'), "{message}");
    let none = content(&server, &first).await;
    assert_eq!((none.status, &*none.code()), (404, "video_failed"));
    assert!(completed(&server, &next).await.1 == expected);
    let body = faulty.to_string().into_bytes();
    let sync = fetch(&server, "POST", "/v1/videos/sync", &[], body).await;
    assert_eq!(
        (&*sync.code(), sync.header("x-should-retry")),
        (code, "false")
    );
    server
}

#[tokio::test]
async fn a_job_that_kills_every_worker_is_given_up_and_the_next_one_is_made() {
    let args = ["--gpus=2", "--max-attempts=3"];
    let server = next_to("exit@frame1", "poison", &args, "worker_failed").await;
    let status = server.status().await;
    let gpus = status["gpu_status"].as_object().unwrap().values();
    let restarts = gpus.map(|gpu| gpu["restarts"].as_u64().unwrap());
    // Two jobs, three workers each.
    assert_eq!(restarts.sum::<u64>(), 6);
}

#[tokio::test]
async fn a_job_without_enough_memory_fails_and_its_worker_goes_on() {
    let server = next_to("oom@step2", "a crowd", &[], "out_of_memory").await;
    assert_eq!(server.gpu(0).await["restarts"], 0);
}

#[tokio::test]
async fn a_job_whose_segment_fails_fails_and_its_worker_goes_on() {
    let server = next_to("error@end", "a riddle", &[], "worker_failed").await;
    assert_eq!(server.gpu(0).await["restarts"], 0);
}
