//! The systemd units.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::{copy, repository, said, tool};

/// Whether the check finds the units of a folder good, and what it says.
fn check(folder: &Path) -> (bool, String) {
    let output = (tool(repository("deploy/check-units")).arg(folder))
        .output()
        .unwrap();
    (output.status.success(), said(&output))
}

/// What the check says of the units with one text of the server's unit replaced; it must fail.
fn refused(text: &str, by: &str) -> String {
    let folder = TempDir::new().unwrap();
    copy(&repository("deploy"), folder.path());
    let unit = folder.path().join("fastvideo-supervisor.service");
    let before = fs::read_to_string(&unit).unwrap();
    let after = before.replacen(text, by, 1);
    assert_ne!(before, after);
    fs::write(unit, after).unwrap();
    let (passed, said) = check(folder.path());
    assert!(!passed, "{text} -> {by}: {said}");
    said
}

#[test]
fn systemd_understands_every_unit_and_none_is_exposed_above_2_0() {
    let (passed, said) = check(&repository("deploy"));
    assert!(passed, "{said}");
    // Server, server with the drop-in, router.
    assert_eq!(said.matches("exposure level").count(), 3, "{said}");
}

#[test]
fn a_unit_that_is_wrong_or_more_exposed_is_noticed() {
    let said = refused("Restart=", "Restat=");
    assert!(said.contains("Restat"), "{said}");
    let said = refused("CapabilityBoundingSet=\n", "");
    assert!(said.contains("exposure level"), "{said}");
    let said = refused("WatchdogSec=20", "WatchdogSec=soon");
    assert!(said.contains("soon"), "{said}");
}

#[test]
fn sockets_have_the_names_by_which_the_programs_know_them() {
    for (socket, name) in [
        ("supervisor", "http"),
        ("supervisor-admin", "admin"),
        ("router", "http"),
    ] {
        let path = repository(&format!("deploy/fastvideo-{socket}.socket"));
        let unit = fs::read_to_string(path).unwrap();
        let line = format!("FileDescriptorName={name}");
        assert!(unit.lines().any(|found| found == line), "{unit}");
    }
}

/// A worker that the kernel kills must not end the server, and a watchdog needs a server that reports.
#[test]
fn units_are_notified_and_watched_by_the_main_process() {
    for unit in ["supervisor", "router"] {
        let path = repository(&format!("deploy/fastvideo-{unit}.service"));
        let unit = fs::read_to_string(path).unwrap();
        for line in ["Type=notify", "NotifyAccess=main", "WatchdogSec=20"] {
            assert!(unit.lines().any(|found| found == line), "{line}: {unit}");
        }
    }
}
