//! The rules of a namespace that holds one command and nothing but `lo`: whatever it sends past its own loopback comes
//! to the listeners, or is refused.
//!
//! ```text
//! prerouting (mangle)
//!   loopback, the command's own address -> pass, but for the listeners themselves
//!   discarded flows                     -> drop
//!   addresses that are nobody's, or everybody's (0.0.0.0/8, multicast, link-local IPv6) -> reject
//!   sources other than the command's    -> reject: here every address is local, any could be bound to, and no Network
//!                                          judges the others
//!   DNS, TCP, UDP                       -> tproxy, or reject where nobody listens
//!   all else                            -> reject: the kernel would answer a ping itself
//! ```
//!
//! Fails closed: with no listener nothing passes, and there is no other link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::flows::{discarded_chain, flow_sets, jump_to_discarded};
use super::ruleset::{Chain, Expression, Family, Hook, Rule, Ruleset, Verdict};
use super::{Capture, Listener, TABLE, TCP, UDP};
use crate::policy::network::DNS_PORT;

/// `own`: the addresses of the command, beside loopback.
pub fn enclose(capture: &Capture, own: &[IpAddr]) -> Ruleset {
    let services = services(capture);
    let mut rules: Vec<Rule> = LOOPBACK.iter().map(|net| to(*net, goto(LISTENERS))).collect();
    rules.extend(own.iter().map(|address| to(IpNet::from(*address), Expression::Verdict(Verdict::Accept))));
    rules.extend(Family::BOTH.map(jump_to_discarded));
    rules.extend(NOBODYS.iter().map(|net| to(*net, Expression::Reject)));
    rules.extend(own.iter().map(|address| Rule(vec![Expression::SourceIn(IpNet::from(*address)), goto(CAPTURED)])));
    rules.push(refusal());
    let captured = services.iter().map(Service::rule).chain([refusal()]).collect();
    let mut chains = vec![own_chain(&services), Chain::new(CAPTURED, captured)];
    chains.extend(Family::BOTH.map(discarded_chain));
    chains.extend(services.iter().map(Service::chain));
    chains.push(Chain::at(Hook::Prerouting, MANGLE, "prerouting", rules));
    Ruleset { table: TABLE, sets: flow_sets(capture), lists: Vec::new(), chains }
}

struct Service {
    chain: &'static str,
    protocol: u8,
    port: Option<u16>,
    listener: Option<Listener>,
}

/// First match wins.
fn services(capture: &Capture) -> [Service; 4] {
    let service = |chain, protocol, port, listener| Service { chain, protocol, port, listener };
    [
        service("to_dns_udp", UDP, Some(DNS_PORT), capture.dns_udp),
        service("to_dns_tcp", TCP, Some(DNS_PORT), capture.dns_tcp),
        service("to_tcp", TCP, None, Some(capture.tcp)),
        service("to_udp", UDP, None, capture.udp),
    ]
}

impl Service {
    fn rule(&self) -> Rule {
        let mut rule = vec![Expression::Protocol(self.protocol)];
        rule.extend(self.port.map(Expression::DestinationPort));
        rule.push(goto(self.chain));
        Rule(rule)
    }

    fn chain(&self) -> Chain {
        let mut rules: Vec<Rule> = self
            .ports()
            .map(|(family, port)| {
                Rule(vec![
                    Expression::Family(family),
                    Expression::Protocol(self.protocol),
                    Expression::Tproxy { family, port },
                    Expression::Counter,
                    Expression::Verdict(Verdict::Accept),
                ])
            })
            .collect();
        rules.push(refusal());
        Chain::new(self.chain, rules)
    }

    fn ports(&self) -> impl Iterator<Item = (Family, u16)> {
        let listener = self.listener;
        Family::BOTH.into_iter().filter_map(move |family| Some((family, listener?.port(family)?)))
    }
}

/// What is sent straight to a listener has no original destination.
fn own_chain(services: &[Service]) -> Chain {
    let rule = |service: &Service, (family, port)| {
        Rule(vec![
            Expression::Family(family),
            Expression::Protocol(service.protocol),
            Expression::DestinationPort(port),
            Expression::Counter,
            Expression::Reject,
        ])
    };
    Chain::new(LISTENERS, services.iter().flat_map(|own| own.ports().map(move |port| rule(own, port))).collect())
}

fn refusal() -> Rule {
    Rule(vec![Expression::Counter, Expression::Reject])
}

fn to(net: IpNet, then: Expression) -> Rule {
    Rule(vec![Expression::DestinationIn(net), then])
}

fn goto(chain: &str) -> Expression {
    Expression::Verdict(Verdict::Goto(chain.to_owned()))
}

const MANGLE: i32 = -150;
const LISTENERS: &str = "listeners";
const CAPTURED: &str = "captured";

const LOOPBACK: &[IpNet] = &[v4([127, 0, 0, 0], 8), v6([0, 0, 0, 0, 0, 0, 0, 1], 128)];

/// Nowhere that a flow could be relayed to.
const NOBODYS: &[IpNet] = &[
    v4([0, 0, 0, 0], 8),
    v4([224, 0, 0, 0], 4),
    v4([255, 255, 255, 255], 32),
    v6([0; 8], 128),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    // Mapped addresses would be dialled as what they map, loopback among them.
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96),
];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::fixture::text_of;

    fn rules() -> Ruleset {
        let capture = Capture {
            udp: Some(Listener::on(2)),
            dns_udp: Some(Listener::on(3)),
            dns_tcp: Some(Listener { v4: Some(4), v6: None }),
            ..Capture::tcp(Listener::on(1))
        };
        enclose(&capture, &["10.254.0.1".parse().unwrap(), "fd00:254::1".parse().unwrap()])
    }

    #[test]
    fn every_way_out_ends_at_a_listener_or_a_refusal() {
        let rules = rules();
        let prerouting = rules.chains.iter().find(|chain| chain.name == "prerouting").unwrap();
        let refusal = refusal();
        assert_eq!(prerouting.rules.last(), Some(&refusal));
        for name in ["captured", "to_dns_udp", "to_dns_tcp", "to_tcp", "to_udp"] {
            let chain = rules.chains.iter().find(|chain| chain.name == name).unwrap();
            assert_eq!(chain.rules.last(), Some(&refusal), "{chain}");
        }
        let text = text_of(&rules, "prerouting");
        let places =
            ["10.254.0.1/32 accept", "jump discard4", "224.0.0.0/4 reject", "saddr 10.254.0.1/32 goto captured"]
                .map(|word| text.find(word).unwrap_or_else(|| panic!("no {word} in\n{text}")));
        assert!(places.is_sorted(), "{text}");
        let captured = text_of(&rules, "captured");
        let places = ["dport 53", "goto to_tcp"].map(|word| captured.find(word).unwrap());
        assert!(places.is_sorted(), "{captured}");
    }

    #[test]
    fn only_the_commands_own_addresses_are_captured() {
        let text = text_of(&rules(), "prerouting");
        let ways: Vec<&str> = text.lines().filter(|line| line.contains("goto captured")).collect();
        assert_eq!(ways, ["ip saddr 10.254.0.1/32 goto captured", "ip6 saddr fd00:254::1/128 goto captured"]);
        assert!(!text.contains("tproxy") && !text.contains("goto to_"), "{text}");
    }

    #[test]
    fn a_family_without_a_listener_is_refused() {
        let text = text_of(&rules(), "to_dns_tcp");
        assert!(text.contains("tproxy ip to 127.0.0.1:4") && !text.contains("ip6"), "{text}");
    }

    #[test]
    fn nobody_reaches_a_listener_but_by_capture() {
        let text = text_of(&rules(), "listeners");
        assert_eq!(text.matches("reject").count(), 7, "{text}");
    }
}
