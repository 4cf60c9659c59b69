//! The renewal of a process with overlap: a standby boots while the old process still serves, and takes over between
//! two jobs.

use std::future::pending;
use std::process::ExitStatus;
use std::time::Duration;

use fastvideo_proto::ids::WorkerId;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::boot::{BootError, BootOutcome, ReadyProcess, boot};
use super::context::WorkerContext;
use super::shutdown::kill;
use crate::backoff::Backoff;

/// How long a worker with a ready standby begins no job, so that the media of its last jobs can leave. After that, the
/// worker runs the next job, and the standby takes over at the end of it: a client that does not read must not keep the
/// GPU idle.
const HOLD_BACK: Duration = Duration::from_secs(1);

/// The process that takes over.
pub(super) trait Standby: Send + Sized + 'static {
    /// Starts to boot the next standby. Returns its id, and a future that resolves when it is ready. No process is left
    /// when the boot fails or `give_up` is cancelled.
    fn boot(context: &WorkerContext, give_up: CancellationToken) -> (WorkerId, StandbyBoot<Self>);

    /// Returns the exit status if the standby has exited.
    fn exit_status(&mut self) -> Option<ExitStatus>;

    /// Kills the standby and waits for it.
    fn discard(self) -> BoxFuture<'static, ()>;
}

/// The boot of a standby: resolves when the standby is ready or has failed, to `None` when it was given up.
pub(super) type StandbyBoot<S> = BoxFuture<'static, Option<Result<S, BootError>>>;

/// The progress of the renewal of one serving process.
pub(super) struct Renewal<S> {
    phase: Phase<S>,
    /// The pauses between failed boots.
    backoff: Backoff,
}

enum Phase<S> {
    /// There is no standby.
    Idle {
        /// The backoff deadline after a failed standby.
        not_before: Option<Instant>,
    },
    Booting {
        standby: StandbyBoot<S>,
        give_up: CancellationToken,
    },
    Ready {
        standby: S,
        /// The deadline until which no job is begun; it is set when a job could begin.
        hold_back_until: Option<Instant>,
    },
}

/// A standby that did not become ready.
#[derive(Debug)]
pub(super) struct RenewalFailure {
    pub(super) error: BootError,
    /// The pause until another standby may boot.
    pub(super) pause: Duration,
}

impl<S: Standby> Renewal<S> {
    pub(super) fn new(min_backoff: Duration, max_backoff: Duration) -> Self {
        Self {
            phase: Phase::Idle { not_before: None },
            backoff: Backoff::new(min_backoff, max_backoff),
        }
    }

    /// Returns whether a standby may boot now: there is none, and no backoff deadline is pending.
    pub(super) fn may_start(&self) -> bool {
        match self.phase {
            Phase::Idle { not_before } => not_before.is_none_or(|at| at <= Instant::now()),
            Phase::Booting { .. } | Phase::Ready { .. } => false,
        }
    }

    /// Boots a standby; returns its id.
    pub(super) fn start(&mut self, context: &WorkerContext) -> WorkerId {
        let give_up = CancellationToken::new();
        let (next, standby) = S::boot(context, give_up.clone());
        self.phase = Phase::Booting { standby, give_up };
        next
    }

    /// Waits until the standby is ready or has failed, or until a deadline of the renewal has passed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn changed(&mut self) -> Option<RenewalFailure> {
        match &mut self.phase {
            Phase::Booting { standby, .. } => match standby.await {
                Some(Ok(standby)) => {
                    self.phase = Phase::Ready {
                        standby,
                        hold_back_until: None,
                    };
                    None
                }
                Some(Err(error)) => Some(self.failed(error)),
                None => {
                    self.phase = Phase::Idle { not_before: None };
                    None
                }
            },
            Phase::Idle {
                not_before: deadline,
            } => {
                let Some(at) = *deadline else {
                    return pending().await;
                };
                sleep_until(at).await;
                *deadline = None;
                None
            }
            Phase::Ready {
                hold_back_until: Some(at),
                ..
            } if *at > Instant::now() => {
                sleep_until(*at).await;
                None
            }
            Phase::Ready { .. } => pending().await,
        }
    }

    fn failed(&mut self, error: BootError) -> RenewalFailure {
        let pause = self.backoff.next_pause();
        self.phase = Phase::Idle {
            not_before: Some(Instant::now() + pause),
        };
        RenewalFailure { error, pause }
    }

    /// Returns whether the worker begins no job for now, so that the standby can take over.
    pub(super) fn holds_back(&mut self) -> bool {
        match &mut self.phase {
            Phase::Ready {
                hold_back_until, ..
            } => {
                let now = Instant::now();
                *hold_back_until.get_or_insert(now + HOLD_BACK) > now
            }
            Phase::Idle { .. } | Phase::Booting { .. } => false,
        }
    }

    /// Records that a job has begun, so that the worker holds back again after it.
    pub(super) fn job_begun(&mut self) {
        if let Phase::Ready {
            hold_back_until, ..
        } = &mut self.phase
        {
            *hold_back_until = None;
        }
    }

    /// Takes the standby if one is ready, so that it can take over.
    ///
    /// # Errors
    /// Returns an error when the standby has exited in the meantime. The error includes the standby, which must be
    /// discarded.
    pub(super) fn take(&mut self) -> Result<Option<S>, (S, RenewalFailure)> {
        let phase = std::mem::replace(&mut self.phase, Phase::Idle { not_before: None });
        match phase {
            Phase::Ready { mut standby, .. } => match standby.exit_status() {
                None => Ok(Some(standby)),
                Some(status) => Err((standby, self.failed(BootError::exited(status)))),
            },
            other @ (Phase::Idle { .. } | Phase::Booting { .. }) => {
                self.phase = other;
                Ok(None)
            }
        }
    }

    /// Ends the renewal. No standby is left.
    pub(super) async fn abandon(self) {
        let standby = match self.phase {
            Phase::Idle { .. } => None,
            Phase::Booting { standby, give_up } => {
                give_up.cancel();
                // The standby may have become ready just now.
                standby.await.and_then(Result::ok)
            }
            Phase::Ready { standby, .. } => Some(standby),
        };
        if let Some(standby) = standby {
            standby.discard().await;
        }
    }
}

impl Standby for Box<ReadyProcess> {
    fn boot(context: &WorkerContext, give_up: CancellationToken) -> (WorkerId, StandbyBoot<Self>) {
        let plan = context.next_boot();
        let next = plan.worker_id();
        let standby = async move {
            match boot(plan, give_up.cancelled(), |_| ()).await {
                BootOutcome::Ready(standby) => Some(Ok(standby)),
                BootOutcome::Failed(error) => Some(Err(error)),
                BootOutcome::Interrupted((), mut booting) => {
                    kill(&booting.link, &mut booting.process).await;
                    booting.process.read_last_lines().await;
                    None
                }
            }
        };
        (next, standby.in_current_span().boxed())
    }

    fn exit_status(&mut self) -> Option<ExitStatus> {
        self.process.exited()
    }

    fn discard(mut self) -> BoxFuture<'static, ()> {
        let discard = async move {
            kill(&self.link, &mut self.process).await;
            self.process.read_last_lines().await;
        };
        discard.boxed()
    }
}
