//! A flow: who opened it, where it goes, and which Networks judge it.

mod closing;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub use closing::Closing;
use closing::REMEMBERED;

use crate::name::DomainName;
use crate::peek::{Discovery, Outcome, Via};
use crate::policy::bindings::Bindings;
use crate::policy::judge::{Binding, Facts, alerts, judge, refuse_service, refused_service};
use crate::policy::network::{Bind, HttpRequests, Inspection, Mode, Network};
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
    /// Names that were bound to the flow's address while it lived: those that came last.
    bound: Vec<DomainName>,
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
        Self { id, transport, client, orig_dst, opened: Instant::now(), snapshot, bindings, judges, bound: Vec::new() }
    }

    /// From here on a later policy judges, as if the flow had begun with it.
    pub fn adopt(&mut self, snapshot: &Arc<Snapshot>) {
        if self.snapshot.generation >= snapshot.generation {
            return;
        }
        self.judges = judges_of(snapshot, self.transport, self.client, self.orig_dst);
        self.snapshot = snapshot.clone();
    }

    /// The settings by which the flow's name is looked for; `None` if nobody inspects its port.
    pub fn inspection(&self) -> Option<&Inspection> {
        self.judges().find_map(|judge| self.inspection_of(judge))
    }

    /// Which requests of a connection are judged: each, where anybody who judges the flow wants that.
    pub fn http(&self) -> Option<HttpRequests> {
        let asked = self.judges().filter_map(|judge| Some(self.inspection_of(judge)?.http));
        asked.reduce(|one, other| if one == HttpRequests::Every { one } else { other })
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
        let mut closing = Closing::of(self);
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

    /// A name that DNS has bound to the flow's address stays so for the flow, which outlives the record's TTL (SPEC V12).
    pub fn keep_binding(&mut self, discovery: &Discovery) {
        let Some(name) = name_of(discovery).filter(|name| !self.bound.contains(name)) else { return };
        if self.judges().any(|judge| self.binds(judge) && self.binding(judge, name) == Binding::Match) {
            if self.bound.len() >= REMEMBERED {
                self.bound.remove(0);
            }
            self.bound.push(name.clone());
        }
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
        if self.bound.contains(name) {
            return Binding::Match;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::fixture::{network, snapshot, with_policy};
    use crate::list::{List, ListVerdict, PrefixSet};
    use crate::name::Pattern;
    use crate::policy::InspectionType;
    use crate::policy::bindings::Settings;
    use crate::telemetry::Queue;

    #[test]
    fn a_name_stays_bound_to_the_address_of_a_flow_that_it_has_let_in() {
        let domains = [(Pattern::parse(".example").unwrap(), None)].into_iter().collect();
        let (name, verdict, prefixes) = ("good".into(), ListVerdict::Allow, PrefixSet::default());
        let lists = vec![Arc::new(List { name, verdict, domains, prefixes })];
        let mut network = with_policy(network("office", &[("10.1.0.0/24", None)]), lists, IpVerdict::Block);
        let inspection = network.inspection.as_mut().unwrap();
        (inspection.kind, inspection.bind) = (InspectionType::Explicit, Bind::Enforce);
        let bindings = Arc::new(Bindings::new(Settings { pairs: 1, ..Settings::default() }));
        let (client, server) = (([10, 1, 0, 2], 40000), ([192, 0, 2, 1], 80));
        let name = |text: &str| DomainName::parse(text.as_bytes()).unwrap();
        let bind = |remote: [u8; 4], of: &str| {
            bindings.bind(client.0.into(), remote.into(), &[name(of)], Duration::from_secs(60), Instant::now());
        };
        let policy = Arc::new(snapshot(vec![network]));
        let ends = (ClientAddr(client.into()), OrigDst(server.into()));
        let mut flow = Flow::new(1, Transport::Tcp, ends.0, ends.1, policy, bindings.clone());
        let mut passes = |of: &str| {
            let discovery = Discovery::of_request(Some(name(of)));
            flow.keep_binding(&discovery);
            flow.judge(Some(&discovery), &Telemetry::new(Queue::new(9).0)).ending.is_none()
        };
        bind(server.0, "a.example");
        assert!(passes("a.example") && !passes("b.example"));
        // It makes room for others, as it would when its time is over.
        (0..=255).for_each(|last| bind([198, 51, 100, last], "c.example"));
        (0..=255).for_each(|last| bind([198, 51, 101, last], "c.example"));
        let state = bindings.state(client.0.into(), server.0.into(), &name("a.example"), Instant::now());
        assert_eq!(state, Binding::Mismatch);
        assert!(passes("a.example") && !passes("b.example"));
    }
}
