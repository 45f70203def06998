//! Sets of single flows, which the services change while the rules stand.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::ruleset::{Chain, Datum, Element, Expression, Family, Field, Key, Rule, Set, SetKind, Verdict};
use super::{Capture, TCP, UDP};
use crate::policy::{DropAction, Transport};

/// How long a discarded flow stays silent after its client's last packet.
const SILENCE: Duration = Duration::from_secs(300);

/// How long a blocked UDP flow is blocked without being looked at again. It is not drawn out by its packets: the next
/// connection from the same port gets its hearing.
const UDP_BLOCKED: Duration = Duration::from_secs(10);

/// A pair of sets, one for each address family, keyed by protocol, client, client's port, remote, remote's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowSet {
    /// TCP: the client's packets vanish.
    Discarded,
    /// UDP: the client's packets vanish, until the element's time is over.
    Silenced,
    /// UDP: the client's packets are answered by ICMP, until the element's time is over.
    Refused,
    /// UDP: the kernel forwards what cannot begin a QUIC connection, for as long as such packets come.
    Forwarded,
    /// UDP: counts what the kernel forwards of the client's.
    Sent,
    /// UDP: counts what the kernel forwards to the client.
    Answered,
}

/// The packets that a client sends in one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    pub transport: Transport,
    pub client: SocketAddr,
    pub remote: SocketAddr,
}

impl FlowSet {
    /// Where UDP is that ends so. It knows no reset: what stands for it is the ICMP too.
    pub fn blocking(action: DropAction) -> Self {
        match action {
            DropAction::Discard => Self::Silenced,
            DropAction::IcmpUnreachable | DropAction::TcpReset => Self::Refused,
        }
    }

    pub fn name(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Discarded, Family::V4) => "discarded4",
            (Self::Discarded, Family::V6) => "discarded6",
            (Self::Silenced, Family::V4) => "silenced4",
            (Self::Silenced, Family::V6) => "silenced6",
            (Self::Refused, Family::V4) => "refused4",
            (Self::Refused, Family::V6) => "refused6",
            (Self::Forwarded, Family::V4) => "forwarded4",
            (Self::Forwarded, Family::V6) => "forwarded6",
            (Self::Sent, Family::V4) => "sent4",
            (Self::Sent, Family::V6) => "sent6",
            (Self::Answered, Family::V4) => "answered4",
            (Self::Answered, Family::V6) => "answered6",
        }
    }
}

impl FlowKey {
    /// The set's family and the element. `None` if the two ends are of different families: no packet looks so.
    pub fn element(&self) -> Option<(Family, Element)> {
        let protocol = match self.transport {
            Transport::Tcp => TCP,
            Transport::Udp => UDP,
        };
        let (family, source, destination) = match (canonical(self.client), canonical(self.remote)) {
            (IpAddr::V4(client), IpAddr::V4(remote)) => (Family::V4, Datum::Ipv4(client), Datum::Ipv4(remote)),
            (IpAddr::V6(client), IpAddr::V6(remote)) => (Family::V6, Datum::Ipv6(client), Datum::Ipv6(remote)),
            _ => return None,
        };
        let key = vec![
            Datum::Protocol(protocol),
            source,
            Datum::Service(self.client.port()),
            destination,
            Datum::Service(self.remote.port()),
        ];
        Some((family, Element::exactly(key)))
    }
}

/// A socket of both families shows IPv4 peers as mapped addresses; packets never carry those.
fn canonical(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}

/// The parts of a packet that make a [`FlowKey`], seen from the client's side.
pub(super) fn key_of_packet(family: Family) -> Vec<Key> {
    vec![Key::Protocol, Key::Source(family), Key::SourcePort, Key::Destination(family), Key::DestinationPort]
}

/// The sets of single flows, empty.
pub(super) fn flow_sets(capture: &Capture) -> Vec<Set> {
    let ending = |timeout, size| SetKind::Dynamic { timeout, size };
    let kinds = [
        (FlowSet::Discarded, ending(SILENCE, capture.discarded)),
        (FlowSet::Silenced, ending(UDP_BLOCKED, capture.discarded)),
        (FlowSet::Refused, ending(UDP_BLOCKED, capture.discarded)),
        (FlowSet::Forwarded, ending(capture.udp_idle, capture.forwarded)),
        (FlowSet::Sent, SetKind::Counted { size: capture.forwarded }),
        (FlowSet::Answered, SetKind::Counted { size: capture.forwarded }),
    ];
    let set = |(set, kind): (FlowSet, _), family: Family| {
        let key = vec![Field::Protocol, family.field(), Field::Service, family.field(), Field::Service];
        Set::new(set.name(family), key, kind, Vec::new())
    };
    kinds.into_iter().flat_map(|kind| Family::BOTH.map(|family| set(kind, family))).collect()
}

/// Packets of discarded flows stay discarded for as long as they come; a new connection with the same ports is a new
/// flow.
pub(super) fn discarded_chain(family: Family) -> Chain {
    let set = FlowSet::Discarded.name(family).to_owned();
    let key = key_of_packet(family);
    let rules = vec![
        Rule(vec![
            Expression::Protocol(TCP),
            Expression::TcpOpening,
            Expression::Forget { key: key.clone(), set: set.clone() },
            Expression::Verdict(Verdict::Return),
        ]),
        Rule(vec![Expression::Refresh { key, set }]),
        Rule(vec![Expression::Counter, Expression::Verdict(Verdict::Drop)]),
    ];
    Chain::new(discarded_chain_name(family), rules)
}

pub(super) fn jump_to_discarded(family: Family) -> Rule {
    Rule(vec![
        Expression::Protocol(TCP),
        Expression::Family(family),
        Expression::InSet {
            key: key_of_packet(family),
            set: FlowSet::Discarded.name(family).to_owned(),
            negate: false,
        },
        Expression::Verdict(Verdict::Jump(discarded_chain_name(family))),
    ])
}

/// `KEY @set` for the packets that a client sends.
pub(super) fn in_flows(set: FlowSet, family: Family) -> Expression {
    Expression::InSet { key: key_of_packet(family), set: set.name(family).to_owned(), negate: false }
}

/// `KEY @set` for the packets that a client is sent.
pub(super) fn answers_flows(set: FlowSet, family: Family) -> Expression {
    let key = vec![Key::Protocol, Key::Destination(family), Key::DestinationPort, Key::Source(family), Key::SourcePort];
    Expression::InSet { key, set: set.name(family).to_owned(), negate: false }
}

/// What marks the packets of a forwarded flow that begin no QUIC connection.
///
/// The kernel carries datagrams of one length as one packet until somebody cuts it, from a sender on this host or in a
/// virtual machine, or because a network card joined them; then only the first one's octets can be seen here. Two
/// datagrams of one length of which one could hold an Initial packet, which servers take from 1200 octets on (RFC 9000,
/// section 14.1), make a packet longer than this.
pub(super) fn begins_nothing() -> [Expression; 2] {
    const SHORTER_THAN_TWO: u32 = 2048;
    [Expression::NoLongHeader, Expression::ShorterThan(SHORTER_THAN_TWO)]
}

/// What the kernel does by itself with the packets of UDP flows that were judged.
pub(super) fn udp_flow_rules(family: Family) -> Vec<Rule> {
    // What costs least comes first: every packet of an allowed flow meets this rule.
    let mut forward = vec![Expression::Family(family)];
    forward.extend(begins_nothing());
    forward.extend([
        in_flows(FlowSet::Forwarded, family),
        Expression::Refresh { key: key_of_packet(family), set: FlowSet::Forwarded.name(family).to_owned() },
        Expression::Verdict(Verdict::Goto(sent_chain_name(family))),
    ]);
    vec![
        Rule(forward),
        Rule(vec![
            Expression::Family(family),
            answers_flows(FlowSet::Forwarded, family),
            Expression::Verdict(Verdict::Accept),
        ]),
        Rule(vec![
            Expression::Family(family),
            in_flows(FlowSet::Refused, family),
            Expression::Counter,
            Expression::Reject,
        ]),
        Rule(vec![
            Expression::Family(family),
            in_flows(FlowSet::Silenced, family),
            Expression::Counter,
            Expression::Verdict(Verdict::Drop),
        ]),
    ]
}

/// Counts what is forwarded of a client's. To be in a counted set is to be counted.
pub(super) fn sent_chain(family: Family) -> Chain {
    let accept = Expression::Verdict(Verdict::Accept);
    let rules = vec![Rule(vec![in_flows(FlowSet::Sent, family), accept.clone()]), Rule(vec![accept])];
    Chain::new(sent_chain_name(family), rules)
}

/// Counts what is forwarded to clients. To a client whose flow has been ended nothing more is.
pub(super) fn answered_chain() -> Chain {
    let is_ended = |(set, family)| {
        let ended = answers_flows(set, family);
        Rule(vec![Expression::Family(family), ended, Expression::Counter, Expression::Verdict(Verdict::Drop)])
    };
    let mut rules: Vec<_> = Family::BOTH.map(is_answer).into();
    let ends = [FlowSet::Silenced, FlowSet::Refused].map(|set| Family::BOTH.map(|family| (set, family)));
    rules.extend(ends.into_iter().flatten().map(is_ended));
    Chain::new(ANSWERED_CHAIN, rules)
}

/// The same, where the answers could not be known before their address was translated back. Each is counted in one place:
/// what is translated back is another's before.
pub(super) fn answered_translated_chain() -> Chain {
    Chain::new(ANSWERED_TRANSLATED_CHAIN, Family::BOTH.map(is_answer).into())
}

fn is_answer(family: Family) -> Rule {
    let counted = answers_flows(FlowSet::Answered, family);
    Rule(vec![Expression::Family(family), counted, Expression::Verdict(Verdict::Return)])
}

pub(super) const ANSWERED_CHAIN: &str = "answered";
pub(super) const ANSWERED_TRANSLATED_CHAIN: &str = "answered_translated";

fn sent_chain_name(family: Family) -> String {
    format!("sent{}", family.digit())
}

fn discarded_chain_name(family: Family) -> String {
    format!("discard{}", family.digit())
}
