//! The file of keys and tenants (`server.auth.keys_file`): read whole, checked whole, or refused by line.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use axum::http::HeaderValue;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::key::KeyHash;
use crate::ingress::Origins;
use crate::tenant::Tenant;

/// The largest file that is read: 10,000 keys take about 2 MiB.
const MAX_BYTES: u64 = 16 << 20;
/// The longest name of a tenant or a key.
pub const MAX_NAME_CHARS: usize = 64;
/// What names must be: they are in folders' names, labels and the log.
pub const NAME_EXPECTED: &str =
    "1 to 64 letters, digits, `-`, `_` and `.`, of which the first is a letter or a digit";
/// Others may write the file.
const WRITABLE: u32 = 0o022;
/// Others may read the file.
const READABLE: u32 = 0o004;

/// What a caller may do. A larger role may do what a smaller one may, except that `metrics` sees no sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// What is its own tenant's.
    User,
    /// Metrics and the status, and nothing else.
    Metrics,
    /// Everything, of all tenants.
    Admin,
}

impl Role {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "user" => Some(Self::User),
            "metrics" => Some(Self::Metrics),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        })
    }
}

/// A key that lets somebody in.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyEntry {
    pub id: Arc<str>,
    /// Whose the caller's sessions are; `None` for keys that belong to no tenant.
    pub tenant: Option<Tenant>,
    pub role: Role,
    pub hash: KeyHash,
    /// Sites whose pages may use the key, besides those that the server allows.
    pub origins: Origins,
    /// When the key ends.
    pub expires: Option<SystemTime>,
}

/// The limits of a tenant; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantLimits {
    /// Sessions that are open at once.
    pub max_sessions: Option<usize>,
    /// Of these, sessions that wait for a worker.
    pub max_waiting: Option<usize>,
    /// Segments that are asked for.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Sessions that are opened.
    pub opens_per_minute: Option<NonZeroU32>,
}

/// The name of the tenant whose limits hold for tenants that the file does not name.
const DEFAULT_TENANT: &str = "default";

/// All keys and tenants.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeySet {
    by_hash: HashMap<KeyHash, Arc<KeyEntry>>,
    by_id: HashMap<Arc<str>, Arc<KeyEntry>>,
    tenants: BTreeMap<Tenant, TenantLimits>,
    /// The limits of tenants that are not named.
    unnamed: TenantLimits,
}

/// A file of keys that was read.
#[derive(Debug)]
pub struct ReadKeys {
    pub keys: KeySet,
    /// What the operator is warned of.
    pub warning: Option<String>,
}

/// Why a file of keys is not usable.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    #[error("{} cannot be read", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error(
        "{} may be written by its group or by others (mode {mode:03o}): who can write it can let anybody in",
        .path.display()
    )]
    Writable { path: PathBuf, mode: u32 },
    #[error("{}: {message}", .path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("{}:{line}: {message}", .path.display())]
    Line {
        path: PathBuf,
        line: u64,
        message: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    tenants: BTreeMap<String, Spanned<TenantLimits>>,
    #[serde(default)]
    keys: Vec<Spanned<RawKey>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    id: String,
    tenant: Option<String>,
    role: Role,
    sha256: String,
    #[serde(default)]
    origins: Vec<String>,
    expires: Option<String>,
}

impl KeySet {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`KeySetError`]; each names the file and, where there is one, the line.
    pub fn read(path: &Path) -> Result<ReadKeys, KeySetError> {
        let unreadable = |source| KeySetError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(unreadable)?;
        let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
        if mode & WRITABLE != 0 {
            let path = path.to_owned();
            return Err(KeySetError::Writable { path, mode });
        }
        let mut text = String::new();
        let read = file.take(MAX_BYTES + 1).read_to_string(&mut text);
        if read.map_err(unreadable)? as u64 > MAX_BYTES {
            let message = format!("at most {MAX_BYTES} bytes are allowed");
            return Err(unreadable(io::Error::other(message)));
        }
        let keys = Self::parse(&text, path)?;
        let warning = (mode & READABLE != 0).then(|| {
            format!(
                "{} may be read by everybody (mode {mode:03o}): it tells which tenants and keys there are",
                path.display()
            )
        });
        Ok(ReadKeys { keys, warning })
    }

    fn parse(text: &str, path: &Path) -> Result<Self, KeySetError> {
        let wrong = |line, message| KeySetError::Line {
            path: path.to_owned(),
            line,
            message,
        };
        let raw: Option<RawFile> = serde_saphyr::from_str(text).map_err(|error| {
            let message = error.without_snippet().to_string();
            match error.location() {
                Some(location) => wrong(location.line(), message),
                None => KeySetError::Syntax {
                    path: path.to_owned(),
                    message,
                },
            }
        })?;
        let RawFile { tenants, keys } = raw.unwrap_or(RawFile {
            tenants: BTreeMap::new(),
            keys: Vec::new(),
        });
        let mut set = Self::default();
        for (name, limits) in tenants {
            let line = limits.referenced.line();
            if !is_name(&name) || name == Tenant::NONE {
                let message = format!(
                    "a tenant's name must be {NAME_EXPECTED}, and not `{}`, given {name:?}",
                    Tenant::NONE
                );
                return Err(wrong(line, message));
            }
            if name == DEFAULT_TENANT {
                set.unnamed = limits.value;
            }
            set.tenants.insert(Tenant::new(&name), limits.value);
        }
        for key in keys {
            let line = key.referenced.line();
            let entry = set.entry(key.value).map_err(|m| wrong(line, m))?;
            set.add(entry).map_err(|message| wrong(line, message))?;
        }
        Ok(set)
    }

    fn entry(&self, raw: RawKey) -> Result<KeyEntry, String> {
        if !is_name(&raw.id) {
            return Err(format!("`id` must be {NAME_EXPECTED}, given {:?}", raw.id));
        }
        let id = &raw.id;
        let hash = KeyHash::parse(&raw.sha256).ok_or_else(|| {
            format!(
                "`sha256` of the key `{id}` must be 64 hexadecimal digits; `keys new` prints them"
            )
        })?;
        let tenant = match &raw.tenant {
            Some(name) => Some(self.known_tenant(name).ok_or_else(|| {
                let known: Vec<&str> = self.tenants.keys().map(Tenant::as_str).collect();
                format!(
                    "`tenant` of the key `{id}` must be one of `tenants`: {}; given {name:?}",
                    known.join(", ")
                )
            })?),
            None if raw.role == Role::User => {
                return Err(format!(
                    "the key `{id}` has the role `user` and needs a `tenant`"
                ));
            }
            None => None,
        };
        let origins = Origins::parse(&raw.origins.join(","));
        let origins = origins.ok_or_else(|| {
            format!(
                "`origins` of the key `{id}` must be origins such as https://app.example.org, given {:?}",
                raw.origins
            )
        })?;
        let expires = raw.expires.as_deref().map(|text| {
            humantime::parse_rfc3339(text).map_err(|error| {
                format!(
                    "`expires` of the key `{id}` must be a time such as 2027-01-01T00:00:00Z, given {text:?}: {error}"
                )
            })
        });
        Ok(KeyEntry {
            id: raw.id.into(),
            tenant,
            role: raw.role,
            hash,
            origins,
            expires: expires.transpose()?,
        })
    }

    fn add(&mut self, entry: KeyEntry) -> Result<(), String> {
        let entry = Arc::new(entry);
        let id = entry.id.clone();
        if self.by_id.insert(id.clone(), entry.clone()).is_some() {
            return Err(format!("`{id}` is the id of an earlier key, too"));
        }
        if let Some(earlier) = self.by_hash.insert(entry.hash, entry) {
            let earlier = &earlier.id;
            return Err(format!("`{id}` is the same key as `{earlier}`"));
        }
        Ok(())
    }

    fn known_tenant(&self, name: &str) -> Option<Tenant> {
        let known = self.tenants.get_key_value(&Tenant::new(name));
        known.map(|(tenant, _)| tenant.clone())
    }

    /// Returns the key with that hash.
    pub fn find(&self, hash: KeyHash) -> Option<&Arc<KeyEntry>> {
        self.by_hash.get(&hash)
    }

    /// Returns the key with that id.
    pub fn named(&self, id: &str) -> Option<&Arc<KeyEntry>> {
        self.by_id.get(id)
    }

    /// Returns the limits of a tenant, whether or not the file names it.
    pub fn limits(&self, tenant: &Tenant) -> TenantLimits {
        self.tenants.get(tenant).copied().unwrap_or(self.unnamed)
    }

    /// Returns the number of keys.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Returns whether pages of that site may use one of the keys.
    pub(crate) fn allow(&self, origin: &HeaderValue) -> bool {
        self.by_id.values().any(|key| key.origins.allow(origin))
    }

    /// Returns the names of the tenants in order.
    pub fn tenants(&self) -> impl Iterator<Item = &Tenant> {
        self.tenants.keys()
    }
}

/// Returns whether a text may be the name of a tenant or a key.
pub fn is_name(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=MAX_NAME_CHARS).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(is_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn hash(n: u8) -> String {
        format!("{n:02x}").repeat(32)
    }

    fn parse(text: &str) -> Result<KeySet, String> {
        KeySet::parse(text, Path::new("keys.yaml")).map_err(|error| error.to_string())
    }

    #[test]
    fn tenants_and_keys_are_read() {
        let text = format!(
            "tenants: {{acme: {{max_sessions: 8, requests_per_minute: 60}}, default: {{max_sessions: 1}}}}\n\
             keys:\n\
             \x20 - {{id: acme-web, tenant: acme, role: user, sha256: {}, origins: [\"https://app.acme.example\"], expires: 2027-01-01T00:00:00Z}}\n\
             \x20 - {{id: ops, role: admin, sha256: {}}}\n",
            hash(1),
            hash(2)
        );
        let set = parse(&text).unwrap();
        let web = set.named("acme-web").unwrap();
        assert_eq!(web.tenant, Some(Tenant::new("acme")));
        assert!(web.expires.is_some());
        assert_eq!(set.find(KeyHash::parse(&hash(1)).unwrap()), Some(web));
        assert_eq!(set.named("ops").unwrap().role, Role::Admin);
        assert_eq!(set.limits(&Tenant::new("acme")).max_sessions, Some(8));
        assert_eq!(set.limits(&Tenant::new("new")).max_sessions, Some(1));
        assert_eq!(parse("# nothing yet\n").unwrap().len(), 0);
    }

    #[test]
    fn what_is_wrong_is_told_by_line() {
        let (one, two) = (hash(1), hash(2));
        let key = |rest: &str| format!("tenants: {{acme: {{}}}}\nkeys:\n  - {{{rest}}}\n");
        let good = format!("id: a, tenant: acme, role: user, sha256: {one}");
        for (text, line, told) in [
            (key(&format!("{good}, rol: x")), 3, "rol"),
            (key(&format!("id: a, role: root, sha256: {one}")), 3, "root"),
            (
                key(&format!("id: a, role: user, sha256: {one}")),
                3,
                "needs a `tenant`",
            ),
            (
                key(&format!("id: a, tenant: b, role: user, sha256: {one}")),
                3,
                "one of `tenants`: acme; given \"b\"",
            ),
            (
                key("id: a, tenant: acme, role: user, sha256: abc"),
                3,
                "64 hexadecimal digits",
            ),
            (
                key(&format!("id: a/b, role: admin, sha256: {one}")),
                3,
                "given \"a/b\"",
            ),
            (key(&format!("{good}, expires: soon")), 3, "given \"soon\""),
            (
                key(&format!("{good}, origins: [app]")),
                3,
                "given [\"app\"]",
            ),
            (
                key(&good) + &format!("  - {{id: a, role: admin, sha256: {two}}}\n"),
                4,
                "earlier key",
            ),
            (
                key(&good) + &format!("  - {{id: b, role: admin, sha256: {one}}}\n"),
                4,
                "same key as `a`",
            ),
            (
                "tenants:\n  acme: {max_session: 1}\n".to_owned(),
                2,
                "max_session",
            ),
            (
                "tenants:\n  acme: {requests_per_minute: 0}\n".to_owned(),
                2,
                "",
            ),
            ("tenants:\n  none: {}\n".to_owned(), 2, "given \"none\""),
            ("tenants:\n  acme: {}\n  acme: {}\n".to_owned(), 3, "acme"),
            ("users: []\n".to_owned(), 1, "users"),
            ("keys: [\n".to_owned(), 1, ""),
        ] {
            let error = parse(&text).unwrap_err();
            let expected = format!("keys.yaml:{line}: ");
            assert!(error.starts_with(&expected), "{error} of {text}");
            assert!(error.contains(told), "{error} of {text}");
        }
    }

    #[test]
    fn a_file_that_others_may_write_is_refused_and_one_that_others_may_read_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.yaml");
        fs::write(&path, "").unwrap();
        let read = |mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            KeySet::read(&path)
        };
        for mode in [0o600, 0o640, 0o400] {
            assert_eq!(read(mode).unwrap().warning, None, "{mode:o}");
        }
        assert!(read(0o644).unwrap().warning.unwrap().contains("mode 644"));
        for mode in [0o660, 0o602, 0o666] {
            let error = read(mode).unwrap_err();
            assert!(matches!(error, KeySetError::Writable { .. }), "{mode:o}");
        }
        let absent = KeySet::read(&folder.path().join("absent")).unwrap_err();
        assert!(absent.to_string().ends_with("absent cannot be read"));
    }
}
