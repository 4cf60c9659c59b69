//! Tenants and their jobs: none sees another's, and all get their turn.

use super::*;
use crate::auth::{Keys, key};

/// An id that no job has.
const UNKNOWN: &str = "video_00000000000070008000000000000000";

/// Sends a request with a tenant's key.
async fn ask(server: &Server, who: &str, method: &str, path: &str, body: &Value) -> Answer {
    let bearer = format!("Bearer {}", key(who));
    let body = match body {
        Value::Null => Vec::new(),
        body => body.to_string().into_bytes(),
    };
    fetch(server, method, path, &[("authorization", &bearer)], body).await
}

/// Creates a job with a key, unless that is refused.
async fn try_create(server: &Server, who: &str, request: &Value) -> Result<String, Answer> {
    let answer = ask(server, who, "POST", "/v1/videos", request).await;
    match answer.status {
        200 => Ok(answer.json()["id"].as_str().unwrap().to_owned()),
        _ => Err(answer),
    }
}

async fn create_as(server: &Server, who: &str, request: &Value) -> String {
    let created = try_create(server, who, request).await;
    created.unwrap_or_else(|answer| panic!("{}", answer.json()))
}

async fn read(server: &Server, who: &str, id: &str) -> Value {
    let path = format!("/v1/videos/{id}");
    ask(server, who, "GET", &path, &Value::Null).await.json()
}

async fn read_until(server: &Server, who: &str, id: &str, fits: impl Fn(&Value) -> bool) -> Value {
    until("the job is as it should be", async || {
        Some(read(server, who, id).await).filter(&fits)
    })
    .await
}

async fn listed(server: &Server, who: &str) -> Vec<Value> {
    let list = ask(server, who, "GET", "/v1/videos", &Value::Null).await;
    list.json()["data"].as_array().unwrap().clone()
}

/// Every request that names a video.
fn requests(id: &str) -> Vec<(&'static str, String, Value)> {
    let of = |rest: &str| format!("/v1/videos/{id}{rest}");
    let words = json!({"prompt": "a blue whale"});
    let named = json!({"prompt": "a blue whale", "video": {"id": id}});
    vec![
        ("GET", of(""), Value::Null),
        ("GET", of("?wait_seconds=30"), Value::Null),
        ("GET", of("/content"), Value::Null),
        ("GET", of("/content?variant=video"), Value::Null),
        ("GET", of("/content?variant=thumbnail"), Value::Null),
        ("GET", of("/content?variant=spritesheet"), Value::Null),
        ("HEAD", of("/content"), Value::Null),
        ("POST", of("/remix"), words),
        ("POST", "/v1/videos/edits".to_owned(), named.clone()),
        ("POST", "/v1/videos/extensions".to_owned(), named),
        ("POST", of("/cancel"), Value::Null),
        ("DELETE", of(""), Value::Null),
    ]
}

/// What tells two answers apart.
fn shown(answer: &Answer) -> (u16, Vec<(String, Vec<u8>)>, String) {
    let headers = answer
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    let headers = headers.filter(|(name, _)| !matches!(&**name, "x-request-id" | "date"));
    let body = String::from_utf8_lossy(&answer.body);
    (answer.status, headers.collect(), body.into_owned())
}

#[tokio::test]
async fn a_foreign_video_is_as_one_that_was_never_there() {
    let keys = Keys::new();
    let server = keys.serve(&[
        "--streaming.warmup.enabled=false",
        "--generator.synthetic.step_ms=100",
    ]);
    let done = create_as(
        &server,
        "acme",
        &json!({"prompt": "a red fox", "num_frames": 12}),
    )
    .await;
    read_until(&server, "acme", &done, |it| it["status"] == "completed").await;
    let running = create_as(
        &server,
        "acme",
        &json!({"prompt": "a hare", "num_frames": 1200}),
    )
    .await;
    read_until(&server, "acme", &running, |it| {
        it["status"] == "in_progress"
    })
    .await;
    let before = read(&server, "acme", &done).await;
    for id in [&done, &running] {
        for ((method, path, body), (_, nowhere, no_body)) in
            requests(id).iter().zip(requests(UNKNOWN))
        {
            let foreign = ask(&server, "beta", method, path, body).await;
            let unknown = ask(&server, "beta", method, &nowhere, &no_body).await;
            assert_eq!(foreign.status, 404, "{method} {path}");
            assert_eq!(shown(&foreign), shown(&unknown), "{method} {path}");
            if *method != "HEAD" {
                assert_eq!(foreign.code(), "video_not_found", "{method} {path}");
            }
            let refused = ask(&server, "eyes", method, path, body).await;
            assert_eq!(refused.status, 403, "{method} {path}");
        }
        let after = format!("/v1/videos?order=asc&after={id}");
        let list = ask(&server, "beta", "GET", &after, &Value::Null).await;
        assert_eq!(list.json()["data"], json!([]));
    }
    assert_eq!(listed(&server, "beta").await, [] as [Value; 0]);
    // Its tenant has it as it was, under any of its keys.
    assert_eq!(read(&server, "web", &done).await, before);
    assert_eq!(
        read(&server, "web", &running).await["status"],
        "in_progress"
    );
    assert_eq!(ids(&listed(&server, "web").await), [&running, &done]);
    let content = ask(
        &server,
        "web",
        "GET",
        &format!("/v1/videos/{done}/content"),
        &Value::Null,
    )
    .await;
    assert_eq!(
        (content.status, content.body.len()),
        (
            200,
            usize::try_from(before["bytes"].as_u64().unwrap()).unwrap()
        )
    );
    let path = format!("/v1/videos/{running}/cancel");
    assert_eq!(
        ask(&server, "web", "POST", &path, &Value::Null)
            .await
            .status,
        200
    );
    read_until(&server, "acme", &running, |it| {
        it["error"]["code"] == "cancelled"
    })
    .await;
}

#[tokio::test]
async fn an_idempotency_key_is_a_tenants_own() {
    let keys = Keys::new();
    let server = keys.serve(&[]);
    let post = async |who: &str, prompt: &str| {
        let bearer = format!("Bearer {}", key(who));
        let headers = [("authorization", &*bearer), ("idempotency-key", "one")];
        let body = json!({"prompt": prompt, "num_frames": 12}).to_string();
        fetch(&server, "POST", "/v1/videos", &headers, body.into()).await
    };
    let id = |answer: &Answer| answer.json()["id"].as_str().unwrap().to_owned();
    let acmes = post("acme", "a red fox").await;
    let betas = post("beta", "a blue whale").await;
    assert_eq!((acmes.status, betas.status), (200, 200));
    assert_eq!(betas.header("idempotent-replayed"), "");
    assert_ne!(id(&acmes), id(&betas));
    // Another key of the same tenant repeats its request.
    for (who, prompt, first) in [
        ("web", "a red fox", &acmes),
        ("beta", "a blue whale", &betas),
    ] {
        let again = post(who, prompt).await;
        assert_eq!(again.header("idempotent-replayed"), "true", "{who}");
        assert_eq!(id(&again), id(first), "{who}");
    }
    let reused = post("beta", "a red fox").await;
    assert_eq!(
        (reused.status, &*reused.code()),
        (422, "idempotency_key_reused")
    );
}

#[tokio::test]
async fn so_many_jobs_of_a_tenant_wait_and_so_many_of_all() {
    let keys = Keys::new();
    let server = keys.serve(&[
        // The first job waits for a worker, and the others for their turn.
        "--generator.synthetic.load_ms=3600000",
        "--streaming.videos.max_queued=5",
        "--streaming.videos.max_queued_per_tenant=2",
    ]);
    let request = json!({"prompt": "a red fox"});
    let refused = async |who: &str| {
        let answer = try_create(&server, who, &request).await.unwrap_err();
        assert_eq!(
            (answer.status, &*answer.code()),
            (429, "queue_full"),
            "{who}"
        );
        assert_ne!(answer.header("retry-after"), "", "{who}");
        answer.json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    create_as(&server, "acme", &request).await;
    until("the job has its turn", async || {
        let status = ask(&server, "ops", "GET", "/status", &Value::Null)
            .await
            .json();
        (status["videos"]["running"] == 1).then_some(())
    })
    .await;
    let waiting = create_as(&server, "acme", &request).await;
    create_as(&server, "web", &request).await;
    for who in ["acme", "web"] {
        let message = refused(who).await;
        assert!(message.contains("2 videos of your key"), "{message}");
    }
    for _ in 0..2 {
        create_as(&server, "beta", &request).await;
    }
    assert!(refused("beta").await.contains("2 videos of your key"));
    create_as(&server, "ops", &request).await;
    assert!(refused("ops").await.contains("5 videos of the server"));
    let path = format!("/v1/videos/{waiting}");
    assert_eq!(
        ask(&server, "acme", "DELETE", &path, &Value::Null)
            .await
            .status,
        200
    );
    create_as(&server, "web", &request).await;
    refused("acme").await;
}

#[tokio::test]
async fn the_tenant_with_the_fewest_running_jobs_is_next() {
    let keys = Keys::new();
    let server = keys.serve(&[
        "--gpus=2",
        "--streaming.warmup.enabled=false",
        "--generator.synthetic.step_ms=200",
    ]);
    let request = json!({"prompt": "a red fox", "num_frames": 12});
    let mut acmes = Vec::new();
    for _ in 0..4 {
        acmes.push(create_as(&server, "acme", &request).await);
    }
    for id in &acmes[..2] {
        read_until(&server, "acme", id, |it| it["status"] == "in_progress").await;
    }
    let betas = create_as(&server, "beta", &request).await;
    assert_eq!(read(&server, "beta", &betas).await["queue_position"], 0);
    let positions = async || {
        let [third, fourth] = [&acmes[2], &acmes[3]];
        let third = read(&server, "acme", third).await["queue_position"].clone();
        (
            third,
            read(&server, "acme", fourth).await["queue_position"].clone(),
        )
    };
    assert_eq!(positions().await, (json!(1), json!(2)));
    read_until(&server, "beta", &betas, |it| it["status"] == "in_progress").await;
    assert_eq!(read(&server, "acme", &acmes[3]).await["status"], "queued");
    for (who, id) in acmes
        .iter()
        .map(|id| ("acme", id))
        .chain([("beta", &betas)])
    {
        read_until(&server, who, id, |it| it["status"] == "completed").await;
    }
}

#[tokio::test]
async fn tenants_take_turns_on_one_gpu() {
    let keys = Keys::new();
    let server = keys.serve(&[
        "--streaming.warmup.enabled=false",
        "--generator.synthetic.step_ms=100",
    ]);
    let request = json!({"prompt": "a red fox", "num_frames": 12});
    let mut acmes = Vec::new();
    for _ in 0..3 {
        acmes.push(create_as(&server, "acme", &request).await);
    }
    read_until(&server, "acme", &acmes[0], |it| {
        it["status"] == "in_progress"
    })
    .await;
    let betas = create_as(&server, "beta", &request).await;
    // It is told to be next, and is.
    assert_eq!(read(&server, "beta", &betas).await["queue_position"], 0);
    read_until(&server, "beta", &betas, |it| it["status"] != "queued").await;
    assert_eq!(read(&server, "acme", &acmes[1]).await["status"], "queued");
}
