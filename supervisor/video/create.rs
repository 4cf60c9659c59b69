//! Takes a job in: checks that there is room, screens its prompts, decodes its image, plans it, and writes its record.

use std::collections::BTreeMap;

use bytes::Bytes;
use fastvideo_proto::ids::VideoId;
use fastvideo_proto::stored_video::{StoredVideo, StoredVideoRequest, VideoClaim, VideoPlan};
use tokio::task::JoinError;
use tracing::Instrument;

use super::clock::unix_ms;
use super::config::Config;
use super::library::Videos;
use super::live::Live;
use super::plan::{self, Wanted, plan};
use super::record::add_file;
use crate::init_image::{self, InitImageError};
use crate::prompt::Blocked;
use crate::store::ids::BlobId;
use crate::store::{DataLoss, NewBlob, StoreError, VideoRecord};
use crate::tenant::Tenant;

/// What the hashes of idempotency keys are derived for (a context string of BLAKE3).
const CLAIM_CONTEXT: &str = "fastvideo-supervisor 2026-12-01 idempotency key of a video";

/// A job that a client asks for: every value is within its limits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NewVideo {
    pub(crate) prompt: String,
    pub(crate) negative_prompt: Option<String>,
    /// `None` for one that the server draws.
    pub(crate) seed: Option<u64>,
    pub(crate) num_inference_steps: u32,
    pub(crate) guidance_scale: f64,
    /// Whether a language model writes the prompt out.
    pub(crate) enhance_prompt: bool,
    /// Width and height in pixels, even numbers.
    pub(crate) size: (u32, u32),
    pub(crate) fps: u32,
    /// The number of frames, at least 1.
    pub(crate) frames: u64,
    /// The initial image as a file of any of the accepted kinds, not decoded yet.
    pub(crate) image: Option<Bytes>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// An idempotency key, and the request that was made under it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// The hash of the tenant, the route and the key.
    pub(crate) key: [u8; 32],
    /// The hash of the request.
    pub(crate) request: [u8; 32],
}

impl Claim {
    /// Makes the claim of a tenant's key on a route, by a request with that hash.
    pub(crate) fn of(tenant: &Tenant, route: &str, key: &str, request: [u8; 32]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CLAIM_CONTEXT);
        // No name of a tenant or of a route has a byte of 0.
        for part in [tenant.as_str(), route, key] {
            hasher.update(part.as_bytes());
            hasher.update(&[0]);
        }
        Self {
            key: *hasher.finalize().as_bytes(),
            request,
        }
    }
}

/// The job that a new one is made of.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// The new one has its initial image, unless it brings one.
    Remixed(VideoRecord),
    /// The new one goes on where it ends.
    Extended(VideoRecord),
}

/// A job that was taken in.
#[derive(Clone, Debug)]
pub(crate) struct Created {
    pub(crate) id: VideoId,
    pub(crate) live: Live,
    /// Whether an earlier request has claimed the key.
    pub(crate) is_replayed: bool,
}

/// Why a job was not taken in. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotCreated {
    #[error("the server is going away; send the request to another one")]
    Draining,
    #[error("{limit} video jobs wait, which is the limit")]
    QueueFull { limit: usize },
    #[error("{limit} video jobs of the tenant wait, which is the limit")]
    TenantQueueFull { limit: usize },
    #[error(
        "the stored videos take {bytes} bytes, which is the limit: delete some or wait until their time is over"
    )]
    StorageFull { bytes: u64 },
    #[error("`{field}`: {blocked}")]
    Blocked {
        field: &'static str,
        blocked: Blocked,
    },
    #[error(transparent)]
    Image(InitImageError),
    /// The job that it was to be made of is not there any more.
    #[error("the video that the new one is made of is gone")]
    SourceGone,
    /// Another request was made under the same key.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the job could not be written")]
    Panicked(#[source] JoinError),
}

impl Videos {
    /// Takes a job in. It is stored when this returns; a caller that no longer waits leaves it whole or leaves nothing.
    ///
    /// # Errors
    /// Returns an error when the job is not taken in.
    pub(crate) async fn create(
        &self,
        tenant: Tenant,
        new: NewVideo,
        source: Option<Source>,
        claim: Option<Claim>,
    ) -> Result<Created, NotCreated> {
        self.check_room(&tenant)?;
        self.screen(&tenant, &new).await?;
        let config = self.config();
        let plan = plan_of(&new, source.as_ref(), &config);
        let image = self.decode(new.image.as_ref(), &plan, &config).await?;
        let mut video = draft(new, plan, &config, claim);
        let mut blobs = Vec::new();
        match &source {
            Some(Source::Remixed(source)) if image.is_none() => {
                remix(&mut video, source, &mut blobs);
            }
            Some(Source::Extended(source)) => self.extend(&mut video, source, &mut blobs).await?,
            Some(Source::Remixed(_)) | None => {}
        }
        if let Some(Source::Remixed(source)) = &source {
            video.remixed_from = Some(source.id);
        }
        if let Some(png) = image {
            video.image = Some(add_file(png, &mut blobs));
        }
        let videos = self.clone();
        let writing = async move { videos.write_new(tenant, video, blobs, claim).await };
        // The record and what is known of it belong together.
        let written = self.tasks().spawn(writing.in_current_span()).await;
        written.map_err(NotCreated::Panicked)?
    }

    /// Returns the job that was created under a key.
    ///
    /// # Errors
    /// Returns an error when another request was made under the key, or the store does not answer.
    pub(crate) async fn claimed(
        &self,
        tenant: &Tenant,
        claim: Claim,
    ) -> Result<Option<Created>, NotCreated> {
        let Some(before) = self.store().read_claim(claim.key).await? else {
            return Ok(None);
        };
        if before.request != claim.request {
            return Err(NotCreated::KeyReused);
        }
        let live = self.get(tenant, before.video).await?;
        Ok(live.map(|live| Created {
            id: before.video,
            live,
            is_replayed: true,
        }))
    }

    fn check_room(&self, tenant: &Tenant) -> Result<(), NotCreated> {
        if self.is_draining() {
            return Err(NotCreated::Draining);
        }
        let config = self.config();
        let (waiting, of_tenant) = self.waiting(tenant);
        if waiting >= config.max_queued {
            let limit = config.max_queued;
            return Err(NotCreated::QueueFull { limit });
        }
        if of_tenant >= config.max_queued_per_tenant {
            let limit = config.max_queued_per_tenant;
            return Err(NotCreated::TenantQueueFull { limit });
        }
        // Counting takes a look at all jobs.
        let Some(most) = config.max_stored_bytes else {
            return Ok(());
        };
        match self.counts().stored_bytes {
            bytes if bytes >= most => Err(NotCreated::StorageFull { bytes }),
            _ => Ok(()),
        }
    }

    /// Screens all prompts of a job.
    async fn screen(&self, tenant: &Tenant, new: &NewVideo) -> Result<(), NotCreated> {
        let prompts = self.prompts(tenant);
        let negative = new.negative_prompt.as_deref();
        for (field, prompt) in [
            ("prompt", Some(new.prompt.as_str())),
            ("negative_prompt", negative),
        ] {
            let Some(prompt) = prompt else { continue };
            let screened = prompts.prepare(prompt, false).await;
            screened.map_err(|blocked| NotCreated::Blocked { field, blocked })?;
        }
        Ok(())
    }

    /// Returns an initial image as a PNG file that fits the pictures which are made.
    async fn decode(
        &self,
        image: Option<&Bytes>,
        plan: &VideoPlan,
        config: &Config,
    ) -> Result<Option<Bytes>, NotCreated> {
        let Some(image) = image else {
            return Ok(None);
        };
        let limits = init_image::Limits {
            max_bytes: init_image::MAX_BYTES,
            max_pixels: config.max_image_pixels,
            frame: plan.made,
        };
        let decoded = init_image::accept_file(image.to_vec(), limits, config.image_patience);
        let png = decoded.await.map_err(NotCreated::Image)?;
        Ok(Some(png.into()))
    }

    /// Lets a job go on where another one ends: it has the segments of that one, and its state.
    async fn extend(
        &self,
        video: &mut StoredVideo,
        source: &VideoRecord,
        blobs: &mut Vec<NewBlob>,
    ) -> Result<(), NotCreated> {
        let before = &source.video;
        let tiles = match &before.tiles {
            Some(tiles) => Some(self.store().file(tiles).await.map_err(not_there)?.join()),
            None => None,
        };
        blobs.extend(source.blobs().iter().map(|blob| NewBlob::stored(*blob)));
        video.extended_from = Some(source.id);
        video.extended_segments = u32::try_from(before.film.len()).unwrap_or(u32::MAX);
        video.film = before.film.clone();
        video.state = before.state.clone();
        video.has_audio = before.has_audio;
        let frames = video.plan.frames();
        if plan::thumbnail_frame(frames) < video.plan.extended_frames {
            video.thumbnail = before.thumbnail;
        }
        let tiles = tiles.and_then(|tiles| plan::nearest_tiles(&tiles, &video.plan));
        if let Some(tiles) = tiles.filter(|tiles| !tiles.is_empty()) {
            video.tiles = Some(add_file(tiles, blobs));
        }
        Ok(())
    }

    /// Writes the record of a job, and lets the job wait for its turn.
    async fn write_new(
        &self,
        tenant: Tenant,
        video: StoredVideo,
        blobs: Vec<NewBlob>,
        claim: Option<Claim>,
    ) -> Result<Created, NotCreated> {
        let mut id = self.next_id().await;
        let mut is_replayed = false;
        if let Some(claim) = claim {
            let mine = VideoClaim {
                video: id,
                request: claim.request,
                created_at_ms: video.created_at_ms,
            };
            let holder = self.store().claim_video_key(claim.key, &mine).await?;
            if holder.request != claim.request {
                return Err(NotCreated::KeyReused);
            }
            is_replayed = holder.video != id;
            id = holder.video;
        }
        let created = self.store().create_video(&tenant, id, &video, &blobs);
        let record = created.await.map_err(not_there)?;
        if !is_replayed {
            self.metrics().created();
        }
        Ok(Created {
            id,
            live: self.take_in(record),
            is_replayed,
        })
    }
}

/// Takes over what a job has of the one that it is like.
fn remix(video: &mut StoredVideo, source: &VideoRecord, blobs: &mut Vec<NewBlob>) {
    video.image = source.video.image;
    let image = video.image.map(|image| BlobId::from_bytes(image.blob));
    let mut known = source.blobs().iter();
    let blob = known.find(|blob| Some(blob.key.id) == image);
    blobs.extend(blob.map(|blob| NewBlob::stored(*blob)));
}

/// A blob of the job that a new one is made of may be gone.
fn not_there(error: StoreError) -> NotCreated {
    match error {
        StoreError::Lost(DataLoss::MissingBlob(_)) => NotCreated::SourceGone,
        error => NotCreated::Store(error),
    }
}

fn plan_of(new: &NewVideo, source: Option<&Source>, config: &Config) -> VideoPlan {
    let wanted = Wanted {
        size: new.size,
        fps: new.fps,
        frames: new.frames,
        extended_frames: match source {
            Some(Source::Extended(source)) => source.video.plan.frames(),
            Some(Source::Remixed(_)) | None => 0,
        },
    };
    plan(&wanted, &config.segments)
}

/// Returns the record of a new job.
fn draft(new: NewVideo, plan: VideoPlan, config: &Config, claim: Option<Claim>) -> StoredVideo {
    StoredVideo {
        metadata: new.metadata,
        claim: claim.map(|claim| claim.key),
        ..StoredVideo::queued(
            unix_ms(),
            config.model.clone(),
            StoredVideoRequest {
                prompt: new.prompt,
                negative_prompt: new.negative_prompt,
                seed: new.seed.unwrap_or_else(draw_seed),
                num_inference_steps: new.num_inference_steps,
                guidance_scale: new.guidance_scale,
                enhance_prompt: new.enhance_prompt,
            },
            plan,
        )
    }
}

/// Draws a seed of 53 bits: JavaScript, which has no other numbers, reads it back as it is.
fn draw_seed() -> u64 {
    rand::random::<u64>() >> 11
}
