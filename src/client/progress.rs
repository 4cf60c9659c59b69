//! What a person sees while a session runs: bars on a terminal, lines elsewhere.

use std::io::{IsTerminal, Write, stderr};

use indicatif::{ProgressBar, ProgressStyle};

/// On stderr, so that stdout is free for the summary.
#[derive(Debug)]
pub(super) struct Progress {
    /// The bar is reused: at any time one thing happens, waiting or one segment.
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn on_stderr() -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style)
        });
        Self { bar }
    }

    /// A line that stays.
    pub(super) fn say(&self, line: &str) {
        let print = || {
            // Err: nobody reads.
            let _ = writeln!(stderr(), "{line}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

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

    pub(super) fn segment(&self, segment_idx: u32, total_steps: u32) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(format!("segment {segment_idx}"));
            bar.set_length(total_steps.into());
            bar.set_position(0);
            bar.set_message("");
        }
    }

    pub(super) fn step(&self, step: u32) {
        if let Some(bar) = &self.bar {
            bar.set_position(step.into());
        }
    }

    pub(super) fn media(&self, fragments: u32, bytes: u64) {
        if let Some(bar) = &self.bar {
            let bytes = indicatif::HumanBytes(bytes);
            bar.set_message(format!("{fragments} fragments, {bytes}"));
        }
    }

    /// Nothing runs any more.
    pub(super) fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
