//! Stores that are opened by their URLs.

use std::time::Duration;

use tokio::task::JoinSet;

use super::backends::LIMITS;
use super::world::{CONFIG, any, at, begin, same, small};
use crate::store::SessionStore;
use crate::store::ids::{BlobId, BlobKey};
use crate::store::open::{self, OpenError, StoreLocation};

fn config(records: &str, blobs: Option<&str>) -> open::Config {
    open::Config {
        location: StoreLocation::parse(records, blobs, LIMITS).unwrap(),
        wait: Duration::ZERO,
        sessions: CONFIG,
    }
}

#[tokio::test]
async fn a_folder_is_mended_at_the_start_and_belongs_to_one() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let store = SessionStore::open(config(&url, None)).await.unwrap();
    let (session, token, lease) = begin(&store).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    let busy = SessionStore::open(config(&url, None)).await;
    assert!(matches!(busy, Err(OpenError::File(_))), "{busy:?}");
    let elsewhere = tempfile::tempdir().unwrap();
    let other = format!("file://{}", elsewhere.path().display());
    let blobs = format!("{url}/blobs");
    let busy = SessionStore::open(config(&other, Some(&blobs))).await;
    assert!(matches!(busy, Err(OpenError::InUse(_))), "{busy:?}");
    drop((lease, store));

    // What a crash leaves.
    let blobs = folder.path().join("blobs");
    let name = std::fs::read_dir(&blobs)
        .unwrap()
        .map(|entry| entry.unwrap());
    let name = name.filter(|entry| entry.file_type().unwrap().is_dir());
    let kept = name.map(|entry| entry.path()).next().unwrap();
    let leftover = BlobKey {
        id: BlobId::of(b"leftover"),
        edition: 77,
    };
    std::fs::write(kept.join(leftover.to_string()), b"leftover").unwrap();
    std::fs::write(kept.join("unfinished#1"), b"unfin").unwrap();
    let store = SessionStore::open(config(&url, None)).await.unwrap();
    assert!(store.clean_up().await);
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 1);
    let (_, snapshot) = store.resume(&session, &token, any).await.unwrap();
    assert!(same(&snapshot.state, &small(1)));
}

#[tokio::test]
async fn a_place_that_cannot_be_used_is_a_clear_error_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), b"").unwrap();
    let folder_url = format!("file://{}", folder.path().display());
    // It closes every connection.
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = port.local_addr().unwrap();
    let mut closing = JoinSet::new();
    closing.spawn(async move { while port.accept().await.is_ok() {} });
    let in_file = format!("{folder_url}/file/x");
    let refused = async |records: &str, blobs: Option<&str>, expected: &str| {
        let opened = SessionStore::open(config(records, blobs)).await;
        let error = opened.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    for scheme in ["redis", "rediss"] {
        let url = format!("{scheme}://user:hunter2@{address}");
        let expected = format!("Redis at {address} cannot be used: ");
        refused(&url, Some(&folder_url), &expected).await;
    }
    refused(&in_file, None, "file/x cannot be used: Not a directory").await;
    refused("memory:", Some(&in_file), "Not a directory").await;
}

#[tokio::test]
async fn blobs_on_disk_of_sessions_in_memory_go_with_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    std::fs::create_dir(folder.path().join("somebody else's")).unwrap();
    let open = || SessionStore::open(config("memory:", Some(&url)));
    let store = open().await.unwrap();
    let (_, _, lease) = begin(&store).await;
    lease.writer().store(at(1), small(1)).await.unwrap();
    assert!(matches!(open().await, Err(OpenError::InUse(_))));
    drop((lease, store));
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files(), 3);
    let _store = open().await.unwrap();
    // The lock, and what is none of its business.
    let mut names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names[..2],
        [".lock", "memory-"].map(|n| names.iter().find(|m| m.starts_with(n)).unwrap().clone())
    );
    assert_eq!(names[2], "somebody else's");
}
