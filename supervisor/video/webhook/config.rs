//! The keys `streaming.videos.webhook.*`: where messages about the ends of jobs go, and what they are signed with.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use url::Url;

use crate::settings::{Key, KeySpec, Reader, Reload, SettingError, WEB_ADDRESS, web_address};

pub(in crate::video) static URL: Key<Option<String>> = Key::text("streaming.videos.webhook.url")
    .reload(Reload::AtOnce)
    .help("Where to send a message when a video job has ended, over HTTP POST; clients cannot name one [default: nowhere]");

pub(in crate::video) static SECRET_ENV: Key<Option<String>> =
    Key::text("streaming.videos.webhook.secret_env")
        .reload(Reload::AtOnce)
        .help("Name of the environment variable with the secret that these messages are signed with: `whsec_` and then base64 [default: none; needed with the address]");

/// What a secret begins with, as the Standard Webhooks have it.
const SECRET_PREFIX: &str = "whsec_";
/// The shortest secret, in bytes.
const MIN_SECRET_BYTES: usize = 16;

/// The receiver of messages about the ends of jobs.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    pub(super) url: Url,
    /// It is never shown, not by `Debug` either.
    pub(super) secret: Vec<u8>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Webhook").field(&self.url.as_str()).finish()
    }
}

/// Reads the receiver, if there is one.
pub(in crate::video) fn read(reader: &mut Reader<'_>) -> Option<Webhook> {
    let (given, variable) = (reader.non_empty(&URL), reader.non_empty(&SECRET_ENV));
    if given.is_none() && variable.is_none() {
        return None;
    }
    let given = given.ok_or_else(|| "nothing".to_owned());
    let url = given.and_then(|given| web_address(&given));
    let secret = secret(reader, variable.as_deref());
    match (url, secret) {
        (Ok(url), Ok(secret)) => Some(Webhook { url, secret }),
        (url, secret) => {
            if let Err(given) = url {
                report(reader, &URL.spec, WEB_ADDRESS.to_owned(), given);
            }
            if let Err((expected, given)) = secret {
                report(reader, &SECRET_ENV.spec, expected, given);
            }
            None
        }
    }
}

/// Reads the secret in a variable. The error says what is expected, and what was given without showing what may be a secret.
fn secret(reader: &Reader<'_>, variable: Option<&str>) -> Result<Vec<u8>, (String, String)> {
    let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let expected = "the name of an environment variable in capital letters".to_owned();
    let Some(name) = variable else {
        return Err((expected, "nothing".to_owned()));
    };
    if !name.chars().all(is_name) {
        return Err((expected, "something else".to_owned()));
    }
    let expected = format!(
        "the name of an environment variable that holds `{SECRET_PREFIX}` and at least {MIN_SECRET_BYTES} bytes in base64"
    );
    match reader.surroundings().variable(name).map(str::trim) {
        None | Some("") => Err((expected, format!("{name}, which is not set"))),
        Some(text) => match decode(text) {
            Some(secret) if secret.len() >= MIN_SECRET_BYTES => Ok(secret),
            Some(secret) => Err((
                expected,
                format!("{name}, which holds {} bytes", secret.len()),
            )),
            None => Err((expected, format!("{name}, which holds something else"))),
        },
    }
}

/// Decodes a secret as its receiver has it.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let encoded = text.strip_prefix(SECRET_PREFIX)?;
    BASE64_STANDARD.decode(encoded).ok()
}

fn report(reader: &mut Reader<'_>, key: &KeySpec, expected: String, given: String) {
    let error = SettingError::Value {
        key: key.path.to_owned(),
        expected,
        given,
        origin: reader.origin(key),
    };
    reader.report(error);
}
