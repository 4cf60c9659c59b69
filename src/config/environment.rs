//! The layer of the configuration that comes from environment variables.

use fastvideo_supervisor_core::settings::{Origin, Settings};

use super::error::ConfigError;
use super::{keys, suggest};

/// Reads the variables into `settings`. Each one that is unknown or has an invalid value adds one of `errors`. Empty
/// variables count as absent, because unit files and compose files write unset variables that way.
pub(super) fn read(
    variables: &[(String, String)],
    settings: &mut Settings,
    errors: &mut Vec<ConfigError>,
) {
    for (name, text) in variables.iter().filter(|(_, text)| !text.is_empty()) {
        let origin = Origin::Environment(name.clone());
        if let Some(key) = keys::all().find(|key| key.variable() == *name) {
            let set = settings.set_text(key, text, origin);
            errors.extend(set.err().map(ConfigError::from));
        } else if let Some(path) = path_of_variable(name) {
            errors.push(ConfigError::UnknownKey {
                suggestion: suggest::nearest(&path),
                key: path,
                origin,
            });
        }
    }
}

/// Returns the key that a variable names, whether or not that key exists. FastVideo has variables of its own that begin
/// with `FASTVIDEO_`; none of them begins with a section and two underscores.
fn path_of_variable(name: &str) -> Option<String> {
    let path = name
        .strip_prefix("FASTVIDEO_")?
        .to_lowercase()
        .replace("__", ".");
    let (section, _) = path.split_once('.')?;
    let known = ["generator", "server", "default_request", "streaming"];
    known.contains(&section).then_some(path)
}
