//! The keys of the listeners' certificates: those of a server and those of a router.

use super::pair::Role;
use super::server::{Files, ServerTls};
use crate::settings::{Key, KeySpec, Reader, Reload};

/// The keys of `server.tls`.
pub static KEYS: &[&KeySpec] = &[
    &SERVER.cert_file.spec,
    &SERVER.key_file.spec,
    &CLIENT_CA_FILE.spec,
];

/// The keys that name a certificate and its key.
pub(crate) struct PairKeys {
    pub(crate) cert_file: Key<Option<String>>,
    pub(crate) key_file: Key<Option<String>>,
}

pub(crate) static SERVER: PairKeys = PairKeys {
    cert_file: Key::text("server.tls.cert_file").reload(Reload::AtOnceIfGiven).help("PEM file with the certificate that the server shows and those between it and its authority: the server then speaks HTTPS, and no HTTP; looked at every 30 s and at SIGHUP [default: none: HTTP]"),
    key_file: Key::text("server.tls.key_file")
        .reload(Reload::AtOnceIfGiven)
        .help("PEM file with the key of that certificate [default: none]"),
};

static CLIENT_CA_FILE: Key<Option<String>> = Key::text("server.tls.client_ca_file").reload(Reload::AtOnceIfGiven).help("PEM file of certificate authorities: clients of `server.admin_port` need a certificate of one of them [default: none: they need no certificate]");

pub(crate) static ROUTER: PairKeys = PairKeys {
    cert_file: Key::text("router.tls.cert_file").reload(Reload::AtOnceIfGiven).help("PEM file with the certificate that the router shows to clients and those between it and its authority: the router then speaks HTTPS, and no HTTP; looked at every 30 s and at SIGHUP [default: none: HTTP]"),
    key_file: Key::text("router.tls.key_file")
        .reload(Reload::AtOnceIfGiven)
        .help("PEM file with the key of that certificate [default: none]"),
};

/// Reads the certificate of a server; reports what is wrong with it. `has_admin` tells whether there is a listener that may
/// ask for certificates of clients.
pub(crate) fn read(reader: &mut Reader<'_>, has_admin: bool) -> Option<ServerTls> {
    let client_ca = reader.non_empty(&CLIENT_CA_FILE);
    if client_ca.is_some() && !has_admin {
        let expected = "left out where `server.admin_port` is not given, since clients of the other port are not asked for certificates";
        reader.refuse(&CLIENT_CA_FILE.spec, expected);
        return None;
    }
    let tls = read_pair(reader, &SERVER, client_ca.clone());
    if client_ca.is_some() && reader.non_empty(&SERVER.cert_file).is_none() {
        let expected = format!(
            "left out where `{}` is not given",
            SERVER.cert_file.spec.path
        );
        reader.refuse(&CLIENT_CA_FILE.spec, expected);
    }
    tls
}

/// Reads the certificate that these keys name; reports what is wrong with it.
pub(crate) fn read_pair(
    reader: &mut Reader<'_>,
    keys: &PairKeys,
    client_ca: Option<String>,
) -> Option<ServerTls> {
    let (certificate, key) = match (
        reader.non_empty(&keys.cert_file),
        reader.non_empty(&keys.key_file),
    ) {
        (None, None) => return None,
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => {
            let expected = format!("given with `{}`", keys.key_file.spec.path);
            reader.refuse(&keys.cert_file.spec, expected);
            return None;
        }
        (None, Some(_)) => {
            let expected = format!("given with `{}`", keys.cert_file.spec.path);
            reader.refuse(&keys.key_file.spec, expected);
            return None;
        }
    };
    let files = Files {
        certificate: certificate.into(),
        key: key.into(),
        client_ca: client_ca.map(Into::into),
    };
    match ServerTls::open(files) {
        Ok(tls) => Some(tls),
        Err(error) => {
            let (key, what) = match error.role {
                Role::Certificate => (&keys.cert_file, "a PEM file with a certificate"),
                Role::Key => (&keys.key_file, "a PEM file with the key of the certificate"),
                Role::Authorities => (&CLIENT_CA_FILE, "a PEM file with certificates"),
            };
            reader.refuse(&key.spec, format!("{what} ({error})"));
            None
        }
    }
}
