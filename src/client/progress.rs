//! Shows the progress of a session or a job on stderr: a progress bar on a terminal, lines elsewhere.

use std::io::{IsTerminal, Write, stderr};

use indicatif::{ProgressBar, ProgressStyle};

use crate::logging::escape::Plain;

/// The progress on stderr. stdout is left to the summary.
#[derive(Debug)]
pub(super) struct Progress {
    /// The progress bar; `None` when stderr is no terminal. One bar is enough, since the client either waits or follows one
    /// segment.
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Creates a progress bar if stderr is a terminal.
    pub(super) fn on_stderr() -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style)
        });
        Self { bar }
    }

    /// Prints a line that stays above the bar. Control characters in it are escaped, since the server chose parts of it.
    pub(super) fn say(&self, line: &str) {
        let print = || {
            // An error means that nobody reads stderr.
            let _ = writeln!(stderr(), "{}", Plain(line));
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Shows the position in the queue.
    pub(super) fn waiting(&self, position: usize, queue_depth: usize) {
        match &self.bar {
            Some(bar) => {
                bar.set_prefix("waiting");
                bar.set_length(queue_depth.max(position + 1) as u64);
                bar.set_position(queue_depth.saturating_sub(position) as u64);
                bar.set_message(format!("{position} before this one"));
            }
            None => self.say(&format!("waiting: {position} before this one")),
        }
    }

    /// Begins the bar of a segment.
    pub(super) fn segment(&self, segment_idx: u32, total_steps: u32) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(format!("segment {segment_idx}"));
            bar.set_length(total_steps.into());
            bar.set_position(0);
            bar.set_message("");
        }
    }

    /// Shows the last finished step, 1 to the total.
    pub(super) fn step(&self, step: u32) {
        if let Some(bar) = &self.bar {
            bar.set_position(step.into());
        }
    }

    /// Shows what has arrived of the segment.
    pub(super) fn media(&self, fragments: u32, bytes: u64) {
        if let Some(bar) = &self.bar {
            let bytes = indicatif::HumanBytes(bytes);
            bar.set_message(format!("{fragments} fragments, {bytes}"));
        }
    }

    /// Shows what happens to a job now.
    pub(super) fn job(&self, stage: &str, percent: u32) {
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(stage.to_owned());
                bar.set_length(100);
                bar.set_message("%");
                self.percent(percent);
            }
            None => self.say(&format!("{stage}, {percent} %")),
        }
    }

    /// Shows how much of a job is done.
    pub(super) fn percent(&self, percent: u32) {
        if let Some(bar) = &self.bar {
            bar.set_position(percent.into());
        }
    }

    /// Shows how much of the video has come.
    pub(super) fn fetched(&self, bytes: u64, size: u64) {
        if let Some(bar) = &self.bar {
            bar.set_prefix("fetching");
            bar.set_length(size);
            bar.set_position(bytes);
            bar.set_message("bytes");
        }
    }

    /// Removes the bar.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
