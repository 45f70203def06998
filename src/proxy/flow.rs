//! A flow: who opened it, where it goes, and which Networks judge it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::live::Live;
use crate::name::DomainName;
use crate::peek::{Discovery, Outcome, Unreadable, Via};
use crate::policy::bindings::Bindings;
use crate::policy::judge::{Binding, Facts, alerts, judge, judge_again, refuse_service, refused_service};
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
    pub closing: Box<Closing>,
}

/// What the `end` record of a flow will say, but for what is known only then.
#[derive(Debug)]
pub struct Closing {
    id: u64,
    transport: Transport,
    client: ClientAddr,
    orig_dst: OrigDst,
    opened: Instant,
    snapshot: Arc<Snapshot>,
    /// The last that judged.
    judge: Option<Judge>,
    via: Option<Via>,
    domain: Option<DomainName>,
    /// What was found where there is no domain; `None`: nobody inspected.
    nameless: Option<Nameless>,
    ech: bool,
}

/// Why a flow that was inspected has no domain.
#[derive(Clone, Copy, Debug)]
enum Nameless {
    NoName,
    Unreadable(Unreadable),
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
        let judges = judges_of(&snapshot, transport, client, orig_dst);
        Self { id, transport, client, orig_dst, opened: Instant::now(), snapshot, bindings, judges }
    }

    /// From here on another policy judges, as if the flow had begun with it.
    pub fn adopt(&mut self, snapshot: &Arc<Snapshot>) {
        self.judges = judges_of(snapshot, self.transport, self.client, self.orig_dst);
        self.snapshot = snapshot.clone();
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

    /// Whether a Network ends the flow whatever its name: then nobody looks for it.
    pub fn is_refused(&self) -> bool {
        let (transport, port) = (Some(self.transport), Some(self.orig_dst.port()));
        let refuses =
            |by: &Judge| refused_service(&by.network, by.direction, transport, port, self.remote(by)).is_some();
        self.judges().any(|by| by.network.mode != Mode::Monitor && refuses(by))
    }

    /// The verdict of every Network in turn, recorded, up to the first that ends the flow.
    pub fn judge(&self, discovery: Option<&Discovery>, telemetry: &Telemetry) -> Judgement {
        let now = SystemTime::now();
        let mut closing = self.closing();
        if let Some(discovery) = discovery {
            telemetry.peeked(discovery);
        }
        for judge in self.judges() {
            let discovery = self.as_seen_by(judge, discovery);
            let discovery = discovery.as_deref();
            let verdict = self.verdict(judge, discovery, now);
            let ending = judge.ending(&verdict);
            closing.judged(judge, discovery);
            telemetry.record(self.describe(self.judged(judge, kind_of(discovery), &verdict, now), judge, discovery));
            if ending.is_some() {
                telemetry.count(|c| &c.blocked);
                return Judgement { ending, closing };
            }
        }
        telemetry.count(|c| &c.allowed);
        Judgement { ending: None, closing }
    }

    /// A name that could earn an Allow but has no binding to the flow's address yet, so that one fresh look-up is
    /// worth while (SPEC V11), and the Network whose resolvers may be asked.
    pub fn unbound_name<'a>(&self, discovery: &'a Discovery) -> Option<(&'a DomainName, &Network)> {
        let name = name_of(discovery)?;
        let judge = self.judges().find(|judge| {
            self.binds(judge) && self.binding(judge, name) != Binding::Match && self.would_allow(judge, name)
        })?;
        Some((name, &judge.network))
    }

    /// Remembers what a fresh look-up gives.
    pub fn binder(&self) -> Binder {
        Binder { bindings: self.bindings.clone(), client: self.client.ip(), remote: self.orig_dst.ip() }
    }

    /// What a Network takes the flow to say: nothing where it does not inspect the port, but in both cases the name that
    /// DNS gave the client for the address where the flow shows none (SPEC V12).
    fn as_seen_by<'a>(&self, by: &Judge, discovery: Option<&'a Discovery>) -> Option<Cow<'a, Discovery>> {
        let shown = discovery.filter(|_| self.inspection_of(by).is_some());
        if shown.is_none_or(|shown| shown.outcome == Outcome::NoName)
            && by.direction == Direction::Outbound
            && by.network.inspection.as_ref().is_some_and(|inspection| inspection.use_bindings)
            && let Some(name) = self.bindings.name_for(self.client.ip(), self.orig_dst.ip(), Instant::now())
        {
            let nothing = Discovery { outcome: Outcome::NoName, via: None, fingerprint: None, ech: false };
            let outcome = Outcome::Name(name);
            return Some(Cow::Owned(Discovery { outcome, via: Some(Via::Dns), ..shown.cloned().unwrap_or(nothing) }));
        }
        shown.map(Cow::Borrowed)
    }

    /// Whether a Network asks for a binding. DNS that protected hosts ask tells of the addresses that they go to, and
    /// nothing of those who come to them.
    fn binds(&self, by: &Judge) -> bool {
        let asks = by.network.inspection.as_ref().is_some_and(|inspection| inspection.bind != Bind::Off);
        asks && by.direction == Direction::Outbound
    }

    fn binding(&self, by: &Judge, name: &DomainName) -> Binding {
        if !self.binds(by) {
            return if by.direction == Direction::Inbound { Binding::Match } else { Binding::Unknown };
        }
        self.bindings.state(self.client.ip(), self.orig_dst.ip(), name, Instant::now())
    }

    fn would_allow(&self, by: &Judge, name: &DomainName) -> bool {
        by.network
            .rule(by.direction)
            .is_some_and(|rule| rule.policy.judge_name(name, SystemTime::now()).verdict == DomainVerdict::Allow)
    }

    fn judges(&self) -> impl Iterator<Item = &Judge> {
        self.judges.iter().flatten()
    }

    fn inspection_of<'a>(&self, judge: &'a Judge) -> Option<&'a Inspection> {
        judge.inspects(self.transport, self.orig_dst.port())
    }

    fn verdict(&self, by: &Judge, discovery: Option<&Discovery>, now: SystemTime) -> Verdict {
        let binding = discovery.and_then(name_of).map_or(Binding::Unknown, |name| self.binding(by, name));
        let facts = Facts { remote: self.remote(by), discovery, binding, now };
        self.refusal(by, &facts).unwrap_or_else(|| judge(&by.network, by.direction, &facts))
    }

    fn refusal(&self, by: &Judge, facts: &Facts<'_>) -> Option<Verdict> {
        refuse_service(&by.network, by.direction, Some(self.transport), Some(self.orig_dst.port()), facts)
    }

    fn remote(&self, by: &Judge) -> IpAddr {
        remote_of(by.direction, self.client, self.orig_dst)
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

    fn describe(&self, record: Record, by: &Judge, discovery: Option<&Discovery>) -> Record {
        let Some(discovery) = discovery else { return record };
        let mut record = record.fingerprint(discovery.fingerprint.as_deref());
        record.via = discovery.via.map(via_word);
        record.domain = name_of(discovery).cloned();
        record.ech = discovery.ech;
        record.binding = name_of(discovery).filter(|_| self.binds(by)).map(|name| match self.binding(by, name) {
            Binding::Match => "match",
            Binding::Mismatch | Binding::Unknown => "mismatch",
        });
        let policy = by.network.rule(by.direction).map(|rule| &rule.policy);
        record.alert = policy.filter(|policy| alerts(policy, discovery)).map(|_| "fingerprint");
        if let Outcome::Unreadable(why) = &discovery.outcome {
            record.detail = Some(why.to_string());
        }
        record
    }

    fn closing(&self) -> Box<Closing> {
        Box::new(Closing {
            id: self.id,
            transport: self.transport,
            client: self.client,
            orig_dst: self.orig_dst,
            opened: self.opened,
            snapshot: self.snapshot.clone(),
            judge: None,
            via: None,
            domain: None,
            nameless: None,
            ech: false,
        })
    }

    fn blank(&self, kind: Kind, now: SystemTime) -> Record {
        let enforcer = self.snapshot.enforcer.clone();
        Record::new(kind, now, enforcer, self.transport.as_str(), self.client.0, self.orig_dst.0)
    }
}

/// Where the result of a flow's look-up goes.
#[derive(Debug)]
pub struct Binder {
    bindings: Arc<Bindings>,
    client: IpAddr,
    remote: IpAddr,
}

impl Binder {
    pub fn remote(&self) -> IpAddr {
        self.remote
    }

    /// Binds the name to the flow's address if that is among its addresses, each with its TTL in seconds.
    pub fn bind(&self, name: &DomainName, addresses: &[(IpAddr, u32)]) {
        if let Some((_, ttl)) = addresses.iter().find(|(address, _)| *address == self.remote) {
            let ttl = Duration::from_secs(u64::from(*ttl));
            self.bindings.bind(self.client, self.remote, std::slice::from_ref(name), ttl, Instant::now());
        }
    }
}

impl Closing {
    fn judged(&mut self, by: &Judge, discovery: Option<&Discovery>) {
        self.judge = Some(by.clone());
        self.via = discovery.and_then(|discovery| discovery.via);
        self.domain = discovery.and_then(name_of).cloned();
        self.ech = discovery.is_some_and(|discovery| discovery.ech);
        self.nameless = discovery.and_then(|discovery| match &discovery.outcome {
            Outcome::Name(_) => None,
            Outcome::NoName => Some(Nameless::NoName),
            Outcome::Unreadable(why) => Some(Nameless::Unreadable(*why)),
        });
    }

    /// Judges the flow again, under a policy that came after the one that let it in: how it ends now, or `None` if it may
    /// go on, under this policy from now on. A name is taken as proven, for it was when the flow began.
    pub fn judge_again(&mut self, snapshot: &Arc<Snapshot>) -> Option<DropAction> {
        if self.snapshot.generation >= snapshot.generation {
            return None;
        }
        let found = self.found();
        let judges = judges_of(snapshot, self.transport, self.client, self.orig_dst);
        for judge in judges.iter().flatten() {
            let seen = found.as_ref().filter(|found| self.is_seen_by(judge, found));
            let facts = Facts {
                remote: remote_of(judge.direction, self.client, self.orig_dst),
                discovery: seen,
                binding: Binding::Match,
                now: SystemTime::now(),
            };
            let (transport, port) = (Some(self.transport), Some(self.orig_dst.port()));
            let refused = refuse_service(&judge.network, judge.direction, transport, port, &facts);
            let verdict = refused.unwrap_or_else(|| judge_again(&judge.network, judge.direction, &facts));
            if let Some(action) = judge.ending(&verdict) {
                return Some(action);
            }
        }
        self.judge = judges.into_iter().flatten().next_back();
        self.snapshot = snapshot.clone();
        None
    }

    fn found(&self) -> Option<Discovery> {
        let outcome = match (&self.domain, self.nameless) {
            (Some(name), _) => Outcome::Name(name.clone()),
            (None, Some(Nameless::NoName)) => Outcome::NoName,
            (None, Some(Nameless::Unreadable(why))) => Outcome::Unreadable(why),
            (None, None) => return None,
        };
        Some(Discovery { outcome, via: self.via, fingerprint: None, ech: self.ech })
    }

    fn is_seen_by(&self, by: &Judge, found: &Discovery) -> bool {
        match found.via {
            Some(Via::Dns) => {
                let uses = by.network.inspection.as_ref().is_some_and(|inspection| inspection.use_bindings);
                uses && by.direction == Direction::Outbound
            }
            _ => by.inspects(self.transport, self.orig_dst.port()).is_some(),
        }
    }

    /// The flow, while it lives.
    pub fn live(&self, bytes_out: u64, bytes_in: u64) -> Live {
        Live {
            id: self.id,
            transport: self.transport,
            client: self.client.0,
            remote: self.orig_dst.0,
            network: self.judge.as_ref().map(|judge| judge.network.name.clone()),
            direction: self.judge.as_ref().map(|judge| judge.direction),
            via: self.via,
            domain: self.domain.clone(),
            opened: self.opened,
            bytes_out,
            bytes_in,
        }
    }

    /// The `end` record, now that the flow has ended.
    pub fn record(&self, bytes_out: u64, bytes_in: u64, closed_by: &'static str) -> Record {
        let enforcer = self.snapshot.enforcer.clone();
        let protocol = self.transport.as_str();
        let mut end = Record::new(Kind::End, SystemTime::now(), enforcer, protocol, self.client.0, self.orig_dst.0);
        if let Some(judge) = &self.judge {
            end.network = Some(judge.network.name.clone());
            end.policy = judge.network.rule(judge.direction).map(|rule| rule.policy.name.clone());
            end.direction = Some(judge.direction.as_str());
        }
        end.via = self.via.map(via_word);
        end.domain = self.domain.clone();
        end.flow = Some(self.id);
        (end.bytes_out, end.bytes_in) = (Some(bytes_out), Some(bytes_in));
        end.duration_ms = u64::try_from(self.opened.elapsed().as_millis()).ok();
        end.closed_by = Some(closed_by);
        end
    }
}

impl Judge {
    fn inspects(&self, transport: Transport, port: u16) -> Option<&Inspection> {
        self.network.inspection.as_ref().filter(|inspection| match transport {
            Transport::Tcp => inspection.inspects_tcp(port),
            Transport::Udp => inspection.inspects_udp(port),
        })
    }

    /// How a flow with this verdict ends; `None` if it passes, or if its Network only watches.
    fn ending(&self, verdict: &Verdict) -> Option<DropAction> {
        if verdict.pass || self.network.mode == Mode::Monitor {
            return None;
        }
        self.network.rule(self.direction).map(|rule| rule.drop)
    }
}

/// The source's Network judges outbound, the destination's inbound.
fn judges_of(snapshot: &Snapshot, transport: Transport, client: ClientAddr, orig_dst: OrigDst) -> [Option<Judge>; 2] {
    let judge = |direction, end| {
        let network = snapshot.network_of(end, protocol_number(transport), Some(orig_dst.port()))?;
        network.rule(direction)?;
        Some(Judge { network: network.clone(), direction })
    };
    [judge(Direction::Outbound, client.ip()), judge(Direction::Inbound, orig_dst.ip())]
}

fn remote_of(direction: Direction, client: ClientAddr, orig_dst: OrigDst) -> IpAddr {
    match direction {
        Direction::Outbound => orig_dst.ip(),
        Direction::Inbound => client.ip(),
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
