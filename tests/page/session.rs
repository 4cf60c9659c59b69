//! What a user does with a session.

use super::*;

/// The engine never comes to the end of its first step.
const ENDLESS: &str = "--generator.synthetic.step_ms=3600000";

#[tokio::test]
async fn place_in_the_queue_is_shown() {
    let server = Server::start(&["--gpus", "1"]);
    let holder = server.active(json!({})).await;
    let mut next = server.open(json!({})).await;
    next.expect("queue_status").await;

    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_says("#queue", "2nd").await;
    page.until_says("#queue", "1 ahead of you, 2 waiting").await;
    page.until_says("#status", "Waiting for a GPU").await;
    page.until_says("#board-brief", "0 of 1 free, 2 sessions waiting")
        .await;
    page.screenshot("queue").await;
    drop(next);
    page.until_says("#queue", "1st").await;
    page.until_says("#queue", "You are next, 1 waiting").await;
    drop(holder);
    page.until_state("segment-0", "done").await;
    assert_eq!(
        page.get("document.querySelector('#queue').hidden").await,
        true
    );
    page.has_no_complaints().await;
}

#[tokio::test]
async fn segment_is_cancelled_while_it_is_denoised() {
    let server = Server::start(&[ENDLESS, "--streaming.warmup.enabled=false"]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "denoising").await;
    page.click("#cancel").await;
    page.until_state("segment-0", "cancelled").await;
    page.until_says("#status", "Ready for a prompt").await;
    assert_eq!(
        page.get("document.querySelector('#cancel').hidden").await,
        true
    );
    page.has_no_complaints().await;
}

#[tokio::test]
async fn preview_is_shown_until_there_is_video() {
    let server = Server::start(&[
        "--generator.synthetic.preview=true",
        "--generator.synthetic.frame_ms=1000",
        "--default_request.sampling.num_frames=3",
        "--streaming.warmup.enabled=false",
    ]);
    let page = Browser::open(&server).await;
    let shown = "document.querySelector('#preview').checkVisibility() && document.querySelector('#preview-picture').naturalWidth";
    for segment in 0..2 {
        page.prompt(FOX).await;
        let width = page.until("the preview is shown", shown).await;
        assert_eq!(width, 128);
        page.screenshot(&format!("preview-{segment}")).await;
        page.until_state(&format!("segment-{segment}"), "done")
            .await;
        let hidden = "document.querySelector('#preview').hidden && !document.querySelector('#preview-picture').src";
        page.until("the preview is gone", hidden).await;
    }
    page.has_no_complaints().await;
}

#[tokio::test]
async fn prompts_that_wait_are_moved_changed_and_removed() {
    let server = Server::start(&[ENDLESS, "--streaming.warmup.enabled=false"]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "denoising").await;
    for prompt in ["one", "two", "three"] {
        page.prompt(prompt).await;
    }
    let until_waiting = async |expected: &[&str]| {
        let list = "[...document.querySelectorAll('#waiting-list .words')].map((node) => node.textContent)";
        let expression = format!(
            "JSON.stringify({list}) === JSON.stringify({})",
            json!(expected)
        );
        let what = format!("{expected:?} wait");
        page.until(&what, &expression).await;
    };
    until_waiting(&["one", "two", "three"]).await;
    page.click("[data-testid=waiting-2] [data-action=up]").await;
    until_waiting(&["one", "three", "two"]).await;
    page.click("[data-testid=waiting-1] [data-action=edit]")
        .await;
    let field = "[data-testid=waiting-1] input";
    page.keys(field, &format!(" foxes{}", browser::ENTER)).await;
    until_waiting(&["one", "three foxes", "two"]).await;
    // The names of the buttons change once the server has accepted the new text.
    page.until(
        "the server has the new text",
        "document.querySelector('[aria-label=\"Remove: three foxes\"]')?.tagName",
    )
    .await;
    page.click("[data-testid=waiting-0] [data-action=remove]")
        .await;
    until_waiting(&["three foxes", "two"]).await;
    // The server makes of it what the page shows.
    for (prompt, waiting) in [("three foxes", &["two"][..]), ("two", &[])] {
        page.click("#cancel").await;
        let runs = format!(
            "fastvideo.segments.some((s) => s.state === 'denoising' && s.prompt === {})",
            json!(prompt)
        );
        page.until(&format!("{prompt} runs"), &runs).await;
        until_waiting(waiting).await;
    }
    page.has_no_complaints().await;
}

#[tokio::test]
async fn segment_is_cancelled_while_it_plays_and_another_takes_its_place() {
    let server = Server::start(PACED);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until("the segment plays", "video.currentTime > 0.3")
        .await;
    page.click("#cancel").await;
    page.until_state("segment-0", "cancelled").await;
    page.prompt(LIGHTHOUSE).await;
    page.until_state("segment-0", "done").await;
    page.play_out().await;
    assert_eq!(page.get("fastvideo.segments[0].prompt").await, LIGHTHOUSE);
    let [from, to] = page.only_range().await;
    assert!(from == 0.0 && (3.0..3.06).contains(&to), "{from} to {to}");
    page.has_no_complaints().await;
}

#[tokio::test]
async fn prompt_is_shown_as_text_and_never_as_markup() {
    const MARKUP: &str = "<img src=x onerror=alert(1)> <b>fox</b>";
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    page.prompt(MARKUP).await;
    page.until_state("segment-0", "done").await;
    page.until_says("[data-testid=segment-0] .text", MARKUP)
        .await;
    page.until_says("#slate-side", MARKUP).await;
    let markup = "document.querySelectorAll('.takes :is(img, .text b), .slate :is(img, span b)')";
    assert_eq!(page.get(&format!("{markup}.length")).await, 0);
    page.has_no_complaints().await;
}

#[tokio::test]
async fn curated_prompts_run_in_a_loop_until_paused() {
    let server = Server::start(&["--generator.synthetic.step_ms=50"]);
    let page = Browser::open(&server).await;
    page.keys("#curated", &format!("{FOX}\n{LIGHTHOUSE}")).await;
    page.click("label:has(#t-loop)").await;
    page.click("#connect").await;
    page.until_state("segment-2", "denoising").await;
    page.click("label:has(#t-pause)").await;
    page.until_says("#status", "Paused").await;
    let prompts = page
        .get("fastvideo.segments.slice(0, 3).map((s) => [s.prompt, s.source])")
        .await;
    let [fox, lighthouse] = [FOX, LIGHTHOUSE].map(|prompt| [prompt, "curated"]);
    assert_eq!(prompts, json!([fox, lighthouse, fox]));
    page.has_no_complaints().await;
}

#[tokio::test]
async fn session_opens_with_an_image() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    // Its name does not tell what it is.
    let image = page.folder().join("violet.jpg");
    image::RgbImage::from_pixel(128, 96, image::Rgb([150, 40, 220]))
        .save_with_format(&image, image::ImageFormat::Png)
        .unwrap();
    page.keys("#image", image.to_str().unwrap()).await;
    page.until(
        "the image is shown",
        "document.querySelector('#image-preview').naturalWidth === 128",
    )
    .await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    page.click("#download").await;
    let shown = readback::pictures(&page.downloaded("mp4").await, 128, 96);
    let middle = &shown[0][3 * (48 * 128 + 64)..][..3];
    let off = [150, 40, 220]
        .iter()
        .zip(middle)
        .map(|(a, b)| b.abs_diff(*a));
    assert!(off.max().unwrap() < 30, "{middle:?}");
    page.has_no_complaints().await;
}

#[tokio::test]
async fn file_that_cannot_be_used_is_refused_when_it_is_chosen() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    let png = |width, height| {
        let mut file = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(width, height)
            .write_to(&mut file, image::ImageFormat::Png)
            .unwrap();
        file.into_inner()
    };
    // Browsers show what they can of a picture that is cut off; of this one there is nothing.
    let broken = [&png(300, 200)[..8], &[7; 500]].concat();
    for (input, name, bytes, expected) in [
        (
            "#image",
            "cat.png",
            b"a cat".to_vec(),
            "not a PNG, JPEG or WebP picture",
        ),
        ("#image", "broken.png", broken, "The picture is damaged"),
        (
            "#image",
            "thin.png",
            png(4, 100),
            "16 times as long as wide",
        ),
        (
            "#state",
            "cat.json",
            b"hello".to_vec(),
            "It is not a saved state",
        ),
    ] {
        let file = page.folder().join(name);
        std::fs::write(&file, bytes).unwrap();
        page.keys(input, file.to_str().unwrap()).await;
        page.until_says("#error", &format!("“{name}” cannot be used."))
            .await;
        page.until_says("#error", expected).await;
    }
    let preview = page.get("document.querySelector('#image-preview').hidden");
    assert_eq!(preview.await, true);
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    page.has_no_complaints().await;
}

#[tokio::test]
async fn field_that_keeps_a_prompt_from_being_sent_is_shown() {
    let server = Server::start(&[]);
    let page = Browser::open(&server).await;
    page.run("document.querySelector('#seed').value = '-1'")
        .await;
    page.prompt(FOX).await;
    page.until(
        "the sampling options are open",
        "document.querySelector('.composer details').open",
    )
    .await;
    assert_eq!(page.get("document.activeElement.id").await, "seed");
    assert_eq!(page.get("fastvideo.phase").await, "idle");
    page.has_no_complaints().await;
}

#[tokio::test]
async fn saved_state_opens_another_session() {
    let server = Server::start(&["--gpus=2"]);
    let page = Browser::open(&server).await;
    page.prompt(FOX).await;
    page.until_state("segment-0", "done").await;
    page.click("#snapshot").await;
    let state = page.downloaded("json").await;
    let kept = page.folder().join("kept.json");
    std::fs::write(&kept, &state).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    assert_eq!(state["kind"], "ltx2.v1");
    let before = page.get("fastvideo.sessionId").await;
    page.click("#leave").await;
    page.until_says("#status", "Session ended").await;

    page.keys("#state", kept.to_str().unwrap()).await;
    page.until_says("#state-note", "after segment 1").await;
    page.prompt(LIGHTHOUSE).await;
    page.until(
        "another session has a segment",
        &format!("fastvideo.sessionId !== {before} && fastvideo.segments[0]?.state === 'done'"),
    )
    .await;
    page.click("#download").await;
    let shown = page.downloaded("mp4").await;

    let mut message = json!({"continuation_state": state});
    merge(&mut message, json!({"client_id": "same state"}));
    let mut client = server.active(message).await;
    let pictures = |file: &[u8]| readback::pictures(file, 128, 96);
    assert!(pictures(&shown) == pictures(&client.segment(LIGHTHOUSE).await.bytes()));
    page.has_no_complaints().await;
}
