//! Keys as texts: how one is made, and the hash by which it is known.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// What a key of a client begins with, so that one that has leaked is recognised.
pub const PREFIX: &str = "fvk_";

/// The SHA-256 hash of a whole key. A key has 256 random bits, so no slower hash is needed, and a look-up by hash tells
/// nothing by its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// Parses 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, place) in hash.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[place..place + 2], 16).ok()?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Returns whether a text is written like the key or the JSON Web Token of a client, and unlike the token of a session.
pub(crate) fn is_key(text: &str) -> bool {
    text.starts_with(PREFIX) || text.contains('.')
}

/// Generates a key with 256 random bits.
pub fn generate() -> String {
    let bits: [u128; 2] = rand::random();
    let bytes = [bits[0].to_le_bytes(), bits[1].to_le_bytes()].concat();
    format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_a_prefix_and_256_random_bits() {
        let (key, other) = (generate(), generate());
        assert_ne!(key, other);
        let text = key.strip_prefix(PREFIX).unwrap();
        assert_eq!(text.len(), 43);
        assert_eq!(BASE64_URL_SAFE_NO_PAD.decode(text).unwrap().len(), 32);
    }

    #[test]
    fn a_hash_is_the_one_that_coreutils_print() {
        // printf fvk_x | sha256sum
        let printed = "9ed79d84f23a28b33430e67c343eebaf63ef8e594f6ae3eab9addc94399d20dd";
        assert_eq!(KeyHash::of("fvk_x").to_string(), printed);
        assert_eq!(KeyHash::parse(printed), Some(KeyHash::of("fvk_x")));
        for wrong in ["", "9e", &printed[1..], &printed.replace('9', "g")] {
            assert_eq!(KeyHash::parse(wrong), None, "{wrong}");
        }
    }
}
