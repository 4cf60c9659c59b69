//! The span of a session at a router: from the handshake to the end of the client's connection. The spans `session` of the
//! servers that the session has, one after the other, are below it.
//!
//! ```text
//! router.session                   an event for each server that takes the session, loses it or lets it go
//!   auth                           the client's key or ticket is checked
//!   session                        at a server
//! ```
//!
//! No span has a prompt, a key or an address.

use fastvideo_proto::session_link::SessionTrace;
use fastvideo_proto::trace::TraceContext;
use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer};
use opentelemetry_sdk::trace::Span;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::metrics::MoveReason;
use crate::dialect::close_code;
use crate::traces::{Clock, Period, Trace, Traces, below, done, link, trace_context};

/// The number of servers whose taking of the session is an event of its span.
const MAX_MOVES: usize = 64;

/// The span of one session. It ends when it is dropped.
#[derive(Debug, Default)]
pub(super) struct SessionSpan {
    /// `None` for a session that is not traced here.
    span: Option<Span>,
    /// What servers are told.
    told: Option<SessionTrace>,
    /// Number of servers that have taken the session.
    moves: usize,
}

/// What is known of a session when its span begins.
#[derive(Debug)]
pub(super) struct TracedClient<'a> {
    pub(super) tenant: &'a str,
    /// The span of the client's that the session is below.
    pub(super) parent: Option<TraceContext>,
    /// Another span that the client has named.
    pub(super) link: Option<TraceContext>,
    /// When the handshake was accepted.
    pub(super) accepted: Instant,
    /// The time in which the client's key was checked.
    pub(super) auth: Option<Period>,
}

impl SessionSpan {
    /// Begins the span of a session, and decides for its servers whether it is traced. Without a collector, servers decide,
    /// and know the client's spans.
    pub(super) fn begin(traces: &Traces, client: &TracedClient<'_>) -> Self {
        let &TracedClient { parent, link, .. } = client;
        if !traces.are_on() {
            let told = parent.map(|parent| SessionTrace {
                parent,
                link,
                is_decided: false,
            });
            return Self {
                told,
                ..Self::default()
            };
        }
        let span = traces.begin(parent).map(|trace| start(&trace, client));
        let parent = match &span {
            Some(span) => trace_context(span),
            None => TraceContext {
                sampled: false,
                ..parent.unwrap_or_else(nowhere)
            },
        };
        Self {
            span,
            told: Some(SessionTrace {
                parent,
                link: None,
                is_decided: true,
            }),
            moves: 0,
        }
    }

    /// Returns what servers are told.
    pub(super) fn told(&self) -> Option<SessionTrace> {
        self.told
    }

    /// A server has taken the session, which is `None` where the server has no links.
    pub(super) fn taken(&mut self, session: Option<&str>) {
        if let (Some(span), Some(session)) = (&mut self.span, session)
            && self.moves == 0
        {
            span.set_attribute(KeyValue::new("session.id", session.to_owned()));
            span.set_attribute(KeyValue::new("gen_ai.conversation.id", session.to_owned()));
        }
        self.event("taken", Vec::new());
        self.moves += 1;
    }

    /// The session has left its server.
    pub(super) fn left(&mut self, why: MoveReason) {
        let why = KeyValue::new("fastvideo.reason", why.name());
        self.event("left", vec![why]);
    }

    /// The session is over for this cause, which was no failure.
    pub(super) fn ended(&mut self, cause: &'static str) {
        if let Some(span) = &mut self.span {
            span.set_attribute(KeyValue::new("fastvideo.cause", cause));
        }
    }

    /// These are the last messages for the client: the close among them says why the session is over.
    pub(super) fn last_words(&mut self, messages: &[Message]) {
        let closes = messages.iter().filter_map(|message| match message {
            Message::Close(frame) => frame.as_ref(),
            _ => None,
        });
        let (Some(span), Some(close)) = (&mut self.span, closes.last()) else {
            return;
        };
        let reason = close.reason.to_string();
        if matches!(
            close.code.into(),
            close_code::INTERNAL | close_code::TRY_AGAIN_LATER
        ) {
            span.set_attribute(KeyValue::new("error.type", reason.clone()));
            span.set_status(Status::error(reason.clone()));
        }
        span.set_attribute(KeyValue::new("fastvideo.cause", reason));
    }

    fn event(&mut self, name: &'static str, attributes: Vec<KeyValue>) {
        if self.moves < MAX_MOVES
            && let Some(span) = &mut self.span
        {
            span.add_event(name, attributes);
        }
    }
}

fn start(trace: &Trace, client: &TracedClient<'_>) -> Span {
    let clock = Clock::now();
    let builder = (trace.tracer())
        .span_builder("router.session")
        .with_kind(SpanKind::Server)
        .with_start_time(clock.at(client.auth.map_or(client.accepted, |auth| auth.began)))
        .with_links(client.link.map(link).into_iter().collect())
        .with_attributes(vec![KeyValue::new(
            "fastvideo.tenant",
            client.tenant.to_owned(),
        )]);
    let span = trace.tracer().build_with_context(builder, trace.parent());
    if let Some(auth) = client.auth {
        done(trace, "auth", clock.period(auth), &below(&span));
    }
    span
}

/// Returns a span that nobody records.
fn nowhere() -> TraceContext {
    TraceContext {
        trace_id: rand::random::<u128>().max(1),
        span_id: rand::random::<u64>().max(1),
        sampled: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_collector_servers_know_the_clients_spans_and_decide() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let parent = Some(parent.parse().unwrap());
        let mut client = TracedClient {
            tenant: "default",
            parent,
            link: None,
            accepted: Instant::now(),
            auth: None,
        };
        let told = SessionSpan::begin(&Traces::default(), &client).told();
        let told = told.unwrap();
        assert_eq!((Some(told.parent), told.is_decided), (parent, false));
        client.parent = None;
        let told = SessionSpan::begin(&Traces::default(), &client).told();
        assert_eq!(told, None);
    }
}
