//! The system prompts for the language models: files in a folder, or built-in texts.

use std::io;
use std::path::{Path, PathBuf};

/// The largest file that is accepted as a system prompt.
pub(crate) const MAX_BYTES: u64 = 64 << 10;

/// The names of the files.
pub(super) const ENHANCE: &str = "enhance.txt";
pub(super) const AUTO_EXTEND: &str = "auto_extend.txt";
const REWRITE: &str = "rewrite.txt";
pub(super) const ROLLOUT_NEW: &str = "rollout_new.txt";
pub(super) const ROLLOUT_EDIT: &str = "rollout_edit.txt";

/// The system prompt of each operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instructions {
    pub(super) enhance: String,
    pub(super) auto_extend: String,
    pub(super) rewrite: String,
    pub(super) rollout_new: String,
    pub(super) rollout_edit: String,
    pub(super) origins: Origins,
}

/// Where each system prompt comes from: `default` or `file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origins {
    pub enhance: Origin,
    pub auto_extend: Origin,
    pub rewrite: Origin,
    pub rollout_new: Origin,
    pub rollout_edit: Origin,
}

/// Where one system prompt comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The text is built in.
    Default,
    /// The text was read from the folder.
    File,
}

/// Why the system prompts cannot be read. The message names the file.
#[derive(Debug, thiserror::Error)]
pub enum InstructionsError {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{} has {given} bytes, at most {MAX_BYTES} are allowed", path.display())]
    TooLarge { path: PathBuf, given: u64 },
}

impl Instructions {
    /// Returns the built-in system prompts.
    pub(super) fn built_in() -> Self {
        let text = |text: &str| text.trim().to_owned();
        Self {
            enhance: text(include_str!("instructions/enhance.txt")),
            auto_extend: text(include_str!("instructions/auto_extend.txt")),
            rewrite: text(include_str!("instructions/rewrite.txt")),
            rollout_new: text(include_str!("instructions/rollout_new.txt")),
            rollout_edit: text(include_str!("instructions/rollout_edit.txt")),
            origins: Origins {
                enhance: Origin::Default,
                auto_extend: Origin::Default,
                rewrite: Origin::Default,
                rollout_new: Origin::Default,
                rollout_edit: Origin::Default,
            },
        }
    }

    /// Reads all system prompts. The built-in one stands in for a file that is missing or empty.
    pub(super) fn read(folder: Option<&Path>) -> Result<Self, InstructionsError> {
        let mut read = Self::built_in();
        let Some(folder) = folder else {
            return Ok(read);
        };
        let readable = std::fs::read_dir(folder);
        readable.map_err(|source| InstructionsError::Unreadable {
            path: folder.to_owned(),
            source,
        })?;
        let origins = &mut read.origins;
        for (name, text, origin) in [
            (ENHANCE, &mut read.enhance, &mut origins.enhance),
            (AUTO_EXTEND, &mut read.auto_extend, &mut origins.auto_extend),
            (REWRITE, &mut read.rewrite, &mut origins.rewrite),
            (ROLLOUT_NEW, &mut read.rollout_new, &mut origins.rollout_new),
            (
                ROLLOUT_EDIT,
                &mut read.rollout_edit,
                &mut origins.rollout_edit,
            ),
        ] {
            if let Some(given) = read_file(&folder.join(name))? {
                (*text, *origin) = (given, Origin::File);
            }
        }
        Ok(read)
    }
}

/// Reads one system prompt; `None` when the file is missing or contains only blanks.
fn read_file(path: &Path) -> Result<Option<String>, InstructionsError> {
    let unreadable = |source| InstructionsError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let given = match std::fs::metadata(path) {
        Ok(file) => file.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    if given > MAX_BYTES {
        return Err(InstructionsError::TooLarge {
            path: path.to_owned(),
            given,
        });
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let text = text.trim();
    Ok((!text.is_empty()).then(|| text.to_owned()))
}
