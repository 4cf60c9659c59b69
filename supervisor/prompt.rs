//! Prompts on their way to a segment: screened, enhanced, extended and rewritten with the help of language models.
//!
//! Sessions call it; it knows neither workers nor stores nor clients. `enhancer` has the operations and goes from
//! provider to provider, `provider` asks one of them over HTTP, `breaker` remembers which of them fail, `instructions`
//! are the system prompts, `answer` reads what models write, `cache` keeps what was enhanced lately. `safety` keeps
//! prompts from being used that a classifier calls unsafe, `fasttext` is the classifier.

pub use enhancer::{Answer, Enhancer, Rewritten};
pub use instructions::{InstructionsError, Origins};
pub use provider::Failure;
pub use safety::{Blocked, SafetyFilter};

mod answer;
mod breaker;
mod cache;
pub mod config;
pub mod enhancer;
pub mod fasttext;
mod instructions;
pub mod provider;
pub mod safety;

#[cfg(test)]
mod tests;

/// What is done with prompts.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Prompts are used as they are when absent.
    pub enhancer: Option<enhancer::Config>,
    /// No prompt is screened when absent.
    pub safety: Option<safety::Config>,
}

/// All that happens to prompts before they are used. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Prompts {
    enhancer: Option<Enhancer>,
    safety: Option<SafetyFilter>,
}

/// What became of a prompt that may be used.
#[derive(Debug)]
pub enum Prepared {
    AsWritten,
    Enhanced(Answer),
    /// It was to be enhanced, which failed: it is used as it was written.
    Fallback(Failure),
}

/// Why a follow-on was not written.
#[derive(Debug)]
pub enum NotWritten {
    Blocked(Blocked),
    Failed(Failure),
}

impl From<Blocked> for NotWritten {
    fn from(blocked: Blocked) -> Self {
        Self::Blocked(blocked)
    }
}

impl From<Failure> for NotWritten {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Prompts {
    /// # Errors
    /// When the system prompts cannot be read.
    pub fn open(config: Config) -> Result<Self, InstructionsError> {
        let enhancer = config.enhancer.map(Enhancer::open).transpose()?;
        let safety = config.safety.map(SafetyFilter::new);
        Ok(Self { enhancer, safety })
    }

    /// What writes prompts, when there is one.
    pub fn enhancer(&self) -> Option<&Enhancer> {
        self.enhancer.as_ref()
    }

    /// What screens prompts, when there is a filter.
    pub fn safety(&self) -> Option<&SafetyFilter> {
        self.safety.as_ref()
    }

    /// Prompts of which it is not known yet whether they are blocked may be logged: none ever is, or blocked ones are
    /// shown.
    pub fn logs_unscreened(&self) -> bool {
        self.safety.as_ref().is_none_or(SafetyFilter::logs_blocked)
    }

    /// Every prompt passes here before it is used: what clients send before anything else is done with it, and what
    /// models write.
    async fn screen(&self, prompt: &str) -> Result<(), Blocked> {
        match &self.safety {
            Some(safety) => safety.screen(prompt).await,
            None => Ok(()),
        }
    }

    /// Makes a client's prompt ready for use.
    ///
    /// # Errors
    /// When it, or what a model made of it, must not be used.
    pub async fn prepare(&self, prompt: &str, enhance: bool) -> Result<Prepared, Blocked> {
        self.screen(prompt).await?;
        let Some(enhancer) = self.enhancer.as_ref().filter(|_| enhance) else {
            return Ok(Prepared::AsWritten);
        };
        match enhancer.enhance(prompt).await {
            Ok(answer) => {
                self.screen(&answer.content).await?;
                Ok(Prepared::Enhanced(answer))
            }
            Err(failure) => Ok(Prepared::Fallback(failure)),
        }
    }

    /// Writes what comes after the prompts so far, the oldest of which is first.
    ///
    /// # Errors
    /// When no provider answers, or what it answers must not be used.
    pub async fn extend(&self, story: &[String]) -> Result<Answer, NotWritten> {
        let enhancer = self.enhancer.as_ref().ok_or(Failure::NoProvider)?;
        let answer = enhancer.extend(story).await?;
        self.screen(&answer.content).await?;
        Ok(answer)
    }

    /// Writes alternatives to a prompt. They are screened when they are used.
    ///
    /// # Errors
    /// When no provider answers, or the prompt must not be used.
    pub async fn rewrite(&self, seed_prompt: &str, count: usize) -> Result<Rewritten, NotWritten> {
        self.screen(seed_prompt).await?;
        let enhancer = self.enhancer.as_ref().ok_or(Failure::NoProvider)?;
        Ok(enhancer.rewrite(seed_prompt, count).await?)
    }
}
