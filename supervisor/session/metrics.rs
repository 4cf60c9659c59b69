//! The metrics of sessions: a reader of their events, and gauges of the open ones.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastvideo_proto::job::{Phase, PromptSource, Stage};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::ending::{EndCause, NotOpened};
use super::event::{Ended, SessionEvent};
use super::not_admitted::{Full, NotAdmitted};
use crate::metrics::{
    Bounds, Histograms, KnownTenants, LATENCY, LONG, RATIO, TenantLabel, TraceLabels,
    TracedHistogram, TracedHistograms, create, seconds,
};
use crate::tenant::Tenant;

type Seconds = Counter<f64, std::sync::atomic::AtomicU64>;

const SOURCES: [PromptSource; 4] = [
    PromptSource::User,
    PromptSource::Curated,
    PromptSource::Enhanced,
    PromptSource::AutoExtension,
];
const OUTCOMES: [&str; 5] = ["finished", "cancelled", "failed", "blocked", "abandoned"];
const CAUSES: [EndCause; 16] = [
    EndCause::Gone,
    EndCause::Closed,
    EndCause::Released,
    EndCause::Unlinked,
    EndCause::Violation(crate::ingress::websocket::TransportViolation::Crowded),
    EndCause::Left,
    EndCause::SegmentCap,
    EndCause::Idle(Duration::ZERO),
    EndCause::TimeLimit(Duration::ZERO),
    EndCause::SlowClient,
    EndCause::RuleBroken,
    EndCause::StateRefused,
    EndCause::NoWorker,
    EndCause::Draining,
    EndCause::LeaseLost,
    EndCause::Unauthorized,
];

/// The metrics of all sessions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SessionMetrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    tenants: KnownTenants,
    opened: Family<OpenedLabels, Counter>,
    closed: Family<ClosedLabels, Counter>,
    rejected: Family<RejectedLabels, Counter>,
    duration: Histogram,
    queue: Histogram,
    segments: Family<SegmentLabels, Counter>,
    first_fragment: TracedHistograms<PositionLabel>,
    segment_queue: Histogram,
    phase: Histograms<PhaseLabel>,
    step: Histograms<StageLabel>,
    realtime: TracedHistogram,
    video_seconds: Family<TenantLabel, Seconds>,
    viewer_seconds: Seconds,
    stalls: Counter,
    stall_seconds: Seconds,
    recovery: TracedHistogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpenedLabels {
    how: &'static str,
    tenant: Tenant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClosedLabels {
    cause: &'static str,
    tenant: Tenant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectedLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SegmentLabels {
    outcome: &'static str,
    source: &'static str,
    tenant: Tenant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PositionLabel {
    segment: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: &'static str,
}

/// Why a client was turned away before it had a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The server has as many sessions as it may have.
    Full,
    /// The client's address has as many as one may have.
    ClientLimit,
    /// The client's tenant has as many as it may have.
    TenantLimit,
    /// The client's tenant opens sessions too fast.
    Rate,
    Draining,
    /// The client showed no key that is valid.
    Unauthorized,
    /// A page of another site wanted to open a session.
    Origin,
    /// The opening message came too late, or asked for what cannot be.
    BadOpening,
    /// The store did not answer, or the server failed.
    Unavailable,
    /// A router's session found no place.
    NoPlace,
}

impl Rejection {
    const ALL: [Self; 10] = [
        Self::Full,
        Self::ClientLimit,
        Self::TenantLimit,
        Self::Rate,
        Self::Draining,
        Self::Unauthorized,
        Self::Origin,
        Self::BadOpening,
        Self::Unavailable,
        Self::NoPlace,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ClientLimit => "client_limit",
            Self::TenantLimit => "tenant_limit",
            Self::Rate => "rate",
            Self::Draining => "draining",
            Self::Unauthorized => "unauthorized",
            Self::Origin => "origin",
            Self::BadOpening => "bad_opening",
            Self::Unavailable => "unavailable",
            Self::NoPlace => "no_place",
        }
    }

    /// Returns why a session did not begin; `None` for a client that went away by itself.
    fn of(why: &NotOpened) -> Option<Self> {
        Some(match why {
            NotOpened::Gone => return None,
            NotOpened::Violation(_)
            | NotOpened::Timeout(_)
            | NotOpened::Refused { .. }
            | NotOpened::Blocked(_)
            | NotOpened::NoSession(_)
            | NotOpened::CannotGoOn(_) => Self::BadOpening,
            NotOpened::Unavailable(_) | NotOpened::Internal(_) => Self::Unavailable,
            NotOpened::NoPlace => Self::NoPlace,
            NotOpened::NotAdmitted(why) => why.into(),
            NotOpened::Draining => Self::Draining,
        })
    }
}

impl From<&NotAdmitted> for Rejection {
    fn from(why: &NotAdmitted) -> Self {
        match why {
            NotAdmitted::Draining => Self::Draining,
            NotAdmitted::Full(Full::Server(_)) => Self::Full,
            NotAdmitted::Full(Full::Client(_)) => Self::ClientLimit,
            NotAdmitted::Full(Full::Tenant(_) | Full::Waiting(_)) => Self::TenantLimit,
            NotAdmitted::Unauthorized(_) => Self::Unauthorized,
            NotAdmitted::Limited { .. } => Self::Rate,
        }
    }
}

impl Default for SessionMetrics {
    fn default() -> Self {
        let latency = || Histogram::new(LATENCY);
        Self(Arc::new(Families {
            tenants: KnownTenants::default(),
            opened: Family::default(),
            closed: Family::default(),
            rejected: Family::default(),
            duration: Histogram::new(LONG),
            queue: latency(),
            segments: Family::default(),
            first_fragment: Family::new_with_constructor(Bounds(&LATENCY)),
            segment_queue: latency(),
            phase: Family::new_with_constructor(Bounds(&LATENCY)),
            step: Family::new_with_constructor(Bounds(&LATENCY)),
            realtime: TracedHistogram::new(RATIO.into_iter()),
            video_seconds: Family::default(),
            viewer_seconds: Seconds::default(),
            stalls: Counter::default(),
            stall_seconds: Seconds::default(),
            recovery: TracedHistogram::new(LATENCY.into_iter()),
        }))
    }
}

impl SessionMetrics {
    /// Registers the metrics, with all series of the tenants that are known.
    pub(crate) fn register(
        &self,
        registry: &mut Registry,
        tenants: impl IntoIterator<Item = Tenant>,
    ) {
        let all = &self.0;
        registry.register(
            "sessions_opened",
            "Sessions whose opening message was accepted; `resumed` ones go on with an older session, `hydrated` ones begin from a state that the client brought",
            all.opened.clone(),
        );
        registry.register(
            "sessions_closed",
            "Sessions that have ended, by cause; those that were opened and not closed are open",
            all.closed.clone(),
        );
        registry.register(
            "sessions_rejected",
            "Clients that were turned away before they had a session",
            all.rejected.clone(),
        );
        registry.register(
            "session_duration_seconds",
            "Time from the opening of a session to its end",
            all.duration.clone(),
        );
        registry.register(
            "session_queue_seconds",
            "Time from the opening of a session to its first worker",
            all.queue.clone(),
        );
        registry.register(
            "segments",
            "Requests for a segment, by how they ended; `abandoned` ones were open when the client went",
            all.segments.clone(),
        );
        registry.register(
            "segment_time_to_first_fragment_seconds",
            "Time from a request to the first media on the client's socket; what was asked for while another segment ran counts from the end of that one",
            all.first_fragment.clone(),
        );
        registry.register(
            "segment_queue_seconds",
            "Time from the making of a job until a worker was given it",
            all.segment_queue.clone(),
        );
        registry.register(
            "segment_phase_seconds",
            "Time that a finished segment spent in each phase in its worker; `encode` is the encoder's work beside `decode`",
            all.phase.clone(),
        );
        registry.register(
            "step_seconds",
            "Time from one step of a segment to the next, in attempts that failed too",
            all.step.clone(),
        );
        registry.register(
            "segment_realtime_factor",
            "Time that a finished segment took to generate, by the time that it plays; below 1 a worker keeps up with one viewer",
            all.realtime.clone(),
        );
        registry.register(
            "video_seconds",
            "Playing time of the finished segments",
            all.video_seconds.clone(),
        );
        registry.register(
            "viewer_seconds",
            "Time in which viewers played, or lacked video that was asked for, from the first media of their session on",
            all.viewer_seconds.clone(),
        );
        registry.register(
            "viewer_stalls",
            "How often a viewer ran out of video while a segment was asked for",
            all.stalls.clone(),
        );
        registry.register(
            "viewer_stall_seconds",
            "Time in which viewers lacked video that was asked for",
            all.stall_seconds.clone(),
        );
        registry.register(
            "recovery_seconds",
            "Time from the loss of a worker with a segment until another worker was given the segment",
            all.recovery.clone(),
        );
        for rejection in Rejection::ALL {
            let reason = rejection.name();
            create(&all.rejected, &RejectedLabels { reason });
        }
        for segment in ["first", "next"] {
            create(&all.first_fragment, &PositionLabel { segment });
        }
        for phase in Phase::ALL {
            let phase = phase.name();
            create(&all.phase, &PhaseLabel { phase });
        }
        for stage in [Stage::Denoise, Stage::Refine, Stage::Decode] {
            let stage = stage_name(stage);
            create(&all.step, &StageLabel { stage });
        }
        for tenant in tenants {
            self.know(&tenant);
        }
    }

    /// Gives a tenant series of its own, while there is room.
    pub(crate) fn know(&self, tenant: &Tenant) {
        let all = &self.0;
        if !all.tenants.add(tenant) {
            return;
        }
        let tenant = || tenant.clone();
        for how in ["new", "resumed", "hydrated"] {
            let labels = OpenedLabels {
                how,
                tenant: tenant(),
            };
            create(&all.opened, &labels);
        }
        for cause in CAUSES {
            let labels = ClosedLabels {
                cause: cause.name(),
                tenant: tenant(),
            };
            create(&all.closed, &labels);
        }
        for (outcome, source) in OUTCOMES.iter().flat_map(|o| SOURCES.map(|s| (o, s))) {
            let labels = SegmentLabels {
                outcome,
                source: source_name(source),
                tenant: tenant(),
            };
            create(&all.segments, &labels);
        }
        create(&all.video_seconds, &TenantLabel { tenant: tenant() });
    }

    /// Returns the tenants that have series of their own.
    pub(super) fn tenants(&self) -> &KnownTenants {
        &self.0.tenants
    }

    /// Counts a client that was turned away.
    pub(crate) fn rejected(&self, why: Rejection) {
        let reason = why.name();
        self.0
            .rejected
            .get_or_create(&RejectedLabels { reason })
            .inc();
    }

    /// Returns the reader of a session's events.
    pub(super) fn meter(&self, tenant: &Tenant) -> Meter {
        Meter(Arc::new(Measured {
            metrics: self.clone(),
            tenant: self.0.tenants.label(tenant),
            story: Mutex::default(),
        }))
    }
}

/// Reads one session's events for the metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Meter(Arc<Measured>);

#[derive(Debug)]
struct Measured {
    metrics: SessionMetrics,
    tenant: Tenant,
    story: Mutex<Story>,
}

/// What earlier events of the session leave for later ones.
#[derive(Debug, Default)]
struct Story {
    opened: Option<Instant>,
    /// Whether the session has had a worker.
    was_bound: bool,
    /// The segment whose first media were sent last.
    sent: Option<u32>,
    /// When a worker was lost with the running segment, which no other one was given since.
    lost: Option<Instant>,
}

impl Meter {
    /// Counts an event, which belongs to that span if the session is traced.
    pub(super) fn read(&self, event: &SessionEvent, span: Option<TraceLabels>) {
        let all = &*self.0.metrics.0;
        match event {
            SessionEvent::NotOpened(why) => {
                if let Some(why) = Rejection::of(why) {
                    self.0.metrics.rejected(why);
                }
            }
            SessionEvent::Opened(opened) => {
                self.story().opened = Some(Instant::now());
                let labels = OpenedLabels {
                    how: match (opened.resumed, opened.hydrated) {
                        (true, _) => "resumed",
                        (false, true) => "hydrated",
                        (false, false) => "new",
                    },
                    tenant: self.tenant(),
                };
                all.opened.get_or_create(&labels).inc();
            }
            SessionEvent::WorkerBound(_) => {
                let mut story = self.story();
                if !std::mem::replace(&mut story.was_bound, true)
                    && let Some(opened) = story.opened
                {
                    all.queue.observe(seconds(opened.elapsed()));
                }
            }
            SessionEvent::SegmentStarted { queued_for, .. } => {
                all.segment_queue.observe(seconds(*queued_for));
                if let Some(lost) = self.story().lost.take() {
                    let took = seconds(lost.elapsed());
                    all.recovery.observe(took, span, None);
                }
            }
            SessionEvent::WorkerLost(_) => {
                self.story().lost.get_or_insert_with(Instant::now);
            }
            SessionEvent::StepDone { stage, took, .. } => {
                let stage = stage_name(*stage);
                let step = all.step.get_or_create(&StageLabel { stage });
                step.observe(seconds(*took));
            }
            SessionEvent::FirstMediaSent { at, waited, .. } => {
                // A segment that begins anew has been late once.
                let before = self.story().sent.replace(at.segment_idx);
                if before != Some(at.segment_idx) {
                    let segment = match at.segment_idx {
                        0 => "first",
                        _ => "next",
                    };
                    let labels = PositionLabel { segment };
                    let first = all.first_fragment.get_or_create(&labels);
                    first.observe(seconds(*waited), span, None);
                }
            }
            SessionEvent::SegmentFinished {
                source,
                generation,
                plays,
                timing,
                ..
            } => {
                self.segment("finished", *source);
                for span in &timing.phases {
                    let took = match span.phase {
                        Phase::Encode => timing.encode,
                        _ => span.duration(),
                    };
                    let phase = span.phase.name();
                    let phase = all.phase.get_or_create(&PhaseLabel { phase });
                    phase.observe(seconds(took));
                }
                let tenant = self.tenant();
                let video = (all.video_seconds).get_or_create(&TenantLabel { tenant });
                video.inc_by(seconds(*plays));
                if !plays.is_zero() {
                    let factor = seconds(*generation) / seconds(*plays);
                    all.realtime.observe(factor, span, None);
                }
            }
            SessionEvent::SegmentCancelled { source, .. } => self.segment("cancelled", *source),
            SessionEvent::RequestWithdrawn { source, .. } => self.segment("cancelled", *source),
            SessionEvent::SegmentFailed { source, .. } => {
                self.segment("failed", *source);
                self.story().lost = None;
            }
            SessionEvent::PromptBlocked {
                source: Some(source),
                ..
            } => self.segment("blocked", *source),
            SessionEvent::Viewed {
                played,
                stalled,
                is_new_stall,
            } => {
                all.viewer_seconds.inc_by(seconds(*played + *stalled));
                all.stall_seconds.inc_by(seconds(*stalled));
                all.stalls.inc_by(u64::from(*is_new_stall));
            }
            SessionEvent::Ended(ended) => self.ended(ended),
            _ => {}
        }
    }

    fn ended(&self, ended: &Ended) {
        let all = &*self.0.metrics.0;
        for source in &ended.abandoned {
            self.segment("abandoned", *source);
        }
        let labels = ClosedLabels {
            cause: ended.cause.name(),
            tenant: self.tenant(),
        };
        all.closed.get_or_create(&labels).inc();
        if let Some(opened) = self.story().opened {
            all.duration.observe(seconds(opened.elapsed()));
        }
    }

    fn segment(&self, outcome: &'static str, source: PromptSource) {
        let labels = SegmentLabels {
            outcome,
            source: source_name(source),
            tenant: self.tenant(),
        };
        self.0.metrics.0.segments.get_or_create(&labels).inc();
    }

    fn tenant(&self) -> Tenant {
        self.0.tenant.clone()
    }

    fn story(&self) -> MutexGuard<'_, Story> {
        self.0.story.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn source_name(source: PromptSource) -> &'static str {
    match source {
        PromptSource::User => "user",
        PromptSource::Curated => "curated",
        PromptSource::Enhanced => "enhanced",
        PromptSource::AutoExtension => "auto_extension",
    }
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Denoise => "denoise",
        Stage::Refine => "refine",
        Stage::Decode => "decode",
    }
}
