//! TLS of the listeners. The certificate is exchanged while they serve: new handshakes get the new one, open connections
//! keep theirs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use humantime::format_rfc3339_seconds;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep};

use super::file_authorities;
use super::pair::{FileError, Pair, Problem, Role};
use crate::file_stamp::Stamp;

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// How often the log tells of an expired certificate.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// What the listeners speak.
const HTTP_VERSION: &[u8] = b"http/1.1";

/// The files of a listener's certificate.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate chain.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The authorities of clients of the admin listener; without it they need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// The certificate that listeners show. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServerTls(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    current: Arc<Current>,
    public: Arc<ServerConfig>,
    admin: Mutex<Arc<ServerConfig>>,
    seen: Mutex<Seen>,
    handshakes: Counts,
}

/// The files, what they were when they were last read, and what was wrong with them.
#[derive(Debug)]
struct Seen {
    files: Files,
    stamps: Stamps,
    clients: Option<RootCertStore>,
    failure: Option<String>,
}

type Stamps = [Option<Stamp>; 3];

/// The certificate for handshakes that begin now.
#[derive(Debug)]
struct Current(Mutex<Pair>);

impl Current {
    fn lock(&self) -> MutexGuard<'_, Pair> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.lock().certified.clone())
    }
}

#[derive(Debug, Default)]
struct Counts {
    ok: AtomicU64,
    failed: AtomicU64,
    timeout: AtomicU64,
}

/// How a handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    /// The client speaks no TLS or left, the two sides did not agree, or the handshake had to make room for another one.
    Failed,
    Timeout,
}

/// Numbers of handshakes since the start, by their outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandshakeCounts {
    pub ok: u64,
    pub failed: u64,
    pub timeout: u64,
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Returns an error when one of them cannot be used.
    pub fn open(files: Files) -> Result<Self, FileError> {
        let stamps = files.stamps();
        let current = Arc::new(Current(Mutex::new(files.read_pair()?)));
        let clients = files.read_client_authorities()?;
        Ok(Self(Arc::new(Shared {
            public: Arc::new(server_config(current.clone(), None)),
            admin: Mutex::new(Arc::new(server_config(current.clone(), clients.clone()))),
            current,
            seen: Mutex::new(Seen {
                files,
                stamps,
                clients,
                failure: None,
            }),
            handshakes: Counts::default(),
        })))
    }

    /// Takes over what another one has read, from its files or from others. Returns whether it is another certificate.
    pub(crate) fn adopt(&self, new: &Self) -> bool {
        let mut seen = self.lock_seen();
        let new_seen = new.lock_seen();
        seen.files.clone_from(&new_seen.files);
        seen.stamps.clone_from(&new_seen.stamps);
        let pair = new.0.current.lock().clone();
        let is_other = pair.certified.cert != self.0.current.lock().certified.cert;
        self.take_over(&mut seen, pair, new_seen.clients.clone());
        is_other
    }

    fn take_over(&self, seen: &mut Seen, pair: Pair, clients: Option<RootCertStore>) {
        seen.clients.clone_from(&clients);
        seen.failure = None;
        let admin = Arc::new(server_config(self.0.current.clone(), clients));
        *self.0.current.lock() = pair;
        *self.0.admin.lock().expect("no holder of this lock panics") = admin;
    }

    fn lock_seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().expect("no holder of this lock panics")
    }

    /// Reads the files again. Handshakes that begin from now on see what they hold.
    ///
    /// # Errors
    /// Returns an error when one of them cannot be used; then nothing changes.
    pub fn reload(&self) -> Result<(), FileError> {
        let mut seen = self.lock_seen();
        let files = seen.files.clone();
        let stamps = files.stamps();
        let read = files
            .read_pair()
            .and_then(|pair| Ok((pair, files.read_client_authorities()?)));
        seen.stamps = stamps;
        match read {
            Ok((pair, clients)) => {
                self.take_over(&mut seen, pair, clients);
                Ok(())
            }
            Err(error) => {
                seen.failure = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// Looks at the files every 30 s and reads them when they have changed, until it is dropped. Tells of a certificate
    /// that has expired.
    pub(crate) async fn watch(self) {
        let mut told: Option<Instant> = None;
        loop {
            if told.is_none_or(|told| told.elapsed() >= EXPIRY_INTERVAL) {
                told = self.tell_expiry().then(Instant::now);
            }
            sleep(LOOK_INTERVAL).await;
            let this = self.clone();
            match spawn_blocking(move || this.reload_if_changed()).await {
                Ok(true) => told = None,
                Ok(false) => {}
                Err(panic) => log_panic(&panic),
            }
        }
    }

    /// Returns the configuration of handshakes that begin now with clients of the first listener.
    pub(crate) fn public(&self) -> Arc<ServerConfig> {
        self.0.public.clone()
    }

    /// Returns the configuration of handshakes that begin now with clients of the admin listener.
    pub(crate) fn admin(&self) -> Arc<ServerConfig> {
        let admin = self.0.admin.lock();
        admin.expect("no holder of this lock panics").clone()
    }

    /// Returns when the certificate expires; `None` when that cannot be told.
    pub fn expires(&self) -> Option<SystemTime> {
        self.0.current.lock().expires
    }

    /// Returns the numbers of handshakes so far.
    pub fn handshakes(&self) -> HandshakeCounts {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts {
            ok,
            failed,
            timeout,
        } = &self.0.handshakes;
        HandshakeCounts {
            ok: of(ok),
            failed: of(failed),
            timeout: of(timeout),
        }
    }

    /// Counts a handshake that has ended.
    pub(crate) fn count(&self, outcome: Outcome) {
        let counts = &self.0.handshakes;
        let count = match outcome {
            Outcome::Ok => &counts.ok,
            Outcome::Failed => &counts.failed,
            Outcome::Timeout => &counts.timeout,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads the files again when they differ from those that were read last, or could not be used then. Returns whether
    /// there is a new certificate.
    fn reload_if_changed(&self) -> bool {
        let failure = {
            let seen = self.lock_seen();
            let stamps = seen.files.stamps();
            if seen.stamps == stamps && seen.failure.is_none() {
                return false;
            }
            seen.failure.clone()
        };
        match self.reload() {
            Ok(()) => {
                tracing::info!("certificate reloaded, since its files have changed");
                true
            }
            Err(error) => {
                // A failure that goes on is told once.
                if failure.is_none_or(|before| before != error.to_string()) {
                    tracing::warn!(%error, "certificate stays as it was");
                }
                false
            }
        }
    }

    /// Logs that the certificate has expired, if it has. Returns whether it has.
    fn tell_expiry(&self) -> bool {
        let Some(expires) = self.expires().filter(|end| *end <= SystemTime::now()) else {
            return false;
        };
        tracing::warn!(
            expired = %format_rfc3339_seconds(expires),
            file = %self.lock_seen().files.certificate.display(),
            "the certificate has expired: clients may refuse it"
        );
        true
    }
}

fn log_panic(panic: &JoinError) {
    tracing::error!(%panic, "certificate not reloaded");
}

impl Files {
    fn read_pair(&self) -> Result<Pair, FileError> {
        Pair::read(&self.certificate, &self.key)
    }

    fn read_client_authorities(&self) -> Result<Option<RootCertStore>, FileError> {
        let Some(path) = &self.client_ca else {
            return Ok(None);
        };
        let read = file_authorities(path).map(Some);
        read.map_err(|error| Role::Authorities.error(path, Problem::Authorities(error)))
    }

    fn stamps(&self) -> Stamps {
        let client_ca = self.client_ca.as_deref();
        [
            Stamp::of(&self.certificate),
            Stamp::of(&self.key),
            client_ca.and_then(Stamp::of),
        ]
    }
}

/// Returns the configuration of a listener. With `clients`, those need a certificate of one of these authorities.
fn server_config(current: Arc<Current>, clients: Option<RootCertStore>) -> ServerConfig {
    // rustls chooses no provider by itself where the build has two of them.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("the provider has the cipher suites of the default versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(roots) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .expect("there is an authority, and no list of revoked certificates to be wrong"),
        ),
    };
    let mut config = builder.with_cert_resolver(current);
    config.alpn_protocols = vec![HTTP_VERSION.to_vec()];
    config
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::task::JoinSet;

    use super::super::testing::{certificates, files};
    use super::*;

    /// The year in which the certificate expires that is shown now.
    fn year(tls: &ServerTls) -> String {
        let expires = format_rfc3339_seconds(tls.expires().unwrap()).to_string();
        expires[..4].to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_change_are_read_at_the_next_look_and_those_that_cannot_be_used_later() {
        let folder = certificates();
        let files = files(folder.path());
        let tls = ServerTls::open(files.clone()).unwrap();
        assert_eq!(year(&tls), "2120");
        let mut tasks = JoinSet::new();
        tasks.spawn(tls.clone().watch());
        let good = fs::read(&files.certificate).unwrap();
        for (content, expected) in [
            (b"nothing".to_vec(), "2120"),
            (fs::read(folder.path().join("expired.pem")).unwrap(), "2020"),
            // Not the certificate of the key.
            (fs::read(folder.path().join("ca.pem")).unwrap(), "2020"),
            (good, "2120"),
        ] {
            fs::write(&files.certificate, content).unwrap();
            sleep(LOOK_INTERVAL + Duration::from_secs(1)).await;
            assert_eq!(year(&tls), expected);
        }
        // The other file is new as well when the key of a renewed pair follows later.
        fs::remove_file(&files.key).unwrap();
        sleep(LOOK_INTERVAL).await;
        assert_eq!(year(&tls), "2120");
        assert!(tls.reload().is_err());
    }

    #[test]
    fn authorities_of_clients_are_exchanged_too() {
        let folder = certificates();
        let files = files(folder.path());
        let tls = ServerTls::open(files).unwrap();
        let (public, admin) = (tls.public(), tls.admin());
        fs::write(folder.path().join("ca.pem"), "nothing").unwrap();
        let refused = tls.reload().unwrap_err().to_string();
        assert!(refused.contains("ca.pem: it has no certificate in PEM"));
        assert!(Arc::ptr_eq(&admin, &tls.admin()));
        fs::copy(
            folder.path().join("self-signed.pem"),
            folder.path().join("ca.pem"),
        )
        .unwrap();
        tls.reload().unwrap();
        assert!(!Arc::ptr_eq(&admin, &tls.admin()));
        assert!(
            Arc::ptr_eq(&public, &tls.public()),
            "sessions are resumed with it"
        );
    }
}
