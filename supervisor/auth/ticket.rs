//! Tickets: what a page shows in an address in place of a key, valid for a minute and once.
//!
//! A ticket names a tenant and a key, its end and a random number, all under an HMAC. Servers that share the secret take
//! each other's tickets; that a ticket is used once is known to the server that took it.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// How long a ticket is valid.
pub const VALID: Duration = Duration::from_secs(60);
/// How far the clock of another server with the same secret may be ahead.
const SKEW: Duration = Duration::from_secs(5);
/// Number of used tickets that are remembered, each for as long as it would be valid.
const USED: usize = 65_536;
/// The shortest secret that is taken from a file.
const MIN_SECRET_BYTES: usize = 32;
/// What every ticket begins with.
const PREFIX: &str = "fvt_";

/// The secret of tickets. It is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKey(Vec<u8>);

impl TicketKey {
    /// Generates a secret for this process.
    pub fn random() -> Self {
        let bits: [u128; 2] = rand::random();
        Self([bits[0].to_le_bytes(), bits[1].to_le_bytes()].concat())
    }

    /// Reads the secret that servers share: the whole file, without blanks around it.
    ///
    /// # Errors
    /// See [`TicketKeyError`].
    pub fn read(path: &Path) -> Result<Self, TicketKeyError> {
        let path = || path.to_owned();
        let bytes = fs::read(path()).map_err(|source| TicketKeyError::Unreadable {
            path: path(),
            source,
        })?;
        let secret = bytes.trim_ascii();
        match secret.len() < MIN_SECRET_BYTES {
            true => Err(TicketKeyError::Short {
                path: path(),
                bytes: secret.len(),
            }),
            false => Ok(Self(secret.to_owned())),
        }
    }

    fn mac(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(&self.0).expect("HMAC takes keys of any length")
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey(…)")
    }
}

/// Why a file holds no secret for tickets.
#[derive(Debug, thiserror::Error)]
pub enum TicketKeyError {
    #[error("{} cannot be read", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} has {bytes} bytes; a secret has at least {MIN_SECRET_BYTES}", .path.display())]
    Short { path: PathBuf, bytes: usize },
}

/// Whom a ticket lets in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bearer {
    pub(super) tenant: String,
    /// The id of the key, or the subject of the token.
    pub(super) id: String,
    /// Whether `id` is the subject of a token, which no file names.
    pub(super) is_subject: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    bearer: Bearer,
    /// Milliseconds since the Unix epoch.
    expires: u64,
    nonce: u128,
}

/// Why a ticket lets nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadTicket {
    Invalid,
    Expired,
    Used,
    /// Too many tickets were used in the last minute.
    TooMany,
}

/// The tickets that were used.
#[derive(Debug, Default)]
pub(super) struct UsedTickets(Mutex<HashMap<u128, SystemTime>>);

/// Issues a ticket.
pub(super) fn issue(key: &TicketKey, bearer: Bearer, now: SystemTime) -> String {
    let content = Content {
        bearer,
        expires: unix_millis(now + VALID),
        nonce: rand::random(),
    };
    let content = serde_json::to_vec(&content).expect("texts and numbers are JSON");
    let mut mac = key.mac();
    mac.update(&content);
    let code = mac.finalize().into_bytes();
    format!(
        "{PREFIX}{}.{}",
        BASE64_URL_SAFE_NO_PAD.encode(content),
        BASE64_URL_SAFE_NO_PAD.encode(code)
    )
}

impl UsedTickets {
    /// Takes a ticket, which is used from now on.
    ///
    /// # Errors
    /// See [`BadTicket`].
    pub(super) fn take(
        &self,
        key: &TicketKey,
        ticket: &str,
        now: SystemTime,
    ) -> Result<Bearer, BadTicket> {
        let content = open(key, ticket).ok_or(BadTicket::Invalid)?;
        let since_epoch = Duration::from_millis(content.expires);
        let end = SystemTime::UNIX_EPOCH.checked_add(since_epoch);
        let end = end.ok_or(BadTicket::Invalid)?;
        if end <= now {
            return Err(BadTicket::Expired);
        }
        // A server whose clock is far ahead would issue tickets that live for long.
        if end > now + VALID + SKEW {
            return Err(BadTicket::Invalid);
        }
        let mut used = self.0.lock().expect("no holder of this lock panics");
        if used.len() >= USED {
            used.retain(|_, end| *end > now);
        }
        if used.len() >= USED {
            return Err(BadTicket::TooMany);
        }
        match used.insert(content.nonce, end) {
            Some(_) => Err(BadTicket::Used),
            None => Ok(content.bearer),
        }
    }
}

/// Returns the content of a ticket that was issued with this secret.
fn open(key: &TicketKey, ticket: &str) -> Option<Content> {
    let (content, code) = ticket.strip_prefix(PREFIX)?.split_once('.')?;
    let content = BASE64_URL_SAFE_NO_PAD.decode(content).ok()?;
    let code = BASE64_URL_SAFE_NO_PAD.decode(code).ok()?;
    let mut mac = key.mac();
    mac.update(&content);
    // The comparison takes constant time.
    mac.verify_slice(&code).ok()?;
    serde_json::from_slice(&content).ok()
}

fn unix_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer() -> Bearer {
        Bearer {
            tenant: "acme".to_owned(),
            id: "acme-web".to_owned(),
            is_subject: false,
        }
    }

    #[test]
    fn a_ticket_is_taken_once_within_its_minute() {
        let (key, used, now) = (
            TicketKey::random(),
            UsedTickets::default(),
            SystemTime::now(),
        );
        let ticket = issue(&key, bearer(), now);
        assert_eq!(used.take(&key, &ticket, now), Ok(bearer()));
        assert_eq!(used.take(&key, &ticket, now), Err(BadTicket::Used));
        let ticket = issue(&key, bearer(), now);
        let late = now + VALID;
        assert_eq!(used.take(&key, &ticket, late), Err(BadTicket::Expired));
        let just = now + VALID - Duration::from_secs(1);
        assert_eq!(used.take(&key, &ticket, just), Ok(bearer()));
    }

    #[test]
    fn only_tickets_of_the_secret_are_taken_as_they_are() {
        let (key, used, now) = (
            TicketKey::random(),
            UsedTickets::default(),
            SystemTime::now(),
        );
        let ticket = issue(&key, bearer(), now);
        let (content, code) = ticket.split_once('.').unwrap();
        let other = issue(
            &key,
            Bearer {
                tenant: "other".to_owned(),
                ..bearer()
            },
            now,
        );
        let (other, _) = other.split_once('.').unwrap();
        let of_another_secret = issue(&TicketKey::random(), bearer(), now);
        for wrong in [
            "",
            "fvt_",
            "fvt_.",
            content,
            &format!("{other}.{code}"),
            &format!("{ticket}A"),
            &of_another_secret,
            &issue(&key, bearer(), now + Duration::from_secs(3600)),
        ] {
            assert_eq!(
                used.take(&key, wrong, now),
                Err(BadTicket::Invalid),
                "{wrong}"
            );
        }
        assert_eq!(used.take(&key, &ticket, now), Ok(bearer()));
    }

    #[test]
    fn the_memory_of_used_tickets_has_a_limit_and_forgets_those_that_have_ended() {
        let (key, used, now) = (
            TicketKey::random(),
            UsedTickets::default(),
            SystemTime::now(),
        );
        let end = now + Duration::from_secs(30);
        used.0
            .lock()
            .unwrap()
            .extend((0..USED).map(|n| (n as u128, end)));
        let ticket = issue(&key, bearer(), now);
        assert_eq!(used.take(&key, &ticket, now), Err(BadTicket::TooMany));
        assert_eq!(used.take(&key, &ticket, end), Ok(bearer()));
        assert_eq!(used.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_secret_is_read_from_a_file_and_a_short_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, format!("{}\n", "s".repeat(32))).unwrap();
        assert_eq!(TicketKey::read(&path).unwrap(), TicketKey(vec![b's'; 32]));
        fs::write(&path, "short").unwrap();
        let error = TicketKey::read(&path).unwrap_err().to_string();
        assert!(error.ends_with("secret has 5 bytes; a secret has at least 32"));
    }
}
