//! The counting of references, against a model that counts by looking at everything.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use fastvideo_proto::ids::SessionId;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::backends::{RECORDS, RecordsHome, RecordsKind};
use super::world::video_key;
use crate::store::error::StoreError;
use crate::store::ids::{BlobId, BlobKey, RecordKey, ReservationId, Revision, ServerId};
use crate::store::records::{BlobKind, BlobRef, Order, Record, RecordWrite, Records, VideoPage};
use crate::tenant::Tenant;

#[derive(Clone, Debug)]
enum Step {
    Reserve {
        server: usize,
        blobs: Vec<u8>,
    },
    /// Writes a session with all that one of its reservations has, and with what it has already where `keep`.
    Write {
        server: usize,
        session: usize,
        reservation: usize,
        keep: bool,
    },
    Remove {
        server: usize,
        session: usize,
    },
    /// By somebody who knows an old revision.
    WriteStale {
        server: usize,
        session: usize,
    },
    Release {
        server: usize,
        reservation: usize,
    },
    Retire {
        server: usize,
    },
    Forget {
        blob: usize,
    },
    CondemnUnknown {
        blob: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let server = 0..3_usize;
    let session = 0..3_usize;
    let nth = 0..8_usize;
    let blobs = prop::collection::btree_set(0..4_u8, 1..3);
    let step = prop_oneof![
        4 => (server.clone(), blobs)
            .prop_map(|(server, blobs)| Step::Reserve { server, blobs: blobs.into_iter().collect() }),
        5 => (server.clone(), session.clone(), nth.clone(), any::<bool>())
            .prop_map(|(server, session, reservation, keep)| Step::Write { server, session, reservation, keep }),
        2 => (server.clone(), session.clone())
            .prop_map(|(server, session)| Step::Remove { server, session }),
        1 => (server.clone(), session)
            .prop_map(|(server, session)| Step::WriteStale { server, session }),
        2 => (server.clone(), nth.clone())
            .prop_map(|(server, reservation)| Step::Release { server, reservation }),
        1 => server.prop_map(|server| Step::Retire { server }),
        2 => nth.clone().prop_map(|blob| Step::Forget { blob }),
        1 => nth.prop_map(|blob| Step::CondemnUnknown { blob }),
    ];
    prop::collection::vec(step, 1..60)
}

/// What the records should be.
#[derive(Default)]
struct Model {
    sessions: BTreeMap<usize, (Revision, Vec<BlobKey>)>,
    reservations: BTreeMap<(usize, u64), Vec<BlobKey>>,
    condemned: BTreeSet<BlobKey>,
    /// All that was ever put.
    seen: BTreeSet<BlobKey>,
    numbers: HashSet<u64>,
    next_reservation: u64,
}

impl Model {
    fn used(&self) -> BTreeSet<BlobKey> {
        let named = self.sessions.values().flat_map(|(_, keys)| keys);
        let reserved = self.reservations.values().flatten();
        named.chain(reserved).copied().collect()
    }

    /// Does something that may free blobs; these are what the backend must have returned.
    fn freed(&mut self, change: impl FnOnce(&mut Self), returned: &[BlobKey]) {
        let before = self.used();
        change(self);
        let after = self.used();
        let freed: BTreeSet<BlobKey> = before.difference(&after).copied().collect();
        assert_eq!(freed, returned.iter().copied().collect());
        assert_eq!(freed.len(), returned.len());
        self.condemned.extend(freed);
    }

    fn reservation(&self, server: usize, n: usize) -> Option<(u64, Vec<BlobKey>)> {
        let all = self.reservations.range((server, 0)..(server + 1, 0));
        let all: Vec<_> = all.collect();
        let (key, blobs) = all.get(n % all.len().max(1))?;
        Some((key.1, (*blobs).clone()))
    }

    fn number(&mut self, number: u64) {
        assert!(self.numbers.insert(number), "{number} is used again");
    }
}

struct World {
    home: RecordsHome,
    servers: Vec<ServerId>,
    sessions: Vec<RecordKey>,
    model: Model,
}

impl World {
    async fn new(kind: RecordsKind) -> Self {
        Self {
            home: RecordsHome::new(kind).await,
            servers: (0..3).map(|_| ServerId::random()).collect(),
            sessions: vec![
                SessionId::random().into(),
                SessionId::random().into(),
                video_key("none", 1),
            ],
            model: Model::default(),
        }
    }

    fn records(&self) -> &dyn Records {
        &*self.home.records
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Reserve { server, blobs } => self.reserve(*server, blobs).await,
            Step::Write {
                server,
                session,
                reservation,
                keep,
            } => {
                self.write(*server, *session, *reservation, *keep).await;
            }
            Step::Remove { server, session } => {
                let Some((revision, _)) = self.model.sessions.get(session) else {
                    return;
                };
                let write = RecordWrite {
                    key: &self.sessions[*session],
                    expected: Some(*revision),
                    record: None,
                    server: &self.servers[*server],
                    reservation: None,
                };
                let outcome = self.records().write(write).await.unwrap();
                self.model.number(outcome.revision.0);
                let remove = |model: &mut Model| drop(model.sessions.remove(session));
                self.model.freed(remove, &outcome.condemned);
            }
            Step::WriteStale { server, session } => {
                let known = self.model.sessions.get(session);
                let write = RecordWrite {
                    key: &self.sessions[*session],
                    expected: match known {
                        Some((revision, _)) => Some(Revision(revision.0 - 1)),
                        None => Some(Revision(1)),
                    },
                    record: None,
                    server: &self.servers[*server],
                    reservation: None,
                };
                let refused = self.records().write(write).await;
                assert!(matches!(refused, Err(StoreError::Stale)));
            }
            Step::Release {
                server,
                reservation,
            } => {
                let Some((number, blobs)) = self.model.reservation(*server, *reservation) else {
                    return;
                };
                let id = ReservationId(number);
                let released = self.records().release(&self.servers[*server], id, &blobs);
                let released = released.await.unwrap();
                let release =
                    |model: &mut Model| drop(model.reservations.remove(&(*server, number)));
                self.model.freed(release, &released);
            }
            Step::Retire { server } => {
                let retired = self.records().retire(&self.servers[*server]).await.unwrap();
                let retire = |model: &mut Model| model.reservations.retain(|(s, _), _| s != server);
                self.model.freed(retire, &retired);
            }
            Step::Forget { blob } => {
                let condemned: Vec<_> = self.model.condemned.iter().copied().collect();
                if let Some(key) = condemned.get(blob % condemned.len().max(1)) {
                    self.records().forget(&[*key]).await.unwrap();
                    self.model.condemned.remove(key);
                }
            }
            Step::CondemnUnknown { blob } => {
                let seen: Vec<_> = self.model.seen.iter().copied().collect();
                if let Some(key) = seen.get(blob % seen.len().max(1)) {
                    let unknown = self.records().condemn_unknown(&[*key]).await.unwrap();
                    let used = self.model.used().contains(key);
                    assert_eq!(unknown.is_empty(), used);
                    self.model.condemned.extend(unknown);
                }
            }
        }
        self.check().await;
    }

    async fn reserve(&mut self, server: usize, blobs: &[u8]) {
        let ids: Vec<BlobId> = blobs.iter().map(|n| BlobId::of(&[*n])).collect();
        let number = self.model.next_reservation;
        self.model.next_reservation += 1;
        let id = ReservationId(number);
        let reserved = self.records().reserve(&self.servers[server], id, &ids);
        let keys = reserved.await.unwrap();
        assert_eq!(keys.iter().map(|key| key.id).collect::<Vec<_>>(), ids);
        for key in &keys {
            assert!(!self.model.condemned.contains(key), "{key} comes back");
            let current = self.model.used().into_iter().find(|used| used.id == key.id);
            match current {
                Some(current) => assert_eq!(current, *key),
                None => self.model.number(key.edition),
            }
            self.model.seen.insert(*key);
        }
        self.model.reservations.insert((server, number), keys);
    }

    async fn write(&mut self, server: usize, session: usize, reservation: usize, keep: bool) {
        let reserved = self.model.reservation(server, reservation);
        let known = self.model.sessions.get(&session).cloned();
        let (number, mut keys) = match reserved {
            Some((number, keys)) => (Some(number), keys),
            None => (None, Vec::new()),
        };
        if keep && let Some((_, kept)) = &known {
            let new: Vec<_> = kept
                .iter()
                .filter(|key| !keys.contains(key))
                .copied()
                .collect();
            keys.extend(new);
        }
        let blob = |key: &BlobKey| BlobRef {
            key: *key,
            bytes: 1,
            kind: BlobKind::State,
        };
        let record = Record {
            owner: Some(self.servers[server].clone()),
            blobs: keys.iter().map(blob).collect(),
            body: vec![1, 2, 3],
        };
        let write = RecordWrite {
            key: &self.sessions[session],
            expected: known.map(|(revision, _)| revision),
            record: Some(&record),
            server: &self.servers[server],
            reservation: number.map(ReservationId),
        };
        let outcome = self.records().write(write).await.unwrap();
        self.model.number(outcome.revision.0);
        let apply = |model: &mut Model| {
            model.sessions.insert(session, (outcome.revision, keys));
            if let Some(number) = number {
                model.reservations.remove(&(server, number));
            }
        };
        self.model.freed(apply, &outcome.condemned);
    }

    async fn check(&self) {
        let survey = self.records().survey().await.unwrap();
        let used = self.model.used();
        let condemned: BTreeSet<BlobKey> = survey.condemned.into_iter().collect();
        assert_eq!(condemned, self.model.condemned);
        assert!(condemned.is_disjoint(&used));
        assert_eq!(survey.blobs, used.len());
        let mut sessions: Vec<_> = survey
            .records
            .iter()
            .map(|r| (&r.key, r.revision))
            .collect();
        sessions.sort();
        let page = VideoPage {
            after: None,
            limit: 9,
            order: Order::Ascending,
        };
        let listed = self.records().list(&Tenant::default(), page).await;
        let listed: Vec<_> = listed.unwrap().iter().map(|(_, v)| v.revision).collect();
        let video = self.model.sessions.get(&2).map(|(revision, _)| *revision);
        assert_eq!(listed, Vec::from_iter(video));
        let expected = self.model.sessions.iter();
        let mut expected: Vec<_> = expected
            .map(|(n, (revision, _))| (&self.sessions[*n], *revision))
            .collect();
        expected.sort();
        assert_eq!(sessions, expected);
    }

    /// Everybody leaves: then there is no blob left.
    async fn end(&mut self) {
        for session in 0..self.sessions.len() {
            self.step(&Step::Remove { server: 0, session }).await;
        }
        for server in 0..self.servers.len() {
            self.step(&Step::Retire { server }).await;
        }
        assert_eq!(self.records().survey().await.unwrap().blobs, 0);
    }
}

#[test]
fn references_are_counted_as_in_the_model() {
    for kind in RECORDS {
        let cases = match kind {
            RecordsKind::Memory => 500,
            RecordsKind::File | RecordsKind::Redis => 40,
        };
        let config = Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let run = |steps: Vec<Step>| {
            runtime.block_on(async {
                let mut world = World::new(kind).await;
                for step in &steps {
                    world.step(step).await;
                }
                world.end().await;
            });
            Ok(())
        };
        TestRunner::new(config).run(&steps(), run).unwrap();
    }
}
