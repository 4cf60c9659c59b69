//! Which addresses count as one client.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// What limits per address count by: an IPv4 address, or an IPv6 network of 64 bits, which is the least that a host is
/// usually given. Behind a reverse proxy all clients have the proxy's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddress(IpAddr);

impl ClientAddress {
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                Self(Ipv6Addr::from_bits(network).into())
            }
            address => Self(address),
        }
    }
}

impl ClientAddress {
    /// Returns the address, or the first one of the network.
    pub fn address(self) -> IpAddr {
        self.0
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(network) => write!(f, "{network}/64"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_client_whichever_of_its_addresses_it_uses() {
        let check = |address: &str, client: &str| {
            let address = address.parse().unwrap();
            assert_eq!(ClientAddress::of(address).to_string(), client);
        };
        check("192.0.2.1", "192.0.2.1");
        check("::ffff:192.0.2.1", "192.0.2.1");
        check("2001:db8:0:1::7", "2001:db8:0:1::/64");
        check("2001:db8:0:1:ffff:ffff:ffff:ffff", "2001:db8:0:1::/64");
        check("2001:db8:0:2::7", "2001:db8:0:2::/64");
    }
}
