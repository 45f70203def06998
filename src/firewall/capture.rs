//! From a policy and our listeners to the rules that bring inspected flows to them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::flows::{
    ANSWERED_CHAIN, ANSWERED_TRANSLATED_CHAIN, FlowSet, answered_chain, answered_translated_chain, answers_flows,
    begins_nothing, discarded_chain, flow_sets, in_flows, jump_to_discarded, sent_chain, udp_flow_rules,
};
use super::judge::{end_chains, network_chains};
use super::lists::list_sets;
use super::names::name_sets;
use super::ruleset::{
    Chain, Connection, Datum, Element, Expression, Family, Field, Hook, Key, Rule, Ruleset, Set, SetKind, Verdict,
};
use super::selection::{
    PROTECTED, Stage, network_chain, port_sets, protected_chain, protected_sets, select, selection_chain,
};
use super::service::{self, Service, captured, dns, services};
use super::{
    Capture, ENDED_LABEL, ENDED_RESET_LABEL, ENDED_UNREACHABLE_LABEL, FORGED, JUDGED_LABEL, MARK, OnFailure, TABLE,
    TAKEN_LABEL, TCP, UDP, UNTAKEN_MARK,
};
use crate::policy::Direction;
use crate::policy::network::{DNS_PORT, ENCRYPTED_DNS_PORT, Network};
use crate::policy::snapshot::Snapshot;

/// `priority raw`: behind the kernel's defragmentation, before connection tracking.
pub(super) const RAW: i32 = -300;
/// `priority mangle`: behind the kernel's defragmentation and connection tracking, before destination NAT.
pub(super) const MANGLE: i32 = -150;
/// Behind `priority dstnat`, where what an ICMP error quotes is translated back, too.
const TRANSLATED: i32 = -99;
/// `priority filter`
pub(super) const FILTER: i32 = 0;

/// What the services of a stage capture, by protocol and port: most packets leave after this one look-up.
const INSPECTED: &str = "inspected";
/// DNS and encrypted DNS, where DNS is captured.
pub(super) const QUESTIONS: &str = "questions";
pub(super) const SERVICE: [Key; 2] = [Key::Protocol, Key::DestinationPort];
const INSPECTED_UDP: &str = "inspected_udp";
/// The ports of all that is captured, by whatever protocol.
const CAPTURED_PORTS: &str = "captured_ports";
/// What all of them capture.
pub(super) const GUARDED: &str = "guarded";
const GUARD: &str = "guard";
const ENDED: &str = "ended";
pub(super) const TAKEN: &str = "taken";
const UDP_CHAIN: &str = "udp";
const CAPTURE: &str = "capture";
pub(super) const LOOPBACK: &str = "loopback";
/// The ports of our own listeners.
pub(super) const LISTENERS: &str = "listeners";
pub(super) const HELD: &str = "held";
pub(super) const ORIGIN: &str = "origin";
const AUTHENTICATION_HEADER: u8 = 51;
const IPV4_LOOPBACK: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));
const IPV6_LOOPBACK: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128));

/// The rules for a policy and the listeners that serve it.
pub fn render(snapshot: &Snapshot, capture: &Capture) -> Ruleset {
    let mut sets = flow_sets(capture);
    sets.extend([Stage::CaptureUdp, Stage::Capture, Stage::Guard].map(|stage| inspected_set(stage, snapshot, capture)));
    sets.extend([ports_set(CAPTURED_PORTS, &pairs(Stage::Guard, snapshot, capture)), questions_set(capture)]);
    sets.extend(port_sets(snapshot));
    sets.extend(protected_sets(snapshot));
    sets.extend(snapshot.networks().iter().flat_map(|network| name_sets(network, capture)));
    sets.push(listeners_set(capture));
    let forged = Chain::new("forged", vec![Rule(vec![Expression::CountAs(FORGED), drop()])]);
    let protected = protected_chain(snapshot, &forged);
    let mut chains = vec![loopback_chain(capture), forged, protected, origin_chain(), held_chain()];
    chains.extend(Family::BOTH.map(discarded_chain));
    chains.extend(services(capture).map(|service| service.chain(capture.on_failure)));
    let lists = list_sets(snapshot);
    chains.extend(end_chains());
    for stage in [Stage::CaptureUdp, Stage::Capture, Stage::Guard, Stage::Judge] {
        for direction in &capture.directions {
            for (index, network) in snapshot.networks().iter().enumerate() {
                if stage == Stage::Judge {
                    chains.extend(network_chains(snapshot, (index, network), *direction, &lists, capture));
                    continue;
                }
                chains.push(Chain::new(
                    network_chain(stage, *direction, index, network),
                    network_rules(stage, *direction, network, capture),
                ));
            }
            for family in Family::BOTH {
                chains.push(select(snapshot, stage, *direction, family));
            }
        }
    }
    chains.extend(Family::BOTH.map(sent_chain));
    chains.extend([
        answered_chain(),
        answered_translated_chain(),
        ended(),
        taken(),
        guard(capture),
        udp_chain(capture),
        prerouting_udp(),
    ]);
    chains.extend([capture_chain(capture), prerouting(capture), prerouting_errors(), forward(capture)]);
    Ruleset { table: TABLE, sets, lists, chains }
}

/// UDP on ports that are inspected for QUIC.
fn udp_chain(capture: &Capture) -> Chain {
    let mut rules: Vec<Rule> = Family::BOTH.into_iter().flat_map(udp_flow_rules).collect();
    // The next hook tells why these are left alone here.
    rules.extend([IPV4_LOOPBACK, IPV6_LOOPBACK].map(|own| Rule(vec![Expression::DestinationIn(own), accept()])));
    rules.push(Rule(vec![Expression::DestinationIsLocal, accept()]));
    if capture.reverse_path {
        rules.push(Rule(vec![jump(ORIGIN)]));
    }
    rules.extend(selections(Stage::CaptureUdp, capture));
    Chain::new(UDP_CHAIN, rules)
}

fn prerouting_udp() -> Chain {
    let inspected = |port, next| {
        let port = Expression::InSet { key: vec![port], set: INSPECTED_UDP.to_owned(), negate: false };
        Rule(vec![Expression::Protocol(UDP), port, next])
    };
    let rules = vec![
        authenticated(),
        // Fragments within fragments, of which no rule could read a port. Servers put them together.
        Rule(vec![Expression::Family(Family::V6), Expression::Fragment, jump(PROTECTED)]),
        inspected(Key::SourcePort, jump(ANSWERED_CHAIN)),
        inspected(Key::DestinationPort, goto(UDP_CHAIN)),
    ];
    Chain::at(Hook::Prerouting, RAW, "prerouting_udp", rules)
}

/// What follows an IPv6 authentication header (RFC 4302) is of a protocol and ports that connection tracking reads, and
/// the rules do not: let in as what it is to them, it would let in the flow that it is to connection tracking.
pub(super) fn authenticated() -> Rule {
    Rule(vec![Expression::Family(Family::V6), Expression::Protocol(AUTHENTICATION_HEADER), Expression::NoTrack])
}

/// Most packets leave here. Where the path of sources counts, it does until a flow has been answered.
fn prerouting(capture: &Capture) -> Chain {
    let begins = [Expression::Protocol(TCP), Expression::TcpOpening];
    let answered = [Expression::Connection(&[Connection::Established])];
    let let_in = let_in(if capture.reverse_path { &answered } else { &[] });
    let rules = vec![Rule([&begins[..], &[goto(CAPTURE)]].concat()), let_in, Rule(vec![goto(CAPTURE)])];
    Chain::at(Hook::Prerouting, MANGLE, "prerouting", rules)
}

fn capture_chain(capture: &Capture) -> Chain {
    let mut rules = vec![
        Rule(vec![of_interest(LISTENERS, false), jump(LOOPBACK)]),
        Rule(vec![Expression::Protocol(TCP), jump(HELD)]),
    ];
    if capture.dns_udp.is_some() {
        // Answers to questions that were sent on from the client's own address. Only what comes from a resolver.
        let answer = [Expression::Protocol(UDP), Expression::SourcePort(DNS_PORT), Expression::TransparentSocket];
        let then = |rest: &[Expression]| Rule([&answer, rest].concat());
        if capture.reverse_path {
            rules.push(then(&[Expression::FromItsPath, Expression::SetMark(MARK), accept()]));
            rules.push(then(&[jump(PROTECTED)]));
        }
        rules.push(then(&[Expression::SetMark(MARK), accept()]));
    }
    if capture.reverse_path {
        let unknown = Expression::Connection(&[Connection::New, Connection::Invalid]);
        rules.push(Rule(vec![unknown, jump(ORIGIN)]));
    }
    // Two that open the same flow towards each other would both be its replies.
    rules.push(Rule(vec![Expression::Protocol(TCP), Expression::Reply, Expression::TcpOpening, jump(PROTECTED)]));
    rules.push(Rule(vec![of_interest(INSPECTED, true), accept()]));
    rules.push(reply_passes());
    rules.extend(to_the_gateway(capture));
    rules.extend(selections(Stage::Capture, capture));
    Chain::new(CAPTURE, rules)
}

/// A packet of a flow that was let in, and that nobody has taken or ended since. Not on a port that is captured: its flow
/// may have begun before that was so.
fn let_in(and: &[Expression]) -> Rule {
    let not_captured = |port| Expression::InSet { key: vec![port], set: CAPTURED_PORTS.to_owned(), negate: true };
    let alone = Expression::LabelAlone { label: JUDGED_LABEL, not: &[ENDED_LABEL, TAKEN_LABEL] };
    let known = [not_captured(Key::DestinationPort), not_captured(Key::SourcePort), alone, accept()];
    Rule([and, &known].concat())
}

/// An ICMP error goes to the address that the quoted packet came from: that of a client or of a server, in whose name we
/// have sent it, and who could make nothing of it. Above all we must hear how much fits on the path. TCP believes none
/// that does not quote what it has just sent (RFC 5927, section 4.1), whoever wrote it.
///
/// Never for UDP: a client whose flow we only send on sees to that itself.
fn prerouting_errors() -> Chain {
    let about_tcp = [Expression::Connection(&[Connection::Related]), Expression::ConnectionProtocol(TCP)];
    let ours = [Expression::TransparentSocket, Expression::SetMark(MARK), accept()];
    Chain::at(Hook::Prerouting, TRANSLATED, "prerouting_errors", vec![Rule([&about_tcp[..], &ours].concat())])
}

fn forward(capture: &Capture) -> Chain {
    let mut rules = vec![let_in(&[])];
    if capture.on_failure == OnFailure::Closed {
        rules.push(Rule(vec![Expression::MarkIs(MARK), Expression::Counter, drop()]));
    }
    rules.push(Rule(vec![Expression::Label(ENDED_LABEL), goto(ENDED)]));
    rules.push(Rule(vec![Expression::Label(TAKEN_LABEL), jump(TAKEN)]));
    let masqueraded = [Expression::Protocol(UDP), Expression::Reply, Expression::SourceTranslated];
    rules.push(Rule([&masqueraded[..], &[jump(ANSWERED_TRANSLATED_CHAIN)]].concat()));
    rules.push(reply_passes());
    rules.push(Rule(vec![of_interest(GUARDED, false), jump(GUARD)]));
    // Not whatever connection tracking knows: it may have begun before anybody judged.
    rules.push(Rule(vec![Expression::Label(JUDGED_LABEL), accept()]));
    rules.push(Rule(vec![Expression::Connection(&[Connection::Related]), accept()]));
    rules.extend(Family::BOTH.map(|family| {
        // Connection tracking may have forgotten a flow that we have not.
        let answers = answers_flows(FlowSet::Forwarded, family);
        Rule(vec![Expression::Protocol(UDP), Expression::Family(family), answers, accept()])
    }));
    rules.extend(selections(Stage::Judge, capture));
    rules.push(Rule(vec![Expression::SetLabel(JUDGED_LABEL)]));
    Chain::at(Hook::Forward, FILTER, "forward", rules)
}

/// It was judged by who opened the flow (SPEC N5), and does not open one itself even if it goes to a port that is
/// inspected.
fn reply_passes() -> Rule {
    let of_a_flow = Expression::Connection(&[Connection::Established, Connection::Related]);
    Rule(vec![Expression::Reply, of_a_flow, accept()])
}

/// What others say in a flow that is taken here. Connection tracking has seen it begin, and takes for its own whatever
/// comes from where it was going, and every error that quotes it, which may hold anything: neither waits for a verdict.
///
/// A port that is taken no longer answers for itself.
pub(super) fn taken() -> Chain {
    let from_such =
        Expression::InSet { key: vec![Key::Protocol, Key::SourcePort], set: GUARDED.to_owned(), negate: false };
    let rules = vec![
        Rule(vec![Expression::Connection(&[Connection::Related]), Expression::Counter, drop()]),
        Rule(vec![Expression::Reply, from_such, Expression::Counter, drop()]),
    ];
    Chain::new(TAKEN, rules)
}

/// Both directions of a flow that was let in and that a later policy has ended.
fn ended() -> Chain {
    let rules = vec![
        Rule(vec![Expression::Label(ENDED_RESET_LABEL), Expression::Protocol(TCP), Expression::Reset]),
        Rule(vec![Expression::Label(ENDED_UNREACHABLE_LABEL), Expression::Reject]),
        Rule(vec![Expression::Counter, drop()]),
    ];
    Chain::new(ENDED, rules)
}

fn guard(capture: &Capture) -> Chain {
    let forwarded = |family| {
        let mut rule = vec![Expression::Protocol(UDP), Expression::Family(family)];
        rule.extend(begins_nothing());
        rule.extend([in_flows(FlowSet::Forwarded, family), accept()]);
        Rule(rule)
    };
    let mut rules: Vec<Rule> = Family::BOTH.map(forwarded).into();
    rules.extend(selections(Stage::Guard, capture));
    Chain::new(GUARD, rules)
}

/// What is sent to the gateway itself passes, but not the questions of others to a resolver on it.
fn to_the_gateway(capture: &Capture) -> Vec<Rule> {
    if dns(capture).next().is_none() {
        return vec![Rule(vec![Expression::DestinationIsLocal, accept()])];
    }
    let question = |negate| Expression::InSet { key: SERVICE.to_vec(), set: QUESTIONS.to_owned(), negate };
    vec![
        Rule(vec![question(false), Expression::FromLoopback, accept()]),
        Rule(vec![question(true), Expression::DestinationIsLocal, accept()]),
    ]
}

fn selections(stage: Stage, capture: &Capture) -> Vec<Rule> {
    let jump = |direction: &Direction, family| {
        let chain = selection_chain(stage, *direction, family);
        Rule(vec![Expression::Family(family), Expression::Verdict(Verdict::Jump(chain))])
    };
    capture.directions.iter().flat_map(|direction| Family::BOTH.map(|family| jump(direction, family))).collect()
}

/// What is sent straight to a listener, by a process of this host or by a neighbour that `route_localnet` lets in, has
/// no original destination.
pub(super) fn loopback_chain(capture: &Capture) -> Chain {
    let own = |family| match family {
        Family::V4 => IPV4_LOOPBACK,
        Family::V6 => IPV6_LOOPBACK,
    };
    let rule = |(family, protocol, port)| {
        let to_a_listener = [Expression::Protocol(protocol), Expression::DestinationPort(port)];
        let mut rule = vec![Expression::DestinationIn(own(family))];
        rule.extend(to_a_listener);
        rule.extend([Expression::Counter, drop()]);
        Rule(rule)
    };
    Chain::new(LOOPBACK, listeners(capture).into_iter().map(rule).collect())
}

pub(super) fn listeners_set(capture: &Capture) -> Set {
    let ports: BTreeSet<(u8, u16)> =
        listeners(capture).into_iter().map(|(_, protocol, port)| (protocol, port)).collect();
    let element = |(protocol, port)| Element::exactly(vec![Datum::Protocol(protocol), Datum::Service(port)]);
    Set::new(LISTENERS, vec![Field::Protocol, Field::Service], SetKind::Hash, ports.into_iter().map(element).collect())
}

fn listeners(capture: &Capture) -> Vec<(Family, u8, u16)> {
    let at = |service: Service| {
        let port = move |family| Some((family, service.protocol, service.listener?.port(family)?));
        Family::BOTH.into_iter().filter_map(port)
    };
    services(capture).flat_map(at).collect()
}

/// What begins a flow comes from where its source is reached: whoever may write any address could else open a flow to
/// itself, and its own packets would be that flow's replies (SPEC N5).
fn origin_chain() -> Chain {
    let leave = |if_so| Rule(vec![if_so, Expression::Verdict(Verdict::Return)]);
    let rules = vec![leave(Expression::FromLoopback), leave(Expression::FromItsPath), Rule(vec![jump(PROTECTED)])];
    Chain::new(ORIGIN, rules)
}

/// Both sides of every TCP flow that we hold, and those that are discarded. Never for UDP: on the client's side it
/// would steal a flow for the socket that answers in the server's name.
///
/// The side that we opened is known as taken from its first answer on. Somebody's packet with its addresses could else
/// be let in, and the flow with it.
pub(super) fn held_chain() -> Chain {
    let ours = [Expression::TransparentSocket, Expression::SetLabel(TAKEN_LABEL), Expression::SetMark(MARK), accept()];
    let mut rules = vec![Rule(ours.to_vec())];
    rules.extend(Family::BOTH.map(jump_to_discarded));
    Chain::new(HELD, rules)
}

fn network_rules(stage: Stage, direction: Direction, network: &Network, capture: &Capture) -> Vec<Rule> {
    let then = |service: Service| match stage {
        Stage::CaptureUdp | Stage::Capture => vec![goto(service.chain)],
        // The case that the policy routes are gone, or that another table took the mark away or changed the
        // destination between the two hooks.
        Stage::Guard if capture.on_failure == OnFailure::Closed => vec![Expression::Counter, drop()],
        Stage::Guard => vec![Expression::MarkIs(UNTAKEN_MARK), accept()],
        Stage::Judge | Stage::Divert | Stage::Question => Vec::new(),
    };
    let here = |(service, _): &(Service, u16)| stage == Stage::Guard || service.stage == stage;
    let taken: Vec<_> = captured(direction, network, capture).into_iter().filter(here).collect();
    service::rules(network, &taken, then)
}

/// What is captured at a stage, or at all of them.
fn pairs(stage: Stage, snapshot: &Snapshot, capture: &Capture) -> BTreeSet<(u8, u16)> {
    capture
        .directions
        .iter()
        .flat_map(|direction| snapshot.networks().iter().flat_map(|network| captured(*direction, network, capture)))
        .filter(|(service, _)| stage == Stage::Guard || service.stage == stage)
        .map(|(service, port)| (service.protocol, port))
        .collect()
}

/// Of ports alone, the kernel makes a bitmap, which every packet can be looked up in.
fn ports_set(name: &str, pairs: &BTreeSet<(u8, u16)>) -> Set {
    let ports: BTreeSet<u16> = pairs.iter().map(|(_, port)| *port).collect();
    let elements = ports.into_iter().map(|port| Element::exactly(vec![Datum::Service(port)]));
    Set::new(name, vec![Field::Service], SetKind::Hash, elements.collect())
}

pub(super) fn inspected_set(stage: Stage, snapshot: &Snapshot, capture: &Capture) -> Set {
    let pairs = pairs(stage, snapshot, capture);
    let name = match stage {
        Stage::CaptureUdp => INSPECTED_UDP,
        Stage::Capture => INSPECTED,
        _ => GUARDED,
    };
    if stage == Stage::CaptureUdp {
        return ports_set(name, &pairs);
    }
    let element = |(protocol, port)| Element::exactly(vec![Datum::Protocol(protocol), Datum::Service(port)]);
    Set::new(name, vec![Field::Protocol, Field::Service], SetKind::Hash, pairs.into_iter().map(element).collect())
}

pub(super) fn questions_set(capture: &Capture) -> Set {
    let questions = dns(capture).flat_map(|service| {
        let to = |port| Element::exactly(vec![Datum::Protocol(service.protocol), Datum::Service(port)]);
        [DNS_PORT, ENCRYPTED_DNS_PORT].map(to)
    });
    Set::new(QUESTIONS, vec![Field::Protocol, Field::Service], SetKind::Hash, questions.collect())
}

pub(super) fn of_interest(set: &str, negate: bool) -> Expression {
    Expression::InSet { key: SERVICE.to_vec(), set: set.to_owned(), negate }
}

pub(super) fn goto(chain: &str) -> Expression {
    Expression::Verdict(Verdict::Goto(chain.to_owned()))
}

pub(super) fn jump(chain: &str) -> Expression {
    Expression::Verdict(Verdict::Jump(chain.to_owned()))
}

pub(super) fn accept() -> Expression {
    Expression::Verdict(Verdict::Accept)
}

pub(super) fn drop() -> Expression {
    Expression::Verdict(Verdict::Drop)
}

#[cfg(test)]
mod tests {
    use super::super::Listener;
    use super::*;
    use crate::firewall::fixture::{network, rules, text_of};
    use crate::policy::network::{Dns, Mode};

    const PREFIX: &[(&str, Option<&std::sync::Arc<crate::policy::network::Port>>)] = &[("10.1.0.0/24", None)];

    #[test]
    fn behind_every_tproxy_stands_a_drop() {
        let capture = Capture {
            udp: Some(Listener::on(2)),
            dns_udp: Some(Listener::on(3)),
            dns_tcp: Some(Listener::on(4)),
            ..Capture::tcp(Listener::on(1))
        };
        let rules = rules(vec![network("office", PREFIX)], &capture);
        let delivers = |rule: &Rule| rule.0.iter().any(|part| matches!(part, Expression::Tproxy { .. }));
        let chains: Vec<_> = rules.chains.iter().filter(|chain| chain.rules.iter().any(delivers)).collect();
        assert_eq!(chains.len(), 4);
        for chain in chains {
            assert_eq!(chain.rules.last(), Some(&Rule(vec![Expression::Counter, drop()])), "{chain}");
        }
        // Where nobody listens and failures are let pass, what passes is translated like all else.
        assert!(text_of(&rules, "to_udp").contains("tproxy ip to 127.0.0.1:2 notrack"));
    }

    #[test]
    fn where_failures_pass_only_what_nobody_took_is_not_judged_by_its_address() {
        let open = Capture { on_failure: OnFailure::Open, ..Capture::tcp(Listener::on(1)) };
        let rules = rules(vec![network("office", PREFIX)], &open);
        assert!(text_of(&rules, "to_tcp").ends_with("meta mark set 0x746a\n}\n"));
        assert!(text_of(&rules, "guard_outbound_0_office").contains("tcp th dport 443 meta mark 0x746a accept\n"));
    }

    #[test]
    fn a_family_without_a_listener_is_dropped() {
        let rules = rules(vec![network("office", PREFIX)], &Capture::tcp(Listener { v4: Some(15001), v6: None }));
        assert_eq!(
            text_of(&rules, "to_tcp"),
            "chain to_tcp {\n\
             meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:15001 \
             ct label set 121 meta mark set 0x7469 counter accept\n\
             counter drop\n\
             }\n"
        );
    }

    #[test]
    fn quic_without_a_listener_is_dropped_and_dns_without_one_is_let_alone() {
        let rules = rules(vec![network("office", PREFIX)], &Capture::tcp(Listener::on(1)));
        assert_eq!(text_of(&rules, "to_udp"), "chain to_udp {\ncounter drop\n}\n");
        assert!(text_of(&rules, "inspected").contains("{ tcp . 80, tcp . 443 }"));
        assert!(text_of(&rules, "inspected_udp").contains("{ 443 }"));
    }

    #[test]
    fn a_monitored_network_is_not_kept_from_what_nobody_judges() {
        let monitored = Network { mode: Mode::Monitor, ..network("office", PREFIX) };
        let rules = rules(vec![monitored], &Capture::tcp(Listener::on(1)));
        assert!(text_of(&rules, "inspected").contains("{ tcp . 80, tcp . 443 }"));
        assert!(!text_of(&rules, "inspected_udp").contains("elements"));
    }

    #[test]
    fn encrypted_dns_is_captured_where_resolvers_are_authorized_and_theirs_passes() {
        let capture =
            Capture { dns_udp: Some(Listener::on(3)), dns_tcp: Some(Listener::on(4)), ..Capture::tcp(Listener::on(1)) };
        let with = |mode, resolvers: &[&str]| {
            let dns = Dns {
                authorized_resolvers: resolvers.iter().map(|ip| ip.parse().unwrap()).collect(),
                ..Dns::default()
            };
            rules(vec![Network { dns, mode, inspection: None, ..network("office", PREFIX) }], &capture)
        };
        let authorized = with(Mode::Enforce, &["9.9.9.9", "2620:fe::fe"]);
        assert!(text_of(&authorized, "inspected").contains("{ tcp . 53, tcp . 853, udp . 53, udp . 853 }"));
        assert_eq!(
            text_of(&authorized, "capture_outbound_0_office"),
            "chain capture_outbound_0_office {\n\
             meta l4proto udp th dport 53 goto to_dns_udp\n\
             meta l4proto tcp th dport 53 goto to_dns_tcp\n\
             meta l4proto udp th dport 853 ip daddr 9.9.9.9/32 return\n\
             meta l4proto udp th dport 853 ip6 daddr 2620:fe::fe/128 return\n\
             meta l4proto udp th dport 853 goto to_dns_udp\n\
             meta l4proto tcp th dport 853 ip daddr 9.9.9.9/32 return\n\
             meta l4proto tcp th dport 853 ip6 daddr 2620:fe::fe/128 return\n\
             meta l4proto tcp th dport 853 goto to_dns_tcp\n\
             }\n"
        );
        let guard = text_of(&authorized, "guard_outbound_0_office");
        assert!(guard.contains("tcp th dport 853 ip daddr 9.9.9.9/32 return\n"), "{guard}");
        assert!(guard.contains("tcp th dport 853 counter drop\n"), "{guard}");
        for (mode, resolvers) in [(Mode::Enforce, &[][..]), (Mode::Monitor, &["9.9.9.9"])] {
            assert!(!text_of(&with(mode, resolvers), "inspected").contains("853"), "{mode:?}");
        }
    }

    #[test]
    fn a_direction_that_is_not_judged_is_not_captured() {
        let inbound_alone = |network: Network| Network { inbound: network.outbound.clone(), outbound: None, ..network };
        let networks = || vec![inbound_alone(network("office", PREFIX))];
        let outbound = Capture::tcp(Listener::on(1));
        assert!(!text_of(&rules(networks(), &outbound), "inspected").contains("elements"));
        let both = Capture { directions: vec![Direction::Outbound, Direction::Inbound], ..outbound };
        let rules = rules(networks(), &both);
        assert!(text_of(&rules, "capture_inbound4").contains("ip daddr & 255.255.255.0 @protected4_24_0 goto"));
        assert!(text_of(&rules, "capture_inbound_0_office").contains("meta l4proto tcp th dport 443 goto to_tcp"));
        assert_eq!(text_of(&rules, "capture_outbound_0_office"), "chain capture_outbound_0_office {\n}\n");
    }

    #[test]
    fn what_we_hold_comes_before_what_is_discarded_and_that_before_what_is_selected() {
        let rules = rules(vec![network("office", PREFIX)], &Capture::tcp(Listener::on(1)));
        let text = text_of(&rules, "capture");
        in_order(&text, &["jump loopback", "jump held", "ct direction reply", "fib daddr type local", "jump capture_"]);
        in_order(&text_of(&rules, "held"), &["socket wildcard 0", "jump discard4", "jump discard6"]);
    }

    #[test]
    fn packets_of_a_flow_that_was_let_in_are_looked_at_no_more_but_on_captured_ports() {
        let capture =
            Capture { udp: Some(Listener::on(2)), dns_udp: Some(Listener::on(3)), ..Capture::tcp(Listener::on(1)) };
        let rules = rules(vec![network("office", PREFIX)], &capture);
        assert!(text_of(&rules, "captured_ports").contains("{ 53, 80, 443 }"));
        let let_in =
            "th dport != @captured_ports th sport != @captured_ports ct label & (127 | 126 | 121) == 127 accept";
        assert_eq!(
            text_of(&rules, "prerouting"),
            format!(
                "chain prerouting {{\n\
                 type filter hook prerouting priority -150; policy accept;\n\
                 meta l4proto tcp tcp flags & (syn | ack) == syn goto capture\n\
                 ct state established {let_in}\n\
                 goto capture\n\
                 }}\n"
            )
        );
        in_order(&text_of(&rules, "forward"), &[let_in, "mark 0x7469 counter drop"]);
    }

    #[test]
    fn only_errors_about_tcp_that_we_sent_are_ours_and_that_is_asked_behind_address_translation() {
        let rules = rules(vec![network("office", PREFIX)], &Capture::tcp(Listener::on(1)));
        assert_eq!(
            text_of(&rules, "prerouting_errors"),
            "chain prerouting_errors {\n\
             type filter hook prerouting priority -99; policy accept;\n\
             ct state related ct protocol tcp socket wildcard 0 socket transparent 1 meta mark set 0x7469 accept\n\
             }\n"
        );
    }

    #[test]
    fn a_reply_passes_only_where_the_flow_is_not_taken_here_and_a_flow_that_was_let_in_only_behind_the_guard() {
        let rules = rules(vec![network("office", PREFIX)], &Capture::tcp(Listener::on(1)));
        let text = text_of(&rules, "forward");
        let taken = "ct label 121 jump taken";
        let order =
            ["mark 0x7469 counter drop", taken, "direction reply", "jump guard", "label 127 accept", "jump judge_"];
        in_order(&text, &order);
        assert!(text_of(&rules, "to_tcp").contains("tproxy ip to 127.0.0.1:1 ct label set 121 meta mark set"));
        assert!(!text_of(&rules, "to_udp").contains("ct label"), "it is not tracked");
        assert!(text.ends_with("ct label set 127\n}\n"), "{text}");
    }

    #[track_caller]
    fn in_order(text: &str, words: &[&str]) {
        let place = |word: &&str| text.find(word).unwrap_or_else(|| panic!("no {word} in\n{text}"));
        assert!(words.iter().map(place).is_sorted(), "{text}");
    }
}
