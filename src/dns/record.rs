//! The record of an exchange (SPEC L1).

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use super::exchange::{Exchange, Why};
use crate::policy::{DomainVerdict, Reason};
use crate::telemetry::record::Dns;
use crate::telemetry::{Kind, Record};

/// How an exchange ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// `None`: there was no answer.
    pub rcode: Option<u16>,
    pub addresses: Vec<IpAddr>,
    /// Who gave the answer, if not the one who was asked.
    pub upstream: Option<SocketAddr>,
    /// Why it was blocked, and by which list; `None`: it passed.
    pub blocked: Option<Why>,
    /// Why its answer would have been blocked, but its Network only monitors.
    pub spared: Option<Why>,
    /// What the client saw instead.
    pub action: Option<&'static str>,
}

/// What a client whose name is blocked sees.
pub const ANSWERED: &str = "dns-answer";

pub fn record(exchange: &Exchange, outcome: Outcome) -> Record {
    let (client, resolver) = (exchange.client.0, exchange.resolver.0);
    let enforcer = exchange.snapshot.enforcer.clone();
    let mut record = Record::new(Kind::Dns, exchange.at, enforcer, exchange.transport.as_str(), client, resolver);
    let monitored = outcome.blocked.is_none();
    let spared = exchange.spared.as_ref().filter(|_| monitored);
    if let Some((network, direction)) = spared.map(|(by, _)| by).or(exchange.network.as_ref()) {
        let policy = network.rule(*direction).map(|rule| rule.policy.name.clone());
        record = record.judged_by(network.name.clone(), policy, *direction);
    }
    record.via = Some("DNS");
    record.domain = exchange.name.clone();
    if exchange.kind.is_some() && exchange.name.is_some() {
        record.domain_verdict = Some(exchange.domain.verdict.as_str());
    }
    let spared = spared.map(|(_, why)| why.clone()).or(outcome.spared);
    match outcome.blocked.or(spared) {
        Some((reason, list)) => {
            record.verdict = Some("block");
            record.reason = Some(reason.as_str());
            record.list = list;
            record.action = if monitored { Some("monitor") } else { outcome.action };
        }
        None => {
            record.verdict = Some("allow");
            let allowed = exchange.domain.verdict == DomainVerdict::Allow;
            record.reason = Some(if allowed { Reason::Domain } else { Reason::Default }.as_str());
            record.list = exchange.domain.list.clone();
        }
    }
    record.dns = Some(Box::new(Dns {
        qtype: exchange.kind.map(type_word),
        rcode: outcome.rcode.map(rcode_word),
        answers: outcome.addresses,
        resolver: outcome.upstream,
    }));
    record
}

/// The mnemonic of a type, or `TYPE65280` (RFC 3597, section 5).
pub fn type_word(kind: u16) -> Cow<'static, str> {
    let word = match kind {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        12 => "PTR",
        13 => "HINFO",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        29 => "LOC",
        33 => "SRV",
        35 => "NAPTR",
        37 => "CERT",
        39 => "DNAME",
        43 => "DS",
        44 => "SSHFP",
        46 => "RRSIG",
        47 => "NSEC",
        48 => "DNSKEY",
        50 => "NSEC3",
        52 => "TLSA",
        53 => "SMIMEA",
        64 => "SVCB",
        65 => "HTTPS",
        99 => "SPF",
        251 => "IXFR",
        252 => "AXFR",
        255 => "ANY",
        257 => "CAA",
        _ => return format!("TYPE{kind}").into(),
    };
    word.into()
}

/// The mnemonic of a response code.
pub fn rcode_word(rcode: u16) -> Cow<'static, str> {
    let word = match rcode {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        9 => "NOTAUTH",
        16 => "BADVERS",
        _ => return format!("RCODE{rcode}").into(),
    };
    word.into()
}
