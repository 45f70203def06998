//! Networks that tie for a packet (SPEC N4), and those that take packets from another without judging them.
//!
//! The longest prefix whose Port covers a packet judges it. So two Networks tie exactly if both protect the *same* prefix, with
//! Ports that share a protocol and a port, on an enforcer that both act on. Directions do not separate them: a
//! packet belongs to one Network, whatever that Network then does with its direction. A Network that is off ties with none.

use std::collections::HashMap;

use ipnet::IpNet;

use super::mistake::{Place, Report};
use super::named::Named;
use super::network::Written;
use super::port::{TCP, UDP};
use crate::policy::Direction;
use crate::policy::network::{Mode, Port, Protocol};
use crate::policy::protocol::PROTOCOLS;

struct Claim<'a> {
    written: &'a Written,
    prefix: IpNet,
    port: Option<&'a Port>,
    place: &'a Place,
}

pub(super) fn check(networks: &Named<Written>, report: &Report) {
    let mut claims: HashMap<IpNet, Vec<Claim<'_>>> = HashMap::new();
    for claim in networks.iter().flat_map(claims_of) {
        let rivals = claims.entry(claim.prefix).or_default();
        // One tie is enough to say of each address.
        if let Some((rival, shared)) = rivals.iter().find_map(|rival| Some((rival, claim.shares_with(rival)?))) {
            claim.report_tie(rival, &shared, report);
        }
        rivals.push(claim);
    }
    for same_prefix in claims.values() {
        if let Some(claim) = same_prefix.iter().find(|claim| claim.port.is_some() && !claim.has_catch_all(&claims)) {
            claim.report_hole(report);
        }
    }
    for claim in claims.values().flatten() {
        let around = wider(claim.prefix).filter_map(|prefix| claims.get(&prefix)).flatten();
        let robbed = around.filter_map(|other| Some((other, claim.takes_unjudged(other)?)));
        if let Some((other, direction)) = robbed.last() {
            claim.report_gap(other, direction, report);
        }
    }
}

fn claims_of(written: &Written) -> impl Iterator<Item = Claim<'_>> {
    let ips = written.network.ips.iter().zip(&written.places).filter(|_| written.network.mode != Mode::Off);
    ips.map(|(ip, place)| Claim { written, prefix: ip.prefix, port: ip.port.as_deref(), place })
}

/// Every prefix that holds this one, widest first.
fn wider(prefix: IpNet) -> impl Iterator<Item = IpNet> {
    (0..prefix.prefix_len()).filter_map(move |length| Some(IpNet::new(prefix.addr(), length).ok()?.trunc()))
}

impl Claim<'_> {
    /// What both would judge, in words.
    fn shares_with(&self, rival: &Self) -> Option<String> {
        let same_network = std::ptr::eq(self.written, rival.written);
        if !same_network && !meet(self.written.enforcers.as_deref(), rival.written.enforcers.as_deref()) {
            return None;
        }
        overlap(self.port, rival.port)
    }

    fn report_tie(&self, rival: &Self, shared: &str, report: &Report) {
        let prefix = self.prefix;
        let (own, other) = (&self.written.network.name, &rival.written.network.name);
        let there = rival.place.line();
        if std::ptr::eq(self.written, rival.written) {
            let what = format!("`{own}` names {prefix}, {shared} twice");
            return report.warning(self.place, what, format!("leave it out: the first is at {there}"));
        }
        let what = format!("the networks `{other}` and `{own}` tie for packets of {prefix}, {shared}");
        let mend = format!(
            "the other is at {there}: give them different prefixes, Ports that do not overlap, or different `enforcers`"
        );
        report.error(self.place, what, mend);
    }
}

impl Claim<'_> {
    /// The direction that the wider Network judges, and this one, to which the packets go, does not.
    fn takes_unjudged(&self, wider: &Self) -> Option<Direction> {
        let (own, other) = (&self.written.network, &wider.written.network);
        let gap = |direction: &Direction| own.rule(*direction).is_none() && other.rule(*direction).is_some();
        let direction = [Direction::Outbound, Direction::Inbound].into_iter().find(gap)?;
        self.shares_with(wider).map(|_| direction)
    }

    /// Whether some Network judges the packets of this prefix that the Port does not cover.
    fn has_catch_all(&self, claims: &HashMap<IpNet, Vec<Claim<'_>>>) -> bool {
        let around = wider(self.prefix).chain([self.prefix]).filter_map(|prefix| claims.get(&prefix)).flatten();
        let mut catch_alls = around.filter(|other| other.port.is_none());
        catch_alls.any(|other| meet(self.written.enforcers.as_deref(), other.written.enforcers.as_deref()))
    }

    fn report_hole(&self, report: &Report) {
        let what = format!("packets of {} that no Port named for it covers pass unjudged", self.prefix);
        let mend = "add a network with a shorter prefix, such as 0.0.0.0/0, for all the rest, if that is not meant";
        report.warning(self.place, what, mend);
    }

    fn report_gap(&self, wider: &Self, direction: Direction, report: &Report) {
        let (own, other) = (&self.written.network.name, &wider.written.network.name);
        let (prefix, around) = (self.prefix, wider.prefix);
        let what = format!(
            "{direction} flows of {prefix} pass unjudged: `{own}` takes them from `{other}` ({around}), which judges them"
        );
        report.warning(self.place, what, format!("give `{own}` a policy for {direction}, if that is not meant"));
    }
}

fn meet(a: Option<&[String]>, b: Option<&[String]>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(names), None) | (None, Some(names)) => !names.is_empty(),
        (Some(a), Some(b)) => a.iter().any(|name| b.contains(name)),
    }
}

fn overlap(a: Option<&Port>, b: Option<&Port>) -> Option<String> {
    match (a, b) {
        (None, None) => Some("every protocol and port".to_owned()),
        (Some(port), None) | (None, Some(port)) => Some(format!("every protocol and port of the Port `{}`", port.name)),
        (Some(a), Some(b)) => {
            a.protocols.iter().find_map(|own| b.protocols.iter().find_map(|other| shared(own, other)))
        }
    }
}

fn shared(a: &Protocol, b: &Protocol) -> Option<String> {
    if a.number != b.number {
        return None;
    }
    let name = protocol_name(a.number);
    if !matches!(a.number, TCP | UDP) {
        return Some(name);
    }
    let common = a.ports.iter().find_map(|own| {
        b.ports.iter().find_map(|other| {
            let (low, high) = (*own.start().max(other.start()), *own.end().min(other.end()));
            (low <= high).then_some((low, high))
        })
    });
    common.map(
        |(low, high)| if low == high { format!("{name} port {low}") } else { format!("{name} ports {low}-{high}") },
    )
}

fn protocol_name(number: u8) -> String {
    let known = PROTOCOLS.iter().find(|(_, own)| *own == number);
    known.map_or_else(|| format!("protocol {number}"), |(name, _)| (*name).to_owned())
}
