//! The three things that a model does for prompts: enhance one, write the next one, write others. Each goes through the
//! providers in their order until one answers.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use reqwest::Client;
use tokio::time::{Instant, sleep_until};

pub use super::breaker::{Config as BreakerConfig, Standing};
pub use super::provider::ProviderStatus;

use super::answer::{alternatives, one_line};
use super::breaker::Verdict;
use super::cache::Cache;
use super::instructions::{Instructions, InstructionsError, Origins};
use super::provider::{self, Failure, Models, Provider, Question};

/// How often all providers are asked for one answer, when they say when to come back.
const MAX_ROUNDS: u32 = 4;
/// A provider that says "at once" is given this much all the same.
const MIN_WAIT: Duration = Duration::from_millis(50);

/// Who writes prompts, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// At least one; the first is asked first.
    pub providers: Vec<provider::Config>,
    /// `enhance.txt`, `auto_extend.txt` and `rewrite.txt`; built-in system prompts where one is missing.
    pub system_prompt_dir: Option<PathBuf>,
    /// For one operation, over all providers.
    pub timeout: Duration,
    pub enhance: Style,
    pub auto_extend: Style,
    pub rewrite: Style,
    /// Prompts that were enhanced lately and are not asked for again.
    pub cache_entries: usize,
    /// A longer answer is no prompt.
    pub max_prompt_chars: usize,
    pub breaker: BreakerConfig,
    /// Curated prompts of one session that are enhanced at the same time.
    pub max_parallel: usize,
}

/// How a model writes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    /// 0 to 2.
    pub temperature: f64,
    pub max_tokens: u32,
}

/// What a model has written.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// One line without control characters.
    pub content: String,
    pub provider: String,
    pub model: String,
    /// Over all providers that were asked; what came from the cache took none.
    pub latency: Duration,
    /// Another provider than the first has answered.
    pub fallback_used: bool,
}

/// Alternatives to a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewritten {
    /// At least one.
    pub alternatives: Vec<String>,
    pub provider: String,
    pub model: String,
    pub latency: Duration,
    pub fallback_used: bool,
}

/// As `/status` shows it.
#[derive(Clone, Debug)]
pub struct Status {
    /// In the order in which they are asked.
    pub providers: Vec<ProviderStatus>,
    pub system_prompts: Origins,
    pub cached: usize,
    pub cache_hits: u64,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Enhancer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    providers: Vec<Provider>,
    client: Client,
    instructions: RwLock<Arc<Instructions>>,
    cache: Mutex<Cache>,
}

/// What is done, with all that differs between operations.
struct Operation<'a> {
    system: &'a str,
    user: &'a str,
    style: Style,
    model: fn(&Models) -> &String,
    /// What is usable of an answer.
    accept: &'a (dyn Fn(&str) -> Result<Vec<String>, Failure> + Sync),
}

/// How asking all providers has ended.
enum Round {
    Answered {
        /// Of the provider in the order.
        place: usize,
        texts: Vec<String>,
    },
    Failed(Failure),
    /// One has said when it has time.
    ComeBack(Instant),
}

/// The first usable answer.
struct Found {
    texts: Vec<String>,
    provider: String,
    model: String,
    latency: Duration,
    fallback_used: bool,
}

impl Enhancer {
    /// # Errors
    /// When the system prompts cannot be read.
    pub fn open(config: Config) -> Result<Self, InstructionsError> {
        let instructions = Instructions::read(config.system_prompt_dir.as_deref())?;
        Ok(Self(Arc::new(Inner {
            providers: config
                .providers
                .iter()
                .cloned()
                .map(Provider::new)
                .collect(),
            client: provider::client(),
            instructions: RwLock::new(Arc::new(instructions)),
            cache: Mutex::new(Cache::new(config.cache_entries)),
            config,
        })))
    }

    pub fn max_parallel(&self) -> usize {
        self.0.config.max_parallel
    }

    /// Writes a prompt out in detail.
    ///
    /// # Errors
    /// When no provider answers in time.
    pub async fn enhance(&self, prompt: &str) -> Result<Answer, Failure> {
        if let Some(answer) = self.cache().get(prompt) {
            return Ok(Answer {
                latency: Duration::ZERO,
                ..answer
            });
        }
        let instructions = self.instructions();
        let found = self
            .ask(&Operation {
                system: &instructions.enhance,
                user: prompt,
                style: self.0.config.enhance,
                model: |models| &models.enhance,
                accept: &|text| self.prompt(text),
            })
            .await?;
        let answer = Answer::from(found);
        // An answer to old system prompts must not outlive them.
        let mut cache = self.cache();
        if Arc::ptr_eq(&instructions, &self.instructions()) {
            cache.put(prompt, &answer);
        }
        Ok(answer)
    }

    /// Writes the prompt that comes after those so far, the oldest of which is first.
    ///
    /// # Errors
    /// When no provider answers in time.
    pub async fn extend(&self, story: &[String]) -> Result<Answer, Failure> {
        let instructions = self.instructions();
        let user: Vec<String> = (1..)
            .zip(story)
            .map(|(n, prompt)| format!("{n}. {prompt}"))
            .collect();
        let operation = Operation {
            system: &instructions.auto_extend,
            user: &user.join("\n"),
            style: self.0.config.auto_extend,
            model: |models| &models.auto_extend,
            accept: &|text| self.prompt(text),
        };
        self.ask(&operation).await.map(Answer::from)
    }

    /// Writes at most `count` alternatives to a prompt.
    ///
    /// # Errors
    /// When no provider answers in time.
    pub async fn rewrite(&self, seed_prompt: &str, count: usize) -> Result<Rewritten, Failure> {
        let instructions = self.instructions();
        let max_chars = self.0.config.max_prompt_chars;
        let found = self
            .ask(&Operation {
                system: &instructions.rewrite,
                user: &format!("Number of alternatives: {count}\nPrompt: {seed_prompt}"),
                style: self.0.config.rewrite,
                model: |models| &models.rewrite,
                accept: &|text| match alternatives(text, count, max_chars) {
                    none if none.is_empty() => Err(Failure::Unusable("it is too long")),
                    some => Ok(some),
                },
            })
            .await?;
        Ok(Rewritten {
            alternatives: found.texts,
            provider: found.provider,
            model: found.model,
            latency: found.latency,
            fallback_used: found.fallback_used,
        })
    }

    /// Reads the system prompts again. Those of operations that run stay as they are. Blocks on the disk.
    ///
    /// # Errors
    /// When one cannot be read: then all stay as they were.
    pub fn reload(&self) -> Result<Origins, InstructionsError> {
        let read = Instructions::read(self.0.config.system_prompt_dir.as_deref())?;
        let origins = read.origins;
        let mut cache = self.cache();
        *(self.0.instructions.write()).unwrap_or_else(PoisonError::into_inner) = Arc::new(read);
        cache.clear();
        Ok(origins)
    }

    pub fn status(&self) -> Status {
        let cache = self.cache();
        Status {
            providers: self.0.providers.iter().map(Provider::status).collect(),
            system_prompts: self.instructions().origins,
            cached: cache.len(),
            cache_hits: cache.hits(),
        }
    }

    async fn ask(&self, operation: &Operation<'_>) -> Result<Found, Failure> {
        let began = Instant::now();
        let deadline = began + self.0.config.timeout;
        for _ in 0..MAX_ROUNDS {
            match self.ask_all(operation, deadline).await {
                Round::Answered { place, texts } => {
                    let provider = &self.0.providers[place].config;
                    return Ok(Found {
                        texts,
                        provider: provider.name.clone(),
                        model: (operation.model)(&provider.models).clone(),
                        latency: began.elapsed(),
                        fallback_used: place > 0,
                    });
                }
                Round::Failed(failure) => return Err(failure),
                Round::ComeBack(until) if until < deadline => sleep_until(until).await,
                Round::ComeBack(_) => break,
            }
        }
        Err(Failure::Busy { retry_after: None })
    }

    /// Asks each provider once, until one answers.
    async fn ask_all(&self, operation: &Operation<'_>, deadline: Instant) -> Round {
        let mut come_back: Option<Instant> = None;
        let mut last = Failure::AllRest;
        for (place, provider) in self.0.providers.iter().enumerate() {
            let until = match provider.turn() {
                Err(Verdict::WaitsUntil(until)) => Some(until),
                Err(_) => None,
                Ok(turn) => match self.ask_one(turn, provider, operation, deadline).await {
                    Ok(texts) => return Round::Answered { place, texts },
                    Err(failure) if !failure.is_retryable() => return Round::Failed(failure),
                    Err(failure) => {
                        let until = failure.come_back(Instant::now());
                        last = failure;
                        until
                    }
                },
            };
            come_back = come_back.into_iter().chain(until).min();
            if Instant::now() >= deadline {
                return Round::Failed(last);
            }
        }
        match come_back {
            Some(until) => Round::ComeBack(until.max(Instant::now() + MIN_WAIT)),
            None => Round::Failed(last),
        }
    }

    async fn ask_one(
        &self,
        turn: provider::Turn<'_>,
        provider: &Provider,
        operation: &Operation<'_>,
        deadline: Instant,
    ) -> Result<Vec<String>, Failure> {
        let question = Question {
            model: (operation.model)(&provider.config.models),
            system: operation.system,
            user: operation.user,
            temperature: operation.style.temperature,
            max_tokens: operation.style.max_tokens,
        };
        let patience = deadline.saturating_duration_since(Instant::now());
        let breaker = self.0.config.breaker;
        turn.ask(
            &self.0.client,
            question,
            patience,
            breaker,
            operation.accept,
        )
        .await
    }

    /// An answer that is one prompt.
    fn prompt(&self, text: &str) -> Result<Vec<String>, Failure> {
        match one_line(text) {
            Some(prompt) if prompt.chars().count() <= self.0.config.max_prompt_chars => {
                Ok(vec![prompt])
            }
            Some(_) => Err(Failure::Unusable("it is too long")),
            None => Err(Failure::Unusable("it says nothing")),
        }
    }

    fn instructions(&self) -> Arc<Instructions> {
        let instructions = self.0.instructions.read();
        instructions.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.0.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Found> for Answer {
    fn from(found: Found) -> Self {
        Self {
            content: found.texts.into_iter().next().unwrap_or_default(),
            provider: found.provider,
            model: found.model,
            latency: found.latency,
            fallback_used: found.fallback_used,
        }
    }
}
