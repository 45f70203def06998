//! `[network.inspection]` (SPEC section 4).

use std::time::Duration;

use super::mistake::Report;
use super::reader::Table;
use crate::policy::InspectionType;
use crate::policy::network::{Bind, Ech, HttpRequests, Inspection, Otherwise};

/// The most inspection ports of a kind (SPEC I1).
const MAX_PORTS: usize = 16;

pub(super) fn read(mut table: Table<'_>, report: &Report) -> Option<Inspection> {
    let kind = table.demand("type", "\"prefer-both\"").and_then(|value| value.word(KINDS));
    let tls_ports = ports(&mut table, "tls_ports", "TLS", 443, report);
    let http_ports = ports(&mut table, "http_ports", "HTTP", 80, report);
    if tls_ports.is_empty() && http_ports.is_empty() {
        report.warning(&table.place, "inspection without ports inspects nothing", "add `tls_ports = [443]`");
    }
    let binds = &[("off", Bind::Off), ("log", Bind::Log), ("enforce", Bind::Enforce)];
    let requests = &[("every-request", HttpRequests::Every), ("first-request", HttpRequests::First)];
    let timeout = Duration::from_millis(10)..=Duration::from_secs(60);
    let otherwise = &[("block", Otherwise::Block), ("ip-verdict", Otherwise::IpVerdict)];
    let inspection = Inspection {
        kind: kind.unwrap_or(InspectionType::PreferBoth),
        tls_ports,
        http_ports,
        quic: table.flag("quic", true),
        packets: u32::try_from(table.number("packets", 1..=1000, 5)).unwrap_or(5),
        timeout: table.duration("timeout", timeout, Duration::from_secs(1)),
        unidentified: table.word("unidentified", otherwise, Otherwise::IpVerdict),
        unreadable: table.word("unreadable", otherwise, Otherwise::Block),
        bind: table.word("bind", binds, Bind::Off),
        use_bindings: table.flag("use_bindings", false),
        ech: table.word("ech", &[("allow", Ech::Allow), ("block", Ech::Block)], Ech::Allow),
        http: table.word("http", requests, HttpRequests::Every),
    };
    kind.map(|_| inspection)
}

const KINDS: &[(&str, InspectionType)] = &[
    ("prefer-ip", InspectionType::PreferIp),
    ("prefer-domain", InspectionType::PreferDomain),
    ("prefer-both", InspectionType::PreferBoth),
    ("explicit", InspectionType::Explicit),
];

fn ports(table: &mut Table<'_>, key: &'static str, kind: &str, default: u16, report: &Report) -> Vec<u16> {
    let Some(items) = table.take(key).and_then(|written| written.items()) else { return vec![default] };
    let mut ports = Vec::new();
    let mut surplus = MAX_PORTS;
    for item in items {
        let Some(port) = item.number(1..=65535).and_then(|port| u16::try_from(port).ok()) else { continue };
        if ports.contains(&port) {
            report.warning(&item.place, format!("port {port} is named twice"), "name it once");
            continue;
        }
        if ports.len() >= MAX_PORTS {
            surplus += 1;
            let what = format!("port {port} is {kind} inspection port number {surplus}");
            report.error(&item.place, what, format!("leave it out: at most {MAX_PORTS} in `{key}`"));
            continue;
        }
        ports.push(port);
    }
    ports
}
