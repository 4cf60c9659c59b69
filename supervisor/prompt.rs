//! Prompts on their way to a segment: screened, enhanced, extended and rewritten with the help of language models.
//!
//! Sessions call it; it knows neither workers nor stores nor clients. `enhancer` has the operations and goes from
//! provider to provider, `provider` asks one of them over HTTP, `breaker` remembers which of them fail, `instructions`
//! are the system prompts, `answer` reads what models write, `cache` keeps what was enhanced lately.

pub use enhancer::{Answer, Enhancer, Rewritten};
pub use instructions::{InstructionsError, Origins};
pub use provider::Failure;

mod answer;
mod breaker;
mod cache;
pub mod enhancer;
mod instructions;
pub mod provider;

#[cfg(test)]
mod tests;

/// What is done with prompts.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Prompts are used as they are when absent.
    pub enhancer: Option<enhancer::Config>,
}

/// All that happens to prompts before they are used. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Prompts {
    enhancer: Option<Enhancer>,
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

/// The safety filter does not let a prompt through. Does not say which prompt, so that it can be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the prompt was blocked by the safety filter")]
pub struct Blocked;

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
        Ok(Self { enhancer })
    }

    /// What writes prompts, when there is one.
    pub fn enhancer(&self) -> Option<&Enhancer> {
        self.enhancer.as_ref()
    }

    /// Prompts that are used as they are written have to be looked at all the same.
    pub fn screens(&self) -> bool {
        false
    }

    /// Every prompt passes here before it is used: what clients send before anything else is done with it, and what
    /// models write.
    #[expect(
        clippy::unused_async,
        reason = "a filter loads its model on first use, which takes a while"
    )]
    async fn screen(&self, _prompt: &str) -> Result<(), Blocked> {
        Ok(())
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
