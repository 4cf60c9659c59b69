//! The line of the sessions that wait for a place at a server: whoever came first is served first. A session that has
//! lost its server keeps the place in the line that it had when it came, and so stands before all who came later.
//!
//! This is the line as this router knows it, and what it says is arithmetic. Where several routers share a Redis,
//! `shared` gives sessions their numbers there, and keeps the tickets of the other routers here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

pub(super) mod shared;

/// How long a session that comes waits for its number among those of all routers.
const NUMBER_TIMEOUT: Duration = Duration::from_millis(500);

/// For so long, a free place is left to those who came earlier: their router may not reach the server that has it, or the
/// server does not know the session that they go on with.
const PATIENCE: Duration = Duration::from_secs(5);

/// The sessions that wait. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Line(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// Told when a session may stand further ahead than before.
    changes: watch::Sender<()>,
    /// Told when sessions may have got their numbers.
    numbered: watch::Sender<()>,
    /// Notified when the other routers are to be told something.
    to_share: Notify,
}

#[derive(Debug, Default)]
struct State {
    router: RouterId,
    /// Number of sessions that have come to this router.
    arrivals: u64,
    /// The sessions of this router, by the order of their arrival here.
    own: BTreeMap<u64, Session>,
    /// The tickets of other routers; empty while they are not known.
    foreign: BTreeSet<Ticket>,
    queue: Queue,
    /// Whether numbers are those of all routers.
    is_common: bool,
    /// The highest number that was given to any session as far as is known.
    highest: u64,
}

/// A session of this router.
#[derive(Debug)]
struct Session {
    /// Its number among those of all routers, once it has one.
    number: Option<u64>,
    /// Where it may begin or go on while it waits.
    waits: Option<Wish>,
}

/// The id of one run of one router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct RouterId(u128);

/// A place in the order of arrival. Sessions of different routers may have the same number after a loss of data; then
/// the router's id decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    number: Number,
    router: RouterId,
}

/// The number of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Number {
    /// Among the sessions of all routers.
    Common(u64),
    /// Among the sessions of this router that have no other number. They stand behind all others.
    Local(u64),
}

/// The places that a session can take: at any server when it has not begun (`None`), else at those of its home.
type Wish = Option<Arc<str>>;

/// A session that waits at any router, as the routers tell each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ticket {
    number: u64,
    router: RouterId,
    wish: Wish,
}

/// The number of sessions that servers would take now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    /// At servers where a session can go on that has begun, by their home's name.
    pub(super) homes: BTreeMap<String, usize>,
    /// At servers where only new sessions can begin.
    pub(super) elsewhere: usize,
}

/// A session of this router, from its arrival to its end.
#[derive(Debug)]
pub(super) struct Arrival {
    id: u64,
    line: Line,
}

/// A place in the line. Dropping it leaves the line.
#[derive(Debug)]
pub(super) struct LinePlace {
    id: u64,
    line: Line,
    /// How many sessions are ahead who could take a place that is free, and since when it is.
    passed_by: Option<(usize, Instant)>,
}

/// What a session can have of the free places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Claim {
    /// The places that it can take.
    free: usize,
    /// Those of them that are taken by sessions that came earlier.
    ahead: usize,
}

impl Claim {
    fn is_granted(self) -> bool {
        self.ahead < self.free
    }
}

impl Line {
    /// Gives a session that comes its number, and its place in the line. Where the number is one among those of all
    /// routers and there is no answer in time, the session gets it later and stands behind all others until then.
    pub(super) async fn arrive(&self) -> Arrival {
        let arrival = self.arrive_here();
        let mut numbered = self.0.numbered.subscribe();
        let waiting = async {
            while self.lock().is_unnumbered(arrival.id) && numbered.changed().await.is_ok() {}
        };
        // Err: it stands in the line all the same.
        let _ = timeout(NUMBER_TIMEOUT, waiting).await;
        arrival
    }

    fn arrive_here(&self) -> Arrival {
        let mut state = self.lock();
        state.arrivals += 1;
        let id = state.arrivals;
        let session = Session {
            number: None,
            waits: None,
        };
        state.own.insert(id, session);
        state.wait(id, Some(None));
        drop(state);
        self.0.to_share.notify_one();
        Arrival {
            id,
            line: self.clone(),
        }
    }

    /// Puts a session into the line, at the place that its number gives it. `home` names the home of a session that has
    /// begun.
    pub(super) fn enter(&self, arrival: &Arrival, home: Option<String>) -> LinePlace {
        let is_new = self.lock().wait(arrival.id, Some(home.map(Arc::from)));
        if is_new {
            self.0.to_share.notify_one();
        }
        LinePlace {
            id: arrival.id,
            line: self.clone(),
            passed_by: None,
        }
    }

    /// Returns the number of sessions that wait, at all routers as far as is known.
    pub(super) fn len(&self) -> usize {
        self.lock().queue.len()
    }

    /// Returns whether this is the line of all routers at the moment.
    pub(super) fn is_common(&self) -> bool {
        self.lock().is_common
    }

    fn leave(&self, id: u64) {
        let has_left = self.lock().wait(id, None);
        if has_left {
            self.0.changes.send_replace(());
            self.0.to_share.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        (self.0.state.lock()).expect("no holder of this lock panics")
    }
}

impl LinePlace {
    /// Returns the number of sessions that came before this one and wait, and of all that wait.
    pub(super) fn rank(&self) -> (usize, usize) {
        let state = self.line.lock();
        let order = state.own_order(self.id);
        (state.queue.before(order), state.queue.len())
    }

    /// Returns whether one of the free places is this session's: those who came earlier do not take them all, or have
    /// left one free for a while.
    pub(super) fn may_take(&mut self, room: &Room) -> bool {
        let claim = {
            let state = self.line.lock();
            let wish = (state.own.get(&self.id)).and_then(|session| session.waits.as_ref());
            wish.map_or(Claim::default(), |wish| {
                state.queue.claim(state.own_order(self.id), wish, room)
            })
        };
        if claim.free == 0 || claim.is_granted() {
            self.passed_by = None;
            return claim.is_granted();
        }
        match self.passed_by {
            // Whoever stands further behind leaves it to the others for longer.
            Some((ahead, since)) if ahead <= claim.ahead => {
                let behind = u32::try_from(claim.ahead - claim.free).unwrap_or(u32::MAX);
                since.elapsed() >= PATIENCE.saturating_mul(behind.saturating_add(1))
            }
            _ => {
                self.passed_by = Some((claim.ahead, Instant::now()));
                false
            }
        }
    }

    /// Returns a receiver that is told when the session may stand further ahead.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.line.0.changes.subscribe()
    }
}

impl Drop for LinePlace {
    fn drop(&mut self) {
        self.line.leave(self.id);
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.line.leave(self.id);
        self.line.lock().own.remove(&self.id);
    }
}

impl State {
    /// Returns where a session of this router stands, in the line or outside it.
    fn own_order(&self, id: u64) -> Order {
        let number = self.own.get(&id).and_then(|session| session.number);
        Order {
            number: number.map_or(Number::Local(id), Number::Common),
            router: self.router,
        }
    }

    /// Returns whether a session waits for a number among those of all routers.
    fn is_unnumbered(&self, id: u64) -> bool {
        let number = self.own.get(&id).map(|session| session.number);
        self.is_common && number == Some(None)
    }

    /// Lets a session of this router wait for such a place, or for none. Returns whether it did not do so before.
    fn wait(&mut self, id: u64, waits: Option<Wish>) -> bool {
        let order = self.own_order(id);
        let Some(session) = self.own.get_mut(&id) else {
            return false;
        };
        if session.waits == waits {
            return false;
        }
        if let Some(before) = &session.waits {
            self.queue.remove(order, before);
        }
        if let Some(wish) = &waits {
            self.queue.insert(order, wish);
        }
        session.waits = waits;
        true
    }

    /// Gives a session of this router its number among those of all routers.
    fn number(&mut self, id: u64, number: u64) {
        let Some(session) = self.own.get_mut(&id) else {
            return;
        };
        let waits = session.waits.take();
        let before = self.own_order(id);
        if let Some(wish) = &waits {
            self.queue.remove(before, wish);
        }
        if let Some(session) = self.own.get_mut(&id) {
            session.number = Some(number);
        }
        self.wait(id, waits);
    }

    /// Replaces what is known of other routers. Returns whether it was something else.
    fn set_foreign(&mut self, foreign: BTreeSet<Ticket>) -> bool {
        if foreign == self.foreign {
            return false;
        }
        for gone in self.foreign.difference(&foreign) {
            self.queue.remove(gone.order(), &gone.wish);
        }
        for new in foreign.difference(&self.foreign) {
            self.queue.insert(new.order(), &new.wish);
        }
        self.foreign = foreign;
        true
    }

    /// Returns the sessions of this router that have no number among those of all routers, and what they wait for.
    fn unnumbered(&self) -> Vec<(u64, Option<Wish>)> {
        let sessions = self.own.iter();
        let sessions = sessions.filter(|(_, session)| session.number.is_none());
        sessions
            .map(|(id, session)| (*id, session.waits.clone()))
            .collect()
    }

    /// Returns the tickets of this router.
    fn tickets(&self) -> BTreeSet<Ticket> {
        let ticket = |session: &Session| {
            Some(Ticket {
                number: session.number?,
                router: self.router,
                wish: session.waits.clone()?,
            })
        };
        self.own.values().filter_map(ticket).collect()
    }
}

/// All sessions that wait, in the order of arrival for each kind of place that they can take.
#[derive(Debug, Default)]
struct Queue(BTreeMap<Wish, Vec<Order>>);

impl Queue {
    fn insert(&mut self, order: Order, wish: &Wish) {
        let orders = self.0.entry(wish.clone()).or_default();
        if let Err(place) = orders.binary_search(&order) {
            orders.insert(place, order);
        }
    }

    fn remove(&mut self, order: Order, wish: &Wish) {
        let Some(orders) = self.0.get_mut(wish) else {
            return;
        };
        if let Ok(place) = orders.binary_search(&order) {
            orders.remove(place);
        }
        if orders.is_empty() {
            self.0.remove(wish);
        }
    }

    fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Returns the number of those who came earlier.
    fn before(&self, order: Order) -> usize {
        let before = |orders: &Vec<Order>| orders.partition_point(|other| *other < order);
        self.0.values().map(before).sum()
    }

    /// Returns how many free places a session can take, and how many of them those who came earlier do. Of those with one
    /// home, as many count as there are places for them: a session whose home has no room holds nobody up.
    fn claim(&self, order: Order, wish: &Wish, room: &Room) -> Claim {
        let ahead = |wish: &Wish| {
            let orders = self.0.get(wish).map_or(&[][..], Vec::as_slice);
            orders.partition_point(|other| *other < order)
        };
        let ahead_at_home = |home: &str, free: usize| ahead(&Some(home.into())).min(free);
        let (ahead, free) = match wish {
            Some(home) => {
                let free = room.homes.get(&**home).copied().unwrap_or_default();
                (ahead(&None) + ahead_at_home(home, free), free)
            }
            None => {
                let homes = room.homes.iter();
                let bound: usize = homes.map(|(home, free)| ahead_at_home(home, *free)).sum();
                let free = room.elsewhere + room.homes.values().sum::<usize>();
                (ahead(&None) + bound, free)
            }
        };
        Claim { free, ahead }
    }
}

impl Ticket {
    /// Parses what [`fmt::Display`] wrote.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.splitn(3, ' ');
        let number = words.next()?.parse().ok()?;
        let router = RouterId::parse(words.next()?)?;
        Some(Self {
            number,
            router,
            wish: match words.next()? {
                ANY_SERVER => None,
                home => Some(home.into()),
            },
        })
    }

    fn order(&self) -> Order {
        Order {
            number: Number::Common(self.number),
            router: self.router,
        }
    }
}

/// The word in a ticket for a session that may begin at any server. It is no home's name, since those have a slash.
const ANY_SERVER: &str = "-";

fn wish_word(wish: &Wish) -> &str {
    wish.as_deref().unwrap_or(ANY_SERVER)
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {}",
            self.number,
            self.router,
            wish_word(&self.wish)
        )
    }
}

impl RouterId {
    fn parse(text: &str) -> Option<Self> {
        u128::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whoever_came_first_stands_first_also_when_it_comes_back() {
        let line = Line::default();
        let [a, b, c] = [0; 3].map(|_| line.arrive_here());
        assert_eq!(line.len(), 3);
        drop(line.enter(&a, None));
        let (b, c) = (line.enter(&b, None), line.enter(&c, None));
        assert_eq!((b.rank(), c.rank()), ((0, 2), (1, 2)));
        let mut changes = c.changes();
        let a = line.enter(&a, Some("class/store".to_owned()));
        assert_eq!((a.rank(), b.rank(), c.rank()), ((0, 3), (1, 3), (2, 3)));
        assert!(!changes.has_changed().unwrap());
        drop(b);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert_eq!(c.rank(), (1, 2));
        assert_eq!(line.len(), 2);
    }

    #[test]
    fn a_session_that_ends_before_it_has_entered_is_in_no_line() {
        let line = Line::default();
        drop(line.arrive_here());
        assert_eq!(line.len(), 0);
        assert!(line.lock().own.is_empty());
    }

    #[test]
    fn sessions_without_a_common_number_stand_behind_all_others_and_in_their_own_order() {
        let line = Line::default();
        let [a, b, c] = [0; 3].map(|_| line.arrive_here());
        let places = [&a, &b, &c].map(|arrival| line.enter(arrival, None));
        let other = Ticket::parse("7 ff -").unwrap();
        line.lock().set_foreign([other].into());
        let ranks = || [0, 1, 2].map(|n: usize| places[n].rank().0);
        assert_eq!(ranks(), [1, 2, 3]);
        line.lock().number(c.id, 6);
        assert_eq!(ranks(), [2, 3, 0]);
        line.lock().number(a.id, 8);
        assert_eq!(ranks(), [2, 3, 0]);
        assert_eq!(line.lock().tickets().len(), 2);
        assert_eq!(line.lock().unnumbered(), [(b.id, Some(None))]);
        line.lock().set_foreign(BTreeSet::new());
        assert_eq!(ranks(), [1, 2, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_those_ahead_do_not_take_is_taken_in_the_end() {
        let line = Line::default();
        let arrivals = [0; 3].map(|_| line.arrive_here());
        let [mut a, mut b, mut c] = arrivals.each_ref().map(|arrival| line.enter(arrival, None));
        let room = |elsewhere| Room {
            elsewhere,
            ..Room::default()
        };
        let mut may_take = |free| [&mut a, &mut b, &mut c].map(|place| place.may_take(&room(free)));
        assert_eq!(may_take(1), [true, false, false]);
        tokio::time::advance(PATIENCE / 2).await;
        assert_eq!(may_take(1), [true, false, false]);
        tokio::time::advance(PATIENCE / 2).await;
        assert_eq!(may_take(1), [true, true, false]);
        // A place that was taken meanwhile is another one.
        assert_eq!(may_take(0), [false, false, false]);
        assert_eq!(may_take(1), [true, false, false]);
        tokio::time::advance(PATIENCE * 2).await;
        assert_eq!(may_take(1), [true, true, true]);
    }

    #[test]
    fn tickets_are_read_as_they_were_written() {
        for text in [
            "12 000000000000000000000000000000ff -",
            "1 ffffffffffffffffffffffffffffffff a b/redis-1 ",
        ] {
            assert_eq!(Ticket::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "12", "12 ff", "x ff -", "12 y -"] {
            assert_eq!(Ticket::parse(text), None, "{text}");
        }
    }

    /// Sessions in the order of arrival: `None` for new ones, else the number of their home.
    fn queue(wishes: &[Option<u8>]) -> Vec<(Order, Wish)> {
        let sessions = wishes.iter().zip(0..);
        let session = |(wish, number): (&Option<u8>, u64)| {
            let order = Order {
                number: Number::Common(number),
                router: RouterId(u128::from(number % 3)),
            };
            (order, wish.map(|home| Arc::from(home.to_string())))
        };
        sessions.map(session).collect()
    }

    /// Who may take a place.
    fn first(sessions: &[(Order, Wish)], room: &Room) -> Vec<bool> {
        let mut queue = Queue::default();
        // In whichever order they come to be known.
        for (order, wish) in sessions.iter().rev() {
            queue.insert(*order, wish);
        }
        let may_take = |(order, wish): &(Order, Wish)| queue.claim(*order, wish, room).is_granted();
        sessions.iter().map(may_take).collect()
    }

    fn free(wish: &Wish, room: &Room) -> usize {
        match wish {
            Some(home) => room.homes.get(&**home).copied().unwrap_or_default(),
            None => room.elsewhere + room.homes.values().sum::<usize>(),
        }
    }

    proptest! {
        #[test]
        fn free_places_go_by_arrival_among_those_who_can_take_them(
            wishes in proptest::collection::vec(proptest::option::of(0_u8..3), 0..20),
            homes in proptest::collection::btree_map((0_u8..3).prop_map(|home| home.to_string()), 0_usize..4, 0..4),
            elsewhere in 0_usize..3,
        ) {
            let room = Room { homes, elsewhere };
            let sessions = queue(&wishes);
            let may_take = first(&sessions, &room);
            let able = |n: &usize| free(&sessions[*n].1, &room) > 0;
            // No free place is left while somebody can take it, and the first of these may.
            if let Some(first) = (0..sessions.len()).find(able) {
                prop_assert!(may_take[first]);
            }
            for (n, (_, wish)) in sessions.iter().enumerate() {
                let alike = (0..sessions.len()).filter(|other| sessions[*other].1 == *wish);
                let alike: Vec<bool> = alike.map(|other| may_take[other]).collect();
                // Of those who can take the same places, no later one comes before an earlier one.
                prop_assert!(alike.is_sorted_by(|a, b| a >= b));
                let taking = alike.iter().filter(|may| **may).count();
                prop_assert!(taking <= free(wish, &room), "session {}", n);
            }
            // Whoever has no room holds nobody up.
            let (with_room, expected): (Vec<_>, Vec<_>) = (0..sessions.len())
                .filter(able)
                .map(|n| (sessions[n].clone(), may_take[n]))
                .unzip();
            prop_assert_eq!(first(&with_room, &room), expected);
            // New sessions leave to those before them what these take.
            for (n, (_, wish)) in sessions.iter().enumerate() {
                if wish.is_none() && may_take[n] {
                    let earlier = may_take[..n].iter().filter(|may| **may).count();
                    prop_assert!(earlier < free(wish, &room));
                }
            }
        }
    }
}
