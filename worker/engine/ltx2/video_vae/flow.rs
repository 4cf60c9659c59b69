//! The state for passing a clip through convolutions, at once or in groups of frames.
//!
//! A convolution along time needs the frames around each frame. When a clip comes in groups, each layer keeps the
//! frames that the next group's first ones will need, and returns the frames whose neighbours it has seen. The pieces
//! together therefore equal the result for the whole clip, while only a group's frames are in memory.

use tch::Tensor;

/// The state that the layers of one part of the network keep between the groups of a clip.
///
/// The layers take their places in the order of computation, the same for each group.
#[derive(Debug)]
pub(super) struct Flow {
    places: Vec<Place>,
    next: usize,
    last: bool,
}

/// The state of one layer.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// The frames of the layer's input that later output needs.
    pub(super) kept: Option<Tensor>,
    /// Whether the layer has returned any frame.
    pub(super) begun: bool,
}

impl Flow {
    pub(super) fn new() -> Self {
        Self {
            places: Vec::new(),
            next: 0,
            last: false,
        }
    }

    /// Creates the state for a clip that comes as one group.
    pub(super) fn whole() -> Self {
        let mut flow = Self::new();
        flow.begin(true);
        flow
    }

    /// Begins the next group. `last` means that no other group follows.
    pub(super) fn begin(&mut self, last: bool) {
        self.next = 0;
        self.last = last;
    }

    /// Returns whether this group is the clip's last.
    pub(super) fn is_last(&self) -> bool {
        self.last
    }

    /// Returns the next layer's place.
    pub(super) fn place(&mut self) -> &mut Place {
        if self.next == self.places.len() {
            self.places.push(Place::default());
        }
        self.next += 1;
        &mut self.places[self.next - 1]
    }

    /// Adds to `sum` the frames of `x` that it was computed from, both `[…, F, H, W]`: those kept from earlier groups,
    /// then those of this one. Keeps the other frames for later.
    pub(super) fn add_delayed(&mut self, sum: &Tensor, x: &Tensor) {
        let place = self.place();
        let (frames, own) = (frames_of(sum), frames_of(x));
        let kept = place.kept.take();
        let before = kept.as_ref().map_or(0, frames_of);
        // The numbers of frames from the kept ones, then from `x`.
        let (old, new) = (before.min(frames), (frames - before).max(0));
        let mut later = Vec::new();
        if let Some(kept) = kept {
            let _ = sum
                .narrow(FRAMES, 0, old)
                .g_add_(&kept.narrow(FRAMES, 0, old));
            later.push(kept.narrow(FRAMES, old, before - old));
        }
        let _ = sum
            .narrow(FRAMES, old, new)
            .g_add_(&x.narrow(FRAMES, 0, new));
        later.push(x.narrow(FRAMES, new, own - new));
        if before + own > frames {
            place.kept = Some(Tensor::cat(&later, FRAMES));
        }
    }
}

/// The axis of frames, counted from the last one.
const FRAMES: i64 = -3;

fn frames_of(x: &Tensor) -> i64 {
    let sizes = x.size();
    sizes[sizes.len() - 3]
}
