//! The operations on prompts that need a language model: enhance a prompt, extend a story by its next prompt, rewrite a
//! prompt into alternatives, write or edit the prompts of a rollout. Each operation falls back from provider to provider
//! until one answers.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::Client;
use tokio::time::{Instant, sleep_until};

pub use super::breaker::{CircuitState, Config as BreakerConfig};
pub use super::provider::ProviderStatus;

use super::answer::{alternatives, prompt};
use super::breaker::Rejection;
use super::cache::PromptCache;
use super::call::{self, CompletionRequest};
use super::generated::{GeneratedPrompt, PromptAlternatives};
use super::instructions::{Instructions, InstructionsError, Origins};
use super::llm_error::LlmError;
use super::metrics::{PromptMetrics, RequestOutcome};
use super::provider::{self, CallPermit, Models, Provider};
use super::rollout::{GeneratedRollout, RolloutAnswer, RolloutRequest};
use super::spans::{PromptSpanKind, PromptSpans};
use crate::tenant::Tenant;

/// How many times one operation goes through all providers, when they ask it to retry later.
const MAX_ROUNDS: u32 = 4;
/// The shortest pause between two rounds, also when a provider asks for `Retry-After: 0`.
const MIN_WAIT: Duration = Duration::from_millis(50);

/// The providers, and how prompts are generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The providers in the order in which they are tried; at least one.
    pub providers: Vec<provider::Config>,
    /// The folder with `enhance.txt`, `auto_extend.txt`, `rewrite.txt`, `rollout_new.txt` and `rollout_edit.txt`. A built-in
    /// system prompt stands in for a file that is missing.
    pub system_prompt_dir: Option<PathBuf>,
    /// The time limit of one operation, over all providers.
    pub timeout: Duration,
    pub enhance: Style,
    pub auto_extend: Style,
    pub rewrite: Style,
    pub rollout: Style,
    /// The capacity of the LRU cache of enhanced prompts; 0 disables the cache.
    pub cache_entries: usize,
    /// The longest prompt that is accepted from a model, in characters.
    pub max_prompt_chars: usize,
    pub breaker: BreakerConfig,
    /// How many curated prompts of one session are enhanced at the same time.
    pub max_parallel: usize,
}

/// The sampling parameters of an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    /// The sampling temperature, 0 to 2.
    pub temperature: f64,
    pub max_tokens: u32,
}

/// The enhancer's health, as `/status` shows it.
#[derive(Clone, Debug)]
pub struct Status {
    /// The providers in the order in which they are tried.
    pub providers: Vec<ProviderStatus>,
    pub system_prompts: Origins,
    /// The number of entries in the cache.
    pub cached: usize,
    /// The number of cache hits since the start.
    pub cache_hits: u64,
}

/// Generates prompts with the help of language models, for a tenant, and notes whom it asks. It is cheap to clone.
#[derive(Clone, Debug)]
pub struct Enhancer(Arc<Inner>, Tenant, PromptSpans);

#[derive(Debug)]
struct Inner {
    config: Config,
    providers: Vec<Arc<Provider>>,
    client: Client,
    instructions: Instructions,
    cache: Mutex<PromptCache>,
    metrics: PromptMetrics,
}

/// One operation: everything in which enhancing, extending and the others differ. `T` is what it takes from an answer.
struct Operation<'a, T> {
    /// Its name in metrics.
    name: &'static str,
    system: &'a str,
    user: &'a str,
    style: Style,
    /// Whether the answer is to be one JSON object.
    wants_json: bool,
    /// Selects the operation's model from those of a provider.
    model: &'a (dyn Fn(&Models) -> &String + Sync),
    /// Takes from an answer what is usable, or rejects it.
    accept: &'a (dyn Fn(&str) -> Result<T, LlmError> + Sync),
}

/// The result of trying each provider once.
enum RoundResult<T> {
    Answered {
        /// The position of the provider in the order.
        provider: usize,
        accepted: T,
    },
    Failed(LlmError),
    /// At least one provider accepts calls again at this moment.
    RetryAt(Instant),
}

/// The first usable answer, and where it comes from.
struct Completion<T> {
    accepted: T,
    provider: String,
    model: String,
    latency: Duration,
    fallback_used: bool,
}

impl Enhancer {
    /// Reads the system prompts. No provider is called yet.
    ///
    /// # Errors
    /// Returns an error when a system prompt cannot be read.
    pub fn open(config: Config) -> Result<Self, InstructionsError> {
        Self::open_with(config, PromptMetrics::default())
    }

    /// As [`Self::open`], and counts in these metrics.
    pub(super) fn open_with(
        config: Config,
        metrics: PromptMetrics,
    ) -> Result<Self, InstructionsError> {
        let inner = Arc::new(Inner {
            providers: (config.providers.iter().cloned())
                .map(|provider| Arc::new(Provider::new(provider)))
                .collect(),
            client: call::client(),
            instructions: Instructions::read(config.system_prompt_dir.as_deref())?,
            cache: Mutex::new(PromptCache::new(config.cache_entries)),
            metrics,
            config,
        });
        Ok(Self(inner, Tenant::default(), PromptSpans::default()))
    }

    /// Returns the enhancer that takes this one's place with another configuration: this one where neither that nor the
    /// system prompts have changed. Otherwise its providers keep their record, and its cache is empty. Operations that run
    /// end with what they began with. It blocks on the disk.
    ///
    /// # Errors
    /// Returns an error when a system prompt cannot be read.
    pub(super) fn renewed(&self, config: Config) -> Result<Self, InstructionsError> {
        let old = &*self.0;
        let instructions = Instructions::read(config.system_prompt_dir.as_deref())?;
        if old.config == config && old.instructions == instructions {
            return Ok(self.clone());
        }
        let provider = |config: &provider::Config| {
            let known = old.providers.iter().find(|known| known.config == *config);
            known.map_or_else(|| Arc::new(Provider::new(config.clone())), Arc::clone)
        };
        let inner = Arc::new(Inner {
            providers: config.providers.iter().map(provider).collect(),
            client: old.client.clone(),
            instructions,
            cache: Mutex::new(self.cache().renewed(config.cache_entries)),
            metrics: old.metrics.clone(),
            config,
        });
        Ok(Self(inner, self.1.clone(), self.2.clone()))
    }

    /// Returns whether both are the same enhancer, for whichever tenant.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns its configuration.
    pub(super) fn config(&self) -> &Config {
        &self.0.config
    }

    /// Returns where the system prompts come from.
    pub fn origins(&self) -> Origins {
        self.0.instructions.origins
    }

    /// Returns the same enhancer for the prompts of a tenant. What it does for them is noted in `spans`.
    pub(super) fn asked_by(self, tenant: Tenant, spans: PromptSpans) -> Self {
        Self(self.0, tenant, spans)
    }

    /// Returns how many curated prompts of one session are enhanced at the same time.
    pub fn max_parallel(&self) -> usize {
        self.0.config.max_parallel
    }

    /// Enhances a prompt: a model writes it out in detail. Answers come from the cache where possible.
    ///
    /// # Errors
    /// Returns an error when no provider gives a usable answer in time.
    pub async fn enhance(&self, prompt: &str) -> Result<GeneratedPrompt, LlmError> {
        if let Some(cached) = self.cache().get(&self.1, prompt) {
            return Ok(GeneratedPrompt {
                latency: Duration::ZERO,
                ..cached
            });
        }
        let instructions = &self.0.instructions;
        let completion = self
            .run(&Operation {
                name: "enhance",
                system: &instructions.enhance,
                user: prompt,
                style: self.0.config.enhance,
                wants_json: false,
                model: &|models| &models.enhance,
                accept: &|text| self.single_prompt(text),
            })
            .await?;
        let generated = GeneratedPrompt::from(completion);
        self.cache().put(&self.1, prompt, &generated);
        Ok(generated)
    }

    /// Extends a story: a model writes the prompt that follows those in `story`, the oldest of which is first.
    ///
    /// # Errors
    /// Returns an error when no provider gives a usable answer in time.
    pub async fn extend(&self, story: &[String]) -> Result<GeneratedPrompt, LlmError> {
        let instructions = &self.0.instructions;
        let user: Vec<String> = (1..)
            .zip(story)
            .map(|(n, prompt)| format!("{n}. {prompt}"))
            .collect();
        let operation = Operation {
            name: "auto_extend",
            system: &instructions.auto_extend,
            user: &user.join("\n"),
            style: self.0.config.auto_extend,
            wants_json: false,
            model: &|models| &models.auto_extend,
            accept: &|text| self.single_prompt(text),
        };
        self.run(&operation).await.map(GeneratedPrompt::from)
    }

    /// Rewrites a prompt: a model writes at most `count` alternatives to it.
    ///
    /// # Errors
    /// Returns an error when no provider gives a usable answer in time.
    pub async fn rewrite(
        &self,
        seed_prompt: &str,
        count: usize,
    ) -> Result<PromptAlternatives, LlmError> {
        let instructions = &self.0.instructions;
        let max_chars = self.0.config.max_prompt_chars;
        let completion = self
            .run(&Operation {
                name: "rewrite",
                system: &instructions.rewrite,
                user: &format!("Number of alternatives: {count}\nPrompt: {seed_prompt}"),
                style: self.0.config.rewrite,
                wants_json: false,
                model: &|models| &models.rewrite,
                accept: &|text| match alternatives(text, count, max_chars) {
                    none if none.is_empty() => Err(LlmError::Unusable("it is too long")),
                    some => Ok(some),
                },
            })
            .await?;
        Ok(PromptAlternatives {
            alternatives: completion.accepted,
            provider: completion.provider,
            model: completion.model,
            latency: completion.latency,
            fallback_used: completion.fallback_used,
        })
    }

    /// Writes the prompts of a new rollout, or another version of one.
    ///
    /// # Errors
    /// Returns an error when no provider gives a usable answer in time.
    pub async fn rollout(&self, request: &RolloutRequest) -> Result<GeneratedRollout, LlmError> {
        let Inner {
            config,
            instructions,
            ..
        } = &*self.0;
        let system = match request.current {
            Some(_) => &instructions.rollout_edit,
            None => &instructions.rollout_new,
        };
        let temperature = request.temperature.filter(|given| given.is_finite());
        let style = Style {
            temperature: temperature.map_or(config.rollout.temperature, |it| it.clamp(0.0, 2.0)),
            ..config.rollout
        };
        let (count, max_chars) = (request.count, config.max_prompt_chars);
        let completion = self
            .run(&Operation {
                name: "rollout",
                system: request.own_system_prompt().unwrap_or(system),
                user: &request.message(),
                style,
                wants_json: true,
                model: &|models| models.for_rollout(request.model.as_deref()),
                accept: &|text| {
                    let answer = RolloutAnswer::read(text, count, max_chars)?;
                    Ok((answer, text.to_owned()))
                },
            })
            .await?;
        let (RolloutAnswer { id, label, prompts }, raw) = completion.accepted;
        Ok(GeneratedRollout {
            id,
            label,
            prompts,
            raw,
            provider: completion.provider,
            model: completion.model,
            latency: completion.latency,
            fallback_used: completion.fallback_used,
        })
    }

    /// Returns whether the configuration names the model for an operation of a provider.
    pub(super) fn knows_model(&self, name: &str) -> bool {
        let mut providers = self.0.config.providers.iter();
        providers.any(|provider| provider.models.for_rollout(Some(name)) == name)
    }

    /// Returns the system prompts in use.
    pub(super) fn instructions(&self) -> &Instructions {
        &self.0.instructions
    }

    /// Returns the health of the providers and the size of the cache.
    pub fn status(&self) -> Status {
        let cache = self.cache();
        Status {
            providers: (self.0.providers.iter())
                .map(|provider| provider.status())
                .collect(),
            system_prompts: self.origins(),
            cached: cache.len(),
            cache_hits: cache.hits(),
        }
    }

    /// Runs an operation: goes through the providers until one answers, and again when they ask for a retry in time.
    async fn run<T>(&self, operation: &Operation<'_, T>) -> Result<Completion<T>, LlmError> {
        let started = Instant::now();
        let deadline = started + self.0.config.timeout;
        for _ in 0..MAX_ROUNDS {
            match self.try_providers(operation, deadline).await {
                RoundResult::Answered { provider, accepted } => {
                    let config = &self.0.providers[provider].config;
                    return Ok(Completion {
                        accepted,
                        provider: config.name.clone(),
                        model: (operation.model)(&config.models).clone(),
                        latency: started.elapsed(),
                        fallback_used: provider > 0,
                    });
                }
                RoundResult::Failed(error) => return Err(error),
                RoundResult::RetryAt(moment) if moment < deadline => sleep_until(moment).await,
                RoundResult::RetryAt(_) => break,
            }
        }
        Err(LlmError::Busy { retry_after: None })
    }

    /// Calls each provider once, in their order, until one answers.
    async fn try_providers<T>(
        &self,
        operation: &Operation<'_, T>,
        deadline: Instant,
    ) -> RoundResult<T> {
        let mut earliest_retry: Option<Instant> = None;
        let providers = &self.0.providers;
        let mut last_error = match providers.iter().any(|provider| provider.has_key()) {
            true => LlmError::AllCircuitsOpen,
            false => LlmError::NoKey,
        };
        // A key that is missing was reported at the start.
        let with_key = providers.iter().enumerate();
        for (position, provider) in with_key.filter(|(_, provider)| provider.has_key()) {
            let acquired = provider.try_acquire();
            if acquired.is_err() {
                let outcome = RequestOutcome::Resting;
                (self.0.metrics).requested(&provider.config.name, operation.name, outcome, None);
            }
            let retry_at = match acquired {
                Err(Rejection::RetryAt(moment)) => Some(moment),
                Err(Rejection::Open) => None,
                Ok(permit) => match self.call(permit, provider, operation, deadline).await {
                    Ok(accepted) => {
                        return RoundResult::Answered {
                            provider: position,
                            accepted,
                        };
                    }
                    Err(error) if !error.is_retryable() => return RoundResult::Failed(error),
                    Err(error) => {
                        let retry_at = error.retry_at(Instant::now());
                        last_error = error;
                        retry_at
                    }
                },
            };
            earliest_retry = earliest_retry.into_iter().chain(retry_at).min();
            if Instant::now() >= deadline {
                return RoundResult::Failed(last_error);
            }
        }
        match earliest_retry {
            Some(moment) => RoundResult::RetryAt(moment.max(Instant::now() + MIN_WAIT)),
            None => RoundResult::Failed(last_error),
        }
    }

    /// Calls one provider.
    async fn call<T>(
        &self,
        permit: CallPermit<'_>,
        provider: &Provider,
        operation: &Operation<'_, T>,
        deadline: Instant,
    ) -> Result<T, LlmError> {
        let request = CompletionRequest {
            model: (operation.model)(&provider.config.models),
            system: operation.system,
            user: operation.user,
            temperature: operation.style.temperature,
            max_tokens: operation.style.max_tokens,
            wants_json: operation.wants_json,
        };
        let time_left = deadline.saturating_duration_since(Instant::now());
        let breaker = self.0.config.breaker;
        let began = Instant::now();
        let result = permit
            .call(
                &self.0.client,
                request,
                time_left,
                breaker,
                operation.accept,
            )
            .await;
        let outcome = match &result {
            Ok(_) => RequestOutcome::Answered,
            Err(LlmError::Timeout) => RequestOutcome::Timeout,
            Err(_) => RequestOutcome::Failed,
        };
        let took = Some(began.elapsed());
        (self.0.metrics).requested(&provider.config.name, operation.name, outcome, took);
        let asked = PromptSpanKind::Asked {
            provider: provider.config.name.clone(),
            model: (operation.model)(&provider.config.models).clone(),
            operation: operation.name,
            error: result.as_ref().err().map(LlmError::name),
        };
        self.2.add(began, asked);
        result
    }

    /// Accepts an answer that is a single prompt of the allowed length.
    fn single_prompt(&self, text: &str) -> Result<String, LlmError> {
        match prompt(text) {
            Some(prompt) if prompt.chars().count() <= self.0.config.max_prompt_chars => Ok(prompt),
            Some(_) => Err(LlmError::Unusable("it is too long")),
            None => Err(LlmError::Unusable("it says nothing")),
        }
    }

    fn cache(&self) -> MutexGuard<'_, PromptCache> {
        self.0.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Completion<String>> for GeneratedPrompt {
    fn from(completion: Completion<String>) -> Self {
        Self {
            content: completion.accepted,
            provider: completion.provider,
            model: completion.model,
            latency: completion.latency,
            fallback_used: completion.fallback_used,
        }
    }
}
