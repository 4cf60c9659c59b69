//! Resolves an operator's model argument to a path: either a folder or a file, or a repository's id, which is looked up in the
//! local Hugging Face cache and downloaded into it if the network allows.

use std::fs::File;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo};

use super::{Checkpoint, CheckpointError, is_hidden};
use crate::with_causes;

/// The reason why there is no path for a model.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("`{0}` is neither a folder, a file nor a repository's id (`owner/name`)")]
    Neither(String),
    #[error("{} is {form}, which this engine does not read: {}", path.display(), super::READ_FORM)]
    OneFile { path: PathBuf, form: &'static str },
    #[error(
        "`{id}` is no folder, and of the repository of that id {} holds no complete copy ({missing}); it was not downloaded: {why}",
        cache.display()
    )]
    NotDownloaded {
        id: String,
        cache: PathBuf,
        /// The files that the cache lacks.
        missing: String,
        why: String,
    },
    #[error(
        "{} holds no complete copy of `{id}` ({missing}), and nothing can be downloaded into it: {source}; HF_HUB_CACHE or HF_HOME names another folder",
        cache.display()
    )]
    Cache {
        id: String,
        cache: PathBuf,
        /// The files that the cache lacks.
        missing: String,
        #[source]
        source: std::io::Error,
    },
}

/// A file that is being downloaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Download<'a> {
    pub file: &'a str,
    /// The progress of this file, 0 to 1.
    pub fraction: f32,
    /// The number of complete files, out of `files`.
    pub done: usize,
    pub files: usize,
}

/// What this machine has of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// A folder, or a model in one file.
    Here(PathBuf),
    /// A repository of which the cache holds no complete copy.
    Incomplete { missing: String },
}

/// Looks for a model on this machine; downloads nothing.
///
/// # Errors
/// Returns an error when `model` names nothing, or something that cannot be downloaded although it must be.
pub fn local(model: &str) -> Result<Local, HubError> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(Local::Here(path.to_owned()));
    }
    if path.extension().is_some_and(|end| end == "safetensors") && path.is_file() {
        return Ok(Local::Here(path.to_owned()));
    }
    if path.exists() {
        return Err(HubError::OneFile {
            path: path.to_owned(),
            form: super::form_of(path),
        });
    }
    if !is_id(model) {
        return Err(HubError::Neither(model.to_owned()));
    }
    let cache = cache();
    match cached(&cache, model) {
        Ok(folder) => Ok(Local::Here(folder)),
        Err(missing) if offline() => Err(HubError::NotDownloaded {
            id: model.to_owned(),
            cache: cache.path().clone(),
            missing,
            why: "HF_HUB_OFFLINE is set".to_owned(),
        }),
        Err(missing) => Ok(Local::Incomplete { missing }),
    }
}

/// Returns the path of a model. Blocks while it downloads. If several processes want the same repository, one of them
/// downloads it.
///
/// # Errors
/// Returns an error when `model` names nothing, or something that cannot be downloaded.
pub fn resolve(model: &str, progress: &mut dyn FnMut(Download<'_>)) -> Result<PathBuf, HubError> {
    let missing = match local(model)? {
        Local::Here(folder) => return Ok(folder),
        Local::Incomplete { missing } => missing,
    };
    let cache = cache();
    // The lock is needed, because the workers of a machine start together.
    let lock = lock(&cache, model).map_err(|source| HubError::Cache {
        id: model.to_owned(),
        cache: cache.path().clone(),
        missing: missing.clone(),
        source,
    })?;
    if let Ok(folder) = cached(&cache, model) {
        return Ok(folder);
    }
    let downloaded = download(&cache, model, progress);
    drop(lock);
    let not_downloaded = |missing: String, why: String| HubError::NotDownloaded {
        id: model.to_owned(),
        cache: cache.path().clone(),
        missing,
        why,
    };
    downloaded.map_err(|error| not_downloaded(missing, with_causes(&error)))?;
    cached(&cache, model).map_err(|missing| {
        let why = "the repository does not have it".to_owned();
        not_downloaded(missing, why)
    })
}

/// Returns whether a text has the form `owner/name`, in the characters that the hub allows.
fn is_id(model: &str) -> bool {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    model
        .split_once('/')
        .is_some_and(|(owner, name)| part(owner) && part(name))
}

/// Returns the folder in which the Python library caches repositories, found by the same environment variables.
fn cache() -> Cache {
    let folder = |name| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    match (folder("HF_HUB_CACHE"), folder("XDG_CACHE_HOME")) {
        (Some(hub), _) => Cache::new(hub),
        (None, Some(xdg)) if folder("HF_HOME").is_none() => Cache::new(xdg.join("huggingface/hub")),
        _ => Cache::from_env(),
    }
}

fn offline() -> bool {
    let set = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "ON", "YES", "TRUE"].contains(&set.to_uppercase().as_str())
}

/// Returns the snapshot of the repository's main branch if it is complete.
///
/// # Errors
/// Returns an error that describes what the cache lacks.
fn cached(cache: &Cache, id: &str) -> Result<PathBuf, String> {
    let repo = Repo::model(id.to_owned());
    let main = cache.path().join(repo.folder_name()).join("refs/main");
    let commit = std::fs::read_to_string(main).map_err(|_| "it has never been downloaded")?;
    let folder = cache.repo(repo).pointer_path(commit.trim());
    match Checkpoint::open(&folder) {
        Ok(_) => Ok(folder),
        // A checkpoint that is complete but wrong would still be wrong after another download.
        Err(CheckpointError::OtherModel { .. }) if folder.join("model_index.json").is_file() => {
            Ok(folder)
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Locks the repository in the cache against downloads by other processes.
fn lock(cache: &Cache, id: &str) -> std::io::Result<File> {
    let folder = cache.path().join(Repo::model(id.to_owned()).folder_name());
    std::fs::create_dir_all(&folder)?;
    let file = File::create(folder.join("fastvideo.lock"))?;
    file.lock()?;
    Ok(file)
}

fn download(
    cache: &Cache,
    id: &str,
    progress: &mut dyn FnMut(Download<'_>),
) -> Result<(), ApiError> {
    let mut api = ApiBuilder::from_env()
        .with_cache_dir(cache.path().clone())
        .with_progress(false)
        .with_retries(3);
    if let Some(token) = std::env::var("HF_TOKEN").ok().filter(|t| !t.is_empty()) {
        api = api.with_token(Some(token));
    }
    let repo: ApiRepo = api.build()?.model(id.to_owned());
    let files: Vec<String> = repo
        .info()?
        .siblings
        .into_iter()
        .map(|s| s.rfilename)
        .collect();
    let wanted: Vec<&String> = files.iter().filter(|file| is_wanted(file)).collect();
    let cached = cache.model(id.to_owned());
    for (done, file) in wanted.iter().enumerate() {
        if cached.get(file).is_some() {
            continue;
        }
        let meter = Meter {
            report: &mut *progress,
            file: file.as_str(),
            done,
            files: wanted.len(),
            bytes: 0,
            size: 1,
        };
        repo.download_with_progress(file, meter)?;
    }
    Ok(())
}

/// Returns whether a file of a repository is loaded. A repository may hold other forms of the same weights, each as
/// large.
fn is_wanted(file: &str) -> bool {
    const FOLDERS: &[&str] = &[
        "audio_vae",
        "connectors",
        "latent_upsampler",
        "scheduler",
        "spatial_upsampler",
        "spatial_upscaler",
        "text_embedding_projection",
        "text_encoder",
        "tokenizer",
        "transformer",
        "vae",
        "vocoder",
    ];
    let is_hidden = file.rsplit('/').next().is_some_and(is_hidden);
    file == "model_index.json"
        || !is_hidden
            && (file.ends_with(".json") || file.ends_with(".safetensors"))
            && file
                .split_once('/')
                .is_some_and(|(folder, _)| FOLDERS.contains(&folder))
}

/// Reports the progress of a file's download, once per hundredth.
struct Meter<'a> {
    report: &'a mut dyn FnMut(Download<'_>),
    file: &'a str,
    done: usize,
    files: usize,
    bytes: usize,
    size: usize,
}

impl Meter<'_> {
    fn tell(&mut self) {
        (self.report)(Download {
            file: self.file,
            fraction: self.bytes as f32 / self.size.max(1) as f32,
            done: self.done,
            files: self.files,
        });
    }
}

impl hf_hub::api::Progress for Meter<'_> {
    fn init(&mut self, size: usize, _file: &str) {
        (self.size, self.bytes) = (size, 0);
        self.tell();
    }

    fn update(&mut self, bytes: usize) {
        let hundredths = |bytes: usize| bytes.saturating_mul(100) / self.size.max(1);
        let before = hundredths(self.bytes);
        let after = hundredths(self.bytes + bytes);
        self.bytes += bytes;
        if after > before {
            self.tell();
        }
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_are_looked_up() {
        for id in ["FastVideo/LTX2-Distilled-Diffusers", "a/b_c.d"] {
            assert!(is_id(id), "{id}");
        }
        for path in [
            "",
            "model",
            "/models/ltx2",
            "./ltx2",
            "../x/y",
            "a/b/c",
            "a/ b",
        ] {
            assert!(!is_id(path), "{path}");
        }
    }

    #[test]
    fn a_repository_s_other_forms_of_the_weights_are_left_there() {
        let wanted = [
            "model_index.json",
            "vae/config.json",
            "text_encoder/gemma/model.safetensors",
        ];
        let unwanted = [
            "ltx-2-19b-dev.safetensors",
            "README.md",
            "loras/x.safetensors",
            "vae/x.bin",
            "vae/._config.json",
        ];
        assert!(wanted.into_iter().all(is_wanted));
        assert!(!unwanted.into_iter().any(is_wanted));
    }
}
