//! The store's part of `/status` and `/readyz`.

use fastvideo_proto::api::status::{StoreFailure, StoreState, StoreStatus};

use crate::ingress::timestamp::rfc3339;
use crate::store::{Condition, SessionStore};

pub(super) fn store_status(store: &SessionStore) -> StoreStatus {
    let status = store.status();
    StoreStatus {
        state: match status.condition {
            Condition::Working => StoreState::Ok,
            Condition::Failing => StoreState::Failing,
            Condition::Full => StoreState::Full,
        },
        since: status.since.map(rfc3339),
        last_failure: status.last_failure.map(|(reason, at)| StoreFailure {
            reason,
            at: rfc3339(at),
        }),
        lost_segments: store.lost_segments(),
    }
}

/// Returns whether the server is not ready because its store does not work.
pub(super) fn is_missed(store: &SessionStore) -> bool {
    store.config().required_for_readiness && store.status().condition != Condition::Working
}
