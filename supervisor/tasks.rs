//! Owns the server's background tasks, which run as long as the server does.
//!
//! No caller waits for the result of such a task, so its end would go unnoticed: a server whose upkeep has panicked
//! looks healthy until other servers take its sessions. Here the end of any task is an error that ends the server.

use std::any::Any;
use std::future::pending;
use std::io;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::task::JoinSet;

/// Background tasks; they are aborted when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct BackgroundTasks(JoinSet<TaskError>);

/// Why a background task no longer runs.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("background task `{task}` panicked: {message}")]
    Panicked { task: &'static str, message: String },
    #[error("background task `{task}` failed")]
    Failed {
        task: &'static str,
        source: io::Error,
    },
    #[error("background task `{task}` ended before the server")]
    Ended { task: &'static str },
}

impl BackgroundTasks {
    /// Starts a task that runs until the server ends; `name` is for messages.
    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = io::Result<()>> + Send + 'static,
    ) {
        self.0.spawn(async move {
            match AssertUnwindSafe(task).catch_unwind().await {
                Ok(Ok(())) => TaskError::Ended { task: name },
                Ok(Err(source)) => TaskError::Failed { task: name, source },
                Err(panic) => TaskError::Panicked {
                    task: name,
                    message: panic_message(&*panic),
                },
            }
        });
    }

    /// Waits until a task no longer runs, and returns why.
    ///
    /// # Cancel safety
    /// This method is cancel safe: after a cancelled call, the next call returns what that one would have returned.
    pub(crate) async fn failed(&mut self) -> TaskError {
        match self.0.join_next().await {
            Some(ended) => {
                ended.expect("panics are caught, and nobody aborts a task before `stop`")
            }
            None => pending().await,
        }
    }

    /// Aborts all tasks and waits until they are gone. A failure that was not waited for is logged.
    pub(crate) async fn stop(mut self) {
        self.0.abort_all();
        while let Some(ended) = self.0.join_next().await {
            if let Ok(failure) = ended {
                tracing::error!(error = crate::causes::with_causes(&failure), "at the end");
            }
        }
    }
}

/// Runs the work of one client. A panic in it ends nothing else; it is logged.
pub(crate) fn catch_panic(
    work: &'static str,
    task: impl Future<Output = ()>,
) -> impl Future<Output = ()> {
    // An async block would hold the task twice: as it was captured, and as it is awaited.
    AssertUnwindSafe(task).catch_unwind().map(move |ended| {
        if let Err(panic) = ended {
            let message = panic_message(&*panic);
            tracing::error!(work, message, "panicked; its connection is closed");
        }
    })
}

/// Returns the text that `panic!` was given, or a substitute when it was given no text.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = match panic.downcast_ref::<String>() {
        Some(text) => Some(text.as_str()),
        None => panic.downcast_ref::<&str>().copied(),
    };
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    fn tasks() -> BackgroundTasks {
        let mut tasks = BackgroundTasks::default();
        tasks.spawn("steady", pending());
        tasks
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_told_with_the_task_and_the_message() {
        let mut tasks = tasks();
        tasks.spawn("upkeep", async {
            sleep(Duration::from_secs(5)).await;
            panic!("no beat for {}", "this server");
        });
        let early = timeout(Duration::from_secs(4), tasks.failed()).await;
        assert!(early.is_err());
        assert_eq!(
            tasks.failed().await.to_string(),
            "background task `upkeep` panicked: no beat for this server"
        );
        tasks.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_fails_or_ends_is_told() {
        let mut tasks = tasks();
        tasks.spawn("listener", async { Err(io::Error::other("gone")) });
        assert!(matches!(
            tasks.failed().await,
            TaskError::Failed { task: "listener", source } if source.to_string() == "gone"
        ));
        tasks.spawn("reload", async { Ok(()) });
        let ended = tasks.failed().await;
        assert!(matches!(ended, TaskError::Ended { task: "reload" }));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_fails_while_all_tasks_run() {
        let mut without_any = BackgroundTasks::default();
        for tasks in [&mut tasks(), &mut without_any] {
            let failed = timeout(Duration::from_secs(3600), tasks.failed()).await;
            assert!(failed.is_err());
        }
    }
}
