//! The keys of `server.auth`, and the `Config` that they fill.

use std::path::{Path, PathBuf};

use url::Url;

use super::Config;
use super::jwt;
use super::key_set::{KeySet, ReadKeys};
use super::ticket::TicketKey;
use crate::causes::with_causes;
use crate::settings::{Key, KeySpec, Reader, Reload};

/// The keys of `server.auth`.
pub static KEYS: &[&KeySpec] = &[
    &KEYS_FILE.spec,
    &TICKET_KEY_FILE.spec,
    &ISSUER.spec,
    &AUDIENCE.spec,
    &JWKS_URL.spec,
    &JWKS_FILE.spec,
    &TENANT_CLAIM.spec,
    &ROLE_CLAIM.spec,
];

pub static KEYS_FILE: Key<Option<String>> = Key::text("server.auth.keys_file")
    .reload(Reload::AtOnce)
    .help("YAML file of the tenants and the keys that let callers in; `keys new` prints a line of it; read again at SIGHUP [default: nobody is asked for a key, and orders are taken from this machine alone]");

static TICKET_KEY_FILE: Key<Option<String>> = Key::text("server.auth.ticket_key_file")
    .reload(Reload::AtOnce)
    .help("File with the secret of tickets, of at least 32 bytes, where several servers take each other's [default: a random one of this process]");

static ISSUER: Key<Option<String>> = Key::text("server.auth.jwt.issuer")
    .reload(Reload::AtOnce)
    .help("The identity provider whose JSON Web Tokens let callers in, as the claim `iss` names it [default: none: tokens let nobody in]");

static AUDIENCE: Key<Option<String>> = Key::text("server.auth.jwt.audience")
    .reload(Reload::AtOnce)
    .help("For whom a token must be meant, as its claim `aud` names it [default: none, which is refused where `server.auth.jwt.issuer` is given]");

static JWKS_URL: Key<Option<String>> = Key::text("server.auth.jwt.jwks_url")
    .reload(Reload::AtOnce)
    .help("Where the provider's keys are fetched: an http:// or https:// address of a JWK set [default: none: they are in `server.auth.jwt.jwks_file`]");

pub(super) static JWKS_FILE: Key<Option<String>> = Key::text("server.auth.jwt.jwks_file")
    .reload(Reload::AtOnce)
    .help("File with the provider's keys, a JWK set; read again at SIGHUP [default: none: they are at `server.auth.jwt.jwks_url`]");

static TENANT_CLAIM: Key<String> = Key::text("server.auth.jwt.tenant_claim")
    .reload(Reload::AtOnce)
    .help("The claim that names the tenant")
    .default("tenant");

static ROLE_CLAIM: Key<String> = Key::text("server.auth.jwt.role_claim")
    .reload(Reload::AtOnce)
    .help("The claim that names the role: user, metrics or admin; a token without it is a user's")
    .default("role");

pub(crate) fn read(reader: &mut Reader<'_>) -> Config {
    let read = keys(reader);
    let warning = (read.as_ref()).and_then(|(_, read)| read.warning.clone());
    Config {
        keys: read.map(|(path, read)| (path, read.keys)),
        warning,
        ticket_key: ticket_key(reader),
        jwt: jwt(reader),
    }
}

fn keys(reader: &mut Reader<'_>) -> Option<(PathBuf, ReadKeys)> {
    let path = reader.non_empty(&KEYS_FILE)?;
    match KeySet::read(Path::new(&path)) {
        Ok(read) => Some((path.into(), read)),
        Err(error) => {
            let expected = format!("a file of keys ({})", with_causes(&error));
            reader.refuse(&KEYS_FILE.spec, expected);
            None
        }
    }
}

fn jwt(reader: &mut Reader<'_>) -> Option<jwt::Config> {
    let issuer = reader.non_empty(&ISSUER)?;
    let audience = reader.non_empty(&AUDIENCE);
    if audience.is_none() {
        reader.refuse(&AUDIENCE.spec, "for whom the tokens are meant");
    }
    let config = jwt::Config {
        issuer,
        audience: audience.unwrap_or_default(),
        source: source(reader)?,
        tenant_claim: reader.get(&TENANT_CLAIM),
        role_claim: reader.get(&ROLE_CLAIM),
    };
    Some(config)
}

fn source(reader: &mut Reader<'_>) -> Option<jwt::Source> {
    let given = (reader.non_empty(&JWKS_URL), reader.non_empty(&JWKS_FILE));
    match given {
        (Some(url), None) => {
            let url = Url::parse(&url).ok();
            let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
            if url.is_none() {
                reader.refuse(&JWKS_URL.spec, "an http:// or https:// address");
            }
            url.map(jwt::Source::Url)
        }
        (None, Some(path)) => match jwt::read_set(Path::new(&path)) {
            Ok(set) => Some(jwt::Source::File(path.into(), set)),
            Err(error) => {
                let expected = format!("a file with a JWK set ({})", with_causes(&error));
                reader.refuse(&JWKS_FILE.spec, expected);
                None
            }
        },
        (Some(_), Some(_)) => {
            let expected = format!("absent where `{}` is given", JWKS_URL.spec.path);
            reader.refuse(&JWKS_FILE.spec, expected);
            None
        }
        (None, None) => {
            let expected = format!("given, or `{}`", JWKS_FILE.spec.path);
            reader.refuse(&JWKS_URL.spec, expected);
            None
        }
    }
}

fn ticket_key(reader: &mut Reader<'_>) -> Option<TicketKey> {
    let path = reader.non_empty(&TICKET_KEY_FILE)?;
    match TicketKey::read(Path::new(&path)) {
        Ok(key) => Some(key),
        Err(error) => {
            let expected = format!("a file with a secret ({})", with_causes(&error));
            reader.refuse(&TICKET_KEY_FILE.spec, expected);
            None
        }
    }
}
