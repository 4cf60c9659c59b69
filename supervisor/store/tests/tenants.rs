//! What is another tenant's is as if it were not there.

use bytes::Bytes;
use fastvideo_proto::ids::SessionId;

use super::backends::{BlobsKind, RECORDS};
use super::world::{World, any, at, is_lost, small};
use crate::store::{DataLoss, ResumeError, ResumeToken, SessionStore, StoreError};
use crate::tenant::{Scope, Tenant};

/// The store as a tenant sees it.
fn seen_by(store: &SessionStore, name: &str) -> SessionStore {
    let tenant = Tenant::new(name);
    store.seen_by(Scope::Only(tenant.clone()), tenant)
}

fn is_missing<T>(found: &Result<T, StoreError>) -> bool {
    matches!(found, Err(StoreError::Lost(DataLoss::MissingBlob(_))))
}

#[tokio::test]
async fn a_session_is_its_tenants_on_every_backend() {
    for records in RECORDS {
        let world = World::new(records, BlobsKind::Memory).await.unwrap();
        let (one, two) = (world.server(), world.server());
        let (session, token) = (SessionId::random(), ResumeToken::random());
        let acme = seen_by(&one, "acme");
        let lease = acme.create(&session, &token, None).await.unwrap();
        lease.writer().store(at(1), small(1)).await.unwrap();
        let watch = token.watch_token(0);
        // On the server that runs it, and on another one.
        for store in [&one, &two] {
            let beta = seen_by(store, "beta");
            assert!(beta.snapshot(&session).await.unwrap().is_none());
            assert!(!beta.drop(&session).await.unwrap());
            for token in [token.as_str(), &watch] {
                assert!(beta.film(&session, token).await.unwrap().is_none());
            }
            let stolen = beta.resume(&session, &token, any).await;
            assert!(matches!(stolen, Err(ResumeError::NotFound(_))));
            assert!(!is_lost(&lease));
            let acme = seen_by(store, "acme");
            assert!(acme.snapshot(&session).await.unwrap().is_some());
            assert!(acme.film(&session, &watch).await.unwrap().is_some());
        }
        // Who sees all tenants resumes it, and it stays its tenant's.
        let (lease, saved) = two.resume(&session, &token, any).await.unwrap();
        assert_eq!(saved.tenant, Tenant::new("acme"));
        lease.writer().store(at(2), small(2)).await.unwrap();
        drop(lease);
        assert!(two.clean_up().await);
        assert!(!seen_by(&one, "beta").drop(&session).await.unwrap());
        assert!(seen_by(&one, "acme").drop(&session).await.unwrap());
    }
}

#[tokio::test]
async fn a_blob_is_lent_to_one_tenant_by_a_name_of_its_own() {
    for records in RECORDS {
        let world = World::new(records, BlobsKind::Memory).await.unwrap();
        let store = world.server();
        let (acme, beta) = (seen_by(&store, "acme"), seen_by(&store, "beta"));
        let bytes = Bytes::from_static(b"frames");
        let everybodys = store.lend(bytes.clone()).await.unwrap();
        let acmes = acme.lend(bytes.clone()).await.unwrap();
        assert_eq!(acme.lend(bytes.clone()).await.unwrap(), acmes);
        assert_ne!(acmes, everybodys);
        assert_eq!(acme.blob(acmes).await.unwrap(), bytes);
        assert!(is_missing(&beta.blob(acmes).await));
        assert!(is_missing(&beta.blob(everybodys).await));
        let betas = beta.lend(bytes.clone()).await.unwrap();
        assert_ne!(betas, acmes);
        assert!(is_missing(&acme.blob(betas).await));
        for name in [everybodys, acmes, betas] {
            assert_eq!(store.blob(name).await.unwrap(), bytes);
        }
        // The bytes are there once.
        assert_eq!(world.blobs().await, 1);
    }
}
