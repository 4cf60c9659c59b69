//! How long each segment took, from a log or from a conversation.

use std::collections::BTreeMap;

use fastvideo_supervisor_core::session::log::LogEvent as Event;
use serde::Serialize;

use crate::sessions::history::History;

/// The times of each finished segment, in milliseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Times(BTreeMap<u32, SegmentTimes>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct SegmentTimes {
    /// Time in the worker.
    pub(super) generation_ms: f64,
    /// Time from the request to the first media.
    pub(super) first_byte_ms: Option<f64>,
    /// Time from the request to the last media.
    pub(super) last_byte_ms: Option<f64>,
}

impl Times {
    pub(super) fn of_log(history: &History) -> Self {
        let mut times = Self::default();
        let mut bytes: BTreeMap<u32, (Option<f64>, Option<f64>)> = BTreeMap::new();
        for (_, event) in history.known() {
            match event {
                Event::FirstByte {
                    segment_idx, ms, ..
                } => bytes.entry(*segment_idx).or_default().0 = Some(*ms),
                Event::LastByte {
                    segment_idx, ms, ..
                } => bytes.entry(*segment_idx).or_default().1 = Some(*ms),
                Event::SegmentFinished {
                    segment_idx,
                    generation_ms,
                    ..
                } => times.add(*segment_idx, *generation_ms, None, None),
                _ => {}
            }
        }
        for (segment, of) in &mut times.0 {
            if let Some((first, last)) = bytes.get(segment) {
                (of.first_byte_ms, of.last_byte_ms) = (*first, *last);
            }
        }
        times
    }

    pub(super) fn add(
        &mut self,
        segment: u32,
        generation_ms: f64,
        first_byte_ms: Option<f64>,
        last_byte_ms: Option<f64>,
    ) {
        let times = SegmentTimes {
            generation_ms,
            first_byte_ms,
            last_byte_ms,
        };
        self.0.insert(segment, times);
    }

    pub(super) fn of(&self, segment: u32) -> Option<SegmentTimes> {
        self.0.get(&segment).copied()
    }

    /// Returns the segments that have times.
    pub(super) fn segments(&self) -> impl Iterator<Item = u32> {
        self.0.keys().copied()
    }
}
