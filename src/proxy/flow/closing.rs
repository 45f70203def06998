//! What stays of a flow after its verdict: enough for its `end` record, and to judge it again.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::{Flow, Judge, judges_of, name_of, remote_of};
use crate::name::DomainName;
use crate::peek::{Discovery, Outcome, Unreadable, Via};
use crate::policy::judge::{Binding, Facts, judge_again, refuse_service};
use crate::policy::snapshot::Snapshot;
use crate::policy::{ClientAddr, Direction, DropAction, OrigDst, Transport};
use crate::proxy::live::Live;
use crate::telemetry::record::via_word;
use crate::telemetry::{Kind, Record};

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
    found: Found,
    /// What else was let in, by later names of the flow: those that came last, the oldest first.
    later: Vec<Found>,
}

/// What the last that judged found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    via: Option<Via>,
    domain: Option<DomainName>,
    /// What was found where there is no domain; `None`: nobody inspected.
    nameless: Option<Nameless>,
    ech: bool,
}

/// Why a flow that was inspected has no domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nameless {
    NoName,
    Unreadable(Unreadable),
}

impl Closing {
    pub(super) fn of(flow: &Flow) -> Box<Self> {
        Box::new(Self {
            id: flow.id,
            transport: flow.transport,
            client: flow.client,
            orig_dst: flow.orig_dst,
            opened: flow.opened,
            snapshot: flow.snapshot.clone(),
            judge: None,
            found: Found::default(),
            later: Vec::new(),
        })
    }

    pub(super) fn judged(&mut self, by: &Judge, discovery: Option<&Discovery>) {
        self.judge = Some(by.clone());
        self.found = discovery.map(Found::of).unwrap_or_default();
    }

    /// What was let in with `other`, of the same flow, is judged again with this.
    pub fn join(&mut self, other: Self) {
        for found in std::iter::once(other.found).chain(other.later).filter(|found| *found != self.found) {
            self.later.retain(|known| *known != found);
            if self.later.len() >= REMEMBERED {
                self.later.remove(0);
            }
            self.later.push(found);
        }
        // All of it is judged by what comes after the older of the two.
        if other.snapshot.generation < self.snapshot.generation {
            self.snapshot = other.snapshot;
        }
    }

    /// Judges the flow again, under a policy that came after the one that let it in: how it ends now, or `None` if it may
    /// go on, under this policy from now on. A name is taken as proven, for it was when the flow began. What is forbidden
    /// is what the `end` record tells.
    pub fn judge_again(&mut self, snapshot: &Arc<Snapshot>) -> Option<DropAction> {
        if self.snapshot.generation >= snapshot.generation {
            return None;
        }
        let judges = judges_of(snapshot, self.transport, self.client, self.orig_dst);
        let mut all = std::iter::once(&self.found).chain(&self.later).enumerate();
        let forbidden = all.find_map(|(index, found)| Some((index, self.ending_of(found, &judges)?)));
        if let Some((index, action)) = forbidden {
            if let Some(later) = index.checked_sub(1).and_then(|index| self.later.get_mut(index)) {
                std::mem::swap(later, &mut self.found);
            }
            return Some(action);
        }
        self.judge = judges.into_iter().flatten().next_back();
        self.snapshot = snapshot.clone();
        None
    }

    fn ending_of(&self, found: &Found, judges: &[Option<Judge>]) -> Option<DropAction> {
        let found = found.discovery();
        judges.iter().flatten().find_map(|judge| {
            let facts = Facts {
                remote: remote_of(judge.direction, self.client, self.orig_dst),
                discovery: found.as_ref().filter(|found| self.is_seen_by(judge, found)),
                binding: Binding::Match,
                now: SystemTime::now(),
            };
            let (transport, port) = (Some(self.transport), Some(self.orig_dst.port()));
            let refused = refuse_service(&judge.network, judge.direction, transport, port, &facts);
            let verdict = refused.unwrap_or_else(|| judge_again(&judge.network, judge.direction, &facts));
            judge.ending(&verdict)
        })
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
            via: self.found.via,
            domain: self.found.domain.clone(),
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
        end.via = self.found.via.map(via_word);
        end.domain = self.found.domain.clone();
        end.flow = Some(self.id);
        (end.bytes_out, end.bytes_in) = (Some(bytes_out), Some(bytes_in));
        end.duration_ms = u64::try_from(self.opened.elapsed().as_millis()).ok();
        end.closed_by = Some(closed_by);
        end
    }
}

impl Found {
    fn of(discovery: &Discovery) -> Self {
        Self {
            via: discovery.via,
            domain: name_of(discovery).cloned(),
            nameless: match &discovery.outcome {
                Outcome::Name(_) => None,
                Outcome::NoName => Some(Nameless::NoName),
                Outcome::Unreadable(why) => Some(Nameless::Unreadable(*why)),
            },
            ech: discovery.ech,
        }
    }

    fn discovery(&self) -> Option<Discovery> {
        let outcome = match (&self.domain, self.nameless) {
            (Some(name), _) => Outcome::Name(name.clone()),
            (None, Some(Nameless::NoName)) => Outcome::NoName,
            (None, Some(Nameless::Unreadable(why))) => Outcome::Unreadable(why),
            (None, None) => return None,
        };
        Some(Discovery { outcome, via: self.via, fingerprint: None, ech: self.ech })
    }
}

/// What is kept beside the first, as many as QUIC connections are remembered of a flow.
pub(super) const REMEMBERED: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn closing(name: &str, generation: u64) -> Closing {
        let nowhere = ([192, 0, 2, 1], 443).into();
        let snapshot = Arc::new(Snapshot::new("e".into(), generation, Vec::new()));
        let (client, orig_dst) = (ClientAddr(nowhere), OrigDst(nowhere));
        let flow = Flow::new(1, Transport::Udp, client, orig_dst, snapshot, Arc::default());
        let domain = DomainName::parse(name.as_bytes()).ok();
        Closing { found: Found { domain, ..Found::default() }, ..*Closing::of(&flow) }
    }

    #[test]
    fn the_first_and_the_last_that_was_let_in_are_kept_and_judged_by_all_that_came_since() {
        let mut all = closing("first.example", 2);
        let came = (0..20).map(|n| format!("n{n}.example")).chain(["n13.example".into(), "first.example".into()]);
        came.for_each(|name| all.join(closing(&name, 2)));
        let kept: Vec<_> = all.later.iter().flat_map(|found| &found.domain).map(DomainName::as_str).collect();
        let last = [12, 14, 15, 16, 17, 18, 19, 13].map(|n| format!("n{n}.example"));
        assert_eq!((kept, all.snapshot.generation), (last.iter().map(String::as_str).collect(), 2));
        all.join(closing("before.example", 1));
        assert_eq!((all.later.len(), all.snapshot.generation), (REMEMBERED, 1));
    }
}
