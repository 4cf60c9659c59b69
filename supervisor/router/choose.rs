//! The choice of the server that takes a session. It is arithmetic: no clock, no socket.

use std::cmp::Ordering;

/// What is known of a server that could take a session.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) is_primary: bool,
    /// How much it can do in comparison with the others, above 0.
    pub(super) weight: f64,
    /// `None` for a server that has no control link.
    pub(super) load: Option<Load>,
}

/// How much a server has to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    /// Whether it serves, and takes further sessions.
    pub(super) is_open: bool,
    pub(super) is_of_own_zone: bool,
    /// Sessions that it can serve at once.
    pub(super) places: usize,
    /// Sessions that it could take now, without those that are on their way to it.
    pub(super) free: usize,
    /// Its sessions, and those that are on their way to it.
    pub(super) sessions: usize,
}

/// Returns the servers in the order in which a session tries them, by their place among the candidates.
///
/// A server with room comes before one whose room is not known, and that before one where the session would wait. Among
/// these, the primary comes first, then the router's own zone, then who has the least to do for its size, then the order
/// of the configuration. A server that takes no session is left out.
pub(super) fn order(candidates: &[Candidate]) -> Vec<usize> {
    let is_open = |candidate: &Candidate| candidate.load.is_none_or(|load| load.is_open);
    let mut order: Vec<usize> = (0..candidates.len())
        .filter(|&place| is_open(&candidates[place]))
        .collect();
    // Equal ones keep their order.
    order.sort_by(|&a, &b| compare(&candidates[a], &candidates[b]));
    order
}

fn compare(a: &Candidate, b: &Candidate) -> Ordering {
    let first = |yes: bool| u8::from(!yes);
    let room = |candidate: &Candidate| match candidate.load {
        Some(load) if load.free > 0 => 0,
        None => 1,
        Some(_) => 2,
    };
    let is_near = |candidate: &Candidate| candidate.load.is_none_or(|load| load.is_of_own_zone);
    (room(a).cmp(&room(b)))
        .then(first(a.is_primary).cmp(&first(b.is_primary)))
        .then(first(is_near(a)).cmp(&first(is_near(b))))
        .then(fullness(a).total_cmp(&fullness(b)))
}

/// Returns how full a server would be with one session more.
fn fullness(candidate: &Candidate) -> f64 {
    let Some(load) = candidate.load else {
        return 0.0;
    };
    let places = load.places.max(1) as f64 * candidate.weight;
    (load.sessions + 1) as f64 / places
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOAD: Load = Load {
        is_open: true,
        is_of_own_zone: true,
        places: 8,
        free: 8,
        sessions: 0,
    };

    fn linked(change: impl FnOnce(&mut Load)) -> Candidate {
        let mut load = LOAD;
        change(&mut load);
        Candidate {
            is_primary: false,
            weight: 1.0,
            load: Some(load),
        }
    }

    fn plain(is_primary: bool) -> Candidate {
        Candidate {
            is_primary,
            weight: 1.0,
            load: None,
        }
    }

    fn with(sessions: usize) -> Candidate {
        linked(|load| {
            load.sessions = sessions;
            load.free = 8 - sessions;
        })
    }

    #[test]
    fn servers_without_a_link_are_taken_as_the_file_says() {
        assert_eq!(order(&[plain(false), plain(true), plain(false)]), [1, 0, 2]);
        assert_eq!(order(&[plain(false), plain(false)]), [0, 1]);
        assert!(order(&[]).is_empty());
    }

    #[test]
    fn who_has_the_least_to_do_for_its_size_comes_first() {
        assert_eq!(order(&[with(3), with(1), with(2), with(1)]), [1, 3, 2, 0]);
        let large = |sessions| Candidate {
            weight: 4.0,
            ..with(sessions)
        };
        assert_eq!(order(&[with(1), large(5)]), [1, 0]);
        assert_eq!(order(&[with(1), large(7)]), [0, 1]);
    }

    #[test]
    fn a_primary_that_is_full_or_leaves_gives_way() {
        let primary = |candidate: Candidate| Candidate {
            is_primary: true,
            ..candidate
        };
        assert_eq!(order(&[with(1), primary(with(7))]), [1, 0]);
        assert_eq!(order(&[with(7), primary(with(8))]), [0, 1]);
        let leaving = primary(linked(|load| load.is_open = false));
        assert_eq!(order(&[with(8), leaving]), [0]);
    }

    #[test]
    fn the_own_zone_comes_first_while_it_has_room() {
        let far = |sessions| {
            let mut candidate = with(sessions);
            candidate.load.as_mut().unwrap().is_of_own_zone = false;
            candidate
        };
        assert_eq!(order(&[far(0), with(7)]), [1, 0]);
        assert_eq!(order(&[far(0), with(8)]), [0, 1]);
    }

    #[test]
    fn room_that_is_known_comes_before_room_that_is_not() {
        assert_eq!(order(&[plain(true), with(1), with(8)]), [1, 0, 2]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_server_with_room_comes_late(
            servers in proptest::collection::vec((any::<bool>(), 1_usize..9, 0_usize..9, any::<bool>()), 0..12)
        ) {
            let candidates: Vec<Candidate> = servers
                .iter()
                .map(|&(is_primary, places, sessions, is_open)| Candidate {
                    is_primary,
                    weight: 1.0,
                    load: Some(Load {
                        is_open,
                        places,
                        sessions,
                        free: places.saturating_sub(sessions),
                        ..LOAD
                    }),
                })
                .collect();
            let order = order(&candidates);
            let open = candidates.iter().filter(|c| c.load.is_some_and(|load| load.is_open));
            prop_assert_eq!(order.len(), open.count());
            let has_room = |place: &usize| candidates[*place].load.is_some_and(|load| load.free > 0);
            prop_assert!(order.is_sorted_by_key(|place| !has_room(place)));
        }
    }
}
