//! The system prompts for the language models: files in a folder, or built-in texts.

use std::io;
use std::path::{Path, PathBuf};

/// The largest file that is accepted as a system prompt.
const MAX_BYTES: u64 = 64 << 10;

/// The system prompt of each operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instructions {
    pub(super) enhance: String,
    pub(super) auto_extend: String,
    pub(super) rewrite: String,
    pub(super) origins: Origins,
}

/// Where each system prompt comes from: `default` or `file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origins {
    pub enhance: Origin,
    pub auto_extend: Origin,
    pub rewrite: Origin,
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
    /// Reads all three system prompts. The built-in one stands in for a file that is missing or empty.
    pub(super) fn read(folder: Option<&Path>) -> Result<Self, InstructionsError> {
        if let Some(folder) = folder {
            let readable = std::fs::read_dir(folder);
            readable.map_err(|source| InstructionsError::Unreadable {
                path: folder.to_owned(),
                source,
            })?;
        }
        let read = |name: &str, built_in: &str| match folder {
            Some(folder) => Ok(match read_file(&folder.join(name))? {
                Some(text) => (text, Origin::File),
                None => (built_in.to_owned(), Origin::Default),
            }),
            None => Ok((built_in.to_owned(), Origin::Default)),
        };
        let enhance = read("enhance.txt", include_str!("instructions/enhance.txt"))?;
        let auto_extend = read(
            "auto_extend.txt",
            include_str!("instructions/auto_extend.txt"),
        )?;
        let rewrite = read("rewrite.txt", include_str!("instructions/rewrite.txt"))?;
        Ok(Self {
            origins: Origins {
                enhance: enhance.1,
                auto_extend: auto_extend.1,
                rewrite: rewrite.1,
            },
            enhance: enhance.0,
            auto_extend: auto_extend.0,
            rewrite: rewrite.0,
        })
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
