//! The thread that writes all sessions' lines.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::event::LogEvent;
use super::files::{Config, LogFile, Unwritten, tidy_up};
use super::signature::{KeyError, Signer};
use super::{Buffer, Clock, Shared, write_line};
use crate::causes::with_causes;

/// How long lines are gathered, so that one write holds many of them. A killed server loses what it has not written.
const GATHER: Duration = Duration::from_millis(100);
/// The interval at which old files are removed.
const TIDY_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Writer {
    config: Config,
    shared: Arc<Shared>,
    open: HashMap<Box<str>, LogFile>,
    /// Sessions whose last lines could not be written, and how many lines of each are missing.
    failing: HashMap<Box<str>, u64>,
    /// Number of events lost since the log could no longer be written; `None` while it can be written.
    lost: Option<u64>,
    tidied: Option<Instant>,
    /// The key that signs the files; `None` while there is none.
    signer: Option<Signer>,
    clock: Clock,
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
            signer: None,
            clock: Clock::now(),
        }
    }

    /// Writes until the logs are closed.
    pub(super) fn run(mut self) {
        if let Err(error) = self.config.make_folder() {
            self.report(&error);
        }
        match self.open_key() {
            Ok(signer) => {
                tracing::info!(key = %signer.key(), "session logs are signed");
                self.signer = Some(signer);
            }
            Err(error) => {
                let error = with_causes(&error);
                tracing::warn!(error, "session logs are not signed");
            }
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
                self.sign_all();
                return;
            }
        }
    }

    fn open_key(&self) -> Result<Signer, KeyError> {
        match &self.config.signing_key {
            Some(path) => Signer::read(path),
            None => Signer::open(&self.config.dir),
        }
    }

    fn write(&mut self, buffer: &Buffer) {
        let session = &*buffer.session;
        let missing = self.failing.get(session).copied().unwrap_or(0);
        let taken = buffer.take(missing);
        if taken.dropped > 0 {
            tracing::warn!(session_id = %session, events = taken.dropped, "events came faster than the session log could be written");
        }
        if !taken.lines.is_empty() {
            match self.append(buffer, &taken.lines) {
                Ok(()) => self.succeeded(session),
                Err(Unwritten { kept, error }) => {
                    let lost = count_lines(taken.lines.get(kept..taken.events).unwrap_or_default());
                    self.failed(session, taken.missing + lost, lost, &error);
                }
            }
        }
        if taken.closed {
            if let Some(mut file) = self.open.remove(session)
                && let Err(Unwritten { error, .. }) = self.sign(&mut file, buffer.clock.unix())
            {
                self.report(&error);
            }
            self.failing.remove(session);
        }
    }

    fn append(&mut self, buffer: &Buffer, lines: &[u8]) -> Result<(), Unwritten> {
        let session = &*buffer.session;
        let config = self.config.of_tenant(&buffer.tenant);
        let key = self.signer.as_ref().map(Signer::key);
        let file = match self.open.remove(session) {
            Some(file) => Ok(file),
            None => LogFile::open(session, &config, key),
        };
        let mut file = file.map_err(Unwritten::nothing_kept)?;
        if file.is_full(lines.len(), &config) {
            self.sign(&mut file, buffer.clock.unix())
                .map_err(Unwritten::of_nothing)?;
            let turned = file.turned(&config, key);
            file = turned.map_err(Unwritten::nothing_kept)?;
        }
        file.append(lines)?;
        self.open.insert(session.into(), file);
        Ok(())
    }

    /// Signs what a file has, at this Unix time.
    fn sign(&self, file: &mut LogFile, ts: f64) -> Result<(), Unwritten> {
        let signer = self.signer.as_ref();
        let Some(signature) = signer.and_then(|signer| file.signature(signer)) else {
            return Ok(());
        };
        let mut line = Vec::new();
        write_line(file.session(), ts, &LogEvent::Signed(signature), &mut line);
        file.append_signature(&line)
    }

    /// Signs the files of sessions that have not ended, although the server does.
    fn sign_all(&mut self) {
        for mut file in std::mem::take(&mut self.open).into_values() {
            if let Err(Unwritten { error, .. }) = self.sign(&mut file, self.clock.unix()) {
                self.report(&error);
            }
        }
    }

    fn succeeded(&mut self, session: &str) {
        self.failing.remove(session);
        if self.failing.is_empty()
            && let Some(lost) = self.lost.take()
        {
            tracing::info!(lost, "the session log is written again");
        }
    }

    fn failed(&mut self, session: &str, missing: u64, lost: u64, error: &io::Error) {
        self.failing.insert(session.into(), missing);
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
