//! TLS with servers: all connections of a router trust the same authorities.

use std::error::Error;
use std::sync::Arc;

use reqwest::redirect::Policy;
use rustls::ClientConfig;

use super::config::{CA_FILE, Config};
use crate::causes::with_causes;
use crate::tls::{self, AuthoritiesError};

impl Config {
    /// Returns the TLS configuration for the servers; `None` where no server needs one.
    ///
    /// # Errors
    /// Returns an error when a server needs one and the system has no certificate authorities.
    pub fn tls(&self) -> Result<Option<Arc<ClientConfig>>, AuthoritiesError> {
        let mut replicas = self.replicas.iter();
        let is_needed = replicas.any(|replica| replica.url.scheme() == "https");
        let authorities = match &self.authorities {
            Some(authorities) => Some(authorities.clone()),
            None if is_needed => Some(tls::system_authorities(&option())?),
            // Those that are found may need one.
            None if self.finds_servers => tls::system_authorities(&option()).ok(),
            None => None,
        };
        Ok(authorities.map(|authorities| Arc::new(tls::config(authorities))))
    }
}

/// Returns a builder of HTTP clients that ask servers. They follow no redirect.
pub(super) fn http_client(tls: Option<&ClientConfig>) -> reqwest::ClientBuilder {
    let client = match tls {
        Some(tls) => {
            let mut tls = tls.clone();
            tls.alpn_protocols = tls::HTTP_VERSIONS.map(Into::into).into();
            reqwest::Client::builder().tls_backend_preconfigured(tls)
        }
        None => tls::http_client(),
    };
    client.redirect(Policy::none())
}

/// Returns why a server was not reached.
pub(super) fn reason(error: &(dyn Error + 'static)) -> String {
    let failure = tls::handshake_failure(error, &option());
    failure.unwrap_or_else(|| with_causes(error))
}

/// Returns what names the file of authorities.
fn option() -> String {
    format!("`{}`", CA_FILE.spec.path)
}
