//! The main job, once through.

use serde_json::json;

use crate::harness::Server;

#[tokio::test]
async fn two_prompts_become_two_segments_that_continue() {
    let server = Server::start(&["--gpus", "1"]);
    let mut client = server.open(json!({"client_id": "smoke"})).await;
    client.expect("queue_status").await;
    client.until_type("gpu_assigned").await;
    let start = client.expect("ltx2_stream_start").await;
    assert_eq!(
        (&start["width"], &start["num_frames"]),
        (&json!(128), &json!(12))
    );
    for idx in 0..2 {
        let segment = client.segment("a red fox in the snow").await;
        let types: Vec<_> = segment
            .texts
            .iter()
            .map(|m| m["type"].as_str().unwrap())
            .collect();
        let steps = ["step_complete"; 4];
        let mut expected = vec!["ltx2_segment_start"];
        expected.extend(steps);
        expected.extend([
            "media_init",
            "media_segment_complete",
            "ltx2_segment_complete",
        ]);
        assert_eq!(types, expected);
        assert_eq!(segment.only("ltx2_segment_start")["segment_idx"], idx);
        let complete = segment.only("media_segment_complete");
        assert_eq!(complete["chunks"], segment.media.len() - 1);
        assert_eq!(complete["pts_base_ms"], idx as f64 * 500.0);
        assert_eq!(&segment.media[0][4..8], b"ftyp");
        assert_eq!(&segment.media[1][4..8], b"moof");
    }
    client.send(json!({"type": "leave"})).await;
    client.expect("ltx2_stream_complete").await;
    assert_eq!(client.closed().await, Some(1000));
}
