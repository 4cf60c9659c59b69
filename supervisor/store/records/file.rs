//! Records in a file: they outlive this process, and no other process uses them at the same time.
//!
//! The records are in memory too, and the rules are those of `ledger`; the file, a redb database, only keeps what has
//! changed. One thread owns both. It executes all queued operations as one transaction, so that many sessions share one
//! `fsync`, and answers after the commit: what was answered survives the end of the process at any instant. Beats are
//! not kept, since of the servers that wrote to the file only this one lives.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use fastvideo_proto::ids::VideoId;
use redb::Database;
use tokio::sync::oneshot;

use super::ledger::Ledger;
use super::{RecordWrite, Records, StoredRecord, Survey, VideoPage, WriteOutcome};
use crate::causes::with_causes;
use crate::store::error::StoreError;
use crate::store::ids::{BlobId, BlobKey, RecordKey, ReservationId, Revision, ServerId};
use crate::tenant::Tenant;

mod tables;

use tables::{begin, compact, keep, load, open_database, wrong};

pub use tables::FileOpenError;

/// The file's name in the folder that the operator names.
pub const FILE_NAME: &str = "sessions.redb";
/// Capacity of the queue of operations. When it is full, callers are told that the file is too slow.
const QUEUE: usize = 4096;
/// The most operations that share a transaction.
const BATCH: usize = 512;

/// Records in a file. A thread of its own executes their operations.
#[derive(Debug)]
pub struct FileRecords {
    name: String,
    /// `None` once the file is being closed.
    operations: Option<SyncSender<Operation>>,
    thread: Option<JoinHandle<()>>,
}

/// Changes the ledger, and returns the reply that is to be sent once the transaction was committed or has failed.
type Operation = Box<dyn FnOnce(&mut Ledger) -> Reply + Send>;
type Reply = Box<dyn FnOnce(Result<(), &redb::Error>) + Send>;

impl FileRecords {
    /// Opens the file in that folder, or creates one. Takes a while when the file is large, since it is checked.
    ///
    /// # Errors
    /// See [`FileOpenError`].
    pub fn open(folder: &Path) -> Result<Self, FileOpenError> {
        let path = folder.join(FILE_NAME);
        let (operations, queue) = sync_channel(QUEUE);
        let (opened, is_open) = sync_channel(1);
        let file = path.clone();
        let thread = thread::Builder::new()
            .name("sessions-file".to_owned())
            .spawn(move || match FileOwner::open(file) {
                Ok((owner, name)) => {
                    let _ = opened.send(Ok(name));
                    owner.run(&queue);
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                }
            });
        let thread = thread.map_err(|source| FileOpenError::Io {
            path: path.clone(),
            source,
        })?;
        // The database panics on some kinds of damage.
        let panicked = |_| FileOpenError::Damaged {
            path,
            problem: "its contents make no sense".to_owned(),
        };
        let name = is_open.recv().map_err(panicked)??;
        Ok(Self {
            name,
            operations: Some(operations),
            thread: Some(thread),
        })
    }

    /// Executes one operation and waits until it is committed.
    async fn execute<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Ledger) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, reply) = oneshot::channel();
        let operation: Operation = Box::new(move |ledger| {
            let done = operation(ledger);
            Box::new(move |committed| {
                let _ = sender.send(match committed {
                    Ok(()) => done,
                    Err(failure) => Err(StoreError::unavailable(with_causes(failure))),
                });
            })
        });
        let operations = self.operations.as_ref();
        let operations = operations.expect("it is taken only when this is dropped");
        operations.try_send(operation).map_err(|error| {
            StoreError::unavailable(match error {
                TrySendError::Full(_) => "too many operations wait for the file of sessions",
                TrySendError::Disconnected(_) => "the file of sessions is not open any more",
            })
        })?;
        reply.await.map_err(StoreError::unavailable)?
    }

    /// Executes the write of a record.
    async fn execute_write(
        &self,
        write: RecordWrite<'_>,
        execute: fn(&mut Ledger, RecordWrite<'_>) -> Result<WriteOutcome, StoreError>,
    ) -> Result<WriteOutcome, StoreError> {
        let RecordWrite {
            expected,
            reservation,
            ..
        } = write;
        let (key, server) = (write.key.clone(), write.server.clone());
        let record = write.record.cloned();
        self.execute(move |ledger| {
            let write = RecordWrite {
                key: &key,
                expected,
                record: record.as_ref(),
                server: &server,
                reservation,
            };
            execute(ledger, write)
        })
        .await
    }
}

/// Waits until the file is closed, so that it is not found in use when it is opened again.
impl Drop for FileRecords {
    fn drop(&mut self) {
        self.operations = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the file of sessions has panicked");
        }
    }
}

#[async_trait]
impl Records for FileRecords {
    async fn name(&self) -> Result<String, StoreError> {
        Ok(self.name.clone())
    }

    async fn read(&self, key: &RecordKey) -> Result<Option<StoredRecord>, StoreError> {
        let key = key.clone();
        self.execute(move |ledger| Ok(ledger.read(&key))).await
    }

    async fn write(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        self.execute_write(write, |ledger, write| ledger.write(write))
            .await
    }

    async fn restore(&self, write: RecordWrite<'_>) -> Result<WriteOutcome, StoreError> {
        self.execute_write(write, |ledger, write| ledger.restore(write))
            .await
    }

    async fn reserve(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobId],
    ) -> Result<Vec<BlobKey>, StoreError> {
        let (server, blobs) = (server.clone(), blobs.to_vec());
        self.execute(move |ledger| Ok(ledger.reserve(&server, reservation, &blobs)))
            .await
    }

    async fn release(
        &self,
        server: &ServerId,
        reservation: ReservationId,
        blobs: &[BlobKey],
    ) -> Result<Vec<BlobKey>, StoreError> {
        let (server, blobs) = (server.clone(), blobs.to_vec());
        self.execute(move |ledger| Ok(ledger.release(&server, reservation, &blobs)))
            .await
    }

    async fn locate(&self, blob: BlobId) -> Result<Option<BlobKey>, StoreError> {
        self.execute(move |ledger| Ok(ledger.locate(blob))).await
    }

    async fn forget(&self, blobs: &[BlobKey]) -> Result<(), StoreError> {
        let blobs = blobs.to_vec();
        self.execute(move |ledger| {
            ledger.forget(&blobs);
            Ok(())
        })
        .await
    }

    async fn condemn_unknown(&self, blobs: &[BlobKey]) -> Result<Vec<BlobKey>, StoreError> {
        let blobs = blobs.to_vec();
        self.execute(move |ledger| Ok(ledger.condemn_unknown(&blobs)))
            .await
    }

    async fn beat(&self, server: &ServerId) -> Result<(), StoreError> {
        let server = server.clone();
        self.execute(move |ledger| {
            ledger.beat(&server);
            Ok(())
        })
        .await
    }

    async fn retire(&self, server: &ServerId) -> Result<Vec<BlobKey>, StoreError> {
        let server = server.clone();
        self.execute(move |ledger| Ok(ledger.retire(&server))).await
    }

    async fn stale(&self, known: &[(RecordKey, Revision)]) -> Result<Vec<RecordKey>, StoreError> {
        let known = known.to_vec();
        self.execute(move |ledger| Ok(ledger.stale(&known))).await
    }

    async fn list(
        &self,
        tenant: &Tenant,
        page: VideoPage,
    ) -> Result<Vec<(VideoId, StoredRecord)>, StoreError> {
        let tenant = tenant.clone();
        self.execute(move |ledger| Ok(ledger.list(&tenant, page)))
            .await
    }

    async fn survey(&self) -> Result<Survey, StoreError> {
        self.execute(|ledger| Ok(ledger.survey())).await
    }
}

/// The file and its ledger, which the thread owns.
struct FileOwner {
    path: PathBuf,
    /// `None` after a failure, when the ledger is ahead of the file.
    open: Option<(Database, Ledger)>,
    /// Whether the last transaction has failed, which is logged once.
    is_failing: bool,
}

impl FileOwner {
    /// Opens the file or creates one. Also returns the store's name.
    fn open(path: PathBuf) -> Result<(Self, String), FileOpenError> {
        let mut database = open_database(&path)?;
        compact(&mut database, &path);
        let name = begin(&database).map_err(|error| wrong(&path, error.into()))?;
        let name = name.ok_or_else(|| FileOpenError::Foreign(path.clone()))?;
        let ledger = load(&database).map_err(|error| error.at(&path))?;
        let open = Some((database, ledger));
        let is_failing = false;
        let owner = Self {
            path,
            open,
            is_failing,
        };
        Ok((owner, name))
    }

    /// Executes operations until all senders are gone.
    fn run(mut self, queue: &Receiver<Operation>) {
        while let Ok(first) = queue.recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH {
                match queue.try_recv() {
                    Ok(operation) => batch.push(operation),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            self.execute(batch);
        }
    }

    /// Executes operations as one transaction. Those that are dropped tell their callers that the file is not open.
    fn execute(&mut self, batch: Vec<Operation>) {
        if self.open.is_none()
            && let Err(error) = self.open_again()
        {
            self.failed("the file of sessions cannot be opened again", &error);
        }
        let Some((database, ledger)) = &mut self.open else {
            return;
        };
        let replies: Vec<Reply> = batch
            .into_iter()
            .map(|operation| operation(ledger))
            .collect();
        let is_write = ledger.is_changed();
        let committed = keep(database, ledger);
        for reply in replies {
            reply(committed.as_ref().copied());
        }
        match committed {
            Ok(()) => self.is_failing &= !is_write,
            Err(error) => {
                self.open = None;
                self.failed("nothing can be written to the file of sessions", &error);
            }
        }
    }

    fn failed(&mut self, what: &'static str, error: &dyn std::error::Error) {
        let (error, file) = (with_causes(error), self.path.display());
        match std::mem::replace(&mut self.is_failing, true) {
            false => tracing::error!(error, %file, "{what}"),
            true => tracing::debug!(error, %file, "{what}"),
        }
    }

    /// Opens the file anew after a failure, as the database demands, and reads the ledger that it has.
    fn open_again(&mut self) -> Result<(), FileOpenError> {
        let database = open_database(&self.path)?;
        let ledger = load(&database).map_err(|error| error.at(&self.path))?;
        self.open = Some((database, ledger));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span;
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    /// Collects the fields `error` of all events.
    #[derive(Clone, Default)]
    struct Errors(Arc<Mutex<Vec<String>>>);

    impl Visit for Errors {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if field.name() == "error" {
                self.0.lock().unwrap().push(format!("{value:?}"));
            }
        }
    }

    impl Subscriber for Errors {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn the_log_says_why_a_file_cannot_be_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut owner = FileOwner {
            path: folder.path().to_path_buf(),
            open: None,
            is_failing: false,
        };
        let errors = Errors::default();
        tracing::subscriber::with_default(errors.clone(), || owner.execute(Vec::new()));
        let errors = errors.0.lock().unwrap();
        assert!(errors[0].contains("Is a directory"), "{errors:?}");
    }
}
