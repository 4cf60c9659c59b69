//! The records of video jobs: create, list, take, replace, remove; and the claims of idempotency keys.
//!
//! The video library calls this. A job that runs is written through its [`VideoLease`]. What a tenant sees is up to the
//! caller: every operation names the tenant.

use fastvideo_proto::ids::VideoId;
use fastvideo_proto::state::StateHeader;
use fastvideo_proto::stored_video::{StoredFile, StoredVideo, VideoClaim};

use super::chunks::Chunks;
use super::error::{DataLoss, StoreError};
use super::film::blob_of;
use super::handle::SessionStore;
use super::ids::{BlobId, RecordKey, Revision, ServerId};
use super::leased_video::{LeasedVideo, VideoChange};
use super::records::{BlobKind, BlobRef, StoredRecord, VideoPage};
use super::saved_session::unreadable;
use super::state::State;
use super::video_lease::VideoLease;
use super::writer::{BlobContent, DraftBlob, RecordDraft, Replaces};
use crate::causes::with_causes;
use crate::tenant::Tenant;

/// A video job as the store had it at one moment.
#[derive(Clone, Debug)]
pub struct VideoRecord {
    pub tenant: Tenant,
    pub id: VideoId,
    pub video: StoredVideo,
    stored: StoredRecord,
}

/// A part of a tenant's video jobs.
#[derive(Clone, Debug)]
pub struct VideoList {
    /// The jobs, in order, without those that this build cannot read.
    pub videos: Vec<VideoRecord>,
    /// Whether more jobs follow.
    pub has_more: bool,
}

/// A video job without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurveyedVideo {
    pub tenant: Tenant,
    pub id: VideoId,
    pub revision: Revision,
    /// The server that runs it.
    pub owner: Option<ServerId>,
}

/// A blob that a job names and its record does not have yet.
#[derive(Clone, Debug)]
pub struct NewBlob {
    id: BlobId,
    content: BlobContent,
}

impl VideoRecord {
    fn read(tenant: &Tenant, id: VideoId, stored: StoredRecord) -> Result<Self, StoreError> {
        let video = StoredVideo::decode(&stored.record.body)
            .map_err(|error| unreadable(&key(tenant, id), error))?;
        let tenant = tenant.clone();
        Ok(Self {
            tenant,
            id,
            video,
            stored,
        })
    }

    fn key(&self) -> RecordKey {
        key(&self.tenant, self.id)
    }

    pub fn revision(&self) -> Revision {
        self.stored.revision
    }

    /// Returns the server that runs the job.
    pub fn owner(&self) -> Option<&ServerId> {
        self.stored.record.owner.as_ref()
    }

    /// Returns the blobs that the job names.
    pub fn blobs(&self) -> &[BlobRef] {
        &self.stored.record.blobs
    }
}

impl NewBlob {
    /// Makes a blob of bytes with that BLAKE3 hash, which is not computed here: readers compare it.
    pub fn bytes(hash: [u8; 32], bytes: Chunks) -> Self {
        Self {
            id: BlobId::from_bytes(hash),
            content: BlobContent::Bytes(bytes),
        }
    }

    /// Makes a blob of a file, and returns how a job names it. Hashing takes about 10 ms for 50 MB.
    pub fn file(bytes: Chunks) -> (StoredFile, Self) {
        let id = BlobId::of_chunks(&bytes);
        let file = StoredFile {
            blob: *id.as_bytes(),
            bytes: bytes.len(),
        };
        let content = BlobContent::Bytes(bytes);
        (file, Self { id, content })
    }

    /// Makes the blob of a state.
    pub fn state(state: &State) -> Self {
        Self {
            id: state.blob_id(),
            content: BlobContent::Bytes(state.blob_bytes().into()),
        }
    }

    /// Makes a blob of one that another record names. It is there for the new record, too, even when that one is removed
    /// meanwhile, unless its bytes are deleted already: then the write fails with [`DataLoss::MissingBlob`].
    pub fn stored(blob: BlobRef) -> Self {
        Self {
            id: blob.key.id,
            content: BlobContent::Stored(blob),
        }
    }
}

impl SessionStore {
    /// Creates a job, which no server runs yet. The blobs that it names are among `blobs`.
    ///
    /// It may be repeated under the same id when the store did not answer: a record that is there already is of an earlier
    /// attempt, and is returned as it is.
    ///
    /// # Errors
    /// Returns an error when the store does not answer in time or is full, and [`DataLoss::MissingBlob`] when a blob of
    /// another record is gone. Except for the last, the record may be there.
    pub async fn create_video(
        &self,
        tenant: &Tenant,
        id: VideoId,
        video: &StoredVideo,
        blobs: &[NewBlob],
    ) -> Result<VideoRecord, StoreError> {
        let key = key(tenant, id);
        let draft = draft(&key, None, video, blobs, &[])?;
        let written = self.write_record(&key, Replaces::Nothing, &draft, self.deadline());
        let stored = match written.await {
            Err(StoreError::Stale) => {
                let stored = self.within(self.0.records.read(&key)).await?;
                stored.ok_or(StoreError::Stale)?
            }
            written => written?,
        };
        VideoRecord::read(tenant, id, stored)
    }

    /// Reads a job; `None` when the tenant has no such job.
    ///
    /// # Errors
    /// Returns an error when the store does not answer, or what it has is damaged.
    pub async fn read_video(
        &self,
        tenant: &Tenant,
        id: VideoId,
    ) -> Result<Option<VideoRecord>, StoreError> {
        match self.within(self.0.records.read(&key(tenant, id))).await? {
            Some(stored) => VideoRecord::read(tenant, id, stored).map(Some),
            None if self.is_restoring() => Err(StoreError::Forgotten),
            None => Ok(None),
        }
    }

    /// Reads a part of a tenant's jobs in the order of their ids.
    ///
    /// # Errors
    /// Returns an error when the store does not answer.
    pub async fn list_videos(
        &self,
        tenant: &Tenant,
        page: VideoPage,
    ) -> Result<VideoList, StoreError> {
        let limit = page.limit;
        let page = VideoPage {
            limit: limit.saturating_add(1),
            ..page
        };
        let listed = self.within(self.0.records.list(tenant, page)).await?;
        let has_more = listed.len() > limit;
        let listed = listed.into_iter().take(limit);
        let videos = listed.filter_map(|(id, stored)| {
            let read = VideoRecord::read(tenant, id, stored);
            if let Err(error) = &read {
                let error = with_causes(error);
                tracing::warn!(error, "video job left out of a list");
            }
            read.ok()
        });
        Ok(VideoList {
            videos: videos.collect(),
            has_more,
        })
    }

    /// Returns all jobs of all tenants, without their bodies.
    ///
    /// # Errors
    /// Returns an error when the store does not answer.
    pub async fn survey_videos(&self) -> Result<Vec<SurveyedVideo>, StoreError> {
        let survey = self.within(self.0.records.survey()).await?;
        let videos = survey.records.into_iter().filter_map(|record| {
            let RecordKey::Video { tenant, id } = record.key else {
                return None;
            };
            Some(SurveyedVideo {
                tenant,
                id,
                revision: record.revision,
                owner: record.owner,
            })
        });
        Ok(videos.collect())
    }

    /// Takes the lease of a job in the same step as its next version is written, see [`VideoLease::write`]. No server may
    /// run the job, except that the record may name this one: it has given the lease back a moment ago, or the answer to
    /// this call was lost.
    ///
    /// # Errors
    /// Returns [`StoreError::Stale`] when somebody else was faster or runs the job, and another error when the store does
    /// not answer or is full.
    pub async fn take_video(
        &self,
        record: &VideoRecord,
        video: &StoredVideo,
        new: &[NewBlob],
    ) -> Result<VideoLease, StoreError> {
        let server = &self.0.server;
        if record.owner().is_some_and(|owner| owner != server) {
            return Err(StoreError::Stale);
        }
        let epoch = self.0.records.epoch();
        let owner = Some(server.clone());
        let stored = self.replace_record(record, owner, video, new).await?;
        let leased = LeasedVideo::new(record.id, record.key(), stored, epoch);
        Ok(self.video_lease(leased))
    }

    /// Writes a version of a job that no server runs, see [`VideoLease::write`]. It may be repeated when the store did not
    /// answer.
    ///
    /// # Errors
    /// Returns [`StoreError::Stale`] when somebody else was faster or runs the job, and another error when the store does
    /// not answer or is full.
    pub async fn replace_video(
        &self,
        record: &VideoRecord,
        video: &StoredVideo,
        new: &[NewBlob],
    ) -> Result<VideoRecord, StoreError> {
        if record.owner().is_some() {
            return Err(StoreError::Stale);
        }
        let stored = self.replace_record(record, None, video, new).await?;
        VideoRecord::read(&record.tenant, record.id, stored)
    }

    /// Writes a version of a job in place of another one.
    async fn replace_record(
        &self,
        record: &VideoRecord,
        owner: Option<ServerId>,
        video: &StoredVideo,
        new: &[NewBlob],
    ) -> Result<StoredRecord, StoreError> {
        let key = record.key();
        let draft = draft(&key, owner, video, new, record.blobs())?;
        let deadline = self.deadline();
        let written = self.write_record(&key, Replaces::Record(&record.stored), &draft, deadline);
        match written.await {
            // The answer to an earlier attempt may have been lost.
            Err(StoreError::Stale) => {
                let current = deadline.limit(self.0.records.read(&key)).await?;
                let ours = current.filter(|current| draft.is(current));
                ours.ok_or(StoreError::Stale)
            }
            written => written,
        }
    }

    /// Asks the server that runs a job for its end. Returns the job as it is then; unchanged when it has ended, or no
    /// server runs it. `None` when the tenant has no such job.
    ///
    /// # Errors
    /// Returns an error when the store does not answer, or what it has is damaged.
    pub async fn cancel_video(
        &self,
        tenant: &Tenant,
        id: VideoId,
    ) -> Result<Option<VideoRecord>, StoreError> {
        loop {
            let Some(mut record) = self.read_video(tenant, id).await? else {
                return Ok(None);
            };
            let video = &mut record.video;
            if record.stored.record.owner.is_none() || video.status.is_end() || video.is_cancelled {
                return Ok(Some(record));
            }
            video.is_cancelled = true;
            let (key, revision) = (key(tenant, id), record.stored.revision);
            record.stored.record.body = video.encode();
            let new = &record.stored.record;
            let swapped = self.swap_record(&key, revision, Some(new), self.deadline());
            match swapped.await {
                Ok(revision) => {
                    self.tell_lease(id, VideoChange::Cancelled);
                    record.stored.revision = revision;
                    return Ok(Some(record));
                }
                Err(StoreError::Stale) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes a job, whatever it does, with its blobs in the same step, and then its claim. Returns false when the tenant
    /// has no such job.
    ///
    /// A claim that is left by a failure is removed by the upkeep.
    ///
    /// # Errors
    /// Returns an error when the store does not answer. The job may be gone or not.
    pub async fn remove_video(&self, tenant: &Tenant, id: VideoId) -> Result<bool, StoreError> {
        let key = key(tenant, id);
        let claim = loop {
            let Some(stored) = self.within(self.0.records.read(&key)).await? else {
                return match self.is_restoring() {
                    true => Err(StoreError::Forgotten),
                    false => Ok(false),
                };
            };
            let removed = self.swap_record(&key, stored.revision, None, self.deadline());
            match removed.await {
                Ok(_) => {
                    break StoredVideo::decode(&stored.record.body)
                        .ok()
                        .and_then(|v| v.claim);
                }
                Err(StoreError::Stale) => {}
                Err(error) => return Err(error),
            }
        };
        self.tell_lease(id, VideoChange::Gone);
        if let Some(hash) = claim
            && let Err(error) = self.remove_claim(hash, id).await
        {
            let error = with_causes(&error);
            tracing::debug!(error, video_id = %id, "the claim of a video that was removed is left");
        }
        Ok(true)
    }

    /// Tells the lease of a job that runs here what was done to its record.
    fn tell_lease(&self, id: VideoId, change: VideoChange) {
        if let Some(leased) = self.0.videos.get(&id) {
            leased.set_change(change);
        }
    }

    /// Claims an idempotency key, by its hash, for a job that may not be there yet. Returns the claim that the key has: this
    /// one, or an earlier one.
    ///
    /// # Errors
    /// Returns an error when the store does not answer or is full, or what it has is damaged.
    pub async fn claim_video_key(
        &self,
        hash: [u8; 32],
        claim: &VideoClaim,
    ) -> Result<VideoClaim, StoreError> {
        let key = RecordKey::VideoClaim(hash);
        let draft = RecordDraft {
            owner: None,
            body: claim.encode(),
            blobs: Vec::new(),
        };
        loop {
            let written = self.write_record(&key, Replaces::Nothing, &draft, self.deadline());
            match written.await {
                Ok(_) => return Ok(claim.clone()),
                Err(StoreError::Stale) => {
                    if let Some((_, claim)) = self.stored_claim(&key).await? {
                        return Ok(claim);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads the claim of an idempotency key; `None` when the key has none.
    ///
    /// # Errors
    /// Returns an error when the store does not answer, or what it has is damaged.
    pub async fn read_claim(&self, hash: [u8; 32]) -> Result<Option<VideoClaim>, StoreError> {
        let claim = self.stored_claim(&RecordKey::VideoClaim(hash)).await?;
        Ok(claim.map(|(_, claim)| claim))
    }

    /// Removes the claim of an idempotency key, unless it is by another job than that.
    ///
    /// # Errors
    /// Returns an error when the store does not answer, or what it has is damaged.
    pub async fn remove_claim(&self, hash: [u8; 32], video: VideoId) -> Result<(), StoreError> {
        let key = RecordKey::VideoClaim(hash);
        let Some((revision, _)) =
            (self.stored_claim(&key).await?).filter(|(_, claim)| claim.video == video)
        else {
            return Ok(());
        };
        let removed = self.swap_record(&key, revision, None, self.deadline());
        match removed.await {
            // A claim never changes: it was removed.
            Ok(_) | Err(StoreError::Stale) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn stored_claim(
        &self,
        key: &RecordKey,
    ) -> Result<Option<(Revision, VideoClaim)>, StoreError> {
        let Some(stored) = self.within(self.0.records.read(key)).await? else {
            return Ok(None);
        };
        let claim = VideoClaim::decode(&stored.record.body);
        let claim = claim.map_err(|error| unreadable(key, error))?;
        Ok(Some((stored.revision, claim)))
    }

    /// Reads the state from which a job's next segment starts; `None` before the first.
    ///
    /// # Errors
    /// Returns [`DataLoss::MissingBlob`] when the job was written or removed meanwhile, and another error when the store
    /// does not answer or what it has is damaged.
    pub async fn state_of(&self, record: &VideoRecord) -> Result<Option<State>, StoreError> {
        match &record.video.state {
            None => Ok(None),
            Some(header) => {
                let key = record.key();
                let state = self.read_state(&key, header, record.blobs()).await?;
                Ok(Some(state))
            }
        }
    }
}

fn key(tenant: &Tenant, id: VideoId) -> RecordKey {
    let tenant = tenant.clone();
    RecordKey::Video { tenant, id }
}

/// Returns a job as a record that replaces one with the blobs `known`.
///
/// # Errors
/// Returns [`DataLoss::MissingBlob`] when the job names a blob that is neither new nor known, and [`DataLoss::State`] when
/// the header of its state is damaged.
pub(super) fn draft(
    key: &RecordKey,
    owner: Option<ServerId>,
    video: &StoredVideo,
    new: &[NewBlob],
    known: &[BlobRef],
) -> Result<RecordDraft, StoreError> {
    let blobs = named_blobs(key, video)?.into_iter().map(|(id, kind)| {
        let new = new.iter().find(|blob| blob.id == id);
        let known = || known.iter().find(|blob| blob.key.id == id);
        let content = new.map(|blob| blob.content.clone());
        let content = content.or_else(|| known().map(|blob| BlobContent::Stored(*blob)));
        let content = Some(content.ok_or(DataLoss::MissingBlob(id))?);
        Ok(DraftBlob { id, kind, content })
    });
    Ok(RecordDraft {
        owner,
        body: video.encode(),
        blobs: blobs.collect::<Result<_, StoreError>>()?,
    })
}

/// Returns the blobs that a job names, each once.
fn named_blobs(
    key: &RecordKey,
    video: &StoredVideo,
) -> Result<Vec<(BlobId, BlobKind)>, StoreError> {
    let mut blobs = Vec::new();
    if let Some(header) = &video.state {
        let header = StateHeader::decode(header).map_err(|source| {
            let record = key.clone();
            DataLoss::State { record, source }
        })?;
        blobs.push((BlobId::from_bytes(header.blob_hash), BlobKind::State));
    }
    let film = (video.film.iter()).filter_map(|segment| segment.media.as_ref());
    let files = [video.image, video.tiles, video.thumbnail, video.spritesheet];
    let files = files.into_iter().flatten();
    let files = files.map(|file| BlobId::from_bytes(file.blob));
    for id in film.map(blob_of).chain(files) {
        if blobs.iter().all(|(known, _)| *known != id) {
            blobs.push((id, BlobKind::Media));
        }
    }
    Ok(blobs)
}
