//! What operators install: units, alerts, board, chart and package are valid for the tools that read them, and agree with
//! each other and with the program. No test here starts a server.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

mod alerts;
mod board;
mod chart;
mod compose;
mod image;
mod manual;
mod metrics;
mod package;
mod units;

/// A file or folder of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What a file says that is YAML.
fn yaml(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests start the tools that read the files under test"
)]
fn tool(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

/// All that a tool has said, on both streams.
fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
