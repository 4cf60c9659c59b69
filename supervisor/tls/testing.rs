//! Certificates for tests.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::server::Files;

/// Makes the certificates of `tests/data/make-certificates` in a folder of their own.
#[expect(
    clippy::disallowed_methods,
    reason = "the script that makes the certificates is no worker"
)]
pub(crate) fn certificates() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/data/make-certificates"
    );
    let made = Command::new(script).arg(folder.path()).status().unwrap();
    assert!(made.success(), "openssl makes certificates");
    folder
}

/// The files of a certificate that every server may show.
pub(crate) fn files(folder: &Path) -> Files {
    Files {
        certificate: folder.join("server.pem"),
        key: folder.join("server.key"),
        client_ca: Some(folder.join("ca.pem")),
    }
}
