//! What DNS gave a client decides what a name is worth (SPEC V11, V12).

use std::net::SocketAddr;

use hickory_proto::rr::RecordType;
use tidegate::mode::demo::client::{Request, Saw, ask_http};
use tidegate::mode::demo::lab::{Lab, Site, client_address, client_network};
use tidegate::sys::rtnl::Family;

use super::resolver::*;
use crate::gateway::{DEADLINE, Gateway, at, servers};
use crate::inside::in_lab;

/// Nothing passes but `allowed.example`, by name.
fn configuration(inspection: &str, resolver: Option<SocketAddr>) -> String {
    let protected = |family| {
        let network = client_network(family);
        format!("{{ ip = \"{}\", maskbits = {} }}", network.network(), network.prefix_len())
    };
    let authorized = resolver.map_or(String::new(), |at| format!("\"{}\"", at.ip()));
    format!(
        r#"
name = "edge-1"
[[list]]
name = "allowed-names"
verdict = "allow"
entries = ["allowed.example"]
[[policy]]
name = "out"
default = "block"
lists = ["allowed-names"]
[[network]]
name = "clients"
directions = "outbound"
ips = [{}]
outbound = {{ policy = "out", drop = "tcp-reset" }}
[network.inspection]
type = "explicit"
{inspection}
[network.dns]
authorized_resolvers = [{authorized}]
"#,
        Family::BOTH.map(protected).join(", "),
    )
}

/// The truth about names: each site's first address is `allowed.example`.
fn truth(query: &[u8]) -> Vec<Vec<u8>> {
    let address = |family| Site::A.address(family, 1).to_string();
    vec![answered(query, 60, &address(Family::V4), &address(Family::V6))]
}

fn get(lab: &Lab, client: u8, destination: SocketAddr, name: &str) -> (Saw, SocketAddr) {
    let family = if destination.is_ipv4() { Family::V4 } else { Family::V6 };
    let source = client_address(family, client);
    let request = Request { source, destination, name: Some(name.to_owned()), patience: DEADLINE };
    let outcome = lab.client.run(|| ask_http(&request)).unwrap();
    (outcome.saw, outcome.source.unwrap())
}

fn is_answer(saw: &Saw) -> bool {
    matches!(saw, Saw::Answer(_))
}

fn record_of(gateway: &Gateway, source: SocketAddr) -> serde_json::Value {
    gateway.verdict_on(source)
}

#[test]
fn a_name_earns_its_allow_only_at_an_address_that_dns_gave_for_it() {
    in_lab(|lab| {
        let (_origins, _trust) = servers(lab);
        for family in Family::BOTH {
            let resolver = Resolver::start(lab, at(Site::A, family, 53, 53), truth);
            let gateway = Gateway::start(lab, &configuration("bind = \"enforce\"", Some(resolver.at)));
            let kind = if family == Family::V4 { RecordType::A } else { RecordType::AAAA };
            assert_eq!(addresses(&ask(lab, resolver.at, &question("allowed.example.", kind))).len(), 1);

            let (saw, source) = get(lab, 0, at(Site::A, family, 1, 80), "allowed.example");
            assert!(is_answer(&saw), "{saw:?}");
            assert_eq!(record_of(&gateway, source)["binding"], "match");
            assert_eq!(resolver.asked().len(), 1, "the binding was there already");

            let (saw, source) = get(lab, 0, at(Site::A, family, 2, 80), "allowed.example");
            assert_eq!(saw, Saw::Reset, "pinned elsewhere");
            let record = record_of(&gateway, source);
            assert_eq!((&record["binding"], &record["reason"]), (&"mismatch".into(), &"BINDING".into()));
            assert_eq!(resolver.asked().len(), 2, "one fresh look-up");

            let (saw, _) = get(lab, 5, at(Site::A, family, 1, 80), "allowed.example");
            assert!(is_answer(&saw), "a client that never asked, by a fresh look-up: {saw:?}");
            assert_eq!(resolver.asked().len(), 3);
            gateway.stop();
        }
    });
}

#[test]
fn a_mismatch_may_only_be_recorded() {
    in_lab(|lab| {
        let (_origins, _trust) = servers(lab);
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), truth);
        let gateway = Gateway::start(lab, &configuration("bind = \"log\"", Some(resolver.at)));
        let (saw, source) = get(lab, 0, at(Site::A, Family::V4, 2, 80), "allowed.example");
        assert!(is_answer(&saw), "{saw:?}");
        assert_eq!(record_of(&gateway, source)["binding"], "mismatch");
    });
}

#[test]
fn where_peeking_finds_nothing_the_name_that_dns_gave_serves() {
    in_lab(|lab| {
        let (_origins, _trust) = servers(lab);
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), truth);
        let gateway = Gateway::start(lab, &configuration("use_bindings = true", Some(resolver.at)));
        let address = Site::A.address(Family::V4, 1).to_string();
        // The host is an address, which names nobody.
        let (saw, _) = get(lab, 0, at(Site::A, Family::V4, 1, 80), &address);
        assert_eq!(saw, Saw::Reset);
        assert_eq!(addresses(&ask(lab, resolver.at, &question("allowed.example.", RecordType::A))).len(), 1);
        let (saw, source) = get(lab, 0, at(Site::A, Family::V4, 1, 80), &address);
        assert!(is_answer(&saw), "{saw:?}");
        let record = record_of(&gateway, source);
        assert_eq!((&record["type"], &record["domain"]), (&"DNS".into(), &"allowed.example".into()));
    });
}
