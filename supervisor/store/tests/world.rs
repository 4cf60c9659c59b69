//! A store that several servers share, and states to keep in it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastvideo_link::SharedMemory;
use fastvideo_proto::ids::{SessionId, VideoId};
use fastvideo_proto::job::PromptSource;
use fastvideo_proto::state::{FramesLayout, StateHeader, blob_hash};
use fastvideo_proto::stored::{StoredMedia, StoredSegment};
use fastvideo_proto::stored_video::{PlannedSegment, StoredVideo, StoredVideoRequest, VideoPlan};
use object_store::memory::InMemory;
use tempfile::TempDir;

use super::backends::{BlobsKind, LIMITS, RecordsHome, RecordsKind, blobs};
use crate::store::blobs::BlobStore;
use crate::store::handle::Config;
use crate::store::ids::{BlobId, RecordKey, ServerId};
use crate::store::records::ledger::Limits;
use crate::store::records::memory::MemoryRecords;
use crate::store::records::{RecordWrite, Records};
use crate::store::{
    Chunks, Lease, LeaseWriter, Progress, RecordedSegment, Recording, ResumeToken, SavedSession,
    SessionStore, State, StoreError,
};
use crate::tenant::Tenant;

pub(super) const TTL: Duration = Duration::from_secs(300);
pub(super) const LEASE: Duration = Duration::from_secs(6);
pub(super) const CONFIG: Config = Config {
    resume_ttl: TTL,
    lease: LEASE,
    timeout: Duration::from_secs(20),
    required_for_readiness: false,
    recording: Some(RECORDING),
};

pub(super) const RECORDING: Recording = Recording {
    max_session_bytes: 1 << 20,
    max_bytes: 1 << 20,
    ttl: Duration::from_secs(3600),
};

/// A store that several servers share.
pub(crate) struct World {
    pub(crate) records: Arc<dyn Records>,
    pub(super) blobs: BlobStore,
    pub(super) _home: Option<RecordsHome>,
    pub(super) _folder: TempDir,
}

impl World {
    /// None where there is no S3 to test with.
    pub(super) async fn new(kind: RecordsKind, blobs_kind: BlobsKind) -> Option<Self> {
        let home = RecordsHome::new(kind).await;
        let folder = tempfile::tempdir().unwrap();
        let name = home.records.name().await.unwrap();
        Some(Self {
            records: home.records.clone(),
            blobs: blobs(blobs_kind, folder.path(), &name)?,
            _home: Some(home),
            _folder: folder,
        })
    }

    /// One in memory that is never full.
    pub(crate) fn roomy() -> Self {
        Self::memory(LIMITS)
    }

    pub(super) fn memory(limits: Limits) -> Self {
        Self::with(Arc::new(MemoryRecords::new(limits)))
    }

    pub(super) fn with(records: Arc<dyn Records>) -> Self {
        Self {
            records,
            blobs: BlobStore::new(Arc::new(InMemory::new()), "store"),
            _home: None,
            _folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn server(&self) -> SessionStore {
        self.server_with(RECORDING)
    }

    pub(super) fn server_with(&self, recording: Recording) -> SessionStore {
        let config = Config {
            recording: Some(recording),
            ..CONFIG
        };
        self.configured(config, self.records.clone())
    }

    /// A server with a way of its own to the records.
    pub(crate) fn server_through(&self, records: Arc<dyn Records>) -> SessionStore {
        self.configured(CONFIG, records)
    }

    fn configured(&self, config: Config, records: Arc<dyn Records>) -> SessionStore {
        SessionStore::new(config, "test".to_owned(), records, self.blobs.clone())
    }

    /// Gives a record's body a version that this build does not know.
    pub(super) async fn make_newer(&self, key: &RecordKey) {
        let stored = self.records.read(key).await.unwrap().unwrap();
        let mut newer = stored.record;
        newer.body[4] = 9;
        let server = ServerId::random();
        let write = RecordWrite {
            key,
            expected: Some(stored.revision),
            record: Some(&newer),
            server: &server,
            reservation: None,
        };
        self.records.write(write).await.unwrap();
    }

    /// Deletes all condemned blobs, as upkeep does after a while.
    pub(crate) async fn delete_condemned(&self) {
        for key in self.records.survey().await.unwrap().condemned {
            self.blobs.drop(key).await.unwrap();
            self.records.forget(&[key]).await.unwrap();
        }
    }

    pub(super) async fn blobs(&self) -> usize {
        self.blobs.list().await.unwrap().len()
    }

    pub(crate) async fn is_empty(&self) {
        let survey = self.records.survey().await.unwrap();
        assert_eq!(survey.records, []);
        assert_eq!(survey.condemned, []);
        assert_eq!(survey.blobs, 0);
        assert_eq!(self.blobs().await, 0);
    }
}

impl LeaseWriter {
    /// Commits a segment without media, and writes it.
    pub(super) async fn store(self, progress: Progress, state: State) -> Result<(), StoreError> {
        self.commit(progress, state);
        self.write().await
    }
}

/// A finished segment with media that depend on its index: two messages of 100 bytes, and a thumbnail of 10.
pub(in crate::store) fn segment(segment_idx: u32) -> RecordedSegment {
    let bytes = |n: u32, length| Bytes::from(vec![(segment_idx * 3 + n).to_le_bytes()[0]; length]);
    let content: Chunks = [bytes(0, 100), bytes(1, 100), bytes(2, 10)]
        .into_iter()
        .collect();
    let media = StoredMedia {
        blob: *BlobId::of_chunks(&content).as_bytes(),
        messages: vec![100, 100],
        thumbnail_bytes: 10,
        samples: None,
    };
    let segment = StoredSegment {
        segment_idx,
        attempt: 1,
        request_id: None,
        prompt: "a fox".to_owned(),
        original_prompt: None,
        source: PromptSource::User,
        seed: 1,
        num_inference_steps: 4,
        guidance_scale: 1.0,
        start: Duration::ZERO,
        duration: Duration::from_secs(1),
        generation: Duration::from_secs(1),
        mime: "video/mp4".to_owned(),
        sha256: [0; 32],
        bytes: 200,
        media: Some(media),
    };
    RecordedSegment {
        segment: Arc::new(segment),
        content,
    }
}

/// The key of a video that was created at that time.
pub(super) fn video_key(tenant: &str, unix_ms: u64) -> RecordKey {
    RecordKey::Video {
        tenant: Tenant::new(tenant),
        id: video_id(unix_ms),
    }
}

pub(super) fn video_id(unix_ms: u64) -> VideoId {
    VideoId::after(None, unix_ms, 0)
}

/// A video job of three segments that waits.
pub(super) fn video() -> StoredVideo {
    let segment = PlannedSegment {
        made_frames: 24,
        frames: 24,
    };
    StoredVideo::queued(
        1,
        "synthetic".to_owned(),
        StoredVideoRequest {
            prompt: "a fox".to_owned(),
            negative_prompt: None,
            seed: 1,
            num_inference_steps: 4,
            guidance_scale: 1.0,
            enhance_prompt: false,
        },
        VideoPlan {
            made: (64, 64),
            shown: (64, 64),
            fps: 24,
            segments: vec![segment; 3],
            extended_frames: 0,
        },
    )
}

/// A state whose blob is of that many bytes, a multiple of 300 or 5760, and depends on `n`.
pub(super) fn state(n: u8, bytes: usize) -> State {
    let blob: Vec<u8> = (0..bytes)
        .map(|i| n.wrapping_add(i.to_le_bytes()[0]))
        .collect();
    let width = if bytes.is_multiple_of(5760) {
        1920
    } else {
        100
    };
    let header = StateHeader {
        segment_index: n.into(),
        video_conditioning_frame_idx: 0,
        video_conditioning_strength: 1.0,
        audio_sample_rate: None,
        audio_conditioning_num_frames: 0,
        audio_conditioning_strength: 0.0,
        video_position_offset_sec: 0.0,
        metadata: "{}".to_owned(),
        frames: Some(FramesLayout {
            count: 1,
            height: u32::try_from(bytes / 3).unwrap() / width,
            width,
        }),
        audio_latents: None,
        blob_hash: blob_hash(&blob),
    };
    State::from_worker(header.encode(), SharedMemory::from_bytes(&blob).unwrap()).unwrap()
}

pub(super) fn small(n: u8) -> State {
    state(n, 300)
}

pub(super) fn at(segments: u32) -> Progress {
    Progress {
        segments,
        start_frame: u64::from(segments) * 24,
    }
}

pub(super) fn same(a: &Option<State>, b: &State) -> bool {
    a.as_ref()
        .is_some_and(|a| a.header_bytes() == b.header_bytes() && a.blob()[..] == b.blob()[..])
}

/// A check that takes any session.
#[expect(clippy::unnecessary_wraps, reason = "the check of a resume may refuse")]
pub(super) fn any(_: &SavedSession) -> Result<(), Infallible> {
    Ok(())
}

pub(super) async fn begin(store: &SessionStore) -> (SessionId, ResumeToken, Lease) {
    let (session, token) = (SessionId::random(), ResumeToken::random());
    let lease = store.create(&session, &token, None).await.unwrap();
    (session, token, lease)
}

#[track_caller]
pub(super) fn is_lost(lease: &Lease) -> bool {
    futures_util::FutureExt::now_or_never(lease.lost()).is_some()
}
