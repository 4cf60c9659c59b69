//! A job's way up the link: its media as far as the client's window allows, then its end.
//!
//! A client that does not read stops only its own job's media; the engine goes on with the next job while they wait
//! here, encoded.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use fastvideo_proto::ids::JobId;
use fastvideo_proto::link::{Event, JobFailure, JobReport, MediaKind, media_cost};
use ipc_channel::ipc::IpcSharedMemory;

use crate::link::Events;

/// One job as the link sees it. The job loop fills it; the commands' thread cancels it and gives it credit.
#[derive(Debug)]
pub(crate) struct JobOutbox {
    job: JobId,
    events: Events,
    cancelled: AtomicBool,
    queue: Mutex<Queue>,
}

#[derive(Debug)]
struct Queue {
    waiting: VecDeque<(MediaKind, Vec<u8>)>,
    /// Cost that may still be sent; below zero when the last message was larger than what was left.
    window: i64,
    end: End,
}

#[derive(Debug)]
enum End {
    /// The engine is at work.
    Open,
    /// All media are in the queue; this follows them.
    Finished(Box<JobReport>, IpcSharedMemory),
    /// The last event was sent.
    Sent,
}

impl JobOutbox {
    pub(crate) fn new(job: JobId, window: u64, events: Events) -> Arc<Self> {
        Arc::new(Self {
            job,
            events,
            cancelled: AtomicBool::new(false),
            queue: Mutex::new(Queue {
                waiting: VecDeque::new(),
                window: i64::try_from(window).unwrap_or(i64::MAX),
                end: End::Open,
            }),
        })
    }

    pub(crate) fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// The last event was sent: nothing is left to do for this job.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.queue().end, End::Sent)
    }

    pub(crate) fn media(&self, kind: MediaKind, bytes: Vec<u8>) {
        let mut queue = self.queue();
        queue.waiting.push_back((kind, bytes));
        self.flush(&mut queue);
    }

    /// All media are in. Sends the end after them.
    pub(crate) fn finish(&self, report: JobReport, blob: IpcSharedMemory) {
        let mut queue = self.queue();
        queue.end = End::Finished(Box::new(report), blob);
        if !queue.waiting.is_empty() {
            self.events.send(Event::Generated { job: self.job });
        }
        self.flush(&mut queue);
        if self.cancelled() {
            self.drop_rest(&mut queue);
        }
    }

    /// The engine has given up.
    pub(crate) fn fail(&self, failure: JobFailure, message: String) {
        self.end(&mut self.queue(), failure, message);
    }

    pub(crate) fn credit(&self, cost: u64) {
        let mut queue = self.queue();
        queue.window = queue.window.saturating_add_unsigned(cost);
        self.flush(&mut queue);
    }

    /// Nobody wants the segment any more. The engine sees it at its next step or frame; what waits here is dropped.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.drop_rest(&mut self.queue());
    }

    fn drop_rest(&self, queue: &mut Queue) {
        if let End::Finished(..) = queue.end {
            self.end(queue, JobFailure::Cancelled, String::new());
        }
    }

    fn flush(&self, queue: &mut Queue) {
        while queue.window > 0
            && let Some((kind, bytes)) = queue.waiting.pop_front()
        {
            queue.window = queue
                .window
                .saturating_sub_unsigned(media_cost(bytes.len()));
            self.events.send_media(self.job, kind, &bytes);
        }
        if queue.waiting.is_empty() && matches!(queue.end, End::Finished(..)) {
            let end = std::mem::replace(&mut queue.end, End::Sent);
            if let End::Finished(report, blob) = end {
                self.events.send_with_state(Event::Finished(report), blob);
            }
        }
    }

    fn end(&self, queue: &mut Queue, failure: JobFailure, message: String) {
        queue.waiting.clear();
        queue.end = End::Sent;
        let job = self.job;
        self.events.send(Event::Failed {
            job,
            failure,
            message,
        });
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of this lock panics")
    }
}
