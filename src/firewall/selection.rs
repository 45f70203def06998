//! Which Network a packet belongs to (SPEC N4), as one look-up for each prefix length in use.
//!
//! The lengths are walked from the longest. At each, one map from prefix to Network's chain for the entries without a
//! Port, and one for the entries of each Port, asked only if the Port covers the packet. The first that is found wins.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::ruleset::{Chain, Datum, Element, Expression, Family, Field, Key, Rule, Set, SetKind, Verdict};
use crate::policy::Direction;
use crate::policy::network::{Network, Port};
use crate::policy::snapshot::Snapshot;

/// What the selection leads to: the same packets meet different chains in different hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    CaptureUdp,
    Capture,
    Guard,
    Judge,
}

impl Stage {
    fn word(self) -> &'static str {
        match self {
            Self::CaptureUdp => "udp",
            Self::Capture => "capture",
            Self::Guard => "guard",
            Self::Judge => "judge",
        }
    }
}

/// The chain of one Network for one stage and direction.
pub(super) fn network_chain(stage: Stage, direction: Direction, index: usize, network: &Network) -> String {
    format!("{}_{direction}_{index}_{}", stage.word(), plain_name(&network.name))
}

/// A Network's name as nftables takes it. Others may look the same.
pub(super) fn plain_name(name: &str) -> String {
    const LONGEST_NAME: usize = 40;
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    name.chars().map(plain).take(LONGEST_NAME).collect()
}

/// The chain that finds the Network of a packet.
pub(super) fn selection_chain(stage: Stage, direction: Direction, family: Family) -> String {
    format!("{}_{direction}{}", stage.word(), family.digit())
}

/// The entries that are asked together: the Port's place among [`ports`], if they have one.
type Class = (Reverse<u8>, Option<usize>);

/// The maps, and the chain that asks them from the longest prefix to the shortest.
pub(super) fn select(snapshot: &Snapshot, stage: Stage, direction: Direction, family: Family) -> (Vec<Set>, Chain) {
    let ports = ports(snapshot);
    let mut classes: BTreeMap<Class, BTreeMap<IpAddr, String>> = BTreeMap::new();
    for (index, network) in snapshot.networks().iter().enumerate() {
        for ip in network.ips.iter().filter(|ip| Family::of(&ip.prefix) == family) {
            let port = ip.port.as_ref().map(|port| place(&ports, port));
            let entries = classes.entry((Reverse(ip.prefix.prefix_len()), port)).or_default();
            entries.insert(ip.prefix.network(), network_chain(stage, direction, index, network));
        }
    }
    let chain_name = selection_chain(stage, direction, family);
    let mut sets = Vec::new();
    let mut rules = Vec::new();
    for ((Reverse(length), port), entries) in classes {
        let map = match port {
            None => format!("{chain_name}_{length}"),
            Some(place) => format!("{chain_name}_{length}_port{place}"),
        };
        let ask = Expression::VerdictMap { key: vec![protected(direction, family, length)], map: map.clone() };
        let elements = entries.into_iter().map(|(address, chain)| entry(address, chain)).collect();
        sets.push(Set::new(map, vec![family.field()], SetKind::VerdictMap, elements));
        match port.and_then(|place| ports.get(place).map(|port| (place, port))) {
            None => rules.push(Rule(vec![ask])),
            Some((place, port)) => rules.extend(if_covered(place, port, &ask)),
        }
    }
    (sets, Chain::new(chain_name, rules))
}

/// The sets of what each Port covers, shared by all stages.
pub(super) fn port_sets(snapshot: &Snapshot) -> Vec<Set> {
    let with_ports = ports(snapshot).into_iter().enumerate().filter(|(_, port)| has_ports(port));
    with_ports
        .map(|(place, port)| {
            let elements = merged_ranges(&port)
                .into_iter()
                .flat_map(|(protocol, ranges)| ranges.into_iter().map(move |r| Element::services(protocol, &r)))
                .collect();
            Set::new(port_set(place), vec![Field::Protocol, Field::Service], SetKind::Interval, elements)
        })
        .collect()
}

fn if_covered(place: usize, port: &Port, ask: &Expression) -> Vec<Rule> {
    let mut rules = Vec::new();
    if has_ports(port) {
        let covered =
            Expression::InSet { key: vec![Key::Protocol, Key::DestinationPort], set: port_set(place), negate: false };
        rules.push(Rule(vec![covered, ask.clone()]));
    }
    for protocol in port.protocols.iter().filter(|protocol| protocol.ports.is_empty()) {
        rules.push(Rule(vec![Expression::Protocol(protocol.number), ask.clone()]));
    }
    rules
}

fn protected(direction: Direction, family: Family, length: u8) -> Key {
    match direction {
        Direction::Outbound => Key::SourcePrefix { family, length },
        Direction::Inbound => Key::DestinationPrefix { family, length },
    }
}

fn entry(address: IpAddr, chain: String) -> Element {
    let datum = match address {
        IpAddr::V4(address) => Datum::Ipv4(address),
        IpAddr::V6(address) => Datum::Ipv6(address),
    };
    Element { verdict: Some(Verdict::Goto(chain)), ..Element::exactly(vec![datum]) }
}

/// Every Port that a Network names, once.
fn ports(snapshot: &Snapshot) -> Vec<Arc<Port>> {
    let mut found: Vec<Arc<Port>> = Vec::new();
    for port in snapshot.networks().iter().flat_map(|network| &network.ips).filter_map(|ip| ip.port.as_ref()) {
        if !found.iter().any(|known| Arc::ptr_eq(known, port)) {
            found.push(port.clone());
        }
    }
    found
}

fn place(ports: &[Arc<Port>], port: &Arc<Port>) -> usize {
    ports.iter().position(|known| Arc::ptr_eq(known, port)).unwrap_or(usize::MAX)
}

fn port_set(place: usize) -> String {
    format!("port{place}")
}

fn has_ports(port: &Port) -> bool {
    port.protocols.iter().any(|protocol| !protocol.ports.is_empty())
}

/// The kernel refuses ranges that overlap.
fn merged_ranges(port: &Port) -> BTreeMap<u8, Vec<RangeInclusive<u16>>> {
    let mut by_protocol: BTreeMap<u8, Vec<RangeInclusive<u16>>> = BTreeMap::new();
    for protocol in &port.protocols {
        by_protocol
            .entry(protocol.number)
            .or_default()
            .extend(protocol.ports.iter().filter(|r| !r.is_empty()).cloned());
    }
    for ranges in by_protocol.values_mut() {
        ranges.sort_by_key(|range| *range.start());
        let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
        for range in ranges.drain(..) {
            match merged.last_mut() {
                Some(last) if *range.start() <= last.end().saturating_add(1) => {
                    *last = *last.start()..=*last.end().max(range.end());
                }
                _ => merged.push(range),
            }
        }
        *ranges = merged;
    }
    by_protocol
}

#[cfg(test)]
mod tests {
    use crate::firewall::fixture::{network, port, rules, text_of};
    use crate::firewall::{Capture, Listener};

    fn capture() -> Capture {
        Capture::tcp(Listener::on(15001))
    }

    #[test]
    fn longer_prefixes_are_asked_before_shorter_ones() {
        let wide = network("Wide", &[("0.0.0.0/0", None), ("10.2.0.0/16", None)]);
        let narrow = network("narrow", &[("10.1.0.0/24", None), ("10.1.1.0/24", None), ("10.9.9.9/32", None)]);
        let rules = rules(vec![wide, narrow], &capture());
        assert_eq!(
            text_of(&rules, "capture_outbound4"),
            "chain capture_outbound4 {\n\
             ip saddr vmap @capture_outbound4_32\n\
             ip saddr & 255.255.255.0 vmap @capture_outbound4_24\n\
             ip saddr & 255.255.0.0 vmap @capture_outbound4_16\n\
             ip saddr & 0.0.0.0 vmap @capture_outbound4_0\n\
             }\n"
        );
        assert!(text_of(&rules, "capture_outbound4_24").contains(
            "elements = { 10.1.0.0 : goto capture_outbound_1_narrow, 10.1.1.0 : goto capture_outbound_1_narrow }"
        ));
        assert!(text_of(&rules, "capture_outbound4_0").contains("{ 0.0.0.0 : goto capture_outbound_0_wide }"));
        assert_eq!(text_of(&rules, "capture_outbound6"), "chain capture_outbound6 {\n}\n");
    }

    #[test]
    fn prefixes_with_a_port_count_only_for_what_it_covers() {
        let web = port(&[(6, &[443..=443, 400..=450, 80..=80, 451..=500]), (17, &[53..=53]), (1, &[])]);
        let office = network("office", &[("fd00:1::/64", Some(&web)), ("fd00:1::/64", None)]);
        let rules = rules(vec![office], &capture());
        assert_eq!(
            text_of(&rules, "capture_outbound6"),
            "chain capture_outbound6 {\n\
             ip6 saddr & ffff:ffff:ffff:ffff:: vmap @capture_outbound6_64\n\
             meta l4proto . th dport @port0 ip6 saddr & ffff:ffff:ffff:ffff:: vmap @capture_outbound6_64_port0\n\
             meta l4proto 1 ip6 saddr & ffff:ffff:ffff:ffff:: vmap @capture_outbound6_64_port0\n\
             }\n"
        );
        let covered = text_of(&rules, "port0");
        assert!(covered.contains("elements = { tcp . 80, tcp . 400-500, udp . 53 }"), "{covered}");
    }

    #[test]
    fn names_that_nftables_would_not_take_are_made_plain() {
        let office = network("Büro 1 \"oben\" / copy copy copy copy copy copy copy", &[("10.0.0.0/8", None)]);
        let rules = rules(vec![office], &capture());
        assert!(rules.chains.iter().any(|c| c.name == "capture_outbound_0_b_ro_1__oben____copy_copy_copy_copy_copy"));
    }
}
