//! The guard before all routes: finds out who sends a request, and whether the caller may.
//!
//! A request that passes carries its [`Caller`] and its [`ClientAddress`] as extensions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::http::header::{
    ACCEPT_RANGES, ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE,
    ETAG, ORIGIN, RETRY_AFTER, UPGRADE, VARY, WWW_AUTHENTICATE,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::credential::Credential;
use super::decision::{AuthMethod, AuthOutcome, Decision};
use super::key::is_key;
use super::routes::{Access, access};
use super::{Auth, Caller, Refusal};
use crate::client_address::ClientAddress;
use crate::ingress::Ingress;
use crate::ingress::access::Sender;
use crate::ingress::error::ApiError;
use crate::ingress::hosts::names_loopback;
use crate::ingress::origins::is_of_loopback;
use crate::ingress::proxies::is_forwarded;
use crate::page;
use crate::traces::Period;

/// The route whose refusals a browser is told over its WebSocket, since it does not see a status.
const STREAM: &str = "/v1/stream";
/// The same for FastVideo's web UI. Where the operator lets guests in, nobody is asked for a key.
const DREAMVERSE: &str = "/ws";
/// The headers that a page of an allowed site may read besides those that every page may.
const EXPOSED: [HeaderName; 14] = [
    ACCEPT_RANGES,
    CONTENT_DISPOSITION,
    CONTENT_LENGTH,
    CONTENT_RANGE,
    ETAG,
    RETRY_AFTER,
    HeaderName::from_static("idempotent-replayed"),
    HeaderName::from_static("openai-poll-after-ms"),
    HeaderName::from_static("x-inference-time-s"),
    HeaderName::from_static("x-model"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-should-retry"),
    HeaderName::from_static("x-spritesheet"),
    HeaderName::from_static("x-video-id"),
];

/// The routes that pages of other sites could use in the name of their viewer, besides those that change something.
const WEBSOCKETS: [&str; 3] = [STREAM, DREAMVERSE, "/v1/watch"];

/// How long a browser may remember that another site's page may use a route.
const PREFLIGHT_AGE: Duration = Duration::from_secs(3600);

/// By this header a router shows its key with the requests that it passes on.
pub(crate) const ROUTER_KEY: HeaderName = HeaderName::from_static("x-fastvideo-router-key");

/// Returns whether a text is the key of a router.
pub(crate) type IsRouterKey = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// What the guard knows. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Guard {
    pub(crate) auth: Auth,
    pub(crate) ingress: Ingress,
    /// Tells the routers whose orders are taken from anywhere; they were given at the router's machine.
    pub(crate) is_router_key: IsRouterKey,
}

/// What is known of a request before its caller is.
struct Asked<'a> {
    access: Access,
    route: &'a str,
    method: &'a Method,
    headers: &'a HeaderMap,
    query: Option<&'a str>,
    peer: SocketAddr,
    client: ClientAddress,
}

/// Lets a request pass, or answers why not.
pub(crate) async fn guard(
    State(guard): State<Guard>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(route) = request.extensions().get::<MatchedPath>().cloned() else {
        // The fallback answers, which knows nothing.
        return next.run(request).await;
    };
    let route = route.as_str();
    let access = match page::is_file(route) {
        true => Access::Anyone,
        false => match access(route, request.method()) {
            Some(access) => access,
            None => {
                tracing::error!(route, "nobody may use this route: it is not in the table");
                let message = "the server does not know who may use this route";
                let status = StatusCode::FORBIDDEN;
                return ApiError::new(status, "forbidden", message).into_response();
            }
        },
    };
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let ConnectInfo(peer) = *peer.expect("every request has its connection");
    let client = guard
        .ingress
        .rules()
        .proxies
        .client(peer.ip(), request.headers());
    let client = ClientAddress::of(client);
    request.extensions_mut().insert(client);
    let mut sender = Sender {
        id: None,
        address: client,
        gives_order: false,
    };
    // What a browser asks before a request has no key.
    let asks_nobody = matches!(access, Access::Anyone | Access::Router);
    let mut answer = match asks_nobody || request.method() == Method::OPTIONS {
        true => next.run(request).await,
        false => {
            let asked = (access, route, peer);
            guard.pass(request, next, asked, &mut sender).await
        }
    };
    answer.extensions_mut().insert(sender);
    answer
}

impl Guard {
    /// Lets a request pass whose caller may send it, or answers why not. Takes note of who the caller is.
    async fn pass(
        &self,
        mut request: Request,
        next: Next,
        (access, route, peer): (Access, &str, SocketAddr),
        sender: &mut Sender,
    ) -> Response {
        let began = Instant::now();
        let judged = {
            let asked = Asked {
                access,
                route,
                method: request.method(),
                headers: request.headers(),
                query: request.uri().query().filter(|_| route == STREAM),
                peer,
                client: sender.address,
            };
            self.judge(&asked).await
        };
        match judged {
            Ok(caller) => {
                sender.id.clone_from(&caller.id);
                sender.gives_order = is_order(access, request.method());
                if self.auth.asks() {
                    request.extensions_mut().insert(Period::since(began));
                }
                request.extensions_mut().insert(caller);
                next.run(request).await
            }
            Err(refusal) => {
                sender.id.clone_from(&refusal.id);
                let headers = request.headers();
                let is_told = match route {
                    STREAM => headers.contains_key(ORIGIN),
                    DREAMVERSE => true,
                    _ => false,
                };
                let is_site = refusal.outcome != AuthOutcome::Origin;
                if is_told && is_site && headers.contains_key(UPGRADE) {
                    let refused = NotLetIn {
                        is_without_key: refusal.outcome == AuthOutcome::Missing,
                        message: refusal.message(self.auth.asks()),
                        retry_after: refusal.retry_after,
                    };
                    request.extensions_mut().insert(refused);
                    return next.run(request).await;
                }
                self.answer(&refusal, headers)
            }
        }
    }
}

/// What was decided of a request that opens a session: of a browser's, a refusal comes here too, since it is told over the
/// WebSocket.
pub(crate) struct Admission {
    pub(crate) caller: Result<Caller, NotLetIn>,
    /// The time in which the caller's key was checked; `None` where nobody is asked for one.
    pub(crate) checked: Option<Period>,
}

/// Why a browser is not let in.
#[derive(Clone, Debug)]
pub(crate) struct NotLetIn {
    /// Whether the caller has shown no key at all.
    pub(crate) is_without_key: bool,
    /// Safe to show.
    pub(crate) message: String,
    /// When another try may succeed; `None` where it will not.
    pub(crate) retry_after: Option<Duration>,
}

impl<S: Send + Sync> FromRequestParts<S> for Admission {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        if let Some(refused) = parts.extensions.get::<NotLetIn>() {
            return Ok(Self {
                caller: Err(refused.clone()),
                checked: None,
            });
        }
        let checked = parts.extensions.get::<Period>().copied();
        let caller = parts.extensions.get::<Caller>().cloned();
        let missing = || ApiError::new(StatusCode::FORBIDDEN, "forbidden", "nobody was let in");
        let caller = caller.map(Ok).ok_or_else(missing)?;
        Ok(Self { caller, checked })
    }
}

impl Guard {
    /// Lets the pages of allowed sites read what they ask for.
    pub(crate) fn cross_origin(&self) -> CorsLayer {
        let guard = self.clone();
        CorsLayer::new()
            .allow_origin(AllowOrigin::predicate(move |origin, _| {
                guard.allows(origin)
            }))
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
            // Those that a page sets by itself or by OpenAI's package.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(EXPOSED)
            .max_age(PREFLIGHT_AGE)
    }

    /// Decides whether a request passes, and tells the log and the counters.
    async fn judge(&self, asked: &Asked<'_>) -> Result<Caller, Refusal> {
        let judged = self.decide(asked).await;
        let (method, outcome, id, tenant) = match &judged {
            Ok(caller) => (
                caller.method,
                AuthOutcome::Ok,
                caller.id.clone(),
                caller.tenant.clone(),
            ),
            Err(refusal) => (refusal.method, refusal.outcome, refusal.id.clone(), None),
        };
        let decision = Decision {
            method,
            outcome,
            id,
            tenant,
            address: asked.client,
            order: is_order(asked.access, asked.method)
                .then(|| format!("{} {}", asked.method, asked.route)),
        };
        decision.emit(self.auth.counts());
        judged
    }

    async fn decide(&self, asked: &Asked<'_>) -> Result<Caller, Refusal> {
        if !self.auth.asks() {
            return self.decide_without_keys(asked);
        }
        let credential = Credential::of(asked.headers, asked.query);
        // A viewer's bearer is the token of a session.
        if asked.access == Access::Token && !credential.is_key() {
            return match self.is_of_another_site(asked, None) {
                true => Err(Refusal::of(AuthMethod::None, AuthOutcome::Origin)),
                false => Ok(Caller::anyone()),
            };
        }
        let caller = match self.auth.identify(&credential, asked.client).await {
            // Who shows no key may be a guest there, but not in another site's page.
            Err(_) if asked.route == DREAMVERSE && self.is_of_another_site(asked, None) => {
                return Err(Refusal::of(AuthMethod::None, AuthOutcome::Origin));
            }
            identified => identified?,
        };
        let refused = |outcome| Refusal {
            id: caller.id.clone(),
            ..Refusal::of(caller.method, outcome)
        };
        if !caller.may(asked.access) {
            return Err(refused(AuthOutcome::Role));
        }
        if self.is_of_another_site(asked, Some(&caller)) {
            return Err(refused(AuthOutcome::Origin));
        }
        Ok(caller)
    }

    /// Nobody is asked for a key: only orders are for few.
    fn decide_without_keys(&self, asked: &Asked<'_>) -> Result<Caller, Refusal> {
        let refused = |outcome| Err(Refusal::of(AuthMethod::None, outcome));
        let is_open =
            WEBSOCKETS.contains(&asked.route) && self.ingress.rules().any_origin_may_stream;
        if !is_open && self.is_of_another_site(asked, None) {
            return refused(AuthOutcome::Origin);
        }
        let is_order = asked.access == Access::Admin && changes_state(asked.method);
        if is_order && !self.is_of_this_machine(asked) {
            return refused(AuthOutcome::Missing);
        }
        Ok(Caller::anyone())
    }

    /// Returns whether an order comes from this machine: an address that points here, a name that does, and nobody between.
    /// A router has judged by the same rule what it passes on.
    fn is_of_this_machine(&self, asked: &Asked<'_>) -> bool {
        let router_key = asked.headers.get(ROUTER_KEY);
        let router_key = router_key.and_then(|key| key.to_str().ok());
        if router_key.is_some_and(|key| (self.is_router_key)(key)) {
            return true;
        }
        asked.peer.ip().to_canonical().is_loopback()
            && names_loopback(asked.headers)
            && !is_forwarded(asked.headers)
    }

    /// Returns whether the page of another site sends a request that it must not: one that changes something, or begins a
    /// WebSocket. A site may be that of the caller's key or, where the caller shows none, of any key. Where nobody is asked
    /// for one, a server on a loopback address is there for all pages of this machine.
    fn is_of_another_site(&self, asked: &Asked<'_>, caller: Option<&Caller>) -> bool {
        let headers = asked.headers;
        if !changes_state(asked.method) && !WEBSOCKETS.contains(&asked.route) {
            return false;
        }
        let allowed = |origin| match caller {
            Some(caller) => caller.origins.allow(origin),
            None if !self.auth.asks() => {
                self.ingress.hosts.are_loopback() && is_of_loopback(origin)
            }
            None => self.auth.keys().allow(origin),
        };
        let is_one = headers.get_all(ORIGIN).iter().nth(1).is_none();
        let is_allowed = is_one && headers.get(ORIGIN).is_some_and(allowed);
        !is_allowed && self.ingress.rules().origins.foreign(headers).is_some()
    }

    /// Answers a request that does not pass.
    fn answer(&self, refusal: &Refusal, headers: &HeaderMap) -> Response {
        let mut answer = match refusal.outcome {
            AuthOutcome::Origin => {
                let origin = self
                    .ingress
                    .rules()
                    .origins
                    .foreign(headers)
                    .unwrap_or_default();
                ApiError::other_site(&origin)
            }
            _ => {
                let (status, code) = refusal.status(self.auth.asks());
                ApiError::new(status, code, refusal.message(self.auth.asks()))
            }
        }
        .into_response();
        let answered = answer.headers_mut();
        if answer_is_unauthorized(refusal, self.auth.asks()) {
            answered.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = refusal.retry_after {
            answered.insert(RETRY_AFTER, seconds(wait).into());
        }
        // The page of an allowed site can read what is wrong.
        if let Some(origin) = headers.get(ORIGIN)
            && self.allows(origin)
        {
            answered.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            answered.insert(VARY, HeaderValue::from_static("origin"));
        }
        answer
    }

    /// Returns whether pages of that site may use the server, with any of the keys.
    pub(crate) fn allows(&self, origin: &HeaderValue) -> bool {
        self.ingress.rules().origins.allow(origin) || self.auth.keys().allow(origin)
    }
}

fn answer_is_unauthorized(refusal: &Refusal, asks: bool) -> bool {
    refusal.status(asks).0 == StatusCode::UNAUTHORIZED
}

/// Returns whether a request is an operator's order, or takes something away.
fn is_order(access: Access, method: &Method) -> bool {
    changes_state(method) && (access == Access::Admin || *method == Method::DELETE)
}

/// Returns whether a request of this method may change something.
pub(super) fn changes_state(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD)
}

/// Returns whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

impl Credential<'_> {
    /// Returns whether this is the key of a client, and not the token of a session.
    fn is_key(&self) -> bool {
        matches!(self, Self::Bearer(text) if is_key(text))
    }
}

impl Refusal {
    /// Returns the status and the stable name of the answer.
    pub(crate) fn status(&self, asks: bool) -> (StatusCode, &'static str) {
        match self.outcome {
            AuthOutcome::Role => (StatusCode::FORBIDDEN, "forbidden"),
            AuthOutcome::Origin => (StatusCode::FORBIDDEN, "other_site"),
            AuthOutcome::Limited => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            AuthOutcome::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "auth_unavailable"),
            AuthOutcome::Missing if !asks => (StatusCode::FORBIDDEN, "local_only"),
            AuthOutcome::Ok
            | AuthOutcome::Missing
            | AuthOutcome::Unknown
            | AuthOutcome::Expired
            | AuthOutcome::Invalid => (StatusCode::UNAUTHORIZED, "unauthorized"),
        }
    }

    /// Returns what the caller is told.
    pub(crate) fn message(&self, asks: bool) -> String {
        let ticket = self.method == AuthMethod::Ticket;
        match self.outcome {
            AuthOutcome::Missing if !asks => "without `server.auth.keys_file` orders are taken from this machine alone: over a loopback address, by a loopback name, and through no proxy".to_owned(),
            AuthOutcome::Missing => "a key is needed: `Authorization: Bearer KEY`, or the subprotocols `fastvideo.v1, fastvideo.key.KEY` of a WebSocket; a key in the address is not looked at".to_owned(),
            AuthOutcome::Unknown if ticket => "the ticket was used, or its key is not valid any more".to_owned(),
            AuthOutcome::Expired if ticket => "the ticket, or its key, has expired".to_owned(),
            AuthOutcome::Unknown => "there is no such key".to_owned(),
            AuthOutcome::Expired if self.method == AuthMethod::Jwt => "the token has expired".to_owned(),
            AuthOutcome::Expired => "the key has expired".to_owned(),
            AuthOutcome::Invalid => "what was shown is no key, token or ticket of this server".to_owned(),
            AuthOutcome::Role => "the role of this key does not suffice".to_owned(),
            AuthOutcome::Limited => "too many wrong keys from your address; right ones still work".to_owned(),
            AuthOutcome::Unavailable => "this cannot be checked at the moment; try again soon".to_owned(),
            AuthOutcome::Origin | AuthOutcome::Ok => "pages of that site are not served".to_owned(),
        }
    }
}
