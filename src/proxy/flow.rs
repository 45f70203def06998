//! A flow: who opened it, where it goes, and which Networks judge it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::name::DomainName;
use crate::peek::{Discovery, Outcome, Unreadable, Via};
use crate::policy::bindings::Bindings;
use crate::policy::judge::{Binding, Facts, judge};
use crate::policy::network::{Bind, Inspection, Mode, Network};
use crate::policy::snapshot::Snapshot;
use crate::policy::{ClientAddr, Direction, DomainVerdict, DropAction, IpVerdict, OrigDst, Reason, Transport, Verdict};
use crate::telemetry::record::via_word;
use crate::telemetry::{Kind, Record, Telemetry};

#[derive(Debug)]
pub struct Flow {
    pub id: u64,
    pub transport: Transport,
    pub client: ClientAddr,
    pub orig_dst: OrigDst,
    pub opened: Instant,
    /// The policy that the flow began with.
    pub snapshot: Arc<Snapshot>,
    bindings: Arc<Bindings>,
    /// The source's Network judges outbound, then the destination's inbound; both must allow (SPEC N4).
    judges: [Option<Judge>; 2],
}

#[derive(Clone, Debug)]
struct Judge {
    network: Arc<Network>,
    direction: Direction,
}

/// What was decided, by all who judge the flow.
#[derive(Debug)]
pub struct Judgement {
    /// How a blocked flow ends; `None` lets it pass.
    pub ending: Option<DropAction>,
    /// The `end` record of a flow that passes, but for what is known only then.
    pub record: Box<Record>,
}

impl Flow {
    pub fn new(
        id: u64,
        transport: Transport,
        client: ClientAddr,
        orig_dst: OrigDst,
        snapshot: Arc<Snapshot>,
        bindings: Arc<Bindings>,
    ) -> Self {
        let protocol = protocol_number(transport);
        let judge = |direction, end| {
            let network = snapshot.network_of(end, protocol, Some(orig_dst.port()))?;
            network.rule(direction)?;
            Some(Judge { network: network.clone(), direction })
        };
        let judges = [judge(Direction::Outbound, client.ip()), judge(Direction::Inbound, orig_dst.ip())];
        Self { id, transport, client, orig_dst, opened: Instant::now(), snapshot, bindings, judges }
    }

    /// The settings by which the flow's name is looked for; `None` if nobody inspects its port.
    pub fn inspection(&self) -> Option<&Inspection> {
        self.judges().find_map(|judge| self.inspection_of(judge))
    }

    /// Records that a flow is let in although its address would be blocked, because its name may yet allow it.
    pub fn record_hold(&self, telemetry: &Telemetry) {
        let now = SystemTime::now();
        for judge in self.judges().filter(|judge| self.inspection_of(judge).is_some()) {
            let verdict = self.verdict(judge, None, now);
            if verdict.ip == IpVerdict::Block {
                let held = Verdict { pass: true, reason: Reason::DomainInspect, ..verdict };
                telemetry.record(self.judged(judge, Kind::Ip, &held, now));
            }
        }
    }

    /// The verdict of every Network in turn, recorded, up to the first that ends the flow.
    pub fn judge(&self, discovery: Option<&Discovery>, telemetry: &Telemetry) -> Judgement {
        let now = SystemTime::now();
        let mut last = None;
        for judge in self.judges() {
            let discovery = discovery.filter(|_| self.inspection_of(judge).is_some());
            let bound = self.bound(judge, discovery);
            let discovery = bound.as_ref().or(discovery);
            let verdict = self.verdict(judge, discovery, now);
            let mut record = self.describe(self.judged(judge, kind_of(discovery), &verdict, now), discovery);
            record.binding = binding_word(self.binding(judge, discovery.and_then(name_of)));
            let ending = judge.ending(&verdict);
            last = Some(record.clone());
            telemetry.record(record);
            if ending.is_some() {
                telemetry.count(|c| &c.blocked);
                return Judgement { ending, record: Box::new(self.ended(last, now)) };
            }
        }
        telemetry.count(|c| &c.allowed);
        Judgement { ending: None, record: Box::new(self.ended(last, now)) }
    }

    fn judges(&self) -> impl Iterator<Item = &Judge> {
        self.judges.iter().flatten()
    }

    fn inspection_of<'a>(&self, judge: &'a Judge) -> Option<&'a Inspection> {
        let port = self.orig_dst.port();
        judge.network.inspection.as_ref().filter(|inspection| match self.transport {
            Transport::Tcp => inspection.inspects_tcp(port),
            Transport::Udp => inspection.inspects_udp(port),
        })
    }

    fn verdict(&self, by: &Judge, discovery: Option<&Discovery>, now: SystemTime) -> Verdict {
        let remote = match by.direction {
            Direction::Outbound => self.orig_dst.ip(),
            Direction::Inbound => self.client.ip(),
        };
        let binding = self.binding(by, discovery.and_then(name_of));
        judge(&by.network, by.direction, &Facts { remote, discovery, binding, now })
    }

    /// Whether DNS gave the destination's address for the peeked name (SPEC V11).
    fn binding(&self, by: &Judge, name: Option<&DomainName>) -> Binding {
        let asks = by.network.inspection.as_ref().is_some_and(|inspection| inspection.bind != Bind::Off);
        match (name.filter(|_| asks), by.direction) {
            (None, _) => Binding::Unknown,
            (Some(name), Direction::Outbound) => {
                self.bindings.state(self.client.ip(), self.orig_dst.ip(), name, Instant::now())
            }
            // The address is the protected host's own: nobody can have been sent elsewhere by it.
            (Some(_), Direction::Inbound) => Binding::Match,
        }
    }

    /// Where nobody peeks, or peeking found nothing, the name for which DNS gave this address (SPEC V12).
    fn bound(&self, by: &Judge, discovery: Option<&Discovery>) -> Option<Discovery> {
        let nothing = match discovery {
            None => Discovery { outcome: Outcome::NoName, via: None, fingerprint: None, ech: false },
            Some(discovery) if discovery.outcome == Outcome::NoName => discovery.clone(),
            Some(_) => return None,
        };
        let inspection = by.network.inspection.as_ref().filter(|_| by.direction == Direction::Outbound)?;
        if !inspection.use_bindings {
            return None;
        }
        let name = self.bindings.name_for(self.client.ip(), self.orig_dst.ip(), Instant::now())?;
        Some(Discovery { outcome: Outcome::Name(name), via: Some(Via::Dns), ..nothing })
    }

    /// The name that would earn the flow an Allow if only DNS had given its address for it, and the resolvers that its
    /// Network trusts to say so.
    pub fn unproven<'a>(&'a self, discovery: &'a Discovery) -> Option<(&'a DomainName, Vec<SocketAddr>)> {
        let name = name_of(discovery)?;
        let by = self.judges().find(|by| by.direction == Direction::Outbound)?;
        if self.binding(by, Some(name)) != Binding::Mismatch {
            return None;
        }
        let rule = by.network.rule(by.direction)?;
        let allowed = rule.policy.judge_name(name, SystemTime::now()).verdict == DomainVerdict::Allow;
        allowed.then(|| (name, by.network.dns.trusted_resolvers()))
    }

    /// A fresh look-up gave the flow's address for `name`.
    pub fn prove(&self, name: &DomainName, ttl: Duration) {
        let names = std::slice::from_ref(name);
        self.bindings.bind(self.client.ip(), self.orig_dst.ip(), names, ttl, Instant::now());
    }

    fn judged(&self, by: &Judge, kind: Kind, verdict: &Verdict, now: SystemTime) -> Record {
        let policy = by.network.rule(by.direction).map(|rule| rule.policy.name.clone());
        let mut record = self
            .blank(kind, now)
            .judged_by(by.network.name.clone(), policy, by.direction)
            .verdict(verdict, by.ending(verdict));
        record.flow = Some(self.id);
        record
    }

    fn describe(&self, record: Record, discovery: Option<&Discovery>) -> Record {
        let Some(discovery) = discovery else { return record };
        let mut record = record.fingerprint(discovery.fingerprint.as_deref());
        record.via = discovery.via.map(via_word);
        record.domain = name_of(discovery).cloned();
        record.ech = discovery.ech;
        if let Outcome::Unreadable(why) = &discovery.outcome {
            record.detail = Some(why.to_string());
        }
        record
    }

    /// The record with which a flow that passes will end: who and what, no verdict.
    fn ended(&self, last: Option<Record>, now: SystemTime) -> Record {
        let mut end = self.blank(Kind::End, now);
        end.flow = Some(self.id);
        if let Some(last) = last {
            (end.network, end.policy, end.direction) = (last.network, last.policy, last.direction);
            (end.via, end.domain) = (last.via, last.domain);
        }
        end
    }

    fn blank(&self, kind: Kind, now: SystemTime) -> Record {
        let enforcer = self.snapshot.enforcer.clone();
        Record::new(kind, now, enforcer, self.transport.as_str(), self.client.0, self.orig_dst.0)
    }
}

impl Judge {
    /// How a flow with this verdict ends; `None` if it passes, or if its Network only watches.
    fn ending(&self, verdict: &Verdict) -> Option<DropAction> {
        if verdict.pass || self.network.mode == Mode::Monitor {
            return None;
        }
        self.network.rule(self.direction).map(|rule| rule.drop)
    }
}

fn kind_of(discovery: Option<&Discovery>) -> Kind {
    match discovery.and_then(name_of) {
        Some(_) => Kind::Domain,
        None => Kind::Ip,
    }
}

fn name_of(discovery: &Discovery) -> Option<&DomainName> {
    match &discovery.outcome {
        Outcome::Name(name) => Some(name),
        Outcome::NoName | Outcome::Unreadable(_) => None,
    }
}

fn binding_word(binding: Binding) -> Option<&'static str> {
    match binding {
        Binding::Unknown => None,
        Binding::Match => Some("match"),
        Binding::Mismatch => Some("mismatch"),
    }
}

fn protocol_number(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    }
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "malformed: {what}"),
            Self::Contradiction(what) => write!(f, "contradictory: {what}"),
            Self::TooLong => f.write_str("its beginning is longer than what is held"),
            Self::TimedOut => f.write_str("its beginning did not end in time"),
            Self::Ended => f.write_str("the client closed in the midst of its beginning"),
        }
    }
}
