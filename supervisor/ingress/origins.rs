//! Which sites' pages may send orders to the server.

use std::sync::Arc;

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::hosts::is_loopback;

/// What a list of origins must be.
pub(crate) const EXPECTED: &str = "origins such as https://video.example.org";

/// How a browser says from where a request comes, where the server's address begins with `https` or is a loopback one.
pub(crate) const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Origins that the operator allows besides the server's own one. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(Arc<[String]>);

impl Origins {
    /// Parses origins that are separated by commas. Returns `None` when one of them is no origin.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let items = text.split(',').map(str::trim).filter(|o| !o.is_empty());
        items.map(bare).collect::<Option<_>>().map(Self)
    }

    /// Returns whether a text is an origin, and nothing more.
    pub fn is_origin(text: &str) -> bool {
        bare(text).is_some()
    }

    /// Returns whether an origin is in the list.
    pub(crate) fn allow(&self, origin: &HeaderValue) -> bool {
        let origin = origin.to_str().ok().and_then(plain);
        origin.is_some_and(|origin| self.0.contains(&origin))
    }

    /// Returns the origin of a request that the page of another site sends; `None` for requests of the server's own
    /// page, of allowed origins, and of programs other than browsers, which send neither `Origin` nor `Sec-Fetch-Site`.
    ///
    /// A proxy may change `Host`, but leaves `Sec-Fetch-Site`, which no page can forge. Without it the origin has to be
    /// the host that the request names. The origin `null` is that of no site.
    pub(crate) fn foreign(&self, headers: &HeaderMap) -> Option<String> {
        let mut origins = headers.get_all(ORIGIN).iter();
        let origin = origins
            .next()
            .map(|o| String::from_utf8_lossy(o.as_bytes()));
        let is_one = origins.next().is_none();
        let allowed = origin.as_deref().and_then(plain);
        if is_one && allowed.is_some_and(|origin| self.0.contains(&origin)) {
            return None;
        }
        let is_own = match headers.get(SEC_FETCH_SITE) {
            Some(site) => matches!(site.as_bytes(), b"same-origin" | b"none"),
            None => match &origin {
                Some(origin) => is_one && is_of_host(origin, headers),
                None => true,
            },
        };
        let origin = || origin.map_or("another site".to_owned(), |o| o.into_owned());
        (!is_own).then(origin)
    }
}

/// Returns whether an origin is that of pages of this machine.
pub(crate) fn is_of_loopback(origin: &HeaderValue) -> bool {
    let url = origin
        .to_str()
        .ok()
        .and_then(|origin| Url::parse(origin).ok());
    let host = url.as_ref().and_then(Url::host_str);
    host.is_some_and(|host| is_loopback(host.trim_start_matches('[').trim_end_matches(']')))
}

/// Returns the plain form of what is an origin and nothing more.
fn bare(item: &str) -> Option<String> {
    let url = Url::parse(item).ok()?;
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    let has_user = !url.username().is_empty() || url.password().is_some();
    (is_bare && !has_user).then(|| plain(item))?
}

/// Returns the origin in lower case and without the default port; `None` for `null` and everything else that has no
/// host.
fn plain(origin: &str) -> Option<String> {
    let origin = Url::parse(origin).ok()?.origin();
    origin.is_tuple().then(|| origin.ascii_serialization())
}

fn is_of_host(origin: &str, headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let (Some((scheme, _)), Some(host)) = (origin.split_once("://"), host) else {
        return false;
    };
    let own = plain(&format!("{scheme}://{host}"));
    own.is_some() && own == plain(origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers, and whether they are those of another site's page.
    #[track_caller]
    fn check(allowed: &str, headers: &[(HeaderName, &str)], is_foreign: bool) {
        let origins = Origins::parse(allowed).unwrap();
        let headers = headers.iter().map(|(name, value)| {
            let value = axum::http::HeaderValue::from_bytes(value.as_bytes());
            (name.clone(), value.unwrap())
        });
        let headers: Vec<_> = headers.collect();
        let mut map = HeaderMap::new();
        for (name, value) in &headers {
            map.append(name, value.clone());
        }
        assert_eq!(origins.foreign(&map).is_some(), is_foreign, "{headers:?}");
    }

    fn origin(value: &str) -> (HeaderName, &str) {
        (ORIGIN, value)
    }

    fn host(value: &str) -> (HeaderName, &str) {
        (HOST, value)
    }

    fn site(value: &str) -> (HeaderName, &str) {
        (SEC_FETCH_SITE, value)
    }

    #[test]
    fn what_the_browser_says_of_the_site_is_trusted() {
        let behind_proxy = [host("127.0.0.1:8000"), origin("https://video.example.org")];
        let with = |value| [&behind_proxy[..], &[site(value)]].concat();
        check("", &with("same-origin"), false);
        check("", &with("none"), false);
        for foreign in ["cross-site", "same-site", "Same-Origin", ""] {
            check("", &with(foreign), true);
        }
        check("", &[host("a"), site("cross-site")], true);
        check("", &[host("a"), origin("null"), site("same-origin")], false);
    }

    #[test]
    fn without_it_the_origin_is_compared_with_the_host() {
        for (of_page, named) in [
            ("http://a:8000", "a:8000"),
            ("http://A.example", "a.Example:80"),
            ("https://a.example", "a.example"),
            ("https://a.example", "a.example:443"),
            ("http://[::1]:8000", "[::1]:8000"),
        ] {
            check("", &[host(named), origin(of_page)], false);
        }
        for (of_page, named) in [
            ("http://b", "a"),
            ("http://a:1", "a:2"),
            ("https://a", "a:80"),
            ("null", "a"),
            ("null", "null"),
            ("", "a"),
            ("chrome-extension://a", "a"),
            ("a", "a"),
            ("http://é", "é"),
        ] {
            check("", &[host(named), origin(of_page)], true);
        }
        check("", &[host("a")], false);
        check("", &[], false);
        check(
            "",
            &[host("a"), origin("http://a"), origin("http://b")],
            true,
        );
        check("", &[origin("http://a")], true);
    }

    #[test]
    fn pages_of_this_machine_are_known_by_their_host() {
        let check = |origin: &'static str, expected| {
            let origin = HeaderValue::from_static(origin);
            assert_eq!(is_of_loopback(&origin), expected, "{origin:?}");
        };
        for own in [
            "http://localhost:3000",
            "https://app.localhost",
            "http://127.0.0.2",
            "http://[::1]:3000",
        ] {
            check(own, true);
        }
        for other in [
            "http://localhost.example",
            "http://192.0.2.1",
            "null",
            "localhost",
        ] {
            check(other, false);
        }
    }

    #[test]
    fn origins_that_the_operator_allows_are_those_of_no_other_site() {
        let allowed = "https://video.example.org:443, http://B:8080/";
        for of_page in [
            "https://video.example.org",
            "http://b:8080",
            "HTTP://b:8080",
        ] {
            check(allowed, &[host("a"), origin(of_page)], false);
            check(
                allowed,
                &[host("a"), origin(of_page), site("cross-site")],
                false,
            );
        }
        for of_page in ["http://video.example.org", "http://b", "null"] {
            check(allowed, &[host("a"), origin(of_page)], true);
        }
        for wrong in [
            "video.example.org",
            "null",
            "*",
            "https://a/path",
            "https://u@a",
            "file:///a",
        ] {
            assert_eq!(Origins::parse(wrong), None, "{wrong}");
        }
    }
}
