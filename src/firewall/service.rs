//! What a Network brings to our listeners, by protocol and destination port.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::capture::{accept, drop};
use super::ruleset::{Chain, Expression, Family, Rule, Verdict};
use super::selection::Stage;
use super::{Capture, Listener, MARK, OnFailure, TAKEN_LABEL, TCP, UDP, UNTAKEN_MARK};
use crate::policy::Direction;
use crate::policy::network::{DNS_PORT, ENCRYPTED_DNS_PORT, Mode, Network, Quic};

/// A kind of traffic, and the listener that takes it.
#[derive(Clone, Copy)]
pub(super) struct Service {
    /// Where it is captured.
    pub(super) stage: Stage,
    pub(super) chain: &'static str,
    pub(super) protocol: u8,
    pub(super) listener: Option<Listener>,
}

impl Service {
    pub(super) fn is_dns(self) -> bool {
        matches!(self.chain, TO_DNS_UDP | TO_DNS_TCP)
    }

    /// Hands the packet over, or drops it where nobody takes it.
    pub(super) fn chain(self, on_failure: OnFailure) -> Chain {
        let mut rules = Vec::new();
        for family in Family::BOTH {
            if let Some(port) = self.listener.and_then(|listener| listener.port(family)) {
                let mut rule = vec![Expression::Family(family), Expression::Protocol(self.protocol)];
                rule.push(Expression::Tproxy { family, port });
                if self.stage == Stage::CaptureUdp {
                    rule.push(Expression::NoTrack);
                }
                if self.stage == Stage::Capture {
                    rule.push(Expression::SetLabel(TAKEN_LABEL));
                }
                rule.extend([Expression::SetMark(MARK), Expression::Counter, accept()]);
                rules.push(Rule(rule));
            }
        }
        rules.push(Rule(match on_failure == OnFailure::Closed || self.listener.is_none() {
            true => vec![Expression::Counter, drop()],
            false => vec![Expression::SetMark(UNTAKEN_MARK)],
        }));
        Chain::new(self.chain, rules)
    }
}

fn tcp(capture: &Capture) -> Service {
    Service { stage: Stage::Capture, chain: "to_tcp", protocol: TCP, listener: Some(capture.tcp) }
}

fn udp(capture: &Capture) -> Service {
    Service { stage: Stage::CaptureUdp, chain: "to_udp", protocol: UDP, listener: capture.udp }
}

pub(super) fn dns(capture: &Capture) -> impl Iterator<Item = Service> {
    let over_udp = Service { stage: Stage::Capture, chain: TO_DNS_UDP, protocol: UDP, listener: capture.dns_udp };
    let over_tcp = Service { stage: Stage::Capture, chain: TO_DNS_TCP, protocol: TCP, listener: capture.dns_tcp };
    [over_udp, over_tcp].into_iter().filter(|service| service.listener.is_some())
}

pub(super) fn services(capture: &Capture) -> impl Iterator<Item = Service> {
    [tcp(capture), udp(capture)].into_iter().chain(dns(capture))
}

/// What a Network's flows in one direction bring to us: by protocol and destination port, first match wins.
pub(super) fn captured(direction: Direction, network: &Network, capture: &Capture) -> Vec<(Service, u16)> {
    if network.rule(direction).is_none() {
        return Vec::new();
    }
    let mut found: Vec<(Service, u16)> = Vec::new();
    if direction == Direction::Outbound {
        found.extend(dns(capture).map(|service| (service, DNS_PORT)));
        if refuses_encrypted_dns(network) {
            found.extend(dns(capture).map(|service| (service, ENCRYPTED_DNS_PORT)));
        }
    }
    if let Some(inspection) = &network.inspection {
        let tcp_ports: BTreeSet<u16> = inspection.tls_ports.iter().chain(&inspection.http_ports).copied().collect();
        found.extend(tcp_ports.into_iter().map(|port| (tcp(capture), port)));
        let udp_ports: BTreeSet<u16> = inspection.tls_ports.iter().copied().collect();
        found.extend(
            udp_ports.into_iter().filter(|_| inspection.quic != Quic::LeaveAlone).map(|port| (udp(capture), port)),
        );
    }
    // Monitor blocks nothing: what nobody judges must pass.
    found.retain(|(service, _)| service.listener.is_some() || network.mode != Mode::Monitor);
    found
}

/// Whether DoT and DoQ are captured, but for those to authorized resolvers: to be refused, since nobody can read them
/// (SPEC D5). Monitor refuses nothing.
fn refuses_encrypted_dns(network: &Network) -> bool {
    !network.dns.authorized_resolvers.is_empty() && network.mode != Mode::Monitor
}

/// What becomes of each kind of traffic that is `taken`, in turn: `then` tells. Encrypted DNS to a resolver that is
/// authorized passes us by, unless its port is inspected.
pub(super) fn rules(
    network: &Network,
    taken: &[(Service, u16)],
    then: impl Fn(Service) -> Vec<Expression>,
) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (service, port) in taken {
        let is_it = [Expression::Protocol(service.protocol), Expression::DestinationPort(*port)];
        if service.is_dns() && *port == ENCRYPTED_DNS_PORT {
            let inspects =
                |(other, own): &&(Service, u16)| own == port && other.protocol == service.protocol && !other.is_dns();
            let passes = vec![Expression::Verdict(Verdict::Return)];
            let next = taken.iter().find(inspects).map_or(passes, |(other, _)| then(*other));
            rules.extend(network.dns.authorized_resolvers.iter().map(|resolver| {
                let resolver = [Expression::DestinationIn(IpNet::from(*resolver))];
                Rule([&is_it[..], &resolver, &next].concat())
            }));
        }
        rules.push(Rule([&is_it[..], &then(*service)].concat()));
    }
    rules
}

const TO_DNS_UDP: &str = "to_dns_udp";
const TO_DNS_TCP: &str = "to_dns_tcp";
