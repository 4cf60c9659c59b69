//! The prompts that are being screened and written for a session, each by a task of its own.

use std::collections::HashMap;
use std::future::pending;

use fastvideo_proto::job::ErrorCode;
use fastvideo_proto::stream_v1::ServerMessage;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tracing::Instrument;

use super::log::{Event, Llm, SessionLog};
use super::outbox::Outbox;
use super::playlist::{Playlist, PromptTask, PromptWork};
use super::prompt_draft::PreparedPrompt;
use crate::prompt::{Answer, Blocked, Failure, NotWritten, Prepared, Prompts, Rewritten};

/// Alternatives that may be asked for at once.
pub(super) const MAX_ALTERNATIVES: u32 = 10;
/// Rewritings that may be asked for before one is answered.
pub(super) const MAX_PENDING_REWRITES: usize = 4;

/// Ends all of it when dropped.
#[derive(Debug)]
pub(super) struct PromptTasks {
    prompts: Prompts,
    tasks: JoinSet<PromptTaskResult>,
    /// The playlist's tasks that are running.
    tasks_by_id: HashMap<Id, (u64, AbortHandle)>,
}

/// What was written.
#[derive(Debug)]
pub(super) enum PromptTaskResult {
    Prepared {
        task: u64,
        prompt: String,
        result: Result<Prepared, Blocked>,
    },
    Extended {
        task: u64,
        /// What it follows.
        last: String,
        result: Result<Answer, NotWritten>,
    },
    Rewritten {
        seed_prompt: String,
        result: Result<Rewritten, NotWritten>,
    },
    /// The task's fault.
    Lost { task: Option<u64> },
}

/// What the session has to do now.
#[derive(Debug, PartialEq)]
pub(super) enum AfterPrompt {
    GoOn,
    /// What it would do by itself has failed.
    PauseAuto,
}

impl PromptTasks {
    pub(super) fn new(prompts: Prompts) -> Self {
        Self {
            prompts,
            tasks: JoinSet::new(),
            tasks_by_id: HashMap::new(),
        }
    }

    /// Begins what the playlist needs, and ends what it does not need any more.
    pub(super) fn follow(&mut self, playlist: &mut Playlist) {
        self.tasks_by_id.retain(|_, (id, task)| {
            let wanted = playlist.awaits(*id);
            if !wanted {
                task.abort();
            }
            wanted
        });
        let room = (self.prompts.enhancer()).map_or(1, |enhancer| enhancer.max_parallel());
        for task in playlist.take_prompt_tasks(room) {
            self.begin(task);
        }
    }

    fn begin(&mut self, PromptTask { id, work }: PromptTask) {
        let prompts = self.prompts.clone();
        let writing = async move {
            match work {
                PromptWork::Prepare { prompt, enhance } => PromptTaskResult::Prepared {
                    task: id,
                    result: prompts.prepare(&prompt, enhance).await,
                    prompt,
                },
                PromptWork::Extend { story } => PromptTaskResult::Extended {
                    task: id,
                    result: prompts.extend(&story).await,
                    last: story.into_iter().next_back().unwrap_or_default(),
                },
            }
        };
        let task = self.tasks.spawn(writing.in_current_span());
        self.tasks_by_id.insert(task.id(), (id, task));
    }

    /// Begins to write alternatives; false when too many are being written already.
    pub(super) fn rewrite(&mut self, seed_prompt: String, count: u32) -> bool {
        if self.tasks.len().saturating_sub(self.tasks_by_id.len()) >= MAX_PENDING_REWRITES {
            return false;
        }
        let prompts = self.prompts.clone();
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let writing = async move {
            let result = prompts.rewrite(&seed_prompt, count).await;
            PromptTaskResult::Rewritten {
                seed_prompt,
                result,
            }
        };
        self.tasks.spawn(writing.in_current_span());
        true
    }

    /// Waits until something is written. Cancel-safe.
    pub(super) async fn ended(&mut self) -> PromptTaskResult {
        loop {
            match self.tasks.join_next_with_id().await {
                Some(Ok((id, written))) => {
                    self.tasks_by_id.remove(&id);
                    return written;
                }
                Some(Err(error)) if error.is_cancelled() => {}
                Some(Err(panic)) => return self.lost(&panic),
                None => pending().await,
            }
        }
    }

    fn lost(&mut self, panic: &JoinError) -> PromptTaskResult {
        tracing::error!(%panic, "a prompt's task is lost");
        PromptTaskResult::Lost {
            task: self.tasks_by_id.remove(&panic.id()).map(|(task, _)| task),
        }
    }
}

impl PromptTaskResult {
    /// Writes it down, unless nobody waits for it any more.
    pub(super) fn record(&self, playlist: &Playlist, prompts: &Prompts, log: &SessionLog) {
        let shown = prompts.logs_unscreened();
        let block = |prompt: Option<&String>| {
            log.record(|| Event::PromptBlocked {
                prompt: prompt.filter(|_| shown).cloned(),
            });
        };
        let fall_back = |prompt: &str, failure: &Failure| {
            log.record(|| Event::PromptFallback {
                original_prompt: prompt.to_owned(),
                reason: failure.to_string(),
            });
        };
        match self {
            Self::Prepared { task, .. } | Self::Extended { task, .. }
                if !playlist.awaits(*task) => {}
            Self::Prepared {
                prompt,
                result: Ok(Prepared::Enhanced(answer)),
                ..
            } => log.record(|| Event::PromptEnhanced {
                original_prompt: prompt.clone(),
                prompt: answer.content.clone(),
                by: answer.into(),
            }),
            Self::Prepared {
                prompt,
                result: Ok(Prepared::Fallback(failure)),
                ..
            } => fall_back(prompt, failure),
            Self::Prepared {
                result: Ok(Prepared::AsWritten),
                ..
            }
            | Self::Lost { .. } => {}
            Self::Prepared {
                prompt,
                result: Err(Blocked),
                ..
            } => block(Some(prompt)),
            Self::Extended {
                result: Ok(answer), ..
            } => log.record(|| Event::PromptExtended {
                prompt: answer.content.clone(),
                by: answer.into(),
            }),
            Self::Extended {
                last,
                result: Err(NotWritten::Failed(failure)),
                ..
            } => fall_back(last, failure),
            Self::Extended {
                result: Err(NotWritten::Blocked(_)),
                ..
            } => block(None),
            Self::Rewritten {
                seed_prompt,
                result: Ok(rewritten),
            } => log.record(|| Event::PromptRewritten {
                seed_prompt: seed_prompt.clone(),
                alternatives: shown.then(|| rewritten.alternatives.clone()),
                by: rewritten.into(),
            }),
            Self::Rewritten {
                seed_prompt,
                result: Err(NotWritten::Failed(failure)),
            } => fall_back(seed_prompt, failure),
            Self::Rewritten {
                seed_prompt,
                result: Err(NotWritten::Blocked(_)),
            } => block(Some(seed_prompt)),
        }
    }

    /// Tells the client and the playlist. What nobody waits for any more is dropped.
    pub(super) fn deliver(self, playlist: &mut Playlist, outbox: &Outbox) -> AfterPrompt {
        match self {
            Self::Prepared { task, .. } | Self::Extended { task, .. } if !playlist.awaits(task) => {
            }
            Self::Prepared {
                task,
                prompt,
                result: Ok(prepared),
            } => playlist.prepared(task, outcome(prompt, prepared, outbox)),
            Self::Prepared {
                task,
                result: Err(blocked),
                ..
            } => {
                playlist.blocked(task);
                outbox.send(&block(blocked));
            }
            Self::Extended {
                task,
                result: Ok(answer),
                ..
            } => playlist.extended(task, Some(answer.content)),
            Self::Extended {
                task,
                last,
                result: Err(NotWritten::Failed(failure)),
            } => {
                playlist.extended(task, None);
                outbox.send(&fallback(last, &failure));
            }
            Self::Extended {
                task,
                result: Err(NotWritten::Blocked(blocked)),
                ..
            } => {
                playlist.blocked(task);
                outbox.send(&block(blocked));
                return AfterPrompt::PauseAuto;
            }
            Self::Rewritten {
                seed_prompt,
                result,
            } => outbox.send(&rewritten(seed_prompt, result)),
            Self::Lost { task } => {
                if let Some(task) = task {
                    playlist.blocked(task);
                }
                let message = "a prompt was lost in the server; ask again";
                outbox.send(&ServerMessage::error(
                    ErrorCode::InternalError,
                    message,
                    true,
                ));
                return AfterPrompt::PauseAuto;
            }
        }
        AfterPrompt::GoOn
    }
}

fn outcome(prompt: String, prepared: Prepared, outbox: &Outbox) -> PreparedPrompt {
    match prepared {
        Prepared::AsWritten => PreparedPrompt::AsWritten,
        Prepared::Enhanced(answer) => {
            if answer.content != prompt {
                outbox.send(&ServerMessage::PromptEnhanced {
                    original_prompt: prompt,
                    prompt: answer.content.clone(),
                    provider: answer.provider,
                    latency_ms: answer.latency.as_secs_f64() * 1000.0,
                    fallback_used: answer.fallback_used,
                });
            }
            PreparedPrompt::Enhanced(answer.content)
        }
        Prepared::Fallback(failure) => {
            outbox.send(&fallback(prompt, &failure));
            PreparedPrompt::NotEnhanced
        }
    }
}

fn fallback(original_prompt: String, reason: &impl ToString) -> ServerMessage {
    ServerMessage::PromptFallback {
        original_prompt,
        reason: reason.to_string(),
    }
}

fn block(blocked: Blocked) -> ServerMessage {
    ServerMessage::error(ErrorCode::PromptBlocked, blocked.to_string(), false)
}

fn rewritten(seed_prompt: String, result: Result<Rewritten, NotWritten>) -> ServerMessage {
    match result {
        Ok(rewritten) => ServerMessage::SeedPromptsRewritten {
            seed_prompt,
            alternatives: rewritten.alternatives,
            provider: rewritten.provider,
            model: rewritten.model,
            latency_ms: rewritten.latency.as_secs_f64() * 1000.0,
            fallback_used: rewritten.fallback_used,
        },
        Err(NotWritten::Blocked(blocked)) => block(blocked),
        Err(NotWritten::Failed(failure)) => {
            let message = format!("the prompt was not rewritten: {failure}");
            ServerMessage::error(ErrorCode::UpstreamTimeout, message, true)
        }
    }
}

impl From<&Answer> for Llm {
    fn from(answer: &Answer) -> Self {
        Self {
            provider: answer.provider.clone(),
            model: answer.model.clone(),
            latency_ms: answer.latency.as_secs_f64() * 1000.0,
            fallback_used: answer.fallback_used,
        }
    }
}

impl From<&Rewritten> for Llm {
    fn from(rewritten: &Rewritten) -> Self {
        Self {
            provider: rewritten.provider.clone(),
            model: rewritten.model.clone(),
            latency_ms: rewritten.latency.as_secs_f64() * 1000.0,
            fallback_used: rewritten.fallback_used,
        }
    }
}
