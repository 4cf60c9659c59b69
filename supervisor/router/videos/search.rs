//! Asks servers for a video, or to make one, one after the other.
//!
//! Servers either share a store, and then any of them answers for all of its videos, or each has its own. So a server that does
//! not know a video speaks for its store, and a server that does not answer leaves open whether its store has the video, unless
//! another one with that store was asked.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::Response;
use tokio::time::sleep;

use crate::ingress::extract::Body;
use crate::ingress::openai::VideoError;
use crate::router::app::App;
use crate::router::proxy::{Asked, IDEMPOTENCY_KEY, passed, refusal};
use crate::router::registry::Replica;

/// How long the body of a request is kept for another server, once it goes to one: by then that has refused it, if it does.
/// What it has taken may be answered much later.
const KEEP_BODY: Duration = Duration::from_secs(10);
/// When clients should come back for what no server can answer now.
const PAUSE: Duration = Duration::from_secs(2);

/// What servers are asked for, besides the body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    pub(super) method: &'a Method,
    pub(super) target: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) purpose: Purpose,
}

/// What may be done about a server that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The request finds or ends a video: it may be sent to any other server.
    Find,
    /// The request makes a video: it goes to no other server once one may have taken it.
    Make,
    /// The request makes a video under an idempotency key: the store of the first server that could take it is the only one in
    /// which the key is looked for.
    MakeInOneStore,
}

/// An answer, and the server that knows the video; none where all have refused.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) server: Option<Arc<Replica>>,
    pub(super) answer: Response,
}

/// What a server's answer means for the others.
#[derive(Debug)]
enum Verdict {
    /// It is the client's.
    Final(Response),
    /// The server's store does not have the video.
    Unknown(Response),
    /// The server does not make videos, or has another model.
    Unserved(Response),
    /// The server can do nothing now, and has done nothing.
    Busy(Response),
    /// There is none. The server may have done what it was asked for.
    Lost,
    /// There is none, and the server has not got the request.
    Unreached,
}

/// What the servers have said so far.
#[derive(Debug, Default)]
struct Search {
    /// The stores that do not have the video.
    without: Vec<String>,
    /// The stores of servers that can say nothing now.
    unsure: Vec<String>,
    /// What the first of these has said, and its store.
    busy: Option<(String, Response)>,
    unknown: Option<Response>,
    unserved: Option<Response>,
}

/// Asks servers, in this order, until one has an answer. The body is sent to each of them.
///
/// # Errors
/// Returns a refusal when no server is there, or one of which it depends does not answer.
pub(super) async fn search(
    app: &App,
    servers: Vec<Arc<Replica>>,
    wish: Wish<'_>,
    mut body: Option<Body>,
) -> Result<Found, VideoError> {
    let has_body = body.is_some();
    let mut search = Search::default();
    for server in servers {
        let store = server.store();
        if search.rules_out(&store, wish.purpose) {
            continue;
        }
        match ask(app, &server, wish, &mut body).await {
            Verdict::Final(answer) => {
                let server = Some(server);
                return Ok(Found { server, answer });
            }
            Verdict::Lost if wish.purpose != Purpose::Find => return Err(lost(wish.headers)),
            verdict => search.hear(store, verdict),
        }
        if has_body && body.is_none() {
            break;
        }
    }
    let answer = search.end()?;
    Ok(Found {
        server: None,
        answer,
    })
}

impl Search {
    /// Returns whether a server need not, or must not, be asked.
    fn rules_out(&self, store: &str, purpose: Purpose) -> bool {
        let is_other = |unsure: &String| unsure != store;
        let is_bound =
            purpose == Purpose::MakeInOneStore && self.unsure.first().is_some_and(is_other);
        is_bound || self.without.iter().any(|without| without == store)
    }

    fn hear(&mut self, store: String, verdict: Verdict) {
        match verdict {
            Verdict::Unknown(answer) => {
                self.without.push(store);
                self.unknown.get_or_insert(answer);
            }
            // That there is no such model says more than that there is no such route.
            Verdict::Unserved(answer) if answer.status() == StatusCode::BAD_REQUEST => {
                self.unserved = Some(answer);
            }
            Verdict::Unserved(answer) => {
                self.unserved.get_or_insert(answer);
            }
            Verdict::Busy(answer) => {
                self.busy.get_or_insert((store.clone(), answer));
                self.unsure.push(store);
            }
            Verdict::Lost | Verdict::Unreached => self.unsure.push(store),
            Verdict::Final(_) => unreachable!("it ends the search"),
        }
    }

    /// Returns the answer where no server had one.
    fn end(self) -> Result<Response, VideoError> {
        let is_open = |store: &String| !self.without.contains(store);
        if let Some((_, answer)) = self.busy.filter(|(store, _)| is_open(store)) {
            return Ok(answer);
        }
        if self.unsure.iter().any(is_open) {
            return Err(away());
        }
        self.unknown.or(self.unserved).ok_or_else(nobody)
    }
}

/// Asks a server, for as long as it is well.
async fn ask(app: &App, server: &Arc<Replica>, wish: Wish<'_>, body: &mut Option<Body>) -> Verdict {
    if !server.is_healthy() {
        return Verdict::Unreached;
    }
    if wish.purpose != Purpose::Find {
        app.registry.video_asked(server);
    }
    let bytes = body.as_ref().map(|body| body.bytes.clone());
    let answer = async {
        tokio::select! {
            answer = send(app, server, wish, bytes.unwrap_or_default()) => Some(answer),
            () = app.registry.until_lost(server) => None,
        }
    };
    tokio::pin!(answer);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        () = sleep(KEEP_BODY), if body.is_some() => {
            *body = None;
            answer.await
        }
    };
    match answer {
        Some(Ok(answer)) => verdict(answer, wish.purpose).await,
        Some(Err(error)) if error.is_connect() => Verdict::Unreached,
        Some(Err(_)) | None => Verdict::Lost,
    }
}

async fn send(
    app: &App,
    server: &Replica,
    wish: Wish<'_>,
    body: Bytes,
) -> reqwest::Result<reqwest::Response> {
    let asked = Asked {
        method: wish.method,
        target: wish.target,
        headers: wish.headers,
        body,
    };
    let answer = app.proxy.ask(server, asked).await?;
    if wish.method != Method::HEAD || answer.status() != StatusCode::NOT_FOUND {
        return Ok(answer);
    }
    // Only a body tells what was not found.
    let asked = Asked {
        method: &Method::GET,
        target: wish.target,
        headers: wish.headers,
        body: Bytes::new(),
    };
    app.proxy.ask(server, asked).await
}

async fn verdict(answer: reqwest::Response, purpose: Purpose) -> Verdict {
    match answer.status() {
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::TOO_MANY_REQUESTS => {
            let (code, answer) = refusal(answer).await;
            match (answer.status(), code.as_deref().unwrap_or_default()) {
                (StatusCode::NOT_FOUND, "video_not_found") => Verdict::Unknown(answer),
                (StatusCode::NOT_FOUND, "video_not_ready" | "video_failed") => {
                    Verdict::Final(answer)
                }
                (StatusCode::NOT_FOUND, _) | (_, "model_not_found") => Verdict::Unserved(answer),
                (_, "queue_full") => Verdict::Busy(answer),
                _ => Verdict::Final(answer),
            }
        }
        StatusCode::SERVICE_UNAVAILABLE => Verdict::Busy(passed(answer)),
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT if purpose == Purpose::Find => {
            Verdict::Busy(passed(answer))
        }
        _ => Verdict::Final(passed(answer)),
    }
}

/// Answers that a server was lost that may have taken a request with these headers.
pub(super) fn lost(headers: &HeaderMap) -> VideoError {
    let message = "the server was lost before it answered; it may have taken the request";
    let lost = VideoError::new(StatusCode::BAD_GATEWAY, "server_lost", message);
    // Without a key, a second request could make a second video.
    match headers.contains_key(IDEMPOTENCY_KEY) {
        true => lost,
        false => lost.never_retry(),
    }
}

/// Answers that a server does not answer that may have, or has to make, the video.
pub(super) fn away() -> VideoError {
    let message = "a server on which this depends does not answer; try again soon";
    let status = StatusCode::SERVICE_UNAVAILABLE;
    VideoError::new(status, "server_unreachable", message).retry_after(PAUSE)
}

/// Answers that there is no server.
fn nobody() -> VideoError {
    let message = "no server answers; try again soon";
    let status = StatusCode::SERVICE_UNAVAILABLE;
    VideoError::new(status, "no_healthy_replica", message).retry_after(PAUSE)
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    /// The store of a server, and what it says.
    type Says = (&'static str, fn() -> Verdict);

    fn said(status: u16) -> Response {
        StatusCode::from_u16(status).unwrap().into_response()
    }

    fn unknown() -> Verdict {
        Verdict::Unknown(said(404))
    }

    fn without_route() -> Verdict {
        Verdict::Unserved(said(404))
    }

    fn other_model() -> Verdict {
        Verdict::Unserved(said(400))
    }

    fn busy() -> Verdict {
        Verdict::Busy(said(503))
    }

    fn unreached() -> Verdict {
        Verdict::Unreached
    }

    /// Lets servers say something in turn, each of which is named by its store. Returns the stores of those that were asked, and
    /// how the search ended.
    fn end(purpose: Purpose, servers: &[Says]) -> (String, Result<u16, String>) {
        let mut search = Search::default();
        let mut asked = String::new();
        for (store, verdict) in servers {
            if !search.rules_out(store, purpose) {
                asked.push_str(store);
                search.hear((*store).to_owned(), verdict());
            }
        }
        let end = search.end().map(|answer| answer.status().as_u16());
        (asked, end.map_err(|error| error.parts().0.to_owned()))
    }

    #[test]
    fn a_video_is_missing_only_where_all_stores_have_said_so() {
        let check = |servers: &[Says], asked: &str, expected: Result<u16, &str>| {
            let expected = (asked.to_owned(), expected.map_err(str::to_owned));
            assert_eq!(end(Purpose::Find, servers), expected);
        };
        let away = Err("server_unreachable");
        check(&[], "", Err("no_healthy_replica"));
        check(&[("a", unknown), ("b", unknown)], "ab", Ok(404));
        check(&[("a", unknown), ("b", unreached)], "ab", away);
        check(&[("a", unreached), ("b", unknown)], "ab", away);
        // One server speaks for all with its store.
        check(&[("a", unreached), ("a", unknown)], "aa", Ok(404));
        check(&[("a", unknown), ("a", unreached)], "a", Ok(404));
        check(&[("a", busy), ("a", unknown)], "aa", Ok(404));
        check(&[("a", busy), ("b", unknown)], "ab", Ok(503));
        check(&[("a", without_route), ("b", unknown)], "ab", Ok(404));
        check(&[("a", without_route), ("b", unreached)], "ab", away);
        check(&[("a", without_route)], "a", Ok(404));
    }

    #[test]
    fn a_video_is_made_by_whoever_can() {
        let check = |purpose, servers: &[Says], asked: &str, expected| {
            let expected: Result<u16, &str> = expected;
            let expected = (asked.to_owned(), expected.map_err(str::to_owned));
            assert_eq!(end(purpose, servers), expected);
        };
        let away = Err("server_unreachable");
        let make = Purpose::Make;
        check(make, &[("a", busy), ("b", unreached)], "ab", Ok(503));
        check(make, &[("a", unreached), ("b", other_model)], "ab", away);
        check(
            make,
            &[("a", other_model), ("b", without_route)],
            "ab",
            Ok(400),
        );
        check(
            make,
            &[("a", without_route), ("b", other_model)],
            "ab",
            Ok(400),
        );
        // A key is looked for in one store.
        let make = Purpose::MakeInOneStore;
        check(make, &[("a", unreached), ("b", busy)], "a", away);
        check(make, &[("a", busy), ("b", unreached)], "a", Ok(503));
        check(
            make,
            &[("a", unreached), ("a", busy), ("b", busy)],
            "aa",
            Ok(503),
        );
        check(
            make,
            &[("a", other_model), ("b", busy), ("c", busy)],
            "ab",
            Ok(503),
        );
    }
}
