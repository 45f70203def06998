//! The verdict matrix with real flows: tests/data/verdicts.toml, over TLS and HTTP, IPv4 and IPv6.

use std::net::SocketAddr;

use serde_json::Value;
use tidegate::mode::demo::client::{Outcome, Saw, Trust, ask_http, ask_tls};
use tidegate::mode::demo::lab::{Lab, Site};
use tidegate::mode::demo::tap::Tap;
use tidegate::sys::rtnl::Family;

use crate::gateway::{Gateway, NAMES, at, configuration, is_from, is_verdict, request, servers};
use crate::inside::in_lab;

#[test]
fn prefer_ip_lets_the_address_decide() {
    in_lab(|lab| every_cell_holds(lab, "prefer-ip"));
}

#[test]
fn prefer_domain_lets_the_name_decide_and_the_address_where_no_name_is_shown() {
    in_lab(|lab| every_cell_holds(lab, "prefer-domain"));
}

#[test]
fn prefer_both_blocks_what_either_blocks() {
    in_lab(|lab| every_cell_holds(lab, "prefer-both"));
}

#[test]
fn explicit_lets_a_listed_name_decide_and_the_address_otherwise() {
    in_lab(|lab| every_cell_holds(lab, "explicit"));
}

#[test]
fn the_demo_finds_everything_as_expected_and_says_so_to_programs() {
    let mut demo = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let output = demo.args(["demo", "--json"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("this machine refuses") && std::env::var_os("CI").is_none() {
        return;
    }
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    let wrong: Vec<_> = report["flows"].as_array().unwrap().iter().filter(|f| f["as_expected"] != true).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(report["summary"]["ok"], true);
    assert_eq!(report["summary"]["flows"], (24 + 8 + 3) * 6);
    assert!(output.status.success());
}

/// client -- gateway (tidegate run) -- server (TLS on 443, HTTP on 80, at every address of both sites)
fn every_cell_holds(lab: &Lab, inspection: &str) {
    let table: toml::Table = include_str!("../data/verdicts.toml").parse().unwrap();
    let (_origins, trust) = servers(lab);
    let tap = Tap::at_server(lab).unwrap();
    let gateway = Gateway::start(lab, &configuration("tcp-reset", &format!("type = \"{inspection}\"")));

    let mut tried = Vec::new();
    for (site, row) in [(Site::A, "allow"), (Site::B, "block")] {
        let cells = &table[inspection];
        for (column, name) in NAMES.into_iter().enumerate() {
            let passes = cells[row][column].as_str() == Some("A");
            tried.extend(try_cell(lab, &trust, site, Some(name), column as u8 + 1, passes));
        }
        let passes = cells["no_name"][usize::from(site == Site::B)].as_str() == Some("A");
        tried.extend(try_cell(lab, &trust, site, None, 4, passes));
    }
    assert_eq!(tried.len(), 8 * 4);

    let records = gateway.stop().records();
    for flow in &tried {
        let arrived = tap.count(lab, flow.destination).unwrap();
        assert_eq!(arrived > 0, flow.passes, "{flow:?}: {arrived} packets reached the server");
        let verdicts: Vec<_> = records.iter().filter(|r| is_from(r, flow.source) && is_verdict(r)).collect();
        let [record] = verdicts[..] else { panic!("{flow:?} has not one verdict: {verdicts:#?}") };
        assert_record(flow, record, inspection);
    }
}

#[derive(Debug)]
struct Tried {
    source: SocketAddr,
    destination: SocketAddr,
    name: Option<&'static str>,
    site: Site,
    speaks: &'static str,
    passes: bool,
}

fn try_cell(lab: &Lab, trust: &Trust, site: Site, name: Option<&'static str>, host: u8, passes: bool) -> Vec<Tried> {
    let mut tried = Vec::new();
    for family in Family::BOTH {
        for (speaks, port) in [("TLS", 443), ("HTTP", 80)] {
            let destination = at(site, family, host, port);
            let request = request(family, destination, name);
            let ask = || if speaks == "TLS" { ask_tls(&request, trust) } else { ask_http(&request) };
            let Outcome { saw, source } = lab.client.run(ask).unwrap();
            let source = source.unwrap_or_else(|| panic!("{request:?} found no listener: {saw}"));
            match passes {
                true => assert_eq!(saw, Saw::Answer(format!("{} asked {destination}\n", source.ip())), "{request:?}"),
                false => assert_eq!(saw, Saw::Reset, "{request:?}"),
            }
            tried.push(Tried { source, destination, name, site, speaks, passes });
        }
    }
    tried
}

fn assert_record(flow: &Tried, record: &Value, inspection: &str) {
    let expected = [
        ("kind", Some(if flow.name.is_some() { "domain" } else { "ip" })),
        ("enforcer", Some("edge-1")),
        ("network", Some("clients")),
        ("policy", Some("out")),
        ("direction", Some("outbound")),
        ("protocol", Some("tcp")),
        ("type", Some(flow.speaks)),
        ("domain", flow.name),
        ("ip_verdict", Some(if flow.site == Site::A { "allow" } else { "block" })),
        ("domain_verdict", domain_verdict(flow.name)),
        ("inspection", Some(inspection)),
        ("verdict", Some(if flow.passes { "allow" } else { "block" })),
        ("action", (!flow.passes).then_some("tcp-reset")),
    ];
    for (field, value) in expected {
        assert_eq!(record[field].as_str(), value, "{field} of {record:#} for {flow:?}");
    }
    assert_eq!(record["destination"], flow.destination.ip().to_string());
    assert_eq!(record["destination_port"], flow.destination.port());
    assert!(record["reason"].is_string() && record["flow"].is_u64(), "{record:#}");
    if flow.speaks == "TLS" {
        assert_eq!(record["ja3"].as_str().map(str::len), Some(32), "{record:#}");
        assert!(record["ja4"].as_str().is_some_and(|ja4| ja4.starts_with('t')), "{record:#}");
    }
}

fn domain_verdict(name: Option<&str>) -> Option<&'static str> {
    match name {
        Some("allowed.example") => Some("allow"),
        Some("blocked.example") => Some("block"),
        Some(_) => Some("none"),
        None => None,
    }
}
