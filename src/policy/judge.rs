//! From what is known of a flow to its verdict.

use std::net::IpAddr;
use std::time::SystemTime;

use super::matrix::{combine, name_decides};
use super::network::{Bind, Ech, Network, Otherwise, Rule};
use super::rules::{FingerprintDemand, Policy};
use super::{Direction, DomainVerdict, IpVerdict, Judged, Reason, Verdict};
use crate::name::DomainName;
use crate::peek::{Discovery, Fingerprint, Outcome};

/// Whether DNS gave the remote address for the peeked name (SPEC V11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Nobody asked.
    Unknown,
    Match,
    Mismatch,
}

/// What is known of a flow when it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub remote: IpAddr,
    /// `None`: its port is not inspected.
    pub discovery: Option<&'a Discovery>,
    pub binding: Binding,
    pub now: SystemTime,
}

/// The verdict of a Network in one direction. A direction that the Network does not judge passes.
pub fn judge(network: &Network, direction: Direction, facts: &Facts<'_>) -> Verdict {
    let Some(rule) = network.rule(direction) else { return unjudged() };
    let ip = rule.policy.judge_ip(facts.remote, facts.now);
    let (Some(inspection), Some(discovery)) = (&network.inspection, facts.discovery) else { return by_ip(ip) };
    let verdict = match &discovery.outcome {
        Outcome::Name(name) => by_name(network, rule, ip, name, facts),
        Outcome::NoName => or_ip(inspection.unidentified, Reason::Unidentified, ip),
        Outcome::Unreadable(_) => or_ip(inspection.unreadable, Reason::Unreadable, ip),
    };
    let verdict = Verdict { inspection: Some(inspection.kind), ..verdict };
    if verdict.pass && discovery.ech && inspection.ech == Ech::Block {
        return Verdict { pass: false, reason: Reason::Ech, list: None, ..verdict };
    }
    if verdict.pass && refuses(&rule.policy, discovery) {
        return Verdict { pass: false, reason: Reason::Fingerprint, list: None, ..verdict };
    }
    verdict
}

fn by_name(network: &Network, rule: &Rule, ip: Judged<IpVerdict>, name: &DomainName, facts: &Facts<'_>) -> Verdict {
    let Some(inspection) = &network.inspection else { return by_ip(ip) };
    let found = rule.policy.judge_name(name, facts.now);
    let unproven = inspection.bind == Bind::Enforce && facts.binding != Binding::Match;
    let domain = match found.verdict {
        DomainVerdict::Allow if unproven => DomainVerdict::None,
        verdict => verdict,
    };
    let pass = combine(inspection.kind, ip.verdict, domain);
    let (reason, list) = if pass != combine(inspection.kind, ip.verdict, found.verdict) {
        (Reason::Binding, found.list)
    } else if name_decides(inspection.kind, ip.verdict, domain) {
        (Reason::Domain, if domain == found.verdict { found.list } else { None })
    } else {
        (ip.reason, ip.list)
    };
    Verdict { pass, reason, ip: ip.verdict, domain: Some(domain), inspection: None, list }
}

fn by_ip(ip: Judged<IpVerdict>) -> Verdict {
    let pass = ip.verdict == IpVerdict::Allow;
    Verdict { pass, reason: ip.reason, ip: ip.verdict, domain: None, inspection: None, list: ip.list }
}

fn or_ip(otherwise: Otherwise, reason: Reason, ip: Judged<IpVerdict>) -> Verdict {
    match otherwise {
        Otherwise::IpVerdict => by_ip(ip),
        Otherwise::Block => Verdict { pass: false, reason, ip: ip.verdict, domain: None, inspection: None, list: None },
    }
}

fn unjudged() -> Verdict {
    let ip = Judged { verdict: IpVerdict::Allow, reason: Reason::Default, list: None };
    by_ip(ip)
}

fn refuses(policy: &Policy, discovery: &Discovery) -> bool {
    let name = match &discovery.outcome {
        Outcome::Name(name) => Some(name),
        _ => None,
    };
    policy.fingerprints.iter().any(|rule| {
        let applies = rule.domains.is_empty() || name.is_some_and(|name| rule.domains.iter().any(|p| p.matches(name)));
        let same = discovery.fingerprint.as_deref().is_some_and(|own| is(own, &rule.value));
        applies
            && match rule.demand {
                FingerprintDemand::Require => !same,
                FingerprintDemand::Block => same,
                FingerprintDemand::Alert => false,
            }
    })
}

fn is(own: &Fingerprint, value: &str) -> bool {
    [&own.ja3, &own.ja3_full, &own.ja4].into_iter().any(|own| own.eq_ignore_ascii_case(value))
}
