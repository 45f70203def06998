//! The directions of a Network, each with its policy and drop action (SPEC N1, N7).

use super::mistake::{Place, Report};
use super::network::Known;
use super::port::TCP;
use super::reader::{Located, Table};
use crate::policy::network::{ProtectedIp, Rule};
use crate::policy::{Direction, DropAction};

type Ips<'a> = &'a [Located<ProtectedIp>];

#[derive(Clone, Copy)]
enum Directions {
    Inbound,
    Outbound,
    Both,
}

/// Outbound and inbound. `directions` left out means those that are given.
pub(super) fn read(
    table: &mut Table<'_>,
    name: &str,
    ips: Ips<'_>,
    known: Known<'_>,
    report: &Report,
) -> (Option<Rule>, Option<Rule>) {
    let stated = table.take("directions").and_then(|value| Some((value.word(DIRECTIONS)?, value.place)));
    let outbound = (table.has("outbound"), rule(table, "outbound", ips, known, report));
    let inbound = (table.has("inbound"), rule(table, "inbound", ips, known, report));
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

fn rule(table: &mut Table<'_>, key: &'static str, ips: Ips<'_>, known: Known<'_>, report: &Report) -> Option<Rule> {
    let mut table = table.table(key)?;
    let policy = table.demand("policy", "\"..\"").and_then(|value| value.text());
    let drop = table.take("drop").and_then(|value| Some((value.word(DROPS)?, value.place)));
    if let Some((drop, place)) = &drop {
        check_drop(*drop, key, ips, place, report);
    }
    let policy = known.policies.find(&policy?, report)?.clone();
    Some(Rule { policy, drop: drop.map_or(DropAction::Discard, |(drop, _)| drop) })
}

const DROPS: &[(&str, DropAction)] = &[
    ("discard", DropAction::Discard),
    ("icmp-unreachable", DropAction::IcmpUnreachable),
    ("tcp-reset", DropAction::TcpReset),
];

fn check_drop(drop: DropAction, direction: &str, ips: Ips<'_>, place: &Place, report: &Report) {
    let inbound = direction == Direction::Inbound.as_str();
    match drop {
        DropAction::Discard => {}
        DropAction::TcpReset if !ips.is_empty() && !ips.iter().any(|ip| has_tcp(&ip.value)) => {
            let mend = "write `icmp-unreachable` or `discard`";
            report.error(place, "`tcp-reset` cannot apply: no Port of `ips` has tcp", mend);
        }
        _ if inbound => {
            let what = format!("`{drop}` shows a scanner that something is there");
            report.warning(place, what, "`discard` shows nothing");
        }
        DropAction::TcpReset => {
            let mend = "`icmp-unreachable` would do, for every protocol, unless a firewall on the way filters ICMP";
            report.warning(place, "`tcp-reset` tells TCP clients alone", mend);
        }
        DropAction::IcmpUnreachable => {}
    }
}

fn has_tcp(ip: &ProtectedIp) -> bool {
    ip.port.as_ref().is_none_or(|port| port.protocols.iter().any(|protocol| protocol.number == TCP))
}
