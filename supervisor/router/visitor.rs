//! A client that was let in, as its handshake has shown it.

use axum::http::HeaderValue;
use fastvideo_proto::trace::TraceContext;
use tokio::time::Instant;

use super::server_socket::Headers;
use super::tracer::{SessionSpan, TracedClient};
use crate::auth::Caller;
use crate::client_address::ClientAddress;
use crate::traces::{Period, Traces};

/// A client that was let in.
pub(super) struct Visitor {
    pub(super) caller: Caller,
    pub(super) client: ClientAddress,
    /// The key that the client has shown, for a server that knows nothing of this router.
    pub(super) authorization: Option<HeaderValue>,
    /// The span that the handshake names.
    pub(super) trace: Option<TraceContext>,
    /// When the handshake was accepted.
    pub(super) accepted: Instant,
    /// The time in which the client's key was checked.
    pub(super) auth: Option<Period>,
}

impl Visitor {
    /// Begins the span of the client's session. `named` is the span that the opening message names, which wins over the
    /// handshake's.
    pub(super) fn span(&self, traces: &Traces, named: Option<TraceContext>) -> SessionSpan {
        let tenant = self.caller.own_tenant();
        let client = TracedClient {
            tenant: tenant.as_str(),
            parent: named.or(self.trace),
            link: self.trace.filter(|_| named.is_some()),
            accepted: self.accepted,
            auth: self.auth,
        };
        SessionSpan::begin(traces, &client)
    }

    /// Returns what a server without links is shown of the client.
    pub(super) fn headers(&self, span: &SessionSpan) -> Headers<'_> {
        Headers {
            authorization: self.authorization.as_ref(),
            trace: span.told().map(|trace| trace.parent),
        }
    }
}
