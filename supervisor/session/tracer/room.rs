//! A limit on the number of spans.

/// How many more spans there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room(usize);

impl Room {
    pub(super) const fn new(spans: usize) -> Self {
        Self(spans)
    }

    /// Takes the place of one span. Returns whether there was one.
    pub(super) fn take(&mut self) -> bool {
        let is_room = self.0 > 0;
        self.0 -= usize::from(is_room);
        is_room
    }

    /// Returns the room with a place that was kept for one span.
    pub(super) const fn and_one(self) -> Self {
        Self(self.0 + 1)
    }
}
