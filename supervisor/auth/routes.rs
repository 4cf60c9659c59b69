//! The table of who may use which route. A route without an entry answers nobody.

use axum::http::Method;

use super::guard::changes_state;

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Anyone,
    /// Who has a token of the session: a resume token or a watch token. Nobody is asked for a key, since viewers have none;
    /// a caller that shows a key is held to its tenant.
    Token,
    /// Routers, which have keys of their own.
    Router,
    /// Users, for what is their own tenant's, and administrators, for everything.
    User,
    /// Who reads metrics, and administrators.
    Metrics,
    /// Administrators. Where nobody is asked for a key, orders are taken from this machine alone.
    Admin,
}

/// The routes of servers and routers, as they are declared, but for the files of the page.
pub const ROUTES: &[(&str, Access)] = &[
    ("/health", Access::Anyone),
    ("/healthz", Access::Anyone),
    ("/readyz", Access::Anyone),
    ("/openapi.json", Access::Anyone),
    ("/v1/watch", Access::Token),
    ("/v1/sessions/{id}/film", Access::Token),
    ("/v1/sessions/{id}/film/{file}", Access::Token),
    ("/v1/sessions/{id}/film/{file}/{part}", Access::Token),
    ("/v1/sessions/{id}/film/{*file}", Access::Token),
    ("/v1/sessions/{id}/film.mp4", Access::Token),
    ("/v1/sessions/{id}/index.m3u8", Access::Token),
    ("/v1/router", Access::Router),
    ("/v1/router/session", Access::Router),
    ("/v1/stream", Access::User),
    ("/v1/tickets", Access::User),
    ("/v1/models", Access::User),
    ("/v1/models/{*model}", Access::User),
    ("/v1/videos", Access::User),
    ("/v1/videos/sync", Access::User),
    ("/v1/videos/edits", Access::User),
    ("/v1/videos/extensions", Access::User),
    ("/v1/videos/{id}", Access::User),
    ("/v1/videos/{id}/content", Access::User),
    ("/v1/videos/{id}/cancel", Access::User),
    ("/v1/videos/{id}/remix", Access::User),
    ("/curated-presets", Access::User),
    ("/lora/options", Access::User),
    ("/router/replicas/sessions", Access::User),
    ("/internal/monitor/sessions", Access::User),
    ("/v1/sessions", Access::User),
    ("/v1/sessions/{id}", Access::User),
    ("/v1/sessions/{id}/state", Access::User),
    ("/ws", Access::User),
    ("/v1/prompts/rollout", Access::User),
    ("/prompt-system-config", Access::User),
    ("/status", Access::Metrics),
    ("/metrics", Access::Metrics),
    ("/v1/fleet/demand", Access::Metrics),
    ("/v1/sessions/{id}/move", Access::Admin),
    ("/v1/drain", Access::Admin),
    ("/curated-presets/append", Access::Admin),
    ("/lora", Access::Admin),
    ("/v1/workers/{gpu}/drain", Access::Admin),
    ("/v1/workers/{gpu}/restart", Access::Admin),
    ("/v1/workers/loras", Access::Admin),
    ("/v1/workers/loras/{name}", Access::Admin),
    ("/v1/prompts/reload", Access::Admin),
    ("/v1/reload", Access::Admin),
    ("/v1/log-level", Access::Admin),
    ("/v1/servers/{name}/{*path}", Access::Admin),
];

/// Routes whose entry says who may read them: only administrators may change what is there.
pub const CHANGED_BY_ADMINS: &[&str] = &["/prompt-system-config"];

/// Returns who may use a route in this way; `None` for one that the table does not name.
pub fn access(route: &str, method: &Method) -> Option<Access> {
    let entry = ROUTES.iter().find(|(path, _)| *path == route)?;
    match changes_state(method) && CHANGED_BY_ADMINS.contains(&route) {
        true => Some(Access::Admin),
        false => Some(entry.1),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    /// Returns all source files below a folder.
    fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => sources(&path, into),
                false if path.extension().is_some_and(|it| it == "rs") => into.push(path),
                false => {}
            }
        }
    }

    /// Returns the paths of the routes that servers and routers declare.
    fn declared() -> HashSet<String> {
        let library = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = vec![library.join("http.rs"), library.join("router.rs")];
        sources(&library.join("http"), &mut files);
        sources(&library.join("router"), &mut files);
        files.push(library.join("auth/issue.rs"));
        files.push(library.join("reload/routes.rs"));
        let mut declared = HashSet::new();
        for file in files {
            let text = fs::read_to_string(file).unwrap();
            for (place, _) in text.match_indices(".route(") {
                let rest = text[place + ".route(".len()..].trim_start();
                let path = rest.strip_prefix('"').expect("a route's path is a literal");
                let (path, _) = path.split_once('"').unwrap();
                declared.insert(path.to_owned());
            }
        }
        declared
    }

    #[test]
    fn every_route_has_an_entry_and_every_entry_is_a_route() {
        let declared = declared();
        assert!(declared.contains("/v1/stream"));
        let named = ROUTES.iter().map(|(path, _)| (*path).to_owned());
        let named: HashSet<String> = named.collect();
        assert_eq!(named.len(), ROUTES.len(), "a route is named twice");
        assert_eq!(named, declared);
        for route in CHANGED_BY_ADMINS {
            assert!(named.contains(*route), "{route}");
        }
    }
}
