//! One job: what its client sees until its video is there, and after.

use super::*;

#[tokio::test]
async fn a_video_is_made_and_can_be_fetched() {
    let server = Server::start(ONE_GPU);
    let id = create(
        &server,
        json!({"prompt": "a red fox", "seconds": "1.5", "seed": 5}),
    )
    .await;
    let (video, content) = completed(&server, &id).await;
    assert_eq!(video["object"], "video");
    assert_eq!(
        (&video["progress"], &video["phase"]),
        (&json!(100), &json!("done"))
    );
    assert_eq!(
        (&video["seconds"], &video["size"]),
        (&json!("1.5"), &json!("128x96"))
    );
    assert_eq!(video["segments"], json!({"done": 3, "total": 3}));
    assert_eq!(video["has_audio"], true);
    assert_eq!(
        (&video["seed"], &video["num_frames"]),
        (&json!(5), &json!(36))
    );
    assert!(video["completed_at"].as_u64() < video["expires_at"].as_u64());

    let folder = TempDir::new().unwrap();
    let file = folder.path().join("video.mp4");
    std::fs::write(&file, &content).unwrap();
    let picture = probe(&file, "v");
    assert_eq!(picture["nb_read_frames"], "36", "{picture}");
    assert_eq!(
        (&picture["width"], &picture["height"]),
        (&json!(128), &json!(96))
    );
    assert_eq!(picture["start_time"], "0.000000");
    let sound = probe(&file, "a");
    assert_eq!(sound["start_time"], "0.000000");
    let length: f64 = sound["duration"].as_str().unwrap().parse().unwrap();
    let rate: f64 = sound["sample_rate"].as_str().unwrap().parse().unwrap();
    assert!((1.5..1.5 + 1024.0 / rate).contains(&length), "{length}");
    // One file with its index in front, and no fragments.
    let boxes = boxes(&content);
    assert_eq!(boxes, ["ftyp", "moov", "mdat"]);
}

/// The types of the boxes of a file, in order.
fn boxes(mut file: &[u8]) -> Vec<String> {
    let mut types = Vec::new();
    while let Some((head, _)) = file.split_first_chunk::<8>() {
        let size = u32::from_be_bytes(head[..4].try_into().unwrap()) as usize;
        types.push(String::from_utf8_lossy(&head[4..]).into_owned());
        let size = match size {
            1 => u64::from_be_bytes(file[8..16].try_into().unwrap())
                .try_into()
                .unwrap(),
            size => size,
        };
        file = &file[size..];
    }
    types
}

#[tokio::test]
async fn a_part_of_the_content_is_served_and_what_the_client_has_is_not() {
    let server = Server::start(ONE_GPU);
    let id = create(&server, json!({"prompt": "a red fox", "seconds": 1})).await;
    let (_, content) = completed(&server, &id).await;
    let path = format!("/v1/videos/{id}/content");
    let get = async |headers: &[(&str, &str)]| fetch(&server, "GET", &path, headers, vec![]).await;
    let whole = get(&[]).await;
    assert_eq!(whole.header("content-type"), "video/mp4");
    let name = format!("inline; filename=\"{id}.mp4\"");
    assert_eq!(whole.header("content-disposition"), name);
    let part = get(&[("range", "bytes=10-19")]).await;
    assert_eq!((part.status, &part.body[..]), (206, &content[10..20]));
    let past = get(&[("range", "bytes=100000000-")]).await;
    assert_eq!(
        (past.status, past.code()),
        (416, "invalid_range".to_owned())
    );
    let known = get(&[("if-none-match", whole.header("etag"))]).await;
    assert_eq!((known.status, known.body.len()), (304, 0));
    let head = fetch(&server, "HEAD", &path, &[], vec![]).await;
    let length = content.len().to_string();
    assert_eq!(
        (head.status, head.header("content-length")),
        (200, &length[..])
    );
}

#[tokio::test]
async fn a_video_has_a_thumbnail_and_a_sheet() {
    let server = Server::start(ONE_GPU);
    let id = create(&server, json!({"prompt": "a red fox", "num_frames": 30})).await;
    completed(&server, &id).await;
    let get = async |variant: &str| {
        let path = format!("/v1/videos/{id}/content?variant={variant}");
        fetch(&server, "GET", &path, &[], vec![]).await
    };
    let size = |answer: &Answer| {
        let picture = image::load_from_memory(&answer.body).unwrap();
        (picture.width(), picture.height())
    };
    let thumbnail = get("thumbnail").await;
    assert_eq!(thumbnail.header("content-type"), "image/jpeg");
    assert_eq!(size(&thumbnail), (128, 96));
    let sheet = get("spritesheet").await;
    assert_eq!(
        sheet.header("x-spritesheet"),
        "columns=5;rows=5;width=160;height=120;count=25"
    );
    assert_eq!(size(&sheet), (800, 600));
}

#[tokio::test]
async fn the_video_depends_on_the_request_alone() {
    let request = json!({"prompt": "a red fox", "num_frames": 30, "seed": 7});
    let first = Server::start(ONE_GPU);
    let one = create(&first, request.clone()).await;
    let two = create(&first, request.clone()).await;
    let second = Server::start(&["--gpus=2", "--streaming.warmup.enabled=false"]);
    let three = create(&second, request.clone()).await;
    let mut videos = BTreeSet::new();
    for (server, id) in [(&first, one), (&first, two), (&second, three)] {
        videos.insert(completed(server, &id).await.1);
    }
    assert_eq!(videos.len(), 1);
    let other = create(
        &first,
        json!({"prompt": "a red fox", "num_frames": 30, "seed": 8}),
    )
    .await;
    videos.insert(completed(&first, &other).await.1);
    assert_eq!(videos.len(), 2);
}

#[tokio::test]
async fn a_remix_has_other_words_and_an_extension_goes_on() {
    let server = Server::start(ONE_GPU);
    let id = create(
        &server,
        json!({"prompt": "a red fox", "num_frames": 20, "seed": 7}),
    )
    .await;
    let (_, content) = completed(&server, &id).await;
    let path = format!("/v1/videos/{id}/remix");
    let (status, remix) = server
        .call("POST", &path, Some(json!({"prompt": "a blue whale"})))
        .await;
    assert_eq!(status, 200, "{remix}");
    assert_eq!(remix["remixed_from_video_id"], *id);
    assert_eq!(
        (&remix["seed"], &remix["num_frames"]),
        (&json!(7), &json!(20))
    );
    let (_, other) = completed(&server, remix["id"].as_str().unwrap()).await;
    assert_ne!(other, content);

    let more = json!({"prompt": "it runs", "video": {"id": id}, "num_frames": 10});
    let (status, longer) = server
        .call("POST", "/v1/videos/extensions", Some(more))
        .await;
    assert_eq!(status, 200, "{longer}");
    assert_eq!(longer["num_frames"], 30);
    // Its source may go meanwhile.
    assert_eq!(
        server
            .call("DELETE", &format!("/v1/videos/{id}"), None)
            .await
            .0,
        200
    );
    let (longer, film) = completed(&server, longer["id"].as_str().unwrap()).await;
    assert_eq!(longer["segments"], json!({"done": 1, "total": 1}));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("video.mp4");
    std::fs::write(&file, &film).unwrap();
    assert_eq!(probe(&file, "v")["nb_read_frames"], "30");
}

#[tokio::test]
async fn a_request_under_the_same_key_is_the_same_job() {
    let server = Server::start(ONE_GPU);
    let post = async |key: &'static str, prompt: &str| {
        let body = json!({"prompt": prompt, "num_frames": 12}).to_string();
        let headers = [
            ("idempotency-key", key),
            ("content-type", "application/json"),
        ];
        fetch(&server, "POST", "/v1/videos", &headers, body.into_bytes()).await
    };
    let storm: Vec<_> = (0..20).map(|_| post("one", "a red fox")).collect();
    let answers = futures_util::future::join_all(storm).await;
    let ids: BTreeSet<String> = answers
        .iter()
        .map(|it| it.json()["id"].to_string())
        .collect();
    assert_eq!(ids.len(), 1);
    let replayed = answers
        .iter()
        .filter(|it| it.header("idempotent-replayed") == "true");
    assert_eq!(replayed.count(), 19);
    let other = post("one", "a blue whale").await;
    assert_eq!(
        (other.status, other.code()),
        (422, "idempotency_key_reused".to_owned())
    );
    let (_, list) = server.get("/v1/videos").await;
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    // Once the job is gone, so is its key.
    let id = answers[0].json()["id"].as_str().unwrap().to_owned();
    server
        .call("DELETE", &format!("/v1/videos/{id}"), None)
        .await;
    let again = post("one", "a blue whale").await;
    assert_eq!(
        (again.status, again.header("idempotent-replayed")),
        (200, "")
    );
}

#[tokio::test]
async fn a_list_has_pages() {
    let server = Server::start(&["--gpus=1", "--generator.synthetic.load_ms=3600000"]);
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(create(&server, json!({"prompt": format!("fox {n}")})).await);
    }
    let page = async |query: &str| {
        let (status, list) = server.get(&format!("/v1/videos?{query}")).await;
        assert_eq!(status, 200, "{list}");
        let data = list["data"].as_array().unwrap().iter();
        let data: Vec<String> = data
            .map(|it| it["id"].as_str().unwrap().to_owned())
            .collect();
        (data, list["has_more"].as_bool().unwrap())
    };
    let latest: Vec<String> = ids.iter().rev().cloned().collect();
    assert_eq!(page("").await, (latest.clone(), false));
    assert_eq!(page("limit=2").await, (latest[..2].to_vec(), true));
    server
        .call("DELETE", &format!("/v1/videos/{}", latest[1]), None)
        .await;
    let after = format!("limit=2&after={}", latest[1]);
    assert_eq!(page(&after).await, (latest[2..4].to_vec(), true));
    assert_eq!(page("order=asc&limit=1").await, (ids[..1].to_vec(), true));
    let (_, first) = server.get(&format!("/v1/videos/{}", ids[0])).await;
    assert_eq!(first["queue_position"], 0, "{first}");
}

#[tokio::test]
async fn what_is_not_there_is_told_in_the_clients_form() {
    let server = Server::start(ONE_GPU);
    for (method, path, status, code) in [
        ("GET", "/v1/videos/video_1", 404, "video_not_found"),
        (
            "DELETE",
            "/v1/videos/video_00000000000070008000000000000000",
            404,
            "video_not_found",
        ),
        ("GET", "/v1/videos/characters/1", 404, "not_found"),
        ("POST", "/v1/videos/characters", 404, "video_not_found"),
        ("PUT", "/v1/videos", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
    ] {
        let answer = fetch(&server, method, path, &[], vec![]).await;
        assert_eq!(
            (answer.status, answer.code()),
            (status, code.to_owned()),
            "{method} {path}"
        );
        assert!(!answer.header("x-request-id").is_empty());
    }
    let (_, models) = server.get("/v1/models").await;
    assert_eq!(models["data"][0]["id"], "synthetic");
}
