//! What the demo tries: every cell of the verdict matrix, and every way to be refused. And what is expected of each,
//! written out here and not asked of the code that judges.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use super::lab::{Site, client_address};
use super::origin::{HTTP_PORT, TLS_PORT};
use crate::policy::{DropAction, InspectionType};
use crate::sys::rtnl::Family;

/// The four inspection types, each with the outcomes for an allowed and for a blocked address (A passes, B is
/// blocked), in the order of [`Named::ALL`].
pub(super) const EXPECTED: [(InspectionType, &str, &str); 4] = [
    (InspectionType::PreferIp, "AAAA", "BBBB"),
    (InspectionType::PreferDomain, "ABAA", "ABAB"),
    (InspectionType::PreferBoth, "ABAA", "BBBB"),
    (InspectionType::Explicit, "ABAA", "ABBB"),
];

/// What a flow shows of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Allowed,
    Blocked,
    Unlisted,
    NotAtAll,
}

impl Named {
    pub(super) const ALL: [Self; 4] = [Self::Allowed, Self::Blocked, Self::Unlisted, Self::NotAtAll];

    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Allowed => Some("allowed.example"),
            Self::Blocked => Some("blocked.example"),
            Self::Unlisted => Some("unlisted.example"),
            Self::NotAtAll => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Tls,
    Http,
    Quic,
}

impl Speaks {
    pub(super) const ALL: [Self; 3] = [Self::Tls, Self::Http, Self::Quic];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Quic => "quic",
        }
    }
}

/// One flow to make, and what must come of it.
#[derive(Clone, Debug)]
pub(super) struct Trial {
    pub(super) inspection: InspectionType,
    pub(super) drop: DropAction,
    pub(super) site: Site,
    pub(super) named: Named,
    pub(super) family: Family,
    pub(super) speaks: Speaks,
    pub(super) source: IpAddr,
    /// No other trial has it, so that the server's packets tell the trials apart.
    pub(super) destination: SocketAddr,
    pub(super) passes: bool,
}

/// Every cell of the matrix, over TLS, HTTP and QUIC, IPv4 and IPv6.
pub(super) fn matrix() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (row, (inspection, on_allowed, on_blocked)) in (0_u8..).zip(EXPECTED) {
        for (site, outcomes) in [(Site::A, on_allowed), (Site::B, on_blocked)] {
            for (column, (named, outcome)) in (0_u8..).zip(Named::ALL.into_iter().zip(outcomes.chars())) {
                for (family, speaks) in each_way() {
                    trials.push(Trial {
                        inspection,
                        drop: DropAction::TcpReset,
                        site,
                        named,
                        family,
                        speaks,
                        source: client_address(family, row),
                        destination: destination(site, family, speaks, 1 + 4 * row + column),
                        passes: outcome == 'A',
                    });
                }
            }
        }
    }
    trials
}

/// One blocked name under each drop action, over TLS, HTTP and QUIC, IPv4 and IPv6.
pub(super) fn refusals() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (row, drop) in (0_u8..).zip(DROPS) {
        for (family, speaks) in each_way() {
            trials.push(Trial {
                inspection: InspectionType::PreferBoth,
                drop,
                site: Site::A,
                named: Named::Blocked,
                family,
                speaks,
                source: client_address(family, FIRST_REFUSED + row),
                destination: destination(Site::A, family, speaks, 101 + row),
                passes: false,
            });
        }
    }
    trials
}

/// The configuration that the gateway of the demo runs with.
pub(super) fn configuration() -> String {
    let mut text = format!(
        r#"name = "demo"

[telemetry]
metrics = "off"
socket = "off"

[[list]]
name = "blocked-addresses"
verdict = "block"
entries = ["{}", "{}"]

[[list]]
name = "allowed-names"
verdict = "allow"
entries = ["allowed.example"]

[[list]]
name = "blocked-names"
verdict = "block"
entries = ["blocked.example"]

[[policy]]
name = "demo"
default = "allow"
lists = ["blocked-addresses", "allowed-names", "blocked-names"]
"#,
        Site::B.prefix(Family::V4),
        Site::B.prefix(Family::V6),
    );
    for (row, (inspection, ..)) in (0_u8..).zip(EXPECTED) {
        write_network(&mut text, inspection.as_str(), row, inspection, DropAction::TcpReset);
    }
    for (row, drop) in (0_u8..).zip(DROPS) {
        write_network(&mut text, drop.as_str(), FIRST_REFUSED + row, InspectionType::PreferBoth, drop);
    }
    text
}

fn write_network(text: &mut String, name: &str, client: u8, inspection: InspectionType, drop: DropAction) {
    let (v4, v6) = (client_address(Family::V4, client), client_address(Family::V6, client));
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        r#"
[[network]]
name = "{name}"
directions = "outbound"
ips = [{{ ip = "{v4}", maskbits = 32 }}, {{ ip = "{v6}", maskbits = 128 }}]
outbound = {{ policy = "demo", drop = "{drop}" }}

[network.inspection]
type = "{inspection}"
"#
    );
}

fn each_way() -> impl Iterator<Item = (Family, Speaks)> {
    Family::BOTH.into_iter().flat_map(|family| Speaks::ALL.map(|speaks| (family, speaks)))
}

fn destination(site: Site, family: Family, speaks: Speaks, host: u8) -> SocketAddr {
    // QUIC has TLS's port, and so hosts of its own.
    let (host, port) = match speaks {
        Speaks::Tls => (host, TLS_PORT),
        Speaks::Http => (host, HTTP_PORT),
        Speaks::Quic => (host + 120, TLS_PORT),
    };
    SocketAddr::new(site.address(family, host), port)
}

pub(super) const DROPS: [DropAction; 3] = [DropAction::Discard, DropAction::IcmpUnreachable, DropAction::TcpReset];
/// The first client address of the networks that refuse in different ways.
const FIRST_REFUSED: u8 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_tried_six_ways_and_no_two_trials_share_a_destination() {
        let mut trials = matrix();
        assert_eq!(trials.len(), (24 + 8) * 6);
        trials.extend(refusals());
        let mut destinations: Vec<_> = trials.iter().map(|trial| trial.destination).collect();
        destinations.sort();
        destinations.dedup();
        assert_eq!(destinations.len(), trials.len());
    }

    #[test]
    fn the_configuration_is_toml_with_a_network_for_each_type_and_drop_action() {
        let text: toml::Table = configuration().parse().unwrap();
        assert_eq!(text["network"].as_array().unwrap().len(), 7);
    }
}
