//! Prompts that the safety filter blocks.

use super::*;
use crate::prompts;
use crate::provider::{Provider, Reply};
use crate::safety::{self, Classifier, HARMFUL, HARMLESS};

const BOUNDARY: &str = "boundary";

/// The form in which the SDKs send fields: objects as `name[key]`.
fn multipart(fields: &Value) -> String {
    let mut form = String::new();
    let mut add = |name: &str, value: &Value| {
        let value = value.as_str().unwrap();
        form += &format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        );
    };
    for (name, value) in fields.as_object().unwrap() {
        match value {
            Value::Object(inner) => {
                for (key, value) in inner {
                    add(&format!("{name}[{key}]"), value);
                }
            }
            value => add(name, value),
        }
    }
    form + &format!("--{BOUNDARY}--\r\n")
}

/// Sends a request as JSON and as a form.
async fn post_both(server: &Server, path: &str, fields: &Value) -> [Answer; 2] {
    let form = format!("multipart/form-data; boundary={BOUNDARY}");
    let as_json = [("content-type", "application/json")];
    let as_form = [("content-type", &*form)];
    [
        fetch(server, "POST", path, &as_json, fields.to_string().into()).await,
        fetch(server, "POST", path, &as_form, multipart(fields).into()).await,
    ]
}

#[tokio::test]
async fn a_blocked_prompt_makes_no_job_on_any_route() {
    let classifier = Classifier::train();
    let safety = safety::with(&classifier.path);
    let args = [ONE_GPU, &safety.each_ref().map(String::as_str)].concat();
    let server = Server::start(&args);
    let id = create(&server, json!({"prompt": HARMLESS, "num_frames": 12})).await;
    completed(&server, &id).await;
    let remix = format!("/v1/videos/{id}/remix");
    let routes = [
        ("/v1/videos", false),
        ("/v1/videos/sync", false),
        (&*remix, false),
        ("/v1/videos/edits", true),
        ("/v1/videos/extensions", true),
    ];
    for (path, names_source) in routes {
        for field in ["prompt", "negative_prompt"] {
            let mut fields = json!({"prompt": HARMLESS, "seconds": "0.5"});
            fields[field] = HARMFUL.into();
            if names_source {
                fields["video"] = json!({"id": id});
            }
            for answer in post_both(&server, path, &fields).await {
                let body = answer.json();
                assert_eq!(answer.status, 400, "{path} {field}: {body}");
                let error = &body["error"];
                assert_eq!(error["code"], "moderation_blocked", "{path} {field}");
                assert_eq!(error["type"], "invalid_request_error");
                assert_eq!(error["param"], field, "{path}");
            }
        }
    }
    assert_eq!(ids(&list(&server, "").await), [&id]);
    // The other words of these requests are harmless.
    let fields = json!({"prompt": HARMLESS, "negative_prompt": HARMLESS, "seconds": "0.5"});
    for answer in post_both(&server, "/v1/videos", &fields).await {
        assert_eq!(answer.status, 200, "{}", answer.json());
    }
    assert!(!server.log().contains("weapon"), "{}", server.log());
}

#[tokio::test]
async fn a_blocked_request_does_not_use_up_its_key() {
    let classifier = Classifier::train();
    let safety = safety::with(&classifier.path);
    let args = [ONE_GPU, &safety.each_ref().map(String::as_str)].concat();
    let server = Server::start(&args);
    let post = async |prompt: &str| {
        let body = json!({"prompt": prompt, "num_frames": 12}).to_string();
        let headers = [("idempotency-key", "one")];
        fetch(&server, "POST", "/v1/videos", &headers, body.into()).await
    };
    for _ in 0..2 {
        assert_eq!(post(HARMFUL).await.code(), "moderation_blocked");
    }
    let answer = post(HARMLESS).await;
    assert_eq!(
        (answer.status, answer.header("idempotent-replayed")),
        (200, "")
    );
}

#[tokio::test]
async fn a_job_fails_whose_prompt_a_model_makes_unsafe() {
    let classifier = Classifier::train();
    let provider = Provider::always(|| Reply::Say(HARMFUL.to_owned())).await;
    let args = prompts::with(&provider, &[]);
    let args: Vec<_> = (args.into_iter())
        .chain(safety::with(&classifier.path))
        .collect();
    let server = start(&args);
    let request = json!({"prompt": HARMLESS, "num_frames": 12, "enhance_prompt": true});
    let id = create(&server, request).await;
    assert_eq!(failed(&server, &id).await, "moderation_blocked");
    let video = retrieve(&server, &id).await;
    assert_eq!(video["prompt"], HARMLESS);
    assert_eq!(video["segments"]["done"], 0);
    assert!(!video.to_string().contains("weapon"), "{video}");
}
