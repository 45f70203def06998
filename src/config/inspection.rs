//! `[network.inspection]` (SPEC section 4).

use std::time::Duration;

use super::mistake::Report;
use super::table::Table;
use crate::policy::InspectionType;
use crate::policy::network::{Bind, Ech, HttpRequests, Inspection, Otherwise, Quic};

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
        quic: quic(&mut table),
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

fn quic(table: &mut Table<'_>) -> Quic {
    let written = table.take("quic").and_then(|value| value.switch(inspected, &[("block", Quic::Block)]));
    written.unwrap_or(Quic::Inspect)
}

fn inspected(inspects: bool) -> Quic {
    if inspects { Quic::Inspect } else { Quic::LeaveAlone }
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

#[cfg(test)]
mod tests {
    use super::super::table::read_alone;
    use super::*;

    #[test]
    fn what_is_left_out_has_the_defaults_of_the_interface() {
        let (inspection, mistakes) = read_alone("type = \"prefer-ip\"", read);
        let own = inspection.unwrap();
        assert!(mistakes.is_empty(), "{mistakes:?}");
        assert_eq!(
            (own.kind, &own.tls_ports[..], &own.http_ports[..]),
            (InspectionType::PreferIp, &[443][..], &[80][..])
        );
        assert_eq!((own.quic, own.packets, own.timeout), (Quic::Inspect, 5, Duration::from_secs(1)));
        assert_eq!((own.unidentified, own.unreadable), (Otherwise::IpVerdict, Otherwise::Block));
        assert_eq!((own.bind, own.use_bindings), (Bind::Off, false));
        assert_eq!((own.ech, own.http), (Ech::Allow, HttpRequests::Every));
    }

    #[test]
    fn every_word_is_read_as_what_it_says() {
        let text = r#"
type = "explicit"
tls_ports = [8443, 443]
http_ports = []
quic = false
packets = 9
timeout = "250ms"
unidentified = "block"
unreadable = "ip-verdict"
bind = "enforce"
use_bindings = true
ech = "block"
http = "first-request"
"#;
        let (inspection, mistakes) = read_alone(text, read);
        let own = inspection.unwrap();
        assert!(mistakes.is_empty(), "{mistakes:?}");
        assert_eq!(
            (own.kind, &own.tls_ports[..], &own.http_ports[..]),
            (InspectionType::Explicit, &[8443, 443][..], &[][..])
        );
        assert_eq!((own.quic, own.packets, own.timeout), (Quic::LeaveAlone, 9, Duration::from_millis(250)));
        assert_eq!((own.unidentified, own.unreadable), (Otherwise::Block, Otherwise::IpVerdict));
        assert_eq!((own.bind, own.use_bindings), (Bind::Enforce, true));
        assert_eq!((own.ech, own.http), (Ech::Block, HttpRequests::First));
    }

    #[test]
    fn sixteen_ports_are_taken_and_the_seventeenth_is_named() {
        let ports: Vec<String> = (1..=17).map(|port| port.to_string()).collect();
        let text = format!("type = \"prefer-ip\"\ntls_ports = [{}]\n", ports.join(", "));
        let (inspection, mistakes) = read_alone(&text, read);
        assert_eq!(inspection.unwrap().tls_ports.len(), 16);
        let expected =
            "t:2:69: error: port 17 is TLS inspection port number 17: leave it out: at most 16 in `tls_ports`";
        assert_eq!(mistakes, [expected]);
    }

    #[test]
    fn quic_is_inspected_left_alone_or_blocked_and_nothing_else() {
        let quic = |value: &str| {
            let (inspection, mistakes) = read_alone(&format!("type = \"explicit\"\nquic = {value}"), read);
            (inspection.unwrap().quic, mistakes.len())
        };
        assert_eq!(quic("true"), (Quic::Inspect, 0));
        assert_eq!(quic("false"), (Quic::LeaveAlone, 0));
        assert_eq!(quic("\"block\""), (Quic::Block, 0));
        assert_eq!(quic("\"blok\"").1, 1);
        assert_eq!(quic("1").1, 1);
    }

    #[test]
    fn every_type_has_its_own_word() {
        for kind in ["prefer-ip", "prefer-domain", "prefer-both", "explicit"] {
            let (inspection, _) = read_alone(&format!("type = \"{kind}\""), read);
            assert_eq!(inspection.unwrap().kind.as_str(), kind);
        }
    }
}
