//! The guard against DNS rebinding: rejects requests that address the server by a name that is not its own.
//!
//! A page of `attacker.example` can let that name point to a loopback address; to the browser, the server is then the
//! page's own site. What the page cannot do is to change the name in `Host`.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use crate::current::Current;

/// What a list of names must be.
pub(crate) const EXPECTED: &str = "host names without a port, or `*`";

/// The names that the operator allows, in lower case; `*` is any name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNames(Vec<String>);

impl HostNames {
    /// Parses names that are separated by commas. Returns `None` when one of them is no name.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let names = text.split(',').map(str::trim).filter(|n| !n.is_empty());
        let name = |name: &str| match name {
            "*" => Some(name.to_owned()),
            _ if name.parse::<IpAddr>().is_ok() => Some(name.to_lowercase()),
            _ => {
                let authority: Authority = name.parse().ok()?;
                authority.port().is_none().then(|| plain(&authority))?
            }
        };
        names.map(name).collect::<Option<_>>().map(Self)
    }
}

/// The names by which clients may address the server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    /// What the server was told to listen on, in lower case.
    host: Arc<str>,
    /// Whether the server listens on a loopback address.
    is_loopback: bool,
    /// What the operator allows.
    allowed: Current<Option<HostNames>>,
}

impl Hosts {
    /// Creates the guard of a server that was told to listen on `host` and does so on `address`.
    pub(crate) fn new(allowed: Option<HostNames>, host: &str, address: IpAddr) -> Self {
        Self {
            host: host.to_lowercase().into(),
            is_loopback: address.to_canonical().is_loopback(),
            allowed: Current::new(allowed),
        }
    }

    /// Allows these names from now on, and no others.
    pub(crate) fn allow(&self, allowed: Option<HostNames>) {
        self.allowed.replace(allowed);
    }

    /// Returns whether the server listens on a loopback address.
    pub(crate) fn are_loopback(&self) -> bool {
        self.is_loopback
    }

    /// Returns the first name in a request that is not one of the server's. Programs other than browsers may leave out
    /// the name.
    fn foreign_name(&self, request: &Request) -> Option<String> {
        let allowed = self.allowed.get();
        let allowed = allowed.as_ref().as_ref();
        let any = allowed.map_or(!self.is_loopback, |HostNames(names)| {
            names.iter().any(|name| name == "*")
        });
        if any {
            return None;
        }
        let in_target = request.uri().authority().map(Authority::as_str);
        let in_headers = request.headers().get_all(HOST);
        let given = in_headers.iter().map(|value| value.as_bytes());
        let mut given = in_target.map(str::as_bytes).into_iter().chain(given);
        let foreign = given.find(|name| !self.accept(name, allowed));
        foreign.map(|name| String::from_utf8_lossy(name).into_owned())
    }

    fn accept(&self, given: &[u8], allowed: Option<&HostNames>) -> bool {
        let Some(name) = Authority::try_from(given).ok().and_then(|a| plain(&a)) else {
            return false;
        };
        let is_allowed = allowed.is_some_and(|HostNames(names)| names.contains(&name));
        if is_allowed || *self.host == *name || name == "localhost" || name.ends_with(".localhost")
        {
            return true;
        }
        match name.parse::<IpAddr>() {
            // An address cannot be made to point elsewhere, and probes use it.
            Ok(address) => !self.is_loopback || address.to_canonical().is_loopback(),
            Err(_) => false,
        }
    }
}

/// Returns the host in the form in which it is compared: lower case, without port, brackets and the root's dot. Returns
/// `None` for what is no host.
fn plain(authority: &Authority) -> Option<String> {
    if authority.as_str().contains('@') {
        return None;
    }
    let host = authority.host();
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    let host = host.strip_suffix('.').unwrap_or(host);
    (!host.is_empty()).then(|| host.to_lowercase())
}

/// Returns whether a request names this machine by a name that points to it everywhere, or by none. Programs other than
/// browsers may leave out the name.
pub(crate) fn names_loopback(headers: &HeaderMap) -> bool {
    headers.get_all(HOST).iter().all(|given| {
        let authority = Authority::try_from(given.as_bytes()).ok();
        let name = authority.and_then(|authority| plain(&authority));
        name.is_some_and(|name| is_loopback(&name))
    })
}

/// Returns whether a plain name is one of the loopback address.
pub(crate) fn is_loopback(name: &str) -> bool {
    let address = name.parse::<IpAddr>();
    name == "localhost"
        || name.ends_with(".localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Rejects a request that names another host.
pub(crate) async fn guard(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    let Some(name) = hosts.foreign_name(&request) else {
        return next.run(request).await;
    };
    let name: String = name.chars().take(100).collect();
    let message = format!(
        "this server does not answer to the name {name:?}; if it is one of its names, add it to `server.allowed_hosts`"
    );
    ApiError::new(
        StatusCode::MISDIRECTED_REQUEST,
        "misdirected_request",
        message,
    )
    .into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn hosts(allowed: Option<&str>, host: &str, address: &str) -> Hosts {
        let allowed = allowed.map(|names| HostNames::parse(names).unwrap());
        Hosts::new(allowed, host, address.parse().unwrap())
    }

    #[track_caller]
    fn check(hosts: &Hosts, accepted: &[&str], refused: &[&str]) {
        let is_foreign = |name: &str| {
            let request = Request::builder().header(HOST, name).body(Body::empty());
            hosts.foreign_name(&request.unwrap()).is_some()
        };
        for name in accepted {
            assert!(!is_foreign(name), "{name}");
        }
        for name in refused {
            assert!(is_foreign(name), "{name}");
        }
    }

    const LOOPBACK: &[&str] = &[
        "localhost",
        "LOCALHOST:8000",
        "localhost.",
        "app.localhost:9",
        "127.0.0.1:8000",
        "127.9.9.9",
        "[::1]",
        "[::1]:8000",
        "[::ffff:127.0.0.1]",
    ];
    const FOREIGN: &[&str] = &[
        "attacker.example",
        "attacker.example:8000",
        "localhost.attacker.example",
        "127.0.0.1.attacker.example",
        "notlocalhost",
        "a@localhost",
        "",
        "localhost localhost",
    ];

    #[test]
    fn on_a_loopback_address_the_server_has_the_names_of_that_and_no_other() {
        check(&hosts(None, "127.0.0.1", "127.0.0.1"), LOOPBACK, FOREIGN);
        check(
            &hosts(None, "::1", "::1"),
            LOOPBACK,
            &[FOREIGN, &["192.0.2.1"]].concat(),
        );
        check(&hosts(None, "Desk", "127.0.0.1"), &["desk:8000"], FOREIGN);
    }

    #[test]
    fn names_that_the_operator_allows_are_accepted() {
        let named = hosts(Some("video.example.org, Other"), "127.0.0.1", "127.0.0.1");
        let own = ["Video.Example.org", "other:1", "localhost"];
        check(&named, &own, &[FOREIGN, &["example.org"]].concat());
        check(&hosts(Some("*"), "127.0.0.1", "127.0.0.1"), FOREIGN, &[]);
    }

    #[test]
    fn on_other_addresses_any_name_is_accepted_unless_the_operator_names_some() {
        check(&hosts(None, "0.0.0.0", "0.0.0.0"), FOREIGN, &[]);
        let named = hosts(Some("video.example.org,"), "0.0.0.0", "0.0.0.0");
        let own = [
            "video.example.org:8000",
            "192.0.2.1:8000",
            "[2001:db8::1]",
            "localhost",
        ];
        check(&named, &own, FOREIGN);
    }

    #[test]
    fn a_name_in_the_target_counts_and_no_name_is_accepted() {
        let hosts = hosts(None, "127.0.0.1", "127.0.0.1");
        let request = |uri: &'static str| Request::builder().uri(uri).body(Body::empty()).unwrap();
        assert_eq!(hosts.foreign_name(&request("/status")), None);
        let absolute = request("http://attacker.example/status");
        assert_eq!(hosts.foreign_name(&absolute).unwrap(), "attacker.example");
    }

    #[test]
    fn what_is_no_name_is_refused_in_the_configuration() {
        for text in ["a:80", "http://a", "a b", "a/b", "a@b"] {
            assert_eq!(HostNames::parse(text), None, "{text}");
        }
        let parsed = HostNames::parse("A, ::1,[::2],").unwrap();
        assert_eq!(parsed.0, ["a", "::1", "::2"]);
    }
}
