//! A certificate with its key, as a server shows it, and what its files were when they were read.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};

use super::AuthoritiesError;

/// A point in time that is after the end of every certificate: the last second of the year 9999.
const AFTER_ALL: u64 = 253_402_300_799;

/// Why a file cannot be used. The text names it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct FileError {
    pub(super) role: Role,
    path: PathBuf,
    problem: Problem,
}

/// What a file should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Certificate,
    Key,
    /// The authorities of clients.
    Authorities,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error(transparent)]
    Unreadable(io::Error),
    #[error("it has a section that is no valid PEM")]
    NoPem,
    #[error("it has no certificate in PEM")]
    NoCertificate,
    #[error("it has a certificate that is not valid: {0}")]
    InvalidCertificate(rustls::Error),
    #[error("it has no private key in PEM")]
    NoKey,
    #[error("it has a private key that cannot be used: {0}")]
    InvalidKey(rustls::Error),
    #[error("it is not the key of the certificate in {}", .0.display())]
    OtherKey(PathBuf),
    #[error(transparent)]
    Authorities(AuthoritiesError),
}

impl Role {
    /// Makes an error of what is wrong with the file that has this role.
    pub(super) fn error(self, path: &Path, problem: Problem) -> FileError {
        FileError {
            role: self,
            path: path.to_owned(),
            problem,
        }
    }
}

/// A certificate chain with the key of its first certificate.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) certified: Arc<CertifiedKey>,
    /// When the first certificate of the chain expires; `None` when that cannot be told.
    pub(super) expires: Option<SystemTime>,
}

impl Pair {
    /// Reads a certificate chain and its key from PEM files.
    ///
    /// # Errors
    /// Returns an error when a file cannot be read, does not hold what it should, or the two do not belong together. An
    /// expired certificate is none.
    pub(super) fn read(certificate: &Path, key: &Path) -> Result<Self, FileError> {
        let of_certificate = |problem| Role::Certificate.error(certificate, problem);
        let of_key = |problem| Role::Key.error(key, problem);
        let chain = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| of_certificate(unusable(error)))?;
        let Some(first) = chain.first() else {
            return Err(of_certificate(Problem::NoCertificate));
        };
        let parsed = ParsedCertificate::try_from(first);
        let parsed = parsed.map_err(|error| of_certificate(Problem::InvalidCertificate(error)))?;
        let expires = expiry(&parsed);
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| {
            of_key(match error {
                pem::Error::NoItemsFound => Problem::NoKey,
                other => unusable(other),
            })
        })?;
        let certified = CertifiedKey::from_der(chain, secret, &aws_lc_rs::default_provider());
        let certified = certified.map_err(|error| {
            of_key(match error {
                rustls::Error::InconsistentKeys(_) => Problem::OtherKey(certificate.to_owned()),
                other => Problem::InvalidKey(other),
            })
        })?;
        Ok(Self {
            certified: Arc::new(certified),
            expires,
        })
    }
}

fn unusable(error: pem::Error) -> Problem {
    match error {
        pem::Error::Io(error) => Problem::Unreadable(error),
        _ => Problem::NoPem,
    }
}

/// Returns when a certificate expires. The library tells that only of one that has, so it is asked about a time at which
/// each has.
fn expiry(certificate: &ParsedCertificate<'_>) -> Option<SystemTime> {
    let verified = verify_server_cert_signed_by_trust_anchor(
        certificate,
        &RootCertStore::empty(),
        &[],
        UnixTime::since_unix_epoch(Duration::from_secs(AFTER_ALL)),
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .all,
    );
    match verified {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after,
            ..
        })) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(not_after.as_secs())),
        _ => None,
    }
}
