//! Reverse proxies whose word is taken for where a request comes from.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::header::{FORWARDED, VIA};
use axum::http::{HeaderMap, HeaderName};
use ipnet::IpNet;

/// What a list of proxies must be.
pub(crate) const EXPECTED: &str = "addresses or networks such as 10.0.0.0/8";

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The headers by which a proxy shows that it has passed a request on.
const FORWARDING: [HeaderName; 6] = [
    FORWARDED,
    VIA,
    X_FORWARDED_FOR,
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
];

/// The networks of proxies. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    /// Parses addresses and networks that are separated by commas. Returns `None` when one of them is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let items = text.split(',').map(str::trim).filter(|it| !it.is_empty());
        let network = |item: &str| {
            let address = || item.parse::<IpAddr>().ok().map(IpNet::from);
            item.parse().ok().or_else(address)
        };
        items.map(network).collect::<Option<_>>().map(Self)
    }

    /// Returns where a request comes from: what a trusted proxy says of that, as far as trusted proxies have said it.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let values = headers.get_all(X_FORWARDED_FOR).iter().rev();
        let texts = values.map(|value| value.to_str().unwrap_or_default());
        let mut hops = texts.flat_map(|text| text.rsplit(',').map(str::trim));
        // Each proxy adds the address that it was asked from, so that the last one is the surest.
        while self.trust(client) {
            let Some(Ok(before)) = hops.next().map(str::parse::<IpAddr>) else {
                break;
            };
            client = before.to_canonical();
        }
        client
    }

    fn trust(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Returns whether a proxy has passed the request on.
pub(crate) fn is_forwarded(headers: &HeaderMap) -> bool {
    FORWARDING.iter().any(|name| headers.contains_key(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_are_believed_where_a_request_comes_from() {
        let check = |trusted: &str, peer: &str, forwarded: &[&str], client: &str| {
            let proxies = TrustedProxies::parse(trusted).unwrap();
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append(X_FORWARDED_FOR, value.parse().unwrap());
            }
            let found = proxies.client(peer.parse().unwrap(), &headers);
            assert_eq!(found.to_string(), client, "{peer} {forwarded:?}");
        };
        check("", "10.0.0.1", &["192.0.2.1"], "10.0.0.1");
        check("10.0.0.0/8", "10.0.0.1", &["192.0.2.1"], "192.0.2.1");
        check("10.0.0.0/8", "192.0.2.9", &["192.0.2.1"], "192.0.2.9");
        check("10.0.0.0/8", "10.0.0.1", &[], "10.0.0.1");
        // What the client itself claims comes first, and is not believed.
        let claimed = &["127.0.0.1, 192.0.2.1", "10.0.0.2"];
        check("10.0.0.0/8, ::1", "::1", claimed, "192.0.2.1");
        check("10.0.0.0/8", "10.0.0.1", &["unknown"], "10.0.0.1");
        check("::1", "::1", &["2001:db8::1"], "2001:db8::1");
        check("10.0.0.1", "::ffff:10.0.0.1", &["192.0.2.1"], "192.0.2.1");
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for wrong in ["proxy", "10.0.0.0/33", "10.0.0", "*"] {
            assert_eq!(TrustedProxies::parse(wrong), None, "{wrong}");
        }
    }
}
