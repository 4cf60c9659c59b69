//! Prompt processing: prompts are screened by a safety filter and enhanced, extended or rewritten by language models
//! before segments are generated from them. Language models also write the prompts of whole videos.
//!
//! Sessions call it; it knows neither workers nor stores nor clients. `enhancer` has the operations of language models and
//! falls back from provider to provider, `provider` is one of them with its record, `call` calls it over HTTP, `completion`
//! reads the text out of its answer and `thinking` removes a model's thinking from that, `breaker` is the circuit breaker
//! of a provider, `instructions` has the system prompts and `system_prompts` lets operators replace them, `answer` parses what
//! models write, `generated` is the result, `rollout` asks for the prompts of a whole video and reads them, `metrics` counts the calls, `spans` keeps them for traces, `cache` is an LRU cache of enhanced prompts. `safety` blocks prompts that a classifier calls unsafe, `fasttext` is the classifier.

use std::sync::Arc;

use tokio::time::Instant;

use crate::current::Current;
use crate::tenant::Tenant;
use metrics::PromptMetrics;

pub use enhancer::Enhancer;
pub use generated::{GeneratedPrompt, PromptAlternatives};
pub(crate) use instructions::MAX_BYTES as MAX_SYSTEM_PROMPT_BYTES;
pub use instructions::{InstructionsError, Origin, Origins};
pub use llm_error::LlmError;
pub use rollout::{GeneratedRollout, RolloutPrompts, RolloutRequest, WrittenRollout};
pub use safety::{Blocked, SafetyFilter};
pub(crate) use spans::PromptSpans;
pub use spans::{PromptSpan, PromptSpanKind};
use system_prompts::RolloutChoice;
pub use system_prompts::{NewSystemPrompts, SystemPrompt, SystemPromptError, SystemPrompts};

mod answer;
mod breaker;
mod cache;
mod call;
mod completion;
pub mod config;
pub mod enhancer;
pub mod fasttext;
mod generated;
mod instructions;
mod llm_error;
mod metrics;
pub mod provider;
mod rollout;
pub mod safety;
mod spans;
mod system_prompts;
mod thinking;

#[cfg(test)]
mod tests;

/// The configuration of prompt processing.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The prompt enhancer; when absent, prompts are used as clients wrote them.
    pub enhancer: Option<enhancer::Config>,
    /// The safety filter; when absent, no prompt is screened.
    pub safety: Option<safety::Config>,
}

/// Screens and enhances prompts. It is cheap to clone.
#[derive(Clone, Debug)]
pub struct Prompts {
    shared: Arc<Shared>,
    /// Whose prompts they are.
    tenant: Tenant,
    /// Where it is noted what is done for them.
    spans: PromptSpans,
}

#[derive(Debug)]
struct Shared {
    parts: Current<Parts>,
    rollout: Current<RolloutChoice>,
    metrics: PromptMetrics,
}

/// What a reload replaces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    enhancer: Option<Enhancer>,
    safety: Option<SafetyFilter>,
}

/// Why a configuration of prompt processing cannot take effect.
#[derive(Debug, thiserror::Error)]
pub enum NotRenewed {
    #[error(transparent)]
    Instructions(#[from] InstructionsError),
    #[error(transparent)]
    Safety(#[from] safety::Unavailable),
}

/// How a client's prompt was made ready for use.
#[derive(Debug)]
pub enum PreparedPrompt {
    /// The prompt is used as the client wrote it.
    AsWritten,
    /// The prompt is replaced by an enhanced one.
    Enhanced(GeneratedPrompt),
    /// The prompt could not be enhanced and is used as the client wrote it.
    Fallback(LlmError),
}

/// Why a prompt or its alternatives could not be generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The safety filter blocked the prompt.
    #[error(transparent)]
    Blocked(#[from] Blocked),
    /// No language model gave a usable answer.
    #[error(transparent)]
    Failed(#[from] LlmError),
}

impl Prompts {
    /// Reads the system prompts. The safety classifier is loaded later, see [`SafetyFilter`].
    ///
    /// # Errors
    /// Returns an error when a system prompt cannot be read.
    pub fn open(config: Config) -> Result<Self, InstructionsError> {
        let metrics = PromptMetrics::default();
        let open = |config| Enhancer::open_with(config, metrics.clone());
        let parts = Parts {
            enhancer: config.enhancer.map(open).transpose()?,
            safety: config.safety.map(SafetyFilter::new),
        };
        let parts = Current::new(parts);
        Ok(Self {
            shared: Arc::new(Shared {
                parts,
                rollout: Current::default(),
                metrics,
            }),
            tenant: Tenant::default(),
            spans: PromptSpans::default(),
        })
    }

    /// Returns whether language models enhance prompts.
    pub(crate) fn can_enhance(&self) -> bool {
        self.shared.parts.get().enhancer.is_some()
    }

    /// Reads what another configuration names: the system prompts and the classifier, where they have changed. Nothing of it
    /// has an effect before [`Self::adopt`]. Blocks while it reads.
    ///
    /// # Errors
    /// Returns an error when a file cannot be used.
    pub(crate) fn prepare_parts(&self, config: Config) -> Result<Parts, NotRenewed> {
        let Parts { enhancer, safety } = &*self.shared.parts.get();
        let enhancer = match (enhancer, config.enhancer) {
            (_, None) => None,
            (Some(old), Some(config)) => Some(old.renewed(config)?),
            (None, Some(config)) => Some(Enhancer::open_with(config, self.shared.metrics.clone())?),
        };
        let safety = match (safety, config.safety) {
            (_, None) => None,
            (Some(old), Some(config)) => Some(old.renewed(config)?),
            (None, Some(config)) => {
                let new = SafetyFilter::new(config);
                new.load()?;
                Some(new)
            }
        };
        Ok(Parts { enhancer, safety })
    }

    /// Lets what was prepared take effect, for prompts that are being written too, as far as they are not written yet. Returns
    /// the keys that name files which have changed.
    pub(crate) fn adopt(&self, new: Parts) -> Vec<&'static str> {
        let old = self.shared.parts.get();
        let mut changed = Vec::new();
        if let (Some(old), Some(new)) = (&old.enhancer, &new.enhancer)
            && old.config() == new.config()
            && !old.is(new)
        {
            changed.push(config::SYSTEM_PROMPT_DIR.spec.path);
        }
        if let (Some(old), Some(new)) = (&old.safety, &new.safety)
            && old.config() == new.config()
            && old.number() != new.number()
        {
            changed.push(config::CLASSIFIER_PATH.spec.path);
        }
        if let Some(enhancer) = &new.enhancer {
            let status = enhancer.status();
            self.shared.metrics.create(&status.providers);
        }
        self.shared.parts.replace(new);
        changed
    }

    /// Reads the system prompts again. Returns where they come from now; `None` where there is no enhancer. Blocks while it
    /// reads. No reload may run at the same time.
    ///
    /// # Errors
    /// Returns an error when a system prompt cannot be read; then all of them stay as they were.
    pub(crate) fn reload_instructions(&self) -> Result<Option<Origins>, InstructionsError> {
        let Parts { enhancer, safety } = (*self.shared.parts.get()).clone();
        let Some(enhancer) = enhancer else {
            return Ok(None);
        };
        let enhancer = enhancer.renewed(enhancer.config().clone())?;
        let origins = enhancer.origins();
        self.shared.parts.replace(Parts {
            enhancer: Some(enhancer),
            safety,
        });
        Ok(Some(origins))
    }

    /// Returns what writes the prompts of a tenant: no other one learns from the cache what it has asked for.
    pub(crate) fn of_tenant(self, tenant: Tenant) -> Self {
        Self { tenant, ..self }
    }

    /// Returns what writes prompts and notes there what it does for them.
    pub(crate) fn noting(self, spans: PromptSpans) -> Self {
        Self { spans, ..self }
    }

    /// Returns the prompt enhancer, if the server has one now.
    pub fn enhancer(&self) -> Option<Enhancer> {
        let enhancer = self.shared.parts.get().enhancer.clone()?;
        Some(enhancer.asked_by(self.tenant.clone(), self.spans.clone()))
    }

    /// Returns the safety filter, if the server has one now.
    pub fn safety(&self) -> Option<SafetyFilter> {
        self.shared.parts.get().safety.clone()
    }

    fn metrics(&self) -> &PromptMetrics {
        &self.shared.metrics
    }

    /// Returns whether prompts that are not screened yet may be logged: there is no safety filter, or blocked prompts
    /// may be logged too.
    pub fn logs_unscreened(&self) -> bool {
        self.safety().is_none_or(|safety| safety.logs_blocked())
    }

    /// Screens a prompt. Every prompt passes here before it is used: what a client has written before a model sees it, and
    /// what a model has written before a worker does.
    async fn screen(&self, prompt: &str) -> Result<(), Blocked> {
        let Some(safety) = self.safety() else {
            return Ok(());
        };
        let began = Instant::now();
        let screened = safety.screen(prompt).await;
        let is_blocked = screened.is_err();
        self.spans
            .add(began, PromptSpanKind::Screened { is_blocked });
        screened
    }

    /// Screens several prompts.
    ///
    /// # Errors
    /// Returns an error when one of them is blocked.
    pub(crate) async fn screen_all(&self, prompts: &[String]) -> Result<(), Blocked> {
        for prompt in prompts {
            self.screen(prompt).await?;
        }
        Ok(())
    }

    /// Makes a client's prompt ready for use: screens it and, if `enhance` is set, has it enhanced. A failure of the
    /// language models is no error: the prompt is then used as it is.
    ///
    /// # Errors
    /// Returns an error when the prompt, or the enhanced one, is blocked.
    pub async fn prepare(&self, prompt: &str, enhance: bool) -> Result<PreparedPrompt, Blocked> {
        self.screen(prompt).await?;
        if !enhance {
            return Ok(PreparedPrompt::AsWritten);
        }
        let Some(enhancer) = self.enhancer() else {
            return Ok(PreparedPrompt::Fallback(LlmError::NoProvider));
        };
        match enhancer.enhance(prompt).await {
            Ok(enhanced) => {
                self.screen(&enhanced.content).await?;
                Ok(PreparedPrompt::Enhanced(enhanced))
            }
            Err(error) => {
                self.metrics().fell_back("enhance");
                Ok(PreparedPrompt::Fallback(error))
            }
        }
    }

    /// Generates the prompt that follows those in `story`, the oldest of which is first.
    ///
    /// # Errors
    /// Returns an error when no provider gives a usable answer, or the generated prompt is blocked.
    pub async fn extend(&self, story: &[String]) -> Result<GeneratedPrompt, GenerateError> {
        let enhancer = self.enhancer().ok_or(LlmError::NoProvider)?;
        let generated = enhancer.extend(story).await;
        let generated = generated.inspect_err(|_| self.metrics().fell_back("auto_extend"))?;
        self.screen(&generated.content).await?;
        Ok(generated)
    }

    /// Generates at most `count` alternatives to a prompt. They are not screened before a client asks for one of them.
    ///
    /// # Errors
    /// Returns an error when no provider gives a usable answer, or the prompt is blocked.
    pub async fn rewrite(
        &self,
        seed_prompt: &str,
        count: usize,
    ) -> Result<PromptAlternatives, GenerateError> {
        self.screen(seed_prompt).await?;
        let enhancer = self.enhancer().ok_or(LlmError::NoProvider)?;
        let rewritten = enhancer.rewrite(seed_prompt, count).await;
        Ok(rewritten.inspect_err(|_| self.metrics().fell_back("rewrite"))?)
    }

    /// As [`Self::rollout`], but where no model answers, the user's own words are used, each cut at `max_chars` characters.
    ///
    /// # Errors
    /// Returns an error when a prompt is blocked.
    pub async fn write_rollout(
        &self,
        request: RolloutRequest,
        max_chars: usize,
    ) -> Result<WrittenRollout, Blocked> {
        let began = Instant::now();
        let model = self.rollout_model(request.model.as_deref());
        let prompts = request.without_model(max_chars);
        let failure = match self.rollout(request).await {
            Ok(written) => return Ok(WrittenRollout::ByModel(written)),
            Err(GenerateError::Blocked(blocked)) => return Err(blocked),
            Err(GenerateError::Failed(failure)) => failure,
        };
        self.screen_all(&prompts).await?;
        Ok(WrittenRollout::InOwnWords {
            prompts,
            model,
            latency: began.elapsed(),
            reason: failure.to_string(),
        })
    }

    /// Has the prompts of a new rollout written, or another version of one. What the client has written is screened before
    /// a model sees it, and each prompt before it is returned.
    ///
    /// # Errors
    /// Returns an error when no provider gives as many prompts as were asked for, or a prompt is blocked.
    pub async fn rollout(
        &self,
        request: RolloutRequest,
    ) -> Result<GeneratedRollout, GenerateError> {
        // A classifier's opinion of no words means nothing.
        if !request.instruction.trim().is_empty() {
            self.screen(&request.instruction).await?;
        }
        if let Some(current) = &request.current {
            self.screen_all(&current.prompts).await?;
        }
        let enhancer = self.enhancer().ok_or(LlmError::NoProvider)?;
        let chosen = self.shared.rollout.get();
        let wanted = request.model.filter(|model| enhancer.knows_model(model));
        let request = RolloutRequest {
            model: wanted.or_else(|| chosen.model.clone()),
            temperature: request.temperature.or(chosen.temperature),
            ..request
        };
        let written = enhancer.rollout(&request).await;
        let written = written.inspect_err(|_| self.metrics().fell_back("rollout"))?;
        self.screen_all(&written.prompts).await?;
        Ok(written)
    }
}
