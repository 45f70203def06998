//! Verdicts by address, for all that nobody inspects: every protocol and port, in both directions (SPEC N4, N5, V1).
//!
//! ```text
//! forward:   ... -> judge_outbound4 -> judge_outbound_0_office -> outbound_0_office_block_list_2 -> end_discard
//!                   by the source's     by its policy, list        records the flow               drops, answers,
//!                   prefix and Port     by list                                                   or lets it go on
//!                -> judge_inbound4 -> ...
//! ```
//!
//! What passes both is known by a label of connection tracking from then on, and is not judged again.
//!
//! Fails closed: a flow that was there before the rules has no such label, and is judged by each packet of the end
//! that opened it. A packet of which connection tracking knows no flow, out of order or untracked, is judged as if it
//! opened one.

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use super::Capture;
use super::lists::ListSets;
use super::names::{is_naming, name_rules};
use super::ruleset::{Chain, Expression, Family, Key, Rule, Verdict};
use super::selection::{Stage, network_chain, plain_name};
use super::{TCP, UNRECORDED};
use crate::policy::network::{Mode, Network};
use crate::policy::snapshot::Snapshot;
use crate::policy::{Direction, DropAction, IpVerdict, Judged, Reason};

/// Whoever listens to this group of the kernel's packet log hears of each judgement ("ti" again).
pub const LOG_GROUP: u16 = 0x7469;

const END_DISCARD: &str = "end_discard";
const END_UNREACHABLE: &str = "end_unreachable";
const END_RESET: &str = "end_reset";
const END_PASS: &str = "end_pass";

/// What the kernel writes before the copy of a packet that it judged: who judged it, and why so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogTag {
    /// Of the snapshot in which the places below are.
    pub generation: u64,
    /// Its place in `Snapshot::networks`.
    pub network: usize,
    pub direction: Direction,
    pub by: By,
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The policy's default.
    Default,
    /// The list at this place in `Policy::lists`, or the rule of ASNs or countries behind them.
    List(usize),
    /// The name that DNS gave for the address.
    Name { passes: bool },
}

impl LogTag {
    /// The Network that judged this remote address, and what its policy said. `None` if the tag is of another snapshot.
    pub fn judged<'a>(&self, snapshot: &'a Snapshot, remote: IpAddr) -> Option<(&'a Arc<Network>, Judged<IpVerdict>)> {
        let network = snapshot.networks().get(self.network).filter(|_| self.generation == snapshot.generation)?;
        let policy = &network.rule(self.direction)?.policy;
        let judged = match self.by {
            By::Default => policy.judge_rest(),
            By::Name { passes } => {
                let verdict = if passes { IpVerdict::Allow } else { IpVerdict::Block };
                Judged { verdict, reason: Reason::Domain, list: None }
            }
            By::List(place) => policy.in_order().find(|question| question.place == place)?.judged(remote),
        };
        Some((network, judged))
    }
}

/// The chains of one Network in one direction: first the one that finds the verdict.
pub(super) fn network_chains(
    snapshot: &Snapshot,
    (index, network): (usize, &Network),
    direction: Direction,
    lists: &[ListSets],
    capture: &Capture,
) -> Vec<Chain> {
    let finder = network_chain(Stage::Judge, direction, index, network);
    let Some(rule) = network.rule(direction) else { return vec![Chain::new(finder, Vec::new())] };
    let outcome = |reason: Reason, by: By| {
        let which = match by {
            By::Default => String::new(),
            By::List(place) => format!("_{place}"),
            By::Name { passes } => format!("_{}", word(passes)),
        };
        let reason = reason.as_str().to_ascii_lowercase();
        format!("{direction}_{index}_{}_{reason}{which}", plain_name(&network.name))
    };
    let tag = |by| LogTag { generation: snapshot.generation, network: index, direction, by };
    let ending = |verdict| match (verdict, network.mode) {
        (IpVerdict::Block, Mode::Enforce) => end_of(rule.drop),
        _ => END_PASS,
    };
    let mut asked = Vec::new();
    let mut chains = Vec::new();
    if direction == Direction::Outbound && is_naming(network) {
        asked.extend(name_rules(network, |passes| outcome(Reason::Domain, By::Name { passes })));
        for (passes, verdict) in [(true, IpVerdict::Allow), (false, IpVerdict::Block)] {
            let by = By::Name { passes };
            chains.push(outcome_chain(outcome(Reason::Domain, by), tag(by), ending(verdict), capture));
        }
    }
    for question in rule.policy.in_order() {
        let Some(sets) = lists.iter().find(|sets| sets.is_of(question.list)) else { continue };
        let by = By::List(question.place);
        let chain = outcome(question.reason, by);
        asked.extend(rules_of_list(sets, direction, &chain));
        chains.push(outcome_chain(chain, tag(by), ending(question.verdict), capture));
    }
    let chain = outcome(Reason::Default, By::Default);
    asked.push(Rule(vec![goto(&chain)]));
    chains.push(outcome_chain(chain, tag(By::Default), ending(rule.policy.default), capture));
    chains.insert(0, Chain::new(finder, asked));
    chains
}

/// What becomes of a packet once its flow is judged and recorded.
pub(super) fn end_chains() -> Vec<Chain> {
    vec![
        Chain::new(END_PASS, vec![Rule(vec![Expression::Verdict(Verdict::Return)])]),
        Chain::new(END_DISCARD, vec![Rule(vec![Expression::Verdict(Verdict::Drop)])]),
        Chain::new(END_UNREACHABLE, vec![Rule(vec![Expression::Reject])]),
        Chain::new(
            END_RESET,
            vec![Rule(vec![Expression::Protocol(TCP), Expression::Reset]), Rule(vec![Expression::Reject])],
        ),
    ]
}

fn rules_of_list(sets: &ListSets, direction: Direction, chain: &str) -> Vec<Rule> {
    let rule = |class| {
        let set = sets.set_name(class);
        let key = vec![remote(direction, class.family, class.length)];
        Rule(vec![Expression::Family(class.family), Expression::InSet { key, set, negate: false }, goto(chain)])
    };
    sets.classes().map(rule).collect()
}

fn outcome_chain(name: String, tag: LogTag, end: &str, capture: &Capture) -> Chain {
    let per_second = capture.records_per_second;
    let log = Expression::Log { group: LOG_GROUP, prefix: tag.to_string() };
    let rules = vec![
        Rule(vec![Expression::Beyond { per_second }, Expression::CountAs(UNRECORDED), goto(end)]),
        Rule(vec![log, Expression::Counter, goto(end)]),
    ];
    Chain::new(name, rules)
}

fn end_of(action: DropAction) -> &'static str {
    match action {
        DropAction::Discard => END_DISCARD,
        DropAction::IcmpUnreachable => END_UNREACHABLE,
        DropAction::TcpReset => END_RESET,
    }
}

fn remote(direction: Direction, family: Family, length: u8) -> Key {
    match direction {
        Direction::Outbound => Key::DestinationPrefix { family, length },
        Direction::Inbound => Key::SourcePrefix { family, length },
    }
}

fn goto(chain: &str) -> Expression {
    Expression::Verdict(Verdict::Goto(chain.to_owned()))
}

fn word(passes: bool) -> &'static str {
    if passes { "allow" } else { "block" }
}

/// `tidegate GENERATION NETWORK DIRECTION`, and what decided if it was not the default; places in decimal.
impl Display for LogTag {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "tidegate {} {} {}", self.generation, self.network, self.direction)?;
        match self.by {
            By::Default => Ok(()),
            By::List(place) => write!(f, " {place}"),
            By::Name { passes } => write!(f, " name-{}", word(passes)),
        }
    }
}

impl FromStr for LogTag {
    /// It is not one of ours.
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.strip_prefix("tidegate ").ok_or(())?.split(' ');
        let mut word = || words.next().ok_or(());
        let generation = word()?.parse().map_err(drop)?;
        let network = word()?.parse().map_err(drop)?;
        let direction = match word()? {
            "inbound" => Direction::Inbound,
            "outbound" => Direction::Outbound,
            _ => return Err(()),
        };
        let by = match words.next() {
            None => By::Default,
            Some("name-allow") => By::Name { passes: true },
            Some("name-block") => By::Name { passes: false },
            Some(place) => By::List(place.parse().map_err(drop)?),
        };
        match words.next() {
            None => Ok(Self { generation, network, direction, by }),
            Some(_) => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::Listener;
    use crate::firewall::fixture::{list, network, rules, snapshot, text_of, with_policy};
    use crate::list::ListVerdict;

    fn capture() -> Capture {
        Capture::tcp(Listener::on(15001))
    }

    #[test]
    fn lists_are_asked_in_the_order_of_the_verdict_and_the_default_decides_the_rest() {
        let lists = vec![
            list("feed", ListVerdict::Threat { category: "malware".into(), score: 90 }, &["198.51.100.0/24"]),
            list("blocks", ListVerdict::Block, &["203.0.113.0/24", "203.0.113.5/32"]),
            list("names", ListVerdict::Block, &[]),
            list("allows", ListVerdict::Allow, &["2001:db8::/32"]),
            list("weak", ListVerdict::Threat { category: "malware".into(), score: 10 }, &["192.0.2.0/24"]),
        ];
        let office = with_policy(network("office", &[("10.1.0.0/24", None)]), lists, IpVerdict::Block);
        let rules = rules(vec![office], &capture());
        assert_eq!(
            text_of(&rules, "judge_outbound_0_office"),
            "chain judge_outbound_0_office {\n\
             meta nfproto ipv6 ip6 daddr & ffff:ffff:: @list_allows_v6_32 goto outbound_0_office_allow_list_3\n\
             meta nfproto ipv4 ip daddr & 255.255.255.0 @list_blocks_v4_24 goto outbound_0_office_block_list_1\n\
             meta nfproto ipv4 ip daddr & 255.255.255.0 @list_feed_v4_24 goto outbound_0_office_threat_0\n\
             goto outbound_0_office_default\n\
             }\n"
        );
        assert!(text_of(&rules, "outbound_0_office_allow_list_3").contains("goto end_pass"));
        assert!(text_of(&rules, "outbound_0_office_default").contains("goto end_discard"));
        assert!(rules.lists.iter().all(|sets| !sets.to_string().contains("weak")), "it is below the threshold");
    }

    #[test]
    fn a_monitored_network_ends_nothing() {
        let office = with_policy(network("office", &[("10.1.0.0/24", None)]), Vec::new(), IpVerdict::Block);
        let rules = rules(vec![Network { mode: Mode::Monitor, ..office }], &capture());
        let text = text_of(&rules, "outbound_0_office_default");
        assert!(
            text.contains("log prefix") && text.contains("goto end_pass") && !text.contains("end_discard"),
            "{text}"
        );
    }

    #[test]
    fn a_tag_leads_back_to_who_judged_and_why() {
        let lists = vec![list("blocks", ListVerdict::Block, &["203.0.113.0/24"])];
        let snapshot = snapshot(vec![with_policy(network("office", &[]), lists, IpVerdict::Allow)]);
        for (by, reason, list) in [
            (By::Default, "DEFAULT", None),
            (By::List(0), "BLOCK_LIST", Some("blocks")),
            (By::Name { passes: true }, "DOMAIN", None),
            (By::Name { passes: false }, "DOMAIN", None),
        ] {
            let tag = LogTag { generation: 1, network: 0, direction: Direction::Outbound, by };
            assert_eq!(tag.to_string().parse(), Ok(tag));
            let (network, judged) = tag.judged(&snapshot, [203, 0, 113, 9].into()).unwrap();
            assert_eq!(&*network.name, "office");
            assert_eq!(judged.reason.as_str(), reason);
            assert_eq!(judged.list.as_deref(), list);
            let other = LogTag { generation: 2, ..tag };
            assert_eq!(other.judged(&snapshot, [203, 0, 113, 9].into()).map(|found| found.1), None);
        }
        for text in ["", "tidegate", "tidegate 1 0 sideways", "tidegate 1 0 inbound 2 3", "other 1 0 inbound"] {
            assert_eq!(text.parse::<LogTag>(), Err(()), "{text}");
        }
    }
}
