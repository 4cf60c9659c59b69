//! Exports and imports states with blobs of the store: runs `export` on threads for blocking work, and transfers the
//! blobs that it refers to.

use fastvideo_proto::state::ContinuationState;
use futures_util::future::try_join_all;
use tokio::task::{JoinError, spawn_blocking};

use super::error::{DataLoss, StoreError};
use super::export::{self, Blobs, Expectation, ExportError, ImportError};
use super::handle::SessionStore;
use super::ids::BlobId;
use super::state::State;

/// Why a state in its public form was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportFailed {
    /// The state is refused; the text is safe to show.
    #[error(transparent)]
    Refused(#[from] ImportError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("importing panicked")]
    Panicked(#[from] JoinError),
}

/// Why a state was not exported to its public form.
#[derive(Debug, thiserror::Error)]
pub enum ExportFailed {
    #[error(transparent)]
    State(#[from] ExportError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("exporting panicked")]
    Panicked(#[from] JoinError),
}

/// Imports a state, with the blobs that it refers to from the store, on threads for blocking work.
///
/// # Errors
/// Returns an error when the state is refused, or the store does not answer.
pub async fn import(
    state: ContinuationState,
    expected: Expectation,
    store: &SessionStore,
) -> Result<State, ImportFailed> {
    let mut blobs = Blobs::new();
    for name in export::references(&state)? {
        // A name that is not a hash names no blob of this store. It is refused below, like the name of a missing blob.
        let Some(id) = BlobId::parse(&name) else {
            continue;
        };
        match store.blob(id).await {
            Ok(bytes) => {
                blobs.insert(name, bytes);
            }
            Err(StoreError::Lost(DataLoss::MissingBlob(_))) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let imported = spawn_blocking(move || export::import(&state, &blobs, &expected));
    Ok(imported.await??)
}

/// Exports a state with everything inline, on a thread for blocking work.
///
/// # Errors
/// Returns an error when the state is damaged.
pub async fn export_inline(state: State) -> Result<ContinuationState, ExportFailed> {
    Ok(spawn_blocking(move || export::export_inline(&state)).await??)
}

/// Exports a state with its large tensors in the store, which lends them for as long as it keeps a state that no server
/// runs.
///
/// # Errors
/// Returns an error when the state is damaged, or the store does not answer or is full.
pub async fn export_by_reference(
    state: State,
    store: &SessionStore,
) -> Result<ContinuationState, ExportFailed> {
    let exported = spawn_blocking(move || export::export_by_reference(&state));
    let (mut state, blobs) = exported.await??;
    let lent = blobs.into_iter().map(async |blob| {
        let name = store.lend(blob.bytes).await?;
        Ok::<_, StoreError>((blob.id, name.to_string()))
    });
    for (id, name) in try_join_all(lent).await? {
        refer(&mut state, &id, &name);
    }
    Ok(state)
}

/// Lets a state refer to a blob by the name by which it was lent.
fn refer(state: &mut ContinuationState, id: &str, name: &str) {
    for part in state.payload.values_mut() {
        if let Some(given) = part.get_mut("blob_id")
            && given == id
        {
            *given = name.into();
        }
    }
}
