//! A job's way up the link: its media as far as the client's window allows, then its end.
//!
//! A client that does not read stops only its own job's media; the engine goes on with the next job while they wait
//! here, encoded.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use fastvideo_proto::ids::JobId;
use fastvideo_proto::job::{JobFailure, MediaKind};
use fastvideo_proto::link::{Event, JobReport, media_cost};
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
        // The encoder may be some frames behind an engine that has given up.
        if matches!(queue.end, End::Sent) {
            return;
        }
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
            self.events.send_media(self.job, kind, bytes.into());
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fastvideo_proto::job::JobTiming;

    use super::*;
    use crate::link::Sent;

    const JOB: JobId = JobId(7);
    /// What each of the small messages here costs.
    const ONE: u64 = 16 * 1024;

    fn outbox(window: u64) -> (Arc<JobOutbox>, Sent) {
        let (events, sent) = Events::to_nobody();
        (JobOutbox::new(JOB, window, events), sent)
    }

    fn put(outbox: &JobOutbox, messages: u8) {
        for n in 0..messages {
            outbox.media(MediaKind::Fragment, vec![n; 10]);
        }
    }

    fn finish(outbox: &JobOutbox) {
        let report = JobReport {
            job: JOB,
            state: vec![1],
            generation: Duration::from_millis(1),
            timing: JobTiming::default(),
            frames: 12,
        };
        outbox.finish(report, IpcSharedMemory::from_bytes(&[1]));
    }

    /// The names of the events since the last look.
    #[track_caller]
    fn check(sent: &Sent, expected: &[&str]) {
        let events = sent.look();
        let names = events.iter().map(|event| match event {
            Event::Media { job: JOB, .. } => "media",
            Event::Generated { job: JOB } => "generated",
            Event::Finished(report) if report.job == JOB => "finished",
            Event::Failed {
                job: JOB,
                failure: JobFailure::Cancelled,
                ..
            } => "cancelled",
            Event::Failed { job: JOB, .. } => "failed",
            other => panic!("{other:?}"),
        });
        assert_eq!(names.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn media_are_sent_as_far_as_the_window_goes() {
        let (outbox, sent) = outbox(2 * ONE);
        put(&outbox, 4);
        check(&sent, &["media", "media"]);
        outbox.credit(ONE);
        check(&sent, &["media"]);
        outbox.credit(2 * ONE);
        check(&sent, &["media"]);
        put(&outbox, 2);
        check(&sent, &["media"]);
    }

    #[test]
    fn a_large_message_overdraws_the_window_once() {
        let (outbox, sent) = outbox(1);
        outbox.media(MediaKind::Fragment, vec![0; 40_000]);
        put(&outbox, 1);
        check(&sent, &["media"]);
        outbox.credit(39_999);
        check(&sent, &[]);
        outbox.credit(1);
        check(&sent, &["media"]);
    }

    #[test]
    fn the_end_comes_after_all_media() {
        let (outbox, sent) = outbox(2 * ONE);
        put(&outbox, 2);
        finish(&outbox);
        check(&sent, &["media", "media", "finished"]);
        assert!(outbox.is_over());

        let (outbox, sent) = self::outbox(ONE);
        put(&outbox, 3);
        finish(&outbox);
        check(&sent, &["media", "generated"]);
        outbox.credit(ONE);
        check(&sent, &["media"]);
        assert!(!outbox.is_over());
        outbox.credit(ONE);
        check(&sent, &["media", "finished"]);
        assert!(outbox.is_over());
        outbox.credit(ONE);
        check(&sent, &[]);
    }

    #[test]
    fn cancelling_drops_what_waits() {
        let (outbox, sent) = outbox(ONE);
        put(&outbox, 3);
        finish(&outbox);
        check(&sent, &["media", "generated"]);
        outbox.cancel();
        check(&sent, &["cancelled"]);
        assert!(outbox.is_over());
        outbox.cancel();
        outbox.credit(10 * ONE);
        check(&sent, &[]);
    }

    #[test]
    fn cancelling_a_running_job_leaves_its_end_to_the_engine() {
        let (outbox, sent) = outbox(ONE);
        put(&outbox, 1);
        outbox.cancel();
        assert!(outbox.cancelled() && !outbox.is_over());
        check(&sent, &["media"]);
        outbox.fail(JobFailure::Cancelled, String::new());
        check(&sent, &["cancelled"]);
        put(&outbox, 1);
        outbox.credit(ONE);
        check(&sent, &[]);

        // The engine was done before it saw the cancellation.
        let (outbox, sent) = self::outbox(0);
        put(&outbox, 1);
        outbox.cancel();
        finish(&outbox);
        check(&sent, &["generated", "cancelled"]);
    }

    #[test]
    fn nothing_follows_a_failure() {
        let (outbox, sent) = outbox(ONE);
        put(&outbox, 2);
        outbox.fail(JobFailure::Failed, "broken".to_owned());
        check(&sent, &["media", "failed"]);
        put(&outbox, 2);
        outbox.credit(10 * ONE);
        check(&sent, &[]);
        assert!(outbox.is_over());
    }
}
