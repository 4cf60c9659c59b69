//! Lists of many jobs, of which some go while they are read.

use futures_util::StreamExt;
use futures_util::stream;

use super::*;

const JOBS: usize = 1000;

/// All jobs, page by page.
async fn read_all(server: &Server, order: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    loop {
        let after = all
            .last()
            .map_or(String::new(), |id| format!("&after={id}"));
        let path = format!("/v1/videos?limit=100&order={order}{after}");
        let (status, page) = server.get(&path).await;
        assert_eq!(status, 200, "{page}");
        let videos = page["data"].as_array().unwrap();
        let ids = ids(videos);
        assert_eq!(page["first_id"].as_str(), ids.first().copied());
        assert_eq!(page["last_id"].as_str(), ids.last().copied());
        all.extend(ids.into_iter().map(str::to_owned));
        if page["has_more"] == false {
            return all;
        }
        assert_eq!(videos.len(), 100);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_is_on_one_page_while_others_are_deleted() {
    // The jobs wait: nothing is ever loaded.
    let server = Server::start(&["--gpus=1", "--generator.synthetic.load_ms=3600000"]);
    let server = &server;
    let created = stream::iter(0..JOBS).map(|_| create(server, json!({"prompt": "a red fox"})));
    let mut created: Vec<String> = created.buffer_unordered(8).collect().await;
    created.sort_unstable();
    assert_eq!(read_all(server, "asc").await, created);
    let (doomed, staying): (Vec<_>, Vec<_>) =
        (created.iter().enumerate()).partition(|(n, _)| n % 3 == 0);
    let staying: Vec<&String> = staying.into_iter().map(|(_, id)| id).collect();
    let deleting = stream::iter(doomed).for_each_concurrent(2, |(_, id)| delete(server, id));
    let mut passes = 0;
    let reading = async {
        for order in ["asc", "desc"].into_iter().cycle() {
            let mut all = read_all(server, order).await;
            if order == "desc" {
                all.reverse();
            }
            assert!(
                all.is_sorted_by(|one, next| one < next),
                "each is seen once"
            );
            assert!(
                staying.iter().all(|id| all.binary_search(id).is_ok()),
                "each is seen"
            );
            passes += 1;
        }
    };
    tokio::select! {
        () = deleting => {}
        () = reading => {}
    }
    assert!(passes > 1, "{passes} passes");
    assert!(read_all(server, "asc").await.iter().eq(staying));
}
