//! The account of a judgement: every step that led to it.

use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::IpNet;
use serde::Serialize;

use super::Protocol;
use crate::dns::exchange::{blocked_name, refused_resolver};
use crate::dns::record::ANSWERED;
use crate::name::DomainName;
use crate::peek::{Discovery, Fingerprint, Outcome, Unreadable, Via};
use crate::policy::judge::{Binding, Facts, judge, refuse_service};
use crate::policy::matrix::combine;
use crate::policy::network::{DNS_PORT, Mode, Network, Rule};
use crate::policy::snapshot::Snapshot;
use crate::policy::{Direction, DomainVerdict, Reason, Transport, Verdict};

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: Protocol,
    pub(super) port: Option<u16>,
    pub(super) name: Option<DomainName>,
    pub(super) fingerprint: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Account {
    enforcer: String,
    source: IpAddr,
    destination: IpAddr,
    protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// `allow` or `block`: of all directions together.
    verdict: &'static str,
    /// Outbound by the source's Network, then inbound by the destination's. Empty: no end is protected.
    judgements: Vec<Judgement>,
}

/// What one Network makes of the flow.
#[derive(Debug, Serialize)]
struct Judgement {
    network: String,
    mode: &'static str,
    direction: &'static str,
    /// The prefix that holds the protected end.
    prefix: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<Opinion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<Opinion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inspection: Option<Row>,
    /// For the flow as it was asked.
    outcome: Ending,
    /// Were no name found; on inspected ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_name: Option<Ending>,
    /// Did it begin as TLS, HTTP or QUIC and could not be read; on inspected ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    unreadable: Option<Ending>,
    notes: Vec<&'static str>,
}

/// What the policy makes of the address or the name alone.
#[derive(Debug, Serialize)]
struct Opinion {
    verdict: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    list: Option<String>,
}

/// The row of the matrix that applies, by what the name is worth.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(rename = "type")]
    kind: &'static str,
    domain_allow: &'static str,
    domain_block: &'static str,
    domain_none: &'static str,
}

#[derive(Debug, Serialize)]
struct Ending {
    verdict: &'static str,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    list: Option<String>,
    /// What the client sees of a block.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
}

impl Account {
    pub(super) fn of(snapshot: &Snapshot, flow: &Flow, now: SystemTime) -> Self {
        let ends =
            [(Direction::Outbound, flow.source, flow.destination), (Direction::Inbound, flow.destination, flow.source)];
        let mut judgements = Vec::new();
        for (direction, protected, remote) in ends {
            let network = snapshot.network_of(protected, flow.protocol.number, flow.port);
            judgements
                .extend(network.map(|network| Question { flow, network, direction, protected, remote, now }.answer()));
        }
        let passes = judgements.iter().all(Judgement::lets_pass);
        Self {
            enforcer: snapshot.enforcer.to_string(),
            source: flow.source,
            destination: flow.destination,
            protocol: flow.protocol.written.clone(),
            port: flow.port,
            name: flow.name.as_ref().map(DomainName::to_string),
            verdict: word(passes),
            judgements,
        }
    }
}

impl Judgement {
    fn lets_pass(&self) -> bool {
        self.mode == mode(Mode::Monitor) || self.outcome.verdict == word(true)
    }
}

/// One Network, asked about one direction of the flow.
struct Question<'a> {
    flow: &'a Flow,
    network: &'a Network,
    direction: Direction,
    protected: IpAddr,
    remote: IpAddr,
    now: SystemTime,
}

impl Question<'_> {
    fn answer(&self) -> Judgement {
        let rule = self.network.rule(self.direction);
        let asks = rule.filter(|_| self.is_question());
        let inspected = rule.is_some() && asks.is_none() && self.is_inspected();
        let shown = self.shown();
        let on_inspected = |discovery: Discovery| inspected.then(|| self.ending(Some(&discovery)));
        Judgement {
            network: self.network.name.to_string(),
            mode: mode(self.network.mode),
            direction: self.direction.as_str(),
            prefix: self.prefix(),
            policy: rule.map(|rule| rule.policy.name.to_string()),
            address: rule.map(|rule| self.address(rule)),
            domain: rule.and_then(|rule| self.domain(rule)),
            inspection: rule.filter(|_| inspected).and_then(|rule| self.row(rule)),
            outcome: match asks {
                Some(rule) => self.answer_of_question(rule),
                None => self.ending(inspected.then_some(&shown)),
            },
            no_name: on_inspected(Discovery::no_name(None)),
            unreadable: on_inspected(Discovery::unreadable(Via::Tls, Unreadable::TooLong)),
            notes: self.notes(rule, inspected, asks.is_some()),
        }
    }

    /// DNS in the clear comes to tidegate, which judges the name that is asked for (SPEC D1, D2).
    fn is_question(&self) -> bool {
        let has_ports = matches!(self.flow.protocol.number, 6 | 17);
        self.direction == Direction::Outbound && has_ports && self.flow.port == Some(DNS_PORT)
    }

    fn answer_of_question(&self, rule: &Rule) -> Ending {
        let ending = |pass, (reason, list): (Reason, Option<std::sync::Arc<str>>), action| Ending {
            verdict: word(pass),
            reason: reason.as_str(),
            list: list.map(|list| list.to_string()),
            action,
        };
        if let Some(why) = refused_resolver(self.network, &rule.policy, self.remote, self.now) {
            return ending(false, why, Some(rule.drop.as_str()));
        }
        let Some(name) = &self.flow.name else { return ending(true, (Reason::Default, None), None) };
        let own = rule.policy.judge_name(name, self.now);
        match blocked_name(self.network, &own) {
            Some(why) => ending(false, why, Some(ANSWERED)),
            None if own.verdict == DomainVerdict::Allow => ending(true, (Reason::Domain, own.list), None),
            None => ending(true, (Reason::Default, own.list), None),
        }
    }

    fn is_inspected(&self) -> bool {
        let (Some(inspection), Some(port)) = (&self.network.inspection, self.flow.port) else { return false };
        match self.flow.protocol.number {
            6 => inspection.inspects_tcp(port),
            17 => inspection.inspects_udp(port),
            _ => false,
        }
    }

    /// What a peek would find of the flow as it was asked.
    fn shown(&self) -> Discovery {
        let Some(name) = &self.flow.name else { return Discovery::no_name(None) };
        let fingerprint = self
            .flow
            .fingerprint
            .clone()
            .map(|text| Box::new(Fingerprint { ja3_full: text.clone(), ja3: text.clone(), ja4: text }));
        Discovery { outcome: Outcome::Name(name.clone()), via: Some(Via::Tls), fingerprint, ech: false }
    }

    fn ending(&self, discovery: Option<&Discovery>) -> Ending {
        // As the gateway has it: those who come to protected hosts need none.
        let binding = if self.direction == Direction::Inbound { Binding::Match } else { Binding::Unknown };
        let facts = Facts { remote: self.remote, discovery, binding, now: self.now };
        let transport = match self.flow.protocol.number {
            6 => Some(Transport::Tcp),
            17 => Some(Transport::Udp),
            _ => None,
        };
        let verdict = refuse_service(self.network, self.direction, transport, self.flow.port, &facts)
            .unwrap_or_else(|| judge(self.network, self.direction, &facts));
        let action = self.network.rule(self.direction).filter(|_| !verdict.pass).map(|rule| rule.drop.as_str());
        let Verdict { pass, reason, list, .. } = verdict;
        Ending { verdict: word(pass), reason: reason.as_str(), list: list.map(|list| list.to_string()), action }
    }

    fn address(&self, rule: &Rule) -> Opinion {
        let own = rule.policy.judge_ip(self.remote, self.now);
        opinion(own.verdict.as_str(), own.reason, own.list)
    }

    fn domain(&self, rule: &Rule) -> Option<Opinion> {
        let own = rule.policy.judge_name(self.flow.name.as_ref()?, self.now);
        Some(opinion(own.verdict.as_str(), own.reason, own.list))
    }

    fn row(&self, rule: &Rule) -> Option<Row> {
        let kind = self.network.inspection.as_ref()?.kind;
        let ip = rule.policy.judge_ip(self.remote, self.now).verdict;
        let on = |domain| word(combine(kind, ip, domain));
        Some(Row {
            kind: kind.as_str(),
            domain_allow: on(DomainVerdict::Allow),
            domain_block: on(DomainVerdict::Block),
            domain_none: on(DomainVerdict::None),
        })
    }

    /// The longest of the Network's prefixes that covers the packet.
    fn prefix(&self) -> IpNet {
        let covers = |port: Option<&_>| {
            Option::is_none_or(port, |port: &crate::policy::network::Port| {
                port.covers(self.flow.protocol.number, self.flow.port)
            })
        };
        let ips = self.network.ips.iter();
        let covering = ips.filter(|ip| ip.prefix.contains(&self.protected) && covers(ip.port.as_deref()));
        let longest = covering.map(|ip| ip.prefix).max_by_key(IpNet::prefix_len);
        longest.unwrap_or_else(|| self.protected.into())
    }

    fn notes(&self, rule: Option<&Rule>, inspected: bool, asks: bool) -> Vec<&'static str> {
        let Some(rule) = rule else { return vec!["the Network does not judge this direction: it passes"] };
        let mut notes = Vec::new();
        if asks {
            notes.push("a question of DNS: its resolver and its name decide, not the verdict of the address");
        } else if self.flow.name.is_some() && !inspected {
            notes.push("this port is not inspected: the name is not seen, and the address decides");
        }
        if inspected && !rule.policy.fingerprints.is_empty() && self.flow.fingerprint.is_none() {
            notes.push("the policy has fingerprint rules, and no --fingerprint is given");
        }
        let uses_bindings = self.network.inspection.as_ref().is_some_and(|inspection| inspection.use_bindings);
        let shows_name = inspected && self.flow.name.is_some();
        if uses_bindings && self.direction == Direction::Outbound && !asks && !shows_name {
            notes.push(
                "a name that DNS gave the client for the address decides where the flow shows none (use_bindings)",
            );
        }
        if shows_name && self.ending(Some(&self.shown())).reason == Reason::Binding.as_str() {
            notes.push(
                "the name earns its Allow only at an address that DNS gave for it, asked once more if need be (bind): \
                 that is not looked up here, and the flow passes if it did",
            );
        }
        if self.network.mode == Mode::Monitor {
            notes.push("the Network is in monitor mode: the verdict is recorded, nothing is blocked");
        }
        notes
    }
}

fn opinion(verdict: &'static str, reason: Reason, list: Option<std::sync::Arc<str>>) -> Opinion {
    Opinion { verdict, reason: reason.as_str(), list: list.map(|list| list.to_string()) }
}

fn word(pass: bool) -> &'static str {
    if pass { "allow" } else { "block" }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Monitor => "monitor",
        Mode::Off => "off",
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flow        {} -> {}, {}", self.source, self.destination, self.protocol)?;
        if let Some(port) = self.port {
            write!(f, " port {port}")?;
        }
        match &self.name {
            Some(name) => writeln!(f, ", named {name}")?,
            None => writeln!(f, ", without a name")?,
        }
        for judgement in &self.judgements {
            write!(f, "\n{judgement}")?;
        }
        if self.judgements.is_empty() {
            writeln!(f, "network     none protects either end")?;
        }
        writeln!(f, "\nverdict     {} on {}", self.verdict.to_uppercase(), self.enforcer)
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "network     {}, {} (by its prefix {}), mode {}",
            self.network, self.direction, self.prefix, self.mode
        )?;
        if let Some(policy) = &self.policy {
            writeln!(f, "policy      {policy}")?;
        }
        if let Some(address) = &self.address {
            writeln!(f, "address     {address}")?;
        }
        if let Some(domain) = &self.domain {
            writeln!(f, "name        {domain}")?;
        }
        match &self.inspection {
            Some(row) => writeln!(f, "inspection  {row}")?,
            None => writeln!(f, "inspection  none on this port")?,
        }
        writeln!(f, "outcome     {}", self.outcome)?;
        let others = [("no name", &self.no_name), ("unreadable", &self.unreadable)];
        for (when, ending) in others.iter().filter_map(|(when, ending)| Some((when, ending.as_ref()?))) {
            writeln!(f, "{when:<11} {ending}")?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note        {note}"))
    }
}

impl fmt::Display for Opinion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        says(f, self.verdict, self.reason, self.list.as_deref())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, domain_allow, domain_block, domain_none } = self;
        write!(f, "{kind}: a name that is allowed: {domain_allow}; blocked: {domain_block}; on no list: {domain_none}")
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        says(f, self.verdict, self.reason, self.list.as_deref())?;
        self.action.map_or(Ok(()), |action| write!(f, ", by {action}"))
    }
}

fn says(f: &mut fmt::Formatter<'_>, verdict: &str, reason: &str, list: Option<&str>) -> fmt::Result {
    write!(f, "{verdict} ({reason}")?;
    if let Some(list) = list {
        write!(f, ", list `{list}`")?;
    }
    write!(f, ")")
}
