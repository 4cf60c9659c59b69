//! The keys of `streaming.dreamverse`, and the `Config` that they fill.

use std::path::PathBuf;
use std::time::Duration;

use super::{Config, presets};
use crate::auth;
use crate::auth::key_set::{NAME_EXPECTED, is_name};
use crate::causes::with_causes;
use crate::settings::{DAY, Key, KeySpec, Reader, Reload};
use crate::tenant::Tenant;

/// The keys of `streaming.dreamverse`.
pub static KEYS: &[&KeySpec] = &[
    &ENABLED.spec,
    &SESSION.spec,
    &PRESETS_FILE.spec,
    &TENANT.spec,
];

static ENABLED: Key<bool> = Key::switch("streaming.dreamverse.enabled")
    .help("Whether FastVideo's web UI (Dreamverse) finds its socket and its routes here")
    .default(true);

static SESSION: Key<Duration> = Key::seconds("streaming.dreamverse.session_seconds", 0.0, DAY)
    .reload(Reload::Later)
    .help("Time after which a session of FastVideo's web UI ends, counted from its first GPU, whatever runs; 0: none, and an idle one ends as on `/v1/stream`")
    .default(300.0);

static PRESETS_FILE: Key<Option<String>> = Key::text("streaming.dreamverse.presets_file")
    .reload(Reload::AtOnce)
    .help("JSON file with the list of stories that users of FastVideo's web UI can choose, which it may add to [default: three built-in ones]");

static TENANT: Key<Option<String>> = Key::text("streaming.dreamverse.tenant")
    .reload(Reload::Later)
    .help("The tenant whose guests the users of FastVideo's web UI are where callers are asked for keys, of which it can show none [default: it is closed there]");

/// Reads the keys. `auth` says which tenants there are.
pub(in crate::http) fn read(reader: &mut Reader<'_>, auth: &auth::Config) -> Config {
    let session = reader.get(&SESSION);
    Config {
        enabled: reader.get(&ENABLED),
        session: (!session.is_zero()).then_some(session),
        presets_file: presets_file(reader),
        tenant: tenant(reader, auth),
    }
}

fn presets_file(reader: &mut Reader<'_>) -> Option<PathBuf> {
    let path = PathBuf::from(reader.non_empty(&PRESETS_FILE)?);
    if let Err(error) = presets::check(&path) {
        let expected = format!("a file of presets ({})", with_causes(&error));
        reader.refuse(&PRESETS_FILE.spec, expected);
    }
    Some(path)
}

fn tenant(reader: &mut Reader<'_>, auth: &auth::Config) -> Option<Tenant> {
    let name = reader.non_empty(&TENANT)?;
    let tenant = Tenant::new(&name);
    let keys_file = auth::config::KEYS_FILE.spec.path;
    let expected = match (&auth.keys, &auth.jwt) {
        (Some((_, keys)), _) if keys.tenants().any(|known| *known == tenant) => None,
        (Some((_, keys)), _) => {
            let known: Vec<&str> = keys.tenants().map(Tenant::as_str).collect();
            let known = known.join(", ");
            Some(format!("one of the tenants of `{keys_file}`: {known}"))
        }
        // Tokens bring tenants that no file names.
        (None, Some(_)) if is_name(&name) => None,
        (None, Some(_)) => Some(NAME_EXPECTED.to_owned()),
        (None, None) => Some(format!("absent without `{keys_file}`")),
    };
    if let Some(expected) = expected {
        reader.refuse(&TENANT.spec, expected);
    }
    Some(tenant)
}
