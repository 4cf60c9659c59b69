//! Opens a bucket of blobs.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use tokio::time::timeout;
use url::Url;

use super::super::blobs::BlobStore;
use super::super::error::StoreError;
use crate::causes::with_causes;

/// Time limit on a bucket's answer at the start; without an answer the bucket counts as missing.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);
/// Limit on one request to a bucket.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection is kept that is not used, and how many: those whose peer has silently gone are found by the
/// requests that they fail.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_IDLE: usize = 4;
const RETRIES: usize = 3;

/// No credentials are configured, and the machine offers none.
#[derive(Debug, thiserror::Error)]
#[error(
    "no credentials are set (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or those of a role), and the machine's metadata service gave none: {0}"
)]
struct NoCredentials(String);

/// Opens a bucket of blobs. The builder provides endpoint, region and credentials.
pub(in crate::store) fn in_bucket(
    url: &Url,
    builder: AmazonS3Builder,
    name: &str,
) -> Result<BlobStore, StoreError> {
    let client = ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_pool_idle_timeout(IDLE_TIMEOUT)
        .with_pool_max_idle_per_host(MAX_IDLE)
        // This concerns only an endpoint that was named as `http://…`.
        .with_allow_http(true);
    let retry = RetryConfig {
        max_retries: RETRIES,
        retry_timeout: REQUEST_TIMEOUT,
        ..RetryConfig::default()
    };
    let bucket = builder
        .with_bucket_name(url.host_str().unwrap_or_default())
        .with_client_options(client)
        .with_retry(retry)
        .build()
        .map_err(StoreError::unavailable)?;
    let objects: Arc<dyn ObjectStore> = match url.path().trim_matches('/') {
        "" => Arc::new(bucket),
        prefix => Arc::new(PrefixStore::new(bucket, prefix)),
    };
    Ok(BlobStore::new(objects, name))
}

/// Checks that the bucket can be used.
///
/// # Errors
/// Returns an error that names the credentials when none are configured.
pub(super) async fn probe(blobs: &BlobStore, builder: &AmazonS3Builder) -> Result<(), StoreError> {
    let probed = timeout(PROBE_TIMEOUT, blobs.probe()).await;
    let error = match probed {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(StoreError::Unavailable(error))) => error,
        Ok(Err(error)) => return Err(error),
        Err(late) => late.into(),
    };
    let error = match has_credentials(builder) {
        true => error,
        false => NoCredentials(with_causes(&*error)).into(),
    };
    Err(StoreError::Unavailable(error))
}

/// Returns whether the error may be that of a bucket that is still to come.
pub(super) fn may_come(error: &StoreError) -> bool {
    let StoreError::Unavailable(error) = error else {
        return false;
    };
    error.is::<tokio::time::error::Elapsed>()
        || matches!(
            error.downcast_ref(),
            Some(object_store::Error::Generic { .. })
        )
}

/// Returns whether the builder was given credentials, or a place to take them from.
fn has_credentials(builder: &AmazonS3Builder) -> bool {
    use AmazonS3ConfigKey as Key;
    let given = [
        Key::AccessKeyId,
        Key::SecretAccessKey,
        Key::WebIdentityTokenFile,
        Key::ContainerCredentialsRelativeUri,
        Key::ContainerCredentialsFullUri,
        Key::SkipSignature,
    ];
    given.iter().any(|key| {
        builder
            .get_config_value(key)
            .is_some_and(|value| value != "false")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bucket_without_credentials_says_which_are_missing() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", gone.local_addr().unwrap());
        drop(gone);
        let builder = AmazonS3Builder::new()
            .with_region("us-east-1")
            .with_endpoint(&endpoint)
            .with_allow_http(true)
            .with_metadata_endpoint(&endpoint);
        let url = Url::parse("s3://bucket").unwrap();
        let blobs = in_bucket(&url, builder.clone(), "name").unwrap();
        let error = probe(&blobs, &builder).await.unwrap_err();
        assert!(error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
        assert!(!may_come(&error), "waiting does not bring credentials");

        let builder = builder
            .with_access_key_id("id")
            .with_secret_access_key("secret");
        let blobs = in_bucket(&url, builder.clone(), "name").unwrap();
        let error = probe(&blobs, &builder).await.unwrap_err();
        assert!(!error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
        assert!(may_come(&error), "{error}");
    }
}
