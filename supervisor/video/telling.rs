//! Tells the operator's webhook of the ends of jobs, each at least once.
//!
//! A record holds its message until the receiver has taken it, so a message outlives the server. One server delivers it at a
//! time: the one that has the lease of the ended job.

use std::sync::Arc;
use std::time::Duration;

use fastvideo_proto::ids::VideoId;
use fastvideo_proto::stored_video::StoredVideo;
use tokio::time::sleep;
use tracing::Instrument;

use super::library::Videos;
use super::record_writer::{RecordWriter, Version};
use super::webhook::{Answer, Message};
use crate::backoff::Backoff;
use crate::causes::with_causes;
use crate::session::Drain;
use crate::store::StoreError;
use crate::tenant::Tenant;

/// The pauses between two attempts at a message.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(3600);
/// The pauses before a record is read or written again when the store does not answer.
const MIN_STORE_PAUSE: Duration = Duration::from_millis(200);
const MAX_STORE_PAUSE: Duration = Duration::from_secs(10);

/// Whether a message is to be sent any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// It is delivered, or was given up.
    Settled,
    /// Another server sends it, or this one's next process.
    Later,
}

impl Videos {
    /// Tells of the ends of jobs, of each as soon as nobody else does. Never returns.
    pub(crate) async fn tell_of_ends(self) {
        loop {
            while let Some((tenant, id)) = self.next_to_tell() {
                let span = tracing::info_span!("webhook", video_id = %id);
                self.track(self.clone().tell(tenant, id).instrument(span));
            }
            self.end_is_untold().await;
        }
    }

    /// Tells of the end of a job until the receiver has taken that, or the server goes away.
    async fn tell(self, tenant: Tenant, id: VideoId) {
        let mut backoff = Backoff::new(MIN_STORE_PAUSE, MAX_STORE_PAUSE);
        while let Err(error) = self.try_to_tell(&tenant, id).await {
            if self.is_draining() {
                return;
            }
            let error = with_causes(&error);
            tracing::debug!(error, "the message about a job's end cannot be read yet");
            sleep(backoff.next_pause()).await;
        }
        self.told(&tenant, id).await;
    }

    async fn try_to_tell(&self, tenant: &Tenant, id: VideoId) -> Result<(), StoreError> {
        let store = self.store();
        let Some(record) = store.read_video(tenant, id).await? else {
            return Ok(());
        };
        let Some(pending) = &record.video.webhook else {
            return Ok(());
        };
        let message = Message::new(id, &record.video.status, pending);
        let lease = match store.take_video(&record, &record.video, &[]).await {
            Err(StoreError::Stale) => return Ok(()),
            lease => lease?,
        };
        let stored = Arc::new(record.video.clone());
        let mut writer = RecordWriter::begin(id, lease, stored, self.tasks());
        let told = tokio::select! {
            // It was deleted, or another server tells of it.
            _ = writer.changed() => Told::Later,
            () = self.drain_begins() => Told::Later,
            told = self.deliver(&message) => told,
        };
        if told == Told::Settled {
            let video = StoredVideo {
                webhook: None,
                ..record.video
            };
            let written = writer.write(Version {
                video,
                blobs: Vec::new(),
            });
            // The answer never comes when the record is not this server's any more.
            let _ = written.await;
        }
        Ok(())
    }

    /// Sends a message until its receiver has taken it, or it is too old.
    async fn deliver(&self, message: &Message) -> Told {
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE).with_jitter();
        let mut attempt = 0_u32;
        loop {
            let Some(webhook) = self.config().webhook.clone() else {
                return Told::Later;
            };
            attempt += 1;
            let answer = self.sender().send(&webhook, message).await;
            self.metrics().webhook(&answer);
            match answer {
                Answer::Taken => {
                    tracing::info!(
                        attempt,
                        event = message.event,
                        "the webhook has taken the message about a job's end"
                    );
                    return Told::Settled;
                }
                Answer::Unwanted => {
                    tracing::warn!(
                        event = message.event,
                        "the webhook wants no messages any more (HTTP status 410)"
                    );
                    return Told::Settled;
                }
                Answer::Failed(reason) if message.is_too_old() => {
                    tracing::error!(
                        attempt,
                        event = message.event,
                        reason,
                        "the message about a job's end is given up: the webhook has not taken it for 24 hours"
                    );
                    return Told::Settled;
                }
                Answer::Failed(reason) => {
                    let pause = backoff.next_pause();
                    let pause_ms = pause.as_millis();
                    match attempt {
                        1 => tracing::warn!(
                            event = message.event,
                            reason,
                            pause_ms,
                            "the webhook has not taken the message about a job's end; trying again"
                        ),
                        _ => tracing::debug!(
                            attempt,
                            event = message.event,
                            reason,
                            pause_ms,
                            "the webhook has not taken the message; trying again"
                        ),
                    }
                    sleep(pause).await;
                }
            }
        }
    }

    /// Waits until the server begins to go away.
    async fn drain_begins(&self) {
        let mut drain = self.drain();
        // The sender is gone only when the server is.
        let _ = drain.wait_for(|drain| *drain != Drain::No).await;
    }
}
