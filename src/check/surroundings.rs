//! Tries the address, the store, the session log and what prompts need.

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use fastvideo_proto::check::Finding;
use fastvideo_supervisor_core::causes::with_causes;
use fastvideo_supervisor_core::prompt::Prompts;
use fastvideo_supervisor_core::store::SessionStore;
use fastvideo_supervisor_core::{Config, LinkFolder};

/// Time limit on opening the store: above the store's own limits.
const STORE_TIMEOUT: Duration = Duration::from_secs(20);

/// Binds the addresses for a moment.
pub(super) fn addresses(config: &Config) -> Vec<Finding> {
    let (http, admin) = (&config.http, &config.http.admin);
    let admin = admin.port.map(|port| (admin.host.as_str(), port));
    // All at once, since they have to differ.
    let mut bound = Vec::new();
    let mut bind = |(host, port)| {
        let what = format!("address {host}:{port}");
        match TcpListener::bind((host, port)) {
            Ok(listener) => {
                bound.push(listener);
                Finding::ok(what, "can be bound")
            }
            Err(error) => Finding::failed(what, error),
        }
    };
    let addresses = [Some((http.host.as_str(), http.port)), admin];
    addresses.into_iter().flatten().map(&mut bind).collect()
}

/// Makes the folder of the workers' sockets and of initial images, in which what follows has its temporary files, too.
pub(super) fn private_folder() -> (Finding, Option<LinkFolder>) {
    let what = "temporary folder";
    match LinkFolder::prepare() {
        Ok(folder) => {
            folder.take_effect();
            let place = folder.path().parent().unwrap_or(folder.path());
            let text = format!("can be made in {}", place.display());
            (Finding::ok(what, text), Some(folder))
        }
        Err(error) => (Finding::failed(what, error), None),
    }
}

/// Opens the store. A folder that the server would create is not created here.
pub(super) async fn store(config: &Config) -> Finding {
    let what = format!("store {}", config.store.location);
    let mut store = config.store.clone();
    // The server would wait for a store that is not there yet.
    store.wait = Duration::ZERO;
    let location = &config.store.location;
    let is_there = |folder: Option<&Path>| match folder.map(|path| (path, folder_can_be_used(path)))
    {
        None | Some((_, Ok(Folder::IsThere))) => Ok(true),
        Some((_, Ok(Folder::CanBeCreated))) => Ok(false),
        Some((path, Err(error))) => Err(format!("{}: {error}", path.display())),
    };
    let (records, blobs) = (location.records_folder(), location.blobs_folder());
    let found = is_there(records).and_then(|records| Ok((records, is_there(blobs)?)));
    let blobs_are_there = match found {
        Err(why) => return Finding::failed(what, why),
        Ok((false, _)) => return Finding::ok(what, "will be created"),
        Ok((true, blobs)) => blobs,
    };
    // Deleted at the end of this function.
    let stand_in = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => return Finding::failed("temporary folder", error),
    };
    if !blobs_are_there {
        let folder = stand_in.path().to_owned();
        store.location = store.location.with_blobs_in(folder);
    }
    let opened = tokio::time::timeout(STORE_TIMEOUT, SessionStore::open(store));
    match opened.await {
        Ok(Ok(_)) => Finding::ok(what, "can be opened"),
        Ok(Err(error)) => Finding::failed(what, with_causes(&error)),
        Err(_) => {
            let limit = STORE_TIMEOUT.as_secs();
            Finding::failed(what, format!("it did not open within {limit} s"))
        }
    }
}

/// Tries the session log's folder; `None` where no log is kept.
pub(super) fn session_log(config: &Config) -> Option<Finding> {
    let folder = &config.session_log.as_ref()?.dir;
    let what = format!("session log {}", folder.display());
    Some(match folder_can_be_used(folder) {
        Ok(Folder::IsThere) => Finding::ok(what, "can be written"),
        Ok(Folder::CanBeCreated) => Finding::ok(what, "will be created"),
        Err(error) => Finding::failed(what, error),
    })
}

/// Reads the system prompts and loads the classifier, as far as they are configured.
pub(super) async fn prompts(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut prompt = config.prompt.clone();
    if let Some(safety) = &mut prompt.safety {
        // So that it is loaded now.
        safety.required = true;
    }
    let providers: Vec<String> = (prompt.enhancer.iter())
        .flat_map(|enhancer| {
            enhancer
                .providers
                .iter()
                .map(|provider| provider.name.clone())
        })
        .collect();
    let prompts = match Prompts::open(prompt) {
        Ok(prompts) => prompts,
        Err(error) => return vec![Finding::failed("system prompts", with_causes(&error))],
    };
    if prompts.enhancer().is_some() {
        findings.push(Finding::ok("system prompts", "can be read"));
        let what = format!("language model {}", providers.join(", "));
        findings.push(Finding::not_tried(what, "a request would cost money"));
    }
    if let Some(safety) = prompts.safety()
        && config
            .prompt
            .safety
            .as_ref()
            .is_some_and(|safety| safety.classifier_path.is_some())
    {
        findings.push(match safety.load_if_required().await {
            Ok(()) => Finding::ok("safety filter", "can be loaded"),
            Err(error) => Finding::failed("safety filter", with_causes(&error)),
        });
    }
    findings
}

enum Folder {
    IsThere,
    CanBeCreated,
}

/// Checks that a folder can be written, or else that it can be created. Leaves nothing behind.
fn folder_can_be_used(folder: &Path) -> io::Result<Folder> {
    match folder.metadata() {
        Ok(_) => tempfile::tempfile_in(folder).map(|_| Folder::IsThere),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut above = folder.ancestors().skip(1);
            let existing = above.find(|above| above.exists()).unwrap_or(Path::new("."));
            // Another folder would be created in it.
            match tempfile::tempdir_in(existing) {
                Ok(_) => Ok(Folder::CanBeCreated),
                Err(error) => {
                    let (kind, above) = (error.kind(), existing.display());
                    let why = format!("it cannot be created in {above}: {kind}");
                    Err(io::Error::new(kind, why))
                }
            }
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_tried_without_a_trace() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(
            folder_can_be_used(root.path()),
            Ok(Folder::IsThere)
        ));
        let deep = root.path().join("a/b/c");
        assert!(matches!(
            folder_can_be_used(&deep),
            Ok(Folder::CanBeCreated)
        ));
        assert!(folder_can_be_used(&file).is_err());
        assert!(folder_can_be_used(&file.join("below")).is_err());
        assert!(folder_can_be_used(Path::new("/proc/nowhere")).is_err());
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
