//! The rules of a namespace that an application shares with us: what the application sends is taken where it leaves
//! its sockets, sent round by the loopback, and taken in like a gateway's flows.
//!
//! ```text
//! output (raw, routes anew)                          output (filter)
//!   questions to resolvers on this host -> marked      our own, marked packets      -> pass
//!   Docker's resolver, on other ports -> reject
//! output (mangle, routes anew)                         to this host                 -> pass
//!   to our listeners directly -> drop                  replies of flows let in      -> pass
//!   our own (by user id)      -> pass                  what should have been marked -> drop
//!   flows that we hold        -> marked                flows that were let out      -> pass
//!   to this host              -> pass                  new flows                    -> by their addresses
//!   replies of flows let in   -> pass                postrouting (filter)
//!   what a Network inspects   -> marked                marked, yet not to loopback  -> drop
//! prerouting (mangle), marked packets on loopback    input (filter)
//!   flows that we hold        -> to us                 loopback                     -> pass
//!   discarded flows           -> drop                  answers to what we took      -> drop
//!                                                      replies, flows that were let in -> pass
//!   sources of nobody here    -> drop                  new flows                    -> by their addresses
//!   what a Network inspects   -> tproxy, or drop where nobody listens
//!   all else                  -> drop
//! ```
//!
//! Direction is the hook: what leaves is outbound, what comes in is inbound, whatever prefixes the Networks protect.
//!
//! Our own packets are known by the user of their socket. A TCP socket that was closed has no user any more while the
//! kernel still sends from it, hence a label of connection tracking, which opens no connection, and no longer counts once
//! the application has opened one with the same addresses and ports.
//!
//! A source that is not this host's is made up: IPv6 lets every socket have any (IPV6_FREEBIND). Our answer would leave for
//! whoever it belongs to, unjudged since it is ours, with what the application wrote in it.
//!
//! A reply passes only where the flow came in from outside, and never UDP to an inspected port: for a flow that we answer
//! in a server's name, connection tracking could take our answer for its beginning, and what the application sends then
//! for the reply.
//!
//! Fails closed: marked packets go nowhere but to the listeners; with none they are dropped. The rules outlive the
//! process, and know of no other choice.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::capture::{
    FILTER, GUARDED, HELD, LISTENERS, LOOPBACK, MANGLE, QUESTIONS, RAW, TAKEN, accept, authenticated, drop, goto,
    held_chain, inspected_set, jump, listeners_set, loopback_chain, of_interest, questions_set, taken,
};
use super::flows::{discarded_chain, flow_sets};
use super::judge::{end_chains, network_chains};
use super::lists::list_sets;
use super::names::name_sets;
use super::ruleset::{Chain, Connection, Expression, Family, Hook, Rule, Ruleset, Verdict};
use super::selection::{Stage, network_chain, port_sets, protected_sets, select, selection_chain};
use super::service::{self, Service, captured, services};
use super::{Capture, DIVERTED_LABEL, FORGED, JUDGED_LABEL, MARK, OWN_LABEL, OnFailure, TABLE, TAKEN_LABEL, TCP};
use crate::policy::Direction;
use crate::policy::network::{Mode, Network};
use crate::policy::snapshot::Snapshot;

/// The rules for a policy and the listeners that serve it. `user`: whose sockets are ours, and nobody else's.
pub fn render_sidecar(snapshot: &Snapshot, capture: &Capture, user: u32) -> Ruleset {
    let mut sets = flow_sets(capture);
    sets.extend([inspected_set(Stage::Guard, snapshot, capture), questions_set(capture), listeners_set(capture)]);
    sets.extend(port_sets(snapshot));
    sets.extend(protected_sets(snapshot));
    sets.extend(snapshot.networks().iter().flat_map(|network| name_sets(network, capture)));
    let lists = list_sets(snapshot);
    let mut chains = vec![loopback_chain(capture), held_chain(), own_chain()];
    chains.extend(Family::BOTH.map(discarded_chain));
    chains.extend(services(capture).map(|service| in_mangle(service).chain(OnFailure::Closed)));
    chains.extend([diverted(DIVERT, &[]), diverted(DIVERT_UNTRACKED, &[Expression::NoTrack])]);
    chains.extend(end_chains());
    for (index, network) in snapshot.networks().iter().enumerate() {
        for stage in [Stage::Question, Stage::Divert, Stage::Capture, Stage::Guard] {
            let name = network_chain(stage, Direction::Outbound, index, network);
            chains.push(Chain::new(name, network_rules(stage, network, capture)));
        }
        for direction in [Direction::Outbound, Direction::Inbound] {
            chains.extend(network_chains(snapshot, (index, network), direction, &lists, capture));
        }
    }
    for family in Family::BOTH {
        let stages = [Stage::Question, Stage::Divert, Stage::Capture, Stage::Guard, Stage::Judge];
        chains.extend(stages.map(|stage| select(snapshot, stage, Direction::Outbound, family)));
        chains.push(select(snapshot, Stage::Judge, Direction::Inbound, family));
    }
    chains.extend([source(), captured_chain(), taken(), guard(), questions_here()]);
    chains.push(Chain::at(Hook::Prerouting, RAW, "prerouting_untracked", vec![authenticated()]));
    chains.extend([questions(user), output(user), prerouting(), output_filter(user), postrouting(), input()]);
    Ruleset { table: TABLE, sets, lists, chains }
}

/// What is asked of a resolver on this host. An engine of containers puts one at a loopback address and changes the
/// destination by address translation, which leaves alone what is not tracked.
fn questions(user: u32) -> Chain {
    let rules = vec![
        authenticated(),
        Rule(vec![Expression::User(user), accept()]),
        Rule(vec![Expression::DestinationIn(RESOLVER_OF_DOCKER), jump(QUESTIONS_HERE)]),
        Rule(vec![of_interest(QUESTIONS, true), accept()]),
        Rule(vec![Expression::DestinationIsLocal, jump(QUESTIONS_HERE)]),
    ];
    Chain::at(Hook::Reroute, RAW, "output_questions", rules)
}

fn output(user: u32) -> Chain {
    let mut rules = vec![
        Rule(vec![of_interest(LISTENERS, false), jump(LOOPBACK)]),
        Rule(vec![Expression::User(user), goto(OWN)]),
        under_way(OURS, accept()),
        Rule(vec![Expression::MarkIs(MARK), accept()]),
        under_way(Expression::Label(DIVERTED_LABEL), goto(DIVERT)),
        Rule(vec![Expression::DestinationIsLocal, accept()]),
        tcp_reply_passes(),
        related_passes(),
        Rule(vec![of_interest(GUARDED, true), accept()]),
    ];
    rules.extend(selections(Stage::Divert, Direction::Outbound));
    Chain::at(Hook::Reroute, MANGLE, "output", rules)
}

fn prerouting() -> Chain {
    let marked = vec![Expression::FromLoopback, Expression::MarkIs(MARK), goto(CAPTURED)];
    Chain::at(Hook::Prerouting, MANGLE, "prerouting", vec![Rule(marked)])
}

fn captured_chain() -> Chain {
    let mut rules = vec![Rule(vec![Expression::Protocol(TCP), jump(HELD)]), Rule(vec![jump(SOURCE)])];
    rules.extend(selections(Stage::Capture, Direction::Outbound));
    rules.push(Rule(vec![Expression::Counter, drop()]));
    Chain::new(CAPTURED, rules)
}

/// Link-local ones are looked up together with their link, which is not the loopback; an answer to one leads no further.
fn source() -> Chain {
    let leave = |if_so| Rule(vec![if_so, Expression::Verdict(Verdict::Return)]);
    let forged = Rule(vec![Expression::CountAs(FORGED), drop()]);
    Chain::new(SOURCE, vec![leave(Expression::SourceIsLocal), leave(Expression::SourceIn(LINK_LOCAL)), forged])
}

fn output_filter(user: u32) -> Chain {
    let mut rules = vec![
        Rule(vec![Expression::User(user), accept()]),
        under_way(OURS, accept()),
        // The next hook is asked where it goes: this one was told before it was routed anew.
        Rule(vec![Expression::MarkIs(MARK), accept()]),
        Rule(vec![Expression::DestinationIsLocal, accept()]),
        Rule(vec![Expression::Discovery, accept()]),
        tcp_reply_passes(),
        related_passes(),
        Rule(vec![of_interest(GUARDED, false), jump(GUARD)]),
        // Of flows that were let out, and replies of those that were let in.
        Rule(vec![Expression::Label(JUDGED_LABEL), accept()]),
    ];
    rules.extend(selections(Stage::Judge, Direction::Outbound));
    rules.push(Rule(vec![Expression::SetLabel(JUDGED_LABEL)]));
    Chain::at(Hook::Output, FILTER, "output_filter", rules)
}

fn postrouting() -> Chain {
    let rules = vec![
        Rule(vec![Expression::MarkIs(MARK), Expression::ToLoopback, accept()]),
        // The policy routes are gone.
        Rule(vec![Expression::MarkIs(MARK), Expression::Counter, drop()]),
    ];
    Chain::at(Hook::Postrouting, FILTER, "postrouting", rules)
}

fn input() -> Chain {
    let answered = Expression::Connection(&[Connection::Established, Connection::Related]);
    let mut rules = vec![
        Rule(vec![Expression::FromLoopback, accept()]),
        Rule(vec![Expression::Discovery, accept()]),
        Rule(vec![Expression::Label(TAKEN_LABEL), jump(TAKEN)]),
        // Of flows that were let out, or that we opened.
        Rule(vec![Expression::Reply, answered, accept()]),
        Rule(vec![Expression::Label(JUDGED_LABEL), accept()]),
        related_passes(),
    ];
    rules.extend(selections(Stage::Judge, Direction::Inbound));
    rules.push(Rule(vec![Expression::SetLabel(JUDGED_LABEL)]));
    Chain::at(Hook::Input, FILTER, "input", rules)
}

/// Only a flow that we open is ours: what we answer to the application is of the application's.
fn own_chain() -> Chain {
    let remember = vec![Expression::Protocol(TCP), Expression::TcpOpening, Expression::SetLabel(OWN_LABEL)];
    Chain::new(OWN, vec![Rule(remember), Rule(vec![accept()])])
}

/// Sends a packet round by the loopback.
fn diverted(chain: &str, first: &[Expression]) -> Chain {
    let remember = vec![Expression::Protocol(TCP), Expression::SetLabel(DIVERTED_LABEL)];
    let mut mark = first.to_vec();
    mark.extend([Expression::SetMark(MARK), Expression::Counter, accept()]);
    Chain::new(chain, vec![Rule(remember), Rule(mark)])
}

/// What the port of a packet demands that is neither marked nor ours: another table took the mark away.
fn guard() -> Chain {
    Chain::new(GUARD, selections(Stage::Guard, Direction::Outbound))
}

fn questions_here() -> Chain {
    Chain::new(QUESTIONS_HERE, selections(Stage::Question, Direction::Outbound))
}

fn network_rules(stage: Stage, network: &Network, capture: &Capture) -> Vec<Rule> {
    let then = |service: Service| match stage {
        Stage::Question => vec![goto(DIVERT_UNTRACKED)],
        Stage::Divert => vec![goto(DIVERT)],
        Stage::Capture => vec![goto(service.chain)],
        _ => vec![Expression::Counter, drop()],
    };
    let here = |(service, _): &(Service, u16)| stage != Stage::Question || service.is_dns();
    let taken: Vec<_> = captured(Direction::Outbound, network, capture).into_iter().filter(here).collect();
    let mut rules = service::rules(network, &taken, then);
    rules.extend((stage == Stage::Question).then(|| past_the_question(network)).flatten());
    rules
}

/// Whoever asks a resolver here at another port than that of questions wants not to be heard.
fn past_the_question(network: &Network) -> Option<Rule> {
    let enforces = network.outbound.is_some() && network.mode != Mode::Monitor;
    enforces.then(|| Rule(vec![Expression::DestinationIn(RESOLVER_OF_DOCKER), Expression::Counter, Expression::Reject]))
}

fn selections(stage: Stage, direction: Direction) -> Vec<Rule> {
    let jump = |family| Rule(vec![Expression::Family(family), jump(&selection_chain(stage, direction, family))]);
    Family::BOTH.map(jump).into()
}

/// Packets of a labelled TCP flow, but not the one that would open another.
fn under_way(labelled: Expression, then: Expression) -> Rule {
    Rule(vec![Expression::Protocol(TCP), Expression::TcpUnderWay, labelled, then])
}

fn tcp_reply_passes() -> Rule {
    Rule(vec![Expression::Protocol(TCP), Expression::Reply, Expression::Label(JUDGED_LABEL), accept()])
}

fn related_passes() -> Rule {
    Rule(vec![Expression::Connection(&[Connection::Related]), accept()])
}

/// Every service is taken at one hook, behind connection tracking.
fn in_mangle(mut service: Service) -> Service {
    service.stage = Stage::Capture;
    service
}

/// A flow that we opened. If the application opens the same one once ours has ended, connection tracking may take it for
/// ours still.
const OURS: Expression = Expression::LabelAlone { label: OWN_LABEL, not: &[DIVERTED_LABEL] };
const OWN: &str = "own";
const DIVERT: &str = "divert";
const DIVERT_UNTRACKED: &str = "divert_untracked";
const CAPTURED: &str = "captured";
const SOURCE: &str = "source";
const GUARD: &str = "guard";
const QUESTIONS_HERE: &str = "questions_here";
const LINK_LOCAL: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));
/// Where Docker's resolver stands in every network that a user made. It listens at a port of the kernel's choice, to which
/// questions on port 53 are translated.
const RESOLVER_OF_DOCKER: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 11), 32));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::Listener;
    use crate::firewall::fixture::{network, snapshot, text_of};

    fn rules(listener: Listener) -> Ruleset {
        let capture =
            Capture { udp: Some(listener), dns_udp: Some(listener), dns_tcp: Some(listener), ..Capture::tcp(listener) };
        let everywhere = network("app", &[("0.0.0.0/0", None), ("::/0", None)]);
        render_sidecar(&snapshot(vec![everywhere]), &capture, 7469)
    }

    #[test]
    fn behind_every_tproxy_stands_a_drop_and_without_listeners_nothing_else() {
        for (listener, delivered) in [(Listener::on(5), 2), (Listener::NONE, 0)] {
            let rules = rules(listener);
            for name in ["to_tcp", "to_udp", "to_dns_udp", "to_dns_tcp"] {
                let text = text_of(&rules, name);
                assert!(text.ends_with("counter drop\n}\n"), "{text}");
                assert_eq!(text.matches("tproxy").count(), delivered, "{text}");
                assert!(!text.contains("notrack"), "it is tracked already: {text}");
            }
            assert!(text_of(&rules, "captured").ends_with("counter drop\n}\n"));
            assert!(text_of(&rules, "guarded").contains("{ tcp . 53, tcp . 80, tcp . 443, udp . 53, udp . 443 }"));
        }
    }

    #[test]
    fn only_an_opening_makes_a_flow_ours_and_only_tcp_replies_pass_before_the_guard() {
        let rules = rules(Listener::on(5));
        assert!(text_of(&rules, "own").contains("meta l4proto tcp tcp flags & (syn | ack) == syn ct label set 123\n"));
        for chain in ["output", "output_filter"] {
            let text = text_of(&rules, chain);
            let replies: Vec<&str> = text.lines().filter(|line| line.contains("direction reply")).collect();
            assert_eq!(replies, ["meta l4proto tcp ct direction reply ct label 127 accept"], "{text}");
        }
    }

    #[test]
    fn dockers_resolver_is_refused_on_other_ports_but_by_a_network_that_blocks_nothing() {
        let refused = |mode| {
            let network = Network { mode, ..network("app", &[("0.0.0.0/0", None)]) };
            let capture = Capture { dns_udp: Some(Listener::on(5)), ..Capture::tcp(Listener::on(5)) };
            let rules = render_sidecar(&snapshot(vec![network]), &capture, 7469);
            text_of(&rules, "question_outbound_0_app").contains("ip daddr 127.0.0.11/32 counter reject")
        };
        assert!(refused(Mode::Enforce) && !refused(Mode::Monitor));
    }

    #[test]
    fn what_leaves_is_judged_outbound_and_what_comes_inbound() {
        let rules = rules(Listener::on(5));
        let (output, input) = (text_of(&rules, "output_filter"), text_of(&rules, "input"));
        assert!(output.contains("jump judge_outbound4") && !output.contains("inbound"), "{output}");
        assert!(input.contains("jump judge_inbound6") && !input.contains("outbound"), "{input}");
        assert!(input.find("ct label 121 jump taken").unwrap() < input.find("direction reply").unwrap(), "{input}");
    }
}
