//! All configuration keys. The flags, the environment variables, the checks of the file and `--help` are generated from
//! them.
//!
//! Each key is declared in the module that it configures.

use fastvideo_supervisor_core::engines::{self, default_request, ltx2, synthetic, warmup};
use fastvideo_supervisor_core::settings::KeySpec;
use fastvideo_supervisor_core::{
    auth, http, ingress, pool, prompt, router, session, store, tls, traces, video,
};

use super::accepted;
use crate::logging;

/// The keys that one command understands.
#[derive(Debug)]
pub(crate) struct Table {
    /// In the order in which `--help` and `check` show them; the keys of a section stay together.
    lists: &'static [&'static [&'static KeySpec]],
    /// Paths of the file that have no effect.
    pub(super) accepted: &'static [&'static str],
}

/// The keys of the server.
pub(crate) static SERVER: Table = Table {
    lists: &[
        engines::config::KEYS,
        ltx2::KEYS,
        ltx2::OWN_KEYS,
        synthetic::KEYS,
        http::config::KEYS,
        video::config::MODEL_KEYS,
        logging::KEYS,
        traces::config::KEYS,
        tls::config::KEYS,
        auth::config::KEYS,
        ingress::config::LIMIT_KEYS,
        default_request::KEYS,
        session::config::KEYS,
        session::config::WATCH_KEYS,
        warmup::KEYS,
        pool::config::KEYS,
        pool::config::ENCODER_KEYS,
        video::config::KEYS,
        http::dreamverse::config::KEYS,
        store::config::KEYS,
        store::config::RECORDING_KEYS,
        prompt::config::KEYS,
        prompt::config::SAFETY_KEYS,
        session::config::LOG_KEYS,
        session::config::LIMIT_KEYS,
    ],
    accepted: accepted::ACCEPTED,
};

/// The keys of the router.
pub(crate) static ROUTER: Table = Table {
    lists: &[
        router::config::KEYS,
        ingress::config::NAME_KEYS,
        logging::KEYS,
        traces::config::KEYS,
        auth::config::KEYS,
        ingress::config::LIMIT_KEYS,
        ingress::config::MESSAGE_KEYS,
    ],
    accepted: &[],
};

impl Table {
    /// Returns all keys in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'static KeySpec> + use<> {
        self.lists.iter().copied().flatten().copied()
    }

    /// Returns the key that a file names so.
    pub(crate) fn find(&self, path: &str) -> Option<&'static KeySpec> {
        self.all()
            .find(|key| key.path == path || key.alias == Some(path))
    }

    /// Returns all paths that a file may have.
    pub(super) fn paths(&self) -> impl Iterator<Item = &'static str> + use<> {
        let aliases = self.all().filter_map(|key| key.alias);
        let keys = self.all().map(|key| key.path);
        keys.chain(aliases).chain(self.accepted.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const TABLES: [&Table; 2] = [&SERVER, &ROUTER];

    fn every() -> impl Iterator<Item = &'static KeySpec> {
        TABLES.into_iter().flat_map(Table::all)
    }

    #[test]
    fn every_default_fits_its_key() {
        for key in every() {
            if let Some(default) = key.default {
                let text = default.to_string();
                assert!(key.kind.read_text(&text).is_some(), "{}", key.path);
            }
        }
    }

    #[test]
    fn every_key_says_what_holds_without_a_default() {
        for key in every() {
            let told = key.help.contains("[default");
            let silent = ["generator.model_path", "generator.synthetic.faults"];
            let optional = key.default.is_none()
                && !silent.contains(&key.path)
                && !key.path.ends_with("negative_prompt")
                && !key.path.ends_with("num_workers");
            assert_eq!(told, optional, "{}", key.path);
        }
    }

    #[test]
    fn paths_and_flags_are_unique() {
        for table in TABLES {
            let mut seen = HashSet::new();
            for key in table.all() {
                for name in [Some(key.path), key.short, key.alias].into_iter().flatten() {
                    assert!(seen.insert(name), "{}", key.path);
                }
            }
        }
    }

    #[test]
    fn the_keys_of_a_section_stay_together() {
        for table in TABLES {
            let mut ended = HashSet::new();
            let mut current = "";
            for key in table.all() {
                // A section may be interrupted by a section within it.
                if key.section() != current && !current.starts_with(key.section()) {
                    assert!(ended.insert(key.section()), "{}", key.path);
                }
                current = key.section();
            }
        }
    }
}
