//! What a request shows to be let in.

use axum::http::{HeaderMap, HeaderValue};

use crate::ingress::extract::bearer;
use crate::ingress::websocket::protocols;

/// What a subprotocol begins with that is no protocol, but shows a key: pages cannot set headers.
const KEY_PROTOCOL: &str = "fastvideo.key.";

/// What a request shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Credential<'a> {
    None,
    /// A key, or a token.
    Bearer(&'a str),
    Ticket(&'a str),
}

impl<'a> Credential<'a> {
    /// Reads what a request shows. A header comes before a subprotocol, and that before a ticket; `query` is that of a route
    /// that takes tickets. A key in an address is none: addresses are in logs and histories.
    pub(super) fn of(headers: &'a HeaderMap, query: Option<&'a str>) -> Self {
        if let Some(key) = bearer(headers) {
            return Self::Bearer(key);
        }
        if let Some(key) = protocols(headers).find_map(|it| it.strip_prefix(KEY_PROTOCOL)) {
            return Self::Bearer(key);
        }
        let fields = query.unwrap_or_default().split('&');
        // A ticket consists of characters that need no escape.
        let ticket = fields.filter_map(|it| it.strip_prefix("ticket=")).next();
        ticket.map_or(Self::None, Self::Ticket)
    }
}

/// Returns the key that a request shows, as the value of `Authorization`.
pub(crate) fn shown_key(headers: &HeaderMap) -> Option<HeaderValue> {
    let Credential::Bearer(key) = Credential::of(headers, None) else {
        return None;
    };
    let mut value = HeaderValue::try_from(format!("Bearer {key}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use axum::http::HeaderName;
    use axum::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};

    use super::*;

    fn headers(given: &[(HeaderName, &str)]) -> HeaderMap {
        let given = given.iter();
        given
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn a_key_is_read_from_the_header_or_the_subprotocol_and_a_ticket_from_the_address() {
        let check = |given: &[(HeaderName, &str)], query, expected: Credential<'_>| {
            assert_eq!(
                Credential::of(&headers(given), query),
                expected,
                "{given:?}"
            );
        };
        let header = (AUTHORIZATION, "Bearer k1");
        let protocol = (SEC_WEBSOCKET_PROTOCOL, "fastvideo.v1, fastvideo.key.k2");
        check(from_ref(&header), None, Credential::Bearer("k1"));
        check(from_ref(&protocol), None, Credential::Bearer("k2"));
        check(
            &[protocol, header],
            Some("ticket=t"),
            Credential::Bearer("k1"),
        );
        check(&[], Some("a=b&ticket=t.u"), Credential::Ticket("t.u"));
        check(&[(AUTHORIZATION, "Basic k1")], None, Credential::None);
        for query in ["key=k", "token=k", "authorization=k", "xticket=t", ""] {
            check(&[], Some(query), Credential::None);
        }
    }
}
