//! The example for Docker Compose. It is not started, since that takes Docker and images.

use std::fs;

use tempfile::TempDir;

use super::{repository, said, tool};
use crate::harness::{command, python};

#[test]
fn the_file_fits_the_specification_and_mounts_what_is_there() {
    let schema = repository("target/compose-spec/package/lib/schema.json");
    assert!(
        schema.exists(),
        "{} is missing: make compose-spec puts it there (make test does)",
        schema.display()
    );
    let output = (python().arg(repository("tests/data/validate_compose.py")))
        .arg(schema)
        .arg(repository("deploy/compose/compose.yaml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let mounted = String::from_utf8(output.stdout).unwrap();
    assert!(mounted.lines().count() > 8, "{mounted}");
    for path in mounted.lines() {
        assert!(repository("deploy/compose").join(path).is_file(), "{path}");
    }
}

#[test]
fn prometheus_understands_its_configuration() {
    let output = (tool("promtool").args(["check", "config", "--syntax-only"]))
        .arg(repository("deploy/compose/prometheus.yml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_programs_understand_their_configurations() {
    let folder = TempDir::new().unwrap();
    let key = folder.path().join("router.key");
    fs::write(&key, "k".repeat(40)).unwrap();
    for (file, arguments) in [
        ("serve.yaml", &["check", "--offline", "--config"][..]),
        ("router.yaml", &["router", "check", "--config"]),
    ] {
        let text = fs::read_to_string(repository("deploy/compose").join(file)).unwrap();
        let text = text.replace("/run/secrets/router.key", key.to_str().unwrap());
        let path = folder.path().join(file);
        fs::write(&path, text).unwrap();
        let output = command().args(arguments).arg(path).output().unwrap();
        assert!(output.status.success(), "{file}: {}", said(&output));
    }
}
