//! Networks that tie for a packet (SPEC N4).
//!
//! The longest prefix whose Port covers a packet judges it. So two Networks tie exactly if both protect the *same* prefix, with
//! Ports that share a protocol and a port, on an enforcer that both act on. Directions do not separate them: a
//! packet belongs to one Network, whatever that Network then does with its direction. A Network that is off ties with none.

use std::collections::HashMap;

use ipnet::IpNet;

use super::mistake::{Place, Report};
use super::named::Named;
use super::network::Written;
use super::port::{PROTOCOLS, TCP, UDP};
use crate::policy::network::{Mode, Port, Protocol};

struct Claim<'a> {
    written: &'a Written,
    port: Option<&'a Port>,
    place: &'a Place,
}

pub(super) fn check(networks: &Named<Option<Written>>, report: &Report) {
    let mut claims: HashMap<IpNet, Vec<Claim<'_>>> = HashMap::new();
    for written in networks.iter().flatten().filter(|written| written.network.mode != Mode::Off) {
        for (ip, place) in written.network.ips.iter().zip(&written.places) {
            let claim = Claim { written, port: ip.port.as_deref(), place };
            let rivals = claims.entry(ip.prefix).or_default();
            // One tie is enough to say of each address.
            if let Some((rival, shared)) = rivals.iter().find_map(|rival| Some((rival, claim.shares_with(rival)?))) {
                claim.report(rival, ip.prefix, &shared, report);
            }
            rivals.push(claim);
        }
    }
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

    fn report(&self, rival: &Self, prefix: IpNet, shared: &str, report: &Report) {
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
        (Some(port), None) | (None, Some(port)) => Some(format!("the Port `{}`", port.name)),
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
