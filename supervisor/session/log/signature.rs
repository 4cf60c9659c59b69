//! The signatures of session logs: whether a file is as its server has written it.
//!
//! A file ends with a line `signed`: a public key, the offset of the first signed byte, the SHA-256 of all bytes from there
//! up to that line, and an Ed25519 signature over a text of both (`statement`). A session that is resumed goes on behind
//! it. The server that opens a file signs what was there only if that ends with a valid signature of its own key: so nobody
//! has a changed file signed by resuming its session.

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::event::{Line, LogEvent};

/// The name of the key that a server makes in the log's folder.
const KEY_FILE: &str = "signing.key";
/// What an Ed25519 key in a SubjectPublicKeyInfo begins with (RFC 8410); the key's 32 bytes follow.
const SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
/// What a line with a signature contains.
const MARK: &[u8] = b"\"event\":\"signed\"";

/// The key of a server, which signs its session logs.
#[derive(Debug)]
pub struct Signer {
    pair: Ed25519KeyPair,
    key: PublicKey,
}

/// An Ed25519 public key, written as 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

/// A signature, as the line `signed` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The public key, in hexadecimal digits.
    pub key: String,
    /// The offset of the first signed byte. It is 0 unless something before it is not known to be the server's.
    pub from: u64,
    /// The SHA-256 of the bytes from there up to the line of the signature, in hexadecimal digits.
    pub sha256: String,
    /// The signature, in base64.
    pub signature: String,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no Ed25519 key in PEM (PKCS#8), as `openssl genpkey -algorithm ed25519` writes it", path.display())]
    NoPrivateKey { path: PathBuf },
    #[error("expected 64 hexadecimal digits or a file with an Ed25519 key, given `{given}`")]
    NoPublicKey { given: String },
    #[error("cannot make {}", path.display())]
    Make { path: PathBuf, source: io::Error },
}

/// What the signatures in a file say. Lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every line is signed, by these keys.
    Signed { keys: Vec<PublicKey> },
    /// Some of these lines are not as they were signed.
    Changed { lines: RangeInclusive<usize> },
    /// These lines and perhaps others are not signed: their server was killed, or has no key.
    Unsigned { lines: RangeInclusive<usize> },
}

impl Signer {
    /// Reads a private key in PEM.
    ///
    /// # Errors
    /// Returns an error when the file cannot be read or has no Ed25519 key.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let bytes = std::fs::read(path).map_err(|source| KeyError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_pem(&bytes).ok_or_else(|| KeyError::NoPrivateKey {
            path: path.to_owned(),
        })
    }

    /// Reads the key of the server in the log's folder, which is made when it is missing.
    ///
    /// # Errors
    /// Returns an error when it is no key or cannot be made.
    pub fn open(folder: &Path) -> Result<Self, KeyError> {
        let path = folder.join(KEY_FILE);
        match Self::read(&path) {
            Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        make_key(folder, &path).map_err(|source| KeyError::Make {
            path: path.clone(),
            source,
        })?;
        Self::read(&path)
    }

    fn from_pem(pem: &[u8]) -> Option<Self> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).ok()?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).ok()?;
        let key = PublicKey(pair.public_key().as_ref().try_into().ok()?);
        Some(Self { pair, key })
    }

    pub fn key(&self) -> PublicKey {
        self.key
    }

    /// Signs the bytes of a file from this offset on, of which this is the SHA-256.
    pub fn sign(&self, from: u64, sha256: [u8; 32]) -> Signature {
        let sha256 = hex(&sha256);
        let signature = self.pair.sign(statement(from, &sha256).as_bytes());
        Signature {
            key: self.key.to_string(),
            from,
            sha256,
            signature: STANDARD.encode(signature),
        }
    }
}

/// Makes a key, unless another server makes it first.
fn make_key(folder: &Path, path: &Path) -> io::Result<()> {
    let failed = |_| io::Error::other("the system gives no random numbers");
    let key = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).map_err(failed)?;
    // A temporary file has mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    let text = STANDARD.encode(key.as_ref());
    write!(
        file,
        "-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"
    )?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error),
    }
}

impl PublicKey {
    /// Reads a key that a person names: its digits, or a file that has these, a public key or a private key in PEM.
    ///
    /// # Errors
    /// Returns an error when it is neither.
    pub fn named(text: &str) -> Result<Self, KeyError> {
        let no_key = || KeyError::NoPublicKey {
            given: text.to_owned(),
        };
        if let Ok(key) = text.parse() {
            return Ok(key);
        }
        let bytes = std::fs::read(text).map_err(|_| no_key())?;
        Self::in_file(&bytes).ok_or_else(no_key)
    }

    fn in_file(bytes: &[u8]) -> Option<Self> {
        if let Some(signer) = Signer::from_pem(bytes) {
            return Some(signer.key);
        }
        if let Ok(spki) = SubjectPublicKeyInfoDer::from_pem_slice(bytes) {
            let key = spki.as_ref().strip_prefix(&SPKI_PREFIX)?;
            return Some(Self(key.try_into().ok()?));
        }
        str::from_utf8(bytes).ok()?.trim().parse().ok()
    }
}

impl Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl FromStr for PublicKey {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(());
        }
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |digit: u8| char::from(digit).to_digit(16).ok_or(());
            let value = digit(pair[0])? * 16 + digit(pair[1])?;
            *byte = u8::try_from(value).map_err(drop)?;
        }
        Ok(Self(key))
    }
}

impl Signature {
    /// Returns the key if it has signed the bytes of the file up to this offset.
    fn verify(&self, file: &[u8], end: usize) -> Option<PublicKey> {
        let key: PublicKey = self.key.parse().ok()?;
        let from = usize::try_from(self.from).ok()?;
        let sha256 = hex(&Sha256::digest(file.get(from..end)?));
        let signature = STANDARD.decode(&self.signature).ok()?;
        let verified = UnparsedPublicKey::new(&ED25519, key.0)
            .verify(statement(self.from, &sha256).as_bytes(), &signature);
        verified.ok().map(|()| key)
    }
}

/// Returns the text that is signed.
fn statement(from: u64, sha256: &str) -> String {
    format!("fastvideo session log, from byte {from}, sha256 {sha256}")
}

/// Returns the offset of the first byte that the last line of a file signs with this key; `None` when that line is no valid
/// signature of the key.
pub(super) fn signed_from(file: &[u8], key: PublicKey) -> Option<u64> {
    let line = file.strip_suffix(b"\n")?;
    let begin = line.iter().rposition(|&byte| byte == b'\n');
    let begin = begin.map_or(0, |end| end + 1);
    let signature = signature_in(&line[begin..])?;
    (signature.verify(file, begin)? == key).then_some(signature.from)
}

/// Checks all signatures in a file.
pub fn verify(file: &[u8]) -> Verdict {
    let mut keys: Vec<PublicKey> = Vec::new();
    // The first byte and the first line that no signature covers so far.
    let (mut covered, mut first_line) = (0, 1);
    let mut unsigned = None;
    let mut begin = 0;
    let mut lines = 0;
    for (n, line) in file.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let number = n + 1;
        let end = begin + line.len();
        lines = number;
        if let Some(signature) = signature_in(line) {
            let Some(key) = signature.verify(file, begin) else {
                return Verdict::Changed {
                    lines: first_line..=number,
                };
            };
            let from = usize::try_from(signature.from).unwrap_or(usize::MAX);
            if from > covered {
                let before = file.get(..from).unwrap_or_default();
                let last = before.iter().filter(|&&byte| byte == b'\n').count();
                unsigned.get_or_insert(first_line..=last.max(first_line));
            }
            if !keys.contains(&key) {
                keys.push(key);
            }
            (covered, first_line) = (end, number + 1);
        }
        begin = end;
    }
    if covered < file.len() || lines == 0 {
        unsigned.get_or_insert(first_line..=lines.max(first_line));
    }
    match unsigned {
        Some(lines) => Verdict::Unsigned { lines },
        None => Verdict::Signed { keys },
    }
}

fn signature_in(line: &[u8]) -> Option<Signature> {
    if !line.windows(MARK.len()).any(|part| part == MARK) {
        return None;
    }
    match serde_json::from_slice::<Line>(line).ok()?.event {
        LogEvent::Signed(signature) => Some(signature),
        _ => None,
    }
}

/// Returns bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
