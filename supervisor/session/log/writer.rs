//! The thread that writes all sessions' lines.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastvideo_proto::ids::SessionId;

use super::files::{Config, LogFile, Unwritten, tidy_up};
use super::{Buffer, Shared};
use crate::tenant::Tenant;

/// How long lines are gathered, so that one write holds many of them. A killed server loses what it has not written.
const GATHER: Duration = Duration::from_millis(100);
/// The interval at which old files are removed.
const TIDY_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Writer {
    config: Config,
    shared: Arc<Shared>,
    open: HashMap<SessionId, LogFile>,
    /// Sessions whose last lines could not be written, and how many lines of each are missing.
    failing: HashMap<SessionId, u64>,
    /// Number of events lost since the log could no longer be written; `None` while it can be written.
    lost: Option<u64>,
    tidied: Option<Instant>,
}

impl Writer {
    pub(super) fn new(config: Config, shared: Arc<Shared>) -> Self {
        Self {
            config,
            shared,
            open: HashMap::new(),
            failing: HashMap::new(),
            lost: None,
            tidied: None,
        }
    }

    /// Writes until the logs are closed.
    pub(super) fn run(mut self) {
        if let Err(error) = self.config.make_folder() {
            self.report(&error);
        }
        loop {
            if self.tidied.is_none_or(|then| then.elapsed() >= TIDY_EVERY) {
                tidy_up(&self.config, |path| {
                    self.open.values().any(|file| file.is_at(path))
                });
                self.tidied = Some(Instant::now());
            }
            let (buffers, last) = self.shared.queue.take(GATHER, TIDY_EVERY);
            for buffer in &buffers {
                self.write(buffer);
            }
            if last {
                return;
            }
        }
    }

    fn write(&mut self, buffer: &Buffer) {
        let session = &buffer.session;
        let missing = self.failing.get(session).copied().unwrap_or(0);
        let taken = buffer.take(missing);
        if taken.dropped > 0 {
            tracing::warn!(session_id = %session, events = taken.dropped, "events came faster than the session log could be written");
        }
        if !taken.lines.is_empty() {
            match self.append(session, &buffer.tenant, &taken.lines) {
                Ok(()) => self.succeeded(session),
                Err(Unwritten { kept, error }) => {
                    let lost = count_lines(taken.lines.get(kept..taken.events).unwrap_or_default());
                    self.failed(session, taken.missing + lost, lost, &error);
                }
            }
        }
        if taken.closed {
            self.open.remove(session);
            self.failing.remove(session);
        }
    }

    fn append(
        &mut self,
        session: &SessionId,
        tenant: &Tenant,
        lines: &[u8],
    ) -> Result<(), Unwritten> {
        let config = self.config.of_tenant(tenant);
        let file = match self.open.remove(session) {
            Some(file) => Ok(file),
            None => LogFile::open(session.as_str(), &config),
        };
        let turned = file.and_then(|file| file.turned(lines.len(), &config));
        let mut file = turned.map_err(Unwritten::nothing_kept)?;
        file.append(lines)?;
        self.open.insert(session.clone(), file);
        Ok(())
    }

    fn succeeded(&mut self, session: &SessionId) {
        self.failing.remove(session);
        if self.failing.is_empty()
            && let Some(lost) = self.lost.take()
        {
            tracing::info!(lost, "the session log is written again");
        }
    }

    fn failed(&mut self, session: &SessionId, missing: u64, lost: u64, error: &io::Error) {
        self.failing.insert(session.clone(), missing);
        self.shared.lost.fetch_add(lost, Ordering::Relaxed);
        self.report(error);
        self.lost = self.lost.map(|before| before + lost);
    }

    /// Reports that the log cannot be written: once, however many sessions are affected and however long it lasts.
    fn report(&mut self, error: &io::Error) {
        if self.lost.is_none() {
            let folder = self.config.dir.display();
            tracing::error!(%error, %folder, "the session log cannot be written; sessions go on without it");
            self.lost = Some(0);
        }
    }
}

fn count_lines(lines: &[u8]) -> u64 {
    lines.iter().filter(|&&byte| byte == b'\n').count() as u64
}
