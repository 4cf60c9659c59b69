//! The layer of the configuration that comes from environment variables.

use fastvideo_supervisor_core::settings::{Origin, Settings};

use super::error::ConfigError;
use super::keys::{self, Table};
use super::suggest;

/// Reads the variables into `settings`. Each one that is unknown or has an invalid value adds one of `errors`. Empty
/// variables count as absent, because unit files and compose files write unset variables that way.
///
/// Those of another command's keys are left alone, since a machine may run both.
pub(super) fn read(
    table: &Table,
    variables: &[(String, String)],
    settings: &mut Settings,
    errors: &mut Vec<ConfigError>,
) {
    for (name, text) in variables.iter().filter(|(_, text)| !text.is_empty()) {
        let origin = Origin::Environment(name.clone());
        if let Some(key) = table.all().find(|key| key.variable() == *name) {
            let set = settings.set_text(key, text, origin);
            errors.extend(set.err().map(ConfigError::from));
        } else if is_of_another_command(name) {
        } else if let Some(path) = path_of_variable(name) {
            errors.push(ConfigError::UnknownKey {
                suggestion: suggest::nearest(table, &path),
                key: path,
                origin,
            });
        }
    }
}

fn is_of_another_command(variable: &str) -> bool {
    let mut all = [&keys::SERVER, &keys::ROUTER]
        .into_iter()
        .flat_map(Table::all);
    all.any(|key| key.variable() == variable)
}

/// Returns the key that a variable names, whether or not that key exists. FastVideo has variables of its own that begin
/// with `FASTVIDEO_`; none of them begins with a section and two underscores.
fn path_of_variable(name: &str) -> Option<String> {
    let path = name
        .strip_prefix("FASTVIDEO_")?
        .to_lowercase()
        .replace("__", ".");
    let (section, _) = path.split_once('.')?;
    let known = [
        "generator",
        "server",
        "default_request",
        "streaming",
        "router",
    ];
    known.contains(&section).then_some(path)
}
