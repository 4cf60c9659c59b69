//! The order in which servers are asked for what concerns video jobs. It is arithmetic: no clock, no socket.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;

use crate::tenant::Tenant;

/// What is known of a server that could take a video job.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Maker {
    pub(super) url: String,
    /// Servers with the same one have the same videos.
    pub(super) store: String,
    /// Whether it has ever answered.
    pub(super) was_reached: bool,
    pub(super) standing: Standing,
    /// The jobs for each of its GPUs, with one more; `None` where it does not tell.
    pub(super) load: Option<f64>,
    pub(super) is_primary: bool,
    /// The number of the last job that it was asked for; 0 before the first one.
    pub(super) last_video: u64,
}

/// Whether a server takes jobs. The earlier ones are asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    Open,
    /// None of its workers serves yet: jobs wait for them.
    Starting,
    /// It drains, and takes no job.
    Leaving,
    /// It does not answer.
    Away,
}

/// Returns the servers in the order in which they are asked to make a video, by their place in the list: the one with the least
/// to do for its GPUs comes first. Servers that do not tell what they have to do come after those that do: the primary, then
/// in turn.
pub(super) fn by_load(makers: &[Maker]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..makers.len()).collect();
    order.sort_by(|&a, &b| compare(&makers[a], &makers[b]));
    order
}

/// Returns the servers in the order in which they are asked to make a video under an idempotency key. Those of one store come
/// first, which is the same for that key every time, whatever the servers have to do and whichever is away: a rendezvous hash.
/// A server that has never answered has no job of that key, and its store is not known: it is left out.
pub(super) fn by_key(makers: &[Maker], tenant: &Tenant, key: &[u8]) -> Vec<usize> {
    let mut order = by_load(makers);
    order.retain(|&place| makers[place].was_reached);
    let mut scores: HashMap<&str, [u8; 32]> = HashMap::new();
    for &place in &order {
        let Maker { url, store, .. } = &makers[place];
        let score = score(url, tenant, key);
        let best = scores.entry(store).or_default();
        *best = score.max(*best);
    }
    // Those of one store keep their order.
    order.sort_by_key(|&place| {
        let store = makers[place].store.as_str();
        (Reverse(scores[store]), store)
    });
    order
}

/// Returns how much a key is drawn to a server.
fn score(url: &str, tenant: &Tenant, key: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in [url.as_bytes(), tenant.as_str().as_bytes(), key] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn compare(a: &Maker, b: &Maker) -> Ordering {
    let load = |maker: &Maker| maker.load.unwrap_or(f64::INFINITY);
    (a.standing.cmp(&b.standing))
        .then(load(a).total_cmp(&load(b)))
        .then(b.is_primary.cmp(&a.is_primary))
        .then(a.last_video.cmp(&b.last_video))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn maker(name: &str) -> Maker {
        Maker {
            url: format!("http://{name}"),
            store: name.to_owned(),
            was_reached: true,
            standing: Standing::Open,
            load: None,
            is_primary: false,
            last_video: 0,
        }
    }

    fn loaded(load: f64) -> Maker {
        Maker {
            load: Some(load),
            ..maker("a")
        }
    }

    #[test]
    fn who_has_the_least_to_do_is_asked_first_and_who_takes_nothing_last() {
        let stands = |standing| Maker {
            standing,
            ..loaded(0.0)
        };
        let makers = [
            stands(Standing::Away),
            stands(Standing::Leaving),
            stands(Standing::Starting),
            maker("a"),
            loaded(2.0),
            loaded(0.5),
        ];
        assert_eq!(by_load(&makers), [5, 4, 3, 2, 1, 0]);
    }

    #[test]
    fn equal_servers_take_turns_after_the_primary() {
        let took = |last_video| Maker {
            last_video,
            ..maker("a")
        };
        assert_eq!(by_load(&[took(3), took(0), took(1), took(0)]), [1, 3, 2, 0]);
        let primary = Maker {
            is_primary: true,
            ..took(9)
        };
        assert_eq!(by_load(&[took(0), primary]), [1, 0]);
    }

    /// The store that is asked first for a key.
    fn store_of(makers: &[Maker], key: u32) -> Option<&str> {
        let order = by_key(makers, &Tenant::default(), &key.to_le_bytes());
        order.first().map(|&place| makers[place].store.as_str())
    }

    #[test]
    fn keys_are_spread_over_all_servers() {
        let makers = ["a", "b", "c", "d"].map(maker);
        for name in ["a", "b", "c", "d"] {
            let keys = (0..1000).filter(|key| store_of(&makers, *key) == Some(name));
            let keys = keys.count();
            assert!((150..350).contains(&keys), "{keys} of 1000 for {name}");
        }
    }

    #[test]
    fn a_server_that_was_never_reached_takes_no_key() {
        let unseen = Maker {
            was_reached: false,
            ..maker("b")
        };
        let makers = [maker("a"), unseen];
        assert!((0..100).all(|key| store_of(&makers, key) == Some("a")));
        assert_eq!(store_of(&makers[1..], 1), None);
    }

    proptest! {
        #[test]
        fn a_key_stays_with_its_store_whatever_changes_but_the_servers(
            servers in proptest::collection::vec((0_usize..4, 0_u64..9, any::<bool>()), 1..8),
            key in any::<u32>()
        ) {
            let before: Vec<Maker> = servers
                .iter()
                .enumerate()
                .map(|(n, (store, ..))| Maker {
                    store: store.to_string(),
                    ..maker(&n.to_string())
                })
                .collect();
            let mut after = before.clone();
            for (maker, (_, jobs, is_away)) in after.iter_mut().zip(&servers) {
                maker.load = Some(*jobs as f64);
                maker.standing = if *is_away { Standing::Away } else { Standing::Open };
            }
            after.reverse();
            prop_assert_eq!(store_of(&before, key), store_of(&after, key));
            // Nobody is lost, and stores are asked one after the other.
            let order = by_key(&after, &Tenant::default(), &key.to_le_bytes());
            prop_assert_eq!(order.len(), after.len());
            let mut stores: Vec<_> = order.iter().map(|&place| &after[place].store).collect();
            stores.dedup();
            let count = stores.len();
            stores.sort_unstable();
            stores.dedup();
            prop_assert_eq!(stores.len(), count);
        }
    }
}
