//! What this server knows of all jobs: a summary of each, by which they wait, run and expire.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use fastvideo_proto::ids::VideoId;
use fastvideo_proto::stored_video::VideoStatus;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::live::Live;
use super::queue::Queue;
use crate::store::VideoRecord;
use crate::store::ids::Revision;
use crate::tenant::Tenant;

/// What this server knows of the jobs.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) jobs: HashMap<VideoId, Entry>,
    pub(super) queue: Queue,
    /// The number of jobs that run here.
    pub(super) running_here: usize,
    pub(super) last_id: Option<VideoId>,
    /// Whether all that is stored was looked at since the server was started.
    pub(super) is_surveyed: bool,
    /// The jobs of whose end the operator is to be told, and no server does.
    untold: BTreeSet<VideoId>,
    /// Those of whose end this server tells.
    telling: HashSet<VideoId>,
}

/// What this server knows of a job.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) tenant: Tenant,
    /// What the store had when this server looked last.
    pub(super) revision: Revision,
    pub(super) place: Place,
    /// The size of its blobs in bytes.
    pub(super) bytes: u64,
}

/// Where a job is.
#[derive(Debug)]
pub(super) enum Place {
    /// In the queue.
    Waiting(watch::Sender<Live>),
    /// It runs here. Cancelling the token asks for its end.
    Here(watch::Sender<Live>, CancellationToken),
    /// Another server runs it.
    Elsewhere,
    /// It has ended, and is removed at that time in milliseconds since the Unix epoch.
    Ended {
        is_completed: bool,
        expires_at_ms: Option<u64>,
    },
}

/// How many jobs there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) queued: usize,
    pub(crate) running: usize,
    pub(crate) completed: usize,
    pub(crate) failed: usize,
    pub(crate) stored_bytes: u64,
}

impl Known {
    /// Takes note of a job as the store has it. One that runs here is left alone: its run knows better.
    pub(super) fn see(&mut self, record: &VideoRecord) {
        let (id, tenant) = (record.id, &record.tenant);
        if let Some(entry) = self.jobs.get(&id)
            && (matches!(entry.place, Place::Here(..)) || entry.revision > record.revision())
        {
            return;
        }
        let video = &record.video;
        let place = if video.status.is_end() {
            self.queue.remove(id, tenant);
            match video.webhook.is_some() && record.owner().is_none() {
                true => self.untold.insert(id),
                false => self.untold.remove(&id),
            };
            Place::Ended {
                is_completed: video.status == VideoStatus::Completed,
                expires_at_ms: video.expires_at_ms,
            }
        } else if record.owner().is_some() {
            self.queue.run(id, tenant);
            Place::Elsewhere
        } else {
            self.queue.wait(id, tenant);
            let live = Live::of(Arc::new(video.clone()));
            match self.jobs.remove(&id).map(|entry| entry.place) {
                Some(Place::Waiting(sender)) => {
                    sender.send_replace(live);
                    Place::Waiting(sender)
                }
                _ => Place::Waiting(watch::Sender::new(live)),
            }
        };
        let entry = Entry {
            tenant: tenant.clone(),
            revision: record.revision(),
            place,
            bytes: record.blobs().iter().map(|blob| blob.bytes).sum(),
        };
        self.jobs.insert(id, entry);
        self.last_id = self.last_id.max(Some(id));
        self.tell_positions();
    }

    /// Forgets a job of which there is no record.
    pub(super) fn forget(&mut self, id: VideoId) {
        self.untold.remove(&id);
        if let Some(entry) = self.jobs.remove(&id) {
            self.queue.remove(id, &entry.tenant);
            if let Place::Here(..) = entry.place {
                self.running_here -= 1;
            }
            self.tell_positions();
        }
    }

    /// Takes the job that is to run next, if fewer than `most` run here.
    pub(super) fn start_next(&mut self, most: usize) -> Option<Start> {
        if self.running_here >= most {
            return None;
        }
        let (id, tenant) = self.queue.next()?;
        self.queue.run(id, &tenant);
        let entry = self.jobs.get_mut(&id)?;
        let Place::Waiting(live) = &entry.place else {
            return None;
        };
        let (live, cancelled) = (live.clone(), CancellationToken::new());
        live.send_modify(|live| live.position = Some(0));
        entry.place = Place::Here(live.clone(), cancelled.clone());
        self.running_here += 1;
        self.tell_positions();
        Some(Start {
            id,
            tenant,
            live,
            cancelled,
        })
    }

    /// Takes note that the run of a job has ended here. The job waits again, until the store is asked about it.
    pub(super) fn stopped(&mut self, id: VideoId) {
        let Some(entry) = self.jobs.get_mut(&id) else {
            return;
        };
        if let Place::Here(live, _) = &entry.place {
            entry.place = Place::Waiting(live.clone());
            self.running_here -= 1;
            self.queue.wait(id, &entry.tenant);
            self.tell_positions();
        }
    }

    /// Returns what is known of a job that waits or runs here.
    pub(super) fn live(&self, id: VideoId) -> Option<Live> {
        match &self.jobs.get(&id)?.place {
            Place::Waiting(live) | Place::Here(live, _) => Some(live.borrow().clone()),
            Place::Elsewhere | Place::Ended { .. } => None,
        }
    }

    /// Returns a job of whose end this server is to tell, and counts it as one of whose end it does.
    pub(super) fn next_to_tell(&mut self) -> Option<(Tenant, VideoId)> {
        let mut untold = self.untold.iter();
        let id = *untold.find(|id| !self.telling.contains(id))?;
        let tenant = self.jobs.get(&id)?.tenant.clone();
        self.telling.insert(id);
        Some((tenant, id))
    }

    /// Takes note that this server tells of the end of a job no more.
    pub(super) fn told(&mut self, id: VideoId) {
        self.telling.remove(&id);
        self.untold.remove(&id);
    }

    /// Tells the jobs that wait how many are before them.
    fn tell_positions(&self) {
        for (position, id) in self.queue.order().into_iter().enumerate() {
            if let Some(Entry {
                place: Place::Waiting(live),
                ..
            }) = self.jobs.get(&id)
            {
                live.send_if_modified(|live| live.position.replace(position) != Some(position));
            }
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts {
            queued: self.queue.waiting(),
            running: self.queue.running(),
            ..Counts::default()
        };
        for entry in self.jobs.values() {
            counts.stored_bytes += entry.bytes;
            match entry.place {
                Place::Ended {
                    is_completed: true, ..
                } => counts.completed += 1,
                Place::Ended { .. } => counts.failed += 1,
                _ => {}
            }
        }
        counts
    }

    /// Returns the jobs whose time is over.
    pub(super) fn expired(&self, now_ms: u64) -> Vec<(Tenant, VideoId)> {
        let expired = self.jobs.iter().filter(|(_, entry)| {
            matches!(entry.place, Place::Ended { expires_at_ms: Some(at), .. } if at <= now_ms)
        });
        expired
            .map(|(id, entry)| (entry.tenant.clone(), *id))
            .collect()
    }
}

/// A job that is to run here.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) id: VideoId,
    pub(super) tenant: Tenant,
    pub(super) live: watch::Sender<Live>,
    pub(super) cancelled: CancellationToken,
}
