//! The system prompts and the choice of a model for rollouts, as they are shown to users and replaced by operators.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Prompts;
use super::instructions::{
    AUTO_EXTEND, ENHANCE, Instructions, InstructionsError, MAX_BYTES, Origin, ROLLOUT_EDIT,
    ROLLOUT_NEW,
};
use super::rollout::DEFAULT_TEMPERATURE;

/// The system prompts in use, and what rollouts are asked for with.
#[derive(Clone, Debug, PartialEq)]
pub struct SystemPrompts {
    pub enhance: SystemPrompt,
    pub auto_extend: SystemPrompt,
    pub rollout_new: SystemPrompt,
    pub rollout_edit: SystemPrompt,
    /// Empty without a language model.
    pub rollout_model: String,
    pub rollout_temperature: f64,
}

/// A system prompt in use.
#[derive(Clone, Debug, PartialEq)]
pub struct SystemPrompt {
    pub text: String,
    /// The file that it comes from; `None` for a built-in one.
    pub path: Option<PathBuf>,
}

/// What takes the place of system prompts. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewSystemPrompts {
    pub enhance: Option<String>,
    pub auto_extend: Option<String>,
    pub rollout_new: Option<String>,
    pub rollout_edit: Option<String>,
    pub rollout_model: Option<String>,
    /// 0 to 2; another one is brought there.
    pub rollout_temperature: Option<f64>,
}

/// Why other system prompts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SystemPromptError {
    #[error(
        "there is no folder for system prompts: `streaming.prompt.system_prompt_dir` is not set"
    )]
    NoFolder,
    #[error("the system prompt for {0} is blank")]
    Blank(&'static str),
    #[error("the system prompt for {name} has {given} bytes, at most {MAX_BYTES} are allowed")]
    TooLarge { name: &'static str, given: usize },
    #[error("the server knows no model `{0}`")]
    UnknownModel(String),
    #[error("the system prompts cannot be written to {}", folder.display())]
    NotWritten { folder: PathBuf, source: io::Error },
    /// They are in the folder, and a file that is beside them cannot be read.
    #[error(transparent)]
    NotReloaded(#[from] InstructionsError),
}

/// What an operator has chosen for rollouts in place of the configuration. It holds until the server ends.
#[derive(Clone, Debug, Default)]
pub(super) struct RolloutChoice {
    pub(super) model: Option<String>,
    pub(super) temperature: Option<f64>,
}

impl Prompts {
    /// Returns the system prompts in use; the built-in ones where there is no enhancer.
    pub fn system_prompts(&self) -> SystemPrompts {
        let enhancer = self.enhancer();
        let built_in = Instructions::built_in();
        let instructions = enhancer.as_ref().map_or(&built_in, |it| it.instructions());
        let config = enhancer.as_ref().map(|enhancer| enhancer.config());
        let folder = config.and_then(|config| config.system_prompt_dir.as_deref());
        let prompt = |text: &String, origin, name| SystemPrompt {
            text: text.clone(),
            path: match origin {
                Origin::File => folder.map(|folder| folder.join(name)),
                Origin::Default => None,
            },
        };
        let origins = instructions.origins;
        let chosen = self.shared.rollout.get();
        let temperature = config.map_or(DEFAULT_TEMPERATURE, |it| it.rollout.temperature);
        SystemPrompts {
            enhance: prompt(&instructions.enhance, origins.enhance, ENHANCE),
            auto_extend: prompt(&instructions.auto_extend, origins.auto_extend, AUTO_EXTEND),
            rollout_new: prompt(&instructions.rollout_new, origins.rollout_new, ROLLOUT_NEW),
            rollout_edit: prompt(
                &instructions.rollout_edit,
                origins.rollout_edit,
                ROLLOUT_EDIT,
            ),
            rollout_model: self.rollout_model(None),
            rollout_temperature: chosen.temperature.unwrap_or(temperature),
        }
    }

    /// Returns the model that is asked first for a rollout; empty without a language model. One that a client wants is
    /// ignored unless the configuration names it.
    pub fn rollout_model(&self, wanted: Option<&str>) -> String {
        let Some(enhancer) = self.enhancer() else {
            return String::new();
        };
        let wanted = wanted.filter(|wanted| enhancer.knows_model(wanted));
        let chosen = self.shared.rollout.get();
        let chosen = chosen.model.as_deref();
        let first = enhancer.config().providers.first();
        let model = first.map(|first| first.models.for_rollout(wanted.or(chosen)));
        model.cloned().unwrap_or_default()
    }

    /// Writes system prompts to the folder and reads all of them again. A model and a temperature for rollouts hold until
    /// the server ends. Blocks while it writes and reads. No reload may run at the same time.
    ///
    /// # Errors
    /// Returns an error when any of it cannot be used. Then all stay in use that were, also where the new ones are in the
    /// folder already.
    pub(crate) fn set_system_prompts(
        &self,
        new: NewSystemPrompts,
    ) -> Result<(), SystemPromptError> {
        let mut chosen = (*self.shared.rollout.get()).clone();
        if let Some(model) = new.rollout_model {
            let enhancer = self.enhancer();
            if !enhancer.is_some_and(|enhancer| enhancer.knows_model(&model)) {
                return Err(SystemPromptError::UnknownModel(model));
            }
            chosen.model = Some(model);
        }
        if let Some(temperature) = new.rollout_temperature {
            chosen.temperature = Some(temperature.clamp(0.0, 2.0));
        }
        let mut texts = Vec::new();
        for (name, text) in [
            (ENHANCE, new.enhance),
            (AUTO_EXTEND, new.auto_extend),
            (ROLLOUT_NEW, new.rollout_new),
            (ROLLOUT_EDIT, new.rollout_edit),
        ] {
            if let Some(text) = text {
                texts.push((name, checked(name, &text)?));
            }
        }
        if !texts.is_empty() {
            let enhancer = self.enhancer().ok_or(SystemPromptError::NoFolder)?;
            let folder = enhancer.config().system_prompt_dir.clone();
            let folder = folder.ok_or(SystemPromptError::NoFolder)?;
            write(&folder, &texts)
                .map_err(|source| SystemPromptError::NotWritten { folder, source })?;
            self.reload_instructions()?;
        }
        self.shared.rollout.replace(chosen);
        Ok(())
    }
}

/// Returns the content of a file with that system prompt.
fn checked(name: &'static str, text: &str) -> Result<String, SystemPromptError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(SystemPromptError::Blank(name));
    }
    let text = format!("{text}\n");
    match text.len() {
        given if given as u64 > MAX_BYTES => Err(SystemPromptError::TooLarge { name, given }),
        _ => Ok(text),
    }
}

/// Writes files, each of which is there as a whole or as it was. None takes its place before all are on disk.
fn write(folder: &Path, texts: &[(&str, String)]) -> io::Result<()> {
    let mut written = Vec::new();
    for (name, text) in texts {
        let mut file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        written.push((folder.join(name), file));
    }
    for (path, file) in written {
        file.persist(path)?;
    }
    Ok(())
}
