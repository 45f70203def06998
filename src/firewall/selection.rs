//! Which Network a packet belongs to (SPEC N4), as one look-up for each prefix length in use.
//!
//! The lengths are walked from the longest. At each, a set of every Network's prefixes without a Port, and one of those
//! with each Port, asked only if the Port covers the packet. The first that holds the packet's protected end wins.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::ruleset::{Chain, Datum, Element, Expression, Family, Field, Key, Rule, Set, SetKind, Verdict};
use crate::policy::Direction;
use crate::policy::network::{Mode, Network, Port};
use crate::policy::snapshot::Snapshot;

/// What the selection leads to: the same packets meet different chains in different hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    CaptureUdp,
    Capture,
    Guard,
    Judge,
    /// What an application beside us sends: before connection tracking, its questions to resolvers on this host.
    Question,
    /// And behind it, all else that is captured.
    Divert,
}

impl Stage {
    fn word(self) -> &'static str {
        match self {
            Self::CaptureUdp => "udp",
            Self::Capture => "capture",
            Self::Guard => "guard",
            Self::Judge => "judge",
            Self::Question => "question",
            Self::Divert => "divert",
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

/// The prefixes that are asked for together: of one length and one Network, and with one Port (its place among
/// [`ports`]) or without.
type Class = (Reverse<u8>, Option<usize>, usize);

fn classes(snapshot: &Snapshot, ports: &[Arc<Port>], family: Family) -> BTreeMap<Class, BTreeSet<IpAddr>> {
    let mut classes: BTreeMap<Class, BTreeSet<IpAddr>> = BTreeMap::new();
    for (index, network) in snapshot.networks().iter().enumerate() {
        for ip in network.ips.iter().filter(|ip| Family::of(&ip.prefix) == family) {
            let port = ip.port.as_ref().map(|port| place(ports, port));
            classes.entry((Reverse(ip.prefix.prefix_len()), port, index)).or_default().insert(ip.prefix.network());
        }
    }
    classes
}

/// The sets of protected prefixes, shared by all stages.
pub(super) fn protected_sets(snapshot: &Snapshot) -> Vec<Set> {
    let ports = ports(snapshot);
    let of_family = |family: Family| {
        let set = move |(class, addresses): (Class, BTreeSet<IpAddr>)| {
            let elements = addresses.into_iter().map(|address| Element::exactly(vec![datum(address)])).collect();
            Set::new(protected_set(family, class), vec![family.field()], SetKind::Hash, elements)
        };
        classes(snapshot, &ports, family).into_iter().map(set).collect::<Vec<_>>()
    };
    Family::BOTH.into_iter().flat_map(of_family).collect()
}

/// The chain that asks for the protected end of a packet from the longest prefix to the shortest.
///
/// Not by maps from prefix to chain, which would need fewer rules: the kernel empties a map at the moment in which
/// other rules take its place, and a packet that is under way through the old rules then would find nothing, and pass.
pub(super) fn select(snapshot: &Snapshot, stage: Stage, direction: Direction, family: Family) -> Chain {
    let ports = ports(snapshot);
    let mut rules = Vec::new();
    for (class, _) in classes(snapshot, &ports, family) {
        let (Reverse(length), port, index) = class;
        let Some(network) = snapshot.networks().get(index) else { continue };
        let set = protected_set(family, class);
        let ask = [
            Expression::InSet { key: vec![protected(direction, family, length)], set, negate: false },
            Expression::Verdict(Verdict::Goto(network_chain(stage, direction, index, network))),
        ];
        match port.and_then(|place| ports.get(place).map(|port| (place, port))) {
            None => rules.push(Rule(ask.to_vec())),
            Some((place, port)) => rules.extend(if_covered(place, port, &ask)),
        }
    }
    Chain::new(selection_chain(stage, direction, family), rules)
}

/// Where packets go whose source is not where they came from, if a Network protects either end, whatever the port.
pub(super) fn protected_chain(snapshot: &Snapshot, then: &Chain) -> Chain {
    let ports = ports(snapshot);
    let mut rules = Vec::new();
    for family in Family::BOTH {
        for (class, _) in classes(snapshot, &ports, family) {
            let (Reverse(length), _, index) = class;
            // Nothing can be walked past where nothing is blocked.
            if snapshot.networks().get(index).is_none_or(|network| network.mode == Mode::Monitor) {
                continue;
            }
            rules.extend([Direction::Outbound, Direction::Inbound].map(|direction| {
                let key = vec![protected(direction, family, length)];
                let ask = Expression::InSet { key, set: protected_set(family, class), negate: false };
                Rule(vec![Expression::Family(family), ask, Expression::Verdict(Verdict::Goto(then.name.clone()))])
            }));
        }
    }
    Chain::new(PROTECTED, rules)
}

pub(super) const PROTECTED: &str = "protected";

fn protected_set(family: Family, (Reverse(length), port, index): Class) -> String {
    let port = port.map(|place| format!("_port{place}")).unwrap_or_default();
    format!("protected{}_{length}{port}_{index}", family.digit())
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

fn if_covered(place: usize, port: &Port, ask: &[Expression]) -> Vec<Rule> {
    let rule = |covered: Expression| Rule([&[covered], ask].concat());
    let mut rules = Vec::new();
    if has_ports(port) {
        let key = vec![Key::Protocol, Key::DestinationPort];
        rules.push(rule(Expression::InSet { key, set: port_set(place), negate: false }));
    }
    let portless = port.protocols.iter().filter(|protocol| protocol.ports.is_empty());
    rules.extend(portless.map(|protocol| rule(Expression::Protocol(protocol.number))));
    rules
}

fn protected(direction: Direction, family: Family, length: u8) -> Key {
    match direction {
        Direction::Outbound => Key::SourcePrefix { family, length },
        Direction::Inbound => Key::DestinationPrefix { family, length },
    }
}

fn datum(address: IpAddr) -> Datum {
    match address {
        IpAddr::V4(address) => Datum::Ipv4(address),
        IpAddr::V6(address) => Datum::Ipv6(address),
    }
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
             ip saddr @protected4_32_1 goto capture_outbound_1_narrow\n\
             ip saddr & 255.255.255.0 @protected4_24_1 goto capture_outbound_1_narrow\n\
             ip saddr & 255.255.0.0 @protected4_16_0 goto capture_outbound_0_wide\n\
             ip saddr & 0.0.0.0 @protected4_0_0 goto capture_outbound_0_wide\n\
             }\n"
        );
        assert!(text_of(&rules, "protected4_24_1").contains("elements = { 10.1.0.0, 10.1.1.0 }"));
        assert!(text_of(&rules, "protected4_0_0").contains("{ 0.0.0.0 }"));
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
             ip6 saddr & ffff:ffff:ffff:ffff:: @protected6_64_0 goto capture_outbound_0_office\n\
             meta l4proto . th dport @port0 ip6 saddr & ffff:ffff:ffff:ffff:: @protected6_64_port0_0 goto \
             capture_outbound_0_office\n\
             meta l4proto 1 ip6 saddr & ffff:ffff:ffff:ffff:: @protected6_64_port0_0 goto capture_outbound_0_office\n\
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
