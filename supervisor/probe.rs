//! Asks a running server or router once whether it is alive or ready, as the probes of containers do.

use std::path::Path;
use std::time::Duration;

use reqwest::redirect::Policy;
use serde::Deserialize;
use tokio::time::timeout;
use url::Url;

use crate::causes::with_causes;
use crate::discovery::is_address;
use crate::tls::{self, AuthoritiesError};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whether the process answers.
    IsAlive,
    /// Whether it would take a session now.
    IsReady,
}

/// Why a server did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "the URL must be an http:// or https:// address without user, password and query, given {0:?}"
    )]
    Url(String),
    #[error("cannot use the certificates in {file}")]
    Authorities {
        file: String,
        source: AuthoritiesError,
    },
    #[error(transparent)]
    SystemAuthorities(AuthoritiesError),
    #[error("cannot ask over HTTP")]
    Client(#[source] reqwest::Error),
    #[error("{url} does not answer: {reason}")]
    Unreachable { url: Url, reason: String },
    #[error("{url} does not answer within {} s", .limit.as_secs_f64())]
    Late { url: Url, limit: Duration },
    #[error("{url} answers {status}{said}")]
    Bad { url: Url, status: u16, said: String },
}

/// What the probes' answers have in common.
#[derive(Deserialize)]
struct Said {
    status: String,
}

impl Question {
    fn path(self) -> &'static str {
        match self {
            Self::IsAlive => "/healthz",
            Self::IsReady => "/readyz",
        }
    }
}

/// Asks the server at an address. It trusts the authorities in `ca_file`, or else those of the system; `ca_option` is what
/// names that file.
///
/// # Errors
/// Returns why the server did not say yes within the time limit.
pub async fn ask(
    address: &str,
    question: Question,
    ca_file: Option<&Path>,
    ca_option: &str,
    limit: Duration,
) -> Result<(), ProbeError> {
    let url = Url::parse(address).ok().filter(is_address);
    let mut url = url.ok_or_else(|| ProbeError::Url(address.to_owned()))?;
    let below = url.path().trim_end_matches('/').to_owned();
    url.set_path(&format!("{below}{}", question.path()));
    // A server on this machine is not behind a proxy.
    let client = match url.scheme() == "https" {
        true => {
            let authorities = match ca_file {
                Some(path) => {
                    tls::file_authorities(path).map_err(|source| ProbeError::Authorities {
                        file: path.display().to_string(),
                        source,
                    })?
                }
                None => {
                    tls::system_authorities(ca_option).map_err(ProbeError::SystemAuthorities)?
                }
            };
            reqwest::Client::builder().tls_backend_preconfigured(tls::config(authorities))
        }
        false => tls::http_client(),
    };
    let client = client
        .no_proxy()
        .redirect(Policy::none())
        .build()
        .map_err(ProbeError::Client)?;
    let answered = timeout(limit, async {
        let answer = client.get(url.clone()).send().await?;
        let status = answer.status().as_u16();
        let body = answer.bytes().await?;
        Ok::<_, reqwest::Error>((status, body))
    });
    match answered.await {
        Err(_) => Err(ProbeError::Late { url, limit }),
        Ok(Err(error)) => {
            let error = error.without_url();
            let reason = tls::handshake_failure(&error, ca_option);
            let reason = reason.unwrap_or_else(|| with_causes(&error));
            Err(ProbeError::Unreachable { url, reason })
        }
        Ok(Ok((200, _))) => Ok(()),
        Ok(Ok((status, body))) => {
            let said = serde_json::from_slice::<Said>(&body);
            let said = said.map_or_else(|_| String::new(), |said| format!(": {}", said.status));
            Err(ProbeError::Bad { url, status, said })
        }
    }
}
