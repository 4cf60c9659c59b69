//! The Debian package: what it is made of. `make check` builds it where cargo-deb is installed, and looks into it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use tempfile::TempDir;

use super::{repository, said, tool};
use crate::harness::command;

/// `package.metadata.deb` of Cargo.toml.
fn metadata() -> Value {
    let output = tool(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(repository(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages
        .iter()
        .find(|p| p["name"] == "fastvideo-supervisor");
    package.unwrap()["metadata"]["deb"].clone()
}

/// Source, target and mode of each file.
fn assets() -> Vec<(String, String, String)> {
    let metadata = metadata();
    let assets = metadata["assets"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let asset = |asset: &Value| (text(&asset[0]), text(&asset[1]), text(&asset[2]));
    assets.iter().map(asset).collect()
}

#[test]
fn every_file_of_the_package_exists_or_is_made() {
    for (source, _, _) in assets() {
        if !source.starts_with("target/") {
            let folder = source.split('*').next().unwrap();
            assert!(repository(folder).exists(), "{source}");
        }
    }
}

#[test]
fn what_an_operator_edits_is_kept_through_upgrades() {
    let assets = assets();
    for file in metadata()["conf-files"].as_array().unwrap() {
        let path = file.as_str().unwrap().trim_start_matches('/');
        assert!(assets.iter().any(|(_, target, _)| target == path), "{path}");
    }
    // It may hold passwords.
    let variables = (assets.iter()).find(|(_, target, _)| target.starts_with("etc/default/"));
    assert_eq!(variables.unwrap().2, "640");
}

#[test]
fn installation_makes_the_group_and_starts_nothing() {
    for script in ["postinst", "prerm", "postrm"] {
        let path = repository("deploy/debian").join(script);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script}");
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|line| !line.starts_with('#'));
        for line in code {
            for order in ["start", "enable", "preset"] {
                assert!(!line.contains(order), "{script}: {line}");
            }
        }
        let output = tool("sh").arg("-n").arg(path).output().unwrap();
        assert!(output.status.success(), "{script}: {}", said(&output));
    }
    let group = fs::read_to_string(repository("deploy/debian/sysusers.conf")).unwrap();
    assert!(group.lines().any(|line| line == "g fastvideo -"));
    let unit = fs::read_to_string(repository("deploy/fastvideo-supervisor.service")).unwrap();
    assert!(unit.contains("\nSupplementaryGroups=fastvideo\n"));
}

#[test]
fn the_program_writes_its_manual_and_completions() {
    let folder = TempDir::new().unwrap();
    let output = command().arg("manual").arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    for page in [
        "",
        "-check",
        "-client",
        "-router",
        "-router-check",
        "-sessions-show",
    ] {
        let text = read(&format!("fastvideo-supervisor{page}.1"));
        assert!(text.contains(".TH fastvideo-supervisor"), "{page}: {text}");
    }
    // Keys stand in the manual, and the subcommand for packages does not.
    let page = read("fastvideo-supervisor.1").replace('\\', "");
    assert!(page.contains("server.port"), "{page}");
    assert!(!page.contains("fastvideo-supervisor-manual"), "{page}");
    for (name, text) in [
        ("fastvideo-supervisor.bash", "complete -F"),
        ("fastvideo-supervisor.fish", "complete -c"),
        ("_fastvideo-supervisor", "#compdef fastvideo-supervisor"),
    ] {
        assert!(read(name).contains(text), "{name}");
    }
    assert!(!read("fastvideo-supervisor.bash").contains("supervisor,manual"));
    assert!(!folder.path().join("fastvideo-supervisor-help.1").exists());
    let nowhere = folder.path().join("nowhere");
    let output = command().arg("manual").arg(&nowhere).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("nowhere"), "{}", said(&output));
}

/// Where something cannot be checked, that is said.
#[test]
fn a_machine_without_cargo_deb_is_told_so() {
    let folder = TempDir::new().unwrap();
    let cargo = folder.path().join("cargo");
    fs::write(&cargo, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755)).unwrap();
    let output = tool(repository("deploy/check-package"))
        .env("PATH", folder.path())
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(
        said(&output).contains("cargo-deb is not installed"),
        "{}",
        said(&output)
    );
}
