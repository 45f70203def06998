//! `[[network]]`: protected addresses, and what each direction does (SPEC N1-N2).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::mistake::{Place, Report};
use super::named::{Named, check_name};
use super::port::{TCP, UDP};
use super::table::Table;
use super::value::Located;
use super::{dns, inspection, rule};
use crate::policy::network::{Bind, DNS_PORT, Dns, Inspection, Mode, Network, Port, ProtectedIp, Rule};
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
    pub(super) policies: &'a Named<Arc<Policy>>,
    pub(super) ports: &'a Named<Arc<Port>>,
}

impl Written {
    pub(super) fn acts_on(&self, enforcer: &str) -> bool {
        self.enforcers.as_ref().is_none_or(|names| names.iter().any(|name| name == enforcer))
    }
}

pub(super) fn read(mut table: Table<'_>, name: &str, known: Known<'_>, report: &Report) -> Option<Written> {
    let description = table.text("description").map(|text| text.value).unwrap_or_default();
    let enforcers = enforcers(&mut table, report);
    let mode = table.word("mode", MODES, Mode::Enforce);
    let ips = ips(&mut table, name, known, report);
    let (outbound, inbound) = rule::read(&mut table, name, &ips, known, report);
    let inspection = table.table("inspection");
    let inspected_at = inspection.as_ref().map(|table| table.place.clone());
    let inspection = inspection.and_then(|table| inspection::read(table, report));
    if let Some(inspection) = inspection.as_ref().filter(|inspection| !applies(inspection, &ips)) {
        warn_of_idle_inspection(&table, inspection, report);
    }
    let asked = table.table("dns");
    let asked_at = asked.as_ref().map(|table| table.place.clone());
    let dns = asked.map(|table| dns::read(table, report)).unwrap_or_default();
    if let Some(place) = asked_at.filter(|_| report.errors() == 0) {
        warn_of_idle_dns(outbound.is_some(), &ips, &place, report);
    }
    if inspection.is_none() && report.errors() == 0 {
        warn_of_idle_fingerprints(&table, outbound.iter().chain(&inbound), report);
    }
    if let (Some(inspection), Some(place)) = (&inspection, inspected_at) {
        warn_of_anybodys_word(inspection, &dns, &place, report);
    }
    let (places, ips) = ips.into_iter().map(|ip| (ip.place, ip.value)).unzip();
    let name = name.into();
    let network = Arc::new(Network { name, description, mode, ips, outbound, inbound, inspection, dns });
    Some(Written { network, enforcers, places })
}

/// Whether any inspection port of the Network is one that its Ports cover.
fn applies(inspection: &Inspection, ips: &[Located<ProtectedIp>]) -> bool {
    let mut ports = inspection.tls_ports.iter().chain(&inspection.http_ports);
    let covered = |port: u16| {
        ips.iter().any(|ip| {
            ip.value.port.as_ref().is_none_or(|own| own.covers(TCP, Some(port)) || own.covers(UDP, Some(port)))
        })
    };
    ips.is_empty() || ports.any(|port| covered(*port))
}

fn warn_of_idle_inspection(table: &Table<'_>, inspection: &Inspection, report: &Report) {
    if inspection.tls_ports.is_empty() && inspection.http_ports.is_empty() {
        return;
    }
    let what = "none of the inspection ports is in a Port of `ips`: nothing is inspected";
    report.warning(&table.place, what, "add them to the Port, or leave the inspection out");
}

fn warn_of_idle_dns(judges_outbound: bool, ips: &[Located<ProtectedIp>], place: &Place, report: &Report) {
    let is_covered = |own: &ProtectedIp, protocol| {
        let mut around = ips.iter().map(|ip| &ip.value).filter(|ip| ip.prefix.contains(&own.prefix));
        around.any(|ip| ip.port.as_ref().is_none_or(|port| port.covers(protocol, Some(DNS_PORT))))
    };
    if !judges_outbound {
        let what = "no question of DNS is judged here: the network has no policy for outbound";
        report.warning(place, what, "add one, or leave this table out");
    } else if let Some(ip) = ips.iter().find(|ip| ![TCP, UDP].iter().all(|protocol| is_covered(&ip.value, *protocol))) {
        let what = format!("questions of DNS from {} are not all judged here: its Port lacks 53", ip.value.prefix);
        report.warning(place, what, "add port 53 over udp and tcp to the Port, or leave this table out");
    }
}

/// Only a peek shows a fingerprint.
fn warn_of_idle_fingerprints<'a>(table: &Table<'_>, rules: impl Iterator<Item = &'a Rule>, report: &Report) {
    if let Some(rule) = rules.into_iter().find(|rule| !rule.policy.fingerprints.is_empty()) {
        let what = format!("the fingerprints of the policy `{}` are not looked at here", rule.policy.name);
        report.warning(&table.place, what, "add [network.inspection], or take a policy without them");
    }
}

/// A client that may ask any resolver asks its own, which gives any address for any name.
fn warn_of_anybodys_word(inspection: &Inspection, dns: &Dns, place: &Place, report: &Report) {
    let believes = inspection.bind != Bind::Off || inspection.use_bindings;
    if believes && dns.trusted_resolvers().is_empty() {
        report.warning(place, ANYBODYS_WORD, "set `authorized_resolvers` or `upstream` in [network.dns]");
    }
}

/// A warning that does not hold where somebody else names the resolver.
pub const ANYBODYS_WORD: &str =
    "names count by what DNS says of them, and any resolver may be asked: a client's own decides";

const MODES: &[(&str, Mode)] = &[("enforce", Mode::Enforce), ("monitor", Mode::Monitor), ("off", Mode::Off)];

fn enforcers(table: &mut Table<'_>, report: &Report) -> Option<Vec<String>> {
    let names = table.take("enforcers")?.items()?;
    let names = names.iter().filter_map(|name| name.text()).filter(|name| check_name(name, report));
    Some(names.map(|name| name.value).collect())
}

fn ips(table: &mut Table<'_>, name: &str, known: Known<'_>, report: &Report) -> Vec<Located<ProtectedIp>> {
    let Some(written) = table.demand("ips", "[{ ip = \"10.1.0.0\", maskbits = 24 }]") else { return Vec::new() };
    let place = written.place.clone();
    let Some(items) = written.items() else { return Vec::new() };
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
        Some(found) => Some(found?.clone()),
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
