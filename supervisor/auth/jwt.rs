//! JSON Web Tokens of an identity provider: signed with RS256, ES256 or EdDSA, by a key of the provider's set.
//!
//! The set is read from a file, or fetched when it is first needed and when a token names a key that it does not have. A
//! set that cannot be fetched again stays in use.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use reqwest::Client;
use serde_json::{Map, Value};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use url::Url;

use super::key_set::{Role, is_name};
use crate::causes::with_causes;
use crate::tenant::Tenant;
use crate::tls;

/// The algorithms that are accepted.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
/// How much the clocks of the provider and this server may differ.
const LEEWAY_SECONDS: u64 = 60;
/// The shortest time between two tries to fetch the set.
const FETCH_INTERVAL: Duration = Duration::from_secs(30);
/// Time limit on fetching the set.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest set that is read.
const MAX_SET_BYTES: usize = 1 << 20;
/// The longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// The most characters of a subject that are kept for the log.
const MAX_SUBJECT_CHARS: usize = 128;

/// Whose tokens are accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub issuer: String,
    pub audience: String,
    pub source: Source,
    /// The claim that names the tenant.
    pub tenant_claim: String,
    /// The claim that names the role; a token without it is a user's.
    pub role_claim: String,
}

impl Config {
    /// Returns whether both name the same provider and the same file, whatever is in it.
    pub(super) fn reads_like(&self, other: &Self) -> bool {
        let file = |of: &Self| match &of.source {
            Source::File(path, _) => Some(path.clone()),
            Source::Url(_) => None,
        };
        file(self).is_some() && file(self) == file(other)
    }
}

/// Where the provider's keys are.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A file, and what it says.
    File(PathBuf, JwkSet),
    Url(Url),
}

/// Why a file is no set of keys.
#[derive(Debug, thiserror::Error)]
pub enum JwkSetError {
    #[error("{} cannot be read", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}:{}: it is no JWK set: {source}", .path.display(), .source.line())]
    NoSet {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// Reads a set of keys from a file.
///
/// # Errors
/// See [`JwkSetError`].
pub fn read_set(path: &Path) -> Result<JwkSet, JwkSetError> {
    let path = || path.to_owned();
    let text = fs::read(path()).map_err(|source| JwkSetError::Unreadable {
        path: path(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|source| JwkSetError::NoSet {
        path: path(),
        source,
    })
}

/// Checks tokens.
#[derive(Debug)]
pub(super) struct Jwt {
    config: Config,
    client: Client,
    set: Mutex<Option<Arc<JwkSet>>>,
    /// When the set was last fetched, or tried to be; held while it is.
    fetched: AsyncMutex<Option<Instant>>,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) subject: String,
    pub(super) tenant: Option<Tenant>,
    pub(super) role: Role,
}

/// Why a token lets nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadToken {
    /// The set has no such key.
    Unknown,
    Expired,
    Invalid,
    /// There is no set yet. The next try to fetch it is made after this time.
    Unavailable(Duration),
}

impl Jwt {
    pub(super) fn new(config: Config) -> Self {
        let client = tls::http_client()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(FETCH_TIMEOUT)
            .user_agent(concat!("fastvideo-supervisor/", env!("CARGO_PKG_VERSION")));
        let set = match &config.source {
            Source::File(_, set) => Some(Arc::new(set.clone())),
            Source::Url(_) => None,
        };
        Self {
            config,
            client: client
                .build()
                .expect("the TLS library is part of this program"),
            set: Mutex::new(set),
            fetched: AsyncMutex::default(),
        }
    }

    /// Takes the place of another one. The keys that it has fetched stay where they come from the same address, so that nobody
    /// has to wait for a provider that is away.
    pub(super) fn after(config: Config, old: Option<&Self>) -> Self {
        let new = Self::new(config);
        if let (Source::Url(url), Some(old)) = (&new.config.source, old)
            && let Source::Url(before) = &old.config.source
            && url == before
            && let Some(fetched) = old.lock().clone()
        {
            new.replace(fetched);
        }
        new
    }

    /// Returns whether a text is written like a token.
    pub(super) fn is_token(text: &str) -> bool {
        text.bytes().filter(|c| *c == b'.').count() == 2
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Uses another set from now on.
    fn replace(&self, set: Arc<JwkSet>) {
        *self.lock() = Some(set);
    }

    /// Checks a token.
    ///
    /// # Errors
    /// See [`BadToken`].
    pub(super) async fn check(&self, token: &str) -> Result<Claims, BadToken> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(BadToken::Invalid);
        }
        let header = decode_header(token).map_err(|_| BadToken::Invalid)?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(BadToken::Invalid);
        }
        let find = || {
            let set = self.lock().clone();
            set.map(|set| find(&set, header.kid.as_deref(), header.alg))
        };
        let key = match find() {
            Some(Some(key)) => key,
            _ => {
                let wait = self.fetch().await;
                find()
                    .ok_or(BadToken::Unavailable(wait))?
                    .ok_or(BadToken::Unknown)?
            }
        };
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(&[&self.config.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let decoded = decode::<Map<String, Value>>(token, &key, &validation);
        let claims = decoded.map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => BadToken::Expired,
            _ => BadToken::Invalid,
        })?;
        self.read(&claims.claims).ok_or(BadToken::Invalid)
    }

    fn read(&self, claims: &Map<String, Value>) -> Option<Claims> {
        let text = |name: &str| claims.get(name).map(Value::as_str);
        let role = match text(&self.config.role_claim) {
            Some(role) => Role::parse(role?)?,
            None => Role::User,
        };
        let tenant = match text(&self.config.tenant_claim) {
            Some(tenant) => {
                let tenant = tenant.filter(|name| is_name(name) && *name != Tenant::NONE)?;
                Some(Tenant::new(tenant))
            }
            None if role == Role::User => return None,
            None => None,
        };
        let subject = text("sub").flatten().unwrap_or("no subject");
        Some(Claims {
            subject: subject.chars().take(MAX_SUBJECT_CHARS).collect(),
            tenant,
            role,
        })
    }

    /// Fetches the set, unless that was tried just now. Returns when it will be tried again.
    async fn fetch(&self) -> Duration {
        let Source::Url(url) = &self.config.source else {
            return FETCH_INTERVAL;
        };
        let mut fetched = self.fetched.lock().await;
        if let Some(since) = fetched
            .map(|at| at.elapsed())
            .filter(|it| *it < FETCH_INTERVAL)
        {
            return FETCH_INTERVAL - since;
        }
        *fetched = Some(Instant::now());
        match self.ask(url).await {
            Ok(set) => {
                tracing::info!(
                    keys = set.keys.len(),
                    "keys of the identity provider fetched"
                );
                self.replace(Arc::new(set));
            }
            Err(error) => {
                tracing::warn!(error, "keys of the identity provider not fetched");
            }
        }
        FETCH_INTERVAL
    }

    async fn ask(&self, url: &Url) -> Result<JwkSet, String> {
        let told = |error: reqwest::Error| with_causes(&error.without_url());
        let answer = self.client.get(url.clone()).send().await.map_err(told)?;
        let mut answer = answer.error_for_status().map_err(told)?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(told)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_SET_BYTES {
                return Err(format!("at most {MAX_SET_BYTES} bytes are allowed"));
            }
        }
        serde_json::from_slice(&body).map_err(|error| error.to_string())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<JwkSet>>> {
        self.set.lock().expect("no holder of this lock panics")
    }
}

/// Returns the key that a token names or, where it names none, the only one that fits.
fn find(set: &JwkSet, kid: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
    let usable = |jwk: &&Jwk| {
        let common = &jwk.common;
        let is_this = |named| Algorithm::try_from(named).is_ok_and(|it| it == algorithm);
        let is_for_this = common.key_algorithm.is_none_or(is_this);
        is_for_this && common.public_key_use != Some(PublicKeyUse::Encryption)
    };
    let named = |jwk: &&Jwk| kid.is_none() || jwk.common.key_id.as_deref() == kid;
    let candidates = set.keys.iter().filter(named).filter(usable);
    let keys = candidates.filter_map(|jwk| DecodingKey::from_jwk(jwk).ok());
    let mut fitting = keys.filter(|key| key.family().algorithms().contains(&algorithm));
    let key = fitting.next()?;
    (kid.is_some() || fitting.next().is_none()).then_some(key)
}
