//! The tasks that screen and write prompts for a session, one for each prompt.

use std::collections::HashMap;
use std::future::pending;

use fastvideo_proto::checkpoint::Rewrite;
use fastvideo_proto::ids::RequestId;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tracing::Instrument;

use super::playlist::{PromptTask, PromptWork};
use crate::prompt::{
    Blocked, GenerateError, GeneratedPrompt, PreparedPrompt, PromptAlternatives, Prompts,
};

/// Number of rewritings that may be asked for before one is answered.
pub(super) const MAX_PENDING_REWRITES: usize = 4;

/// The running tasks. Dropping it ends all of them.
#[derive(Debug)]
pub(super) struct PromptTasks {
    prompts: Prompts,
    tasks: JoinSet<PromptTaskResult>,
    /// The tasks that the playlist has asked for.
    planned: HashMap<Id, (u64, AbortHandle)>,
    /// The rewritings that the client has asked for.
    rewrites: HashMap<Id, Rewrite>,
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
        let prompts = self.prompts.clone();
        let asked = Rewrite {
            id: request.clone(),
            prompt: seed_prompt.clone(),
            count,
        };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let writing = async move {
            let result = prompts.rewrite(&seed_prompt, count).await;
            PromptTaskResult::Rewritten {
                request,
                seed_prompt,
                result,
            }
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
    pub(super) async fn ended(&mut self) -> PromptTaskResult {
        loop {
            match self.tasks.join_next_with_id().await {
                Some(Ok((id, result))) => {
                    self.planned.remove(&id);
                    self.rewrites.remove(&id);
                    return result;
                }
                Some(Err(error)) if error.is_cancelled() => {}
                Some(Err(panic)) => return self.lost(&panic),
                None => pending().await,
            }
        }
    }

    fn lost(&mut self, panic: &JoinError) -> PromptTaskResult {
        tracing::error!(%panic, "a prompt's task is lost");
        self.rewrites.remove(&panic.id());
        PromptTaskResult::Lost {
            task: self.planned.remove(&panic.id()).map(|(id, _)| id),
        }
    }
}
