//! Which addresses what runs on a host may connect to, whatever names them.

use std::net::{IpAddr, Ipv6Addr};

/// How far a connection may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Public and private addresses.
    Network,
    /// Loopback too: it was named.
    Loopback,
}

impl Reach {
    /// How far who names `host` may go: to loopback only who says so, by `localhost` or its address.
    pub fn of(host: &str) -> Self {
        let address = host.parse::<IpAddr>();
        match host == "localhost" || address.is_ok_and(|address| address.is_loopback()) {
            true => Self::Loopback,
            false => Self::Network,
        }
    }

    /// Whether `address` may be connected to.
    ///
    /// Shape: link-local, metadata, unspecified, multicast and broadcast addresses never are.
    pub fn allows(self, address: IpAddr) -> bool {
        let address = match address {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
            v4 => v4,
        };
        let denied = match address {
            IpAddr::V4(v4) => {
                v4.is_link_local()
                    || v4.is_unspecified()
                    || v4.is_multicast()
                    || v4.is_broadcast()
                    || v4.octets()[0] == 0
                    // The metadata services of clouds that do not use a link-local address.
                    || v4.octets() == [100, 100, 100, 200]
                    || v4.octets() == [168, 63, 129, 16]
            }
            IpAddr::V6(v6) => {
                v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unicast_link_local()
                    || v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
            }
        };
        !denied && (self == Self::Loopback || !address.is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_and_link_local_addresses_are_never_reached() {
        for address in [
            "169.254.169.254",
            "169.254.1.1",
            "fe80::1",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
        ] {
            assert!(
                !Reach::Loopback.allows(address.parse().unwrap()),
                "{address}"
            );
        }
        for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            let address = address.parse().unwrap();
            assert!(!Reach::Network.allows(address), "{address}");
            assert!(Reach::Loopback.allows(address), "{address}");
        }
        assert!(Reach::Network.allows("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn only_who_names_loopback_reaches_it() {
        for (host, reach) in [
            ("localhost", Reach::Loopback),
            ("127.0.0.1", Reach::Loopback),
            ("::1", Reach::Loopback),
            ("db.example.com", Reach::Network),
            ("10.0.0.1", Reach::Network),
        ] {
            assert_eq!(Reach::of(host), reach, "{host}");
        }
    }
}
