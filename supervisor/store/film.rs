//! The film of a session: what is known of its finished segments, and which of their media are kept.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fastvideo_mp4::SegmentIndex;
use fastvideo_proto::ids::SessionId;
use fastvideo_proto::stored::{Expectation, StoredMedia, StoredSegment};
use fastvideo_proto::stored_video::StoredFile;

use super::chunks::Chunks;
use super::error::{DataLoss, StoreError};
use super::handle::SessionStore;
use super::ids::{BlobId, BlobKey, RecordKey};
use super::records::BlobRef;
use super::saved_session::{decode, tenant_of};

/// The most that a record holds of a film's segments, in bytes. The oldest segments are forgotten first.
const MAX_FACTS_BYTES: usize = 2 << 20;

/// How films are kept.
#[derive(Clone, Copy, Debug)]
pub struct Recording {
    /// The most media of one session, in bytes.
    pub max_session_bytes: u64,
    /// The most media in this server's memory, in bytes: in a store in memory, all; else those that are not stored yet.
    pub max_bytes: u64,
    /// How long a film is kept after its session has ended.
    pub ttl: Duration,
}

/// What is known of a session's finished segments, in order. Cheap to clone for a film of a few hundred segments.
#[derive(Clone, Debug, Default)]
pub struct Film(pub(super) Vec<Arc<StoredSegment>>);

/// A segment that has just been finished, with its media.
#[derive(Clone, Debug)]
pub struct RecordedSegment {
    pub segment: Arc<StoredSegment>,
    /// The blob that `segment.media` names.
    pub content: Chunks,
}

impl Film {
    pub fn segments(&self) -> &[Arc<StoredSegment>] {
        &self.0
    }

    /// Returns a segment.
    pub fn segment(&self, segment_idx: u32) -> Option<&Arc<StoredSegment>> {
        let place = (self.0).binary_search_by_key(&segment_idx, |segment| segment.segment_idx);
        self.0.get(place.ok()?)
    }

    /// Returns the film of the first `segments` segments.
    pub(super) fn until(&self, segments: u32) -> Self {
        let kept = |segment: &&Arc<StoredSegment>| segment.segment_idx < segments;
        Self(self.0.iter().filter(kept).cloned().collect())
    }

    /// Adds a segment, in place of one with the same index and of all that follow it.
    pub(super) fn push(&mut self, segment: Arc<StoredSegment>) {
        let before = |known: &Arc<StoredSegment>| known.segment_idx < segment.segment_idx;
        self.0.truncate(self.0.partition_point(before));
        self.0.push(segment);
        let mut facts: usize = self.0.iter().map(|segment| facts_bytes(segment)).sum();
        let mut forgotten = 0;
        while facts > MAX_FACTS_BYTES && forgotten + 1 < self.0.len() {
            facts -= facts_bytes(&self.0[forgotten]);
            forgotten += 1;
        }
        self.0.drain(..forgotten);
    }

    /// Drops the oldest media until the others fit into the limit. Returns how many of them were of segments that the
    /// client may lack: those from `received` on.
    pub(super) fn fit(&mut self, max_bytes: u64, received: u32) -> u32 {
        let mut lost = 0;
        while self.media_bytes() > max_bytes
            && let Some(dropped) = self.drop_oldest()
        {
            lost += u32::from(dropped >= received);
        }
        lost
    }

    /// Drops the oldest media. Returns their segment; `None` when no media are left.
    pub(super) fn drop_oldest(&mut self) -> Option<u32> {
        let oldest = self.0.iter_mut().find(|segment| segment.media.is_some())?;
        let segment = Arc::make_mut(oldest);
        segment.media = None;
        Some(segment.segment_idx)
    }

    /// Forgets the media of which there is no blob.
    pub(super) fn keep_media(&mut self, is_there: impl Fn(BlobId) -> bool) {
        for segment in &mut self.0 {
            let blob = segment.media.as_ref().map(blob_of);
            if blob.is_some_and(|blob| !is_there(blob)) {
                Arc::make_mut(segment).media = None;
            }
        }
    }

    /// Forgets the media that none of these blobs is.
    pub(super) fn keep_media_in(&mut self, blobs: &[BlobRef]) {
        self.keep_media(|id| blobs.iter().any(|blob| blob.key.id == id));
    }

    /// Returns the blobs of the media that are kept, in order.
    pub(super) fn blobs(&self) -> impl Iterator<Item = BlobId> {
        let media = self.0.iter().filter_map(|segment| segment.media.as_ref());
        media.map(blob_of)
    }

    fn media_bytes(&self) -> u64 {
        let kept = self.0.iter().filter(|segment| segment.media.is_some());
        kept.map(|segment| segment.bytes).sum()
    }
}

/// A session's film, as those see it who have a token for it.
#[derive(Clone, Debug)]
pub struct FilmView {
    pub film: Film,
    /// Whether a server runs the session.
    pub is_live: bool,
    /// Whether that is another one than this.
    pub is_elsewhere: bool,
    /// Whether the session can be resumed.
    pub is_resumable: bool,
    /// What is expected of the session while no server runs it.
    pub expected: Expectation,
    /// When the last server that ran the session gave it up, as far as that is known.
    pub released: Option<SystemTime>,
    /// Whether the token lets its holder resume the session, and not only watch it.
    pub is_owner: bool,
}

impl FilmView {
    /// Returns whether the film is whole: the session has ended, or cannot be resumed any more. A session that has ended
    /// may be resumed all the same, and makes more of the film then.
    pub fn is_over(&self) -> bool {
        !self.is_live && (self.expected == Expectation::Over || !self.is_resumable)
    }

    /// Returns whether a server runs the session, or another one is expected to go on with it.
    pub fn goes_on(&self) -> bool {
        self.is_live || (self.expected == Expectation::GoesOn && self.is_resumable)
    }
}

impl SessionStore {
    /// Returns the film of a session, whichever server runs it; `None` when there is no such session, or the token gives
    /// no access to it.
    ///
    /// # Errors
    /// Returns an error when the store does not answer, or what it has is damaged.
    pub async fn film(
        &self,
        session: &SessionId,
        token: &str,
    ) -> Result<Option<FilmView>, StoreError> {
        if let Some(leased) = self.0.leased.get(session)
            && !leased.lost.is_cancelled()
        {
            let latest = leased.latest();
            if !self.1.scope.has(&latest.tenant) {
                return Ok(None);
            }
            let access = access(token, Some(leased.token_hash), latest.watch.hash);
            return Ok(access.map(|is_owner| FilmView {
                film: latest.film,
                is_live: true,
                is_elsewhere: false,
                is_resumable: true,
                expected: Expectation::GoesOn,
                released: None,
                is_owner,
            }));
        }
        let key = RecordKey::from(session.clone());
        let Some(stored) = self.within(self.0.records.read(&key)).await? else {
            return Ok(None);
        };
        let body = decode(session, &stored.record.body)?;
        if !self.1.scope.has(&tenant_of(&body)) {
            return Ok(None);
        }
        let Some(is_owner) = access(token, body.token_hash, body.watch_hash) else {
            return Ok(None);
        };
        let mut film = Film(body.film);
        film.keep_media_in(&stored.record.blobs);
        let since_epoch = body.released_at_ms.map(Duration::from_millis);
        let owner = stored.record.owner;
        Ok(Some(FilmView {
            is_live: owner.is_some(),
            is_elsewhere: owner.is_some_and(|owner| owner != self.0.server),
            is_resumable: body.state.is_some() || film.0.is_empty(),
            expected: body.expected,
            film,
            released: since_epoch.and_then(|time| SystemTime::UNIX_EPOCH.checked_add(time)),
            is_owner,
        }))
    }

    /// Returns the media of a segment, after comparing their hash, with the thumbnail behind them.
    ///
    /// # Errors
    /// Returns [`DataLoss`] when they are not kept any more, and another error when the store does not answer.
    pub async fn media(&self, segment: &StoredSegment) -> Result<Chunks, StoreError> {
        let blob = media_of(segment)?;
        if let Some(unwritten) = self.unwritten(blob) {
            return Ok(unwritten);
        }
        let key = self.locate(blob).await?;
        self.within(self.0.blobs.get(key)).await
    }

    /// Returns a part of [`Self::media`], whose hash cannot be compared.
    ///
    /// # Errors
    /// As [`Self::media`].
    pub async fn media_range(
        &self,
        segment: &StoredSegment,
        range: Range<u64>,
    ) -> Result<Chunks, StoreError> {
        let blob = media_of(segment)?;
        if let Some(unwritten) = self.unwritten(blob) {
            return Ok(unwritten.slice(range));
        }
        let key = self.locate(blob).await?;
        self.within(self.0.blobs.get_range(key, range)).await
    }

    /// Returns a file of a video, after comparing its hash.
    ///
    /// # Errors
    /// Returns [`DataLoss::MissingBlob`] when the video is gone or has other files by now, and another error when the store
    /// does not answer or the file is damaged.
    pub async fn file(&self, file: &StoredFile) -> Result<Chunks, StoreError> {
        let key = self.locate(BlobId::from_bytes(file.blob)).await?;
        self.within(self.0.blobs.get(key)).await
    }

    /// Returns a part of [`Self::file`], whose hash cannot be compared.
    ///
    /// # Errors
    /// As [`Self::file`].
    pub async fn file_range(
        &self,
        file: &StoredFile,
        range: Range<u64>,
    ) -> Result<Chunks, StoreError> {
        let key = self.locate(BlobId::from_bytes(file.blob)).await?;
        self.within(self.0.blobs.get_range(key, range)).await
    }

    pub(super) async fn locate(&self, blob: BlobId) -> Result<BlobKey, StoreError> {
        let key = self.within(self.0.records.locate(blob)).await?;
        key.ok_or_else(|| DataLoss::MissingBlob(blob).into())
    }

    /// Returns media that no store has yet.
    fn unwritten(&self, blob: BlobId) -> Option<Chunks> {
        let leased = self.0.leased.all();
        leased.iter().find_map(|leased| leased.unwritten(blob))
    }
}

/// Returns whether the token is the resume token; `None` when it is no token of the session. Each comparison takes
/// constant time.
fn access(
    token: &str,
    resume_hash: Option<[u8; 32]>,
    watch_hash: Option<[u8; 32]>,
) -> Option<bool> {
    let hash = blake3::hash(token.as_bytes());
    let is = |stored: Option<[u8; 32]>| {
        stored.is_some_and(|stored| blake3::Hash::from_bytes(stored) == hash)
    };
    match (is(resume_hash), is(watch_hash)) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    }
}

fn media_of(segment: &StoredSegment) -> Result<BlobId, StoreError> {
    let media = segment.media.as_ref().ok_or(DataLoss::MediaNotKept)?;
    Ok(blob_of(media))
}

/// Returns the blob of a segment's media.
pub(super) fn blob_of(media: &StoredMedia) -> BlobId {
    BlobId::from_bytes(media.blob)
}

/// Returns about how many bytes of a record a segment takes.
fn facts_bytes(segment: &StoredSegment) -> usize {
    const NUMBERS: usize = 256;
    let original = segment.original_prompt.as_ref().map_or(0, String::len);
    let media = segment.media.as_ref().map_or(0, |media| {
        let samples = media.samples.as_ref().map_or(0, SegmentIndex::stored_bytes);
        media.messages.len() * 3 + samples
    });
    NUMBERS + segment.prompt.len() + original + media
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::world::segment as film_segment;

    fn segment(segment_idx: u32, bytes: u64) -> StoredSegment {
        StoredSegment {
            bytes,
            ..StoredSegment::clone(&film_segment(segment_idx).segment)
        }
    }

    fn film(sizes: &[u64]) -> Film {
        let mut film = Film::default();
        for (idx, bytes) in (0..).zip(sizes) {
            film.push(segment(idx, *bytes).into());
        }
        film
    }

    fn kept(film: &Film) -> Vec<u32> {
        let kept = film.0.iter().filter(|segment| segment.media.is_some());
        kept.map(|segment| segment.segment_idx).collect()
    }

    #[test]
    fn the_oldest_media_go_first_and_those_that_the_client_lacks_are_counted() {
        for (limit, received, left, lost) in [
            (60, 0, vec![0, 1, 2], 0),
            (59, 0, vec![1, 2], 1),
            (30, 2, vec![2], 0),
            (30, 1, vec![2], 1),
            (0, 3, vec![], 0),
            (0, 0, vec![], 3),
        ] {
            let mut film = film(&[10, 20, 30]);
            assert_eq!(film.fit(limit, received), lost, "{limit} {received}");
            assert_eq!(kept(&film), left, "{limit} {received}");
            assert_eq!(film.segments().len(), 3, "what is known of them stays");
        }
    }

    #[test]
    fn a_segment_that_is_made_anew_replaces_all_that_followed() {
        let mut film = film(&[1, 2, 3]);
        film.push(segment(1, 9).into());
        let known: Vec<_> = film.0.iter().map(|s| (s.segment_idx, s.bytes)).collect();
        assert_eq!(known, [(0, 1), (1, 9)]);
        assert_eq!(film.segment(1).map(|segment| segment.bytes), Some(9));
        assert!(film.segment(2).is_none());
    }

    #[test]
    fn what_is_known_of_a_film_is_limited() {
        let mut film = Film::default();
        for idx in 0..100 {
            let segment = StoredSegment {
                prompt: "x".repeat(100_000),
                ..segment(idx, 1)
            };
            film.push(segment.into());
        }
        let facts: usize = film.0.iter().map(|segment| facts_bytes(segment)).sum();
        assert!(facts <= MAX_FACTS_BYTES);
        assert_eq!(film.0.first().map(|segment| segment.segment_idx), Some(80));
    }

    #[test]
    fn media_without_a_blob_are_forgotten() {
        let mut film = film(&[1, 2]);
        let first = film.blobs().next().unwrap();
        film.keep_media(|id| id == first);
        assert_eq!(kept(&film), [0]);
    }
}
