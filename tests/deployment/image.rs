//! The container image. `make image` builds and starts it, which takes minutes and root.

use super::{repository, said};
use crate::harness::python;

#[test]
fn the_dockerfile_has_no_known_mistake() {
    let python = python();
    let linter = std::path::Path::new(python.get_program()).with_file_name("hadolint");
    let output = super::tool(linter)
        .arg(repository("deploy/Dockerfile"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
}
