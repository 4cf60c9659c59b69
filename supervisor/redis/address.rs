//! Parses the URL of a Redis.

use std::fmt;
use std::time::Duration;

use redis::io::tcp::TcpSettings;
use redis::{Client, ConnectionInfo, IntoConnectionInfo, RedisError, RedisResult};
use url::Url;

/// How to reach a Redis, and which of its keys belong to this program.
#[derive(Clone)]
pub struct RedisAddress {
    connection: ConnectionInfo,
    /// The prefix of every key: a hash tag, so that a cluster keeps all keys on one node.
    prefix: String,
}

/// Why a URL is not the address of a Redis. Each text continues a sentence after the word "it".
#[derive(Debug, thiserror::Error)]
pub enum RedisAddressError {
    #[error("has an unknown parameter `{0}`")]
    UnknownParameter(String),
    #[error("is no address of a Redis: {0}")]
    NotRedis(#[source] RedisError),
    #[error("has a prefix with other characters than letters, digits, - _ .")]
    Prefix,
}

impl RedisAddress {
    /// Parses `redis://[user:password@]host[:port][/database][?prefix=…]`, the same with `rediss` for TLS or `valkey`,
    /// or `redis+unix:///path/of/socket[?db=…&prefix=…]`. Without a prefix the database's number takes its place.
    ///
    /// # Errors
    /// See [`RedisAddressError`]; the message does not contain the password.
    pub fn parse(url: &Url) -> Result<Self, RedisAddressError> {
        let mut plain = url.clone();
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let (prefix, rest): (Vec<_>, Vec<_>) =
            pairs.into_iter().partition(|(name, _)| name == "prefix");
        let known = ["db", "protocol"];
        if let Some((name, _)) = rest
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()))
        {
            return Err(RedisAddressError::UnknownParameter(name.clone()));
        }
        plain.set_query(None);
        if !rest.is_empty() {
            plain.query_pairs_mut().extend_pairs(rest);
        }
        let connection = plain.into_connection_info();
        let connection = connection.map_err(RedisAddressError::NotRedis)?;
        let database = connection.redis_settings().db();
        let prefix = match prefix.into_iter().next_back() {
            Some((_, prefix)) => prefix,
            None => database.to_string(),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if prefix.is_empty() || !prefix.chars().all(allowed) {
            return Err(RedisAddressError::Prefix);
        }
        let settings = TcpSettings::default().set_nodelay(true);
        Ok(Self {
            connection: connection.set_tcp_settings(settings),
            prefix: format!("fastvideo:{{{prefix}}}:"),
        })
    }

    /// Returns the whole name of a key.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Creates a client. A peer that has vanished acknowledges nothing within the timeout; then a connection fails.
    ///
    /// # Errors
    /// Returns an error when the address cannot be used, as one with TLS when the system has no certificates.
    pub(crate) fn client(&self, timeout: Duration) -> RedisResult<Client> {
        // The build may link two providers of cryptography, and then rustls chooses neither by itself. An error means
        // that one is chosen already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let tcp = self.connection.tcp_settings().clone();
        let tcp = tcp.set_user_timeout(timeout);
        Client::open(self.connection.clone().set_tcp_settings(tcp))
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisAddress")
            .field("address", self.connection.addr())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Formats the host, without user and password.
impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.connection.addr().fmt(f)
    }
}
