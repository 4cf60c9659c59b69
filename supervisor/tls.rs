//! TLS. Here is that of a client: which certificate authorities are trusted, and why a handshake fails.
//!
//! `server` is that of the listeners: a certificate that is exchanged while they serve. `pair` reads it from its files, and
//! `config` has its keys, and `metrics` tells of handshakes and of the certificate.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{CertificateError, ClientConfig, RootCertStore};

pub mod config;
pub(crate) mod metrics;
pub mod pair;
pub mod server;
#[cfg(test)]
pub(crate) mod testing;

/// What clients may speak over TLS, the preferred one first.
pub(crate) const HTTP_VERSIONS: [&str; 2] = ["h2", "http/1.1"];

/// Why there are no certificate authorities.
#[derive(Debug, thiserror::Error)]
pub enum AuthoritiesError {
    #[error(transparent)]
    Unreadable(io::Error),
    #[error("it has a section that is no valid PEM")]
    NoPem,
    #[error("it has a certificate that is not valid: {0}")]
    Invalid(rustls::Error),
    #[error("it has no certificate in PEM")]
    Empty,
    #[error(
        "this system has no certificate authorities, install ca-certificates or give a file of some with {option} {reasons}"
    )]
    NoneInSystem { option: String, reasons: String },
}

/// Reads the certificates of a PEM file.
///
/// # Errors
/// Returns an error when the file cannot be read, has a part that is not valid, or has no certificate.
pub fn file_authorities(path: &Path) -> Result<RootCertStore, AuthoritiesError> {
    let failed = |error| match error {
        pem::Error::Io(error) => AuthoritiesError::Unreadable(error),
        _ => AuthoritiesError::NoPem,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(failed)? {
        let added = roots.add(certificate.map_err(failed)?);
        added.map_err(AuthoritiesError::Invalid)?;
    }
    match roots.is_empty() {
        true => Err(AuthoritiesError::Empty),
        false => Ok(roots),
    }
}

/// Returns the authorities that this system trusts. `option` is what names a file of others.
///
/// # Errors
/// Returns an error when there are none.
pub fn system_authorities(option: &str) -> Result<RootCertStore, AuthoritiesError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    let reasons: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
    Err(AuthoritiesError::NoneInSystem {
        option: option.to_owned(),
        reasons: reasons.join("; "),
    })
}

/// Returns a builder of HTTP clients that trust the authorities of this system. A system that has none is no error before a
/// certificate has to be checked.
pub fn http_client() -> reqwest::ClientBuilder {
    let authorities = system_authorities("").unwrap_or_else(|_| RootCertStore::empty());
    let mut tls = config(authorities);
    tls.alpn_protocols = HTTP_VERSIONS.map(Into::into).into();
    reqwest::Client::builder().tls_backend_preconfigured(tls)
}

/// Returns the configuration of a client that trusts these authorities and no others.
pub fn config(authorities: RootCertStore) -> ClientConfig {
    // rustls chooses no provider by itself where the build has two of them.
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the cipher suites of the default versions")
        .with_root_certificates(authorities)
        .with_no_client_auth()
}

/// Explains why a TLS handshake failed in a way that a retry does not mend; `None` for all other errors. `option` is what
/// names the file of authorities.
pub fn handshake_failure(error: &(dyn Error + 'static), option: &str) -> Option<String> {
    match handshake_error(error)? {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => Some(format!(
            "the server's certificate is not from a trusted authority; {option} names the file of a private one"
        )),
        rustls::Error::InvalidCertificate(reason) => {
            Some(format!("the server's certificate is not valid: {reason}"))
        }
        rustls::Error::InvalidMessage(_) => Some(
            "the server does not speak TLS here; use ws:// or http:// for plain text".to_owned(),
        ),
        _ => None,
    }
}

/// Returns the error of the handshake among an error and its causes.
fn handshake_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        // The causes of an I/O error begin behind the error that it wraps.
        let wrapped = error.downcast_ref().and_then(io::Error::get_ref);
        let wrapped = wrapped.map(|wrapped| wrapped as &(dyn Error + 'static));
        if let Some(found) = wrapped.unwrap_or(error).downcast_ref() {
            return Some(found);
        }
        next = wrapped.or_else(|| error.source());
    }
    None
}
