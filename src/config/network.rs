//! `[[network]]`: protected addresses, and what each direction does (SPEC N1-N2).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::mistake::{Place, Report};
use super::named::Named;
use super::reader::{Located, Table};
use super::{dns, inspection};
use crate::policy::DropAction;
use crate::policy::network::{Mode, Network, Port, ProtectedIp, Rule};
use crate::policy::rules::Policy;

/// A Network with what only the configuration needs of it.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) network: Arc<Network>,
    /// `None`: every enforcer.
    pub(super) enforcers: Option<Vec<String>>,
    /// Where each of `network.ips` is written.
    pub(super) places: Vec<Place>,
}

/// What a Network may name.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) policies: &'a Named<Option<Arc<Policy>>>,
    pub(super) ports: &'a Named<Option<Arc<Port>>>,
}

#[derive(Clone, Copy)]
enum Directions {
    Inbound,
    Outbound,
    Both,
}

impl Written {
    pub(super) fn acts_on(&self, enforcer: &str) -> bool {
        self.enforcers.as_ref().is_none_or(|names| names.iter().any(|name| name == enforcer))
    }
}

pub(super) fn read(mut table: Table<'_>, name: &str, known: Known<'_>, report: &Report) -> Option<Written> {
    let description = table.text("description").map(|text| text.value).unwrap_or_default();
    let enforcers = enforcers(&mut table);
    let mode = table.word("mode", MODES, Mode::Enforce);
    let ips = ips(&mut table, name, known, report);
    let (outbound, inbound) = rules(&mut table, name, known, report);
    let inspection = table.table("inspection").and_then(|table| inspection::read(table, report));
    let dns = table.table("dns").map(|table| dns::read(table, report)).unwrap_or_default();
    let (places, ips) = ips.into_iter().map(|ip| (ip.place, ip.value)).unzip();
    let name = name.into();
    let network = Arc::new(Network { name, description, mode, ips, outbound, inbound, inspection, dns });
    Some(Written { network, enforcers, places })
}

const MODES: &[(&str, Mode)] = &[("enforce", Mode::Enforce), ("monitor", Mode::Monitor), ("off", Mode::Off)];

fn enforcers(table: &mut Table<'_>) -> Option<Vec<String>> {
    let names = table.take("enforcers")?.items();
    Some(names.iter().filter_map(|name| name.text()).map(|name| name.value).collect())
}

fn ips(table: &mut Table<'_>, name: &str, known: Known<'_>, report: &Report) -> Vec<Located<ProtectedIp>> {
    let Some(written) = table.demand("ips", "[{ ip = \"10.1.0.0\", maskbits = 24 }]") else { return Vec::new() };
    let (place, items) = (written.place.clone(), written.items());
    if items.is_empty() {
        let mend = "write `ips = [{ ip = \"10.1.0.0\", maskbits = 24 }]`";
        report.error(&place, format!("the network `{name}` protects nothing"), mend);
    }
    let tables = items.into_iter().filter_map(|item| item.table());
    tables.filter_map(|table| protected_ip(table, known, report)).collect()
}

fn protected_ip(mut table: Table<'_>, known: Known<'_>, report: &Report) -> Option<Located<ProtectedIp>> {
    let place = table.place.clone();
    table.text("description");
    let port = table.text("port").filter(|port| port.value != "all").map(|port| known.ports.find(&port, report));
    let ip = table.demand("ip", "\"10.1.0.0\"").and_then(|value| value.text());
    let address = ip.as_ref().and_then(|ip| address(ip, report));
    let longest = if address.is_some_and(|address| address.is_ipv4()) { 32 } else { 128 };
    let has_mask = table.has("maskbits");
    let maskbits = match table.take("maskbits") {
        Some(value) => value.number(0..=longest)?,
        None => longest,
    };
    let prefix = prefix(&ip?, address?, u8::try_from(maskbits).ok()?, has_mask, report)?;
    let port = match port {
        None => None,
        Some(found) => Some(found?.clone()?),
    };
    Some(Located { value: ProtectedIp { prefix, port }, place })
}

pub(super) fn address(written: &Located<String>, report: &Report) -> Option<IpAddr> {
    let text = &written.value;
    let mend = match (text.parse::<IpAddr>(), text.parse::<IpNet>()) {
        (Ok(address), _) if address.to_canonical() == address => return Some(address),
        (Ok(address), _) => format!("write {}", address.to_canonical()),
        (_, Ok(net)) => format!("write ip = \"{}\", maskbits = {}", net.addr(), net.prefix_len()),
        _ => "write one such as 10.1.0.0 or 2001:db8::1".to_owned(),
    };
    report.error(&written.place, format!("`{text}` is no IPv4 or IPv6 address"), mend);
    None
}

fn prefix(ip: &Located<String>, address: IpAddr, maskbits: u8, has_mask: bool, report: &Report) -> Option<IpNet> {
    if address.is_unspecified() && !has_mask {
        report.error(&ip.place, format!("`{address}` without maskbits is one address"), "for all, add `maskbits = 0`");
        return None;
    }
    let net = IpNet::new(address, maskbits).ok()?;
    if net == net.trunc() {
        return Some(net);
    }
    let what = format!("`{address}` has bits set beyond its {maskbits} maskbits");
    let mend = format!("write ip = \"{}\", or leave maskbits out for this address alone", net.network());
    report.error(&ip.place, what, mend);
    None
}

type Rules = (Option<Rule>, Option<Rule>);

/// Outbound and inbound. `directions` left out means those that are given.
fn rules(table: &mut Table<'_>, name: &str, known: Known<'_>, report: &Report) -> Rules {
    let stated = table.take("directions").and_then(|value| Some((value.word(DIRECTIONS)?, value.place)));
    let outbound = (table.has("outbound"), rule(table, "outbound", known, report));
    let inbound = (table.has("inbound"), rule(table, "inbound", known, report));
    let Some((directions, place)) = stated else {
        if !outbound.0 && !inbound.0 {
            let mend = "add `outbound = { policy = \"..\", drop = \"tcp-reset\" }`";
            report.error(&table.place, format!("the network `{name}` judges no direction"), mend);
        }
        return (outbound.1, inbound.1);
    };
    let wants_outbound = !matches!(directions, Directions::Inbound);
    let wants_inbound = !matches!(directions, Directions::Outbound);
    for (key, wanted, given) in [("outbound", wants_outbound, outbound.0), ("inbound", wants_inbound, inbound.0)] {
        if wanted && !given {
            let what = format!("the network `{name}` has no policy for its {key} direction");
            report.error(&place, what, format!("add `{key} = {{ policy = \"..\", drop = \"discard\" }}`"));
        }
        if given && !wanted {
            let what = format!("`{key}` is given, but `directions` leaves that direction unjudged");
            report.error(&place, what, format!("write `directions = \"both\"`, or leave `{key}` out"));
        }
    }
    (outbound.1, inbound.1)
}

const DIRECTIONS: &[(&str, Directions)] =
    &[("inbound", Directions::Inbound), ("outbound", Directions::Outbound), ("both", Directions::Both)];

fn rule(table: &mut Table<'_>, key: &'static str, known: Known<'_>, report: &Report) -> Option<Rule> {
    let mut table = table.table(key)?;
    let policy = table.demand("policy", "\"..\"").and_then(|value| value.text());
    let drop = table.take("drop").and_then(|value| Some((value.word(DROPS)?, value.place)));
    if let Some((drop, place)) = &drop {
        warn_of_drop(*drop, key, place, report);
    }
    let policy = known.policies.find(&policy?, report)?.clone()?;
    Some(Rule { policy, drop: drop.map_or(DropAction::Discard, |(drop, _)| drop) })
}

const DROPS: &[(&str, DropAction)] = &[
    ("discard", DropAction::Discard),
    ("icmp-unreachable", DropAction::IcmpUnreachable),
    ("tcp-reset", DropAction::TcpReset),
];

/// SPEC N7.
fn warn_of_drop(drop: DropAction, direction: &str, place: &Place, report: &Report) {
    match (drop, direction) {
        (DropAction::Discard, _) => {}
        (_, "inbound") => {
            report.warning(
                place,
                format!("`{drop}` shows a scanner that something is there"),
                "`discard` shows nothing",
            );
        }
        (DropAction::TcpReset, _) => {
            let mend =
                "prefer `icmp-unreachable`, which ends other protocols too, unless a firewall between filters ICMP";
            report.warning(place, "`tcp-reset` ends TCP flows alone", mend);
        }
        _ => {}
    }
}
