//! Everything that judges, as one value that is swapped whole. A flow keeps the one it began with.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::network::{Mode, Network, Port};
use crate::list::entry::canonical;

#[derive(Debug)]
pub struct Snapshot {
    /// This enforcer's name.
    pub enforcer: Arc<str>,
    /// Counts the configurations that have been in force since start, from 1.
    pub generation: u64,
    /// Those that name this enforcer; Networks that are off are not here.
    networks: Vec<Arc<Network>>,
    v4: PrefixMap<Ipv4Net, Vec<Claim>>,
    v6: PrefixMap<Ipv6Net, Vec<Claim>>,
}

/// A Network's claim to a prefix, or to the packets of it that a Port covers.
#[derive(Debug)]
struct Claim {
    port: Option<Arc<Port>>,
    /// Its place in `Snapshot::networks`.
    network: usize,
}

impl Snapshot {
    pub fn new(enforcer: Arc<str>, generation: u64, networks: Vec<Arc<Network>>) -> Self {
        let networks: Vec<_> = networks.into_iter().filter(|network| network.mode != Mode::Off).collect();
        let (mut v4, mut v6) = (PrefixMap::<Ipv4Net, Vec<Claim>>::new(), PrefixMap::<Ipv6Net, Vec<Claim>>::new());
        for (index, network) in networks.iter().enumerate() {
            for ip in &network.ips {
                let claim = Claim { port: ip.port.clone(), network: index };
                match canonical(ip.prefix) {
                    IpNet::V4(prefix) => v4.entry(prefix).or_default().push(claim),
                    IpNet::V6(prefix) => v6.entry(prefix).or_default().push(claim),
                }
            }
        }
        Self { enforcer, generation, networks, v4, v6 }
    }

    pub fn networks(&self) -> &[Arc<Network>] {
        &self.networks
    }

    /// The Network that judges a packet with this end protected: the longest prefix whose Port covers the packet
    /// (SPEC N4). `port` is the destination port, for protocols that have one. Of two Networks with one prefix, which
    /// configuration refuses, the first written judges.
    pub fn network_of(&self, protected: IpAddr, protocol: u8, port: Option<u16>) -> Option<&Arc<Network>> {
        let claims = |claims: &Vec<Claim>| first_covering(claims, protocol, port);
        let network = match protected.to_canonical() {
            IpAddr::V4(address) => self.v4.cover_values(&address.into()).filter_map(claims).last(),
            IpAddr::V6(address) => self.v6.cover_values(&address.into()).filter_map(claims).last(),
        };
        self.networks.get(network?)
    }
}

fn first_covering(claims: &[Claim], protocol: u8, port: Option<u16>) -> Option<usize> {
    let covers = |claim: &&Claim| claim.port.as_ref().is_none_or(|own| own.covers(protocol, port));
    claims.iter().find(covers).map(|claim| claim.network)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::network::{Dns, ProtectedIp, Protocol};

    fn network(name: &str, mode: Mode, ips: Vec<(&str, Option<Arc<Port>>)>) -> Arc<Network> {
        Arc::new(Network {
            name: name.into(),
            description: String::new(),
            mode,
            ips: ips.into_iter().map(|(prefix, port)| ProtectedIp { prefix: prefix.parse().unwrap(), port }).collect(),
            outbound: None,
            inbound: None,
            inspection: None,
            dns: Dns::default(),
        })
    }

    fn port(number: u8, ports: &[std::ops::RangeInclusive<u16>]) -> Option<Arc<Port>> {
        let protocols = vec![Protocol { number, ports: ports.to_vec() }];
        Some(Arc::new(Port { name: "p".into(), description: String::new(), protocols }))
    }

    fn chosen(snapshot: &Snapshot, address: &str, protocol: u8, port: Option<u16>) -> Option<String> {
        snapshot.network_of(address.parse().unwrap(), protocol, port).map(|network| network.name.to_string())
    }

    #[test]
    fn the_longest_prefix_whose_port_covers_the_packet_judges_it() {
        let snapshot = Snapshot::new(
            "e".into(),
            1,
            vec![
                network("all", Mode::Enforce, vec![("0.0.0.0/0", None), ("::/0", None)]),
                network("office", Mode::Monitor, vec![("10.1.0.0/16", None), ("2001:db8:1::/48", None)]),
                network("off", Mode::Off, vec![("10.1.2.0/24", None)]),
                network(
                    "cluster",
                    Mode::Enforce,
                    vec![
                        ("10.1.0.0/24", port(6, &[9870..=9880, 443..=443])),
                        ("2001:db8:1::/64", port(6, &[9870..=9880])),
                        ("10.1.0.9/32", port(50, &[])),
                    ],
                ),
            ],
        );
        for (address, protocol, port, network) in [
            ("10.1.0.1", 6, Some(9870), "cluster"),
            ("10.1.0.1", 6, Some(9880), "cluster"),
            ("10.1.0.1", 6, Some(9869), "office"),
            ("10.1.0.1", 6, Some(9881), "office"),
            ("10.1.0.1", 17, Some(9870), "office"),
            ("10.1.0.1", 1, None, "office"),
            ("10.1.0.9", 50, None, "cluster"),
            ("10.1.0.9", 6, Some(443), "cluster"),
            ("10.1.0.9", 6, Some(80), "office"),
            ("10.1.2.1", 6, Some(443), "office"),
            ("::ffff:10.1.2.1", 6, Some(443), "office"),
            ("192.0.2.1", 6, Some(443), "all"),
            ("2001:db8:1::5", 6, Some(9875), "cluster"),
            ("2001:db8:1::5", 6, Some(22), "office"),
            ("2001:db8:2::5", 6, Some(9875), "all"),
        ] {
            assert_eq!(
                chosen(&snapshot, address, protocol, port).as_deref(),
                Some(network),
                "{address} {protocol} {port:?}"
            );
        }
    }

    #[test]
    fn a_packet_that_no_prefix_or_port_covers_has_no_network() {
        let snapshot = Snapshot::new(
            "e".into(),
            1,
            vec![network("web", Mode::Enforce, vec![("10.0.0.0/8", port(6, &[80..=80]))])],
        );
        assert_eq!(chosen(&snapshot, "10.0.0.1", 6, Some(80)).as_deref(), Some("web"));
        assert_eq!(chosen(&snapshot, "10.0.0.1", 6, Some(81)), None);
        assert_eq!(chosen(&snapshot, "10.0.0.1", 6, None), None);
        assert_eq!(chosen(&snapshot, "11.0.0.1", 6, Some(80)), None);
        assert_eq!(chosen(&snapshot, "2001:db8::1", 6, Some(80)), None);
    }

    /// By the words of N4, prefix by prefix.
    fn by_scanning(
        networks: &[Arc<Network>],
        address: IpAddr,
        protocol: u8,
        port: Option<u16>,
    ) -> Option<(u8, String)> {
        let mut best: Option<(u8, String)> = None;
        for network in networks {
            for ip in &network.ips {
                let covers = ip.port.as_ref().is_none_or(|own| own.covers(protocol, port));
                let longer = best.as_ref().is_none_or(|(length, _)| ip.prefix.prefix_len() > *length);
                if covers && ip.prefix.contains(&address) && longer {
                    best = Some((ip.prefix.prefix_len(), network.name.to_string()));
                }
            }
        }
        best
    }

    proptest! {
        #[test]
        fn the_index_chooses_as_a_scan_of_every_prefix_does(
            claims in prop::collection::vec((any::<u16>(), 0u8..=32, any::<bool>(), prop::option::of((79u16..82, 0u16..3))), 1..40),
            packets in prop::collection::vec((any::<u16>(), any::<bool>(), 78u16..85), 1..40),
        ) {
            // Few distinct bits, so that prefixes nest and packets hit them.
            let v4 = |bits: u16| std::net::Ipv4Addr::from(u32::from(bits & 0xf0f) << 16 | u32::from(bits & 0x3));
            let networks: Vec<_> = claims.iter().enumerate().map(|(i, (bits, length, six, ports))| {
                let prefix = match six {
                    false => format!("{}/{length}", v4(*bits)),
                    true => format!("{}/{}", v4(*bits).to_ipv6_compatible(), 96 + length),
                };
                network(&i.to_string(), Mode::Enforce, vec![(&prefix, ports.and_then(|(low, n)| port(6, &[low..=low + n])))])
            }).collect();
            let snapshot = Snapshot::new("e".into(), 1, networks.clone());
            for (bits, six, port) in packets {
                let address = if six { v4(bits).to_ipv6_compatible().into() } else { v4(bits).into() };
                let own = snapshot.network_of(address, 6, Some(port)).map(|network| network.name.to_string());
                prop_assert_eq!(own, by_scanning(&networks, address, 6, Some(port)).map(|(_, name)| name));
            }
        }
    }
}
