//! A job's outbox: it sends the job's media over the link as far as the client's window allows, then the job's end.
//!
//! This is credit-based flow control. A client that does not read stops only its own job's media: they wait here,
//! encoded, while the engine continues with the next job.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use fastvideo_link::SharedMemory;
use fastvideo_proto::ids::JobId;
use fastvideo_proto::job::{JobFailure, MediaKind, PhaseSpan};
use fastvideo_proto::link::{Event, JobReport, Preview, media_cost};

use crate::link::EventSender;

/// The outbox of one job. The encoder's thread and the job loop fill it; the commands' thread cancels the job and gives
/// it flow credit.
#[derive(Debug)]
pub(crate) struct JobOutbox {
    job: JobId,
    events: EventSender,
    cancelled: AtomicBool,
    queue: Mutex<SendQueue>,
}

#[derive(Debug)]
struct SendQueue {
    waiting: VecDeque<(MediaKind, Vec<u8>)>,
    /// The cost of media that may still be sent, see [`media_cost`]. It is below zero when the last message was larger
    /// than the credit that was left.
    credit: i64,
    end: JobEnd,
}

#[derive(Debug)]
enum JobEnd {
    /// The engine is working on the job.
    Pending,
    /// All media are in the queue, and this report follows them.
    Finished(Box<JobReport>, SharedMemory),
    /// The job's last event was sent.
    Sent,
}

impl JobOutbox {
    /// Creates an outbox that may send media of the cost `window` before the client has taken any, see [`media_cost`].
    pub(crate) fn new(job: JobId, window: u64, events: EventSender) -> Arc<Self> {
        Arc::new(Self {
            job,
            events,
            cancelled: AtomicBool::new(false),
            queue: Mutex::new(SendQueue {
                waiting: VecDeque::new(),
                credit: i64::try_from(window).unwrap_or(i64::MAX),
                end: JobEnd::Pending,
            }),
        })
    }

    /// Returns whether the segment is cancelled.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Returns whether the job's last event was sent, so that nothing is left to do for it.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.queue().end, JobEnd::Sent)
    }

    /// Sends a piece of media, or keeps it until there is credit.
    pub(crate) fn media(&self, kind: MediaKind, bytes: Vec<u8>) {
        let mut queue = self.queue();
        // The encoder may be some frames behind an engine that has given up.
        if matches!(queue.end, JobEnd::Sent) {
            return;
        }
        queue.waiting.push_back((kind, bytes));
        self.flush(&mut queue);
    }

    /// Sends a preview, unless the job is over or cancelled. Previews need no flow credit: they are few and small, and the
    /// supervisor drops those that its client has no room for.
    pub(crate) fn preview(&self, preview: Preview) {
        let queue = self.queue();
        if matches!(queue.end, JobEnd::Pending) && !self.is_cancelled() {
            let job = self.job;
            self.events.send(Event::Preview { job, preview });
        }
    }

    /// Sends the report after all media, which are in the queue already. If media still wait, [`Event::Generated`] is
    /// sent first, so that the supervisor can send the next job.
    pub(crate) fn finish(&self, report: JobReport, blob: SharedMemory) {
        let mut queue = self.queue();
        queue.end = JobEnd::Finished(Box::new(report), blob);
        if !queue.waiting.is_empty() {
            self.events.send(Event::Generated { job: self.job });
        }
        self.flush(&mut queue);
        if self.is_cancelled() {
            self.drop_rest(&mut queue);
        }
    }

    /// Sends that the job failed after these phases, and drops waiting media.
    pub(crate) fn fail(&self, failure: JobFailure, message: String, phases: Vec<PhaseSpan>) {
        self.end(&mut self.queue(), failure, message, phases);
    }

    /// Adds credit: the client has taken media of this cost.
    pub(crate) fn credit(&self, cost: u64) {
        let mut queue = self.queue();
        queue.credit = queue.credit.saturating_add_unsigned(cost);
        self.flush(&mut queue);
    }

    /// Cancels the job. The engine notices at its next step or frame; waiting media of a generated segment are dropped.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.drop_rest(&mut self.queue());
    }

    /// Ends a generated job without sending the media that wait.
    fn drop_rest(&self, queue: &mut SendQueue) {
        if let JobEnd::Finished(report, _) = &mut queue.end {
            let phases = std::mem::take(&mut report.timing.phases);
            self.end(queue, JobFailure::Cancelled, String::new(), phases);
        }
    }

    /// Sends as much as the credit allows, and the end when nothing waits any more.
    fn flush(&self, queue: &mut SendQueue) {
        while queue.credit > 0
            && let Some((kind, bytes)) = queue.waiting.pop_front()
        {
            queue.credit = queue
                .credit
                .saturating_sub_unsigned(media_cost(bytes.len()));
            self.events.send_media(self.job, kind, bytes.into());
        }
        if queue.waiting.is_empty() && matches!(queue.end, JobEnd::Finished(..)) {
            let end = std::mem::replace(&mut queue.end, JobEnd::Sent);
            if let JobEnd::Finished(report, blob) = end {
                self.events.send_with_memory(Event::Finished(report), blob);
            }
        }
    }

    /// Sends a failure as the job's last event.
    fn end(
        &self,
        queue: &mut SendQueue,
        failure: JobFailure,
        message: String,
        phases: Vec<PhaseSpan>,
    ) {
        queue.waiting.clear();
        queue.end = JobEnd::Sent;
        let job = self.job;
        self.events.send(Event::Failed {
            job,
            failure,
            message,
            phases,
        });
    }

    fn queue(&self) -> MutexGuard<'_, SendQueue> {
        self.queue.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fastvideo_proto::job::JobTiming;

    use super::*;
    use crate::link::SentEvents;

    const JOB: JobId = JobId(7);
    /// The cost of each small message here.
    const ONE: u64 = 16 * 1024;

    fn outbox(window: u64) -> (Arc<JobOutbox>, SentEvents) {
        let (events, sent) = EventSender::to_nobody();
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
            thumbnail: None,
            video: None,
        };
        outbox.finish(report, SharedMemory::from_bytes(&[1]).unwrap());
    }

    /// Checks the names of the events since the last call.
    #[track_caller]
    fn check(sent: &SentEvents, expected: &[&str]) {
        let events = sent.take();
        let names = events.iter().map(|event| match event {
            Event::Media { job: JOB, .. } => "media",
            Event::Preview { job: JOB, .. } => "preview",
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
        assert!(outbox.is_cancelled() && !outbox.is_over());
        check(&sent, &["media"]);
        outbox.fail(JobFailure::Cancelled, String::new(), Vec::new());
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
    fn previews_need_no_credit_and_end_with_the_job() {
        let show = |outbox: &JobOutbox| {
            outbox.preview(Preview {
                frame: 0,
                num_frames: 1,
                width: 2,
                height: 2,
                jpeg: vec![0; 100_000].into(),
            });
        };
        let (outbox, sent) = outbox(ONE);
        show(&outbox);
        show(&outbox);
        put(&outbox, 1);
        check(&sent, &["preview", "preview", "media"]);
        finish(&outbox);
        show(&outbox);
        check(&sent, &["finished"]);

        let (outbox, sent) = self::outbox(ONE);
        outbox.cancel();
        show(&outbox);
        check(&sent, &[]);
    }

    #[test]
    fn nothing_follows_a_failure() {
        let (outbox, sent) = outbox(ONE);
        put(&outbox, 2);
        outbox.fail(JobFailure::Failed, "broken".to_owned(), Vec::new());
        check(&sent, &["media", "failed"]);
        put(&outbox, 2);
        outbox.credit(10 * ONE);
        check(&sent, &[]);
        assert!(outbox.is_over());
    }
}
