//! The directions of a Network, each with its policy and drop action (SPEC N1, N7).

use super::mistake::{Place, Report};
use super::network::Known;
use super::port::TCP;
use super::table::Table;
use super::value::Located;
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

#[cfg(test)]
mod tests {
    use super::super::named::Named;
    use super::super::table::read_alone;
    use super::*;
    use crate::policy::IpVerdict;
    use crate::policy::rules::Policy;
    use std::collections::HashMap;
    use std::sync::Arc;

    fn read_rules(text: &str) -> (String, Vec<String>) {
        let policies = read_alone("", |_, report| {
            let mut policies = Named::new("policy");
            let place = Place::start_of(&super::super::mistake::Source::whole("p".into(), String::new()));
            let policy = Policy {
                name: "p".into(),
                default: IpVerdict::Block,
                lists: Vec::new(),
                thresholds: HashMap::new(),
                asns: None,
                countries: None,
                fingerprints: Vec::new(),
            };
            policies.insert(Located { value: "p".to_owned(), place }, Some(Arc::new(policy)), report);
            policies
        });
        let ports = Named::new("port");
        read_alone(text, |mut table, report| {
            let known = Known { policies: &policies.0, ports: &ports };
            let (outbound, inbound) = super::read(&mut table, "n", &[], known, report);
            let say = |rule: Option<Rule>| rule.map_or("-", |rule| rule.drop.as_str());
            format!("{} {}", say(outbound), say(inbound))
        })
    }

    #[test]
    fn directions_are_those_that_have_a_policy_or_those_that_are_stated() {
        let out = "outbound = { policy = \"p\", drop = \"icmp-unreachable\" }\n";
        let inn = "inbound = { policy = \"p\" }\n";
        for (text, rules, mistakes) in [
            (format!("{out}{inn}"), "icmp-unreachable discard", vec![]),
            (format!("directions = \"both\"\n{out}{inn}"), "icmp-unreachable discard", vec![]),
            (out.to_owned(), "icmp-unreachable -", vec![]),
            (inn.to_owned(), "- discard", vec![]),
            (
                format!("directions = \"both\"\n{out}"),
                "icmp-unreachable -",
                vec![
                    "t:1:14: error: the network `n` has no policy for its inbound direction: add `inbound = { policy = \
                      \"..\", drop = \"discard\" }`",
                ],
            ),
            (
                format!("directions = \"inbound\"\n{out}{inn}"),
                "icmp-unreachable discard",
                vec![
                    "t:1:14: error: `outbound` is given, but `directions` leaves that direction unjudged: write \
                      `directions = \"both\"`, or leave `outbound` out",
                ],
            ),
        ] {
            assert_eq!(
                read_rules(&text),
                (rules.to_owned(), mistakes.iter().map(|m| (*m).to_owned()).collect()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_shows_a_scanner_that_something_is_there_is_warned_of() {
        for drop in ["tcp-reset", "icmp-unreachable"] {
            let (_, mistakes) = read_rules(&format!("inbound = {{ policy = \"p\", drop = \"{drop}\" }}"));
            let expected =
                format!("t:1:34: warning: `{drop}` shows a scanner that something is there: `discard` shows nothing");
            assert_eq!(mistakes, [expected]);
        }
    }
}
