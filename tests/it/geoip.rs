//! Countries and ASNs, judged in the kernel and by the gateway alike, from files that change while it runs.
//!
//! ```text
//! client -- gateway (tidegate run) -- server: site A is in one country and system, site B in another
//! ```

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;
use tidegate::mode::demo::client::{self, Saw, ask_http};
use tidegate::mode::demo::lab::{Lab, Site};
use tidegate::sys::rtnl::Family;

use crate::gateway::{DEADLINE, Gateway, at, configuration, listen, request, servers};
use crate::inside::in_lab;
use crate::mmdb::{Mmdb, Record};

const NEWS: &str = "a database is in force anew";
/// A port that nobody inspects.
const PORT: u16 = 9000;

fn country(code: &str) -> Record {
    Record::Country(code.into())
}

/// A database of the two sites in both families, put in place at once.
fn write(folder: &Path, name: &str, [a, b]: [Record; 2]) {
    let sites = [(Site::A, a), (Site::B, b)];
    let networks =
        sites.into_iter().flat_map(|(site, code)| Family::BOTH.map(|family| (site.prefix(family), code.clone())));
    put(folder, name, &Mmdb::new("Test", networks).octets());
}

fn put(folder: &Path, name: &str, octets: &[u8]) {
    let beside = folder.join("beside");
    std::fs::write(&beside, octets).unwrap();
    std::fs::rename(beside, folder.join(name)).unwrap();
}

/// The usual configuration, without its list of addresses and with these rules.
fn with_rules(folder: &Path, rules: &str) -> String {
    let (country, asn) = (folder.join("country.mmdb"), folder.join("asn.mmdb"));
    let geoip = format!("geoip = {{ country = {country:?}, asn = {asn:?} }}\n[[list]]");
    let text = configuration("tcp-reset", "type = \"prefer-ip\"").replacen("[[list]]", &geoip, 1);
    text.replace("lists = [\"blocked-addresses\", ", &format!("{rules}\nlists = ["))
}

fn connects(lab: &Lab, to: SocketAddr) -> bool {
    let request = request(crate::gateway::family_of(to.ip()), to, None);
    match lab.client.run(|| client::connect(&request)).unwrap() {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
            false
        }
    }
}

/// On the port that nobody inspects and on one that is, in both families, with what is recorded of them.
fn assert_judged(lab: &Lab, gateway: &Gateway, site: Site, host: u8, passes: bool, why: (&str, Option<&str>)) {
    for family in Family::BOTH {
        let (to, web) = (at(site, family, host, PORT), at(site, family, host, 80));
        assert_eq!(connects(lab, to), passes, "{to} {why:?}");
        let saw = lab.client.run(|| ask_http(&request(family, web, Some("unlisted.example")))).unwrap().saw;
        assert_eq!(matches!(saw, Saw::Answer(_)), passes, "{web} {saw:?}");
        for to in [to, web] {
            let is_it = |record: &serde_json::Value| {
                record["destination"] == to.ip().to_string()
                    && record["destination_port"] == to.port()
                    && record["reason"] == why.0
                    && record["verdict"] == if passes { "allow" } else { "block" }
                    && record["list"].as_str() == why.1
            };
            let found = gateway.enforcer.record(is_it, DEADLINE);
            assert!(found.is_some(), "{to} {why:?}: {:#?}", gateway.enforcer.records());
        }
    }
}

fn said_after(gateway: &Gateway, passed: usize, what: &str) {
    let said = gateway.enforcer.message_after(passed, |line| line.contains(what), DEADLINE);
    assert!(said.is_some(), "{what}: {:#?}", gateway.enforcer.messages());
}

#[test]
fn countries_and_asns_decide_in_the_kernel_and_in_the_gateway_and_are_recorded_by_their_codes() {
    in_lab(|lab| {
        let ((_origins, _), folder, _accepted) = (servers(lab), TempDir::new().unwrap(), listen(lab, PORT));
        write(folder.path(), "country.mmdb", [country("KP"), country("DE")]);
        write(folder.path(), "asn.mmdb", [Record::Asn(64_500), Record::Asn(64_501)]);
        let rules = "countries = { block = [\"KP\", \"DE\"] }\nasns = { allow = [64501] }";
        let gateway = Gateway::start(lab, &with_rules(folder.path(), rules));
        assert_judged(lab, &gateway, Site::A, 1, false, ("COUNTRY", Some("country:KP")));
        assert_judged(lab, &gateway, Site::B, 1, true, ("ASN", Some("asn:64501")));

        gateway.rewrite(&with_rules(folder.path(), "countries = { block = [\"KP\"] }\nasns = { block = [64501] }"));
        gateway.reload();
        assert_judged(lab, &gateway, Site::A, 2, false, ("COUNTRY", Some("country:KP")));
        assert_judged(lab, &gateway, Site::B, 2, false, ("ASN", Some("asn:64501")));
        gateway.stop();
    });
}

#[test]
fn a_database_that_changes_is_taken_and_a_damaged_one_never_is() {
    in_lab(|lab| {
        let ((_origins, _), folder, _accepted) = (servers(lab), TempDir::new().unwrap(), listen(lab, PORT));
        write(folder.path(), "country.mmdb", [country("KP"), country("DE")]);
        write(folder.path(), "asn.mmdb", [Record::Asn(64_500), Record::Asn(64_501)]);
        let gateway = Gateway::start(lab, &with_rules(folder.path(), "countries = { block = [\"KP\"] }"));
        assert_judged(lab, &gateway, Site::A, 1, false, ("COUNTRY", Some("country:KP")));
        assert_judged(lab, &gateway, Site::B, 1, true, ("DEFAULT", None));

        let passed = gateway.enforcer.messages().len();
        write(folder.path(), "country.mmdb", [country("DE"), country("KP")]);
        said_after(&gateway, passed, NEWS);
        assert_judged(lab, &gateway, Site::A, 2, true, ("DEFAULT", None));
        assert_judged(lab, &gateway, Site::B, 2, false, ("COUNTRY", Some("country:KP")));

        let good = std::fs::read(folder.path().join("country.mmdb")).unwrap();
        let passed = gateway.enforcer.messages().len();
        put(folder.path(), "country.mmdb", &good[..good.len() - 40]);
        said_after(&gateway, passed, "what is new is not taken");
        let passed = gateway.enforcer.messages().len();
        kill_process(gateway.enforcer.pid(), Signal::HUP).unwrap();
        said_after(&gateway, passed, "country database");
        assert_judged(lab, &gateway, Site::A, 3, true, ("DEFAULT", None));
        assert_judged(lab, &gateway, Site::B, 3, false, ("COUNTRY", Some("country:KP")));
        let ended = gateway.stop();
        let last = ended.messages.iter().rfind(|line| line.contains("ended: ")).unwrap();
        assert!(last.contains("lists_replaced=1") && last.contains("lists_refused=1"), "{last}");
    });
}
