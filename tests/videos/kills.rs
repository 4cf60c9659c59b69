//! Servers that are killed at random instants of their jobs, and what clients repeat then.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// The latest instant after its start at which a server is killed.
const LATEST: Duration = Duration::from_millis(900);
/// The latest instant at which it is killed while it takes a job in.
const LATEST_AT_CREATION: Duration = Duration::from_millis(15);
/// Five servers in a row that end within one segment give its job up. The one that has stored the segment before has begun with
/// the next one, and the one after these is left to store it.
const MAX_FRUITLESS: u32 = 2;

/// Creates a job under a key; `None` when the server is killed meanwhile.
async fn create_under(server: &Server, key: &str) -> Option<Answer> {
    let headers = [("idempotency-key", key)];
    let body = request().to_string().into_bytes();
    try_fetch(server, "POST", "/v1/videos", &headers, body).await
}

fn replayed_id(answer: &Answer) -> (String, bool) {
    assert_eq!(answer.status, 200, "{}", answer.json());
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    (id, answer.header("idempotent-replayed") == "true")
}

/// Number of segments that are stored, and of jobs that have not ended.
async fn stored_and_unended(server: &Server) -> (u64, usize) {
    let videos = list(server, "limit=100").await;
    let stored = videos.iter().map(|it| it["segments"]["done"].as_u64());
    let has_ended = |it: &&Value| matches!(it["status"].as_str(), Some("completed" | "failed"));
    let ended = videos.iter().filter(has_ended).count();
    (stored.map(Option::unwrap).sum(), videos.len() - ended)
}

/// The seed of the random instants: `FASTVIDEO_TEST_SEED`, or another one each time.
fn seed() -> u64 {
    let given = std::env::var("FASTVIDEO_TEST_SEED");
    given.map_or_else(|_| rand::random(), |seed| seed.parse().unwrap())
}

#[tokio::test]
async fn a_server_that_is_killed_at_any_instant_goes_on_with_its_jobs() {
    let kills = match std::env::var("FASTVIDEO_TEST_FLEET").is_ok() {
        true => 100,
        false => 12,
    };
    let seed = seed();
    println!("the seed of the instants is {seed}");
    let mut instants = StdRng::seed_from_u64(seed);
    let expected = expected().await;
    let folder = TempDir::new().unwrap();
    let args = kept_in(&folder);
    let mut server = start(&args);
    let first = create(&server, request()).await;
    let before = retrieve(&server, &first).await;
    let mut created = vec![first];
    let (mut stored, mut fruitless, mut while_created) = (0, 0, 0);
    for n in 0..kills {
        if fruitless == MAX_FRUITLESS {
            until("a segment is stored", async || {
                (stored_and_unended(&server).await.0 > stored).then_some(())
            })
            .await;
        }
        let (now_stored, unended) = stored_and_unended(&server).await;
        fruitless = if now_stored > stored {
            0
        } else {
            fruitless + 1
        };
        stored = now_stored;
        let key = format!("job-{n}");
        let (latest, asked) = match unended < 2 {
            true => (LATEST_AT_CREATION, Some(create_under(&server, &key))),
            false => (LATEST, None),
        };
        let is_asked = asked.is_some();
        let killed = async {
            sleep(latest.mul_f64(instants.random())).await;
            server.signal(Signal::SIGKILL);
        };
        let asked = async {
            match asked {
                Some(asked) => asked.await,
                None => None,
            }
        };
        let (answer, ()) = tokio::join!(asked, killed);
        server.exit().await;
        let address = server.address.clone();
        server = start_at(&address, &args);
        if is_asked {
            // What clients do after a failure.
            let again = create_under(&server, &key).await.unwrap();
            let (id, is_replayed) = replayed_id(&again);
            if let Some(answer) = answer {
                assert_eq!((replayed_id(&answer).0, true), (id.clone(), is_replayed));
            }
            while_created += 1;
            created.push(id);
        }
    }
    for id in &created {
        let (video, content) = completed(&server, id).await;
        assert!(content == expected, "{video}");
    }
    println!(
        "{kills} kills, {while_created} of them at a creation: {} jobs, all with the bytes of an undisturbed run",
        created.len()
    );
    let after = retrieve(&server, &created[0]).await;
    for field in ["id", "created_at", "seed", "num_frames", "prompt"] {
        assert_eq!(before[field], after[field]);
    }
    assert_eq!(ids(&list(&server, "limit=100&order=asc").await), created);
    // What is deleted leaves no blob behind.
    for id in &created {
        delete(&server, id).await;
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
async fn a_key_names_the_same_job_after_the_server_was_killed() {
    let folder = TempDir::new().unwrap();
    let args = kept_in(&folder);
    let mut server = start(&args);
    let first = create_under(&server, "one").await.unwrap();
    let (id, is_replayed) = replayed_id(&first);
    assert!(!is_replayed);
    // While the job runs, and when it has ended.
    for is_over in [false, true] {
        if is_over {
            completed(&server, &id).await;
        } else {
            in_progress(&server, &id).await;
        }
        let address = server.address.clone();
        server.kill().await;
        server = start_at(&address, &args);
        let again = create_under(&server, "one").await.unwrap();
        assert_eq!(replayed_id(&again), (id.clone(), true));
        let body = json!({"prompt": "a blue whale"}).to_string();
        let headers = [("idempotency-key", "one")];
        let other = fetch(&server, "POST", "/v1/videos", &headers, body.into()).await;
        let refused = (422, "idempotency_key_reused".to_owned());
        assert_eq!((other.status, other.code()), refused);
    }
    assert_eq!(ids(&list(&server, "").await), [&id]);
    delete(&server, &id).await;
    let address = server.address.clone();
    server.kill().await;
    let server = start_at(&address, &args);
    let again = create_under(&server, "one").await.unwrap();
    let (other, is_replayed) = replayed_id(&again);
    assert_ne!(other, id);
    assert!(!is_replayed);
}
