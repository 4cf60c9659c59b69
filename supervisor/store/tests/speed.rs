//! What the stores cost; run with `cargo test --release -p fastvideo-supervisor-core speed -- --ignored --nocapture`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastvideo_proto::ids::SessionId;
use tokio::task::JoinSet;

use super::backends::{BlobsKind, RECORDS, RecordsHome, RecordsKind, blobs};
use super::contract::Writer;
use super::world::state;
use crate::store::handle::Config;
use crate::store::ids::BlobId;
use crate::store::records::{Record, Records};
use crate::store::{Progress, ResumeToken, SessionStore};

/// Nine frames of 1920x1088.
const LARGE: usize = 9 * 1920 * 1088 * 3;
const ROUNDS: u32 = 15;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn large_states() {
    let large = [state(0, LARGE), state(1, LARGE), state(2, LARGE)];
    let hashed = Instant::now();
    for _ in 0..ROUNDS {
        BlobId::of(large[0].blob());
    }
    println!("blake3 of 56 MB: {:?}", hashed.elapsed() / ROUNDS);
    for (records, kind) in [
        (RecordsKind::Memory, BlobsKind::Memory),
        (RecordsKind::File, BlobsKind::Folder),
        (RecordsKind::Redis, BlobsKind::Folder),
        (RecordsKind::Redis, BlobsKind::S3),
    ] {
        let home = RecordsHome::new(records).await;
        let name = home.records.name().await.unwrap();
        let Some(blobs) = blobs(kind, home.folder.path(), &name) else {
            continue;
        };
        let config = Config {
            resume_ttl: Duration::from_secs(300),
            lease: Duration::from_secs(6),
            timeout: Duration::from_secs(60),
            required_for_readiness: false,
            recording: None,
        };
        let server = || {
            SessionStore::new(
                config,
                "test".to_owned(),
                home.records.clone(),
                blobs.clone(),
            )
        };
        let (one, two) = (server(), server());
        let (session, token) = (SessionId::random(), ResumeToken::random());
        let lease = one.create(&session, &token, None).await.unwrap();
        let (mut storing, mut loading) = (Vec::new(), Vec::new());
        for n in 0..ROUNDS {
            let began = Instant::now();
            let progress = Progress {
                segments: n,
                start_frame: 0,
            };
            let state = large[n as usize % large.len()].clone();
            lease.writer().store(progress, state).await.unwrap();
            storing.push(began.elapsed());
            let began = Instant::now();
            two.snapshot(&session).await.unwrap().unwrap();
            loading.push(began.elapsed());
            one.clean_up().await;
        }
        println!(
            "{records:?}+{kind:?}: storing {}, loading {}",
            figures(&mut storing),
            figures(&mut loading)
        );
    }
}

fn figures(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let last = times.len() - 1;
    format!("median {:?}, worst {:?}", times[last / 2], times[last])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn small_commits() {
    const WRITES: u32 = 200;
    for kind in RECORDS {
        for sessions in [1_u32, 64] {
            let home = RecordsHome::new(kind).await;
            let began = Instant::now();
            let mut writers = JoinSet::new();
            for _ in 0..sessions {
                let records: Arc<dyn Records> = home.records.clone();
                writers.spawn(async move {
                    let writer = Writer::new(&*records);
                    let session = SessionId::random().into();
                    let record = Record {
                        owner: Some(writer.server.clone()),
                        blobs: Vec::new(),
                        body: vec![0; 300],
                    };
                    let mut revision = None;
                    for _ in 0..WRITES {
                        let written = writer.write(&session, revision, None, Some(&record));
                        revision = Some(written.await.unwrap().revision);
                    }
                });
            }
            writers.join_all().await;
            let rate = f64::from(sessions * WRITES) / began.elapsed().as_secs_f64();
            println!("{kind:?}, {sessions} sessions: {rate:.0} commits per second");
        }
    }
}
