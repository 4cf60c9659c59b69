//! TLS for `wss://`: which certificate authorities are trusted, and why a handshake fails.

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, Error, RootCertStore};

/// Trusts the certificate authorities in a PEM file, or those of the system when there is none.
///
/// # Errors
/// Returns an error when the file has no certificate that can be used, or the system has none.
pub(crate) fn config(ca_file: Option<&Path>) -> anyhow::Result<Arc<ClientConfig>> {
    let roots = match ca_file {
        Some(path) => file_roots(path)
            .with_context(|| format!("cannot use the certificates in {}", path.display()))?,
        None => system_roots()?,
    };
    // rustls chooses no provider by itself where the build has two of them.
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn file_roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path)? {
        roots.add(certificate?)?;
    }
    ensure!(!roots.is_empty(), "it has no certificate in PEM");
    Ok(roots)
}

fn system_roots() -> anyhow::Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let reasons: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
    ensure!(
        !roots.is_empty(),
        "this system has no certificate authorities, install ca-certificates or give --ca-file {}",
        reasons.join("; ")
    );
    Ok(roots)
}

/// Explains why a TLS handshake failed in a way that a retry does not mend; `None` for all other errors.
pub(crate) fn handshake_failure(error: &io::Error) -> Option<String> {
    let error: &Error = error.get_ref()?.downcast_ref()?;
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => Some(
            "the server's certificate is not from a trusted authority; --ca-file names the file of a private one"
                .to_owned(),
        ),
        Error::InvalidCertificate(reason) => {
            Some(format!("the server's certificate is not valid: {reason}"))
        }
        Error::InvalidMessage(_) => {
            Some("the server does not speak TLS here; use ws:// for plain text".to_owned())
        }
        _ => None,
    }
}
