//! The event loop of one session. It waits for the client, the pool, the store and the clock at the same time.

use std::future::pending;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinError;
use tokio::time::{Instant, sleep_until};
use tracing::Span;

use super::admission::{admit, admit_moved, may_wait};
use super::command::Inbound;
use super::emitter::Emitter;
use super::ending::{EndCause, NotOpened};
use super::event::{Opened, SessionEvent};
use super::event_readers::EventReaders;
use super::handshake::{self, Claim, Opening};
use super::inbox::Inbox;
use super::live::LiveSession;
use super::log::SessionLog;
use super::moved::Origin;
use super::outbox::Outbox;
use super::prompt_tasks::PromptTaskEnd;
use super::redelivery::MediaRead;
use super::registry::{Registry, Ticket};
use super::snapshots::ExportOutcome;
use super::state::SessionState;
use super::tracer::{SessionTracer, TracedSession};
use super::{Context, Drain};
use crate::auth::Grant;
use crate::client_address::ClientAddress;
use crate::init_image::InitImage;
use crate::pool::{BindingChange, JobEvent, Placement};
use crate::store::StoreError;
use crate::tenant::Tenant;
use crate::traces::Period;

/// How long a client may still ask for its state when the server is going away and its last segment is done.
const DRAIN_LINGER: Duration = Duration::from_secs(2);

/// How late the session's clock may ring. When it rings later, the server itself has stood still.
const LATE: Duration = Duration::from_secs(1);

/// Serves one client from its opening to the last event in the outbox. A client that has not sent its opening is no
/// session yet.
pub(crate) async fn run(
    client: ClientAddress,
    grant: Grant,
    origin: Origin,
    registry: Registry,
    inbound: mpsc::Receiver<Box<Inbound>>,
    outbox: Outbox,
    mut context: Context,
) {
    context.store = (context.store).seen_by(grant.scope(), grant.tenant().clone());
    let mut inbox = Inbox::new(inbound);
    // Boxed, so that the memory of the handshake is not kept for as long as the session lives.
    let opened = Box::pin(open(
        client, &grant, &origin, &registry, &mut inbox, &context,
    ))
    .await;
    let (ticket, opening, claim, times) = match opened {
        Ok(opened) => opened,
        Err(why) => {
            let meter = context.metrics.meter(grant.tenant());
            let tracer = SessionTracer::default();
            let readers = EventReaders::new(SessionLog::default(), tracer, meter);
            Emitter::new(readers, outbox).emit_last(SessionEvent::NotOpened(why));
            return;
        }
    };
    Span::current().record("session_id", ticket.id().as_str());
    if *grant.tenant() != Tenant::default() {
        Span::current().record("tenant", grant.tenant().as_str());
    }
    ticket.update(|entry| entry.outbox = Some(outbox.clone()));
    let tenant = claim.snapshot.tenant.clone();
    let meter = context.metrics.meter(&tenant);
    let traced = TracedSession {
        id: ticket.id().as_str(),
        tenant: tenant.as_str(),
        parent: opening.request.trace_parent,
        is_decided: opening.request.is_trace_decided,
        links: [opening.request.trace_link, claim.snapshot.trace],
        accepted: (opening.request.auth).map_or(times.received, |auth| auth.began),
        received: times.received,
    };
    let tracer = SessionTracer::begin(&context.traces, &traced);
    if let Some(trace) = tracer.session() {
        let span = Span::current();
        span.record("trace_id", format!("{:032x}", trace.trace_id));
        span.record("span_id", format!("{:016x}", trace.span_id));
        if let Some(record) = &claim.record {
            record.lease.set_trace(trace);
        }
    }
    let log = context.logs.session(ticket.id(), &tenant);
    let readers = EventReaders::new(log, tracer, meter);
    let emitter = Emitter::new(readers, outbox);
    let cap = opening.config.segment_cap(claim.snapshot.extensions);
    emitter.emit(opened_event(&opening, &claim, cap, times.claim));
    let session = LiveSession::new(ticket, grant, emitter, context, opening, claim, origin);
    let mut session = Box::new(session);
    let cause = session.serve(&mut inbox).await;
    session.end_turn();
    session.end(cause);
}

async fn open(
    client: ClientAddress,
    grant: &Grant,
    origin: &Origin,
    registry: &Registry,
    inbox: &mut Inbox,
    context: &Context,
) -> Result<(Ticket, Opening, Claim, OpeningTimes), NotOpened> {
    let moved = match origin {
        Origin::Moved(moved) => Some(&**moved),
        Origin::Direct | Origin::Router => None,
    };
    let patience = context.config.get().limits.opening_timeout;
    let request = tokio::select! {
        request = handshake::receive(inbox, patience) => request?,
        () = drain_begins(context.drain.clone()) => return Err(NotOpened::Draining),
    };
    let received = Instant::now();
    let config = context.config.get();
    let offered = context.pool.offered_adapters();
    let mut ticket = match moved {
        Some(_) => admit_moved(client, grant, registry, context)?,
        None => admit(client, grant, registry, context)?,
    };
    let prompts = context.prompts.clone().of_tenant(grant.tenant().clone());
    let opened = async {
        let opening = tokio::select! {
            // A check can wait for its turn, and for the store.
            opening = handshake::check(request, config, &context.store, &prompts, &offered) => opening?,
            () = inbox.gone() => return Err(NotOpened::Gone),
            () = drain_begins(context.drain.clone()) => return Err(NotOpened::Draining),
        };
        let waits_elsewhere = !matches!(origin, Origin::Direct);
        let resumed = opening.resume.as_ref().map(|resume| &resume.session);
        if waits_elsewhere && !context.pool.has_place_for(resumed.unwrap_or(ticket.id())) {
            return Err(NotOpened::NoPlace);
        }
        may_wait(&ticket, resumed.unwrap_or(ticket.id()), grant, context)?;
        let began = Instant::now();
        let claim = handshake::claim(&mut ticket, context, &opening, moved).await?;
        let times = OpeningTimes {
            received,
            claim: Period::since(began),
        };
        Ok((opening, claim, times))
    };
    match opened.await {
        Ok((opening, claim, times)) => Ok((ticket, opening, claim, times)),
        Err(why) => {
            ticket.transition(why.state());
            Err(why)
        }
    }
}

/// Where the time of an opening went.
#[derive(Debug)]
struct OpeningTimes {
    received: Instant,
    claim: Period,
}

fn opened_event(
    opening: &Opening,
    claim: &Claim,
    segment_cap: u32,
    claimed: Period,
) -> SessionEvent {
    let request = &opening.request;
    SessionEvent::Opened(Box::new(Opened {
        client_id: request.client_id.clone(),
        preset: request.preset.clone(),
        media_mode: request.media_mode,
        resumed: opening.resume.is_some(),
        hydrated: opening.state.is_some(),
        image: opening.image.as_ref().map(|image| image.name().to_owned()),
        curated_prompts: request.curated_prompts.len(),
        next_segment_idx: claim.snapshot.progress.segments,
        segment_cap: match request.single_segment {
            true => 1,
            false => segment_cap,
        },
        heartbeat: request.heartbeat,
        auth: request.auth,
        image_read: opening.image_read,
        claimed,
    }))
}

async fn drain_begins(mut drain: watch::Receiver<Drain>) {
    if drain.wait_for(|drain| *drain != Drain::No).await.is_err() {
        pending().await
    }
}

/// An event that the loop has received.
enum Heard {
    Client(Option<Inbound>),
    PlacementChanged,
    /// Others wait for a worker now, or no longer.
    DemandChanged,
    Job(Option<JobEvent>),
    StateStored(Result<Result<(), StoreError>, JoinError>),
    StateExported(ExportOutcome),
    MediaRead(MediaRead),
    AudienceChanged(usize),
    PromptEnded(PromptTaskEnd),
    ImageChecked(Result<Option<InitImage>, NotOpened>),
    LeaseLost,
    /// The client's key has left the file.
    Withdrawn,
    OutboxDrained,
    Drain(Drain),
    ClockRang {
        alarm: Instant,
    },
}

impl LiveSession {
    async fn serve(&mut self, inbox: &mut Inbox) -> EndCause {
        if !matches!(self.placement, Placement::Bound(_)) {
            self.transition(SessionState::Queued);
        }
        let mut end = self.catch_up().or_else(|| self.placed());
        loop {
            if let Some(cause) = end.or_else(|| self.advance()) {
                return cause;
            }
            self.end_turn();
            end = match self.hear(inbox).await {
                Heard::Client(inbound) => self.receive(inbound),
                Heard::PlacementChanged => {
                    self.placement = self.binding.look();
                    self.placed()
                }
                Heard::DemandChanged => None,
                Heard::Job(event) => self.follow_job(event),
                Heard::StateStored(outcome) => {
                    if let Some(began) = self.persistence.began() {
                        let is_stored = matches!(outcome, Ok(Ok(())));
                        self.emitter
                            .note(&SessionEvent::Stored { began, is_stored });
                    }
                    match self.persistence.finish(outcome) {
                        Ok(()) => None,
                        Err(_) => Some(EndCause::LeaseLost),
                    }
                }
                Heard::StateExported(outcome) => {
                    let limit = self.config.max_message_bytes;
                    let event = self.exports.finish(outcome, limit);
                    self.emit(event);
                    self.export_next();
                    None
                }
                Heard::AudienceChanged(count) => {
                    self.audience_changed(count);
                    None
                }
                Heard::MediaRead(read) => {
                    self.media_read(read);
                    None
                }
                Heard::PromptEnded(mut end) => {
                    if self.emitter.readers().trace().is_some() {
                        self.emitter.note(&self.director.worked(&mut end));
                    }
                    let event = self.director.settle(end.result);
                    self.do_said();
                    if let Some(event) = event {
                        self.emit(event);
                    }
                    self.last_activity = Instant::now();
                    None
                }
                Heard::ImageChecked(checked) => {
                    self.image_checked(checked);
                    None
                }
                Heard::LeaseLost => Some(EndCause::LeaseLost),
                Heard::Withdrawn => {
                    self.is_withdrawn = true;
                    None
                }
                Heard::OutboxDrained => {
                    self.export_next();
                    None
                }
                Heard::Drain(drain) => self.drain(drain),
                Heard::ClockRang { alarm } => self.clock_rang(alarm),
            };
        }
    }

    /// Starts what can be started now. Returns a cause when the session is over.
    fn advance(&mut self) -> Option<EndCause> {
        self.cancel_in_vain();
        if self.segment.is_none() {
            if self.is_withdrawn {
                return Some(EndCause::Unauthorized);
            }
            // A client that is told of another rollout drops what it has, which it is to keep at the end.
            if self.drain_deadline.is_none() {
                self.director.at_boundary();
            }
        }
        self.do_said();
        if self.segment.is_none() {
            if self.director.is_complete() && self.redelivery.is_none() {
                return Some(EndCause::SegmentCap);
            }
            if self.drain_deadline.is_some() {
                self.lingering_since.get_or_insert_with(Instant::now);
                let wants_nothing = self.announced.is_none() || self.record.is_none();
                return wants_nothing.then_some(EndCause::Draining);
            }
            if self.may_be_released() {
                return Some(EndCause::Released);
            }
            self.redeliver();
            self.begin_segment();
        }
        self.submit();
        if self.drain_deadline.is_none() {
            self.director.prepare_prompts();
        }
        None
    }

    async fn hear(&mut self, inbox: &mut Inbox) -> Heard {
        let alarm = self.alarm();
        let known_drain = self.drain_deadline.or(self.leaves_by());
        let (record, ticket) = (self.record.as_ref(), &self.ticket);
        let lease_lost = async {
            match record {
                Some(record) => record.lease.lost().await,
                None => ticket.ended().await,
            }
        };
        let is_checking = self.image_check.is_some();
        let image_check = self.image_check.as_mut();
        let image_checked = async {
            match image_check {
                Some(check) => check.ended().await,
                None => pending().await,
            }
        };
        let segment = self.segment.as_mut();
        let job = async {
            match segment {
                Some(segment) => segment.run.next_event().await,
                None => pending().await,
            }
        };
        let redelivery = self.redelivery.as_mut();
        let media_read = async {
            match redelivery {
                Some(redelivery) => redelivery.media_read().await,
                None => pending().await,
            }
        };
        let drain = async {
            let is_news = |drain: &Drain| match drain {
                Drain::No => false,
                Drain::Until(deadline) => Some(*deadline) != known_drain,
            };
            let drain = self
                .context
                .drain
                .wait_for(is_news)
                .await
                .map(|drain| *drain);
            match drain {
                Ok(drain) => drain,
                Err(_) => pending().await,
            }
        };
        let clock = async {
            match alarm {
                Some(alarm) => {
                    sleep_until(alarm).await;
                    alarm
                }
                None => pending().await,
            }
        };
        // The order matters. What the job has produced comes before what the client says next, so a message that
        // crosses the end of a segment is handled after that end. The client comes last, since it may never stop
        // talking.
        tokio::select! {
            biased;
            () = lease_lost => Heard::LeaseLost,
            () = self.grant.withdrawn(), if !self.is_withdrawn => Heard::Withdrawn,
            outcome = self.persistence.ended() => Heard::StateStored(outcome),
            event = job => Heard::Job(event),
            change = self.binding.changed() => match change {
                BindingChange::Placement => Heard::PlacementChanged,
                BindingChange::Demand => Heard::DemandChanged,
            },
            read = media_read => Heard::MediaRead(read),
            outcome = self.exports.ended() => Heard::StateExported(outcome),
            end = self.director.tasks().ended() => Heard::PromptEnded(end),
            drain = drain => Heard::Drain(drain),
            count = self.broadcaster.spectators_changed() => Heard::AudienceChanged(count),
            () = self.emitter.outbox().drained() => Heard::OutboxDrained,
            alarm = clock => Heard::ClockRang { alarm },
            checked = image_checked => Heard::ImageChecked(checked),
            message = inbox.recv_or_gone(is_checking) => Heard::Client(message),
        }
    }

    /// Returns the session's next deadline.
    fn alarm(&self) -> Option<Instant> {
        let alarms = [
            self.idle_alarm(),
            self.slow_at(),
            self.lingering_since.map(|since| since + DRAIN_LINGER),
            self.drain_deadline,
            self.leaves_by(),
            self.director.alarm(),
            self.viewer_catches_up_at(),
            self.audience_due(),
            self.persistence.retry_at(),
            self.ends_at,
            (self.segment.as_ref()).and_then(|segment| segment.not_before),
        ];
        alarms.into_iter().flatten().min()
    }

    /// Returns when the session ends for lack of activity, or when its client is to be warned of that.
    fn idle_alarm(&self) -> Option<Instant> {
        let end = self.idle_end()?;
        Some(match self.warned_of == Some(end.at) {
            true => end.at,
            false => end.warning_at(),
        })
    }

    fn clock_rang(&mut self, alarm: Instant) -> Option<EndCause> {
        let now = Instant::now();
        if now - alarm > LATE {
            self.server_stood_still(now);
        }
        let passed = |moment: Option<Instant>| moment.is_some_and(|moment| moment <= now);
        if let Some(limit) = self.time_limit.filter(|_| passed(self.ends_at)) {
            return Some(EndCause::TimeLimit(limit));
        }
        if passed(self.slow_at()) {
            return Some(EndCause::SlowClient);
        }
        let lingered = self.lingering_since.map(|since| since + DRAIN_LINGER);
        if passed(self.drain_deadline) || passed(lingered) {
            return Some(EndCause::Draining);
        }
        if passed(self.leaves_by()) {
            return Some(EndCause::Released);
        }
        if let Some(end) = self.idle_end() {
            if end.at <= now {
                let cause = self.end_idle(end);
                if cause.is_some() {
                    return cause;
                }
            } else if end.warning_at() <= now && self.warned_of != Some(end.at) {
                self.warned_of = Some(end.at);
                let time_left = end.at - now;
                self.emit(SessionEvent::IdleWarning { time_left });
            }
        }
        self.director.clock_rang(now);
        if let Some(segment) = &mut self.segment {
            segment.not_before.take_if(|at| *at <= now);
        }
        self.tell_audience(now);
        if passed(self.persistence.retry_at()) {
            self.save();
        }
        None
    }

    /// Records that the server is going away, or that it does so sooner than it had announced.
    fn drain(&mut self, drain: Drain) -> Option<EndCause> {
        let Drain::Until(deadline) = drain else {
            return None;
        };
        let time_left = deadline.saturating_duration_since(Instant::now());
        if let Some(link) = &mut self.link {
            // The router knows, and finds another place.
            link.leave_by(deadline);
            return time_left.is_zero().then_some(EndCause::Released);
        }
        let is_first = self.drain_deadline.replace(deadline).is_none();
        if time_left.is_zero() {
            return Some(EndCause::Draining);
        }
        if is_first {
            self.emit(SessionEvent::Draining { time_left });
        }
        None
    }
}

#[cfg(test)]
mod tests;
