//! The tasks that screen and write prompts for a session, one for each prompt.

use std::collections::HashMap;
use std::future::pending;
use std::time::Duration;

use fastvideo_proto::checkpoint::Rewrite;
use fastvideo_proto::ids::RequestId;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;
use tracing::Instrument;

use super::playlist::{PromptAbilities, PromptTask, PromptWork};
use super::rollout::event::RewrittenBy;
use crate::prompt::{
    Blocked, GenerateError, GeneratedPrompt, PreparedPrompt, PromptAlternatives, PromptSpan,
    PromptSpans, Prompts, RolloutRequest, WrittenRollout,
};

/// Number of rewritings that may be asked for before one is answered.
pub(super) const MAX_PENDING_REWRITES: usize = 4;

/// The running tasks. Dropping it ends all of them.
#[derive(Debug)]
pub(super) struct PromptTasks {
    prompts: Prompts,
    tasks: JoinSet<PromptTaskEnd>,
    /// The tasks that the playlist has asked for.
    planned: HashMap<Id, (u64, AbortHandle)>,
    /// The rewritings that the client has asked for.
    rewrites: HashMap<Id, Rewrite>,
}

/// The end of a task.
#[derive(Debug)]
pub(super) struct PromptTaskEnd {
    pub(super) result: PromptTaskResult,
    /// What was done for the prompt.
    pub(super) spans: Vec<PromptSpan>,
}

/// The result of a task.
#[derive(Debug)]
pub(super) enum PromptTaskResult {
    Prepared {
        task: u64,
        prompt: String,
        result: Result<PreparedPrompt, Blocked>,
    },
    Extended {
        task: u64,
        /// The prompt that the extension follows.
        last: String,
        result: Result<GeneratedPrompt, GenerateError>,
    },
    Rewritten {
        request: Option<RequestId>,
        seed_prompt: String,
        result: Result<PromptAlternatives, GenerateError>,
    },
    /// The seed prompts of a rollout are written, or blocked.
    RolloutWritten {
        task: u64,
        result: Result<(RewrittenBy, Vec<String>), Blocked>,
        latency: Duration,
    },
    /// The seed prompts of a rollout are screened.
    SeedsScreened {
        task: u64,
        result: Result<(), Blocked>,
    },
    /// The task has panicked.
    Lost { task: Option<u64> },
}

impl PromptTasks {
    pub(super) fn new(prompts: Prompts) -> Self {
        Self {
            prompts,
            tasks: JoinSet::new(),
            planned: HashMap::new(),
            rewrites: HashMap::new(),
        }
    }

    /// Returns what the server can do with prompts now.
    pub(super) fn abilities(&self) -> PromptAbilities {
        PromptAbilities {
            write: self.prompts.can_enhance(),
            filter: self.prompts.safety().map(|filter| filter.number()),
        }
    }

    /// Aborts the tasks of the playlist whose results it no longer needs.
    pub(super) fn retain(&mut self, is_needed: impl Fn(u64) -> bool) {
        self.planned.retain(|_, (id, task)| {
            let is_needed = is_needed(*id);
            if !is_needed {
                task.abort();
            }
            is_needed
        });
    }

    /// Starts a task for the playlist.
    pub(super) fn start(&mut self, PromptTask { id, work }: PromptTask) {
        let spans = PromptSpans::kept();
        let prompts = self.prompts.clone().noting(spans.clone());
        let writing = async move {
            let result = match work {
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
                PromptWork::Rollout { request, max_chars } => {
                    let began = Instant::now();
                    let result = write_rollout(&prompts, *request, max_chars).await;
                    let latency = began.elapsed();
                    PromptTaskResult::RolloutWritten {
                        task: id,
                        result,
                        latency,
                    }
                }
                PromptWork::Screen { prompts: seeds } => PromptTaskResult::SeedsScreened {
                    task: id,
                    result: prompts.screen_all(&seeds).await,
                },
            };
            let spans = spans.take();
            PromptTaskEnd { result, spans }
        };
        let task = self.tasks.spawn(writing.in_current_span());
        self.planned.insert(task.id(), (id, task));
    }

    /// Starts to write alternatives to a prompt. Returns false when too many prompts are being rewritten already.
    pub(super) fn rewrite(
        &mut self,
        request: Option<RequestId>,
        seed_prompt: String,
        count: u32,
    ) -> bool {
        if self.rewrites.len() >= MAX_PENDING_REWRITES {
            return false;
        }
        let spans = PromptSpans::kept();
        let prompts = self.prompts.clone().noting(spans.clone());
        let asked = Rewrite {
            id: request.clone(),
            prompt: seed_prompt.clone(),
            count,
        };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let writing = async move {
            let result = prompts.rewrite(&seed_prompt, count).await;
            let result = PromptTaskResult::Rewritten {
                request,
                seed_prompt,
                result,
            };
            let spans = spans.take();
            PromptTaskEnd { result, spans }
        };
        let task = self.tasks.spawn(writing.in_current_span());
        self.rewrites.insert(task.id(), asked);
        true
    }

    /// Returns the rewritings that are not answered yet.
    pub(super) fn rewrites(&self) -> impl Iterator<Item = &Rewrite> {
        self.rewrites.values()
    }

    /// Waits until a task has ended.
    ///
    /// # Cancel safety
    /// This method is cancel safe.
    pub(super) async fn ended(&mut self) -> PromptTaskEnd {
        loop {
            match self.tasks.join_next_with_id().await {
                Some(Ok((id, end))) => {
                    self.planned.remove(&id);
                    self.rewrites.remove(&id);
                    return end;
                }
                Some(Err(error)) if error.is_cancelled() => {}
                Some(Err(panic)) => return self.lost(&panic),
                None => pending().await,
            }
        }
    }

    fn lost(&mut self, panic: &JoinError) -> PromptTaskEnd {
        tracing::error!(%panic, "a prompt's task is lost");
        self.rewrites.remove(&panic.id());
        let task = self.planned.remove(&panic.id()).map(|(id, _)| id);
        PromptTaskEnd {
            result: PromptTaskResult::Lost { task },
            spans: Vec::new(),
        }
    }
}

/// Has the seed prompts of a rollout written.
async fn write_rollout(
    prompts: &Prompts,
    request: RolloutRequest,
    max_chars: usize,
) -> Result<(RewrittenBy, Vec<String>), Blocked> {
    Ok(match prompts.write_rollout(request, max_chars).await? {
        WrittenRollout::ByModel(written) => {
            let texts = written.prompts.clone();
            (RewrittenBy::Model(written), texts)
        }
        WrittenRollout::InOwnWords {
            prompts,
            model,
            latency,
            reason,
        } => {
            let by = RewrittenBy::Nobody {
                model,
                latency,
                reason,
            };
            (by, prompts)
        }
    })
}
